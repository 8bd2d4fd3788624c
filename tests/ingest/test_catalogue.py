"""The catalogue: titles, copies, what is no merchandise, and every column's type."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.ingest.config import IngestConfig
from recsys.ingest.dataset import Dataset
from recsys.ingest.ingest import ingest
from recsys.runtime import Runtime


def ingest_catalogue(folder: Path, items: pa.Table, **config: Any) -> Dataset:
    """Ingest this catalogue with a log of one event, on the item "a"."""
    event = {"user_id": ["u"], "item_id": ["a"], "event_type": ["view"], "timestamp": [1_700_000_000]}
    pq.write_table(pa.table(event), folder / "events.parquet")
    pq.write_table(items, folder / "items.parquet")
    return ingest(
        IngestConfig(protocol="leave_one_out", **config),
        folder / "run" / "dataset",
        data=folder,
        runtime=Runtime(threads=1),
        force=True,
    )


def test_an_item_without_a_title_is_called_by_what_is_known(tmp_path: Path) -> None:
    table = pa.table(
        {
            "item_id": ["a", "b", "c", "d", "e"],
            "title": ["  A lamp", None, "", " ", None],
            "brand": ["Lux", "Lux", "Lux", None, " "],
            "category": ["Home > Light", "Home > Light", None, "Home", ""],
        }
    )
    dataset = ingest_catalogue(tmp_path, table)
    assert dataset.items["title"].to_pylist() == ["A lamp", "Lux Light", "Lux", "Home", "e"]
    assert dataset.items["brand"].to_pylist() == ["Lux", "Lux", "Lux", None, None]
    assert dataset.counts["catalogue"]["untitled"] == 4


def test_rows_of_one_item_are_merged_whatever_their_order(tmp_path: Path) -> None:
    rows = [
        {"item_id": "b", "title": "Second", "brand": "x"},
        {"item_id": "a", "title": None, "brand": "A"},
        {"item_id": "a", "title": "Named", "brand": "z"},
        {"item_id": "a", "title": "Named", "brand": "y"},
        {"item_id": "a", "title": "Named", "brand": "y"},
        {"item_id": None, "title": "No id", "brand": "y"},
        {"item_id": "", "title": "No id", "brand": "y"},
    ]
    for order in (rows, rows[::-1]):
        dataset = ingest_catalogue(tmp_path, pa.Table.from_pylist(order))
        assert dataset.items.select(["item_idx", "item_id", "title", "brand"]).to_pylist() == [
            {"item_idx": 0, "item_id": "a", "title": "Named", "brand": "y"},
            {"item_idx": 1, "item_id": "b", "title": "Second", "brand": "x"},
        ]
        assert dataset.counts["catalogue"] == {
            "rows_in": 7, "missing_item_id": 2, "merged": 3, "non_merchandise": 0, "untitled": 0,
        }  # fmt: skip


def test_what_is_no_merchandise_is_not_numbered(tmp_path: Path) -> None:
    table = pa.table({"item_id": ["_fee", "a", "b"], "title": ["Fee", "A", "B"], "goods": [False, True, None]})
    dataset = ingest_catalogue(tmp_path, table, merchandise="goods")
    assert dataset.items["item_id"].to_pylist() == ["a", "b"]
    assert dataset.counts["catalogue"]["non_merchandise"] == 1


def test_optional_columns_are_read_as_the_contract_s_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "item_id": ["a", "b", "c"],
            "title": ["A", "B", "C"],
            "price": ["9.99", "free", None],
            "in_stock": [1, 0, None],
            "available_from": ["2026-03-01", "soon", None],
            "description": ["  long ", "", None],
            "ean": [1, 2, 3],
        }
    )
    items = ingest_catalogue(tmp_path, table).items
    assert items["price"].to_pylist() == [9.99, None, None]
    assert items["in_stock"].to_pylist() == [True, False, None]
    assert items["available_from"].to_pylist() == [datetime(2026, 3, 1, tzinfo=UTC), None, None]
    assert items["description"].to_pylist() == ["long", None, None]
    assert "ean" not in items.column_names
