"""Parquet files whose bytes depend on their rows alone, and not on the batches in which these come."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, ParamSpec, Self

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP: Final = 1 << 17

P = ParamSpec("P")


class Beside:
    """A thread for work that releases Python's lock: encoding and compressing, while the next rows are computed.

    One piece of work at a time, so that no more than one is held; what fails there is raised by the next call.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._running: Future[None] | None = None

    def run(self, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Begin a piece of work when the one before it is done."""
        self.wait()
        self._running = self._executor.submit(work, *args, **kwargs)

    def wait(self) -> None:
        """Wait until nothing is left to do."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()


class TableWriter:
    """Writes tables one after the other, in row groups of one size."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._pending = schema.empty_table()
        self._beside = Beside()
        self.n_rows = 0

    def write(self, table: pa.Table) -> None:
        """Add rows; columns that the schema does not have are left out."""
        self.n_rows += table.num_rows
        self._beside.run(self._append, table)

    def _append(self, table: pa.Table) -> None:
        schema = self._pending.schema
        self._pending = pa.concat_tables([self._pending, table.select(schema.names).cast(schema)])
        while self._pending.num_rows >= ROW_GROUP:
            self._writer.write_table(self._pending.slice(0, ROW_GROUP))
            self._pending = self._pending.slice(ROW_GROUP)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._beside.close()
            if kind is None:
                self._writer.write_table(self._pending)
        finally:
            self._writer.close()


def write_parquet(batches: Iterable[pa.RecordBatch], path: Path, schema: pa.Schema) -> int:
    """Write a stream to a file of this schema, and return its number of rows."""
    with TableWriter(path, schema) as writer:
        for batch in batches:
            writer.write(pa.Table.from_batches([batch]))
    return writer.n_rows
