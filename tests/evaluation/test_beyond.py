from __future__ import annotations

from itertools import combinations
from math import log2

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.evaluation import beyond
from recsys.evaluation.beyond import (
    CategoryDiversity,
    ColdShare,
    Exposure,
    ListProperty,
    Novelty,
    Popularity,
    TextDiversity,
    TopCategoryDiversity,
    ValueRecall,
    popularity_lift,
)
from recsys.evaluation.metrics import Recall
from recsys.ingest.dataset import Ragged
from recsys.items import category_codes
from tests.evaluation.conftest import sequences

N_ITEMS = 12
WIDTH = 6
RNG = np.random.default_rng(3)
COUNTS = np.array([0, 0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55])
VECTORS = RNG.normal(size=(N_ITEMS, 5)).astype(np.float32)
VECTORS[4] = 0  # an item without text
CODES = np.array([0, 0, 0, 1, 1, 2, 2, 3, -1, -1, 4, 0], dtype=np.int32)
VALUE = np.array([1, 2, 3, 4, 5, 6, 7, 8, 0, 0, np.nan, 100.0])

lists = st.lists(st.lists(st.integers(0, N_ITEMS - 1), max_size=WIDTH, unique=True), max_size=8)


def matrix(rows: list[list[int]], width: int = WIDTH) -> np.ndarray:
    items = np.full((len(rows), width), -1, dtype=np.int32)
    for row, listed in zip(items, rows, strict=True):
        row[: len(listed)] = listed
    return items


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def cosine(i: int, j: int) -> float:
    one, other = VECTORS[i].astype(float), VECTORS[j].astype(float)
    length = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / length) if length else 0.0


def plainly(name: str, listed: list[int]) -> float:
    """The definitions, item by item and pair by pair."""
    if name == "novelty":
        return mean([-log2(max(COUNTS[i], 1) / COUNTS.sum()) for i in listed])
    if name == "popularity":
        return mean([float(COUNTS[i]) for i in listed])
    if name == "cold_share":
        return mean([float(COUNTS[i] == 0) for i in listed])
    if name == "text_diversity":
        return mean([1 - cosine(i, j) for i, j in combinations(listed, 2)])
    pairs = combinations([i for i in listed if CODES[i] >= 0], 2)
    return mean([float(CODES[i] != CODES[j]) for i, j in pairs])


def properties(k: int) -> list[ListProperty]:
    return [
        Novelty(k, COUNTS),
        Popularity(k, COUNTS),
        ColdShare(k, COUNTS),
        TextDiversity(k, VECTORS),
        CategoryDiversity(k, CODES),
        TopCategoryDiversity(k, CODES),
    ]


@settings(deadline=None, max_examples=100)
@given(rows=lists, k=st.integers(1, 8))
@example(rows=[[], [4], [4, 8], [0, 1, 2]], k=8)
def test_properties_equal_plain_python(rows: list[list[int]], k: int) -> None:
    items = matrix(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beyond, "_VECTOR_CELLS", 60)  # two lists at a time
        for of in properties(k):
            expected = [plainly(of.name, listed[:k]) for listed in rows]
            np.testing.assert_allclose(of(items), expected, atol=1e-6, err_msg=of.name)


def test_a_gap_is_no_item() -> None:
    whole, gaps = np.array([[2, 7, 5]], dtype=np.int32), np.array([[2, -1, 7, 5, -1]], dtype=np.int32)
    for of in properties(5):
        np.testing.assert_allclose(of(gaps), of(whole), atol=1e-12, err_msg=of.name)


def test_the_ends_of_diversity() -> None:
    same = np.tile(VECTORS[:1], (3, 1)) * np.array([[1], [2], [5]], dtype=np.float32)
    assert TextDiversity(3, same)(np.array([[0, 1, 2]])) == pytest.approx(0, abs=1e-6)
    assert TextDiversity(3, np.eye(3, dtype=np.float32))(np.array([[0, 1, 2]])) == pytest.approx(1)
    opposite = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    assert TextDiversity(2, opposite)(np.array([[0, 1]])) == pytest.approx(2)


@settings(deadline=None, max_examples=60)
@given(rows=lists, k=st.integers(1, 8), block=st.integers(1, 4))
def test_exposure_equals_plain_python(rows: list[list[int]], k: int, block: int) -> None:
    exposure = Exposure(N_ITEMS, k)
    items = matrix(rows)
    for start in range(0, len(items), block):
        exposure.add(items[start : start + block])
    shown = [sum(item in listed[:k] for listed in rows) for item in range(N_ITEMS)]
    assert exposure.shown.tolist() == shown
    assert exposure.coverage == pytest.approx(sum(n > 0 for n in shown) / N_ITEMS)
    if not sum(shown):
        assert np.isnan(exposure.gini)
        return
    # Half the mean absolute difference by the mean: the definition, before it is sorted.
    difference = sum(abs(one - other) for one in shown for other in shown)
    assert exposure.gini == pytest.approx(difference / (2 * N_ITEMS * sum(shown)))


def test_the_ends_of_gini() -> None:
    even, one = Exposure(4, 1), Exposure(4, 1)
    even.add(np.array([[0], [1], [2], [3]], dtype=np.int32))
    one.add(np.array([[2], [2]], dtype=np.int32))
    assert (even.gini, even.coverage) == (0, 1)
    assert (one.gini, one.coverage) == (3 / 4, 1 / 4)


def test_popularity_lift_compares_the_same_users() -> None:
    of = Popularity(2, COUNTS)
    listed = of(matrix([[11, 10], [4], [9], []]))
    chosen = of.of_histories(sequences([[4, 6, 4], [4], [], [11]]))
    np.testing.assert_allclose(chosen, [3, 2, np.nan, 55])
    # Only the first two have both: (44.5 + 2) / (3 + 2).
    assert popularity_lift(listed, chosen) == pytest.approx(46.5 / 5 - 1)
    assert popularity_lift(chosen, chosen) == 0
    assert np.isnan(popularity_lift(listed[2:], chosen[2:]))


users = st.lists(
    st.tuples(
        st.lists(st.integers(0, N_ITEMS - 1), max_size=WIDTH, unique=True),
        st.lists(st.integers(0, N_ITEMS - 1), max_size=5, unique=True),
    ),
    min_size=1,
    max_size=6,
)


def targets_of(rows: list[tuple[list[int], list[int]]]) -> Ragged:
    flat = [item for _, targets in rows for item in targets]
    return Ragged(np.cumsum([0, *(len(targets) for _, targets in rows)]), np.array(flat, dtype=np.int32))


@settings(deadline=None, max_examples=80)
@given(rows=users, k=st.integers(1, 8))
def test_value_recall_equals_plain_python(rows: list[tuple[list[int], list[int]]], k: int) -> None:
    worth = np.nan_to_num(VALUE)
    items, targets = matrix([listed for listed, _ in rows]), targets_of(rows)
    found = [float(sum(worth[item] for item in of if item in listed[:k])) for listed, of in rows]
    total = [float(sum(worth[item] for item in of)) for _, of in rows]
    expected = [part / whole if whole else np.nan for part, whole in zip(found, total, strict=True)]
    recall = ValueRecall(k, VALUE)
    np.testing.assert_allclose(recall(items, targets), expected)
    np.testing.assert_allclose(recall.sums(items, targets), [found, total])
    # With equal values it is recall.
    hits = np.array([[item in of for item in row] for row, (_, of) in zip(items.tolist(), rows, strict=True)])
    plain = Recall(k)(hits, targets.lengths)
    np.testing.assert_allclose(ValueRecall(k, np.full(N_ITEMS, 9.5))(items, targets), plain)


def test_category_codes() -> None:
    names = pa.chunked_array([["a > x", None, "a > y"], ["b", "a > x", "a"]])
    assert category_codes(names).tolist() == [0, -1, 1, 2, 0, 3]
    assert category_codes(names, levels=1).tolist() == [0, -1, 0, 1, 0, 0]
    assert category_codes(pa.chunked_array([pa.nulls(2, pa.string())]), levels=1).tolist() == [-1, -1]


def test_names_and_refusals() -> None:
    names = [of.column for of in properties(10)]
    assert names[0] == "novelty_at_10"
    assert len(set(names)) == len(names)
    assert len({of.title for of in properties(10)}) == len(names)
    with pytest.raises(ValueError, match="at least 1"):
        Novelty(0, COUNTS)
    with pytest.raises(ValueError, match="at least 1"):
        ValueRecall(0, VALUE)
    with pytest.raises(InputError, match="below 0"):
        ValueRecall(1, -VALUE)
