"""What a dataset looks like in numbers, and what has changed since the run before."""

from __future__ import annotations

import json
import math
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

# A run is compared with the one before it; what lies outside is an alarm. They are meant to be silent from one day to
# the next and to speak when a file is lost, delivered twice or written in another way.
VOLUME: Final = (0.8, 1.5)  # events, users and items, as a ratio to the run before
LAST_DAY: Final = (0.5, 2.0)  # events of the last full day, as a ratio to the median of the 28 days before it
TYPE_SHARE: Final = (0.5, 2.0)  # an event type's share of the events, as a ratio to the run before
TYPE_EVENTS: Final = 100  # fewer events of a type, in both runs, say nothing about its share
STABILITY: Final = 0.25  # population stability index
COVERAGE: Final = 0.05  # fall in the share of items that have a title, brand, …
STOCK: Final = 0.2  # change in the share of items that are in stock
REJECTED: Final = 0.02  # rise in the share of rows that are rejected for a reason
MERGED: Final = 0.05  # rise in the share of rows that are merged for a reason
CHURN: Final = 0.2  # share of the catalogue that is new or gone


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


def drift(previous: Mapping[str, Any] | None, current: Mapping[str, Any]) -> dict[str, Any]:
    """What has changed since the run before, and what of it deserves a look.

    Mixes (event types, history lengths, hours, categories) are compared by the population stability index,
    PSI = Σ (q − p) · ln(q / p) over their parts, p and q the shares before and now, with half an event added to each
    part so that none is zero (Siddiqi, Credit Risk Scorecards, 2006). By custom 0.1 is a change and 0.25 a large one.
    Small samples differ by chance: without any change, PSI / (1/n + 1/m) is about χ² distributed (Yurdakul and
    Naranjo, Statistical Properties of the Population Stability Index, 2020), so the alarm's threshold is never below
    four standard deviations over its mean.

    Which items are new or gone is estimated from the 256 smallest hashes of either run's item ids (Broder, On the
    Resemblance and Containment of Documents, 1997; Bar-Yossef et al., Counting Distinct Elements in a Data Stream,
    2002): up to the smaller of their two largest hashes both runs are known completely, and what lies there is a
    random sample of each catalogue. The standard error is 0.03 at most; catalogues of up to 256 items are exact.

    Args:
        previous: the profile of the run before, if there was one; of whatever shape: what it lacks is left out.
        current: this run's, as `Profile.finish` gives it.

    Returns:
        `previous` (whether there was one), the comparisons, and `alarms`: a list of `name`, `value`, `threshold` and
        `words` for a reader who does not know the terms. The last day is compared with the days before it, and needs
        no run before.
    """
    comparison = _Comparison(previous or {}, current)
    found: dict[str, Any] = {"previous": previous is not None}
    found["last_full_day"] = comparison.last_full_day()
    if previous is not None:
        found["volume"] = comparison.volume()
        found["event_mix"] = comparison.event_mix()
        found["history_lengths"] = comparison.history_lengths()
        found["hours"] = comparison.hours()
        found["categories"] = comparison.categories()
        found["coverage"] = comparison.coverage()
        found["quarantined"] = comparison.rows("quarantined", REJECTED, "are rejected")
        found["merged"] = comparison.rows("merged", MERGED, "are merged into another row")
        found["items"] = comparison.items()
    kept = {name: value for name, value in found.items() if value not in (None, {})}
    return kept | {"alarms": comparison.alarms}


class _Comparison:
    """The comparisons one by one; each appends its alarms."""

    def __init__(self, previous: Mapping[str, Any], current: Mapping[str, Any]) -> None:
        self.previous, self.current = previous, current
        self.alarms: list[dict[str, Any]] = []

    def volume(self) -> dict[str, Any]:
        found = {}
        causes = {
            "events": ("part of the log may be missing", "files may have been read twice"),
            "users": ("part of the log may be missing", "user ids may be written in another way"),
            "items": ("part of the catalogue may be missing", "item ids may be written in another way"),
        }
        for name, (fewer, more) in causes.items():
            before, now = self._numbers(name, "total")
            if not before or now is None:
                continue
            ratio = now / before
            found[name] = {"previous": before, "current": now, "ratio": round(ratio, 6)}
            sense = f"({now:,.0f} against {before:,.0f})"
            if ratio < VOLUME[0]:
                words = f"There are {_percent(1 - ratio)} fewer {name} than in the run before {sense}: {fewer}."
                self._alarm(name, ratio, VOLUME[0], words)
            elif ratio > VOLUME[1]:
                words = f"There are {ratio:.1f} times as many {name} as in the run before {sense}: {more}."
                self._alarm(name, ratio, VOLUME[1], words)
        return found

    def last_full_day(self) -> dict[str, Any] | None:
        """The last day that is surely over, against the 28 before it.

        The log's last day counts as over if its last hour has an event; else the day before it is taken.
        """
        days, last = self.current["days"], self.current["events"]["last"]
        if last is None:
            return None
        dates = np.array(days["date"], dtype="datetime64[D]")
        events = np.zeros(int((dates[-1] - dates[0]).astype(int)) + 1, np.int64)
        events[(dates - dates[0]).astype(int)] = np.sum(list(days["events"].values()), axis=0)
        day = len(events) - 1 if datetime.fromisoformat(last).hour == 23 else len(events) - 2
        before = events[max(day - 28, 0) : max(day, 0)]
        if len(before) < 7:
            return None
        date, now, median = str(dates[0] + day), int(events[day]), float(np.median(before))
        found = {"date": date, "events": now, "median_before": median, "days_before": len(before)}
        if median:
            ratio = now / median
            found["ratio"] = round(ratio, 6)
            # A shop that rests on one day of the week has had such a day in the weeks before too.
            if ratio < LAST_DAY[0] and now < before.min():
                words = (
                    f"On {date} there were {now:,} events; a usual day has {median:,.0f}: the log may be incomplete."
                )
                self._alarm("last_full_day", ratio, LAST_DAY[0], words)
            elif ratio > LAST_DAY[1] and now > before.max():
                words = f"On {date} there were {now:,} events; a usual day has {median:,.0f}: a sale, a bot or a copy?"
                self._alarm("last_full_day", ratio, LAST_DAY[1], words)
        return found

    def event_mix(self) -> dict[str, Any] | None:
        before, now = self._mixes("events", "by_type")
        if not before or not now:
            return None
        types = {}
        for name in sorted(name for name in before.keys() | now.keys() if before.get(name) or now.get(name)):
            share, new_share = before.get(name, 0) / sum(before.values()), now.get(name, 0) / sum(now.values())
            types[name] = {"previous": round(share, 6), "current": round(new_share, 6)}
            if max(before.get(name, 0), now.get(name, 0)) < TYPE_EVENTS:
                continue
            words = f"“{name}” makes up {_percent(new_share, 1)} of the events; it was {_percent(share, 1)}."
            if new_share < TYPE_SHARE[0] * share:
                self._alarm(f"event_type: {name}", new_share / share, TYPE_SHARE[0], words)
            elif new_share > TYPE_SHARE[1] * share:
                self._alarm(f"event_type: {name}", new_share / share if share else None, TYPE_SHARE[1], words)
        words = "People do other things than before: the mix of event types has changed a lot."
        return self._stability("event_mix", before, now, words) | {"types": types}

    def history_lengths(self) -> dict[str, Any] | None:
        before, now = self._mixes("users", "events", "histogram")
        if not before or not now:
            return None
        median, new_median = self._numbers("users", "events", "p50")
        words = "Histories have another length than before"
        if median is not None and new_median is not None:
            words += f": half of the users have at most {new_median:,.0f} events; it was {median:,.0f}"
        found = self._stability("history_lengths", before, now, f"{words}.")
        return found | {"median": {"previous": median, "current": new_median}}

    def hours(self) -> dict[str, Any] | None:
        before, now = self._mixes("hours")
        if not before or not now:
            return None
        words = "Events happen at other hours of the day than before: the log's time zone may have changed."
        return self._stability("hours", before, now, words)

    def categories(self) -> dict[str, Any] | None:
        before, now = self._mixes("categories", "top")
        if not before or not now:
            return None
        others, nones = self._numbers("categories", "other"), self._numbers("categories", "none")
        rests = [{"other": other or 0, "none": none or 0} for other, none in zip(others, nones, strict=True)]
        before, now = _with_rest(before, rests[0], now, rests[1]), _with_rest(now, rests[1], before, rests[0])
        words = "Events fall on other categories than before: a season, or the catalogue's categories have changed."
        return self._stability("categories", before, now, words)

    def coverage(self) -> dict[str, Any]:
        found = {}
        for name in ("title", *TEXTS):
            before, now = self._numbers("catalogue", "coverage", name)
            if before is None or now is None:
                continue
            found[name] = _change(before, now)
            if before - now > COVERAGE:
                words = f"{_percent(now)} of the items have a {name}; it was {_percent(before)}: is a column missing?"
                self._alarm(f"coverage: {name}", now - before, -COVERAGE, words)
        before, now = self._numbers("catalogue", "in_stock")
        if before is not None and now is not None:
            found["in_stock"] = _change(before, now)
            if abs(now - before) > STOCK:
                words = f"{_percent(now)} of the items are in stock; it was {_percent(before)}."
                self._alarm("in_stock", now - before, math.copysign(STOCK, now - before), words)
        return found

    def rows(self, fate: str, threshold: float, verb: str) -> dict[str, Any]:
        """Shares of all rows, by reason."""
        rows_before, rows_now = self._numbers("counts", "rows_in")
        if not rows_before or not rows_now:
            return {}
        before, now = self._mixes("counts", fate)
        found = {}
        for reason in sorted(before.keys() | now.keys()):
            share, new_share = before.get(reason, 0) / rows_before, now.get(reason, 0) / rows_now
            found[reason] = _change(share, new_share)
            if new_share - share > threshold:
                reads = reason.replace("_", " ")
                words = f"{_percent(new_share, 1)} of the log's rows {verb} ({reads}); it was {_percent(share, 1)}."
                self._alarm(f"{fate}: {reason}", new_share - share, threshold, words)
        return found

    def items(self) -> dict[str, Any] | None:
        before, now = (_hashes(profile.get("item_sketch")) for profile in (self.previous, self.current))
        if not before or not now:
            return None
        complete = [max(sketch) for sketch in (before, now) if len(sketch) >= SKETCH]
        limit = min(complete, default=1 << 64)
        old, new = ({each for each in sketch if each <= limit} for sketch in (before, now))
        gone, added = _share(len(old - new), len(old)), _share(len(new - old), len(new))
        if gone is not None and gone > CHURN:
            self._alarm("items_gone", gone, CHURN, f"About {_percent(gone)} of the catalogue's items are gone.")
        if added is not None and added > CHURN:
            words = (
                f"About {_percent(added)} of the catalogue's items are new: a new range, or ids written in another way."
            )
            self._alarm("items_added", added, CHURN, words)
        return {"added_share": added, "gone_share": gone, "sampled": len(old | new)}

    def _stability(
        self, name: str, before: Mapping[str, float], now: Mapping[str, float], words: str
    ) -> dict[str, Any]:
        parts = sorted(part for part in before.keys() | now.keys() if before.get(part, 0) + now.get(part, 0) > 0)
        n, m = sum(before.values()), sum(now.values())
        p, q = (np.array([mix.get(part, 0) + 0.5 for part in parts]) for mix in (before, now))
        p, q = p / p.sum(), q / q.sum()
        value = float(((q - p) * np.log(q / p)).sum())
        freedom = len(parts) - 1
        threshold = max(STABILITY, (1 / n + 1 / m) * (freedom + 4 * math.sqrt(2 * freedom)))
        if value > threshold:
            self._alarm(name, value, threshold, words)
        return {"psi": round(value, 6), "threshold": round(threshold, 6)}

    def _alarm(self, name: str, value: float | None, threshold: float, words: str) -> None:
        value = None if value is None else round(value, 6)
        self.alarms.append({"name": name, "value": value, "threshold": round(threshold, 6), "words": words})

    def _numbers(self, *keys: str) -> tuple[float | None, float | None]:
        before, now = (_at(profile, keys) for profile in (self.previous, self.current))
        return (before if _is_number(before) else None), (now if _is_number(now) else None)

    def _mixes(self, *keys: str) -> tuple[dict[str, float], dict[str, float]]:
        """Numbers by name before and now; empty where there are none above zero."""
        mixes = [
            {str(name): n for name, n in value.items() if _is_number(n)} if isinstance(value, Mapping) else {}
            for value in (_at(profile, keys) for profile in (self.previous, self.current))
        ]
        before, now = (mix if sum(mix.values()) > 0 else {} for mix in mixes)
        return before, now


def _at(profile: object, keys: Sequence[str]) -> Any:
    for key in keys:
        profile = profile.get(key) if isinstance(profile, Mapping) else None
    return profile


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _hashes(sketch: object) -> set[int]:
    try:
        return {int(each, 16) for each in sketch} if isinstance(sketch, list) else set()
    except (TypeError, ValueError):
        return set()


def _with_rest(
    top: Mapping[str, float], rest: Mapping[str, float], their_top: Mapping[str, float], their_rest: Mapping[str, float]
) -> dict[str, float]:
    """Events by category, with those that only the other run has among its first.

    Of these it is only known that they have no more events than the least of `top`, and that they are in the rest; as
    far as that allows, their share is taken to be the other run's.
    """
    scale = (sum(top.values()) + sum(rest.values())) / (sum(their_top.values()) + sum(their_rest.values()))
    least, other = min(top.values()), rest["other"]
    mix = {f"category {name}": n for name, n in top.items()}
    for name in sorted(their_top.keys() - top.keys()):
        n = min(least, other, scale * their_top[name])
        mix[f"category {name}"] = n
        other -= n
    return mix | {"other": other, "none": rest["none"]}


def _change(before: float, now: float) -> dict[str, float]:
    return {"previous": round(before, 6), "current": round(now, 6), "change": round(now - before, 6)}


def _count(mask: pa.ChunkedArray) -> int:
    return int(pc.sum(mask).as_py() or 0)


def _share(part: Any, whole: Any) -> float | None:
    return round(int(part) / int(whole), 6) if whole else None


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _date(day: int) -> str:
    return str(np.datetime64(day, "D"))


def _moment(micros: int) -> str:
    return datetime.fromtimestamp(micros // 1_000_000, UTC).isoformat()
