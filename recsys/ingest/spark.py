"""Ingestion on Spark: the same expressions, computed by a cluster or by local processes.

What is kept lies as Parquet in the scratch folder, which all of Spark's machines must see under the same path.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.errors import InputError
from recsys.ingest.engine import FILE, Engine, builtin
from recsys.ingest.landing import ROW
from recsys.ingest.tables import ROW_GROUP
from recsys.runtime import Runtime
from recsys.spark import SparkConfig, spark_session

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# strptime's directives as Java's DateTimeFormatter has them. One letter reads one digit or two.
_JAVA: Final = {
    "%Y": "yyyy",
    "%y": "yy",
    "%m": "M",
    "%d": "d",
    "%H": "H",
    "%I": "h",
    "%M": "m",
    "%S": "s",
    "%p": "a",
    "%b": "MMM",
    "%B": "MMMM",
    "%f": "SSSSSS",
    "%z": "xx",
    "%%": "'%'",
}


class SparkEngine(Engine):
    """Spark, reached through one session."""

    def __init__(self, session: SparkSession, scratch: Path) -> None:
        self._session, self._scratch = session, scratch
        self._connection = ibis.pyspark.connect(session)
        self._n_views = 0

    def read(self, paths: Sequence[Path]) -> ibis.Table:
        frame = self._parquet(*paths)
        columns = [f"`{name.replace('`', '``')}`" for name in frame.columns]
        if ROW not in frame.columns:
            columns.append(f"_metadata.row_index AS {ROW}")
        if len(paths) == 1:
            return self._view(frame.selectExpr(*columns, f"0 AS {FILE}"))
        # Spark escapes paths in a way of its own, so it is asked how it calls the files.
        number = {str(path.resolve()): number for number, path in enumerate(paths)}
        called = [row[0] for row in frame.select("_metadata.file_path").distinct().collect()]
        rows = [(name, number[unquote(urlsplit(name).path)]) for name in called]
        places = self._session.createDataFrame(rows, f"recsys_path string, {FILE} int")
        frame = frame.selectExpr(*columns, "_metadata.file_path AS recsys_path")
        return self._view(frame.join(places, "recsys_path").drop("recsys_path"))

    def take(self, name: str, table: pa.Table) -> ibis.Table:
        folder = self._scratch / f"{name}.parquet"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "part-0.parquet")
        return self._view(self._parquet(folder))

    def keep(self, name: str, table: ibis.Table) -> ibis.Table:
        folder = self._write(name, table)
        return self._view(self._parquet(folder))

    def drop(self, table: ibis.Table) -> None:
        self._session.catalog.dropTempView(table.get_name())

    def stream(self, table: ibis.Table) -> Iterator[pa.RecordBatch]:
        # Through files, each a range of the order: the driver never holds more than a batch.
        self._n_views += 1
        folder = self._write(f"stream_{self._n_views}", table)
        # A range of equal keys may be spread over nothing but whole files, and their names are in the order.
        for part in sorted(folder.glob("part-*.parquet")):
            with pq.ParquetFile(part) as file:
                yield from file.iter_batches(ROW_GROUP)
        shutil.rmtree(folder)

    def content(self, columns: ibis.Value) -> ibis.Value:
        # Not of the struct itself: Spark's hash passes over nulls, so (1, null) and (null, 1) would be equal.
        return builtin("xxhash64", "int64", builtin("to_json", "string", columns))

    def number_of(self, text: ibis.Value) -> ibis.Value:
        return builtin("recsys_from_hex", "string", text.hexdigest("md5")[:15]).cast("int64")

    def read_time(self, text: ibis.Value, layout: str) -> ibis.Value:
        return builtin("try_to_timestamp", "timestamp", text, ibis.literal(java_layout(layout))).cast("timestamp")

    def to_utc(self, moment: ibis.Value, zone: str) -> ibis.Value:
        return builtin("to_utc_timestamp", "timestamp", moment, ibis.literal(zone))

    def _parquet(self, *paths: Path) -> DataFrame:
        # Spark takes a path for a glob.
        escaped = (re.sub(r"([\\\[\]{}*?])", r"\\\1", str(path.resolve())) for path in paths)
        return self._session.read.parquet(*(f"file://{path}" for path in escaped))

    def _view(self, frame: DataFrame) -> ibis.Table:
        self._n_views += 1
        name = f"recsys_view_{self._n_views}"
        frame.createOrReplaceTempView(name)
        return self._connection.table(name)

    def _write(self, name: str, table: ibis.Table) -> Path:
        folder = self._scratch / f"{name}.parquet"
        frame: Any = self._session.sql(self._connection.compile(table))
        frame.write.mode("overwrite").parquet(f"file://{folder.resolve()}")
        return folder


def java_layout(layout: str) -> str:
    """A layout of strptime in the letters of Java's DateTimeFormatter.

    Raises:
        InputError: it has a directive that Java has no letter for.
    """
    parts, rest = [], layout
    while rest:
        if rest[0] == "%":
            directive, rest = rest[:2], rest[2:]
            if directive not in _JAVA:
                raise InputError(
                    f"ingest.timestamp_format has {directive!r}, which Spark cannot read",
                    expected=", ".join(_JAVA),
                    do='write the format with these, or set ingest.engine = "duckdb"',
                )
            parts.append(_JAVA[directive])
        else:
            letter, rest = rest[0], rest[1:]
            parts.append(f"'{letter}'" if letter.isalpha() else "''" if letter == "'" else letter)
    return "".join(parts)


@contextmanager
def open_spark(config: SparkConfig, scratch: Path, runtime: Runtime) -> Iterator[SparkEngine]:
    """A Spark session of its own, ended with the block.

    Raises:
        InputError: Spark cannot be started.
        MissingExtraError: pyspark is not installed.
    """
    # What the rows depend on cannot be set by config.
    fixed = {
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.ansi.enabled": "false",
        "spark.sql.legacy.parquet.nanosAsLong": "true",
        "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
        "spark.sql.parquet.inferTimestampNTZ.enabled": "true",
        "spark.sql.legacy.timeParserPolicy": "CORRECTED",
    }
    with spark_session(config, scratch, runtime, stage="ingest", otherwise="duckdb", fixed=fixed) as session:
        session.sql(
            "CREATE OR REPLACE TEMPORARY FUNCTION recsys_from_hex(digits STRING) RETURNS STRING "
            "RETURN conv(digits, 16, 10)"
        )
        yield SparkEngine(session, scratch)
