"""Scoring on Spark: the rows go through the same scorer, in the Python processes of Spark's workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.errors import InputError
from recsys.ingest.dataset import Dataset
from recsys.runtime import Runtime
from recsys.spark import map_in_arrow
from recsys.teacher.config import ScoreConfig
from recsys.teacher.model import Teacher
from recsys.teacher.score import RowScorer


def score_on_spark(scorer: RowScorer, rows: pa.RecordBatch, scratch: Path, runtime: Runtime) -> list[Path]:
    """Score rows on Spark's workers, which open dataset, teachers and lists by path and compute on one thread each.

    Args:
        scorer: what scores; a worker builds its own from the same artifacts.
        rows: user_idx and position (int32), in the order of both.
        scratch: for Spark's files; on a cluster all machines must see it, and the artifacts, under the same paths.
        runtime: seed, device and precision.

    Returns:
        Parquet files of `schema.SOFT_LABELS`' columns that hold the rows in their order, one file after the other.

    Raises:
        InputError: Spark cannot be started, a worker failed, or not all rows came back.
        MissingExtraError: pyspark is not installed.
    """
    config = scorer.config
    lists = config.recommendations and config.recommendations.resolve()  # a worker runs in a folder of its own
    on_worker = partial(
        _on_worker,
        scorer.dataset.path,
        tuple(teacher.path for teacher in scorer.teachers),
        config.model_copy(update={"recommendations": lists}).model_dump_json(),
        replace(runtime, progress=False, threads=1),  # there are as many workers as cores
    )
    files = map_in_arrow(
        pa.Table.from_batches([rows]),
        on_worker,
        "user_idx int, position int, candidate array<int>, teacher_logit array<float>",
        config.spark,
        scratch,
        runtime,
        shard_rows=config.shard_rows,
        stage="score",
    )
    found = sum(pq.read_metadata(file).num_rows for file in files)
    if found != len(rows):
        raise InputError(
            f"of {len(rows)} rows, Spark scored {found}",
            expected="one row of soft labels for each",
            do='set score.engine = "local"',
        )
    return files


@cache
def _opened(dataset: Path, teachers: tuple[Path, ...], config: str, runtime: Runtime) -> RowScorer:
    """Once for each Python process of a worker."""
    opened = [Teacher.open(teacher) for teacher in teachers]
    return RowScorer(Dataset.open(dataset), opened, ScoreConfig.model_validate_json(config), runtime)


def _on_worker(
    dataset: Path, teachers: tuple[Path, ...], config: str, runtime: Runtime, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    yield from _opened(dataset, teachers, config, runtime)(batches)
