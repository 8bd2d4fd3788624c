from __future__ import annotations

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.evaluation.metrics import METRICS, MRR, NDCG, HitRate, Metric, Recall, metrics_at

ORACLES = {"recall": ir_measures.R, "ndcg": ir_measures.nDCG, "hit_rate": ir_measures.Success, "mrr": ir_measures.RR}
N_ITEMS = 25

# A user: the list (possibly empty, distinct items, best first) and the targets (at least one, some in no list).
users = st.lists(
    st.tuples(
        st.lists(st.integers(0, N_ITEMS - 1), max_size=15, unique=True),
        st.sets(st.integers(0, N_ITEMS - 1), min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=8,
)


def hit_matrix(rows: list[tuple[list[int], set[int]]], width: int) -> tuple[np.ndarray, np.ndarray]:
    hits = np.zeros((len(rows), width), dtype=bool)
    for u, (listed, targets) in enumerate(rows):
        hits[u, : len(listed)] = [item in targets for item in listed]
    return hits, np.array([len(targets) for _, targets in rows])


@settings(deadline=None, max_examples=60)
@given(rows=users, k=st.integers(1, 20), metric=st.sampled_from(METRICS))
def test_equals_ir_measures(rows: list[tuple[list[int], set[int]]], k: int, metric: type[Metric]) -> None:
    oracle = ORACLES[metric.name] @ k
    qrels = [ir_measures.Qrel(f"u{u}", f"i{item}", 1) for u, (_, targets) in enumerate(rows) for item in targets]
    run = [  # strictly decreasing scores, because libraries differ on ties
        ir_measures.ScoredDoc(f"u{u}", f"i{item}", 100.0 - rank)
        for u, (listed, _) in enumerate(rows)
        for rank, item in enumerate(listed)
    ]
    expected = dict.fromkeys(range(len(rows)), 0.0)
    if run:
        expected |= {int(value.query_id[1:]): value.value for value in ir_measures.iter_calc([oracle], qrels, run)}
    values = metric(k)(*hit_matrix(rows, width=15))
    np.testing.assert_allclose(values, [expected[u] for u in range(len(rows))], atol=1e-9, rtol=0)


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
    assert Recall(5)(hits, many) == pytest.approx(5 / 40)


def test_names_and_refusals() -> None:
    assert [metric.column for metric in metrics_at([5, 10])][:2] == ["recall_at_5", "ndcg_at_5"]
    assert len(metrics_at([5, 10])) == 8
    with pytest.raises(ValueError, match="at least 1"):
        Recall(0)
