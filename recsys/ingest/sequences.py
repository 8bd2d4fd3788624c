"""Histories on disk: one file for each part of the split, so that what trains holds nothing of what comes later."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recsys import schema
from recsys.ingest.dataset import PARTS
from recsys.ingest.histories import Histories
from recsys.ingest.tables import Beside

ROW_GROUP_EVENTS: Final = 1 << 20

Ints = npt.NDArray[np.int64]


def write_parts(folder: Path, histories: Iterable[Histories]) -> dict[str, int]:
    """Write `train.parquet`, `valid.parquet` and `test.parquet`, columns of `schema.SEQUENCES`.

    Args:
        folder: where to.
        histories: all users, in the order of user_idx, in batches of any size.

    Returns:
        Number of events by part.
    """
    with ExitStack() as stack:
        writers = [stack.enter_context(_PartWriter(folder / f"{part}.parquet")) for part in PARTS]
        for batch in histories:
            ends = [batch.train_end.astype(np.int64), batch.valid_end.astype(np.int64), np.diff(batch.offsets)]
            for writer, begin, end in zip(writers, [np.zeros_like(ends[0]), *ends], ends, strict=False):
                writer.write(batch, begin, end)
    return {part: writer.n_events for part, writer in zip(PARTS, writers, strict=True)}


class _PartWriter:
    """Writes the events of one part, a row for each user who has any.

    Row groups are cut by the part's own events, so its bytes do not depend on the other parts, nor on the batches in
    which the histories come.
    """

    def __init__(self, path: Path) -> None:
        packed = (schema.ITEM_IDX, schema.TIMESTAMP, "session")
        self._writer = pq.ParquetWriter(
            path,
            schema.SEQUENCES,
            compression="zstd",
            # Small differences between neighbours take a sixth less room than a dictionary does, and less time.
            use_dictionary=[f"{schema.EVENT_TYPE}.list.element"],
            column_encoding={f"{name}.list.element": "DELTA_BINARY_PACKED" for name in packed},
        )
        self._beside = Beside()
        self._pending: list[pa.Table] = []
        self._n_pending = 0
        self.n_events = 0

    def write(self, histories: Histories, begin: Ints, end: Ints) -> None:
        """Add the events `[begin[u], end[u])` of every user u, counted from the user's first."""
        count = end - begin
        if not count.any():
            return
        rows = np.flatnonzero(count)
        if count.sum() == len(histories.item_idx):
            events: slice | npt.NDArray[np.int64] = slice(None)
        else:
            first = (histories.offsets[:-1] + begin)[rows]
            events = _places(first, count[rows])
        table = _as_table(
            histories.user_idx[rows],
            count[rows],
            histories.item_idx[events],
            histories.event_type[events],
            histories.timestamp[events],
            histories.session[events],
        )
        self.n_events += int(count.sum())
        self._n_pending += int(count.sum())
        self._pending.append(table)
        if self._n_pending >= ROW_GROUP_EVENTS:
            self._flush()

    def _flush(self, *, last: bool = False) -> None:
        table = pa.concat_tables(self._pending).combine_chunks()
        until = np.cumsum(table[schema.ITEM_IDX].combine_chunks().value_lengths().to_numpy())
        begin = 0
        while begin < len(table):
            before = until[begin - 1] if begin else 0
            end = int(np.searchsorted(until, before + ROW_GROUP_EVENTS)) + 1
            if end > len(table) and not last:
                break
            self._beside.run(self._writer.write_table, table.slice(begin, end - begin), row_group_size=len(table))
            begin = end
        rest = table.slice(begin)
        self._pending = [rest.take(pa.array(range(len(rest)), pa.int64()))] if len(rest) else []
        self._n_pending = int(until[-1] - (until[begin - 1] if begin else 0)) if len(rest) else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._pending:
                self._flush(last=True)
            self._beside.close()
        finally:
            self._writer.close()


def _as_table(
    user_idx: npt.NDArray[np.int32],
    count: Ints,
    item_idx: npt.NDArray[np.int32],
    event_type: npt.NDArray[np.int8],
    timestamp: Ints,
    session: npt.NDArray[np.int32],
) -> pa.Table:
    """Flat arrays as a table of lists, columns of `schema.SEQUENCES`.

    Args:
        user_idx: [n_users].
        count: events of each user, [n_users].
        item_idx: of all events, the users' one after the other, [n_events]; so are the following.
        event_type: codes.
        timestamp: microseconds since 1970, UTC.
        session: numbers within the user.
    """
    offsets = np.zeros(len(count) + 1, dtype=np.int32)
    np.cumsum(count, out=offsets[1:])
    values: dict[str, npt.NDArray[Any]] = {
        schema.ITEM_IDX: item_idx,
        schema.EVENT_TYPE: event_type,
        schema.TIMESTAMP: timestamp,
        "session": session,
    }
    lists = {name: pa.ListArray.from_arrays(offsets, pa.array(array)) for name, array in values.items()}
    return pa.table({schema.USER_IDX: pa.array(user_idx), **lists}).cast(schema.SEQUENCES)


def _places(first: Ints, count: Ints) -> Ints:
    """For each row the places `first`, `first + 1`, … , `count` of them; laid end to end."""
    ends = np.cumsum(count)
    return np.repeat(first - ends + count, count) + np.arange(ends[-1] if len(ends) else 0)
