"""From an ordered stream to whole histories, in whatever batches the stream comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.ingest import histories as module
from recsys.ingest import sequences
from recsys.ingest.histories import Assembly, Histories, whole_users
from recsys.ingest.sequences import write_parts
from recsys.ingest.split import Cuts
from recsys.ingest.tables import Beside
from recsys.runtime import ahead

MINUTE = 60_000_000

# (user, minute, item, event type, another column, session or None, position or None, money)
rows = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from([0, 1, 40, 41, 42, 43]),
        st.integers(0, 3),
        st.integers(0, 1),
        st.integers(0, 2),
        st.sampled_from([None, 7, 8]),
        st.sampled_from([None, 0, 1]),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=60,
)
cutting = st.lists(st.integers(1, 9), min_size=1, max_size=60)


def stream(events: Sequence[Any], sizes: Sequence[int]) -> list[pa.RecordBatch]:
    """The rows by user and time, in batches of these sizes, again and again."""
    numbers = {user: idx for idx, user in enumerate(sorted({event[0] for event in events}))}
    ordered = sorted(events, key=lambda event: (event[0], event[1]))  # stable: ties as they came
    table = pa.table(
        {
            "user_idx": pa.array([numbers[event[0]] for event in ordered], pa.int32()),
            "timestamp": pa.array([event[1] * MINUTE for event in ordered], pa.int64()),
            "item_idx": pa.array([event[2] for event in ordered], pa.int32()),
            "event_type": pa.array([event[3] for event in ordered], pa.int8()),
            "content": pa.array([hash(event) for event in ordered], pa.int64()),
            "session_key": pa.array([event[5] for event in ordered], pa.int64()),
            "position": pa.array([event[6] for event in ordered], pa.int64()),
            "money": pa.array([event[7] for event in ordered], pa.int64()),
        }
    )
    batches, begin, place = [], 0, 0
    while begin < len(table):
        size = sizes[place % len(sizes)]
        batches += table.slice(begin, size).to_batches()
        begin, place = begin + size, place + 1
    return batches


def user_batches(events: Sequence[Any], size: int) -> list[pa.RecordBatch]:
    ids = pa.array([f"user {user}" for user in sorted({event[0] for event in events})])
    return pa.table({"user_idx": pa.array(range(len(ids)), pa.int32()), "user_id": ids}).to_batches(size)


def assembled(events: Sequence[Any], sizes: Sequence[int]) -> tuple[dict[str, Any], module.Merged]:
    assembly = Assembly(pa.chunked_array([list("abcd")]), Cuts(20 * MINUTE, 42 * MINUTE, 43 * MINUTE), 30 * MINUTE, 3)
    batches = list(assembly.histories(stream(events, sizes), user_batches(events, sizes[0])))
    names = ("user_idx", "item_idx", "event_type", "timestamp", "session", "money", "train_end", "valid_end", "part")
    flat = {name: np.concatenate([getattr(batch, name) for batch in batches]).tolist() for name in names}
    flat["lengths"] = np.concatenate([np.diff(batch.offsets) for batch in batches]).tolist()
    return flat, assembly.merged


@settings(max_examples=60, deadline=None)
@given(events=rows, sizes=cutting, order=st.randoms(use_true_random=False))
def test_neither_batches_nor_the_order_of_tied_rows_matter(events: list[Any], sizes: list[int], order: Any) -> None:
    at_once = assembled(events, [1000])
    patch = pytest.MonkeyPatch()
    patch.setattr(whole_users, "__defaults__", (1,))  # every batch ends a table
    try:
        assert assembled(order.sample(events, len(events)), sizes) == at_once
    finally:
        patch.undo()
    flat, merged = at_once
    keys = {event[:4] for event in events}
    assert len(flat["item_idx"]) == len(keys)
    assert merged.exact_duplicate == len(events) - len(set(events))
    assert merged.same_event == len(set(events)) - len(keys)
    assert sum(flat["money"]) == sum(event[7] for event in set(events))
    assert flat["part"] == [(time >= 20 * MINUTE) + (time >= 42 * MINUTE) for time in flat["timestamp"]]


def test_positions_come_before_the_random_order() -> None:
    events = [(0, 0, item, 0, 0, None, position, 0) for item, position in ((0, 2), (1, 0), (2, 1), (3, None))]
    assert assembled(events, [2])[0]["item_idx"] == [1, 2, 0, 3]


def test_sessions_are_numbered_as_they_begin_and_may_interleave() -> None:
    sessions = [(0, 9), (1, None), (2, 9), (3, 4), (40, None), (41, None), (90, 4)]
    events = [(0, minute, 0, 0, minute, session, None, 0) for minute, session in sessions]
    events += [(1, 0, 0, 0, 0, 4, None, 0)]  # a session of that name, but of another user
    assert assembled(events, [3])[0]["session"] == [0, 1, 0, 2, 3, 3, 2, 0]


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=30), cut=cutting)
def test_row_groups_depend_on_their_own_part_alone(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], cut: list[int]
) -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr(sequences, "ROW_GROUP_EVENTS", 25)
    try:
        written = []
        for ends, sizes in ((0, [1000]), (1, cut)):  # the second time with more test events, and in other batches
            folder = tmp_path_factory.mktemp("parts")
            batches, begin, place = [], 0, 0
            while begin < len(lengths):
                part = lengths[begin : begin + sizes[place % len(sizes)]]
                batches.append(block(begin, part, extra=ends * 7))
                begin, place = begin + len(part), place + 1
            counts = write_parts(folder, batches)
            assert counts["train"] == sum(lengths)
            written.append((folder / "train.parquet").read_bytes())
            groups = pq.ParquetFile(folder / "train.parquet")
            events = [
                sum(map(len, groups.read_row_group(g)["item_idx"].to_pylist())) for g in range(groups.num_row_groups)
            ]
            assert all(25 <= n < 25 + 30 for n in events[:-1]) and sum(events) == sum(lengths)
        assert written[0] == written[1]
    finally:
        patch.undo()


def block(first: int, lengths: list[int], *, extra: int) -> Histories:
    """Users with so many training events, and `extra` test events each."""
    totals = np.array(lengths) + extra
    n = int(totals.sum())
    train = np.array(lengths, dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(totals)])
    return Histories(
        user_idx=np.arange(first, first + len(lengths), dtype=np.int32),
        offsets=offsets,
        item_idx=(np.arange(n) - np.repeat(offsets[:-1], totals)).astype(np.int32),
        event_type=np.zeros(n, np.int8),
        timestamp=np.arange(n, dtype=np.int64) * 0 + 5,
        session=np.zeros(n, np.int32),
        money=None,
        train_end=train,
        valid_end=train,
    )


def test_computing_ahead_keeps_the_order_and_hands_errors_on() -> None:
    assert list(ahead(iter(range(100)), depth=3)) == list(range(100))

    def failing() -> Any:
        yield 1
        raise KeyError("in the thread")

    results = ahead(failing())
    assert next(results) == 1
    with pytest.raises(KeyError, match="in the thread"):
        next(results)
    endless = ahead(iter(int, 1))
    assert next(endless) == 0
    endless.close()  # ends the thread


def test_what_fails_beside_is_raised_by_the_next_call() -> None:
    def full() -> None:
        raise OSError("No space left on device")

    beside = Beside()
    beside.run(full)
    with pytest.raises(OSError, match="No space left"):
        beside.run(print)
    beside.run(full)
    with pytest.raises(OSError, match="No space left"):
        beside.close()
