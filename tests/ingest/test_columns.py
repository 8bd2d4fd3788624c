"""Times, ids and names as shops write them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.ingest.config import EventColumns, IngestConfig
from recsys.ingest.dataset import Dataset
from recsys.ingest.ingest import ingest
from recsys.runtime import Runtime

MOMENTS = [datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC), datetime(2011, 12, 9, 0, 0, tzinfo=UTC)]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROS = [(moment - EPOCH) // timedelta(microseconds=1) for moment in MOMENTS]


def ingest_columns(folder: Path, config: IngestConfig, n: int, **columns: Any) -> Dataset:
    """A log of n purchases with these columns in place of the plain ones."""
    folder.mkdir(exist_ok=True)
    table = {"user_id": ["u"] * n, "item_id": ["i"] * n, "event_type": ["purchase"] * n, "timestamp": range(1, n + 1)}
    pq.write_table(pa.table(table | columns), folder / "events.parquet")
    pq.write_table(pa.table({"item_id": ["i", "17850"], "title": ["Item", "Number"]}), folder / "items.parquet")
    config = config.model_copy(update={"protocol": "leave_one_out"})
    return ingest(config, folder / "run" / "dataset", data=folder, runtime=Runtime(threads=1), force=True)


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        (pa.array([micros // 10**6 for micros in MICROS]), "auto"),
        (pa.array([micros // 10**3 for micros in MICROS]), "auto"),
        (pa.array(MICROS), "auto"),
        (pa.array([micros * 1000 + 999 for micros in MICROS]), "auto"),
        (pa.array([micros // 10**6 for micros in MICROS], pa.uint32()), "s"),
        (pa.array([micros // 10**6 for micros in MICROS], pa.uint64()), "auto"),
        (pa.array([micros / 10**6 for micros in MICROS], pa.float64()), "auto"),
        (pa.array([micros / 10**3 for micros in MICROS], pa.float64()), "ms"),
        (pa.array(MICROS, pa.timestamp("us")), "auto"),
        (pa.array(MICROS, pa.timestamp("us", tz="UTC")), "auto"),
        (pa.array(MICROS, pa.timestamp("us", tz="America/New_York")), "auto"),
        (pa.array([micros // 10**3 for micros in MICROS], pa.timestamp("ms", tz="UTC")), "auto"),
        (pa.array([micros * 1000 for micros in MICROS], pa.timestamp("ns")), "auto"),
        (pa.array([moment.isoformat() for moment in MOMENTS]), "auto"),
        (pa.array([moment.strftime("%Y-%m-%d %H:%M:%S") for moment in MOMENTS]), "auto"),
        (pa.array([moment.astimezone(timezone(timedelta(hours=5))).isoformat() for moment in MOMENTS]), "auto"),
        (pa.array([moment.strftime("%Y-%m-%dT%H:%M:%SZ") for moment in MOMENTS], pa.large_string()), "auto"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else value,
)
def test_times_of_any_type_are_the_same_moments(tmp_path: Path, column: pa.Array, unit: Any) -> None:
    dataset = ingest_columns(tmp_path, IngestConfig(timestamp_unit=unit), 2, timestamp=column)
    assert dataset.sequences.timestamp.tolist() == sorted(MICROS)


def test_dates_are_midnights_in_utc(tmp_path: Path) -> None:
    days = pa.array([date(2026, 3, 1), date(2026, 3, 2)])
    dataset = ingest_columns(tmp_path, IngestConfig(), 2, timestamp=days)
    midnight = (datetime(2026, 3, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
    assert dataset.sequences.timestamp.tolist() == [midnight, midnight + 86_400 * 10**6]


def test_nonsense_numbers_neither_win_the_vote_for_a_unit_nor_stop_the_run(tmp_path: Path) -> None:
    seconds = [micros // 10**6 for micros in MICROS]
    dataset = ingest_columns(tmp_path, IngestConfig(), 6, timestamp=[*seconds, 2**63 - 1, -(2**63), 10**17, None])
    assert dataset.manifest["info"]["timestamp_unit"] == "s"
    assert dataset.sequences.timestamp.tolist() == sorted(MICROS)
    assert dataset.counts["quarantined"] == {"invalid_timestamp": 3, "missing_timestamp": 1}


def test_times_that_cannot_be_read_are_put_aside(tmp_path: Path) -> None:
    texts = ["2026-03-01T12:30:15Z", "yesterday", "", "2026-13-01", None]
    dataset = ingest_columns(tmp_path, IngestConfig(), 5, timestamp=texts)
    assert dataset.counts["quarantined"] == {"invalid_timestamp": 2, "missing_timestamp": 2}
    floats = [1.7e9, float("nan"), float("inf"), -float("inf"), None]
    dataset = ingest_columns(tmp_path, IngestConfig(), 5, timestamp=floats)
    assert dataset.counts["quarantined"] == {"invalid_timestamp": 3, "missing_timestamp": 1}


def test_ids_of_any_type_are_text(tmp_path: Path) -> None:
    numbers = pa.array([17850, 17850, None, 9])
    as_pandas_has_them = pa.array([17850.0, 17850.0, float("nan"), 9.0])
    for column in (numbers, as_pandas_has_them, numbers.cast(pa.string())):
        dataset = ingest_columns(
            tmp_path, IngestConfig(), 4, user_id=column, item_id=pa.array([17850.0, 17850.0, 17850.0, None])
        )
        assert dataset.users["user_id"].to_pylist() == ["17850"]
        assert dataset.sequences.item_idx.tolist() == [0, 0]
        assert dataset.counts["quarantined"] == {"missing_item_id": 1, "missing_user_id": 1}


def test_a_shop_s_own_names_are_mapped(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    pq.write_table(
        pa.table({"CustomerID": [1], "StockCode": ["i"], "Kind": ["Sale"], "InvoiceDate": ["2011-12-09 12:50"]}),
        tmp_path / "log.parquet",
    )
    pq.write_table(
        pa.table({"sku": ["i"], "Description": [" A lamp "], "dept": ["home/light"]}), tmp_path / "cat.parquet"
    )
    config = IngestConfig.model_validate(
        {
            "events": "log.parquet",
            "items": "cat.parquet",
            "protocol": "leave_one_out",
            "columns": {
                "user_id": "CustomerID",
                "item_id": "StockCode",
                "event_type": "Kind",
                "timestamp": "InvoiceDate",
            },
            "item_columns": {"item_id": "sku", "title": "Description", "category": "dept"},
            "category_separator": "/",
            "event_types": {"Sale": "purchase"},
        }
    )
    dataset = ingest(config, tmp_path / "run" / "dataset", data=tmp_path, runtime=Runtime(threads=1))
    assert dataset.items.select(["title", "category"]).to_pylist() == [{"title": "A lamp", "category": "home > light"}]
    assert dataset.sequences.event_type.tolist() == [2]


def test_a_column_named_position_is_not_an_order_unless_the_config_says_so() -> None:
    assert EventColumns().position == "" and EventColumns().session_id == "session_id"
