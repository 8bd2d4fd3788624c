"""Soft labels from night to night: a teacher of an earlier night is asked only about what has changed since."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import schema
from recsys.artifacts import Recipe
from recsys.ingest.dataset import Dataset, Ragged, Split, only, places
from recsys.runtime import Runtime
from recsys.soft_labels import FILE, SoftLabels, save_ids
from recsys.teacher.config import ScoreConfig
from recsys.teacher.model import Teacher
from recsys.teacher.score import MODULES, RowScorer, score_shards, what_counts

Ints = npt.NDArray[np.int32]

_UNTIL: Final = b"train_until"


def save_taught(dataset: Dataset, path: Path) -> None:
    """Write what a teacher must be asked with beside another dataset: what its item numbers stand for, and its cut."""
    items = dataset.items.select([schema.ITEM_ID])
    until = str(dataset.manifest["info"]["train_until"])
    unfinished = path.with_name(f".{path.name}.tmp")
    pq.write_table(items.replace_schema_metadata({_UNTIL: until}), unfinished, compression="zstd")
    unfinished.replace(path)


def score_changes(
    dataset: Dataset,
    teacher: Teacher,
    taught: Path,
    earlier: SoftLabels,
    config: ScoreConfig,
    out: Path,
    *,
    runtime: Runtime | None = None,
    force: bool = False,
) -> SoftLabels:
    """Keep the soft labels of an earlier night, and ask its teacher about users whose training part has grown since.

    Such a user is asked about at the end of training, as a new user is. Items that have come since the teacher was
    taught are no candidates and no part of the histories that it is shown: they wait until it is taught again. Where
    there are more rows than `config.max_rows`, the new ones go first.

    Args:
        dataset: tonight's.
        teacher: what `teach` wrote for an earlier dataset with the same event types.
        taught: what `save_taught` wrote then.
        earlier: the soft labels of a night between.
        config: how many candidates, and rows.
        out: where the artifact goes.
        runtime: device, seed, precision.
        force: score again even when `out` is up to date.
    """
    runtime = runtime or Runtime()
    recipe = Recipe(
        kind=SoftLabels.kind,
        config=what_counts(config),
        inputs={"dataset": dataset.fingerprint, "teacher": teacher.fingerprint, "earlier": earlier.fingerprint},
        seed=runtime.seed,
        modules=(*MODULES, "recsys.soft_labels", "recsys.teacher.rescore"),
    )
    if not force and recipe.is_current(out):
        return SoftLabels.open(out)
    user, position, candidate, logit = earlier.padded(dataset)
    end = dataset.split.train_end
    view = _AsTaught(dataset, taught)
    asked = np.flatnonzero((end > 0) & (view.split.train_end > 0)).astype(np.int32)
    asked = asked[~np.isin(_keys(asked, end[asked]), _keys(user, position))]
    rng = np.random.default_rng([runtime.seed, 6])
    asked = np.sort(rng.permutation(asked)[: config.max_rows])
    kept = np.sort(rng.permutation(len(user))[: config.max_rows - len(asked)])
    with recipe.build(out) as draft:
        rows = [(user[kept], position[kept], _ragged(candidate[kept]), logit[kept][candidate[kept] >= 0])]
        if len(asked):
            scorer = RowScorer(view, [teacher], config, runtime)
            shards = score_shards(scorer, asked, view.split.train_end[asked], draft, runtime)
            rows += (view.as_now(pq.read_table(shard), end) for shard in shards)
        _write(rows, draft.path / FILE)
        save_ids(dataset, draft.path)
        draft.counts.update(rows=len(kept) + len(asked), scored=len(asked))
    return SoftLabels.open(out)


class _AsTaught(Dataset):
    """A dataset in the item numbers of a teacher of another night; events of items that it does not know are left out.

    Its training part is what the teacher has counted: what lies before the cut of that night.
    """

    def __init__(self, dataset: Dataset, taught: Path) -> None:
        super().__init__(dataset.path, dataset.manifest)
        items = pq.read_table(taught)
        then: Ints = places(dataset.items[schema.ITEM_ID], items[schema.ITEM_ID])  # [n_items], −1: unknown
        self._now = np.full(len(items), -1, dtype=np.int32)
        self._now[then[then >= 0]] = np.flatnonzero(then >= 0)
        whole = dataset.sequences
        item_idx = then[whole.item_idx]
        known, renumbered = item_idx >= 0, replace(whole, item_idx=item_idx)
        counted = known & (whole.timestamp < int(items.schema.metadata[_UNTIL]))
        before, begin = np.append(0, np.cumsum(known)), whole.offsets[:-1]
        ends = [before[begin + end] - before[begin] for end in (dataset.split.train_end, dataset.split.valid_end)]
        # In the place of what `Dataset` reads from its files.
        self.__dict__ |= {
            "items": items,
            "sequences": only(renumbered, known),
            "train": only(renumbered, counted),
            "split": Split(dataset.protocol, *(end.astype(np.int32) for end in ends)),
        }

    def as_now(self, labels: pa.Table, end: Ints) -> tuple[Ints, Ints, Ragged, npt.NDArray[np.float32]]:
        """Rows of soft labels in tonight's numbers; candidates that have gone are left out."""
        user = labels[schema.USER_IDX].to_numpy()
        lists = labels["candidate"].combine_chunks()
        items = self._now[lists.flatten().to_numpy()]
        logit = labels["teacher_logit"].combine_chunks().flatten().to_numpy()
        offsets = np.append(0, np.cumsum(items >= 0))[lists.offsets.to_numpy() - lists.offsets[0].as_py()]
        return user, end[user], Ragged(offsets, items[items >= 0]), logit[items >= 0]


def _keys(user: Ints, position: Ints) -> npt.NDArray[np.int64]:
    return user.astype(np.int64) << 32 | position


def _ragged(padded: Ints) -> Ragged:
    there = padded >= 0
    return Ragged(np.append(0, np.cumsum(there.sum(1))), padded[there])


def _write(rows: list[tuple[Ints, Ints, Ragged, npt.NDArray[np.float32]]], path: Path) -> None:
    with pq.ParquetWriter(path, schema.SOFT_LABELS, compression="zstd") as writer:
        for user, position, candidate, logit in rows:
            offsets = pa.array(candidate.offsets, pa.int32())
            columns = [
                pa.array(user, pa.int32()),
                pa.array(position, pa.int32()),
                pa.ListArray.from_arrays(offsets, pa.array(candidate.values, pa.int32())),
                pa.ListArray.from_arrays(offsets, pa.array(logit, pa.float32())),
            ]
            table = pa.Table.from_arrays(columns, schema=schema.SOFT_LABELS)
            # What has gone from the catalogue may leave a row with nothing to choose between.
            writer.write_table(table.filter(pc.greater(pc.list_value_length(table["candidate"]), 1)))
