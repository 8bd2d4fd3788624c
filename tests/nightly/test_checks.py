"""The data checks: each planted fault is found, ordinary nights pass, and the figures are those of a plain count."""

from __future__ import annotations

import math
import random
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.ingest.config import IngestConfig
from recsys.ingest.dataset import Dataset
from recsys.ingest.ingest import ingest
from recsys.nightly.checks import Check, ChecksConfig, Finding, bands, check_data, profile
from recsys.runtime import Runtime
from tests.nightly.simulated import Figures, Shop, simulate

CONFIG = ChecksConfig()
ALL: tuple[Check, ...] = get_args(Check)
NIGHTS = simulate(Shop(), 43, seed=5)


def found(tonight: Figures, recent: list[Figures] | None = None, **config: Any) -> dict[str, Finding]:
    """The findings by figure."""
    findings = check_data(tonight, NIGHTS[:-1] if recent is None else recent, ChecksConfig(**config))
    return {finding.figure or "": finding for finding in findings}


def scaled(night: Figures, factor: float) -> Figures:
    names = ("events", "events_per_day", "users", "users_per_day", "rows", "items")
    return night | {name: night[name] * factor for name in names}


def mixed(night: Figures, **shares: float) -> Figures:
    return night | {f"event_share.{name}": share for name, share in shares.items()}


# ------------------------------------------------------------------------------------------------------ ordinary nights


@pytest.mark.parametrize(
    ("shop", "first"),
    [
        (Shop(), 7),
        (Shop(events=800, noise=0.12, mix_noise=0.1), 7),  # few events: sampling is most of the noise
        (Shop(events=2_000_000, noise=0.03, mix_noise=0.02), 7),  # many: hardly any sampling noise
        (Shop(growth=3.0, season=0.8), 7),
        (Shop(rhythm=4.0), 22),  # hardly any purchases at the weekend, which takes three weeks to learn
    ],
)
def test_ordinary_nights_are_rarely_held(shop: Shop, first: int) -> None:
    n, alarms = 0, Counter[str]()
    for seed in range(4):
        nights = simulate(shop, 112, seed)
        for at in range(first, len(nights)):
            findings = check_data(nights[at], nights[:at], CONFIG)
            n += 1
            alarms["any"] += bool(findings)
            alarms.update({finding.check for finding in findings})
    assert alarms["any"] / n < 0.01, alarms


def test_a_single_odd_night_among_the_recent_ones_moves_no_band() -> None:
    odd = [*NIGHTS[:-4], scaled(NIGHTS[-4], 5.0), *NIGHTS[-3:-1]]
    tonight = NIGHTS[-1]
    for name, band in bands(tonight, NIGHTS[:-1], CONFIG).items():
        other = bands(tonight, odd, CONFIG)[name]
        for ours, theirs in zip(band, other, strict=True):
            if ours is not None and theirs is not None:
                assert math.isclose(ours, theirs, rel_tol=0.1, abs_tol=0.01), name


def test_a_weekday_is_judged_by_its_own_kind() -> None:
    shop = Shop(rhythm=4.0, noise=0.03, growth=0, season=0)
    nights = simulate(shop, 43, seed=2)
    usual = {at % 7: nights[at]["events_per_day"] for at in range(36, 43)}
    busy, quiet = max(usual, key=usual.__getitem__), min(usual, key=usual.__getitem__)
    assert usual[busy] > 3 * usual[quiet]
    for at in range(36, 43):
        # The volume of the busiest day is nothing odd then, and much too much for the quietest; and the other way.
        other = usual[quiet] if at % 7 == busy else usual[busy]
        swapped = scaled(nights[at], other / nights[at]["events_per_day"])
        if at % 7 in (busy, quiet):
            assert "events_per_day" in found(swapped, nights[:at])
        assert "events_per_day" not in found(nights[at], nights[:at])


def test_without_history_only_what_is_wrong_on_any_night_is_found() -> None:
    tonight = mixed(scaled(NIGHTS[0], 30), view=0.1, wish=0.9) | {"quarantined_share": 0.4}
    assert not found(tonight, []) and not found(tonight, NIGHTS[:6])
    assert found(tonight, NIGHTS[:7])
    assert set(found(NIGHTS[0] | {"events": 0.0}, [])) == {"events_per_day"}
    assert set(found(NIGHTS[0] | {"hours_since_last_event": 73.0}, [])) == {"hours_since_last_event"}
    assert set(found(NIGHTS[0] | {"hours_since_last_event": -1.5}, [])) == {"hours_since_last_event"}
    assert set(found(NIGHTS[0] | {"quarantined_share": 0.51}, [])) == {"quarantined_share"}
    no_text = {f"null_share.{name}": 1.0 for name in ("title", "category", "description")}
    assert set(found(NIGHTS[0] | no_text, [])) == {"null_share.title"}


# ------------------------------------------------------------------------------------------------------- planted faults

FAULTS: list[tuple[str, Check, Figures]] = [
    ("half the log is lost", "volume", scaled(NIGHTS[-1], 0.5)),
    ("the log is read twice", "volume", scaled(NIGHTS[-1], 2.0)),
    ("half the users are gone", "users", NIGHTS[-1] | {"users_per_day": NIGHTS[-1]["users_per_day"] / 2}),
    ("user ids are written anew", "users", NIGHTS[-1] | {"new_user_share": 0.97}),
    ("the delivery has stopped", "freshness", NIGHTS[-1] | {"hours_since_last_event": 40.0}),
    ("carts are tracked half", "event_mix", mixed(NIGHTS[-1], view=0.905, cart=0.055, purchase=0.04)),
    ("purchases are tracked double", "event_mix", mixed(NIGHTS[-1], view=0.81, cart=0.11, purchase=0.08)),
    ("carts are gone", "table_schema", mixed(NIGHTS[-1], view=0.96, cart=0.0, purchase=0.04)),
    ("wishes are new", "table_schema", mixed(NIGHTS[-1], view=0.8, cart=0.11, purchase=0.04, wish=0.05)),
    ("titles are gone", "table_schema", NIGHTS[-1] | {"null_share.title": 1.0}),
    ("a tenth of the titles is gone", "nulls", NIGHTS[-1] | {"null_share.title": 0.1}),
    ("prices are filled less", "nulls", NIGHTS[-1] | {"null_share.price": NIGHTS[-1]["null_share.price"] + 0.3}),
    ("item ids are written anew", "new_items", NIGHTS[-1] | {"new_item_share": 0.9}),
    ("pages report twice", "duplicates", NIGHTS[-1] | {"repeated_share": 0.3}),
    ("a file came twice", "duplicates", NIGHTS[-1] | {"merged_share": 0.5}),
    ("a third of the rows is broken", "quarantine", NIGHTS[-1] | {"quarantined_share": 0.33}),
]


@pytest.mark.parametrize(("what", "check", "tonight"), FAULTS, ids=[what for what, _, _ in FAULTS])
def test_a_planted_fault_is_found_by_its_check(what: str, check: Check, tonight: Figures) -> None:
    assert not found(NIGHTS[-1])
    findings = [each for each in found(tonight).values() if each.check == check]
    assert findings, what
    for finding in findings:
        assert finding.level == "hold" and finding.message.startswith(f"{check}: ")
        low, high = finding.low, finding.high
        assert (low is not None and finding.value < low) or (high is not None and finding.value > high)
    warned = [each.level for each in found(tonight, **{check: "warn"}).values() if each.check == check]
    assert warned == ["warn"] * len(findings)
    assert check not in {each.check for each in found(tonight, **{check: "off"}).values()}


def test_gross_faults_are_found_in_nearly_all_shops() -> None:
    gross: dict[Check, Figures] = {
        "users": {"new_user_share": 0.97},
        "event_mix": {"event_share.view": 0.6, "event_share.cart": 0.36},
        "table_schema": {"event_share.cart": 0.0},
        "nulls": {"null_share.title": 0.1},
        "new_items": {"new_item_share": 0.9},
        "duplicates": {"repeated_share": 0.3},
        "quarantine": {"quarantined_share": 0.45},
    }
    missed = Counter[str]()
    for seed in range(25):
        nights = simulate(Shop(), 30, seed)
        for check, change in gross.items():
            missed[check] += check not in {each.check for each in found(nights[-1] | change, nights[:-1]).values()}
        for factor in (0.25, 4.0):
            missed["volume"] += "events_per_day" not in found(scaled(nights[-1], factor), nights[:-1])
    assert max(missed.values()) <= 1, missed


def test_the_level_is_the_configs_and_off_is_off() -> None:
    tonight = scaled(NIGHTS[-1], 0.3) | {"quarantined_share": 0.9, "hours_since_last_event": 100.0}
    assert {each.level for each in found(tonight).values()} == {"hold"}
    assert {each.level for each in found(tonight, **dict.fromkeys(ALL, "warn")).values()} == {"warn"}
    assert not found(tonight, **dict.fromkeys(ALL, "off"))
    assert set(ALL) == set(ChecksConfig.model_fields) & set(ALL)


def test_on_days_known_to_be_special_only_the_plain_faults_hold() -> None:
    tonight = scaled(NIGHTS[-1], 4.0)
    day = datetime.fromtimestamp(tonight["moment"], UTC).date() - timedelta(days=1)  # at two in the morning
    assert {each.level for each in found(tonight).values()} == {"hold"}
    assert {each.level for each in found(tonight, special_days=[day]).values()} == {"warn"}
    assert {each.level for each in found(tonight, special_days=[day - timedelta(days=1)]).values()} == {"hold"}
    gone = found(mixed(tonight, cart=0.0), special_days=[day])
    assert gone["event_share.cart"].level == "hold" and gone["events_per_day"].level == "warn"


def test_half_a_day_is_no_outage() -> None:
    tonight = scaled(NIGHTS[-1], 0.5)
    per_day = {name: NIGHTS[-1][name] for name in ("events_per_day", "users_per_day")}
    assert not found(tonight | per_day | {"days": 0.5})


def test_nights_are_compared_with_those_of_their_length() -> None:
    """After a long weekend off more of the users are new, whatever the seven nights before were like."""
    long = [night | {"days": 3.0, "new_user_share": 0.6 + 0.001 * at} for at, night in enumerate(NIGHTS[:8])]
    tonight = NIGHTS[-1] | {"new_user_share": 0.62}
    recent = [*long, *NIGHTS[8:-1]]
    assert "new_user_share" in found(tonight, recent)
    assert not found(tonight | {"days": 3.0}, recent)


def test_a_few_events_where_there_were_none_are_chance() -> None:
    recent = [night | {"event_share.wish": 0.0} for night in NIGHTS[:-1]]
    n_events = NIGHTS[-1]["events"]
    assert not found(NIGHTS[-1] | {"event_share.wish": 4 / n_events}, recent)
    assert set(found(NIGHTS[-1] | {"event_share.wish": 12 / n_events}, recent)) == {"event_share.wish"}


def test_the_message_tells_the_figure_the_usual_and_why() -> None:
    tonight = NIGHTS[-1] | {"quarantined_share": 0.2, "quarantined_share.unknown_item": 0.15}
    tonight |= {"quarantined_share.invalid_timestamp": 0.05}
    message = found(tonight)["quarantined_share"].message
    assert message.startswith("quarantine: 20.0% of the rows are faulty; up to ")
    assert message.endswith("(unknown_item 15.0%, invalid_timestamp 5.0%)")


shares, counts = st.sampled_from([0.0, 1.0]) | st.floats(0, 1), st.sampled_from([0.0, 1.0]) | st.floats(0, 1e12)
any_figures = st.fixed_dictionaries(
    {},
    optional={name: shares if "share" in name else counts for name in [*NIGHTS[0], "event_share.wish", "log.kept"]}
    | {"days": st.floats(1 / 24, 400), "moment": st.floats(0, 4e9), "hours_since_last_event": st.floats(-1e6, 1e6)},
)


@settings(max_examples=100, deadline=None)
@given(tonight=any_figures, recent=st.lists(any_figures, max_size=10))
def test_whatever_the_figures_and_whichever_are_missing_a_finding_is_outside_its_band(
    tonight: Figures, recent: list[Figures]
) -> None:
    for finding in check_data(tonight, recent * 3, CONFIG):
        below = finding.low is not None and finding.value < finding.low
        above = finding.high is not None and finding.value > finding.high
        assert finding.check in ALL and (below or above or finding.value == finding.high == 1.0)


# ------------------------------------------------------------------------------------------------- figures of a dataset

START = datetime(2026, 3, 2, tzinfo=UTC)
DAY = timedelta(days=1)
Row = dict[str, Any]
ITEMS: list[Row] = [
    {"item_id": f"i{place}", "title": f"Item {place}", "category": None if place % 4 == 0 else "c", "brand": None}
    for place in range(12)
]


def log_of(days: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [
        {
            "user_id": f"u{rng.randrange(3 + day)}",
            "item_id": f"i{rng.randrange(min(5 + day, 12))}",
            "event_type": rng.choices(["view", "cart", "purchase"], [6, 2, 1])[0],
            "timestamp": START + day * DAY + timedelta(minutes=rng.randrange(1440)),
        }
        for day in range(days)
        for _ in range(30)
    ]


def ingested(folder: Path, rows: list[Row], as_of: datetime) -> Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "events.parquet")
    items = pa.Table.from_pylist(ITEMS).set_column(3, "brand", pa.nulls(len(ITEMS), pa.string()))
    pq.write_table(items, folder / "items.parquet")
    config = IngestConfig(as_of=as_of, test_days=2, valid_days=2, max_bad_share=1)
    runtime = Runtime(threads=1, progress=False)
    return ingest(config, folder / "run" / "dataset", data=folder, runtime=runtime, force=True)


@pytest.mark.parametrize("days", [1, 3, 9])
def test_the_figures_are_those_of_a_plain_count(tmp_path: Path, days: int) -> None:
    """Of one day in the test part, and of more days than it has."""
    rows = [row for row in log_of(10) if row["timestamp"] < START + 9.5 * DAY]
    # A midnight belongs to the day that ends with it.
    edges = [moment for day in range(1, 10) for moment in (START + day * DAY, START + day * DAY - timedelta(hours=1))]
    rows += [{"user_id": "edge", "item_id": "i0", "event_type": "view", "timestamp": moment} for moment in edges]
    until = START + 10 * DAY
    since = until - days * DAY
    dataset = ingested(tmp_path, rows, until)
    kept = list({tuple(row.values()): row for row in rows}.values())
    new = [row for row in kept if row["timestamp"] > since]
    seen = {name: {row[name] for row in kept if row["timestamp"] <= since} for name in ("user_id", "item_id")}
    figures = profile(dataset, since=since)
    assert figures == profile(dataset, since=since, now=until)

    types = Counter(row["event_type"] for row in new)
    window = Counter((row["user_id"], math.ceil((row["timestamp"] - since) / DAY)) for row in new)
    users, items = {row["user_id"] for row in new}, {row["item_id"] for row in new}
    last = max(row["timestamp"] for row in kept)
    expected = {
        "moment": until.timestamp(),
        "days": float(days),
        "events": len(new),
        "events_per_day": len(new) / days,
        "users": len(users),
        "users_per_day": len(window) / days,
        "items": len(items),
        "new_user_share": len(users - seen["user_id"]) / len(users),
        "new_item_share": len(items - seen["item_id"]) / len(items),
        "hours_since_last_event": (until - last) / timedelta(hours=1),
        "catalogue": len(ITEMS),
        "null_share.title": 0.0,
        "null_share.category": 0.25,
        "null_share.brand": 1.0,
    } | {f"event_share.{name}": types[name] / len(new) for name in ("view", "cart", "purchase")}
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value), name


def test_repeats_are_those_of_one_user_item_and_type_within_two_seconds(tmp_path: Path) -> None:
    moment = START + 9 * DAY
    base = {"user_id": "u1", "item_id": "i1", "event_type": "view", "timestamp": moment}
    changes: list[Row] = [
        {},
        {"timestamp": moment + timedelta(seconds=2)},  # a repeat
        {"timestamp": moment + timedelta(seconds=3)},  # and one of that
        {"timestamp": moment + timedelta(seconds=5.001)},
        {"user_id": "u2"},
        {"item_id": "i2"},
        {"event_type": "cart"},
        {"user_id": "u3", "timestamp": START},
    ]
    figures = profile(ingested(tmp_path, [base | change for change in changes], START + 10 * DAY), since=None)
    assert figures["repeated_share"] == pytest.approx(2 / 8)


def test_rejected_and_merged_rows_are_those_since_the_night_before(tmp_path: Path) -> None:
    rows = log_of(9)
    rows = list({tuple(row.values()): row for row in rows}.values())
    broken = [row | {"item_id": "ghost"} for row in rows[:40]]
    first = profile(ingested(tmp_path / "first", [*rows, *broken], START + 9 * DAY), since=START + 8 * DAY)
    assert first["quarantined_share"] == pytest.approx(40 / (len(rows) + 40))

    new = [row | {"timestamp": row["timestamp"] + 9 * DAY} for row in rows if row["timestamp"] < START + DAY]
    ghosts = [row | {"item_id": "ghost"} for row in new[:6]]
    dataset = ingested(tmp_path / "second", [*rows, *broken, *new, *ghosts, *new[:5]], START + 10 * DAY)
    second = profile(dataset, since=START + 9 * DAY, previous=first)
    n_rows = len(new) + 6 + 5
    assert second["rows"] == n_rows
    assert second["quarantined_share"] == pytest.approx(6 / n_rows)
    assert second["quarantined_share.unknown_item"] == pytest.approx(6 / n_rows)
    assert second["merged_share"] == pytest.approx(5 / n_rows)

    # The log's first three days are gone, and nothing else: their faulty rows are not counted as negative ones.
    left = [row for row in [*rows, *broken] if row["timestamp"] >= START + 3 * DAY]
    moved = profile(
        ingested(tmp_path / "third", [*left, *new], START + 10 * DAY), since=START + 9 * DAY, previous=first
    )
    assert moved["quarantined_share"] < 0.2 and moved["rows"] == pytest.approx(len(new), abs=20)


def test_a_log_without_anything_new_has_no_shares_and_is_held(tmp_path: Path) -> None:
    figures = profile(ingested(tmp_path, log_of(6), START + 7 * DAY), since=START + 6 * DAY)
    assert figures["events"] == 0 and not [name for name in figures if name.startswith("event_share")]
    assert all(map(math.isfinite, figures.values()))
    assert {finding.check for finding in check_data(figures, [], CONFIG)} == {"volume"}


def test_special_days_are_read_from_a_config_as_dates() -> None:
    config = ChecksConfig.model_validate({"special_days": ["2026-11-27"]})
    assert config.special_days == (date(2026, 11, 27),)
    assert ChecksConfig.model_validate(config.model_dump(mode="json")) == config
