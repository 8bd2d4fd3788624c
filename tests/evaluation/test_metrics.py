from __future__ import annotations

import ir_measures
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recsys.evaluation.metrics import MAP, METRICS, MRR, NDCG, HitRate, Metric, Precision, Recall, metrics_at

ORACLES = {
    "recall": ir_measures.R,
    "ndcg": ir_measures.nDCG,
    "hit_rate": ir_measures.Success,
    "mrr": ir_measures.RR,
    "precision": ir_measures.P,
    "map": ir_measures.AP,
}
N_ITEMS = 25

User = tuple[list[int], set[int]]

# A user: the list (possibly empty, distinct items, best first) and the targets (some in no list; with none of them the
# oracle does not know the user).
users = st.lists(
    st.tuples(
        st.lists(st.integers(0, N_ITEMS - 1), max_size=15, unique=True),
        st.sets(st.integers(0, N_ITEMS - 1), max_size=12),
    ),
    min_size=1,
    max_size=8,
)


def hit_matrix(rows: list[User], width: int) -> tuple[np.ndarray, np.ndarray]:
    hits = np.zeros((len(rows), width), dtype=bool)
    for u, (listed, targets) in enumerate(rows):
        hits[u, : len(listed)] = [item in targets for item in listed]
    return hits, np.array([len(targets) for _, targets in rows])


def by_ir_measures(rows: list[User], measure: ir_measures.Measure) -> list[float]:
    qrels = [ir_measures.Qrel(f"u{u}", f"i{item}", 1) for u, (_, targets) in enumerate(rows) for item in targets]
    run = [  # strictly decreasing scores, because libraries differ on ties
        ir_measures.ScoredDoc(f"u{u}", f"i{item}", 100.0 - rank)
        for u, (listed, _) in enumerate(rows)
        for rank, item in enumerate(listed)
    ]
    # Whoever has targets is asked; without recommendations the oracle is silent, and the value is 0.
    values = [0.0 if targets else np.nan for _, targets in rows]
    if run and qrels:
        for value in ir_measures.iter_calc([measure], qrels, run):
            u = int(value.query_id[1:])
            assert rows[u][1], "the oracle gave a value to a user without targets"
            values[u] = value.value
    return values


@settings(deadline=None, max_examples=100)
@given(rows=users, k=st.integers(1, 20), metric=st.sampled_from(METRICS))
@example(rows=[([], {1, 2}), ([3], {3})], k=5, metric=MAP)  # no recommendations
@example(rows=[([3, 4], set()), ([3], {4})], k=1, metric=Precision)  # unseen by the truth
@example(rows=[([1, 2, 3], set(range(12)))], k=2, metric=MAP)  # more targets than ranks
@example(rows=[(list(range(15)), {14})], k=20, metric=Precision)  # k beyond the list
def test_equals_ir_measures(rows: list[User], k: int, metric: type[Metric]) -> None:
    values = metric(k)(*hit_matrix(rows, width=15))
    np.testing.assert_allclose(values, by_ir_measures(rows, ORACLES[metric.name] @ k), atol=1e-9, rtol=0)


@settings(deadline=None, max_examples=60)
@given(rows=users, k=st.integers(1, 20), metric=st.sampled_from(METRICS))
def test_ranks_without_an_item_change_nothing(rows: list[User], k: int, metric: type[Metric]) -> None:
    hits, n_targets = hit_matrix(rows, width=15)
    longest = max(len(listed) for listed, _ in rows)
    np.testing.assert_array_equal(metric(k)(hits[:, :longest], n_targets), metric(k)(hits, n_targets))


@settings(deadline=None, max_examples=60)
@given(rows=users, k=st.integers(1, 20), metric=st.sampled_from(METRICS))
def test_a_hit_moved_up_never_costs_anything(rows: list[User], k: int, metric: type[Metric]) -> None:
    hits, n_targets = hit_matrix(rows, width=15)
    before = metric(k)(hits, n_targets)
    assert np.all((before[n_targets > 0] >= 0) & (before[n_targets > 0] <= 1 + 1e-12))
    raised = -np.sort(-hits.astype(int), axis=1) > 0
    after = metric(k)(raised, n_targets)
    assert np.all(after[n_targets > 0] >= before[n_targets > 0] - 1e-12)


def test_by_hand() -> None:
    hits = np.array([[False, True, False, True]])
    three = np.array([3])
    assert Recall(4)(hits, three) == pytest.approx(2 / 3)
    assert Recall(2)(hits, three) == pytest.approx(1 / 3)
    assert HitRate(1)(hits, three) == 0
    assert HitRate(2)(hits, three) == 1
    assert MRR(4)(hits, three) == pytest.approx(1 / 2)
    assert MRR(1)(hits, three) == 0
    gain, ideal = 1 / np.log2(3) + 1 / np.log2(5), 1 + 1 / np.log2(3) + 1 / np.log2(4)
    assert NDCG(4)(hits, three) == pytest.approx(gain / ideal)
    assert Precision(4)(hits, three) == pytest.approx(2 / 4)
    assert Precision(10)(hits, three) == pytest.approx(2 / 10)
    assert MAP(4)(hits, three) == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert MAP(3)(hits, three) == pytest.approx((1 / 2) / 3)


@pytest.mark.parametrize("metric", METRICS)
def test_without_lists_it_is_zero_and_without_targets_nothing(metric: type[Metric]) -> None:
    nobody_listed = np.zeros((2, 0), dtype=bool)
    values = metric(10)(nobody_listed, np.array([3, 0]))
    assert values[0] == 0
    assert np.isnan(values[1])


def test_the_best_list_gets_one_even_with_more_targets_than_ranks() -> None:
    hits, many = np.ones((1, 5), dtype=bool), np.array([40])
    assert NDCG(5)(hits, many) == pytest.approx(1)
    assert MRR(5)(hits, many) == 1
    assert Precision(5)(hits, many) == 1
    # These two count what the list was too short for.
    assert Recall(5)(hits, many) == pytest.approx(5 / 40)
    assert MAP(5)(hits, many) == pytest.approx(5 / 40)


def test_names_and_refusals() -> None:
    assert [metric.column for metric in metrics_at([5, 10])][:2] == ["recall_at_5", "ndcg_at_5"]
    # In this order, because reports list them so.
    assert [metric.name for metric in METRICS] == ["recall", "ndcg", "hit_rate", "mrr", "precision", "map"]
    assert len(metrics_at([5, 10])) == 12
    with pytest.raises(ValueError, match="at least 1"):
        Recall(0)
