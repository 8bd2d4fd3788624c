from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.evaluation.asked import not_again, unseen_targets
from recsys.evaluation.metrics import NDCG, Recall
from recsys.evaluation.ranking import RankedBlock, rank
from recsys.evaluation.segments import (
    Members,
    Segmentation,
    category_segments,
    popularity_segments,
    summarise_segments,
    user_segments,
)
from recsys.ingest.dataset import Ragged, Sequences
from recsys.runtime import Runtime
from tests.evaluation.conftest import build_dataset

QUIET = Runtime(progress=False)
counts = st.lists(st.integers(0, 20), min_size=1, max_size=30).map(np.array)


def ragged(rows: list[list[int]]) -> Ragged:
    lengths = [len(row) for row in rows]
    return Ragged(np.append(0, np.cumsum(lengths)), np.array([v for row in rows for v in row], dtype=np.int32))


def test_users_by_training_events() -> None:
    of = user_segments(np.array([0, 1, 4, 5, 19, 20, 500]), (1, 5, 20))
    assert [of.names[code] for code in of.code] == ["new", "light", "light", "regular", "regular", "heavy", "heavy"]


@given(counts, st.floats(0.05, 0.95))
def test_the_head_is_the_smallest_set_that_holds_the_share(events: np.ndarray, share: float) -> None:
    of = popularity_segments(events, share)
    head, tail, cold = (events[of.code == code] for code in range(3))
    assert (cold == 0).all()
    assert (np.concatenate([head, tail]) > 0).all()
    if not events.sum():
        assert not len(head)
        return
    least = head.min()
    assert (tail < least).all()  # equal items fall together
    assert head.sum() >= share * events.sum() * (1 - 1e-12)
    assert head[head > least].sum() < share * events.sum()  # without those that tie for the last place it would not do


def test_categories_by_their_first_level() -> None:
    category = pa.chunked_array([["A > x", "B", "A"], [None, "C > y > z", "D", "B > q"]])
    of = category_segments(category, np.array([1, 5, 2, 9, 1, 0, 5]), most=2)
    assert of is not None
    assert of.names == ("B", "A", "all others", "without a category")
    assert of.code.tolist() == [1, 0, 1, 3, 2, 2, 0]
    assert category_segments(pa.chunked_array([["A > x", None]]), np.array([1, 2]), most=2) is None
    assert category_segments(pa.chunked_array([pa.nulls(2, pa.string())]), np.array([1, 2]), most=2) is None


def test_only_what_was_never_bought_may_not_return() -> None:
    view, cart, purchase = range(3)
    histories = Sequences(
        offsets=np.array([0, 4, 4, 6]),
        item_idx=np.array([7, 8, 7, 9, 7, 8], dtype=np.int32),
        event_type=np.array([view, view, purchase, cart, view, purchase], dtype=np.int8),
        timestamp=np.arange(6),
        session=np.zeros(6, np.int32),
    )
    assert not_again(histories, 10, repurchases=False).all()
    # The first user bought 7, the last one 8: what somebody else bought says nothing.
    assert not_again(histories, 10, repurchases=True).tolist() == [False, True, False, True, True, False]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_targets_that_count_are_those_of_the_ranking(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = data.draw(st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=9), min_size=1, max_size=6))
    cut = [data.draw(st.integers(0, len(row) - 1)) for row in rows]
    folder: Path = tmp_path_factory.mktemp("data")
    dataset = build_dataset(folder / "dataset", rows, cut, cut, n_items=8)
    cases = dataset.cases("test")
    targets = unseen_targets(dataset, cases, repurchases=False)
    for row, user in enumerate(cases.user_idx.tolist()):
        expected = dict.fromkeys(item for item in rows[user][cut[user] :] if item not in rows[user][: cut[user]])
        assert targets[row].tolist() == list(expected)

    class Random:
        name = "random"

        def score(self, histories: Sequences) -> np.ndarray:
            return np.random.default_rng(0).random((len(histories), 8), dtype=np.float32)

    every = Segmentation("popularity", ("odd", "even"), np.arange(8) % 2)
    for block in rank(Random(), dataset, cases, k=5, runtime=QUIET):
        if block.seen_filtered:
            np.testing.assert_array_equal(block.n_targets, targets.lengths)
            members = Members.find(every, cases.user_idx, targets)
            place, values = members.values(block, [Recall(5)])
            assert place == slice(0, len(members.case))
            # A user's recall is the mean of the segments' recalls, weighted by their targets.
            total = np.bincount(members.case, values[:, 0] * members.n_targets, minlength=len(cases))
            whole = Recall(5)(block.hits, block.n_targets)
            asked = targets.lengths > 0
            np.testing.assert_allclose((total[asked] / targets.lengths[asked]), whole[asked])


def test_a_segment_of_items_counts_its_own_targets_in_the_whole_list() -> None:
    """One user: targets 1 and 4 of the first segment, 3 of the second; the list is 3, 0, 4, 1 cut at 3."""
    of = Segmentation("popularity", ("head", "tail"), np.array([0, 0, 1, 1, 0]))
    targets = ragged([[], [1, 3, 4]])
    members = Members.find(of, np.array([5, 6], dtype=np.int32), targets)
    assert members.case.tolist() == [1, 1]
    assert members.code.tolist() == [0, 1]
    assert members.n_targets.tolist() == [2, 1]
    items = np.array([[2, 2, 2], [3, 0, 4]], dtype=np.int32)
    hits = np.array([[False] * 3, [True, False, True]])
    block = RankedBlock(slice(0, 2), True, items, hits, np.array([0, 3]))
    place, values = members.values(block, [Recall(3), NDCG(3)])
    assert place == slice(0, 2)
    ideal = 1 + 1 / np.log2(3)
    np.testing.assert_allclose(values, [[1 / 2, 1 / np.log2(4) / ideal], [1, 1]])


def test_blocks_of_cases_find_their_own_members() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.choice(12, rng.integers(0, 5), replace=False).tolist() for _ in range(20)]
    users = np.arange(20, dtype=np.int32)
    items = np.argsort(rng.random((20, 12)), axis=1)[:, :6].astype(np.int32)
    targets = ragged(rows)
    hits = np.array([[item in row for item in shown] for row, shown in zip(rows, items.tolist(), strict=True)])
    for of in (Segmentation("category", ("a", "b", "c"), np.arange(12) % 3), user_segments(np.arange(20), (1, 5, 20))):
        members = Members.find(of, users, targets)
        _, whole = members.values(RankedBlock(slice(0, 20), True, items, hits, targets.lengths), [NDCG(4)])
        pieces = np.full_like(whole, np.nan)
        for start in range(0, 20, 7):
            part = slice(start, min(start + 7, 20))
            block = RankedBlock(part, True, items[part], hits[part], targets.lengths[part])
            place, values = members.values(block, [NDCG(4)])
            pieces[place] = values
        np.testing.assert_array_equal(pieces, whole)


def test_gains_are_paired_and_planted_differences_found() -> None:
    rng = np.random.default_rng(0)
    of = Segmentation("history", ("one", "empty", "two"), np.repeat([0, 2], 200))
    targets = ragged([[0]] * 400)
    members = Members.find(of, np.arange(400, dtype=np.int32), targets)
    theirs = rng.random((400, 1))
    ours = theirs + np.where(members.code[:, None] == 2, 0.01, -0.01)  # far smaller than the spread over users
    rows, gains = summarise_segments(
        members,
        {"student": ours, "other": theirs, "third": theirs},
        [Recall(10)],
        best="other",
        protocol="temporal",
        seen_filtered=True,
        n_resamples=200,
        confidence=0.95,
        seed=[0],
    )
    assert [(row.segment, row.model, row.n_users, row.n_targets) for row in rows] == [
        (segment, model, 200, 200) for segment in ("one", "two") for model in ("student", "other", "third")
    ]
    assert all(row.low < row.value < row.high for row in rows)
    assert [(gain.segment, gain.model, gain.other) for gain in gains] == [
        ("one", "student", "other"),
        ("two", "student", "other"),
    ]
    for gain, sign in zip(gains, (-1, 1), strict=True):
        assert (gain.difference, gain.low, gain.high) == pytest.approx((sign * 0.01,) * 3)
