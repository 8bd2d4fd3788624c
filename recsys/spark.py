"""A Spark session for the stages that can run on a cluster."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from recsys.errors import InputError, MissingExtraError
from recsys.runtime import Runtime

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession


class SparkConfig(BaseModel):
    """The Spark that a stage runs on with engine = "spark"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    master: str = Field("local[*]", description="e.g. local[4], spark://host:7077, yarn")
    options: dict[str, str] = Field(default_factory=dict, description="Spark's properties, e.g. spark.executor.memory")


@contextmanager
def spark_session(
    config: SparkConfig,
    scratch: Path,
    runtime: Runtime,
    *,
    stage: str,
    otherwise: str,
    fixed: Mapping[str, str] | None = None,
) -> Iterator[SparkSession]:
    """A Spark session of its own, ended with the block.

    Args:
        config: where it runs.
        scratch: for Spark's files; on a cluster all machines must see it under the same path.
        runtime: threads.
        stage: whose, for names and messages, such as "ingest".
        otherwise: the engine to name in messages, such as "duckdb".
        fixed: properties that the result depends on, which no config may set.

    Raises:
        InputError: Spark cannot be started, or could not do what was asked of it.
        MissingExtraError: pyspark is not installed.
    """
    try:
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException, PySparkRuntimeError
        from pyspark.sql import SparkSession
    except ImportError:
        raise MissingExtraError("pyspark", "spark") from None
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # workers run the same Python as the driver
    options = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.local.dir": str(scratch / "local"),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.log.level": "OFF",  # a failed query is raised here; its Java stack helps nobody
    }
    if not config.master.startswith("local"):
        del options["spark.driver.bindAddress"], options["spark.driver.host"]
    if runtime.threads:
        options["spark.sql.shuffle.partitions"] = str(2 * runtime.threads)
    builder: Any = SparkSession.builder
    builder = builder.master(config.master).appName(f"recsys {stage}")
    for name, value in (options | config.options | dict(fixed or {})).items():
        builder = builder.config(name, value)
    try:
        session = builder.getOrCreate()
    except (PySparkRuntimeError, OSError, RuntimeError) as error:
        raise InputError(
            f"Spark cannot be started at {config.master!r}: {str(error).splitlines()[0]}",
            expected="Java 17 or later, and a master that answers",
            do=f'install Java and set JAVA_HOME, correct [{stage}.spark], or set {stage}.engine = "{otherwise}"',
        ) from None
    try:
        yield session
    except (PySparkException, Py4JError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" :")]
        # Of a worker's Python, the last line of the traceback says most; of Spark itself, the first.
        raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
        raise InputError(
            f"Spark could not do it: {' '.join(raised[-1:] or lines[:2])[:500]}",
            expected="files of one schema that Spark can read, in a folder that all its machines see",
            do=f'look at the message, or set {stage}.engine = "{otherwise}"',
        ) from error
    finally:
        session.stop()


def map_in_arrow(
    rows: pa.Table,
    function: Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]],
    result: str,
    config: SparkConfig,
    scratch: Path,
    runtime: Runtime,
    *,
    shard_rows: int,
    stage: str,
) -> list[Path]:
    """Let Spark's workers make record batches of others, in order.

    Args:
        rows: in the order of all their columns, which is the order that is kept.
        function: makes the batches; it goes to the workers' Python.
        result: its columns, as Spark's schema says them, such as "user_idx int, score float".
        config: where Spark runs.
        scratch: for files; on a cluster all machines must see it under the same path.
        runtime: threads.
        shard_rows: rows of a batch at most, and of a partition about.
        stage: whose, for names and messages, such as "score".

    Returns:
        Parquet files that hold what was made, one file after the other.

    Raises:
        InputError: Spark cannot be started, a worker failed, or not all that was made came back.
        MissingExtraError: pyspark is not installed.
    """
    import pyarrow.parquet as pq  # here, because configs import this module

    folder = scratch.resolve() / "made"
    batches = {"spark.sql.execution.arrow.maxRecordsPerBatch": str(shard_rows)}
    with spark_session(config, scratch / "spark", runtime, stage=stage, otherwise="local", fixed=batches) as session:
        from pyspark.sql import Observation, functions

        frame: Any = session.createDataFrame(rows)
        parts = max(-(-len(rows) // shard_rows), 1)
        frame = frame.repartitionByRange(parts, *rows.schema.names).sortWithinPartitions(*rows.schema.names)
        made = Observation()
        counted = frame.mapInArrow(function, result).observe(made, functions.count(functions.lit(1)).alias("rows"))
        # A path without a scheme would go to the cluster's own file system, where nobody reads it here.
        counted.write.mode("overwrite").parquet(f"file://{folder}")
        n_made = made.get["rows"]
    files = sorted(folder.glob("part-*.parquet"))
    found = sum(pq.read_metadata(file).num_rows for file in files)
    if found != n_made:
        raise InputError(
            f"of {n_made} rows that Spark's workers made, {found} are in {folder}",
            expected="a run folder that all of Spark's machines see under the same path",
            do=f'put run_dir on a shared disk, or set {stage}.engine = "local"',
        )
    return files
