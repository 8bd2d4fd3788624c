"""The losses on the log against their plain formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.sequence.losses.full_softmax import full_softmax
from recsys.sequence.losses.sampled_softmax import sampled_softmax


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 50), st.integers(0, 1000))
def test_full_softmax_is_cross_entropy_in_value_and_gradient(n: int, n_items: int, block: int, seed: int) -> None:
    queries, items = draw(seed, n, 8), draw(seed + 1, n_items, 8)
    targets = torch.randint(n_items, (n,), generator=torch.Generator().manual_seed(seed))
    results = []
    for loss in (
        lambda q, v: full_softmax(q, v, targets, block=block),
        lambda q, v: torch.nn.functional.cross_entropy(q @ v.T, targets),
    ):
        q, v = queries.clone().requires_grad_(), items.clone().requires_grad_()
        value = loss(q, v)
        (3 * value).backward()
        results.append((value.detach(), q.grad, v.grad))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_full_softmax_in_bf16_stays_near() -> None:
    queries, items, targets = draw(0, 64, 16), draw(1, 500, 16), torch.arange(64)
    exact = full_softmax(queries, items, targets)
    assert float(full_softmax(queries, items, targets, dtype=torch.bfloat16)) == pytest.approx(float(exact), rel=0.01)


def test_sampled_softmax_over_everything_else_is_the_full_one() -> None:
    n_items, target = 12, torch.tensor([4])
    queries, items = draw(2, 1, 8), draw(3, n_items, 8)
    others = torch.tensor([i for i in range(n_items) if i != 4])
    sampled = sampled_softmax(queries, items[target], target, items[others], others, n_items=n_items)
    torch.testing.assert_close(sampled, full_softmax(queries, items, target))


def test_sampled_softmax_never_pushes_the_target_away() -> None:
    items = draw(4, 5, 8)
    queries, target = items[2:3].clone().requires_grad_(), torch.tensor([2])
    only_itself = sampled_softmax(queries, items[target], target, items[target], target, n_items=5)
    assert float(only_itself.detach()) == 0.0


def test_sampled_softmax_estimates_the_full_one() -> None:
    n_items = 400
    queries, items = 0.3 * draw(5, 16, 8), draw(6, n_items, 8)
    targets = torch.arange(16)
    generator = torch.Generator().manual_seed(7)
    estimates = []
    for _ in range(200):
        drawn = torch.randint(n_items, (100,), generator=generator)
        estimates.append(sampled_softmax(queries, items[targets], targets, items[drawn], drawn, n_items=n_items))
    exact = full_softmax(queries, items, targets)
    assert float(torch.stack(estimates).mean()) == pytest.approx(float(exact), rel=0.03)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 1000))
def test_positions_count_as_much_as_they_weigh(n: int, block: int, seed: int) -> None:
    n_items = 20
    queries, items = draw(seed, n, 8), draw(seed + 1, n_items, 8)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(n_items, (n,), generator=generator)
    weights = torch.rand(n, generator=generator)
    everything = torch.arange(n_items)
    each = torch.nn.functional.cross_entropy(queries @ items.T, targets, reduction="none")
    expected = (each * weights).sum() / weights.sum()
    results = []
    for loss in (
        lambda q, v: full_softmax(q, v, targets, weights=weights, block=block),
        lambda q, v: (
            (torch.nn.functional.cross_entropy(q @ v.T, targets, reduction="none") * weights).sum() / weights.sum()
        ),
    ):
        q, v = queries.clone().requires_grad_(), items.clone().requires_grad_()
        value = loss(q, v)
        value.backward()
        results.append((value.detach(), q.grad, v.grad))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    # Everything sampled, block by block: what is drawn stands for n_items − 1 items, and the target is left out.
    whole, blocks = (
        sampled_softmax(
            queries, items[targets], targets, items, everything, n_items=n_items, weights=weights, block=size
        )
        for size in (1000, block)
    )
    torch.testing.assert_close(blocks, whole)
    correction = torch.log(torch.tensor((n_items - 1) / n_items))
    shifted = (queries @ items.T) + correction
    positive = (queries * items[targets]).sum(1)
    shifted[torch.arange(n), targets] = positive
    plain = torch.nn.functional.cross_entropy(shifted, targets, reduction="none")
    torch.testing.assert_close(whole, (plain * weights).sum() / weights.sum(), rtol=1e-4, atol=1e-5)
    assert expected.isfinite()
