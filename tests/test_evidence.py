"""Co-occurrence against a double loop, and the user's own part of it against counts made without that user."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys.evidence import Cooccurrence, OwnPart
from recsys.ingest.dataset import Sequences

N_ITEMS = 6
rows = st.lists(st.lists(st.integers(0, N_ITEMS - 1), max_size=9), min_size=1, max_size=5)


def sequences(lists: list[list[int]]) -> Sequences:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(np.int64)
    items = np.array([item for row in lists for item in row], dtype=np.int32)
    zeros = np.zeros(len(items))
    return Sequences(offsets, items, zeros.astype(np.int8), zeros.astype(np.int64), zeros.astype(np.int32))


def naive(lists: list[list[int]], window: int, backward: float) -> np.ndarray:
    counts = np.zeros((N_ITEMS, N_ITEMS))
    for row in lists:
        for a, source in enumerate(row):
            for b, target in enumerate(row):
                if source != target and 0 < abs(b - a) <= window:
                    counts[source, target] += (1.0 if b > a else backward) / abs(b - a)
    return counts


def dense(counts: Cooccurrence) -> np.ndarray:
    source, target = np.meshgrid(np.arange(N_ITEMS), np.arange(N_ITEMS), indexing="ij")
    return counts.lookup(source.astype(np.int32), target.astype(np.int32))


@given(rows, st.integers(1, 10), st.sampled_from([0.0, 0.6, 1.0]))
def test_counts_are_those_of_a_double_loop(lists: list[list[int]], window: int, backward: float) -> None:
    counts = Cooccurrence.fit(sequences(lists), N_ITEMS, window=window, backward=backward)
    np.testing.assert_allclose(dense(counts), naive(lists, window, backward), rtol=1e-5)
    np.testing.assert_array_equal(
        counts.counts, np.bincount([item for row in lists for item in row], minlength=N_ITEMS)
    )


@given(rows, st.integers(1, 4), st.data())
def test_without_the_own_part_the_counts_never_knew_the_user(
    lists: list[list[int]], window: int, data: st.DataObject
) -> None:
    user = data.draw(st.integers(0, len(lists) - 1))
    everyone = Cooccurrence.fit(sequences(lists), N_ITEMS, window=window)
    others = Cooccurrence.fit(sequences(lists[:user] + lists[user + 1 :] + [[]]), N_ITEMS, window=window)
    history = np.arange(-1, N_ITEMS, dtype=np.int32)[None, :]  # with one padded place
    candidates = np.arange(N_ITEMS, dtype=np.int32)[None, :]
    part = OwnPart.fit(history, sequences([lists[user]]), everyone)
    weight, count = part.pairs(candidates, candidates), part.counts(candidates)
    np.testing.assert_allclose(dense(everyone) - weight[0], dense(others), atol=1e-5)
    np.testing.assert_array_equal(everyone.counts - count[0], others.counts)


def test_similarity_divides_by_both_popularities() -> None:
    counts = Cooccurrence.fit(sequences([[0, 1], [0, 1], [1, 2]]), N_ITEMS)
    place = int(counts.offsets[0])  # the only neighbour of item 0 is item 1
    assert counts.columns[place] == 1
    np.testing.assert_allclose(counts.similarities()[place], 2 / (2**0.5 * 3**0.3), rtol=1e-6)


def test_only_pairs_from_the_history_are_counted() -> None:
    everyone = Cooccurrence.fit(sequences([[0, 1, 2], [3, 4]]), N_ITEMS)
    history = np.array([[-1, 1], [3, -1]], dtype=np.int32)
    part = OwnPart.fit(history, sequences([[0, 1, 2], [3, 4]]), everyone)
    items = np.tile(np.arange(N_ITEMS, dtype=np.int32), (2, 1))
    row, source, target = np.nonzero(part.pairs(items, items))
    assert sorted(zip(row.tolist(), source.tolist(), target.tolist(), strict=True)) == [(0, 1, 0), (0, 1, 2), (1, 3, 4)]


def test_a_wholesale_buyer_fits_in_memory() -> None:
    """One user with tens of thousands of events: work and memory grow with the events, not with their square."""
    rng = np.random.default_rng(0)
    train = sequences([rng.integers(0, N_ITEMS, 50_000).tolist()])
    everyone = Cooccurrence.fit(train, N_ITEMS)
    history = np.arange(N_ITEMS, dtype=np.int32)[None, :]
    weight = OwnPart.fit(history, train, everyone).pairs(history, history)
    np.testing.assert_allclose(weight[0], dense(everyone), rtol=1e-5)
