"""The events of a span of time, counted in one pass over a dataset's files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recsys import schema
from recsys.ingest.dataset import PARTS, Dataset

HOUR: Final = 3_600_000_000  # microseconds
DAY: Final = 24 * HOUR
# A person does not do the same to the same item twice so soon; a page that reports twice does.
REPEAT: Final = 2_000_000

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Events:
    """Counts of the events of a span of time.

    Attributes:
        by_type: [n_types] by code.
        by_item: [n_items].
        user_days: number of different pairs of a user and a part of the span.
        repeats: events that follow one of the same user, item, type and part of the split within two seconds.
    """

    by_type: Ints
    by_item: Ints
    user_days: int
    repeats: int

    @property
    def total(self) -> int:
        """Number of events."""
        return int(self.by_type.sum())


def count_events(dataset: Dataset, *, since: int, until: int, days: int = 1) -> Events:
    """Count the events of a span of time.

    Only the parts of the split that reach into the span are read, a batch of users at a time. Memory grows with the
    number of items and with the span's pairs of user and day (8 bytes each), not with the log.

    Args:
        dataset: whose events.
        since: microseconds since 1970; events at this moment and before are left out.
        until: microseconds since 1970; later events are left out.
        days: number of equal parts of the span in which users are counted anew.
    """
    n_types, n_items = len(dataset.event_types), dataset.n_items
    by_type, by_item = np.zeros(n_types, np.int64), np.zeros(n_items, np.int64)
    pairs: list[Ints] = []
    repeats = 0
    for user, item, kind, time in _batches(dataset, since, until):
        by_type += np.bincount(kind, minlength=n_types)
        np.add.at(by_item, item, 1)
        day = (time - since - 1) * days // (until - since)
        pairs.append(np.unique(user.astype(np.int64) << 32 | day))
        repeats += _count_repeats(user, item, kind, time)
    # A user whose days lie on both sides of a cut stands in two files.
    user_days = len(np.unique(np.concatenate(pairs))) if pairs else 0
    return Events(by_type, by_item, user_days, repeats)


Batch = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int8], Ints]


def _batches(dataset: Dataset, since: int, until: int) -> Iterator[Batch]:
    """User, item, type and time of the span's events, whole users of a part at a time; no batch is empty."""
    info = dataset.manifest["info"]
    # The moment up to which each part has events, where the split is one of moments.
    ends = {"train": info["train_until"], "valid": info["valid_until"], "test": None}
    names = [schema.USER_IDX, schema.ITEM_IDX, schema.EVENT_TYPE, schema.TIMESTAMP]
    for part in PARTS:
        if ends[part] is not None and ends[part] <= since:
            continue
        with pq.ParquetFile(dataset.path / f"{part}.parquet") as file:
            for batch in file.iter_batches(columns=names):
                n_events = np.diff(np.asarray(batch.column(schema.TIMESTAMP).offsets))
                time = _flat(batch, schema.TIMESTAMP)
                inside = (time > since) & (time <= until)
                if inside.any():
                    user = np.repeat(batch.column(schema.USER_IDX).to_numpy(), n_events)
                    item, kind = _flat(batch, schema.ITEM_IDX), _flat(batch, schema.EVENT_TYPE)
                    yield user[inside], item[inside], kind[inside], time[inside]


def _flat(batch: pa.RecordBatch, name: str) -> npt.NDArray[Any]:
    return np.asarray(batch.column(name).flatten())


def _count_repeats(
    user: npt.NDArray[np.int32], item: npt.NDArray[np.int32], kind: npt.NDArray[np.int8], time: Ints
) -> int:
    order = np.lexsort((time, kind, item, user))
    same = np.diff(time[order]) <= REPEAT
    for column in (user, item, kind):
        same &= np.diff(column[order]) == 0
    return int(np.count_nonzero(same))
