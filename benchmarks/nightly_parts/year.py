"""A shop that is invented day by day: what its users really do, and the log of it, in which things go wrong.

Items belong to kinds, kinds to groups. A user likes a few groups and in each of them is at one kind, which now and then
gives way to the next one; a session stays in a group. So what a user did, and when, tells what comes, and what was
taken together tells which items are of a kind. It does not stay so: a user's tastes change one by one, whole groups
come in and out of fashion, items are launched every few days and fade as they age. Weekdays have a rhythm, and on sales
days twice as many come.

A fault is in the log alone: users do what they would have done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Fault = Literal["outage", "doubled", "poisoned", "backfill"]

DAY_ZERO: Final = datetime(2025, 1, 6, tzinfo=UTC)  # a Monday
DAY: Final = timedelta(days=1)
SECONDS: Final = 86_400
# Monday to Sunday.
RHYTHM: Final = np.array([1.0, 0.95, 0.95, 1.0, 1.1, 1.25, 1.2])
TYPES: Final = ("view", "cart", "purchase")
# Faults and sales come again after so many nights; the first two weeks are quiet, so that a check can learn from them.
PERIOD: Final = 60
FAULTS: Final[Mapping[int, Fault]] = {20: "outage", 30: "doubled", 31: "doubled", 40: "poisoned", 50: "backfill"}
SALES: Final = (25, 46)
# How much of a day the log of an outage has, and for how many days back a broken backfill leaves the log alone.
OUTAGE_SHARE: Final = 0.1
BACKFILL_SPARES: Final = 5
# How far back the log reaches.
LOG_DAYS: Final = 28


@dataclass(frozen=True)
class Sizes:
    """How large the shop is, and how fast it changes."""

    n_users: int = 1500
    n_items: int = 560  # on the first day
    n_groups: int = 12
    kinds: int = 4  # of each group
    likes: int = 3  # groups that a user likes
    sessions: float = 0.3  # of a user and day
    session_events: float = 4.0
    joining: float = 0.2  # share of the users that come later, evenly over `days`
    launch_every: int = 3  # days
    launched: int = 3  # items at a time
    fading_days: float = 60.0  # until an item draws a third of what it drew
    taste_days: float = 25.0  # until a user has given up a group
    moving_on: float = 0.6  # chance after a session that the user's next one in the group is about the next kind
    fashion: float = 0.05  # a group's daily step, on the logarithm
    days: int = 425


@dataclass(frozen=True)
class Day:
    """What users really did on a day, in the order of time.

    Attributes:
        user: [n] numbers of users.
        item: [n] numbers of items.
        kind: [n] places in `TYPES`.
        time: [n] microseconds since 1970, UTC.
        session: [n] numbers of sessions.
    """

    user: Ints
    item: Ints
    kind: Ints
    time: Ints
    session: Ints

    def __len__(self) -> int:
        return len(self.user)


class Year:
    """The shop, which moves on a day with every call of `next_day`.

    Args:
        sizes: of the shop.
        seed: decides everything.
        warm_up: days before the first night, in which nothing goes wrong.
    """

    def __init__(self, sizes: Sizes = Sizes(), *, seed: int = 0, warm_up: int = 28) -> None:  # frozen
        self.sizes, self.seed, self.warm_up = sizes, seed, warm_up
        rng = np.random.default_rng([seed, 0])
        total = sizes.n_items + (sizes.days // sizes.launch_every + 1) * sizes.launched
        self.item_kind = rng.permutation(np.arange(total) % (sizes.n_groups * sizes.kinds))
        self.draw = rng.lognormal(0.0, 0.8, total)
        launches = np.repeat(np.arange(1, total), sizes.launched)[: total - sizes.n_items] * sizes.launch_every
        # What was there on the first day had been launched over the months before.
        self.launched = np.concatenate([-rng.integers(1, 200, sizes.n_items), launches])
        self.price = np.round(rng.lognormal(3.0, 0.7, total), 2)
        self.joined = np.where(rng.random(sizes.n_users) < sizes.joining, rng.integers(0, sizes.days, sizes.n_users), 0)
        self.activity = sizes.sessions * rng.gamma(1.5, 1 / 1.5, sizes.n_users)
        self.tastes = np.argsort(rng.random((sizes.n_users, sizes.n_groups)), axis=1)[:, : sizes.likes]
        self.share = rng.dirichlet(np.full(sizes.likes, 1.5), sizes.n_users)
        self.favourite = rng.integers(0, sizes.kinds, (sizes.n_users, sizes.n_groups))
        self.fashion = rng.normal(0.0, 0.4, sizes.n_groups)
        self.today = -1

    def date(self, day: int) -> datetime:
        """The day's midnight (UTC) at its begin."""
        return DAY_ZERO + day * DAY

    def night(self, day: int) -> int:
        """The number of the night at the end of a day; the first is 0."""
        return day - self.warm_up + 1

    def fault(self, day: int) -> Fault | None:
        """What is wrong with the log that the night at the end of this day reads."""
        night = self.night(day)
        return FAULTS.get(night % PERIOD) if night > 0 else None

    def is_sale(self, day: int) -> bool:
        """Whether twice as many come."""
        night = self.night(day)
        return night > 0 and night % PERIOD in SALES

    def sales_days(self) -> list[date]:
        """All of them, as a shop's calendar has them."""
        return [self.date(day).date() for day in range(self.sizes.days) if self.is_sale(day)]

    def items(self, day: int) -> Ints:
        """The numbers of the items in the catalogue at the end of a day."""
        return np.flatnonzero(self.launched <= day)

    def catalogue(self, day: int) -> pa.Table:
        """The catalogue at the end of a day."""
        items = self.items(day)
        kind = self.item_kind[items]
        groups, kinds = kind // self.sizes.kinds, kind % self.sizes.kinds
        paths = [f"Group {group} > Kind {group}-{kind}" for group, kind in zip(groups, kinds, strict=True)]
        return pa.table(
            {
                "item_id": [f"I{item:05}" for item in items],
                "title": [
                    f"{path.rpartition(' > ')[2]} number {item}" for path, item in zip(paths, items, strict=True)
                ],
                "category": paths,
                "price": self.price[items],
            }
        )

    def next_day(self) -> Day:
        """Let a day pass."""
        self.today += 1
        day, sizes = self.today, self.sizes
        rng = np.random.default_rng([self.seed, 1, day])
        self._drift(rng)
        traffic = RHYTHM[day % 7] * (2.0 if self.is_sale(day) else 1.0)
        here = np.flatnonzero(self.joined <= day)
        visits = rng.poisson(self.activity[here] * traffic)
        # Who joins comes at once.
        visits[self.joined[here] == day] += day > 0
        visitor = np.repeat(here, visits)
        session = np.repeat(np.arange(len(visitor)), 1 + rng.poisson(sizes.session_events - 1, len(visitor)))
        item = self._items(rng, visitor, session)
        begin = rng.uniform(8 * 3600, 23 * 3600, len(visitor))
        place = np.arange(len(session)) - np.searchsorted(session, session)
        seconds = begin[session] + place * rng.uniform(15, 90, len(session))
        kind = rng.choice(3, len(session), p=[0.82, 0.12, 0.06])
        start = int((self.date(day) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
        time = ((start + seconds) * 1e6).astype(np.int64)
        user = visitor[session]
        # Nobody looks at the same thing twice on a day.
        _, first = np.unique(user * len(self.launched) + item, return_index=True)
        order = first[np.argsort(time[first], kind="stable")]
        return Day(user[order], item[order], kind[order], time[order], day * 1_000_000 + session[order])

    def as_logged(self, day: int, truth: Day) -> Day:
        """What the log has of a day; the same but for the faults of that day."""
        rng = np.random.default_rng([self.seed, 2, day])
        match self.fault(day):
            case "outage":
                rows = np.arange(int(len(truth) * OUTAGE_SHARE))
            case "doubled":
                rows = np.repeat(np.arange(len(truth)), 2)
            case "poisoned":
                return self.with_any_items(day, truth)
            case _:
                return truth
        user, item, kind, time, session = (
            column[rows] for column in (truth.user, truth.item, truth.kind, truth.time, truth.session)
        )
        if len(rows) > len(truth):  # it is sent once more before the page is left
            time[1::2] += rng.integers(50_000, 1_500_000, len(truth))
            order = np.argsort(time, kind="stable")
            user, item, kind, time, session = (column[order] for column in (user, item, kind, time, session))
        return Day(user, item, kind, time, session)

    def with_any_items(self, day: int, truth: Day) -> Day:
        """A day after a broken join: every event is of some item of the catalogue."""
        rng = np.random.default_rng([self.seed, 3, day])
        return Day(truth.user, rng.choice(self.items(day), len(truth)), truth.kind, truth.time, truth.session)

    def _drift(self, rng: np.random.Generator) -> None:
        sizes = self.sizes
        self.fashion = 0.99 * self.fashion + sizes.fashion * rng.normal(size=sizes.n_groups)
        changing = np.flatnonzero(rng.random(sizes.n_users) < sizes.likes / sizes.taste_days)
        others = rng.random((len(changing), sizes.n_groups))
        np.put_along_axis(others, self.tastes[changing], -1.0, axis=1)
        self.tastes[changing, rng.integers(0, sizes.likes, len(changing))] = others.argmax(axis=1)

    def _items(self, rng: np.random.Generator, visitor: Ints, session: Ints) -> Ints:
        """An item for every event: the session's group, its kind, and one of the kind by how much it draws."""
        sizes, n = self.sizes, len(session)
        taste = self.share[visitor] * np.exp(self.fashion)[self.tastes[visitor]]
        chosen = (rng.random(len(visitor))[:, None] * taste.sum(axis=1, keepdims=True) > taste.cumsum(axis=1)).sum(
            axis=1
        )
        group = self.tastes[visitor, np.minimum(chosen, sizes.likes - 1)]
        own = self.favourite[visitor, group]
        moved = rng.random(len(visitor)) < sizes.moving_on
        self.favourite[visitor[moved], group[moved]] = (own[moved] + 1) % sizes.kinds
        kind = np.where(rng.random(n) < 0.75, own[session], rng.integers(0, sizes.kinds, n))
        wanted = group[session] * sizes.kinds + kind
        age = self.today - self.launched
        weight = np.where(age >= 0, self.draw * np.exp(-age / sizes.fading_days), 0.0)
        # Items in the order of their kinds; a kind's share of [0, total) is cut into its items'.
        order = np.argsort(self.item_kind, kind="stable")
        ends = weight[order].cumsum()
        bounds = np.searchsorted(self.item_kind[order], np.arange(sizes.n_groups * sizes.kinds + 1))
        starts = np.append(0.0, ends)[bounds]
        point = starts[wanted] + rng.random(n) * (starts[wanted + 1] - starts[wanted])
        return order[np.minimum(np.searchsorted(ends, point, side="right"), len(order) - 1)]


def events_table(day: Day) -> pa.Table:
    """A day as a file of a log."""
    return pa.table(
        {
            "user_id": [f"U{user:05}" for user in day.user],
            "item_id": [f"I{item:05}" for item in day.item],
            "event_type": np.array(TYPES)[day.kind],
            "timestamp": pa.array(day.time, pa.timestamp("us", tz="UTC")),
            "session_id": pa.array(day.session),
        }
    )


class Log:
    """The shop's files as the nights find them, and what really happened.

    Args:
        folder: of the shop.
        year: the shop.
    """

    def __init__(self, folder: Path, year: Year) -> None:
        self.folder, self.year, self.days = folder, year, list[Day]()
        (folder / "log").mkdir(parents=True)

    def next_day(self) -> int:
        """Let a day pass and write it, as broken as it is; returns its number."""
        self.days.append(self.year.next_day())
        day = len(self.days) - 1
        if day and self.year.fault(day - 1) == "backfill":
            self._write_again(day, broken=False)
        self._write(day, self.year.as_logged(day, self.days[day]))
        self._file(day - LOG_DAYS).unlink(missing_ok=True)
        if self.year.fault(day) == "backfill":
            self._write_again(day, broken=True)
        pq.write_table(self.year.catalogue(day), self.folder / "items.parquet")
        return day

    def seen(self, day: int) -> npt.NDArray[np.bool_]:
        """[n_users, n_items] whether a user has really taken an item, as far back from a day's end as the log goes."""
        return self._taken(range(max(day - LOG_DAYS + 1, 0), day + 1))

    def taken(self, day: int) -> npt.NDArray[np.bool_]:
        """[n_users, n_items] whether a user really takes an item on a day."""
        return self._taken([day])

    def _taken(self, days: Iterable[int]) -> npt.NDArray[np.bool_]:
        found = np.zeros((self.year.sizes.n_users, len(self.year.launched)), dtype=bool)
        for day in days:
            found[self.days[day].user, self.days[day].item] = True
        return found

    def _write_again(self, today: int, *, broken: bool) -> None:
        for day in range(max(today - LOG_DAYS + 1, 0), today - BACKFILL_SPARES + (not broken)):
            logged = self.year.as_logged(day, self.days[day])
            self._write(day, self.year.with_any_items(day, logged) if broken else logged)

    def _write(self, day: int, events: Day) -> None:
        pq.write_table(events_table(events), self._file(day))

    def _file(self, day: int) -> Path:
        return self.folder / "log" / f"{self.year.date(day):%Y-%m-%d}.parquet"
