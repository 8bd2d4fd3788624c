"""Stage `recommend`: a list for every user, as one Parquet table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import distributed, schema
from recsys.artifacts import Artifact, Draft, Recipe
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset
from recsys.ranking.config import RecommendConfig
from recsys.ranking.ranker import Ranker
from recsys.ranking.recommender import Recommender
from recsys.retrieval.index import ItemIndex, VectorModel, use_threads
from recsys.runtime import Runtime
from recsys.spark import SparkConfig

FILE = "recommendations.parquet"


def recommend(
    dataset: Dataset,
    student: VectorModel,
    index: ItemIndex,
    config: RecommendConfig,
    out: Path,
    *,
    ranker: Ranker | None = None,
    runtime: Runtime = Runtime(),
    force: bool = False,
) -> Recommendations:
    """Write k items for every user: retrieved by the index, those that rules forbid left out, with a reason each.

    Memory does not grow with the number of users; a killed run goes on after its last finished shard of users.
    Processes that work together (`recsys.distributed`) share the shards out, and so do Spark's workers.

    Args:
        dataset: whose users and catalogue. A user's whole history counts, the validation and test parts too.
        student: gives users their vectors.
        index: of the same student.
        config: for whom, how many, and which items not.
        out: where the artifact goes.
        ranker: of the same student; without it lists are the student's, in its order.
        runtime: where to compute.
        force: write again even if `out` is up to date.

    Raises:
        InputError: the inputs come from different runs, or the config names unknown users or event types.
        MissingExtraError: the engine is Spark, and pyspark is not installed.
    """
    inputs = {"dataset": dataset.fingerprint, "student": student.fingerprint, "index": index.fingerprint}
    recipe = Recipe(
        kind="recommendations",
        config=_what_counts(config),
        inputs=inputs | ({} if ranker is None else {"ranker": ranker.fingerprint}),
        seed=runtime.seed,
        modules=(
            "recsys.evidence",
            "recsys.hashing",
            "recsys.items",
            "recsys.ranking",
            "recsys.ranking.models",
            "recsys.retrieval.neighbours",
            "recsys.retrieval.snapshot",
            "recsys.retrieval.sources",
        ),
    )
    if force or not distributed.from_first(recipe.is_current(out)):
        recommender = Recommender(dataset, student, index, config, ranker=ranker, runtime=runtime)
        users = _users(dataset, config)
        with recipe.build(out) as draft:
            use_threads(runtime)
            parts: list[Path] = []
            if config.engine == "local":
                parts = _by_shards(dataset, recommender, users, draft, runtime)
            elif not distributed.rank():  # Spark has its own workers, and needs one process to lead them
                from recsys.ranking.spark import recommend_on_spark

                parts = recommend_on_spark(dataset, recommender, users, draft.scratch)
            if not distributed.rank():
                _join(parts, recommender, recipe.fingerprint, draft)
                _export(draft.path / FILE, config.formats, runtime)
            draft.counts = {"users": len(users)} | draft.counts
            draft.info["as_of"] = recommender.as_of.isoformat()
            draft.info["rules_without_items"] = list(recommender.rules.unmatched)
    return Recommendations.open(out)


class Recommendations(Artifact):
    """What `recsys recommend` writes: `recommendations.parquet`, columns of `schema.RECOMMENDATIONS`.

    With `recommend.partitions` this is a folder of so many files, and beside it lie `recommendations.csv` and
    `.jsonl`, if they are asked for. Rows stand by user in the order of user_idx, then by rank. `generated_at` is the
    moment that the lists are for (`as_of` of the config), so that the same input gives the same bytes; when they were
    computed stands in the manifest as `created_at`.
    """

    kind: ClassVar[str] = "recommendations"
    stage: ClassVar[str] = "recommend"

    @property
    def file(self) -> Path:
        """The Parquet file, or the folder of them."""
        return self.path / FILE

    @cached_property
    def table(self) -> pa.Table:
        """All rows, in memory."""
        return pq.read_table(self.file)

    def for_user(self, user_id: str) -> pa.Table:
        """One user's list, the best item first; no rows for somebody who has none."""
        return pq.read_table(self.file, filters=[(schema.USER_ID, "=", user_id)])


def _users(dataset: Dataset, config: RecommendConfig) -> npt.NDArray[np.int32]:
    """The user_idx to recommend for, ascending, each once."""
    if config.users is None:
        return np.arange(dataset.n_users, dtype=np.int32)
    wanted = pa.array(sorted(set(config.users)), pa.string())
    users = pc.index_in(wanted, value_set=dataset.users[schema.USER_ID])
    if users.null_count:
        unknown = wanted.filter(pc.is_null(users)).to_pylist()
        raise InputError(
            f"recommend.users names {len(unknown)} unknown users: {', '.join(map(repr, unknown[:5]))}",
            expected="user_ids of the dataset",
            do="leave them out; people without a history are served by the Python API",
        )
    return np.sort(users.to_numpy())


def _by_shards(
    dataset: Dataset, recommender: Recommender, users: npt.NDArray[np.int32], draft: Draft, runtime: Runtime
) -> list[Path]:
    """One file for each shard of users, those of a killed build kept; this process makes its share of them."""
    draft.scratch.mkdir(parents=True, exist_ok=True)
    size = recommender.config.shard_users
    starts = np.arange(0, len(users), size)
    parts = [draft.scratch / f"users-{start:010d}.parquet" for start in starts]
    mine = distributed.part_of(np.arange(len(parts)))
    missing = [place for place in mine if not parts[place].exists()]
    done = len(mine) - len(missing)
    for place in runtime.track(missing, total=len(mine), initial=done, label="recommend", unit="shard"):
        temporary = parts[place].with_suffix(".tmp")
        pq.write_table(lists_of(dataset, recommender, users[starts[place] : starts[place] + size]), temporary)
        temporary.replace(parts[place])
    distributed.barrier()
    return parts


def lists_of(dataset: Dataset, recommender: Recommender, users: npt.NDArray[np.int32]) -> pa.Table:
    """The lists of some users, in their order: the columns of `recsys.ranking.recommender.LISTS`, and user_id."""
    lists = recommender.recommend_for(dataset.histories(users))
    user_ids = dataset.users[schema.USER_ID].take(pa.array(users)).take(lists["row"])
    return lists.append_column(schema.RECOMMENDATIONS.field(schema.USER_ID), user_ids)


def _join(parts: Sequence[Path], recommender: Recommender, run_id: str, draft: Draft) -> None:
    """Write the parts as one table, a row group each, in as many files as the config wants, and count."""
    n_rows = n_full = 0
    is_shown = np.zeros(len(recommender.allowed), np.bool_)
    files = [draft.path / FILE]
    if recommender.config.partitions > 1:
        files[0].mkdir()
        files = [files[0] / f"part-{number:05d}.parquet" for number in range(recommender.config.partitions)]
    for file, share in zip(files, np.array_split(np.arange(len(parts)), len(files)), strict=True):
        with pq.ParquetWriter(file, schema.RECOMMENDATIONS, compression="zstd") as writer:
            for place in share:
                lists = pq.read_table(parts[place])
                n_rows += len(lists)
                n_full += pc.sum(pc.equal(lists["rank"], recommender.config.k)).as_py() or 0
                is_shown[lists[schema.ITEM_IDX].to_numpy()] = True
                columns = {name: lists[name] for name in lists.column_names} | {
                    "run_id": pa.repeat(run_id, len(lists)),
                    "generated_at": pa.repeat(pa.scalar(recommender.as_of, pa.timestamp("us", "UTC")), len(lists)),
                }
                writer.write_table(
                    pa.table([columns[name] for name in schema.RECOMMENDATIONS.names], schema=schema.RECOMMENDATIONS)
                )
    draft.counts |= {"rows": n_rows, "full_lists": n_full, "distinct_items": int(is_shown.sum())}


def _export(table: Path, formats: Sequence[str], runtime: Runtime) -> None:
    """Write the table in other forms beside it, as a stream."""
    if not formats:
        return
    import duckdb
    import pyarrow.dataset as ds

    fields = [schema.RECOMMENDATIONS.field(name) for name in schema.RECOMMENDATIONS.names[:-1]]
    as_text = pa.schema([*fields, pa.field("generated_at", pa.string(), nullable=False)])

    def with_text_of_times() -> Iterator[pa.RecordBatch]:
        for batch in ds.dataset(table, format="parquet").to_batches():
            moment = pc.strftime(batch["generated_at"], format="%Y-%m-%dT%H:%M:%SZ")
            yield pa.RecordBatch.from_arrays([*batch.columns[:-1], moment], schema=as_text)

    for name in formats:
        rows = pa.RecordBatchReader.from_batches(as_text, with_text_of_times())
        target = str(table.with_suffix(f".{name}"))
        with duckdb.connect(config={"memory_limit": runtime.memory_limit}) as connection:
            form = "(FORMAT csv, HEADER)" if name == "csv" else "(FORMAT json)"
            connection.register("lists", rows)
            connection.execute(f"COPY lists TO '{target.replace(chr(39), 2 * chr(39))}' {form}")


def _what_counts(config: RecommendConfig) -> RecommendConfig:
    """The config without what decides only who makes the lists."""
    return config.model_copy(update={"engine": "local", "spark": SparkConfig()})
