"""Stage `recommend`: a list for every user, as one Parquet table."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import schema
from recsys.artifacts import Artifact, Draft, Recipe
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset
from recsys.ranking.config import RecommendConfig
from recsys.ranking.ranker import Ranker
from recsys.retrieval.index import ItemIndex, VectorModel, use_threads
from recsys.runtime import Runtime

FILE = "recommendations.parquet"

# Users are recommended for, and their lists are kept after a kill, in blocks of so many.
BLOCK_USERS = 4096


def recommend(
    dataset: Dataset,
    student: VectorModel,
    index: ItemIndex,
    config: RecommendConfig,
    out: Path,
    *,
    runtime: Runtime = Runtime(),
    force: bool = False,
) -> Recommendations:
    """Write k items for every user: retrieved by the index, those that rules forbid left out, with a reason each.

    Memory does not grow with the number of users; a killed run goes on after its last finished block of users.

    Args:
        dataset: whose users and catalogue. A user's whole history counts, the validation and test parts too.
        student: gives users their vectors.
        index: of the same student.
        config: for whom, how many, and which items not.
        out: where the artifact goes.
        runtime: where to compute.
        force: write again even if `out` is up to date.

    Raises:
        InputError: the inputs come from different runs, or the config names unknown users or event types.
    """
    recipe = Recipe(
        kind="recommendations",
        config=config,
        inputs={"dataset": dataset.fingerprint, "student": student.fingerprint, "index": index.fingerprint},
        seed=runtime.seed,
        modules=("recsys.hashing", "recsys.items", "recsys.ranking"),
    )
    if force or not recipe.is_current(out):
        ranker = Ranker(dataset, student, index, config, runtime=runtime)
        users = _users(dataset, config)
        with recipe.build(out) as draft:
            use_threads(runtime)
            parts = _write_parts(dataset, ranker, users, draft, runtime)
            _join(parts, ranker, recipe.fingerprint, draft)
            draft.counts = {"users": len(users)} | draft.counts
            draft.info["as_of"] = ranker.as_of.isoformat()
            draft.info["rules_without_items"] = list(ranker.rules.unmatched)
    return Recommendations.open(out)


class Recommendations(Artifact):
    """What `recsys recommend` writes: `recommendations.parquet`, columns of `schema.RECOMMENDATIONS`.

    Rows stand by user in the order of user_idx, then by rank. `generated_at` is the moment that the lists are for
    (`as_of` of the config), so that the same input gives the same bytes; when they were computed stands in the manifest
    as `created_at`.
    """

    kind: ClassVar[str] = "recommendations"
    stage: ClassVar[str] = "recommend"

    @property
    def file(self) -> Path:
        """The Parquet file."""
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


def _write_parts(
    dataset: Dataset, ranker: Ranker, users: npt.NDArray[np.int32], draft: Draft, runtime: Runtime
) -> list[Path]:
    """One file for each block of users, those of a killed build kept."""
    draft.scratch.mkdir(exist_ok=True)
    starts = range(0, len(users), BLOCK_USERS)
    parts = [draft.scratch / f"users-{start:010d}.parquet" for start in starts]
    missing = [(start, part) for start, part in zip(starts, parts, strict=True) if not part.exists()]
    done = len(parts) - len(missing)
    for start, part in runtime.track(missing, total=len(parts), initial=done, label="recommend", unit="block"):
        block = users[start : start + BLOCK_USERS]
        lists = ranker.recommend_for(dataset.histories(block))
        user_ids = dataset.users[schema.USER_ID].take(pa.array(block)).take(lists["row"])
        temporary = part.with_suffix(".tmp")
        pq.write_table(lists.append_column(schema.RECOMMENDATIONS.field(schema.USER_ID), user_ids), temporary)
        temporary.replace(part)
    return parts


def _join(parts: Iterable[Path], ranker: Ranker, run_id: str, draft: Draft) -> None:
    """Write the parts as one table, a row group each, and count."""
    n_rows = n_full = 0
    is_shown = np.zeros(len(ranker.allowed), np.bool_)
    with pq.ParquetWriter(draft.path / FILE, schema.RECOMMENDATIONS, compression="zstd") as writer:
        for part in parts:
            lists = pq.read_table(part)
            n_rows += len(lists)
            n_full += pc.sum(pc.equal(lists["rank"], ranker.config.k)).as_py() or 0
            is_shown[lists[schema.ITEM_IDX].to_numpy()] = True
            columns = {name: lists[name] for name in lists.column_names} | {
                "run_id": pa.repeat(run_id, len(lists)),
                "generated_at": pa.repeat(pa.scalar(ranker.as_of, pa.timestamp("us", "UTC")), len(lists)),
            }
            writer.write_table(
                pa.table([columns[name] for name in schema.RECOMMENDATIONS.names], schema=schema.RECOMMENDATIONS)
            )
    draft.counts |= {"rows": n_rows, "full_lists": n_full, "distinct_items": int(is_shown.sum())}
