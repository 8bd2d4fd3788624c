"""Dataset + teacher → soft labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recsys import schema
from recsys.artifacts import Draft, Recipe
from recsys.ingest.dataset import Dataset
from recsys.runtime import Runtime
from recsys.soft_labels import SoftLabels
from recsys.teacher.config import ScoreConfig
from recsys.teacher.model import Teacher, pad_left
from recsys.teacher.teach import history_rows, own_sequences
from recsys.teacher.wide import WideEvidence


def score(
    dataset: Dataset,
    teacher: Teacher,
    config: ScoreConfig,
    out: Path,
    *,
    runtime: Runtime | None = None,
    force: bool = False,
) -> SoftLabels:
    """Ask the teacher about pairs that nobody has labelled, for the student to learn from.

    A row is a user at a position of the training part; its candidates are what the evidence retrieves there and some
    random items, none of them seen before. Shards that a killed run has finished are not scored again.

    Args:
        dataset: what `ingest` wrote.
        teacher: what `teach` wrote.
        config: how many rows and candidates.
        out: where the artifact goes, e.g. `runs/sample/soft_labels`.
        runtime: device, seed, precision.
        force: score again even when `out` is up to date.
    """
    runtime = runtime or Runtime()
    recipe = Recipe(
        kind=SoftLabels.kind,
        config=config,
        inputs={"dataset": dataset.fingerprint, "teacher": teacher.fingerprint},
        seed=runtime.seed,
        modules=(
            "recsys.teacher.model",
            "recsys.teacher.packing",
            "recsys.teacher.score",
            "recsys.teacher.wide",
            "recsys.evidence",
        ),
    )
    if force or not recipe.is_current(out):
        with recipe.build(out) as draft:
            _score(dataset, teacher, config, draft, runtime)
    return SoftLabels.open(out)


def _score(dataset: Dataset, teacher: Teacher, config: ScoreConfig, draft: Draft, runtime: Runtime) -> None:
    users, positions = _rows(dataset, config, runtime.seed)
    draft.scratch.mkdir(exist_ok=True)
    starts = range(0, len(users), config.shard_rows)
    with pq.ParquetWriter(draft.path / "soft_labels.parquet", schema.SOFT_LABELS, compression="zstd") as writer:
        for start in runtime.track(starts, total=len(starts), label="score pairs", unit="shard"):
            shard = draft.scratch / f"rows-{start:09d}.parquet"
            if not shard.is_file():
                rows = slice(start, start + config.shard_rows)
                table = _shard(dataset, teacher, config, users[rows], positions[rows], runtime, start)
                temporary = shard.with_suffix(".tmp")
                pq.write_table(table, temporary, compression="zstd")
                temporary.replace(shard)
            writer.write_table(pq.read_table(shard, schema=schema.SOFT_LABELS))
    draft.counts.update(rows=len(users), users=len(np.unique(users)), candidates=config.top + config.random)


def _rows(dataset: Dataset, config: ScoreConfig, seed: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """(user, position) of every row, in the order of user and position; nobody is asked about without a history."""
    end = dataset.split.train_end.astype(np.int32)
    back = np.arange(config.positions_per_user, dtype=np.int32)[None, :]
    position = end[:, None] - back
    user = np.broadcast_to(np.arange(len(end), dtype=np.int32)[:, None], position.shape)
    asked = position > 0
    user, position = user[asked], position[asked]
    if len(user) > config.max_rows:
        chosen = np.random.default_rng([seed, 6]).permutation(len(user))[: config.max_rows]
        user, position = user[chosen], position[chosen]
    order = np.lexsort((position, user))
    return user[order], position[order]


def _shard(
    dataset: Dataset,
    teacher: Teacher,
    config: ScoreConfig,
    users: npt.NDArray[np.int32],
    positions: npt.NDArray[np.int32],
    runtime: Runtime,
    start: int,
) -> pa.Table:
    histories, (seen_row, seen_item) = history_rows(dataset, users, positions)
    own = own_sequences(dataset, users)
    recent = pad_left(histories, WideEvidence.HISTORY)[0]
    top = np.concatenate(
        [
            teacher.wide.retrieve(
                recent[low:high],
                (seen_row[begin:end] - low, seen_item[begin:end]),
                config.top,
                own_sequences(dataset, users[low:high]),
            )
            for low, high, begin, end in _blocks(seen_row, len(users), 256)
        ]
    )
    # The same shard draws the same items whether or not the run was killed before it.
    rng = np.random.default_rng([runtime.seed, 7, start])
    random = rng.integers(0, dataset.n_items, (len(users), config.random), dtype=np.int32)
    taken = np.isin(
        np.arange(len(users))[:, None] * np.int64(dataset.n_items) + random,
        seen_row * np.int64(dataset.n_items) + seen_item,
    )
    taken |= (random[:, :, None] == top[:, None, :]).any(2)
    taken |= np.tril(random[:, :, None] == random[:, None, :], -1).any(2)
    candidates = np.concatenate([top, np.where(taken, -1, random)], axis=1)
    logits = teacher.score(histories, np.maximum(candidates, 0), own=own, runtime=runtime)
    there = candidates >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(there.sum(1))]), type=pa.int32())
    return pa.table(
        [
            pa.array(users),
            pa.array(positions),
            pa.ListArray.from_arrays(offsets, pa.array(candidates[there])),
            pa.ListArray.from_arrays(offsets, pa.array(logits[there])),
        ],
        schema=schema.SOFT_LABELS,
    )


def _blocks(seen_row: npt.NDArray[np.int64], n: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Blocks of rows, with the slice of `seen_row` that belongs to each."""
    for low in range(0, n, size):
        high = min(low + size, n)
        begin, end = np.searchsorted(seen_row, [low, high])
        yield low, high, int(begin), int(end)
