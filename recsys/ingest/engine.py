"""The data engine behind ingestion, reached through Ibis: DuckDB by default, Spark by config.

An engine reads Parquet, keeps tables, streams results in their order, and has the few functions that Ibis lacks.
Every step of the stage is one Ibis expression; nothing outside this package's engines knows which one computes.
"""

from __future__ import annotations

import errno
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.errors import InputError
from recsys.ingest.config import IngestConfig
from recsys.ingest.landing import ROW
from recsys.ingest.tables import ROW_GROUP
from recsys.runtime import Runtime

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend

FILE: Final = "recsys_file"  # the place of a row's file among those that were read together


class Engine(ABC):
    """What computes. Tables of one engine cannot be joined with those of another."""

    @abstractmethod
    def read(self, paths: Sequence[Path]) -> ibis.Table:
        """Parquet files of one schema: their columns, `FILE` int32, and `ROW` int64, the row's number in its file.

        Raises:
            InputError: a file is not Parquet.
        """

    @abstractmethod
    def take(self, name: str, table: pa.Table) -> ibis.Table:
        """A small table from outside, under a name of its own."""

    @abstractmethod
    def keep(self, name: str, table: ibis.Table) -> ibis.Table:
        """Compute a table once, for what reads it more than once."""

    @abstractmethod
    def drop(self, table: ibis.Table) -> None:
        """Give back what a kept table holds."""

    @abstractmethod
    def stream(self, table: ibis.Table) -> Iterator[pa.RecordBatch]:
        """The rows in the table's order, a batch at a time; the engine holds no more than its memory."""

    @abstractmethod
    def content(self, columns: ibis.Value) -> ibis.Value:
        """An int64 of a struct that is equal for equal structs; it has no meaning outside of this engine."""

    @abstractmethod
    def number_of(self, text: ibis.Value) -> ibis.Value:
        """An int64 of a text, the same on all engines: the first 60 bits of its MD5."""

    @abstractmethod
    def read_time(self, text: ibis.Value, layout: str) -> ibis.Value:
        """A timestamp from text in a layout of strptime, null where it does not fit."""

    @abstractmethod
    def to_utc(self, moment: ibis.Value, zone: str) -> ibis.Value:
        """From a zone's local time to UTC, both timestamps without a zone."""


def builtin(name: str, returns: str, *arguments: ibis.Value) -> ibis.Value:
    """A call of the engine's own function.

    Args:
        name: as the engine calls it.
        returns: type of its result.
        arguments: one or two values.
    """
    types = tuple(argument.type() for argument in arguments)
    if len(arguments) == 1:
        return ibis.udf.scalar.builtin(name=name, signature=(types, returns))(lambda first: ...)(*arguments)
    return ibis.udf.scalar.builtin(name=name, signature=(types, returns))(lambda first, second: ...)(*arguments)


_ROWS_OF_DUCKDB: Final = {"file_row_number", "file_index"}


class DuckDbEngine(Engine):
    """DuckDB in this process. Tables lie in memory up to a limit, and beyond it in a scratch folder."""

    def __init__(self, connection: Backend) -> None:
        self.connection = connection
        self._n_views = 0

    def read(self, paths: Sequence[Path]) -> ibis.Table:
        listed = ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)
        columns = pq.read_schema(paths[0]).names
        if own := _ROWS_OF_DUCKDB & {name.lower() for name in columns}:
            raise InputError(
                f"{paths[0].name} has a column that cannot be used: {', '.join(sorted(own))}",
                expected="no column of the names under which the engine itself numbers files and rows",
                do="rename the column",
            )
        row = "" if ROW in columns else f", file_row_number AS {ROW}"
        self._n_views += 1
        name = f"read_{self._n_views}"
        self.connection.raw_sql(
            f"CREATE VIEW {name} AS SELECT *, CAST(file_index AS INTEGER) AS {FILE}{row} "  # noqa: S608
            f"FROM read_parquet([{listed}], hive_partitioning = false)"
        )
        return self.connection.table(name)

    def take(self, name: str, table: pa.Table) -> ibis.Table:
        # Not create_table: as for drop_table, Ibis 12 builds a statement without a name with today's sqlglot.
        self.connection.con.register(name, table)
        return self.connection.table(name)

    def keep(self, name: str, table: ibis.Table) -> ibis.Table:
        return self.connection.create_table(name, table)

    def drop(self, table: ibis.Table) -> None:
        # Not connection.drop_table: Ibis 12 builds a statement without a name with today's sqlglot.
        self.connection.raw_sql(f"DROP TABLE {table.get_name()}")

    def stream(self, table: ibis.Table) -> Iterator[pa.RecordBatch]:
        # Not connection.to_pyarrow_batches: Ibis 12 calls a method there that DuckDB 2 no longer has. And not execute:
        # that would hold the whole result.
        yield from self.connection.con.sql(self.connection.compile(table)).to_arrow_reader(ROW_GROUP)

    def content(self, columns: ibis.Value) -> ibis.Value:
        return (builtin("hash", "uint64", columns) >> 1).cast("int64")

    def number_of(self, text: ibis.Value) -> ibis.Value:
        return (ibis.literal("0x") + text.hexdigest("md5")[:15]).cast("int64")

    def read_time(self, text: ibis.Value, layout: str) -> ibis.Value:
        return builtin("try_strptime", "timestamp", text, ibis.literal(layout))

    def to_utc(self, moment: ibis.Value, zone: str) -> ibis.Value:
        return builtin("timezone", "timestamp('UTC')", ibis.literal(zone), moment).cast("timestamp")


@contextmanager
def open_engine(config: IngestConfig, scratch: Path, runtime: Runtime) -> Iterator[Engine]:
    """The engine that the config asks for, with an empty scratch folder of its own."""
    if config.engine == "spark":
        from recsys.ingest.spark import open_spark

        with open_spark(config.spark, scratch, runtime) as spark:
            yield spark
    else:
        with open_duckdb(scratch, runtime) as engine:
            yield engine


@contextmanager
def open_duckdb(scratch: Path, runtime: Runtime) -> Iterator[DuckDbEngine]:
    """DuckDB, whose tables are held in memory up to the runtime's limit, and beyond it in `scratch`.

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
            yield DuckDbEngine(connection)
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
                expected="enough to join the log with its users and items",
                do="raise memory_limit, or lower threads",
            ) from None
        raise


def _is_disk_full(error: duckdb.Error) -> bool:
    return any(sign in str(error) for sign in ("No space left on device", "max_temp_directory_size"))


@contextmanager
def reading(what: str) -> Iterator[None]:
    """While `what` is read: what the engine cannot read is the file's fault."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise  # not the file's fault
        raise _unreadable(what, error) from None
    except duckdb.Error as error:
        if isinstance(error, duckdb.OutOfMemoryException) or _is_disk_full(error):
            raise
        if isinstance(error, duckdb.BinderException):
            raise InputError(
                f"{what} has a column that cannot be used: {str(error).splitlines()[0]}",
                expected="columns of text, numbers, times and booleans",
                do="rename the column, or map another one in the config",
            ) from None
        raise _unreadable(what, error) from None


def _unreadable(what: str, error: Exception) -> InputError:
    return InputError(
        f"{what} cannot be read as Parquet: {str(error).splitlines()[0]}",
        expected="a whole Parquet file",
        do="write it again, or copy it again if it was cut off; say [ingest.text] format if it is no Parquet",
    )


def count(table: ibis.Table) -> int:
    """Number of rows."""
    return int(table.count().to_pyarrow().as_py())


def count_by(table: ibis.Table, column: str) -> dict[Any, int]:
    """Number of rows by value, the most frequent first."""
    counts = table.group_by(column).aggregate(n=table.count()).order_by(ibis.desc("n"), column)
    return {row[column]: row["n"] for row in counts.to_pyarrow().to_pylist()}
