"""Soft labels of one night beside the dataset of another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys import schema
from recsys.api import Run
from recsys.artifacts import Recipe
from recsys.config import PipelineConfig
from recsys.ingest.dataset import Dataset, Sequences
from recsys.soft_labels import FILE, SoftLabels, joined, save_ids
from recsys.student.distill import distill


class Later:
    """The same shop with users and items in another order, some of them gone, and histories one event shorter."""

    def __init__(self, dataset: Dataset, users: np.ndarray, items: np.ndarray) -> None:
        self.fingerprint = "another"
        self.users, self.items = dataset.users.take(users), dataset.items.take(items)
        lengths = np.maximum(dataset.train.lengths[users[users < len(dataset.train)]] - 1, 0)
        offsets = np.append(0, np.cumsum(lengths))
        none = np.zeros(offsets[-1], np.int64)
        self.train = Sequences(offsets, none.astype(np.int32), none.astype(np.int8), none, none.astype(np.int32))


def test_rows_are_matched_by_ids(finished: Run) -> None:
    labels, dataset = finished.soft_labels, finished.dataset
    rng = np.random.default_rng(0)
    users, items = rng.permutation(len(dataset.train))[7:], rng.permutation(dataset.n_items)[30:]
    later = Later(dataset, users, items)
    user, position, candidate, logit = labels.padded()
    user_now = {int(old): new for new, old in enumerate(users)}
    item_now = {int(old): new for new, old in enumerate(items)}
    expected = {}
    for row in range(len(user)):
        now = user_now.get(int(user[row]))
        if now is None or position[row] > later.train.lengths[now]:
            continue
        pairs = zip(candidate[row].tolist(), logit[row].tolist(), strict=True)
        expected[now, int(position[row])] = {item_now[item]: value for item, value in pairs if item in item_now}
    found = labels.padded(later)  # type: ignore[arg-type]
    met = {
        (u, p): {item: value for item, value in zip(c, t, strict=True) if item >= 0}
        for u, p, c, t in zip(*(part.tolist() for part in found), strict=True)
    }
    assert met == expected
    same = labels.padded(dataset)
    assert all(np.array_equal(one, two) for one, two in zip(same, labels.padded(), strict=True))


def test_the_newer_word_on_a_position_counts(finished: Run, tmp_path: Path) -> None:
    new = finished.soft_labels
    table = new.table
    # A number that no teacher gives; in bf16 some logits are exactly 1.
    same = pa.array([[1234.5] * len(row) for row in table["teacher_logit"].to_pylist()], pa.list_(pa.float32()))
    old = table.set_column(3, table.schema.field(3), same)
    cut = table.slice(5)  # the new one says nothing of the first five
    folders = []
    for name, rows in (("new", cut), ("old", old)):
        inputs = {"dataset": finished.dataset.fingerprint}
        with Recipe(SoftLabels.kind, finished.config.score, inputs, 0, ()).build(tmp_path / name) as draft:
            pq.write_table(rows.cast(schema.SOFT_LABELS), draft.path / FILE)
            save_ids(finished.dataset, draft.path)
        folders.append(SoftLabels.open(tmp_path / name))
    user, position, _, logit = joined(folders, finished.dataset)
    assert len(user) == len(table)
    assert len(set(zip(user.tolist(), position.tolist(), strict=True))) == len(table)
    constant = (logit == 1234.5).any(1)
    assert constant.sum() == 5


def test_a_student_learns_from_labels_of_two_nights(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    config = tiny.distill.model_copy(update={"epochs": 1, "earlier_soft_labels": (finished.soft_labels.path,)})
    student = distill(
        finished.dataset, finished.soft_labels, config, tmp_path / "s", runtime=tiny.runtime(progress=False)
    )
    assert student.counts["soft_labels"] == finished.student.counts["soft_labels"]  # the same rows, once
    assert student.manifest["inputs"]["soft_labels_2"] == finished.soft_labels.fingerprint
