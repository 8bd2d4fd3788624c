"""Checks of the data before anything is trained: is tonight's log like those of the nights before?

`profile` puts a night's data in some thirty figures, a night's record keeps them, and `check_data` compares tonight's
with those of recent nights. A figure outside its band is a finding, which holds the night or warns, as the config says:

| check | figures | what it finds |
| --- | --- | --- |
| `volume` | `events_per_day` | an outage, a file that was lost or read twice, events that are sent twice |
| `users` | `users_per_day`, `new_user_share` | a part of the traffic is missing; user ids are written in another way |
| `freshness` | `hours_since_last_event` | the delivery has stopped; clocks that are wrong |
| `event_mix` | `event_share.<type>` | a type of event is tracked less or more than before |
| `table_schema` | those of `event_mix` and `nulls` | a type or a column has vanished, or a type is new |
| `new_items` | `new_item_share` | a new catalogue, or item ids that are written in another way |
| `nulls` | `null_share.<column>` | a column of the catalogue is filled less than before |
| `duplicates` | `repeated_share`, `merged_share` | events that are tracked or delivered twice |
| `quarantine` | `quarantined_share` | rows that ingestion rejects as faulty: unknown items, broken times, missing ids |

**The band.** Counts are compared as logarithms, shares as log-odds, each with what is usual: the median of the last
seven nights, after each weekday's own deviation (the median of its deviations from the seven nights around it) was
taken out. How far the nights before lay from what would have been expected of them gives the spread, as a median
absolute deviation, so that a few odd nights among the recent ones do not move the band; it is widened where nights are
few. A band is at least as wide as sampling makes it, and as `least_ratio`, `least_share` and `least_hours` say, and at
most as `most_share` says. The decomposition is the classical one with medians for means (Hyndman and Athanasopoulos,
Forecasting: Principles and Practice, §3.4); the spread is that of Rousseeuw and Croux (Alternatives to the Median
Absolute Deviation, 1993, §1).

Weekdays are told apart once there were three nights of tonight's; until then bands are wide enough for a weekend.
Before there are `fewest_nights` recent nights, only what needs no history is found: no events, a log that is stale or
ahead of the clock, a catalogue without any text, and a log of which most rows are faulty.

**What a night that was held means for the next.** It must not be among the recent ones, or the fault becomes what is
usual. A change that stays (a second shop in the log) is therefore found every night, until somebody accepts it by
letting its nights count, or sets the check to "warn".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from recsys.ingest.dataset import Dataset

Check = Literal[
    "volume",
    "users",
    "freshness",
    "event_mix",
    "table_schema",
    "new_items",
    "nulls",
    "duplicates",
    "quarantine",
]
Level = Literal["hold", "warn", "off"]

TEXTS: Final = ("title", "category", "brand", "description")
WEEK: Final = 7
# Nights of a weekday from which on it is compared with its own.
WEEKDAY_NIGHTS: Final = 3
# Fewer events of a type than this may be none by chance.
SURE: Final = 20
# A clock may be wrong by so much, in hours.
SKEW: Final = 1.0


class ChecksConfig(BaseModel):
    """What of the data is checked before training, and how far it may be from the usual."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    volume: Level = Field("hold", description='events a day; "hold" keeps the night from training, "warn" only says so')
    users: Level = Field("hold", description="users a day, and how many of them are new")
    freshness: Level = Field("hold", description="age of the last event")
    event_mix: Level = Field("hold", description="shares of the event types")
    table_schema: Level = Field("hold", description="event types and catalogue columns that vanished, types that came")
    new_items: Level = Field("hold", description="share of tonight's items that had no event before")
    nulls: Level = Field("hold", description="share of the catalogue's items without a title, category, price, …")
    duplicates: Level = Field("hold", description="events and rows that say what another one says")
    quarantine: Level = Field("hold", description="share of rows that are rejected as faulty")

    nights: int = Field(42, ge=7, description="recent nights that a band is learned from")
    fewest_nights: int = Field(7, ge=5, description="nights before which there is no band")
    width: float = Field(5.0, gt=0, description="half of a band, in robust standard deviations")
    special_days: tuple[date, ...] = Field(
        (), description="days known to be unusual, such as sales: what is outside a band on them only warns"
    )
    least_ratio: float = Field(
        1.3, ge=1, description="a count, or the odds of a share, is never found for a change by less than this factor"
    )
    least_share: float = Field(
        0.05, ge=0, le=1, description="a share of faults, nulls, copies or new items may always rise by so much"
    )
    most_share: float = Field(
        0.25, gt=0, le=1, description="and never by more than this, however much it has moved in recent nights"
    )
    least_hours: float = Field(12, ge=0, description="the last event may always be so much older than usual, in hours")
    least_events: int = Field(1, ge=0, description="a night with fewer events is found without any history")
    stale_days: float = Field(3, gt=0, description="so is a last event that is older")
    most_quarantined: float = Field(0.5, ge=0, le=1, description="so is a larger share of faulty rows")

    def level(self, check: Check) -> Level:
        """What a finding of the check does."""
        level: Level = getattr(self, check)
        return level


@dataclass(frozen=True)
class Finding:
    """Something about tonight's data that deserves a look.

    Attributes:
        check: one of the checks.
        level: "hold" keeps the night from training.
        message: a sentence.
        value: the figure.
        low: least value that is usual; None if any low one is.
        high: largest value that is usual; None if any high one is.
        figure: name of the figure in the night's profile; None if it is not one of them.
    """

    check: str
    level: Literal["hold", "warn"]
    message: str
    value: float
    low: float | None
    high: float | None
    figure: str | None = None


class Band(NamedTuple):
    """What is usual; None is no bound."""

    low: float | None
    high: float | None


def profile(
    dataset: Dataset,
    *,
    since: datetime | None,
    previous: Mapping[str, float] | None = None,
    now: datetime | None = None,
) -> dict[str, float]:
    """Tonight's figures of the data.

    Args:
        dataset: tonight's.
        since: moment of the night before, whatever became of it; only events after it count. The whole log counts if
            it is None.
        previous: the figures of the night before, whatever became of it. A dataset counts rejected and merged rows of
            the whole log; what is new of them is the difference, after what has left the log at its other end. Without
            it their shares are those of the whole log, in which one bad night is hard to see.
        now: the moment that the night is for; the config's `ingest.as_of` by default, else the clock's.

    Returns:
        Finite numbers by name, ready for JSON: those of the table above; `moment` (seconds since 1970), `days` (from
        `since` until now), and the numbers of `events`, `items`, `users` and `rows` that shares are of; and the log's
        own counts, `log.…`, for the night after. What cannot be said is left out.
    """
    import pyarrow.compute as pc

    from recsys.ingest.split import to_micros
    from recsys.nightly.events import DAY, HOUR, count_events

    as_of = dataset.manifest["config"].get("as_of")
    moment = now or (datetime.fromisoformat(as_of) if as_of else datetime.now(UTC))
    end = to_micros(moment)
    first_seen, last_seen = (dataset.item_statistics("test")[name] for name in ("first_seen", "last_seen"))
    first, last = pc.min(first_seen).as_py(), pc.max(last_seen).as_py()  # a dataset is never without an event
    begin = first - 1 if since is None else to_micros(since)
    days = max(end - begin, HOUR) / DAY
    n_windows = max(round(days), 1)
    events = count_events(dataset, since=begin, until=max(end, begin + HOUR), days=n_windows)
    figures = {
        "moment": moment.timestamp(),
        "days": days,
        "events": float(events.total),
        "events_per_day": events.total / days,
        "users_per_day": events.user_days / n_windows,
        "hours_since_last_event": (end - last) / HOUR,
        "items": float((events.by_item > 0).sum()),
    }
    if events.total:
        types = dataset.event_types
        figures |= {f"event_share.{name}": n / events.total for name, n in zip(types, events.by_type, strict=True)}
        figures["repeated_share"] = events.repeats / events.total
    if since is not None:
        users, new_users = _users_since(dataset, begin)
        figures["users"] = float(users)
        if users:
            figures["new_user_share"] = new_users / users
            new_items = pc.sum(pc.greater(first_seen, begin)).as_py() or 0
            all_items = pc.sum(pc.greater(last_seen, begin)).as_py()
            figures["new_item_share"] = new_items / all_items
    figures |= _catalogue(dataset)
    figures |= _rows(dataset, previous or {}, events.total)
    return {name: float(value) for name, value in figures.items()}


def _users_since(dataset: Dataset, since: int) -> tuple[int, int]:
    """Users with an event after `since`, and those of them who had none before."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    users = new = 0
    with pq.ParquetFile(dataset.path / "user_statistics_test.parquet") as file:
        for batch in file.iter_batches(columns=["first_seen", "last_seen"]):
            users += pc.sum(pc.greater(batch["last_seen"], since)).as_py() or 0
            new += pc.sum(pc.greater(batch["first_seen"], since)).as_py() or 0
    return users, new


def _catalogue(dataset: Dataset) -> dict[str, float]:
    catalogue = dataset.profile["catalogue"]
    known = {**catalogue["coverage"], "in_stock": catalogue["in_stock_known"]}
    return {"catalogue": float(dataset.n_items)} | {
        f"null_share.{name}": 1 - share for name, share in known.items() if share is not None
    }


def _rows(dataset: Dataset, previous: Mapping[str, float], n_events: int) -> dict[str, float]:
    """What became of the rows that are new since the previous night.

    Where the log loses its oldest rows as new ones come, the share of the previous night's rows that is gone is told by
    the events: kept before + kept since − kept now. Rejected and merged rows are taken to have gone in the same share.
    """
    from recsys.ingest.clean import WANTED

    counts = dataset.counts
    now = {"log.kept": counts["kept"], "log.merged": sum(counts["merged"].values())}
    now |= {f"log.quarantined.{reason}": n for reason, n in counts["quarantined"].items()}
    gone = 0.0
    if before := previous.get("log.kept"):
        gone = min(max((before + n_events - now["log.kept"]) / before, 0), 1)
    new = {name: max(n - (1 - gone) * previous.get(name, 0), 0) for name, n in now.items()}
    figures = {name: float(n) for name, n in now.items()} | {"rows": float(sum(new.values()))}
    if figures["rows"]:
        faults = {name.removeprefix("log."): n / figures["rows"] for name, n in new.items() if "quarantined" in name}
        faults = {name: share for name, share in faults.items() if name.removeprefix("quarantined.") not in WANTED}
        figures |= {name.replace("quarantined.", "quarantined_share."): share for name, share in faults.items()}
        figures |= {"quarantined_share": sum(faults.values()), "merged_share": new["log.merged"] / figures["rows"]}
    return figures


class _Kind(NamedTuple):
    """How a figure is compared."""

    check: Check
    words: str
    scale: Literal["count", "share"]
    both: bool  # whether a low value is a finding too
    of: str = ""  # the figure whose number a share is of
    least: Literal["", "share", "hours"] = ""  # by which key of the config it may always rise: least_…


_KINDS: Final[Mapping[str, _Kind]] = {
    "events_per_day": _Kind("volume", "events a day", "count", True),
    "users_per_day": _Kind("users", "users a day", "count", True),
    "new_user_share": _Kind("users", "of the users are new", "share", False, "users", "share"),
    "hours_since_last_event": _Kind("freshness", "hours since the last event", "count", False, "", "hours"),
    "event_share": _Kind("event_mix", "of the events are of the type {}", "share", True, "events"),
    "new_item_share": _Kind("new_items", "of the items had no event before", "share", False, "items", "share"),
    "null_share": _Kind("nulls", "of the catalogue have no {}", "share", False, "catalogue", "share"),
    "repeated_share": _Kind(
        "duplicates", "of the events repeat another one at once", "share", False, "events", "share"
    ),
    "merged_share": _Kind("duplicates", "of the rows tell of an event again", "share", False, "rows", "share"),
    "quarantined_share": _Kind("quarantine", "of the rows are faulty", "share", False, "rows", "share"),
}


def check_data(
    tonight: Mapping[str, float], recent: Sequence[Mapping[str, float]], config: ChecksConfig
) -> list[Finding]:
    """Compare tonight's figures with those of recent nights. It looks at nothing else.

    Args:
        tonight: as `profile` gives them.
        recent: the same of nights whose data were good, the earliest first; the last `config.nights` of them count.
            What a night lacks is left out.
        config: what a finding does, and how wide bands are.

    Returns:
        The findings of the checks that are not off; none if all is as usual.
    """
    recent = recent[-config.nights :]
    plain = [*_without_history(tonight, config), *_changes(tonight, recent, config)]
    special = _day(tonight) in config.special_days
    findings: dict[str, Finding] = {}  # the first that is said of a figure is the plainest
    for found in [*plain, *_outside(tonight, recent, config)]:
        level = config.level(found.check)
        if level == "hold" and special and found not in plain:
            level = "warn"
        if level != "off":
            message = f"{found.check}: {found.message}"
            finding = Finding(found.check, level, message, found.value, *found.usual, found.figure)
            findings.setdefault(found.figure, finding)
    return list(findings.values())


class _Found(NamedTuple):
    check: Check
    figure: str
    message: str
    value: float
    usual: Band


def _without_history(tonight: Mapping[str, float], config: ChecksConfig) -> Iterator[_Found]:
    """What is wrong on any night."""
    n_events, least = tonight.get("events", 0.0), config.least_events
    if n_events < least:
        yield _Found("volume", "events_per_day", f"{n_events:,.0f} events are new", n_events, Band(least, None))
    hours, stale = tonight.get("hours_since_last_event", 0.0), 24 * config.stale_days
    if hours > stale:
        text = f"the last event is {hours / 24:.1f} days old"
        yield _Found("freshness", "hours_since_last_event", text, hours, Band(None, stale))
    if hours < -SKEW:
        text = f"the last event lies {-hours:,.1f} hours in the future"
        yield _Found("freshness", "hours_since_last_event", text, hours, Band(-SKEW, None))
    texts = [name for name in (f"null_share.{text}" for text in TEXTS) if name in tonight]
    if texts and all(tonight[name] >= 1 for name in texts):
        yield _Found("nulls", texts[0], "no item of the catalogue has any text", 1.0, Band(None, 1.0))
    faults, most = tonight.get("quarantined_share", 0.0), config.most_quarantined
    if faults > most:
        text = f"{faults:.1%} of the rows are faulty{_reasons(tonight)}"
        yield _Found("quarantine", "quarantined_share", text, faults, Band(None, most))


def _changes(
    tonight: Mapping[str, float], recent: Sequence[Mapping[str, float]], config: ChecksConfig
) -> Iterator[_Found]:
    """Types and columns that came or went."""
    if len(recent) < config.fewest_nights:
        return
    names = {name for night in [*recent, tonight] for name in night if _kind(name)[0].check in ("event_mix", "nulls")}
    n_events = tonight.get("events", 0.0)
    for name in sorted(names):
        _, detail = _kind(name)
        before = [night[name] for night in recent if name in night]
        usual, value = median(before) if before else 0.0, tonight.get(name, 0.0)
        text, band = None, Band(None, usual)
        if name.startswith("null_share"):
            if value >= 1 > usual:
                text = f"no item has a {detail!r} any more"
        elif not value and usual * n_events >= SURE:
            text, band = f"there is no event of the type {detail!r} any more", Band(usual, None)
        elif not any(before) and value * n_events >= SURE:
            text = f"events of the type {detail!r} are new"
        if text:
            yield _Found("table_schema", name, text, value, band)


def _outside(
    tonight: Mapping[str, float], recent: Sequence[Mapping[str, float]], config: ChecksConfig
) -> Iterator[_Found]:
    """Figures that are outside their band."""
    for figure, band in bands(tonight, recent, config).items():
        kind, detail = _kind(figure)
        value = tonight[figure]
        if (band.low is not None and value < band.low) or (band.high is not None and value > band.high):
            text = f"{_shown(value, kind)} {kind.words.format(repr(detail))}; {_usual(band, kind)}"
            if figure == "quarantined_share":
                text += _reasons(tonight)
            yield _Found(kind.check, figure, text, value, band)


def bands(tonight: Mapping[str, float], recent: Sequence[Mapping[str, float]], config: ChecksConfig) -> dict[str, Band]:
    """What would be usual tonight, by figure; those that cannot be judged are left out.

    Args:
        tonight: as `profile` gives them.
        recent: the same of nights whose data were good, the earliest first.
        config: how wide bands are.
    """
    recent = recent[-config.nights :]
    found = {}
    for name, value in tonight.items():
        if _is_compared(name) and math.isfinite(value):
            nights = [night for night in recent if math.isfinite(night.get(name, math.nan))]
            # Counts of half a day or of a weekend are not those of a night.
            same = [night for night in nights if 2 / 3 < night.get("days", 1) / tonight.get("days", 1) < 3 / 2]
            nights = same if len(same) >= config.fewest_nights else nights
            if len(nights) >= config.fewest_nights:
                found[name] = _band(name, tonight, nights, config)
    return found


def _band(name: str, tonight: Mapping[str, float], nights: Sequence[Mapping[str, float]], config: ChecksConfig) -> Band:
    kind, _ = _kind(name)
    values = [_to_scale(night[name], kind, night) for night in nights]
    usual, spread = _expected(values, [_day(night) for night in nights], _day(tonight))
    half = max(config.width * spread, math.log(config.least_ratio))
    center, low, high = (_from_scale(usual + sign * half, kind) for sign in (0, -1, 1))
    # What sampling alone may do to a number that small; one more, since none at all has no spread.
    n = max(tonight.get(kind.of, 1.0), 1.0) if kind.scale == "share" else 1.0
    by_chance = config.width * math.sqrt(center * n + 1) / n if kind.check != "freshness" else 0.0
    low, high = min(low, center - by_chance), max(high, center + by_chance)
    if kind.least == "share":
        high = min(max(high, center + config.least_share), center + config.most_share)
    elif kind.least == "hours":
        high = max(high, center + config.least_hours)
    return Band(max(low, 0.0) if kind.both else None, high)


def _expected(values: Sequence[float], days: Sequence[date | None], tonight: date | None) -> tuple[float, float]:
    """What is expected tonight, and how far such expectations are off (as a standard deviation).

    Args:
        values: of the nights before, [n].
        days: of the same, [n]; None if unknown.
        tonight: the day of tonight.
    """
    n = len(values)
    weekdays = [None if day is None else day.weekday() for day in days]
    wanted = None if tonight is None else tonight.weekday()
    starts = [min(max(at - WEEK // 2, 0), max(n - WEEK, 0)) for at in range(n)]
    deviations: dict[int | None, list[float]] = {}
    for value, start, weekday in zip(values, starts, weekdays, strict=True):
        deviations.setdefault(weekday, []).append(value - median(values[start : start + WEEK]))
    n_alike, rhythm = n, dict.fromkeys([*deviations, wanted], 0.0)
    if wanted is not None and len(deviations.get(wanted, ())) >= WEEKDAY_NIGHTS:
        n_alike = len(deviations[wanted])
        rhythm |= {weekday: median(of) for weekday, of in deviations.items() if weekday is not None}
    plain = [value - rhythm[weekday] for value, weekday in zip(values, weekdays, strict=True)]
    usual = median(plain[-WEEK:])
    if n >= 2 * WEEK:
        # Each night against the week before it: that has the growth in it, and all by which nights are off.
        errors = [plain[at] - median(plain[at - WEEK : at]) for at in range(WEEK, n)]
    else:
        errors = [value - usual for value in plain]
    bias = median(errors)
    off = sorted(abs(error - bias) for error in errors)
    spread = 1.4826 * median(off)
    if n_alike == n:
        # Weekdays are not told apart yet, and the two days of a weekend are too few for a median to see.
        spread = max(spread, off[-2] / 3)
    # Errors are smaller where the medians have seen the night itself, and a median of few is off by chance.
    few = math.sqrt((n_alike + 1) / (n_alike - 1)) * (1 + 4 / len(errors))
    return usual + bias + rhythm[wanted], spread * few


def _day(night: Mapping[str, float]) -> date | None:
    """The day that a night tells of: that of twelve hours before its moment, UTC."""
    moment = night.get("moment")
    return None if moment is None else (datetime.fromtimestamp(moment, UTC) - timedelta(hours=12)).date()


def _to_scale(value: float, kind: _Kind, night: Mapping[str, float]) -> float:
    if kind.scale == "count":
        return math.log(max(value, 0.5))
    # Half of one is added to both sides, so that none and all have log-odds too.
    half = 0.5 / max(night.get(kind.of, 1e4), 1.0)
    return math.log((value + half) / (max(1 - value, 0.0) + half))


def _from_scale(value: float, kind: _Kind) -> float:
    if kind.scale == "count":
        return math.exp(min(value, 700.0))
    return 1 / (1 + math.exp(-min(max(value, -700.0), 700.0)))


def _is_compared(name: str) -> bool:
    # Of the reasons for quarantine only the sum is compared: more comparisons would find more by chance.
    return name.partition(".")[0] in _KINDS and not name.startswith("quarantined_share.")


_OTHER: Final = _Kind("volume", "", "count", False)


def _kind(name: str) -> tuple[_Kind, str]:
    """How a figure is compared, and what of it: a type, a column or nothing."""
    head, _, detail = name.partition(".")
    return _KINDS.get(head, _OTHER), detail


def _shown(value: float, kind: _Kind) -> str:
    if kind.scale == "share":
        return f"{value:.1%}" if value >= 0.01 or not value else f"{value:.2g}"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _usual(band: Band, kind: _Kind) -> str:
    low, high = (None if end is None else _shown(end, kind) for end in band)
    if low is None:
        return f"up to {high} is usual"
    return f"{low} to {high} is usual"


def _reasons(tonight: Mapping[str, Any]) -> str:
    """The reasons that most of the faulty rows have."""
    shares = {name.partition(".")[2]: n for name, n in tonight.items() if name.startswith("quarantined_share.") and n}
    first = sorted(shares.items(), key=lambda pair: (-pair[1], pair[0]))[:3]
    return f" ({', '.join(f'{reason} {share:.1%}' for reason, share in first)})" if first else ""
