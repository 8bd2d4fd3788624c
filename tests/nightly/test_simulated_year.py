"""The invented shop: the same from the same seed, never at rest, and its faults are where they should be."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.nightly_parts.year import (
    BACKFILL_SPARES,
    FAULTS,
    LOG_DAYS,
    OUTAGE_SHARE,
    PERIOD,
    SALES,
    SECONDS,
    TYPES,
    Day,
    Log,
    Sizes,
    Year,
    events_table,
)

SMALL = Sizes(n_users=400, n_items=200, days=160)


def lived(days: int, seed: int = 0, sizes: Sizes = SMALL) -> tuple[Year, list[Day]]:
    year = Year(sizes, seed=seed, warm_up=10)
    return year, [year.next_day() for _ in range(days)]


@pytest.fixture(scope="module")
def season() -> tuple[Year, list[Day]]:
    """Enough days for all faults and sales of a period."""
    return lived(10 + PERIOD + 20)


def same(one: Day, other: Day) -> bool:
    return all(np.array_equal(getattr(one, each.name), getattr(other, each.name)) for each in fields(Day))


def test_the_same_seed_gives_the_same_log(season: tuple[Year, list[Day]]) -> None:
    year, days = season
    again, others = lived(len(days))
    assert all(same(*pair) for pair in zip(days, others, strict=True))
    for day in (5, 29, 40, 49, 59):
        assert same(year.as_logged(day, days[day]), again.as_logged(day, others[day]))
    assert year.catalogue(30).equals(again.catalogue(30))
    _, different = lived(3, seed=1)
    assert not any(same(*pair) for pair in zip(days, different, strict=False))


def test_a_day_is_in_order_and_nobody_takes_what_is_not_there(season: tuple[Year, list[Day]]) -> None:
    year, days = season
    for number, day in enumerate(days):
        start = int(year.date(number).timestamp()) * 1_000_000
        assert start < day.time.min() and day.time.max() < start + SECONDS * 1_000_000
        assert (np.diff(day.time) >= 0).all()
        assert (year.launched[day.item] <= number).all() and (year.joined[day.user] <= number).all()
        assert len(np.unique(day.user * 10_000 + day.item)) == len(day)
        catalogue = year.catalogue(number)
        log = events_table(year.as_logged(number, day))
        assert set(log["item_id"].to_pylist()) <= set(catalogue["item_id"].to_pylist())
        assert set(log["event_type"].to_pylist()) <= set(TYPES)


def test_items_are_launched_and_fade(season: tuple[Year, list[Day]]) -> None:
    year, days = season
    assert len(year.catalogue(60)) == len(year.catalogue(30)) + 10 * SMALL.launched
    new = (year.launched > 0) & (year.launched < 12)

    def share(span: slice) -> float:
        return float(np.mean(np.isin(np.concatenate([day.item for day in days[span]]), np.flatnonzero(new))))

    assert share(slice(12, 30)) > 1.2 * share(slice(60, 78)) > 0


def test_tastes_drift(season: tuple[Year, list[Day]]) -> None:
    """What a user takes is more like what they took a week ago than like what they took two months ago."""
    year, days = season

    def groups(span: range) -> np.ndarray:
        """[n_users, n_groups] shares of what each user took."""
        user, item = (np.concatenate([getattr(days[day], name) for day in span]) for name in ("user", "item"))
        counts = np.zeros((SMALL.n_users, SMALL.n_groups))
        np.add.at(counts, (user, year.item_kind[item] // SMALL.kinds), 1)
        return counts

    def likeness(one: np.ndarray, other: np.ndarray) -> float:
        both = (one.sum(axis=1) > 3) & (other.sum(axis=1) > 3)
        one, other = (each[both] / np.linalg.norm(each[both], axis=1, keepdims=True) for each in (one, other))
        return float((one * other).sum(axis=1).mean())

    last = groups(range(80, 90))
    assert likeness(last, groups(range(70, 80))) > likeness(last, groups(range(10, 20))) + 0.1
    # Without drift it stays as it is.
    still, others = lived(90, sizes=replace(SMALL, taste_days=1e9, fashion=0.0))
    year, days = still, others
    last = groups(range(80, 90))
    assert likeness(last, groups(range(10, 20))) > likeness(last, groups(range(70, 80))) - 0.05


def test_weekdays_and_sales_have_their_traffic(season: tuple[Year, list[Day]]) -> None:
    year, days = season
    sizes = np.array([len(day) for day in days])
    weekday = np.arange(len(days)) % 7
    plain = np.array([not year.is_sale(day) for day in range(len(days))])
    assert sizes[plain & (weekday == 5)].mean() > 1.1 * sizes[plain & (weekday == 1)].mean()
    sales = [day for day in range(len(days)) if year.is_sale(day)]
    assert [year.night(day) for day in sales] == [*SALES] and year.sales_days()[0] == year.date(sales[0]).date()
    for day in sales:
        assert 1.6 < sizes[day] / sizes[[day - 7, day + 7]].mean() < 2.5


def test_faults_are_where_they_are_said_to_be_and_in_the_log_alone(season: tuple[Year, list[Day]]) -> None:
    year, days = season
    found = {year.night(day): year.fault(day) for day in range(len(days)) if year.fault(day)}
    assert found == {**FAULTS, PERIOD + 20: "outage"}
    for number, day in enumerate(days):
        logged, fault = year.as_logged(number, day), year.fault(number)
        if fault == "outage":
            assert len(logged) == int(OUTAGE_SHARE * len(day)) and logged.time.max() <= np.quantile(day.time, 0.11)
        elif fault == "doubled":
            assert len(logged) == 2 * len(day) and (np.diff(logged.time) >= 0).all()
            keys, counts = np.unique(np.stack([logged.user, logged.item]), axis=1, return_counts=True)
            assert keys.shape[1] == len(day) and (counts == 2).all()
            order = np.lexsort((logged.time, logged.item, logged.user))
            apart = np.diff(logged.time[order])[::2]
            assert apart.min() > 0 and apart.max() < 2_000_000  # what the check of duplicates calls at once
        elif fault == "poisoned":
            assert np.array_equal(logged.user, day.user) and np.array_equal(logged.time, day.time)
            assert (logged.item == day.item).mean() < 0.05
            assert len(np.unique(logged.item)) > len(np.unique(day.item))
        else:
            assert same(logged, day)


def test_the_log_reaches_back_four_weeks_and_a_broken_backfill_is_mended(tmp_path: Path) -> None:
    year = Year(replace(SMALL, n_users=100), warm_up=LOG_DAYS - 40)  # the broken one comes with day 37
    log = Log(tmp_path, year)
    for _ in range(38):
        today = log.next_day()
    assert year.fault(today) == "backfill"

    def broken() -> list[int]:
        found = []
        for day in range(today - LOG_DAYS + 1, today + 1):
            file = tmp_path / "log" / f"{year.date(day):%Y-%m-%d}.parquet"
            if not pq.read_table(file).equals(events_table(year.as_logged(day, log.days[day]))):
                found.append(day)
        return found

    reached = range(today - LOG_DAYS + 1, today - BACKFILL_SPARES)
    assert broken() == [day for day in reached if year.fault(day) != "poisoned"]  # which it was before
    today = log.next_day()
    assert broken() == [] and len(list((tmp_path / "log").iterdir())) == LOG_DAYS
    assert len(pq.read_table(tmp_path / "items.parquet")) == len(year.items(today))
    seen = log.seen(today)
    assert not seen[:, year.launched > today].any()
    assert (seen >= log.taken(today)).all() and seen.sum() > log.taken(today).sum()
