"""The student: what is trained, what it may see, and that a killed run ends as an undisturbed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import BaseModel, ValidationError

from recsys import schema
from recsys.api import Run
from recsys.artifacts import Recipe, hash_file
from recsys.config import PipelineConfig
from recsys.errors import InputError
from recsys.ingest.dataset import Sequences
from recsys.ingest.windows import sliding_windows
from recsys.runtime import Runtime
from recsys.sequence.train import collate
from recsys.soft_labels import SoftLabels
from recsys.student.config import DistillConfig, LossConfig
from recsys.student.distill import Soft, distill
from recsys.student.losses.all import LOSSES
from recsys.student.losses.confidence import confidence
from recsys.student.model import Student
from tests.interrupt import Interrupted
from tests.written import numbered


class Nothing(BaseModel):
    """A config without content."""


def labels(folder: Path, rows: list[tuple[int, int, list[int], list[float]]]) -> SoftLabels:
    recipe = Recipe(SoftLabels.kind, Nothing(), {"rows": str(rows)}, 0, ())
    with recipe.build(folder / "soft_labels") as draft:
        columns = [list(column) for column in zip(*rows, strict=True)]
        table = pa.table(
            [pa.array(c, f.type) for c, f in zip(columns, schema.SOFT_LABELS, strict=True)], schema=schema.SOFT_LABELS
        )
        pq.write_table(table, draft.path / "soft_labels.parquet")
    return SoftLabels.open(folder / "soft_labels")


def test_soft_labels_meet_the_state_that_knows_the_events_before_them(tmp_path: Path) -> None:
    lengths, max_history = [3, 11, 0, 6], 4
    train = numbered(lengths)
    windows = sliding_windows(train, max_history)
    rows = [(u, p, [u, p], [0.0, 1.0]) for u, length in enumerate(lengths) for p in range(1, length + 1)]
    soft = Soft.find(labels(tmp_path, rows).padded(), train, windows, DistillConfig())
    met = set()
    for batch in np.array_split(np.arange(len(windows.user)), 3):
        items = collate(train, windows, batch).items
        width = items.shape[1] + 1
        place, candidate, _ = soft.of(batch, width)
        for where, (user, position) in zip(place.tolist(), candidate.tolist(), strict=True):
            row, column = divmod(where, width)
            assert items[row, column - 1] == train.offsets[user] + position - 1
            met.add((user, position))
    assert met == {(u, p) for u, p, _, _ in rows}


def test_soft_labels_of_another_dataset_are_refused(tmp_path: Path) -> None:
    train = numbered([3, 3])
    with pytest.raises(InputError, match="1 soft labels stand at users or positions"):
        bad = labels(tmp_path, [(0, 2, [1], [0.5]), (1, 4, [1], [0.5])])
        Soft.find(bad.padded(), train, sliding_windows(train, 4), DistillConfig())


def test_soft_labels_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NaN"):
        labels(tmp_path, [(0, 2, [1, 2], [0.5, float("nan")])]).padded()


def test_a_user_vector_depends_on_nobody_else(finished: Run) -> None:
    dataset, student = finished.dataset, finished.student
    users = np.arange(40, dtype=np.int32)
    together = student.user_vectors(dataset.histories(users))
    backwards = student.user_vectors(dataset.histories(users[::-1]))[::-1]
    alone = np.concatenate([student.user_vectors(dataset.histories(users[u : u + 1])) for u in range(40)])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    np.testing.assert_allclose(together, backwards, atol=1e-4)


def test_only_the_last_events_are_read_and_none_is_needed(finished: Run) -> None:
    student, longest = finished.student, finished.student.config.max_history
    n = longest + 30
    rng = np.random.default_rng(0)
    items = rng.integers(0, finished.dataset.n_items, n).astype(np.int32)
    zeros = np.zeros(n)

    def history(start: int) -> Sequences:
        return Sequences(
            np.array([0, n - start]),
            items[start:],
            zeros[start:].astype(np.int8),
            zeros[start:].astype(np.int64),
            zeros[start:].astype(np.int32),
        )

    np.testing.assert_allclose(student.user_vectors(history(0)), student.user_vectors(history(30)), atol=1e-5)
    assert np.isfinite(student.user_vectors(history(n))).all()


def test_an_item_nobody_has_touched_lives_by_what_the_catalogue_knows_of_it(finished: Run) -> None:
    from safetensors.numpy import load_file

    from recsys.sequence.features import item_features
    from recsys.text import TextVectors

    weights = load_file(finished.student.path / "weights.safetensors")
    text = TextVectors.open(finished.config.run_dir / "text_vectors").vectors
    features = item_features(finished.dataset.items, text, finished.student.config)
    projected = features.text @ weights["items.project.weight"].T + weights["items.project.bias"]
    assert list(features.groups) == ["brand", "category", "department", "price"]
    for place, codes in enumerate(features.groups.values()):
        projected += weights[f"items.groups.{place}.weight"][codes]
    cold = np.bincount(finished.dataset.train.item_idx, minlength=finished.dataset.n_items) == 0
    assert cold.any()
    np.testing.assert_allclose(finished.student.item_vectors[cold], projected[cold], atol=1e-4)
    assert np.abs(finished.student.item_vectors[~cold] - projected[~cold]).max() > 1e-2


def test_a_killed_training_ends_as_an_undisturbed_one(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    config, runtime = tiny.distill, tiny.runtime(progress=False)
    options = {"seed": runtime.seed, "threads": runtime.threads, "progress": False}
    arguments = (finished.dataset, finished.soft_labels, config, tmp_path / "student")
    with pytest.raises(KeyboardInterrupt):
        distill(*arguments, runtime=Interrupted(**options, at="epoch 3"))
    resumed = distill(*arguments, runtime=Interrupted(**options, at="epoch 2"))  # epoch 2 is not done again
    for name in ("item_vectors.npy", "weights.safetensors"):
        assert hash_file(resumed.path / name) == hash_file(finished.student.path / name)


# Ids alone know nothing of a place in the history that no training sequence reached, as the last one here: it is read
# as the last one that is known.
@pytest.mark.parametrize("use_text", [True, False])
def test_the_student_learns_a_plain_sequence(use_text: bool, tmp_path: Path) -> None:
    """In a shop where item i is followed by item i + 1, the student says so."""
    n_items, n_users = 40, 300
    rng = np.random.default_rng(0)
    starts, length = rng.integers(0, n_items, n_users), 8
    items = (starts[:, None] + np.arange(length)) % n_items
    dataset = ring_dataset(tmp_path, items, n_items)
    config = DistillConfig(use_text=use_text, dim=32, layers=1, epochs=40, patience=40, batch_positions=512, lr=5e-3)
    student = distill(dataset, None, config, tmp_path / "student", runtime=Runtime(progress=False))
    cases = dataset.cases("test")
    vectors = student.user_vectors(dataset.histories(cases.user_idx, cases.history_end))
    top = (vectors @ student.item_vectors.T).argmax(1)
    assert (top == cases.targets.values).mean() > 0.95
    assert (tmp_path / "text_vectors").exists() == use_text


def ring_dataset(folder: Path, items: np.ndarray, n_items: int) -> Any:
    from recsys.ingest.dataset import Dataset
    from tests.written import write_sequences

    n, length = items.shape
    users = pa.array(np.arange(n), pa.int32())
    recipe = Recipe(Dataset.kind, Nothing(), {}, 0, ())
    with recipe.build(folder / "dataset") as draft:
        times = np.arange(items.size).reshape(items.shape)
        write_sequences(draft.path, items.tolist(), times.tolist(), [length - 2] * n, [length - 1] * n)
        ids = [f"u{u}" for u in range(n)]
        pq.write_table(pa.table([users, pa.array(ids)], schema=schema.USERS), draft.path / "users.parquet")
        names = [f"thing number {i}" for i in range(n_items)]
        blank = [pa.nulls(n_items, field.type) for field in list(schema.ITEMS)[3:]]
        catalogue = [pa.array(np.arange(n_items), pa.int32()), pa.array(names), pa.array(names), *blank]
        pq.write_table(pa.table(catalogue, schema=schema.ITEMS), draft.path / "items.parquet")
        draft.info.update(event_types=list(schema.EVENT_TYPES), protocol="leave_one_out")
    return Dataset.open(folder / "dataset")


def test_opening_something_else_says_so(finished: Run) -> None:
    with pytest.raises(InputError, match="'dataset' artifact"):
        Student.open(finished.dataset.path)


def plain_soft(rows: list[tuple[int, int, list[int], list[float]]], folder: Path, **config: Any) -> Soft:
    train = numbered([3, 3])
    return Soft.find(
        labels(folder, rows).padded(), train, sliding_windows(train, 4), DistillConfig.model_validate(config)
    )


def test_losses_are_added_up_by_weight_and_schedule(tmp_path: Path) -> None:
    rows = [(0, 2, [1, 2, 4], [0.5, 0.1, 2.0]), (1, 3, [3, 0], [1.0, -1.0])]
    torch.manual_seed(0)
    users, items = torch.randn(2 * 4, 8), torch.randn(6, 8)
    windows = np.arange(2)

    def value(progress: float, **config: Any) -> float:
        soft = plain_soft(rows, tmp_path / str(abs(hash((progress, str(config))))), **config)
        return soft(windows, users, items, 4, progress=progress)[1]

    one = value(0.0, losses={"listwise_kl": {"weight": 1.0}})
    two = value(0.0, losses={"margin_mse": {"weight": 1.0, "temperature": 2.0}})
    both = {"listwise_kl": {"weight": 2.0, "final_weight": 0.0}, "margin_mse": {"weight": 0.5, "temperature": 2.0}}
    assert value(0.0, losses=both) == pytest.approx(2 * one + 0.5 * two, rel=1e-5)
    assert value(0.25, losses=both) == pytest.approx(1.5 * one + 0.5 * two, rel=1e-5)
    assert value(1.0, losses=both) == pytest.approx(0.5 * two, rel=1e-5)
    sure = value(0.0, losses={"listwise_kl": {"weight": 1.0}}, confidence=True)
    assert sure != pytest.approx(one, rel=1e-3)
    soft = plain_soft(rows, tmp_path / "sure", losses={"listwise_kl": {"weight": 1.0}})
    by_row = [soft(np.array([row]), users[row * 4 :][:4], items, 4, progress=0.0)[1] for row in range(2)]
    weights = confidence(*(torch.from_numpy(each) for each in (soft.logit, soft.candidate >= 0))).numpy()
    assert sure == pytest.approx(float(np.dot(by_row, weights) / weights.sum()), rel=1e-4)


def test_rows_that_tell_nothing_are_left_out_and_nothing_at_all_is_refused(tmp_path: Path) -> None:
    telling = (0, 2, [1, 2], [0.5, 0.1])
    soft = plain_soft([telling, (0, 3, [1, 2], [0.5, 0.5]), (1, 1, [4], [0.5])], tmp_path / "a")
    assert len(soft.place) == 1
    with pytest.raises(InputError, match="gives every candidate the same logit"):
        plain_soft([(0, 3, [1, 2], [0.5, 0.5])], tmp_path / "b")
    with pytest.raises(InputError, match="underflow"):
        plain_soft([telling], tmp_path / "c", losses={"listwise_kl": {"temperature": 0.05}})
    with pytest.raises(InputError, match="compares texts"):
        plain_soft([telling], tmp_path / "d", losses={"feature_matching": {}})
    with pytest.raises(ValidationError, match="listwise_kl"):
        DistillConfig.model_validate({"losses": {"listwise": {}}})


def test_all_losses_together_resume_to_the_bit(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    names = (*LOSSES, "feature_matching")
    losses = {name: LossConfig(weight=0.2, final_weight=0.1) for name in names}
    config = tiny.distill.model_copy(update={"losses": losses, "confidence": True, "epochs": 2})
    options = {"seed": 1, "threads": 1, "progress": False}
    arguments = (finished.dataset, finished.soft_labels, config)
    whole = distill(*arguments, tmp_path / "whole", runtime=Interrupted(**options, at="nowhere"))
    with pytest.raises(KeyboardInterrupt):
        distill(*arguments, tmp_path / "student", runtime=Interrupted(**options, at="epoch 2"))
    again = distill(*arguments, tmp_path / "student", runtime=Interrupted(**options, at="epoch 1"))
    assert hash_file(whole.path / "weights.safetensors") == hash_file(again.path / "weights.safetensors")
    assert whole.manifest["info"]["history"][0]["soft"] > 0
