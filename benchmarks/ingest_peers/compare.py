"""Whether two engines wrote the same rows in the same order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

_LISTS: Final = {
    "user_idx": pa.int32(),
    "item_idx": pa.list_(pa.int32()),
    "event_type": pa.list_(pa.int8()),
    "timestamp": pa.list_(pa.int64()),
    "session": pa.list_(pa.int32()),
}
# Text and list types differ by library, so both sides are brought to these.
COLUMNS: Final[dict[str, dict[str, pa.DataType]]] = {
    "users": {"user_idx": pa.int32(), "user_id": pa.string()},
    "items": {
        "item_idx": pa.int32(),
        "item_id": pa.string(),
        "title": pa.string(),
        "category": pa.string(),
        "brand": pa.string(),
        "price": pa.float64(),
    },
    "train": _LISTS,
    "valid": _LISTS,
    "test": _LISTS,
    "quarantine": {"row": pa.int64(), "reason": pa.string(), "source_file": pa.string(), "raw": pa.string()},
}


def differences(one: Path, other: Path) -> Iterator[str]:
    """Where the datasets in two folders differ, a line for each column that does.

    Rows and their order must be the same in every file of `COLUMNS`. Of a rejected row's JSON the content is
    compared: libraries write one moment in more than one form of ISO 8601.
    """
    for file, columns in COLUMNS.items():
        ours, theirs = (pq.read_table(folder / f"{file}.parquet", columns=list(columns)) for folder in (one, other))
        if len(ours) != len(theirs):
            yield f"{file}: {len(ours):,} rows in {one}, {len(theirs):,} in {other}"
            continue
        for name, kind in columns.items():
            column, same = ours[name].cast(kind), theirs[name].cast(kind)
            if name != "raw" and column.combine_chunks().equals(same.combine_chunks()):
                continue
            pairs = zip(_values(column, name), _values(same, name), strict=True)
            unequal = [(row, pair) for row, pair in enumerate(pairs) if pair[0] != pair[1]]
            if unequal:
                row, pair = unequal[0]
                yield f"{file}.{name}: {len(unequal):,} rows differ, first {row}: {pair[0]} {one}, {pair[1]} {other}"


def _values(column: pa.ChunkedArray, name: str) -> list[Any]:
    values: list[Any] = column.to_pylist()
    return [_content(value) for value in values] if name == "raw" else values


def _content(raw: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(raw)
    if row["timestamp"] is not None:
        moment = datetime.fromisoformat(row["timestamp"])
        row["timestamp"] = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    return row
