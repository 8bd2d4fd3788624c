"""Recommending on Spark: the users go through the same recommender, in the Python processes of Spark's workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys import schema
from recsys.artifacts import Artifact
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset
from recsys.ranking.config import RecommendConfig
from recsys.ranking.ranker import Ranker
from recsys.ranking.recommend import lists_of
from recsys.ranking.recommender import Recommender
from recsys.retrieval.index import ItemIndex
from recsys.runtime import Runtime
from recsys.spark import map_in_arrow


def recommend_on_spark(
    dataset: Dataset, recommender: Recommender, users: npt.NDArray[np.int32], scratch: Path
) -> list[Path]:
    """Make the lists of some users on Spark's workers, which open dataset, student and index by path.

    Args:
        dataset: of the users.
        recommender: whose student is `recsys.student.model.Student`; a worker builds its own from the same artifacts.
        users: [n] user_idx, ascending.
        scratch: for Spark's files; on a cluster all machines must see it, and the artifacts, under the same paths.

    Returns:
        Parquet files of `recsys.ranking.recommend.lists_of`'s columns, in the order of the users, one after the other.

    Raises:
        InputError: Spark cannot be started, a worker failed, not all users came back, or the student is no artifact.
        MissingExtraError: pyspark is not installed.
    """
    config, runtime, student = recommender.config, recommender.runtime, recommender.student
    if not isinstance(student, Artifact):
        raise InputError(
            'recommend.engine = "spark" with a student that lies in no folder',
            expected="one that `recsys distill` wrote",
            do='set recommend.engine = "local"',
        )
    on_worker = partial(
        _on_worker,
        (dataset.path.resolve(), student.path.resolve(), recommender.index.path.resolve()),
        None if recommender.ranker is None else recommender.ranker.path.resolve(),
        config.model_copy(update={"users": None}).model_dump_json(),
        replace(runtime, progress=False, threads=1),  # there are as many workers as cores
    )
    return map_in_arrow(
        pa.table({schema.USER_IDX: users}),
        on_worker,
        f"{schema.USER_IDX} int, row int, {schema.ITEM_IDX} int, {schema.ITEM_ID} string, rank int, score float, "
        f"probability float, source string, reason string, {schema.USER_ID} string",
        config.spark,
        scratch,
        runtime,
        shard_rows=config.shard_users,
        stage="recommend",
    )


@cache
def _opened(
    paths: tuple[Path, Path, Path], ranker: Path | None, config: str, runtime: Runtime
) -> tuple[Dataset, Recommender]:
    """Once for each Python process of a worker."""
    from recsys.student.model import Student

    dataset, student, index = Dataset.open(paths[0]), Student.open(paths[1]), ItemIndex.open(paths[2])
    return dataset, Recommender(
        dataset,
        student,
        index,
        RecommendConfig.model_validate_json(config),
        ranker=None if ranker is None else Ranker.open(ranker),
        runtime=runtime,
    )


def _on_worker(
    paths: tuple[Path, Path, Path],
    ranker: Path | None,
    config: str,
    runtime: Runtime,
    batches: Iterable[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    dataset, recommender = _opened(paths, ranker, config, runtime)
    for batch in batches:
        users = batch.column(schema.USER_IDX).to_numpy()
        lists = lists_of(dataset, recommender, users)
        owner = pa.array(users[lists["row"].to_numpy()], pa.int32())
        yield from lists.add_column(0, schema.USER_IDX, owner).combine_chunks().to_batches()
