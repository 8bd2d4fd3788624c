"""Each rule of cleaning, through the whole stage, on logs small enough to tell by hand or by a plain loop."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.ingest.config import IngestConfig
from recsys.ingest.dataset import Dataset
from recsys.ingest.ingest import ingest
from recsys.runtime import Runtime

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def event(user: str = "u", item: str = "a", kind: str = "purchase", minutes: float = 0, **more: Any) -> dict[str, Any]:
    return {
        "user_id": user,
        "item_id": item,
        "event_type": kind,
        "timestamp": NOON + timedelta(minutes=minutes),
    } | more


def cleaned(folder: Path, rows: list[dict[str, Any]], **config: Any) -> Dataset:
    """Ingest a log, and check that each row has one fate."""
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "events.parquet")
    pq.write_table(pa.table({"item_id": ["a", "b", "POST", "M"], "title": list("ABPM")}), folder / "items.parquet")
    dataset = ingest(
        IngestConfig.model_validate({"protocol": "leave_one_out"} | config),
        folder / "run" / "dataset",
        data=folder,
        runtime=Runtime(threads=1, progress=False),
        force=True,
    )
    counts = dataset.counts
    assert counts["rows_in"] == len(rows)
    assert len(rows) == counts["kept"] + sum(counts["quarantined"].values()) + sum(counts["merged"].values())
    return dataset


def rejected(dataset: Dataset) -> dict[int, str]:
    rows = pq.read_table(dataset.path / "quarantine.parquet").to_pylist()
    return {row["row"]: row["reason"] for row in rows}


def test_a_user_with_more_rows_in_an_hour_or_a_day_than_allowed_is_a_bot(tmp_path: Path) -> None:
    events = [event("bot", minutes=n) for n in range(5)] + [event("bot", minutes=600)]
    events += [event("human", minutes=n) for n in range(4)]
    busy = [event("busy", minutes=90 * n) for n in range(6)]  # never more than one an hour
    assert rejected(cleaned(tmp_path, events, bot_events_per_hour=4)) == dict.fromkeys(range(6), "bot")
    assert rejected(cleaned(tmp_path, events, bot_events_per_hour=5)) == {}
    found = rejected(cleaned(tmp_path, events + busy, bot_events_per_day=5))
    assert found == dict.fromkeys([*range(6), *range(10, 16)], "bot")


def test_a_bot_loses_no_row_of_a_part_in_which_it_looked_human(tmp_path: Path) -> None:
    day = 24 * 60
    events = [event("bot", minutes=0), event("u", minutes=1)]
    events += [event("bot", minutes=2 * day + n) for n in range(3)] + [event("bot", minutes=4 * day)]
    config = {
        "protocol": "temporal",
        "train_until": NOON + timedelta(days=1),
        "valid_until": NOON + timedelta(days=3),
    }
    found = rejected(cleaned(tmp_path, events, bot_events_per_hour=2, **config))
    assert found == dict.fromkeys(range(2, 6), "bot")


Line = tuple[str, int, int, bool]  # item, minute, pieces, is a cancellation


def standing_purchases(lines: list[Line], *, by_pieces: bool) -> set[int]:
    """Places of the purchases that no cancellation takes back: a stack for each item."""
    gone: set[int] = set()
    stacks: dict[str, list[list[int]]] = {}  # item → [place, pieces left], the last on top
    order = sorted(range(len(lines)), key=lambda n: (lines[n][1], lines[n][3], lines[n][2] if by_pieces else 1, n))
    for place in order:
        item, _, pieces, takes = lines[place]
        left = pieces if by_pieces else 1
        stack = stacks.setdefault(item, [])
        if not takes:
            stack.append([place, left])
            continue
        while left and stack:
            taken = min(left, stack[-1][1])
            left -= taken
            stack[-1][1] -= taken
            if not stack[-1][1]:
                gone.add(stack.pop()[0])
    return {place for place, line in enumerate(lines) if not line[3]} - gone


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lines=st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 8), st.integers(1, 3), st.booleans()), min_size=1, max_size=14
    ),
    by_pieces=st.booleans(),
)
def test_a_cancellation_takes_back_the_last_purchase_that_stands(
    tmp_path_factory: pytest.TempPathFactory, lines: list[Line], by_pieces: bool
) -> None:
    events = [
        # A different note each, so that no row is a copy of another.
        event(item=item, kind="refund" if takes else "purchase", minutes=minute, note=str(place))
        | ({"quantity": -pieces if takes else pieces} if by_pieces else {})
        for place, (item, minute, pieces, takes) in enumerate(lines)
    ]
    events.append(event("other"))  # so that something is left
    dataset = cleaned(tmp_path_factory.mktemp("shop"), events, event_types={"refund": "cancel"}, positive=[])
    found = rejected(dataset)
    assert {place for place, reason in found.items() if reason == "cancellation"} == {
        place for place, line in enumerate(lines) if line[3]
    }
    standing = standing_purchases(lines, by_pieces=by_pieces)
    taken_back = {place for place, reason in found.items() if reason == "cancelled_purchase"}
    # Purchases of one item, moment and number of pieces stand for each other: those of them are compared by number.
    assert sorted(lines[place][:3] for place in taken_back) == sorted(
        lines[place][:3] for place, line in enumerate(lines) if not line[3] and place not in standing
    )


def test_copies_of_a_row_are_one_purchase_and_go_together(tmp_path: Path) -> None:
    events = [event(minutes=0), event(minutes=0), event(kind="refund", minutes=5), event("other")]
    found = rejected(cleaned(tmp_path, events, event_types={"refund": "cancel"}))
    assert found == {0: "cancelled_purchase", 1: "cancelled_purchase", 2: "cancellation"}


def test_a_cancellation_told_by_a_column_needs_no_positive_numbers(tmp_path: Path) -> None:
    events = [
        event(order="536365", quantity=2, price=1.5),
        event(order="C536365", quantity=-2, price=1.5, minutes=9),
        event(order="536366", quantity=-1, price=1.5, minutes=10),
        event(order="536367", quantity=1, price=0.0, minutes=11),
        event(order="536368", quantity=1, price=1.5, minutes=12),
    ]
    config = {"cancelled": {"column": "order", "pattern": "^C"}, "positive": ["quantity", "price"]}
    found = rejected(cleaned(tmp_path, events, **config))
    assert found == {0: "cancelled_purchase", 1: "cancellation", 2: "not_positive_quantity", 3: "not_positive_price"}


def test_a_cancellation_takes_back_nothing_of_an_earlier_part(tmp_path: Path) -> None:
    day = 24 * 60
    events = [event(minutes=0), event(kind="refund", minutes=2 * day), event(minutes=2 * day + 1)]
    config = {
        "protocol": "temporal",
        "train_until": NOON + timedelta(days=1),
        "valid_until": NOON + timedelta(days=3),
    }
    found = rejected(cleaned(tmp_path, events, event_types={"refund": "cancel"}, **config))
    assert found == {1: "cancellation"}


def test_numbers_within_bounds(tmp_path: Path) -> None:
    prices = [0.5, 1.0, 9.0, 9.01, None, float("nan"), float("inf")]
    events = [event(minutes=n, price=price) for n, price in enumerate(prices)]
    found = rejected(cleaned(tmp_path, events, bounds={"price": {"min": 1, "max": 9}}))
    assert found == dict.fromkeys([0, 3, 4, 5, 6], "out_of_bounds_price")


def test_codes_that_are_no_merchandise_and_times_before_the_shop(tmp_path: Path) -> None:
    events = [event(item="POST"), event(item="M"), event(item="a"), event(item="a", minutes=-10), event(item="POSTER")]
    found = rejected(cleaned(tmp_path, events, non_merchandise=["^POST$", "^[A-Z]$"], not_before=NOON))
    assert found == {0: "non_merchandise", 1: "non_merchandise", 3: "too_early", 4: "unknown_item"}


@pytest.mark.parametrize(
    ("written", "config", "utc"),
    [
        ("2026-07-01 12:00:00", {"timezone": "Europe/London"}, "2026-07-01T11:00:00"),
        ("2026-01-01 12:00:00", {"timezone": "Europe/London"}, "2026-01-01T12:00:00"),
        ("2026-07-01T12:00:00Z", {"timezone": "Europe/London"}, "2026-07-01T12:00:00"),
        ("2026-07-01 12:00:00+02:00", {"timezone": "America/New_York"}, "2026-07-01T10:00:00"),
        ("2026-07-01 12:00:00 UTC", {"timezone": "America/New_York"}, "2026-07-01T12:00:00"),
        ("2026-07-01", {"timezone": "America/New_York"}, "2026-07-01T04:00:00"),
        ("1/7/2026 9:05", {"timestamp_format": "%d/%m/%Y %H:%M"}, "2026-07-01T09:05:00"),
        ("1/7/2026 9:05", {"timestamp_format": "%d/%m/%Y %H:%M", "timezone": "Europe/Paris"}, "2026-07-01T07:05:00"),
        ("1782900000", {}, "2026-07-01T10:00:00"),
        ("1782900000123", {}, "2026-07-01T10:00:00.123000"),
        (datetime(2026, 7, 1, 12), {"timezone": "Europe/London"}, "2026-07-01T11:00:00"),
        (NOON, {"timezone": "Europe/London"}, "2026-03-01T12:00:00"),
    ],
)
def test_times_and_their_zones(tmp_path: Path, written: Any, config: dict[str, Any], utc: str) -> None:
    dataset = cleaned(tmp_path, [event() | {"timestamp": written}], **config)
    found = datetime.fromtimestamp(int(dataset.sequences.timestamp[0]) / 1e6, UTC)
    assert found.replace(tzinfo=None).isoformat() == utc


def test_money_is_price_times_quantity_where_no_value_is_said(tmp_path: Path) -> None:
    events = [
        event(price=0.1, quantity=3, value=None),
        event(price=0.1, quantity=3, value=7.25, minutes=1),
        event(price=None, quantity=3, value=None, minutes=2),
        event(kind="view", price=5.0, quantity=1, value=None, minutes=3),
        event(price=0.1, quantity=3, value=7.25, minutes=1, note="a copy but for this"),
    ]
    dataset = cleaned(tmp_path, [row | {"note": row.get("note")} for row in events])
    assert dataset.item_statistics("test")["revenue"].to_pylist() == [0, 0, pytest.approx(0.3 + 7.25 * 2, abs=1e-12), 0]


def test_lines_that_cannot_be_read_are_counted_as_faulty(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "user_id,item_id,event_type,timestamp\n"
        "u,a,view,2026-03-01 12:00:00\n"
        'u,"never closed,view,2026-03-01 12:01:00\n'
        "u,b,view\n"
        "v,b,view,2026-03-01 12:02:00\n"
    )
    dataset = cleaned(tmp_path, [event()] * 4, events="log.csv")
    rows = pq.read_table(dataset.path / "quarantine.parquet").to_pylist()
    assert [(row["row"], row["reason"], row["source_file"]) for row in rows] == [
        (1, "malformed_line", "log.csv"),
        (2, "malformed_line", "log.csv"),
    ]
    assert json.loads(rows[1]["raw"]) == "u,b,view"
    with pytest.raises(InputError, match=r"2 of 4 rows of log\.csv are faulty: malformed_line 2"):
        cleaned(tmp_path, [event()], events="log.csv", max_bad_share=0.49)
