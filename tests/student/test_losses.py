"""The losses of distillation against their plain formulas, pair by pair in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.student.losses.all import LOSSES
from recsys.student.losses.confidence import confidence
from recsys.student.losses.feature_matching import feature_matching
from recsys.student.losses.listwise_kl import listwise_kl


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def z(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / math.sqrt(x.var() + 1e-6)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def plain_listwise_kl(s: np.ndarray, t: np.ndarray, T: float) -> float:  # noqa: N803
    p, q = softmax(z(t) / T), softmax(z(s) / T)
    return T * T * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def plain_hard_targets(s: np.ndarray, t: np.ndarray, T: float) -> float:  # noqa: N803
    return -math.log(softmax(s / T)[int(t.argmax())])


def plain_margin_mse(s: np.ndarray, t: np.ndarray, T: float) -> float:  # noqa: N803
    b = int(t.argmax())
    errors = [((s[b] - s[j]) - (t[b] - t[j]) / T) ** 2 for j in range(len(s)) if j != b]
    return sum(errors) / len(errors)


def plain_pointwise_mse(s: np.ndarray, t: np.ndarray, T: float) -> float:  # noqa: N803
    return float(np.mean((z(s) - z(t) / T) ** 2))


def plain_pairwise_ranking(s: np.ndarray, t: np.ndarray, T: float) -> float:  # noqa: N803
    told = z(t)
    pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if t[i] > t[j]]
    weights = [told[i] - told[j] for i, j in pairs]
    losses = [math.log1p(math.exp(-(s[i] - s[j]) / T)) for i, j in pairs]
    return float(np.dot(weights, losses) / sum(weights))


def plain_contrastive(s: np.ndarray, t: np.ndarray, T: float) -> float:  # noqa: N803
    count = min(5, len(s) // 2)
    order = np.argsort(-t)
    negatives = sum(math.exp(s[j] / T) for j in order[count:])
    return -sum(math.log(math.exp(s[p] / T) / (math.exp(s[p] / T) + negatives)) for p in order[:count]) / count


PLAIN: dict[str, Callable[[np.ndarray, np.ndarray, float], float]] = {
    "listwise_kl": plain_listwise_kl,
    "hard_targets": plain_hard_targets,
    "margin_mse": plain_margin_mse,
    "pointwise_mse": plain_pointwise_mse,
    "pairwise_ranking": plain_pairwise_ranking,
    "contrastive": plain_contrastive,
}


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(2, 14), min_size=1, max_size=5), st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 10**6))
def test_a_loss_is_its_plain_formula_whatever_the_padding(
    name: str, counts: list[int], temperature: float, seed: int
) -> None:
    """Rows of different lengths, padded with anything."""
    n, width = len(counts), max(counts) + 2
    student, teacher = draw(seed, n, width).requires_grad_(), draw(seed + 1, n, width)
    mask = torch.zeros(n, width, dtype=torch.bool)
    generator = np.random.default_rng(seed)
    for row, count in enumerate(counts):
        mask[row, generator.permutation(width)[:count]] = True
    found = LOSSES[name](student, teacher, mask, temperature=temperature)
    expected = [
        PLAIN[name](student[row][mask[row]].detach().numpy(), teacher[row][mask[row]].numpy(), temperature)
        for row in range(n)
    ]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    found.sum().backward()
    assert student.grad.isfinite().all()
    assert (student.grad[~mask] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 9), st.integers(0, 10**6))
def test_rows_of_one_candidate_and_padding_change_nothing(
    name: str, n_rows: int, n_alone: int, width: int, seed: int
) -> None:
    """Neither a row's loss nor its gradient knows of what stands beside it."""
    rows, teacher = draw(seed, n_rows, width).requires_grad_(), draw(seed + 1, n_rows, width)
    LOSSES[name](rows, teacher, torch.ones(n_rows, width, dtype=torch.bool)).sum().backward()

    wide = torch.full((n_rows + n_alone, width + 3), 77.0, dtype=torch.float64)
    wide[:n_rows, :width] = rows.detach()
    wide.requires_grad_()
    theirs = torch.full_like(wide, 99.0).detach()
    theirs[:n_rows, :width] = teacher
    mask = torch.zeros(wide.shape, dtype=torch.bool)
    mask[:n_rows, :width] = True
    mask[n_rows:, seed % width] = True
    found = LOSSES[name](wide, theirs, mask)
    found.sum().backward()
    alone = LOSSES[name](rows.detach(), teacher, mask[:n_rows, :width])
    torch.testing.assert_close(found[:n_rows].detach(), alone, rtol=1e-9, atol=1e-12)
    assert found[n_rows:].abs().max() < 1e-12
    torch.testing.assert_close(wide.grad[:n_rows, :width], rows.grad, rtol=1e-9, atol=1e-12)
    wide.grad[:n_rows, :width] = 0
    assert wide.grad.abs().max() < 1e-12


# What of the teacher a loss does not look at: a straight line through its logits, all but their order, or their level.
BLIND_TO: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "listwise_kl": lambda t: 40 * t - 7,
    "pointwise_mse": lambda t: 40 * t - 7,
    "pairwise_ranking": lambda t: 40 * t - 7,
    "hard_targets": lambda t: (3 * t).exp(),
    "contrastive": lambda t: (3 * t).exp(),
    "margin_mse": lambda t: t - 7,
}


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None, max_examples=20)
@given(st.integers(2, 12), st.integers(0, 10**6))
def test_what_a_loss_does_not_look_at(name: str, width: int, seed: int) -> None:
    """Beside the above: the order that candidates are written in, and the level of the student's scores."""
    student, mask = draw(seed, 4, width), torch.ones(4, width, dtype=torch.bool)
    teacher = draw(seed + 1, 4, width).argsort(1) + 0.1 * draw(seed + 2, 4, width)  # told apart clearly
    before = LOSSES[name](student, teacher, mask, temperature=0.7)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(width))
    for other in (
        LOSSES[name](student, BLIND_TO[name](teacher), mask, temperature=0.7),
        LOSSES[name](student + 5, teacher, mask, temperature=0.7),
        LOSSES[name](student[:, order], teacher[:, order], mask, temperature=0.7),
    ):
        torch.testing.assert_close(other, before, rtol=1e-4, atol=1e-5)
    assert (LOSSES[name](student, -teacher, mask, temperature=0.7) - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_gradients_stay_finite_in_float32(name: str, scale: float) -> None:
    """At the first step, when all scores are alike, and in a student that has run away."""
    student, mask = (draw(0, 5, 20) * scale).float().requires_grad_(), torch.ones(5, 20, dtype=torch.bool)
    mask[0, 1:] = False
    teacher = (draw(1, 5, 20) * torch.tensor([1.0, 1.0, 0.0, 1e-6, 1e3]).unsqueeze(1)).float()
    found = LOSSES[name](student, teacher, mask)
    found.sum().backward()
    assert found.isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_of_one_candidate_or_of_equal_logits_is_no_nan(name: str) -> None:
    student = draw(0, 3, 4).requires_grad_()
    teacher = torch.cat([draw(1, 1, 4), torch.zeros(2, 4, dtype=torch.float64)])
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 1:] = False
    found = LOSSES[name](student, teacher, mask)
    found.sum().backward()
    assert found.isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_learning_by_a_loss_alone_takes_the_teacher_s_order(name: str) -> None:
    teacher, mask = draw(2, 40, 12), torch.ones(40, 12, dtype=torch.bool)
    student = torch.nn.Parameter(draw(3, 40, 12))
    optimizer = torch.optim.Adam([student], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        LOSSES[name](student, teacher, mask).mean().backward()
        optimizer.step()
    best = teacher.argmax(1)
    if name in ("hard_targets", "margin_mse", "listwise_kl", "pairwise_ranking", "pointwise_mse"):
        assert (student.detach().argmax(1) == best).double().mean() >= 0.9
    if name == "contrastive":  # it is all the same to it which of the first stands first
        first = student.detach().topk(5, dim=1).indices.sort(1).values
        assert (first == teacher.topk(5, dim=1).indices.sort(1).values).double().mean() > 0.95
    if name in ("margin_mse", "listwise_kl", "pairwise_ranking", "pointwise_mse"):
        ours, theirs = (each.argsort(1).argsort(1).double() for each in (student.detach(), teacher))
        correlation = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)])
        assert correlation > 0.9


def rank_correlation(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    ranks = [each.argsort(1).argsort(1).double().numpy() for each in (ours, theirs)]
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*ranks, strict=True)]))


@pytest.mark.parametrize("name", LOSSES)
def test_a_small_student_takes_the_teacher_s_order_to_candidates_that_it_was_not_shown(name: str) -> None:
    """200 users, 24 items, two towers that learn by one loss alone; half of each user's items are held back."""
    users, items = draw(0, 200, 4), draw(1, 24, 4)
    teacher, candidates = users @ items.T, draw(2, 200, 24).argsort(1)
    shown, held = candidates[:, :12], candidates[:, 12:]
    tower, vectors = (torch.nn.Parameter(draw(seed, *shape)) for seed, shape in ((3, (4, 8)), (4, (24, 8))))

    def correlation() -> float:
        scores = (users @ tower @ vectors.T).detach()
        return rank_correlation(scores.gather(1, held), teacher.gather(1, held))

    assert abs(correlation()) < 0.2
    optimizer = torch.optim.Adam([tower, vectors], lr=0.03)
    for _ in range(100):
        optimizer.zero_grad()
        scores = (users @ tower @ vectors.T).gather(1, shown)
        LOSSES[name](scores, teacher.gather(1, shown), torch.ones_like(shown, dtype=torch.bool)).mean().backward()
        optimizer.step()
    assert correlation() > 0.7


def test_feature_matching_alone_takes_the_texts_relations() -> None:
    texts, vectors = draw(0, 30, 6), torch.nn.Parameter(draw(1, 30, 8))
    candidates, mask = draw(2, 40, 30).argsort(1)[:, :8], torch.ones(40, 8, dtype=torch.bool)

    def error() -> float:
        ours, theirs = (torch.nn.functional.normalize(each) for each in (vectors.detach(), texts))
        return float((ours @ ours.T - theirs @ theirs.T).square().mean())

    before, optimizer = error(), torch.optim.Adam([vectors], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        feature_matching(vectors[candidates], texts[candidates], mask).mean().backward()
        optimizer.step()
    assert error() < 0.05 * before


def test_feature_matching_of_one_candidate_and_of_empty_vectors_is_no_nan() -> None:
    items, mask = torch.zeros(2, 4, 3).requires_grad_(), torch.ones(2, 4, dtype=torch.bool)
    mask[0, 1:] = False
    found = feature_matching(items, torch.zeros(2, 4, 6), mask)
    found.sum().backward()
    assert found.tolist() == [0.0, 0.0]
    assert items.grad.isfinite().all()


def test_listwise_kl_is_zero_for_the_same_list_at_any_scale() -> None:
    teacher, mask = draw(8, 3, 6), torch.ones(3, 6, dtype=torch.bool)
    assert listwise_kl(5 * teacher - 2, teacher, mask, temperature=2.0).max() < 1e-5
    assert listwise_kl(-teacher, teacher, mask, temperature=2.0).min() > 0.1


def test_feature_matching_compares_relations() -> None:
    text, mask = draw(4, 2, 5, 9), torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    turned = text @ torch.linalg.qr(draw(5, 9, 9))[0] * 7  # other axes, another length
    assert feature_matching(turned, text, mask).max() < 1e-12
    items = draw(6, 2, 5, 3).requires_grad_()
    found = feature_matching(items, text, mask)
    for row, count in enumerate((5, 3)):
        v, x = items[row].detach().numpy(), text[row].numpy()

        def cosine(a: np.ndarray, b: np.ndarray) -> float:
            return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

        errors = [(cosine(v[i], v[j]) - cosine(x[i], x[j])) ** 2 for i in range(count) for j in range(count) if i != j]
        assert float(found[row].detach()) == pytest.approx(np.mean(errors))
    found.sum().backward()
    assert (items.grad[1, 3:] == 0).all()


def test_confidence_runs_from_not_at_all_to_wholly() -> None:
    mask = torch.tensor([[True] * 4, [True] * 4, [True, True, False, False], [True, False, False, False]])
    teacher = torch.tensor([[1.0] * 4, [99.0, 0, 0, 0], [0.0, math.log(3), 50, 50], [3.0, 9, 9, 9]])
    half = 1 + (0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
    torch.testing.assert_close(confidence(teacher, mask), torch.tensor([0.0, 1.0, half, 1.0]), atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.floats(0, 30), st.integers(0, 10**6))
def test_confidence_is_one_less_the_entropy_whatever_the_level_and_the_padding(
    count: int, scale: float, seed: int
) -> None:
    logits = draw(seed, 1, count) * scale
    p = softmax(logits[0].numpy())
    expected = 1 + float(np.sum(p * np.log(np.maximum(p, 1e-300)))) / math.log(count) if count > 1 else 1.0
    wide = torch.cat([logits + 3, torch.full((1, 4), 1e4, dtype=torch.float64)], 1)
    mask = torch.arange(count + 4)[None, :] < count
    assert float(confidence(wide, mask)) == pytest.approx(expected, abs=1e-6)
