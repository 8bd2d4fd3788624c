"""From a stream of rows, ordered by user and time, to whole histories: copies merged, ties settled, sessions numbered.

This is the same code for every engine: an engine sorts, and all that depends on the order happens here, in numpy, in
one pass and in memory that does not grow with the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from recsys import schema
from recsys.ingest.split import Cuts

# Columns of the stream beside those of the table contract.
CONTENT: Final = "content"  # int64, equal for rows that are equal in every column of the log
SESSION_KEY: Final = "session_key"  # int64, one for each session_id; null where there is none
MONEY: Final = "money"  # int64, `value` in ten-thousandths, so that sums do not depend on their order

_EVENTS_AT_ONCE: Final = 1 << 18  # arrays of it stay in the processor's cache

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Histories:
    """Consecutive users with their whole histories, oldest event first.

    User u's events are the slice `offsets[u]:offsets[u + 1]` of every array of events.
    """

    user_idx: npt.NDArray[np.int32]  # [n_users]
    offsets: Ints  # [n_users + 1]
    item_idx: npt.NDArray[np.int32]  # [n_events]
    event_type: npt.NDArray[np.int8]  # [n_events], codes
    timestamp: Ints  # [n_events], microseconds since 1970, UTC
    session: npt.NDArray[np.int32]  # [n_events], 0, 1, … within the user
    money: Ints | None  # [n_events], ten-thousandths; None where the log has no value
    train_end: npt.NDArray[np.int32]  # [n_users], events [0, train_end) train
    valid_end: npt.NDArray[np.int32]  # [n_users], events [train_end, valid_end) validate, the rest test

    def __len__(self) -> int:
        return len(self.user_idx)

    @cached_property
    def user_row(self) -> Ints:
        """The place of each event's user in this batch, [n_events]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @cached_property
    def part(self) -> npt.NDArray[np.int8]:
        """The part of the split that each event is of, [n_events]."""
        part = np.zeros(len(self.item_idx), dtype=np.int8)
        place = np.arange(len(part))
        for end in (self.train_end, self.valid_end):
            part += place >= (self.offsets[:-1] + end)[self.user_row]
        return part


@dataclass
class Merged:
    """How many rows went into other rows of the same event.

    Attributes:
        exact_duplicate: rows that are equal to another one in every column of the log.
        same_event: rows that differ from the others of their event in a column beside the event's own.
    """

    exact_duplicate: int = 0
    same_event: int = 0


@dataclass(frozen=True)
class Assembly:
    """Turns the ordered stream into histories.

    Attributes:
        item_ids: item_id of each item_idx, [n_items]; ties are settled by it.
        cuts: where to split.
        gap: microseconds; a longer pause starts a new session.
        seed: another seed gives another order inside equal times.
        merged: counts of merged rows so far.
    """

    item_ids: pa.ChunkedArray
    cuts: Cuts
    gap: int
    seed: int
    merged: Merged = field(default_factory=Merged)

    def histories(self, rows: Iterable[pa.RecordBatch], users: Iterable[pa.RecordBatch]) -> Iterator[Histories]:
        """Whole histories, about a quarter of a million events at a time.

        Rows of the same user, item, event type and time are one event: lines of an order that repeat an item, double
        clicks and copies of a row. Inside equal times events stand in the order of `position` where there is one, and
        of `tie_key` otherwise. Sessions are numbered in the order in which they begin.

        Args:
            rows: ordered by `user_idx` and `timestamp`; columns `user_idx` int32, `item_idx` int32, `event_type` int8,
                `timestamp` int64, `content` int64, and where the log has them `position` int64, `session_key` int64
                and `money` int64.
            users: columns of `schema.USERS`, in the order of user_idx, none left out.
        """
        item_hash = hash_ids(self.item_ids)
        names = _Names(users)
        for table in whole_users(rows):
            yield self._assemble(table, item_hash, names)

    def _assemble(self, table: pa.Table, item_hash: Hashes, names: _Names) -> Histories:
        column = {name: _flat(table, name) for name in table.column_names}
        user, time = column[schema.USER_IDX], column[schema.TIMESTAMP]
        tied = np.zeros(len(user), dtype=bool)
        same = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
        if same.any():
            tied[1:] |= same
            tied[:-1] |= same
            column = self._settle(column, np.flatnonzero(tied), item_hash, names)
        user, time = column[schema.USER_IDX], column[schema.TIMESTAMP]

        starts_user = np.empty(len(user), dtype=bool)
        starts_user[0] = True
        np.not_equal(user[1:], user[:-1], out=starts_user[1:])
        first = np.flatnonzero(starts_user)
        offsets = np.append(first, len(user))
        # The user of each event as a place in this batch, for the reductions below.
        session = self._sessions(column, first, starts_user)
        train_end, valid_end = self.cuts.ends(time, offsets)
        return Histories(
            user_idx=user[first],
            offsets=offsets,
            item_idx=column[schema.ITEM_IDX],
            event_type=column[schema.EVENT_TYPE],
            timestamp=time,
            session=session,
            money=column.get(MONEY),
            train_end=train_end,
            valid_end=valid_end,
        )

    def _settle(
        self, column: dict[str, npt.NDArray[Any]], places: Ints, item_hash: Hashes, names: _Names
    ) -> dict[str, npt.NDArray[Any]]:
        """Order the tied rows at `places` among themselves, and merge those that are one event."""
        part = {name: values[places] for name, values in column.items()}
        user, time, item, kind = (
            part[name] for name in (schema.USER_IDX, schema.TIMESTAMP, schema.ITEM_IDX, schema.EVENT_TYPE)
        )
        key = tie_key(names.hashes(user), item_hash[item], kind, time, seed=self.seed)
        run = np.zeros(len(places), dtype=np.int64)
        run[1:] = np.cumsum((user[1:] != user[:-1]) | (time[1:] != time[:-1]))
        # First the copies of an event together, to take the least position of them; its key settles which they are.
        order = np.lexsort((part[CONTENT], kind, item, key, run))
        part, key, run = {name: values[order] for name, values in part.items()}, key[order], run[order]
        starts = np.ones(len(order), dtype=bool)
        starts[1:] = (run[1:] != run[:-1]) | (key[1:] != key[:-1])
        for name in (schema.ITEM_IDX, schema.EVENT_TYPE):
            starts[1:] |= part[name][1:] != part[name][:-1]
        event = np.flatnonzero(starts)
        new = starts.copy()  # rows that are no exact copy of the row before
        new[1:] |= part[CONTENT][1:] != part[CONTENT][:-1]
        n_distinct = int(new.sum())
        self.merged.exact_duplicate += len(order) - n_distinct
        self.merged.same_event += n_distinct - len(event)

        kept = {name: values[event] for name, values in part.items()}
        if MONEY in part:
            kept[MONEY] = np.add.reduceat(np.where(new, part[MONEY], 0), event)
        if SESSION_KEY in part:
            kept[SESSION_KEY] = np.minimum.reduceat(part[SESSION_KEY], event)
        if schema.POSITION in part:
            kept[schema.POSITION] = np.minimum.reduceat(part[schema.POSITION], event)
            order = np.lexsort((key[event], kept[schema.POSITION], run[event]))
            kept = {name: values[order] for name, values in kept.items()}
        if len(event) == len(places):
            for name, values in kept.items():
                column[name] = column[name].copy()
                column[name][places] = values
            return column
        # An event of a run stands where the run's rows stood; the places that are too many fall away.
        keep = np.ones(len(column[schema.USER_IDX]), dtype=bool)
        keep[places[~starts]] = False
        place = (np.cumsum(keep) - 1)[places[starts]]
        merged = {name: values[keep] for name, values in column.items()}
        for name, values in kept.items():
            merged[name][place] = values
        return merged

    def _sessions(
        self, column: dict[str, npt.NDArray[Any]], first: Ints, starts_user: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.int32]:
        time = column[schema.TIMESTAMP]
        named = column[SESSION_KEY] != _NO_SESSION if SESSION_KEY in column else None
        if named is None or not named.any():
            starts = starts_user.copy()
            starts[1:] |= np.diff(time) > self.gap
            number = np.cumsum(starts)
            return (number - np.repeat(number[first], np.diff(np.append(first, len(time))))).astype(np.int32)
        # A session without a name is called by how many pauses came before it among its user's nameless events.
        user_row = np.cumsum(starts_user) - 1
        nameless = np.flatnonzero(~named)
        label = mix(column[SESSION_KEY].view(np.uint64))
        if len(nameless):
            own_time, own_user = time[nameless], user_row[nameless]
            pause = np.ones(len(nameless), dtype=np.int64)
            pause[1:] = (np.diff(own_time) > self.gap) | (own_user[1:] != own_user[:-1])
            label[nameless] = mix(np.cumsum(pause).astype(np.uint64))
        label = mix(label + user_row.astype(np.uint64))
        # Codes count in the order of first appearance, so each user has the next few.
        code = pd.factorize(label)[0]
        return (code - np.repeat(code[first], np.diff(np.append(first, len(time))))).astype(np.int32)


_NO_SESSION: Final = np.iinfo(np.int64).max
_NULLS: Final = {schema.POSITION: np.iinfo(np.int64).max, SESSION_KEY: _NO_SESSION, MONEY: 0}


def _flat(table: pa.Table, name: str) -> npt.NDArray[Any]:
    array = table[name].combine_chunks()
    if array.null_count:
        array = array.fill_null(_NULLS[name])
    return np.asarray(array.to_numpy(zero_copy_only=False))


def whole_users(rows: Iterable[pa.RecordBatch], at_least: int = _EVENTS_AT_ONCE) -> Iterator[pa.Table]:
    """Cut a stream, ordered by user, at borders of users, into tables of about `at_least` rows; none is empty."""
    pending: list[pa.RecordBatch] = []
    n_rows = 0
    for batch in rows:
        if not batch.num_rows:
            continue
        pending.append(batch)
        n_rows += batch.num_rows
        if n_rows < at_least:
            continue
        table = pa.Table.from_batches(pending)
        user = _flat(table, schema.USER_IDX)
        end = int(np.searchsorted(user, user[-1], side="left"))  # the last user may go on in the next batch
        if end:
            yield table.slice(0, end)
            rest = table.slice(end).combine_chunks()  # a copy, so that the rows before it are let go
            pending, n_rows = rest.to_batches(), rest.num_rows
    if pending:
        yield pa.Table.from_batches(pending)


class _Names:
    """Hashes of the users' ids, read beside the events, no further than they have come and held no longer."""

    def __init__(self, users: Iterable[pa.RecordBatch]) -> None:
        self._batches = iter(users)
        self._held: list[pa.Array] = []
        self._first = self._until = 0  # the users held

    def hashes(self, user: npt.NDArray[np.int32]) -> Hashes:
        """The hash of each of these users, which stand in order and not before those of the call before."""
        first, last = int(user[0]), int(user[-1])
        while self._until <= last:
            ids = next(self._batches).column(schema.USER_ID)
            self._held.append(ids)
            self._until += len(ids)
            while self._held and self._first + len(self._held[0]) <= first:
                self._first += len(self._held.pop(0))
        changes = np.flatnonzero(np.diff(user, prepend=-1))
        ids = pa.chunked_array(self._held).take(pa.array(user[changes] - self._first))
        return np.repeat(hash_ids(ids), np.diff(changes, append=len(user)))


def hash_ids(ids: pa.Array | pa.ChunkedArray) -> Hashes:
    """A hash of each id, the same on every machine and engine (SipHash by pandas), [n] uint64."""
    values = np.asarray(ids.to_numpy(zero_copy_only=False), dtype=object)
    return pd.util.hash_array(values, categorize=False)


def mix(values: Hashes) -> Hashes:
    """Spread the bits of 64-bit integers: the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def tie_key(
    user_hash: Hashes,
    item_hash: Hashes,
    event_type: npt.NDArray[np.int8],
    timestamp: Ints,
    *,
    seed: int,
) -> Hashes:
    """What events of one user and time are ordered by: random, but the same in every run and on every engine.

    It is mix(mix(mix(mix(seed + user_hash) + item_hash) + event_type) + timestamp), modulo 2⁶⁴, so neither the log's
    order nor any other user's event has a say in it.

    Args:
        user_hash: `hash_ids` of the events' users, [n].
        item_hash: `hash_ids` of the events' items, [n].
        event_type: codes, [n].
        timestamp: microseconds since 1970, [n].
        seed: another seed gives another order.
    """
    key = mix(user_hash + np.uint64(seed))
    for part in (item_hash, event_type, timestamp):
        key = mix(key + part.astype(np.uint64))
    return key
