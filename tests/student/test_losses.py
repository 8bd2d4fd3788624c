"""Every loss against its plain formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.student.losses.full_softmax import full_softmax
from recsys.student.losses.listwise_kl import listwise_kl
from recsys.student.losses.sampled_softmax import sampled_softmax


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


def test_listwise_kl_is_zero_for_the_same_list_at_any_scale() -> None:
    teacher, mask = draw(8, 3, 6), torch.ones(3, 6, dtype=torch.bool)
    assert float(listwise_kl(5 * teacher - 2, teacher, mask, temperature=2.0)) == pytest.approx(0, abs=1e-5)
    assert float(listwise_kl(-teacher, teacher, mask, temperature=2.0)) > 0.1


def test_listwise_kl_is_the_plain_formula() -> None:
    student, teacher = draw(9, 4, 7).double(), draw(10, 4, 7).double()
    mask = torch.ones(4, 7, dtype=torch.bool)
    expected = 0.0
    for s, t in zip(student, teacher, strict=True):
        s, t = ((x - x.mean()) / x.std(correction=0) / 1.5 for x in (s, t))
        p, q = t.softmax(0), s.softmax(0)
        expected += 1.5**2 * float((p * (p / q).log()).sum()) / 4
    assert float(listwise_kl(student, teacher, mask, temperature=1.5)) == pytest.approx(expected, rel=1e-4)


def test_listwise_kl_ignores_padding() -> None:
    student, teacher = draw(11, 2, 5), draw(12, 2, 5)
    mask = torch.ones(2, 5, dtype=torch.bool)
    wider = torch.cat([mask, torch.zeros(2, 3, dtype=torch.bool)], 1)
    padded = [torch.cat([x, 100 * torch.ones(2, 3)], 1) for x in (student, teacher)]
    torch.testing.assert_close(listwise_kl(*padded, wider), listwise_kl(student, teacher, mask))
