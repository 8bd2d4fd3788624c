"""What a dataset looks like in numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.ingest.histories import Histories, Ints, hash_ids

HOUR: Final = 3_600_000_000  # microseconds
QUANTILES: Final = (1, 5, 25, 50, 75, 90, 95, 99)  # percent
TOP_CATEGORIES: Final = 20
NEW_DAYS: Final = 7
TEXTS: Final = ("brand", "category", "price", "description")
SKETCH: Final = 256
# Events that are counted at a time: their columns stay in the processor's cache.
CHUNK: Final = 1 << 17


class Profile:
    """Counts histories as they pass by. Memory grows with days, items and the longest history, not with events.

    The result depends on the histories alone, not on how they are batched or in which order the batches come.

    Args:
        items: the catalogue, columns of `schema.ITEMS`, row i is item_idx i.
        event_types: their names; an event type's code is its place here.
    """

    def __init__(self, items: pa.Table, event_types: Sequence[str]) -> None:
        self._items = items
        self._types = tuple(event_types)
        self._by_day = _Days(len(self._types))
        self._by_hour = np.zeros(24, np.int64)
        self._by_item = np.zeros(items.num_rows, np.int64)
        self._first_day = np.full(items.num_rows, np.iinfo(np.int64).max)
        self._last_day = np.full(items.num_rows, np.iinfo(np.int64).min)
        self._first, self._last = np.iinfo(np.int64).max, 0
        self._user_events, self._session_events, self._user_sessions = _Tally(), _Tally(), _Tally()
        self._parts = {part: {"events": 0, "users": 0} for part in ("train", "valid", "test")}

    def add(self, histories: Histories) -> None:
        """Count the events of some more users; each user must come once, with all events."""
        lengths = np.diff(histories.offsets)
        self._user_events.add(lengths)
        ends = {"train": histories.train_end, "valid": histories.valid_end, "test": lengths}
        begin: npt.NDArray[np.signedinteger[Any]] = np.zeros_like(lengths)
        for part, end in ends.items():
            self._parts[part]["events"] += int((end - begin).sum(dtype=np.int64))
            self._parts[part]["users"] += int(np.count_nonzero(end > begin))
            begin = end
        self._add_sessions(histories, lengths)
        for start in range(int(histories.offsets[0]), int(histories.offsets[-1]), CHUNK):
            chunk = slice(start, min(start + CHUNK, int(histories.offsets[-1])))
            self._add_events(histories.timestamp[chunk], histories.event_type[chunk], histories.item_idx[chunk])

    def _add_sessions(self, histories: Histories, lengths: Ints) -> None:
        used = lengths > 0
        if not used.any():
            return
        session = histories.session[histories.offsets[0] : histories.offsets[-1]]
        starts = histories.offsets[:-1][used] - histories.offsets[0]
        # Sessions of one user may overlap in time, so they are counted by number and not by where it changes.
        n_sessions = np.maximum.reduceat(session, starts).astype(np.int64) + 1
        base = np.cumsum(n_sessions) - n_sessions
        sizes = np.bincount(session + np.repeat(base, lengths[used]))
        self._session_events.add(sizes[sizes > 0])
        self._user_sessions.add(np.add.reduceat(sizes > 0, base, dtype=np.int64))

    def _add_events(self, timestamp: Ints, event_type: npt.NDArray[np.int8], item_idx: npt.NDArray[np.int32]) -> None:
        self._first = min(self._first, int(timestamp.min()))
        self._last = max(self._last, int(timestamp.max()))
        hour = timestamp // HOUR
        day = hour // 24
        item = item_idx.astype(np.int64)
        self._by_hour += np.bincount(hour - day * 24, minlength=24)
        self._by_day.add(day, event_type)
        self._by_item += np.bincount(item, minlength=len(self._by_item))
        np.minimum.at(self._first_day, item, day)
        np.maximum.at(self._last_day, item, day)

    def finish(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """The profile, ready for JSON.

        Args:
            counts: number of rows `rows_in` and `kept`, and of rows `quarantined` and `merged` by reason; copied as
                they are.

        Returns:
            `counts`; `events` (total, by_type, first, last); `users` (total, and events and sessions of one);
            `sessions` (total, and events of one); `items` (total, with_event); `parts` (events and users of train,
            valid and test); `days` (UTC dates that have an event, with events by type and the number of items that
            have their first and their last event then; `gaps`: ranges of days without one); `hours` (events by hour
            of the day, UTC); `catalogue` (share of items with a text of each kind, words of titles);
            `categories` (events by top-level category: the first 20, the rest as `other`, and `none`);
            `concentration` (share of events on the most popular 1 % and 10 % of the catalogue, Gini coefficient over
            the catalogue); `new_items` (of the last 7 days); `item_sketch` (see `drift`). Shares lie in 0 … 1; what
            cannot be said, because there is nothing to count, is None.
        """
        total = int(self._by_item.sum())
        return {
            "version": 1,
            "counts": json.loads(json.dumps(counts, default=int)),
            "events": {
                "total": total,
                "by_type": dict(zip(self._types, self._by_day.counts.sum(axis=0).tolist(), strict=True)),
                "first": _moment(self._first) if total else None,
                "last": _moment(self._last) if total else None,
            },
            "users": {
                "total": self._user_events.total,
                "events": self._user_events.summary(),
                "sessions": self._user_sessions.summary(),
            },
            "sessions": {"total": self._session_events.total, "events": self._session_events.summary()},
            "items": {"total": len(self._by_item), "with_event": int(np.count_nonzero(self._by_item))},
            "parts": {part: dict(n) for part, n in self._parts.items()},
            "days": self._days(),
            "hours": {f"{hour:02}": n for hour, n in enumerate(self._by_hour.tolist())},
            "catalogue": _catalogue(self._items),
            "categories": self._categories(),
            "concentration": _concentration(self._by_item),
            "new_items": self._new_items(),
            "item_sketch": _sketch(self._items[schema.ITEM_ID]),
        }

    def _days(self) -> dict[str, Any]:
        days, counts = self._by_day.used()
        happened = self._by_item > 0
        # Each first and last day is one of `days`.
        first, last = (
            np.bincount(np.searchsorted(days, of_item[happened]), minlength=len(days)).tolist()
            for of_item in (self._first_day, self._last_day)
        )
        before = np.flatnonzero(np.diff(days) > 1)
        gaps = [
            {"first": _date(start + 1), "last": _date(end - 1), "days": end - start - 1}
            for start, end in zip(days[before].tolist(), days[before + 1].tolist(), strict=True)
        ]
        return {
            "date": [_date(day) for day in days.tolist()],
            "events": dict(zip(self._types, counts.T.tolist(), strict=True)),
            "items_first_seen": first,
            "items_last_seen": last,
            "gaps": gaps,
            "n_without_events": sum(gap["days"] for gap in gaps),
        }

    def _new_items(self) -> dict[str, Any]:
        days, counts = self._by_day.used()
        if not len(days):
            return {"days": NEW_DAYS, "items": 0, "share_of_active_items": None, "share_of_events": None}
        before = days[-1] - NEW_DAYS
        happened = self._by_item > 0
        new = happened & (self._first_day > before)
        active = np.count_nonzero(happened & (self._last_day > before))
        # What is new has no event before these days, so that all its events lie in them.
        share_of_events = _share(self._by_item[new].sum(), counts[days > before].sum())
        n_new = int(np.count_nonzero(new))
        return {
            "days": NEW_DAYS,
            "items": n_new,
            "share_of_active_items": _share(n_new, active),
            "share_of_events": share_of_events,
        }

    def _categories(self) -> dict[str, Any] | None:
        category = self._items["category"].combine_chunks()
        if category.null_count == len(category):
            return None
        top = pc.list_element(pc.split_pattern(category, schema.CATEGORY_SEPARATOR, max_splits=1), 0)
        names = pc.unique(top.drop_null()).sort()
        code = pc.fill_null(pc.index_in(top, names), len(names)).to_numpy()
        events = np.bincount(code, weights=self._by_item, minlength=len(names) + 1).astype(np.int64)
        known, none = events[:-1], events[-1]
        order = np.argsort(-known, kind="stable")[:TOP_CATEGORIES]
        return {
            "n": len(names),
            "top": {names[place].as_py(): int(known[place]) for place in order.tolist()},
            "other": int(known.sum() - known[order].sum()),
            "none": int(none),
        }


class _Tally:
    """How often each value of a small non-negative number was seen: exact quantiles without the values."""

    def __init__(self) -> None:
        self.counts = np.zeros(0, np.int64)  # by value

    def add(self, values: npt.NDArray[np.integer[Any]]) -> None:
        counts = np.bincount(values, minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def summary(self) -> dict[str, Any] | None:
        """Mean, quantiles (the least value that q percent do not exceed) and counts in bins 1, 2-3, 4-7, and so on."""
        if not self.total:
            return None
        up_to = np.cumsum(self.counts)
        ranks = [1, *(max(1, -(-percent * self.total // 100)) for percent in QUANTILES), self.total]
        values = np.searchsorted(up_to, ranks).tolist()
        names = ["min", *(f"p{percent}" for percent in QUANTILES), "max"]
        n_bins = int(values[-1]).bit_length()
        histogram = {"0": int(self.counts[0])} if self.counts[0] else {}
        for low in (1 << place for place in range(n_bins)):
            name = str(low) if low == 1 else f"{low}-{2 * low - 1}"
            histogram[name] = int(self.counts[low : 2 * low].sum())
        mean = float(self.counts @ np.arange(len(self.counts))) / self.total
        return {"mean": round(mean, 4), **dict(zip(names, values, strict=True)), "histogram": histogram}


class _Days:
    """Events by day and type, over the span of days that was seen."""

    def __init__(self, n_types: int) -> None:
        self.base = 0
        self.counts = np.zeros((0, n_types), np.int64)  # [n_days, n_types], row 0 is day `base`

    def add(self, day: Ints, event_type: npt.NDArray[np.int8]) -> None:
        low, high = int(day.min()), int(day.max())
        self._reach(low, high)
        n_types = self.counts.shape[1]
        code = (day - low) * n_types + event_type
        found = np.bincount(code, minlength=(high - low + 1) * n_types).reshape(-1, n_types)
        self.counts[low - self.base : high - self.base + 1] += found

    def _reach(self, low: int, high: int) -> None:
        if not len(self.counts):
            self.base = low
        before = max(self.base - low, 0)
        after = max(high + 1 - self.base - len(self.counts), 0)
        if before or after:
            self.counts = np.pad(self.counts, ((before, after), (0, 0)))
            self.base -= before

    def used(self) -> tuple[Ints, Ints]:
        """Days (since 1970) that have an event, and their rows."""
        used = np.flatnonzero(self.counts.any(axis=1))
        return used + self.base, self.counts[used]


def _catalogue(items: pa.Table) -> dict[str, Any]:
    n_items = items.num_rows
    title = items["title"]
    # Ingestion calls an item without a title by its brand and last category level, or else by its id.
    leaf = pc.replace_substring_regex(items["category"], f"(?s)^.*{schema.CATEGORY_SEPARATOR}", "")
    named = pc.binary_join_element_wise(pc.fill_null(items["brand"], ""), pc.fill_null(leaf, ""), " ")
    stand_in = pc.or_(pc.equal(title, items[schema.ITEM_ID]), pc.equal(title, pc.utf8_trim_whitespace(named)))
    has: dict[str, int] = {"title": n_items - _count(stand_in)}
    for name in TEXTS:
        column = items[name]
        empty = pc.equal(column, "") if pa.types.is_string(column.type) else None
        has[name] = n_items - column.null_count - (_count(empty) if empty is not None else 0)
    words = _Tally()
    trimmed = pc.utf8_trim_whitespace(title)
    n_words = pc.list_value_length(pc.utf8_split_whitespace(trimmed))
    words.add(pc.if_else(pc.equal(trimmed, ""), 0, n_words).to_numpy())
    in_stock = items["in_stock"]
    return {
        "coverage": {name: _share(n, n_items) for name, n in has.items()},
        "in_stock_known": _share(n_items - in_stock.null_count, n_items),
        "in_stock": _share(_count(in_stock), n_items - in_stock.null_count),
        "title_words": words.summary(),
    }


def _concentration(by_item: Ints) -> dict[str, Any]:
    """How unevenly events lie on the catalogue's items, those without an event included."""
    n_items, total = len(by_item), int(by_item.sum())
    ordered = np.sort(by_item)
    heads = {f"top_{percent}_percent": -(-n_items * percent // 100) for percent in (1, 10)}
    shares = {name: _share(ordered[n_items - n :].sum(), total) for name, n in heads.items()}
    gini = None
    if total:
        weighted = int(np.arange(1, n_items + 1) @ ordered)
        gini = round(2 * weighted / (n_items * total) - (n_items + 1) / n_items, 6)
    return shares | {"gini": gini}


def _sketch(ids: pa.ChunkedArray) -> list[str]:
    """The smallest hashes of the ids, each 64 bits in hexadecimal: a random but repeatable sample of them."""
    return [f"{each:016x}" for each in np.unique(hash_ids(ids))[:SKETCH].tolist()]


def _share(part: Any, whole: Any) -> float | None:
    return round(int(part) / int(whole), 6) if whole else None


def _date(day: int) -> str:
    return str(np.datetime64(day, "D"))


def _moment(micros: int) -> str:
    return datetime.fromtimestamp(micros // 1_000_000, UTC).isoformat()


def _count(mask: pa.ChunkedArray) -> int:
    return int(pc.sum(mask).as_py() or 0)
