"""Parquet files whose bytes depend on their rows alone, and not on the batches in which these come."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP: Final = 1 << 17


class TableWriter:
    """Writes tables one after the other, in row groups of one size."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._pending = schema.empty_table()
        self.n_rows = 0

    def write(self, table: pa.Table) -> None:
        """Add rows; columns that the schema does not have are left out."""
        schema = self._pending.schema
        self.n_rows += table.num_rows
        self._pending = pa.concat_tables([self._pending, table.select(schema.names).cast(schema)])
        while self._pending.num_rows >= ROW_GROUP:
            self._writer.write_table(self._pending.slice(0, ROW_GROUP))
            self._pending = self._pending.slice(ROW_GROUP)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._writer.write_table(self._pending)
        self._writer.close()


def write_parquet(batches: Iterable[pa.RecordBatch], path: Path, schema: pa.Schema) -> int:
    """Write a stream to a file of this schema, and return its number of rows."""
    with TableWriter(path, schema) as writer:
        for batch in batches:
            writer.write(pa.Table.from_batches([batch]))
    return writer.n_rows
