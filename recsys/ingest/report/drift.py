"""What has changed in the data since the run before, and what of it deserves a look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from recsys.ingest.profile import SKETCH, TEXTS

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


def drift(previous: Mapping[str, Any] | None, current: Mapping[str, Any]) -> dict[str, Any]:
    """What has changed since the run before, and what of it deserves a look.

    Mixes (event types, history lengths, hours, categories) are compared by the population stability index (see
    `stability_index`). Small samples differ by chance: without any change, PSI / (1/n + 1/m) is about χ² distributed
    (Yurdakul and Naranjo, Statistical Properties of the Population Stability Index, 2020), so the alarm's threshold is
    never below four standard deviations over its mean.

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


def stability_index(before: npt.NDArray[Any], now: npt.NDArray[Any]) -> float:
    """The population stability index of two mixes: PSI = Σ (q − p) · ln(q / p).

    p and q are the shares of each part before and now, with half an event added to each part so that none is zero
    (Siddiqi, Credit Risk Scorecards, 2006). By custom 0.1 is a change and 0.25 a large one.

    Args:
        before: events of each part, [n_parts].
        now: the same, [n_parts].
    """
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (before, now))
    return float(((q - p) * np.log(q / p)).sum())


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
        value = stability_index(*(np.array([mix.get(part, 0.0) for part in parts]) for mix in (before, now)))
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


def _share(part: Any, whole: Any) -> float | None:
    return round(int(part) / int(whole), 6) if whole else None


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"
