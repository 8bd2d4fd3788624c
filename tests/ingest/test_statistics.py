"""Statistics of items and users, told again in plain Python from the histories themselves."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ingest_oracle import DAY, HOUR, START, Row, found, run, write_shop

from recsys.ingest.config import IngestConfig
from recsys.ingest.dataset import PARTS
from recsys.ingest.statistics import PRIOR_VIEWS, price_bands

ITEMS: list[Row] = [{"item_id": item, "title": item} for item in ("apple", "pear", "plum", "unsold")]
T1, T2 = (datetime.fromtimestamp(START + day * 86_400, UTC) for day in (10, 20))
WEIGHTS = {"view": 1.0, "cart": 2.5, "purchase": 4.0}


def log(seed: int) -> list[Row]:
    rng = random.Random(seed)
    return [
        {
            "user_id": f"u{rng.randrange(9)}",
            "item_id": rng.choice(["apple", "apple", "pear", "plum"]),
            "event_type": rng.choice(["view", "view", "cart", "purchase"]),
            "timestamp": START + rng.randrange(30 * 24) * 3600,
        }
        for _ in range(150)
    ]


@pytest.mark.parametrize("protocol", ["temporal", "leave_one_out"])
def test_they_count_what_is_known_at_the_end_of_each_part(tmp_path: Path, protocol: Any) -> None:
    config = IngestConfig(protocol=protocol, popularity_days=(0.5, 7), event_weights=WEIGHTS)
    dataset = run(write_shop(tmp_path, log(1), ITEMS), config)
    result, types = found(dataset), dataset.event_types
    last = max(event[2] for history in result.sequences for event in history)
    info = dataset.manifest["info"]
    moments = [info["train_until"] or last + 1, info["valid_until"] or last + 1, last + 1]
    ends = [[*split, len(history)] for split, history in zip(result.splits, result.sequences, strict=True)]
    for number, part in enumerate(PARTS):
        known = [history[: end[number]] for history, end in zip(result.sequences, ends, strict=True)]
        flat = [event for history in known for event in history]
        items = dataset.item_statistics(part).to_pylist()
        assert [row["item_idx"] for row in items] == list(range(4))
        views, purchases = (sum(types[event[1]] == name for event in flat) for name in ("view", "purchase"))
        for row in items:
            own = [event for event in flat if event[0] == row["item_idx"]]
            by_type = Counter(types[event[1]] for event in own)
            assert {name: row[f"n_{name}"] for name in types} == {name: by_type[name] for name in types}
            assert row["popularity"] == pytest.approx(sum(WEIGHTS[types[event[1]]] for event in own))
            for days, name in ((0.5, "popularity_0.5d"), (7, "popularity_7d")):
                recent = [event for event in own if event[2] >= moments[number] - days * DAY]
                assert row[name] == pytest.approx(sum(WEIGHTS[types[event[1]]] for event in recent)), (part, name)
            rate = purchases / views
            expected = (by_type["purchase"] + PRIOR_VIEWS * rate) / (by_type["view"] + PRIOR_VIEWS)
            assert row["conversion"] == pytest.approx(expected, rel=1e-6)
            times = [event[2] for event in own]
            assert (row["first_seen"], row["last_seen"]) == (min(times, default=None), max(times, default=None))
            assert row["price_band"] is None and row["revenue"] == 0
        users = dataset.user_statistics(part).to_pylist()
        assert [row["user_idx"] for row in users] == [user for user, history in enumerate(known) if history]
        for row in users:
            history = known[row["user_idx"]]
            by_type = Counter(types[event[1]] for event in history)
            assert {name: row[f"n_{name}"] for name in types} == {name: by_type[name] for name in types}
            assert row["n_sessions"] == len({event[3] for event in history})
            assert (row["first_seen"], row["last_seen"]) == (history[0][2], history[-1][2])
            span = (history[-1][2] - history[0][2]) / 1e6
            assert row["mean_gap"] == (pytest.approx(span / (len(history) - 1)) if len(history) > 1 else None)


def test_revenue_is_that_of_purchases_known_by_then(tmp_path: Path) -> None:
    rng = random.Random(5)
    rows = [row | {"value": f"{rng.randrange(10_000) / 100}"} for row in log(3)]
    dataset = run(write_shop(tmp_path, rows, ITEMS), IngestConfig(train_until=T1, valid_until=T2))
    for part, until in (("train", T1), ("valid", T2), ("test", datetime.max.replace(tzinfo=UTC))):
        expected: Counter[str] = Counter()
        for row in {tuple(sorted(row.items())) for row in rows}:  # a copy of a row counts once
            each = dict(row)
            if each["event_type"] == "purchase" and each["timestamp"] < until.timestamp():
                expected[each["item_id"]] += round(float(each["value"]) * 100)
        found_cents = [round(value * 100, 6) for value in dataset.item_statistics(part)["revenue"].to_pylist()]
        assert found_cents == [expected[item["item_id"]] for item in ITEMS], part


def test_a_shop_without_views_has_no_conversion(tmp_path: Path) -> None:
    rows = [row | {"event_type": "purchase"} for row in log(2)]
    dataset = run(write_shop(tmp_path, rows, ITEMS), IngestConfig(protocol="leave_one_out"))
    assert dataset.item_statistics("test")["conversion"].null_count == 4


def test_price_bands_are_fifths_within_the_top_category() -> None:
    prices = [*range(10), 500.0, None, 3.0]
    categories = ["Home > Light"] * 5 + ["Home > Sofa"] * 5 + ["Garden"] * 2 + [None]
    items = pa.table({"price": pa.array(prices, pa.float64()), "category": categories})
    assert price_bands(items).to_pylist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, None, 4]


def test_gaps_and_weights_of_events(tmp_path: Path) -> None:
    rows = [
        {"user_id": user, "item_id": "apple", "event_type": "view", "timestamp": START + hour * 3600}
        for user, hours in (("a", (0, 2, 5)), ("b", (1,)), ("c", (0, 4)))
        for hour in hours
    ]
    dataset = run(
        write_shop(tmp_path, rows, ITEMS), IngestConfig(protocol="leave_one_out", event_weights={"cart": 3.0})
    )
    assert (dataset.sequences.gaps / HOUR).tolist() == [0, 2, 3, 0, 0, 4]
    assert dataset.event_weights.tolist() == [1, 3, 1]
