"""Dataset + teacher → soft labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import distributed, schema
from recsys.artifacts import Draft, Recipe, hash_file
from recsys.errors import InputError
from recsys.hashing import mix, seeded_keys
from recsys.ingest.dataset import Dataset, Sequences
from recsys.runtime import Runtime
from recsys.soft_labels import FILE, SoftLabels, save_ids
from recsys.teacher.config import ScoreConfig
from recsys.teacher.examples import own_sequences, seen_before
from recsys.teacher.model import Teacher

Ints = npt.NDArray[np.int32]

# What the scores depend on, among the code.
MODULES: Final = (
    "recsys.hashing",
    "recsys.teacher.behaviour",
    "recsys.teacher.examples",
    "recsys.teacher.model",
    "recsys.teacher.packing",
    "recsys.teacher.score",
    "recsys.teacher.wide",
    "recsys.sequence",
    "recsys.evidence",
)
STREAM: Final = 7  # of the random candidates, among the uses of a run's seed


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

    A row is a user at a position of the training part; its candidates are what the evidence retrieves there, what a
    student put first the night before (if its lists are given) and some random items, none of them seen before. At the
    end of training all that is known counts; at positions before it the towers that do not know the last events are
    asked, which is why only positions as far back as `teach.behaviour.held_out` can be. Shards that a killed run has
    finished are not scored again; processes that work together (`recsys.distributed`) share them out, and so do Spark's
    workers.

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
        InputError: more positions of each user are asked for than the teacher may be asked about, or the student's
            lists cannot be used.
        MissingExtraError: the engine is Spark, and pyspark is not installed.
    """
    runtime = runtime or Runtime()
    teachers = [teacher] if isinstance(teacher, Teacher) else list(teacher)
    held_out = min(each.config.behaviour.held_out for each in teachers)
    if config.positions_per_user > held_out + 1:
        raise InputError(
            f"score.positions_per_user = {config.positions_per_user}, and teach.behaviour.held_out = {held_out}",
            expected="at most one position more than were held out: before them the teacher knows what comes next",
            do="lower score.positions_per_user, or raise teach.behaviour.held_out and teach again",
        )
    recipe = Recipe(
        kind=SoftLabels.kind,
        config=what_counts(config),
        inputs={"dataset": dataset.fingerprint, "teacher": teachers[0].fingerprint}
        | {f"teacher_{number}": each.fingerprint for number, each in enumerate(teachers[1:], start=2)}
        | ({} if config.recommendations is None else {"recommendations": _hash_of_lists(config.recommendations)}),
        seed=runtime.seed,
        modules=MODULES,
    )
    if force or not distributed.from_first(recipe.is_current(out)):
        scorer = RowScorer(dataset, teachers, config, runtime)
        with recipe.build(out) as draft:
            users, positions = _rows(dataset, config, runtime.seed)
            parts: list[Path] = []
            if config.engine == "local":
                parts = score_shards(scorer, users, positions, draft, runtime)
            elif not distributed.rank():  # Spark has its own workers, and needs one process to lead them
                from recsys.teacher.spark import score_on_spark

                parts = score_on_spark(scorer, _batch(users, positions), draft.scratch, runtime)
            with pq.ParquetWriter(draft.path / FILE, schema.SOFT_LABELS, compression="zstd") as writer:
                for part in [] if distributed.rank() else parts:
                    for batch in pq.ParquetFile(part).iter_batches():
                        writer.write_batch(batch.cast(schema.SOFT_LABELS))
            save_ids(dataset, draft.path)
            draft.counts.update(
                rows=len(users),
                users=len(np.unique(users)),
                candidates=config.top + config.student_top + config.random,
            )
    return SoftLabels.open(out)


class RowScorer:
    """Rows of (user_idx, position) in, soft labels out; a row's are the same whatever it is batched with.

    That is up to rounding: rows that are padded to another length may differ in a logit's last bits.

    Args:
        dataset: of the users.
        teachers: whose logits are averaged; the first one's evidence retrieves.
        config: which candidates.
        runtime: seed, device and precision.
    """

    def __init__(self, dataset: Dataset, teachers: Sequence[Teacher], config: ScoreConfig, runtime: Runtime) -> None:
        self.dataset, self.teachers, self.config, self.runtime = dataset, teachers, config, runtime
        self._lists = _student_lists(dataset, config)

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Score batch by batch.

        Args:
            batches: columns user_idx and position (int32); the history is the user's events before the position.

        Yields:
            Batches of `schema.SOFT_LABELS`, row by row as they came.
        """
        for batch in batches:
            users, positions = (batch.column(name).to_numpy() for name in (schema.USER_IDX, schema.POSITION))
            candidates = self._candidates(users, positions)
            there = candidates >= 0
            logits = self._logits(users, positions, candidates)
            offsets = pa.array(np.concatenate([[0], np.cumsum(there.sum(1))]), type=pa.int32())
            yield pa.RecordBatch.from_arrays(
                [
                    pa.array(users),
                    pa.array(positions),
                    pa.ListArray.from_arrays(offsets, pa.array(candidates[there])),
                    pa.ListArray.from_arrays(offsets, pa.array(logits[there])),
                ],
                schema=schema.SOFT_LABELS,
            )

    def _candidates(self, users: Ints, positions: Ints) -> Ints:
        """[n, C]: retrieved, of the student, random; −1 where one was seen or stands there already."""
        dataset, config = self.dataset, self.config
        candidates = np.empty((len(users), config.top + config.student_top + config.random), dtype=np.int32)
        for known, rows, part in self._parts(users, positions, size=256):
            seen = seen_before(dataset, users[rows], positions[rows])
            packer = self.teachers[0].packer(before=not known)
            top = packer.retrieve(part, seen, config.top, own_sequences(dataset, users[rows]))
            nothing = np.full((len(rows), config.student_top), -1, dtype=np.int32)
            student = self._student_top(users[rows], seen) if known else nothing
            random = self._random(users[rows], positions[rows])
            random[_among(random, seen, dataset.n_items)] = -1
            found = np.concatenate([top, student, random], axis=1)
            candidates[rows] = np.where(_repeated(found), -1, found)
        return candidates

    def _student_top(self, users: Ints, seen: tuple[npt.NDArray[np.int64], Ints]) -> Ints:
        """[n, student_top]: the first of each user's list that were not seen, best first, −1 where there are fewer."""
        offsets, items = self._lists
        begin, end = offsets[users], offsets[users + 1]
        # At least so wide as is asked for, so that what is missing is padding.
        place = begin[:, None] + np.arange(max(int((end - begin).max(initial=0)), self.config.student_top))
        there = place < end[:, None]
        found = np.full(there.shape, -1, dtype=np.int32)
        found[there] = items[place[there]]
        found[_among(found, seen, self.dataset.n_items)] = -1
        best = np.argsort(found < 0, axis=1, kind="stable")[:, : self.config.student_top]
        return np.take_along_axis(found, best, axis=1)

    def _random(self, users: Ints, positions: Ints) -> Ints:
        """[n, random]: of the whole catalogue; a row's depend on seed, user and position alone."""
        keys = mix(seeded_keys(users, self.runtime.seed, STREAM) ^ positions.astype(np.uint32))
        draws = seeded_keys(np.arange(self.config.random), self.runtime.seed, STREAM + 1)
        return (mix(keys[:, None] ^ draws[None, :]) % np.uint32(self.dataset.n_items)).astype(np.int32)

    def _logits(self, users: Ints, positions: Ints, candidates: Ints) -> npt.NDArray[np.float32]:
        there = candidates >= 0
        logits = np.zeros(candidates.shape, dtype=np.float32)
        for known, rows, part in self._parts(users, positions, size=max(len(users), 1)):
            own = own_sequences(self.dataset, users[rows])
            asked = np.maximum(candidates[rows], 0)
            for teacher in self.teachers:
                found = teacher.score(part, asked, own=own, before=not known, runtime=self.runtime)
                one = len(self.teachers) == 1
                logits[rows] += found if one else _standard(found, there[rows]) / len(self.teachers)
        return logits

    def _parts(
        self, users: Ints, positions: Ints, *, size: int
    ) -> Iterator[tuple[bool, npt.NDArray[np.int64], Sequences]]:
        """The rows at the end of training and then those before it, some at a time, with their histories."""
        at_end = positions == self.dataset.split.train_end[users]
        for known in (True, False):
            chosen = np.flatnonzero(at_end == known)
            for start in range(0, len(chosen), size):
                rows = chosen[start : start + size]
                last = max(teacher.packer(before=not known).history for teacher in self.teachers)
                yield known, rows, self.dataset.histories(users[rows], positions[rows], last=last)


def score_shards(scorer: RowScorer, users: Ints, positions: Ints, draft: Draft, runtime: Runtime) -> list[Path]:
    """Score the shards that are not there yet, this process its share of them; all shards, in order."""
    draft.scratch.mkdir(parents=True, exist_ok=True)
    starts = np.arange(0, len(users), scorer.config.shard_rows)
    shards = [draft.scratch / f"rows-{start:09d}.parquet" for start in starts]
    mine = distributed.part_of(np.arange(len(starts)))
    for number in runtime.track(mine, total=len(mine), label="score pairs", unit="shard"):
        if not shards[number].is_file():
            rows = slice(starts[number], starts[number] + scorer.config.shard_rows)
            temporary = shards[number].with_suffix(".tmp")
            pq.write_table(pa.Table.from_batches(scorer([_batch(users[rows], positions[rows])])), temporary)
            temporary.replace(shards[number])
    distributed.barrier()
    return shards


def _batch(users: Ints, positions: Ints) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array(users, pa.int32()), pa.array(positions, pa.int32())], names=[schema.USER_IDX, schema.POSITION]
    )


def what_counts(config: ScoreConfig) -> ScoreConfig:
    """The config without what decides only how rows are scored; of lists, content and name count, not the folder."""
    defaults, lists = ScoreConfig(), config.recommendations
    name = None if lists is None else Path(_lists_of(lists)[0].name)
    return config.model_copy(update={"engine": defaults.engine, "spark": defaults.spark, "recommendations": name})


def _lists_of(folder: Path) -> list[Path]:
    """The Parquet files of a recommendations artifact, in order."""
    file = folder if folder.is_file() else folder / "recommendations.parquet"
    files = sorted(file.glob("*.parquet")) if file.is_dir() else [file]
    if not files or not files[0].is_file():
        raise InputError(
            f"score.recommendations: there are no lists at {folder}",
            expected="a folder that `recsys recommend` wrote",
            do="correct the path, or leave out score.recommendations and score.student_top",
        )
    return files


def _hash_of_lists(folder: Path) -> str:
    return " ".join(hash_file(file) for file in _lists_of(folder))


def _student_lists(dataset: Dataset, config: ScoreConfig) -> tuple[npt.NDArray[np.int64], Ints]:
    """Where each user's list begins, [n_users + 1], and the lists' items, best first, each once.

    Users and items that have gone are left out.
    """
    if config.recommendations is None:
        return np.zeros(dataset.n_users + 1, dtype=np.int64), np.zeros(0, dtype=np.int32)
    users, items = dataset.users[schema.USER_ID].combine_chunks(), dataset.items[schema.ITEM_ID].combine_chunks()
    parts: list[list[Ints]] = [[np.zeros(0, dtype=np.int32)] * 3]
    batches = (batch for file in _lists_of(config.recommendations) for batch in _read_lists(file))
    for batch in batches:
        found = pc.index_in(batch[schema.USER_ID], users), pc.index_in(batch[schema.ITEM_ID], items), batch["rank"]
        known = pc.and_(found[0].is_valid(), found[1].is_valid())
        parts.append([column.filter(known).to_numpy() for column in found])
    user, item, rank = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((rank, user))
    user, item = user[order], item[order]
    _, first = np.unique(user * np.int64(dataset.n_items) + item, return_index=True)
    first.sort()
    return np.searchsorted(user[first], np.arange(dataset.n_users + 1)), item[first]


def _read_lists(file: Path) -> Iterator[pa.RecordBatch]:
    """user_id, item_id and rank, a part at a time."""
    wanted = pa.schema([schema.RECOMMENDATIONS.field(name) for name in (schema.USER_ID, schema.ITEM_ID, "rank")])
    try:
        table = pq.ParquetFile(file)
        missing = set(wanted.names) - set(table.schema_arrow.names)
        if missing:
            raise ValueError(f"it has no column {', '.join(sorted(missing))}")
        for batch in table.iter_batches(1 << 20, columns=wanted.names):
            yield batch.select(wanted.names).cast(wanted)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(
            f"score.recommendations: {file} cannot be used: {error}",
            expected="a Parquet table with the columns user_id, item_id (text) and rank (a whole number), none empty",
            do="give a table as `recsys recommend` writes it",
        ) from None


def _among(items: Ints, seen: tuple[npt.NDArray[np.int64], Ints], n_items: int) -> npt.NDArray[np.bool_]:
    """Which of each row's items ([n, C], −1 for padding) are among the (row, item) pairs that were seen."""
    keys = np.arange(len(items))[:, None] * np.int64(n_items) + items
    found: npt.NDArray[np.bool_] = (items >= 0) & np.isin(keys, seen[0] * np.int64(n_items) + seen[1])
    return found


def _repeated(items: Ints) -> npt.NDArray[np.bool_]:
    """Which of each row's items stand further left in it, too."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    repeated = np.zeros(items.shape, dtype=np.bool_)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return repeated


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


def _standard(logits: npt.NDArray[np.float32], there: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Each row with mean 0 and deviation 1 over the candidates that are there."""
    mean = logits.mean(axis=1, keepdims=True, where=there)
    deviation = logits.std(axis=1, keepdims=True, where=there)
    standard: npt.NDArray[np.float32] = (logits - mean) / np.maximum(deviation, 1e-6)
    return standard
