"""The data engine behind ingestion: DuckDB, reached through Ibis. Nothing else in recsys knows which engine it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.errors import InputError
from recsys.runtime import Runtime

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend

ROW_GROUP = 1 << 17


@contextmanager
def engine(scratch: Path, runtime: Runtime) -> Iterator[Backend]:
    """A connection whose tables are held in memory up to the runtime's limit, and beyond it in `scratch`.

    Nothing of a killed run is read: its tables are gone with it, and its spilled blocks are removed.

    Raises:
        InputError: the disk is full, or the memory limit is too low for the work.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    options: dict[str, Any] = {"threads": runtime.threads} if runtime.threads else {}
    with _explained(scratch, runtime):
        connection = ibis.duckdb.connect(
            temp_directory=str(scratch),
            memory_limit=runtime.memory_limit,
            # Rows have numbers of their own and every result is sorted, so the engine need not keep any order.
            preserve_insertion_order=False,
            **options,
        )
        try:
            yield connection
        finally:
            connection.disconnect()


@contextmanager
def _explained(scratch: Path, runtime: Runtime) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        first_line = str(error).splitlines()[0]
        if _is_disk_full(error):
            raise InputError(
                f"the disk is full: {first_line}",
                expected=f"room for temporary files of about the log's own size, uncompressed, in {scratch}",
                do="free some space, or set run_dir to a larger disk; what was there before is untouched",
            ) from None
        if isinstance(error, duckdb.OutOfMemoryException):
            raise InputError(
                f"ingestion needs more than memory_limit = {runtime.memory_limit!r}: {first_line}",
                expected="enough to order one bucket of users",
                do="raise memory_limit, or lower ingest.events_per_bucket or threads",
            ) from None
        raise


def _is_disk_full(error: duckdb.Error) -> bool:
    return any(sign in str(error) for sign in ("No space left on device", "max_temp_directory_size"))


def require_file(path: Path) -> None:
    """Check that an input file is there.

    Raises:
        InputError: it is not.
    """
    if not path.is_file():
        raise InputError(
            f"{path} is {'a folder' if path.is_dir() else 'not there'}",
            expected="a Parquet file",
            do="correct `data` (or RECSYS_DATA), ingest.events or ingest.items",
        )


def open_parquet(connection: Backend, path: Path, **options: bool) -> ibis.Table:
    """A Parquet file as a table; nothing but its schema is read yet.

    Raises:
        InputError: it is not Parquet.
    """
    with reading(path):
        return connection.read_parquet(path, **options)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """While `path` is read: what the engine cannot read is the file's fault."""
    try:
        yield
    except duckdb.Error as error:
        if isinstance(error, duckdb.OutOfMemoryException) or _is_disk_full(error):
            raise
        first_line = str(error).splitlines()[0]
        if isinstance(error, duckdb.BinderException):
            raise InputError(
                f"{path} has a column that cannot be used: {first_line}",
                expected="columns of text, numbers, times and booleans, none of them called file_row_number",
                do="rename the column, or map another one in the config",
            ) from None
        raise InputError(
            f"{path} cannot be read as Parquet: {first_line}",
            expected="a whole Parquet file",
            do="write it as Parquet, e.g. pandas.read_csv(…).to_parquet(…), or copy it again if it was cut off",
        ) from None


def drop(connection: Backend, table: ibis.Table) -> None:
    """Drop a table that was created here."""
    # Not connection.drop_table: Ibis 12 builds a statement without a name with today's sqlglot.
    connection.raw_sql(f"DROP TABLE {table.get_name()}")


def count(table: ibis.Table) -> int:
    """Number of rows."""
    return int(table.count().to_pyarrow().as_py())


def write_parquet(connection: Backend, table: ibis.Table, path: Path, schema: pa.Schema) -> int:
    """Write an ordered table to a file of this schema, in row groups of one size, and return its number of rows.

    The size is fixed because the engine's batches vary from run to run, and the same table is to give the same bytes.
    """
    n_rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        pending = schema.empty_table()
        # Not connection.to_pyarrow_batches: Ibis 12 calls a method there that DuckDB 2 no longer has.
        for batch in connection.con.sql(connection.compile(table)).to_arrow_reader(ROW_GROUP):
            n_rows += batch.num_rows
            pending = pa.concat_tables([pending, pa.Table.from_batches([batch]).select(schema.names).cast(schema)])
            while pending.num_rows >= ROW_GROUP:
                writer.write_table(pending.slice(0, ROW_GROUP))
                pending = pending.slice(ROW_GROUP)
        writer.write_table(pending)
    return n_rows
