"""The dataset artifact: users, items, sequences and where they are split. Needs only numpy and pyarrow."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import schema
from recsys.artifacts import Artifact

Part = Literal["valid", "test"]
PARTS: Final = ("train", "valid", "test")


@dataclass(frozen=True)
class Ragged:
    """Lists of int32 laid end to end: row r is `values[offsets[r]:offsets[r + 1]]`."""

    offsets: npt.NDArray[np.int64]  # [n_rows + 1]
    values: npt.NDArray[np.int32]  # [n_values]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> npt.NDArray[np.int32]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of values of each row, [n_rows]."""
        return np.diff(self.offsets)

    def select(self, rows: npt.NDArray[np.integer[Any]]) -> Ragged:
        """The given rows, in the given order."""
        count = self.lengths[rows]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(count, out=offsets[1:])
        place = np.repeat(self.offsets[rows] - offsets[:-1], count) + np.arange(offsets[-1])
        return Ragged(offsets, self.values[place])


@dataclass(frozen=True)
class Sequences:
    """Event histories, one row each (all users of a dataset, or any selection), laid end to end, oldest event first.

    Row r's events are the slice `offsets[r]:offsets[r + 1]` of every array.
    """

    offsets: npt.NDArray[np.int64]  # [n_rows + 1]
    item_idx: npt.NDArray[np.int32]  # [n_events]
    event_type: npt.NDArray[np.int8]  # [n_events], codes: the place in Dataset.event_types
    timestamp: npt.NDArray[np.int64]  # [n_events], microseconds since 1970, UTC
    session: npt.NDArray[np.int32]  # [n_events], 0, 1, … within the user

    @property
    def gaps(self) -> npt.NDArray[np.int64]:
        """Microseconds since the row's event before, 0 for its first, [n_events]."""
        gaps = np.diff(self.timestamp, prepend=0)
        gaps[self.offsets[:-1][self.lengths > 0]] = 0
        return gaps

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of events of each row, [n_rows]."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Split:
    """Per user, where train ends and where validation ends (event counts from the sequence's start)."""

    protocol: str  # "temporal" or "leave_one_out"
    train_end: npt.NDArray[np.int32]  # [n_users]
    valid_end: npt.NDArray[np.int32]  # [n_users]


@dataclass(frozen=True)
class Cases:
    """Who is asked what in one part of the split: a user's history ends at `history_end`, `targets` came after.

    A user stands here only when there is a target. A user without a history (first seen in this part) does too.
    """

    user_idx: npt.NDArray[np.int32]  # [n_cases]
    history_end: npt.NDArray[np.int32]  # [n_cases], number of the user's events that came before
    targets: Ragged  # n_cases rows of distinct item_idx

    def __len__(self) -> int:
        return len(self.user_idx)


class Dataset(Artifact):
    """What `recsys ingest` writes.

    Files: `users.parquet`, `items.parquet`, `train.parquet`, `valid.parquet` and `test.parquet` (each user's events of
    that part), `quarantine.parquet` (schemas in `recsys.schema`), `item_statistics_<part>.parquet` and
    `user_statistics_<part>.parquet` (see `recsys.ingest.statistics`), and `profile.json`; the manifest counts rows in,
    kept, quarantined by reason and merged by reason. Users are numbered in the order of the part in which they are
    first seen, so nothing that comes after a cut changes a byte of the parts before it.
    """

    kind: ClassVar[str] = "dataset"
    stage: ClassVar[str] = "ingest"

    @property
    def event_types(self) -> tuple[str, ...]:
        """Names of the event types; a code in `Sequences.event_type` is a place in this tuple."""
        return tuple(self.manifest["info"]["event_types"])

    @property
    def event_weights(self) -> npt.NDArray[np.float64]:
        """What an event counts in an item's popularity, by its code, [n_types]."""
        return np.array(self.manifest["info"]["event_weights"], dtype=np.float64)

    @property
    def protocol(self) -> str:
        """How the sequences are split: "temporal" or "leave_one_out"."""
        return str(self.manifest["info"]["protocol"])

    @cached_property
    def users(self) -> pa.Table:
        """Columns of `schema.USERS`, row u is user_idx u."""
        return pq.read_table(self.path / "users.parquet")

    @cached_property
    def items(self) -> pa.Table:
        """Columns of `schema.ITEMS`, row i is item_idx i."""
        return pq.read_table(self.path / "items.parquet")

    @cached_property
    def profile(self) -> dict[str, Any]:
        """What the data is like, in numbers; see `recsys.ingest.profile`."""
        profile: dict[str, Any] = json.loads((self.path / "profile.json").read_text())
        return profile

    def item_statistics(self, part: str) -> pa.Table:
        """What is known of each item at the end of a part, row i is item_idx i; see `recsys.ingest.statistics`."""
        return pq.read_table(self.path / f"item_statistics_{part}.parquet")

    def user_statistics(self, part: str) -> pa.Table:
        """What is known at the end of a part of each user seen by then; see `recsys.ingest.statistics`."""
        return pq.read_table(self.path / f"user_statistics_{part}.parquet")

    @property
    def n_users(self) -> int:
        """Number of users."""
        return int(self.users.num_rows)

    @property
    def n_items(self) -> int:
        """Number of catalogue items, those without any event included."""
        return int(self.items.num_rows)

    @cached_property
    def sequences(self) -> Sequences:
        """All events as flat arrays (17 bytes an event)."""
        return _joined([self._read(part) for part in PARTS], self._counts_by_part.T)

    @cached_property
    def split(self) -> Split:
        """Where each user's sequence is cut."""
        ends = np.cumsum(self._counts_by_part, axis=0, dtype=np.int32)
        return Split(protocol=self.protocol, train_end=ends[0], valid_end=ends[1])

    @cached_property
    def _counts_by_part(self) -> npt.NDArray[np.int64]:
        """Number of events, [part, user]."""
        counts = np.zeros((len(PARTS), self.n_users), dtype=np.int64)
        for row, part in zip(counts, PARTS, strict=True):
            table = pq.read_table(self.path / f"{part}.parquet", columns=[schema.USER_IDX, schema.EVENT_TYPE])
            row[table[schema.USER_IDX].to_numpy()] = pc.list_value_length(table[schema.EVENT_TYPE]).to_numpy()
        return counts

    def _read(self, part: str) -> Sequences:
        """One part's events, without a row for users who have none in it."""
        table = pq.read_table(self.path / f"{part}.parquet").combine_chunks()
        lists = {name: _list_array(table, name) for name in table.column_names if name != schema.USER_IDX}
        first = lists[schema.ITEM_IDX]
        offsets = np.asarray(first.offsets, dtype=np.int64)
        return Sequences(
            offsets=offsets - offsets[0],
            item_idx=np.asarray(first.flatten()),
            event_type=np.asarray(lists[schema.EVENT_TYPE].flatten()),
            timestamp=np.asarray(lists[schema.TIMESTAMP].flatten()),
            session=np.asarray(lists["session"].flatten()),
        )

    @cached_property
    def train(self) -> Sequences:
        """The training part of every sequence: the only events that a model or a baseline may be fitted on."""
        return _joined([self._read("train")], self._counts_by_part[:1].T)

    def cases(self, part: Part) -> Cases:
        """The users to ask in one part of the split, with their targets (distinct items, first occurrence first)."""
        sequences, split = self.sequences, self.split
        start = split.train_end if part == "valid" else split.valid_end
        end = split.valid_end if part == "valid" else sequences.lengths.astype(np.int32)
        users = np.flatnonzero(end > start).astype(np.int32)
        count = (end - start)[users].astype(np.int64)
        items = take(sequences, sequences.offsets[users] + start[users], count).item_idx
        row = np.repeat(np.arange(len(users)), count)
        _, first = np.unique(row * np.int64(self.n_items) + items, return_index=True)
        first.sort()
        offsets = np.zeros(len(users) + 1, dtype=np.int64)
        np.cumsum(np.bincount(row[first], minlength=len(users)), out=offsets[1:])
        return Cases(users, start[users], Ragged(offsets, items[first]))

    def histories(
        self,
        users: npt.NDArray[np.int32],
        end: npt.NDArray[np.int32] | None = None,
        *,
        last: int | None = None,
    ) -> Sequences:
        """Row r: the first `end[r]` events of `users[r]` (all by default), of these the `last` (all by default)."""
        stop = self.sequences.lengths[users] if end is None else end.astype(np.int64)
        start = np.zeros_like(stop) if last is None else np.maximum(stop - last, 0)
        return take(self.sequences, self.sequences.offsets[users] + start, stop - start)

    def history(self, user: int, end: int | None = None, *, last: int | None = None) -> npt.NDArray[np.int32]:
        """The items of one user's first `end` events (all by default), the `last` of them, oldest first."""
        begin, stop = self.sequences.offsets[user], self.sequences.offsets[user + 1]
        stop = stop if end is None else begin + end
        begin = begin if last is None else max(begin, stop - last)
        return self.sequences.item_idx[begin:stop]


def places(ids: pa.ChunkedArray | pa.Array, among: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.int32]:
    """[n], where each id stands among others, the first of equal ones; −1 if it is not there."""
    others = among.combine_chunks() if isinstance(among, pa.ChunkedArray) else among
    found: npt.NDArray[np.int32] = pc.fill_null(pc.index_in(ids, value_set=others), -1).to_numpy(zero_copy_only=False)
    return found


def only(histories: Sequences, kept: npt.NDArray[np.bool_]) -> Sequences:
    """The same rows without some of their events.

    Args:
        histories: n rows.
        kept: [n_events], which events stay.
    """
    return Sequences(
        np.append(0, np.cumsum(kept))[histories.offsets],
        histories.item_idx[kept],
        histories.event_type[kept],
        histories.timestamp[kept],
        histories.session[kept],
    )


def take(sequences: Sequences, begin: npt.NDArray[np.int64], count: npt.NDArray[np.int64]) -> Sequences:
    """Rows of their own: row r is the `count[r]` events from place `begin[r]` of the flat arrays on."""
    offsets = np.zeros(len(count) + 1, dtype=np.int64)
    np.cumsum(count, out=offsets[1:])
    place = np.repeat(begin - offsets[:-1], count) + np.arange(offsets[-1])
    return Sequences(
        offsets,
        sequences.item_idx[place],
        sequences.event_type[place],
        sequences.timestamp[place],
        sequences.session[place],
    )


def pad_left(rows: Sequences, last: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The `last` events of each row: item_idx [n, last] (−1 for padding on the left) and event_type (0 there)."""
    length = np.minimum(rows.lengths, last)
    place = rows.offsets[1:, None] - last + np.arange(last)[None, :]
    mask = np.arange(last)[None, :] >= last - length[:, None]
    items, types = np.full(mask.shape, -1, np.int32), np.zeros(mask.shape, np.int64)
    items[mask], types[mask] = rows.item_idx[place[mask]], rows.event_type[place[mask]]
    return items, types


def _joined(parts: list[Sequences], count: npt.NDArray[np.int64]) -> Sequences:
    """Each user's events of all parts, one after the other.

    Args:
        parts: rows of the users who have events in them, in the order of user_idx.
        count: number of events, [n_users, n_parts].
    """
    n_users, n_parts = count.shape
    offsets = np.zeros(n_users * n_parts + 1, dtype=np.int64)
    np.cumsum(count.ravel(), out=offsets[1:])
    n_events = int(offsets[-1])
    starts = offsets[:-1].reshape(n_users, n_parts)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name in ("item_idx", "event_type", "timestamp", "session"):
        arrays[name] = np.empty(n_events, dtype=getattr(parts[0], name).dtype)
    for part, rows in enumerate(parts):
        has_any = count[:, part] > 0
        shift = starts[has_any, part] - rows.offsets[:-1]
        place = np.repeat(shift, rows.lengths) + np.arange(rows.offsets[-1])
        for name, array in arrays.items():
            array[place] = getattr(rows, name)
    return Sequences(np.append(starts[:, 0], n_events), **arrays)


def _list_array(table: pa.Table, name: str) -> pa.ListArray:
    column = table[name]
    return column.chunk(0) if column.num_chunks else pa.array([], type=column.type)
