"""What is known of each item and each user at the end of each part of the split; nothing of it comes from later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from recsys import schema
from recsys.ingest.dataset import PARTS
from recsys.ingest.histories import Histories
from recsys.ingest.split import Cuts
from recsys.ingest.tables import TableWriter

PRICE_BANDS: Final = 5
# A conversion rate is the shop's own until an item has been seen this many times.
PRIOR_VIEWS: Final = 20

_DAY: Final = 86_400_000_000
_NEVER: Final = np.iinfo(np.int64).max

Ints = npt.NDArray[np.int64]


class Statistics:
    """Counts while histories pass by, and writes what it has counted.

    For each part there is a table of items and a table of users, `item_statistics_<part>.parquet` and
    `user_statistics_<part>.parquet`, computed from the events of that part and of the parts before it: the table of
    "train" is what may be looked at when validation is asked, that of "valid" when the test is asked, that of "test"
    when tonight's lists are made.
    """

    def __init__(
        self,
        items: pa.Table,
        event_types: Sequence[str],
        cuts: Cuts,
        *,
        n_known: Sequence[int],
        weights: Mapping[str, float],
        popularity_days: Sequence[float],
    ) -> None:
        """Prepare to count.

        Args:
            items: columns of `schema.ITEMS`.
            event_types: names; an event's code is a place among them.
            cuts: where the histories are split.
            n_known: how many items are known at the end of each part: those come first in `items`.
            weights: what an event of a type counts in popularity, 1 where not given.
            popularity_days: lengths of the windows before a part's end in which popularity is counted.
        """
        self._items, self._types, self._cuts, self._days = items, tuple(event_types), cuts, tuple(popularity_days)
        self._n_known = tuple(n_known)
        self._weight = np.array([weights.get(name, 1.0) for name in event_types])
        n_items, n_parts = items.num_rows, len(PARTS)
        self._count = np.zeros((n_parts, n_items, len(self._types)), dtype=np.int32)
        # By age: within the shortest window, beyond it but within the next one, …, beyond all.
        self._popularity = np.zeros((n_parts, len(self._days) + 1, n_items))
        self._first = np.full((n_parts, n_items), _NEVER)
        self._last = np.full((n_parts, n_items), -_NEVER)
        self._revenue = np.zeros((n_parts, n_items), dtype=np.int64)

    def write_users(self, folder: Path, histories: Iterable[Histories]) -> Iterator[Histories]:
        """Count the histories and hand them on; the tables of users are written beside it."""
        table = user_schema(self._types)
        with ExitStack() as stack:
            writers = [
                stack.enter_context(TableWriter(folder / f"user_statistics_{part}.parquet", table)) for part in PARTS
            ]
            for batch in histories:
                self._add(batch)
                for writer, users in zip(writers, _users(batch, self._types), strict=True):
                    writer.write(users)
                yield batch

    def _add(self, histories: Histories) -> None:
        item, kind, time = histories.item_idx, histories.event_type, histories.timestamp
        part = histories.part
        # Flat places and equal types: that is ten times as fast as places in several dimensions.
        cell = part * np.int64(self._items.num_rows) + item
        np.add.at(self._count.ravel(), cell * len(self._types) + kind, np.ones(len(cell), dtype=np.int32))
        np.minimum.at(self._first.ravel(), cell, time)
        np.maximum.at(self._last.ravel(), cell, time)
        if histories.money is not None:
            bought = np.flatnonzero(kind == schema.EVENT_TYPES.index("purchase"))
            np.add.at(self._revenue.ravel(), cell[bought], histories.money[bought])
        weight = self._weight[kind]
        for known, moment in enumerate(self._cuts.moments):
            inside = slice(None) if known == len(PARTS) - 1 else np.flatnonzero(part <= known)
            age = np.zeros(len(time[inside]), dtype=np.int64)
            for days in sorted(self._days):
                age += time[inside] < moment - days * _DAY
            np.add.at(self._popularity[known].ravel(), age * self._items.num_rows + item[inside], weight[inside])

    def write_items(self, folder: Path) -> None:
        """Write the tables of items, when all histories have passed by."""
        count, revenue = np.cumsum(self._count, axis=0), np.cumsum(self._revenue, axis=0)
        first = np.minimum.accumulate(self._first, axis=0)
        last = np.maximum.accumulate(self._last, axis=0)
        popularity = np.cumsum(self._popularity, axis=1)
        table = item_schema(self._types, self._days)
        for number, part in enumerate(PARTS):
            n = self._n_known[number]
            unseen = first[number, :n] == _NEVER
            columns: dict[str, Any] = {
                schema.ITEM_IDX: self._items[schema.ITEM_IDX][:n],
                **{f"n_{name}": count[number, :n, code] for code, name in enumerate(self._types)},
                "popularity": count[number, :n] @ self._weight,
                **{_window(days): popularity[number, sorted(self._days).index(days), :n] for days in self._days},
                "conversion": conversion(count[number, :n]),
                "revenue": revenue[number, :n] / 10_000,
                "first_seen": pa.array(first[number, :n], mask=unseen),
                "last_seen": pa.array(last[number, :n], mask=unseen),
                "price_band": price_bands(self._items[:n]),
            }
            with TableWriter(folder / f"item_statistics_{part}.parquet", table) as writer:
                writer.write(pa.table(columns).cast(table))


def item_schema(event_types: Sequence[str], popularity_days: Sequence[float]) -> pa.Schema:
    """Columns of a table of items: row i is item_idx i; items that are not known yet have none.

    Counts by event type; `popularity`, the weighted number of events, in all and in the last days before the part's
    end; `conversion`; `revenue`, the value of purchases; `first_seen` and `last_seen` (microseconds since 1970, UTC;
    null for an item without an event); `price_band`, as in `price_bands`.
    """
    return pa.schema(
        [
            pa.field(schema.ITEM_IDX, pa.int32(), nullable=False),
            *(pa.field(f"n_{name}", pa.int32(), nullable=False) for name in event_types),
            pa.field("popularity", pa.float32(), nullable=False),
            *(pa.field(_window(days), pa.float32(), nullable=False) for days in popularity_days),
            pa.field("conversion", pa.float32()),
            pa.field("revenue", pa.float64(), nullable=False),
            pa.field("first_seen", pa.int64()),
            pa.field("last_seen", pa.int64()),
            pa.field("price_band", pa.int8()),
        ]
    )


def user_schema(event_types: Sequence[str]) -> pa.Schema:
    """Columns of a table of users: a row for each who has an event by the end of the part, in the order of user_idx.

    Counts by event type and of sessions; `first_seen` and `last_seen` (microseconds since 1970, UTC); `mean_gap`, the
    mean time between two events in seconds, null for a single one.
    """
    return pa.schema(
        [
            pa.field(schema.USER_IDX, pa.int32(), nullable=False),
            *(pa.field(f"n_{name}", pa.int32(), nullable=False) for name in event_types),
            pa.field("n_sessions", pa.int32(), nullable=False),
            pa.field("first_seen", pa.int64(), nullable=False),
            pa.field("last_seen", pa.int64(), nullable=False),
            pa.field("mean_gap", pa.float64()),
        ]
    )


def _window(days: float) -> str:
    return f"popularity_{days:g}d"


def _users(histories: Histories, event_types: Sequence[str]) -> Iterator[pa.Table]:
    """For each part, what is known of the users at its end."""
    offsets, n_types = histories.offsets, len(event_types)
    cell = (histories.user_row * len(PARTS) + histories.part) * n_types + histories.event_type
    count = np.bincount(cell, minlength=len(histories) * len(PARTS) * n_types).astype(np.int32)
    count = count.reshape(len(histories), len(PARTS), n_types).cumsum(axis=1, dtype=np.int32)
    for part, end in enumerate((histories.train_end, histories.valid_end, np.diff(offsets))):
        users = np.flatnonzero(end)
        begin, last = offsets[users], offsets[users] + end[users] - 1
        span = histories.timestamp[last] - histories.timestamp[begin]
        n_gaps = end[users] - 1
        yield pa.table(
            {
                schema.USER_IDX: histories.user_idx[users],
                **{f"n_{name}": count[users, part, code] for code, name in enumerate(event_types)},
                # Sessions are numbered as they begin, so the highest number so far tells how many there were.
                "n_sessions": _highest(histories.session, begin, last) + 1,
                "first_seen": histories.timestamp[begin],
                "last_seen": histories.timestamp[last],
                "mean_gap": pa.array(span / np.maximum(n_gaps, 1) / 1e6, mask=n_gaps == 0),
            }
        )


def _highest(values: npt.NDArray[np.int32], first: Ints, last: Ints) -> npt.NDArray[np.int32]:
    """The highest of `values[first[i]:last[i] + 1]` for each i; the slices do not overlap and stand in order."""
    if not len(first):
        return np.empty(0, dtype=np.int32)
    borders = np.stack([first, last + 1], axis=1).ravel()
    return np.maximum.reduceat(np.append(values, np.int32(0)), borders)[::2]


def conversion(count: npt.NDArray[np.int32]) -> pa.Array:
    """Purchases per view, drawn towards the shop's own rate r: (purchases + m·r) / (views + m), m = `PRIOR_VIEWS`.

    That is the posterior mean of a Beta prior of m pseudo-views (Gelman et al., Bayesian Data Analysis, §2.4).

    Args:
        count: number of events by type, [n_items, n_types].

    Returns:
        [n_items] float32; null where the shop has no view at all.
    """
    views, purchases = (count[:, schema.EVENT_TYPES.index(name)].astype(np.float64) for name in ("view", "purchase"))
    if not views.any():
        return pa.nulls(len(count), pa.float32())
    rate = purchases.sum() / views.sum()
    return pa.array((purchases + PRIOR_VIEWS * rate) / (views + PRIOR_VIEWS), pa.float32())


def price_bands(items: pa.Table) -> pa.Array:
    """How dear an item is among those of its top category: 0 for the cheapest fifth to 4 for the dearest.

    Args:
        items: columns of `schema.ITEMS`.

    Returns:
        [n_items] int8; null for an item without a price.
    """
    price = items["price"].to_pandas()
    category = items["category"].to_pandas().astype(object)
    top = category.where(category.notna(), "").str.partition(schema.CATEGORY_SEPARATOR)[0]
    share = price.groupby(top.to_numpy()).rank(pct=True)
    band = np.minimum(np.ceil(share * PRICE_BANDS) - 1, PRICE_BANDS - 1)
    return pa.array(pd.array(band, dtype="Int8"))
