"""The quarantine: rejected rows as they came, each with its reason and where it stood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import ibis
import pyarrow as pa

from recsys import schema
from recsys.ingest.engine import ROW_GROUP, DuckDbEngine, write_parquet
from recsys.ingest.landing import LINE, ROW
from recsys.ingest.log import LogFile


def write_quarantine(local: DuckDbEngine, files: Sequence[LogFile], rejected: ibis.Table, path: Path) -> int:
    """Write the rejected rows, file by file in the order of the log, row by row in that of the file.

    Args:
        local: DuckDB, whichever engine found the rows: it reads the few rejected ones from the files.
        files: all files of the log.
        rejected: columns `file`, `row` and `reason`; a table of `local`.
        path: the file to write, columns of `schema.QUARANTINE`.

    Returns:
        Number of rows, those included that could not be read when the file was opened.
    """
    hit = {row["file"] for row in rejected.select("file").distinct().to_pyarrow().to_pylist()}

    def batches() -> Iterator[pa.RecordBatch]:
        for file in files:
            if file.number in hit:
                yield from local.stream(_rows(local, file, rejected.filter(rejected.file == file.number)))
            elif file.rejected.num_rows:
                yield from _unread(file).to_batches(ROW_GROUP)

    return write_parquet(batches(), path, schema.QUARANTINE)


def _unread(file: LogFile) -> pa.Table:
    name = pa.array([file.file.name]).take(pa.array([0] * file.rejected.num_rows, pa.int32()))
    return file.rejected.append_column("source_file", name).select(schema.QUARANTINE.names)


def _rows(local: DuckDbEngine, file: LogFile, rejected: ibis.Table) -> ibis.Table:
    rows = local.read([file.path])
    # Names that no column of the log is likely to have.
    marked = rejected.select(recsys_rejected="row", recsys_reason="reason")
    rows = rows.inner_join(marked, rows[ROW] == marked.recsys_rejected)
    if LINE in rows.columns:
        raw = rows[LINE]
    else:
        own = {name: _as_json_value(rows[name]) for name in file.schema.names if name != ROW}
        levels = {name: ibis.literal(value) for name, value in file.file.partition.items() if name not in own}
        raw = ibis.struct(own | levels).cast("json").cast("string")
    found = rows.select(raw=raw, reason="recsys_reason", row=ROW)
    if file.rejected.num_rows:
        unread = local.take(f"unread_{file.number}", file.rejected.select(["raw", "reason", "row"]))
        found = found.union(unread)
    return found.mutate(source_file=ibis.literal(file.file.name)).order_by("row")


def _as_json_value(column: ibis.Value) -> ibis.Value:
    if not column.type().is_floating():
        return column
    return ibis.cases((~(column.isnan() | column.isinf()), column))  # JSON has no number for these
