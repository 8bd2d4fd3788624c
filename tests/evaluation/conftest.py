"""A real dataset artifact from plain lists, and a scorer that is nothing but a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from recsys import schema
from recsys.artifacts import Recipe
from recsys.ingest.dataset import Dataset, Sequences
from tests.written import write_sequences

WriteDataset = Callable[..., Dataset]


class _Source(BaseModel):
    note: str = "built by a test"


def build_dataset(
    out: Path,
    histories: Sequence[Sequence[int]],
    train_end: Sequence[int],
    valid_end: Sequence[int],
    *,
    n_items: int,
    protocol: str = "leave_one_out",
    timestamps: Sequence[Sequence[int]] | None = None,
    counts: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
    event_types: Sequence[Sequence[int]] | None = None,
    items: dict[str, Sequence[Any]] | None = None,
) -> Dataset:
    """Write the files that `recsys ingest` writes, for users given as lists of items; `items` are further columns."""
    n_users = len(histories)
    recipe = Recipe("dataset", _Source(note=repr(out)), {}, 0, ())
    times = timestamps or [list(range(len(row))) for row in histories]
    with recipe.build(out) as draft:
        tables = {
            "users": pa.table({"user_idx": range(n_users), "user_id": [f"u{u}" for u in range(n_users)]}, schema.USERS),
            "items": pa.table(
                {
                    field.name: range(n_items)
                    if field.name == "item_idx"
                    else [f"i{i}" for i in range(n_items)]
                    if field.name in ("item_id", "title")
                    else pa.array((items or {}).get(field.name, [None] * n_items), field.type)
                    for field in schema.ITEMS
                },
                schema.ITEMS,
            ),
        }
        for name, table in tables.items():
            pq.write_table(table, draft.path / f"{name}.parquet")
        write_sequences(draft.path, histories, times, train_end, valid_end, event_types)
        draft.counts |= counts or {}
        draft.info |= {"protocol": protocol, "event_types": list(schema.EVENT_TYPES)} | (info or {})
    return Dataset.open(out)


@pytest.fixture
def write_dataset(tmp_path: Path) -> WriteDataset:
    return lambda *args, **kwargs: build_dataset(tmp_path / "dataset", *args, **kwargs)


def sequences(rows: Sequence[Sequence[int]]) -> Sequences:
    lengths = [len(row) for row in rows]
    flat = np.array([item for row in rows for item in row], dtype=np.int32)
    return Sequences(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_idx=flat,
        event_type=np.zeros(len(flat), np.int8),
        timestamp=np.arange(len(flat), dtype=np.int64),
        session=np.zeros(len(flat), np.int32),
    )


@pytest.fixture
def as_sequences() -> Callable[[Sequence[Sequence[int]]], Sequences]:
    return sequences


@dataclass
class TableScorer:
    """Scores by row of a table; the row is told by the history's first item, so that blocks do not matter."""

    table: np.ndarray
    name: str = "table"

    def score(self, histories: Sequences) -> np.ndarray:
        return self.table[histories.item_idx[histories.offsets[:-1]]].copy()


@pytest.fixture
def table_scorer() -> type[TableScorer]:
    return TableScorer
