"""The quarantine: rejected rows as they came, each with its reason and where it stood."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ibis
import pyarrow as pa

from recsys import schema
from recsys.ingest.engine import DuckDbEngine
from recsys.ingest.landing import LINE, ROW
from recsys.ingest.log import AnyFile, LogFile
from recsys.ingest.tables import ROW_GROUP, write_parquet


def write_quarantine(
    local: DuckDbEngine,
    files: Sequence[AnyFile],
    rejected: ibis.Table,
    path: Path,
    raws: Callable[[AnyFile, ibis.Table], ibis.Table],
) -> int:
    """Write the rejected rows, file by file in the order of the log, row by row in that of the file.

    Args:
        local: DuckDB, whichever engine found the rows: it reads the few rejected ones from the files.
        files: all files of the log.
        rejected: columns `file`, `row` and `reason`; a table of `local`.
        path: the file to write, columns of `schema.QUARANTINE`.
        raws: gives the rows of a file as they came, `row` and `raw`, for a table with a column `row`.

    Returns:
        Number of rows, those included that could not be read when the file was opened.
    """
    hit = {row["file"] for row in rejected.select("file").distinct().to_pyarrow().to_pylist()}

    def batches() -> Iterator[pa.RecordBatch]:
        for file in files:
            name = ibis.literal(file.file.name)
            if file.number in hit:
                wanted = rejected.filter(rejected.file == file.number).select("row", "reason")
                found = raws(file, wanted).inner_join(wanted, "row").select("raw", "reason", "row")
                if file.rejected.num_rows:
                    unread = local.take(f"unread_{file.number}", file.rejected.select(["raw", "reason", "row"]))
                    found = found.union(unread)
                yield from local.stream(found.mutate(source_file=name).order_by("row"))
            elif file.rejected.num_rows:
                names = pa.repeat(file.file.name, file.rejected.num_rows)
                yield from file.rejected.append_column("source_file", names).to_batches(ROW_GROUP)

    return write_parquet(batches(), path, schema.QUARANTINE)


def read_raws(local: DuckDbEngine, file: LogFile, wanted: ibis.Table) -> ibis.Table:
    """Rows of a file as they came: a JSON object of its columns, or its line where it is one of JSON.

    Args:
        local: DuckDB.
        file: the file.
        wanted: column `row`, a table of `local`.

    Returns:
        The columns `row` and `raw`.
    """
    rows = local.read([file.path])
    rows = rows.semi_join(wanted, rows[ROW] == wanted.row)
    if LINE in rows.columns:
        return rows.select(row=ROW, raw=LINE)
    own = {name: _as_json_value(rows[name]) for name in file.schema.names if name != ROW}
    levels = {name: ibis.literal(value) for name, value in file.file.partition.items() if name not in own}
    return rows.select(row=ROW, raw=ibis.struct(own | levels).cast("json").cast("string"))


def _as_json_value(column: ibis.Value) -> ibis.Value:
    if not column.type().is_floating():
        return column
    return ibis.cases((~(column.isnan() | column.isinf()), column))  # JSON has no number for these
