"""Dataset + teacher → soft labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recsys import schema
from recsys.artifacts import Draft, Recipe
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset, Sequences
from recsys.runtime import Runtime
from recsys.soft_labels import SoftLabels
from recsys.teacher.config import ScoreConfig
from recsys.teacher.examples import own_sequences, seen_before
from recsys.teacher.model import Teacher


def score(
    dataset: Dataset,
    teacher: Teacher | Sequence[Teacher],
    config: ScoreConfig,
    out: Path,
    *,
    runtime: Runtime | None = None,
    force: bool = False,
) -> SoftLabels:
    """Ask the teacher about pairs that nobody has labelled, for the student to learn from.

    A row is a user at a position of the training part; its candidates are what the evidence retrieves there and some
    random items, none of them seen before. At the end of training all that is known counts; at positions before it the
    towers that do not know the last events are asked, which is why only positions as far back as `teach.held_out` can
    be. Shards that a killed run has finished are not scored again.

    Args:
        dataset: what `ingest` wrote.
        teacher: what `teach` wrote; of several, such as those of other seeds, the first one's evidence retrieves, and
            the table holds the mean of their logits, each standardised over the row's candidates (an ensemble's soft
            targets: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015).
        config: how many rows and candidates.
        out: where the artifact goes, e.g. `runs/sample/soft_labels`.
        runtime: device, seed, precision.
        force: score again even when `out` is up to date.

    Raises:
        InputError: more positions of each user are asked for than the teacher may be asked about.
    """
    runtime = runtime or Runtime()
    teachers = [teacher] if isinstance(teacher, Teacher) else list(teacher)
    held_out = min(each.config.held_out for each in teachers)
    if config.positions_per_user > held_out + 1:
        raise InputError(
            f"score.positions_per_user = {config.positions_per_user}, and teach.held_out = {held_out}",
            expected="at most one position more than were held out: before them the teacher knows what comes next",
            do="lower score.positions_per_user, or raise teach.held_out and teach again",
        )
    recipe = Recipe(
        kind=SoftLabels.kind,
        config=config,
        inputs={"dataset": dataset.fingerprint, "teacher": teachers[0].fingerprint}
        | {f"teacher_{number}": each.fingerprint for number, each in enumerate(teachers[1:], start=2)},
        seed=runtime.seed,
        modules=(
            "recsys.teacher.behaviour",
            "recsys.teacher.model",
            "recsys.teacher.packing",
            "recsys.teacher.score",
            "recsys.teacher.wide",
            "recsys.sequence",
            "recsys.evidence",
        ),
    )
    if force or not recipe.is_current(out):
        with recipe.build(out) as draft:
            _score(dataset, teachers, config, draft, runtime)
    return SoftLabels.open(out)


def _score(dataset: Dataset, teachers: Sequence[Teacher], config: ScoreConfig, draft: Draft, runtime: Runtime) -> None:
    users, positions = _rows(dataset, config, runtime.seed)
    draft.scratch.mkdir(exist_ok=True)
    starts = range(0, len(users), config.shard_rows)
    with pq.ParquetWriter(draft.path / "soft_labels.parquet", schema.SOFT_LABELS, compression="zstd") as writer:
        for start in runtime.track(starts, total=len(starts), label="score pairs", unit="shard"):
            shard = draft.scratch / f"rows-{start:09d}.parquet"
            if not shard.is_file():
                rows = slice(start, start + config.shard_rows)
                table = _shard(dataset, teachers, config, users[rows], positions[rows], runtime, start)
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
    teachers: Sequence[Teacher],
    config: ScoreConfig,
    users: npt.NDArray[np.int32],
    positions: npt.NDArray[np.int32],
    runtime: Runtime,
    start: int,
) -> pa.Table:
    at_end = positions == dataset.split.train_end[users]
    # The same shard draws the same items whether or not the run was killed before it.
    rng = np.random.default_rng([runtime.seed, 7, start])
    random = rng.integers(0, dataset.n_items, (len(users), config.random), dtype=np.int32)
    top, taken = np.empty((len(users), config.top), dtype=np.int32), np.empty(random.shape, dtype=np.bool_)
    n_items = np.int64(dataset.n_items)
    for known, rows, part in _parts(dataset, teachers, users, positions, at_end, size=256):
        seen = seen_before(dataset, users[rows], positions[rows])
        packer = teachers[0].packer(before=not known)
        top[rows] = packer.retrieve(part, seen, config.top, own_sequences(dataset, users[rows]))
        taken[rows] = np.isin(np.arange(len(rows))[:, None] * n_items + random[rows], seen[0] * n_items + seen[1])
    taken |= (random[:, :, None] == top[:, None, :]).any(2)
    taken |= np.tril(random[:, :, None] == random[:, None, :], -1).any(2)
    candidates = np.concatenate([top, np.where(taken, -1, random)], axis=1)
    there = candidates >= 0
    logits = np.zeros(candidates.shape, dtype=np.float32)
    for known, rows, part in _parts(dataset, teachers, users, positions, at_end, size=len(users)):
        own = own_sequences(dataset, users[rows])
        asked = np.maximum(candidates[rows], 0)
        for teacher in teachers:
            found = teacher.score(part, asked, own=own, before=not known, runtime=runtime)
            logits[rows] += found if len(teachers) == 1 else _standard(found, there[rows]) / len(teachers)
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


def _standard(logits: npt.NDArray[np.float32], there: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Each row with mean 0 and deviation 1 over the candidates that are there."""
    mean = logits.mean(axis=1, keepdims=True, where=there)
    deviation = logits.std(axis=1, keepdims=True, where=there)
    standard: npt.NDArray[np.float32] = (logits - mean) / np.maximum(deviation, 1e-6)
    return standard


def _parts(
    dataset: Dataset,
    teachers: Sequence[Teacher],
    users: npt.NDArray[np.int32],
    positions: npt.NDArray[np.int32],
    at_end: npt.NDArray[np.bool_],
    *,
    size: int,
) -> Iterator[tuple[bool, npt.NDArray[np.int64], Sequences]]:
    """The rows at the end of training and then those before it, some at a time, with their histories."""
    for known in (True, False):
        chosen = np.flatnonzero(at_end == known)
        for start in range(0, len(chosen), size):
            rows = chosen[start : start + size]
            last = max(teacher.packer(before=not known).history for teacher in teachers)
            yield known, rows, dataset.histories(users[rows], positions[rows], last=last)
