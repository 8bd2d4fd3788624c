"""Soft labels count by what the teacher is measured to know more than the student."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.api import Run
from recsys.artifacts import hash_file
from recsys.config import PipelineConfig
from recsys.ingest.windows import sliding_windows
from recsys.runtime import Runtime
from recsys.sequence.towers import Towers
from recsys.soft_labels import Rows
from recsys.student.advantage import LIGHT, SEGMENTS, Advantage, segments
from recsys.student.config import DistillConfig
from recsys.student.distill import Soft, distill
from tests.interrupt import Interrupted


def asked(finished: Run, logit_of_target: float) -> Rows:
    """A row for everybody at the end of training: the validation part's first item against 9 others."""
    dataset = finished.dataset
    cases = dataset.cases("valid")
    known = dataset.split.train_end[cases.user_idx] > 0
    user = cases.user_idx[known]
    target = cases.targets.values[cases.targets.offsets[:-1]][known]
    others = np.array(
        [
            np.setdiff1d(np.arange(dataset.n_items), cases.targets.select(np.array([row])).values)[:9]
            for row in np.flatnonzero(known)
        ]
    )
    candidate = np.column_stack([target, others]).astype(np.int32)
    logit = np.tile(np.linspace(0.1, 1, 10, dtype=np.float32), (len(user), 1))
    logit[:, 0] = logit_of_target
    return user, dataset.split.train_end[user].astype(np.int32), candidate, logit


def test_a_teacher_that_knows_all_counts_more_than_one_that_errs(finished: Run) -> None:
    dataset = finished.dataset
    student = trained_towers(finished)
    right, wrong = (
        Advantage.find(asked(finished, value), dataset, DistillConfig(valid_users=10**6), seed=0)
        for value in (9.0, -9.0)
    )
    np.testing.assert_allclose(right.teacher, 1.0)
    np.testing.assert_allclose(wrong.teacher, 1 / np.log2(11))
    for name, high in right(student).items():
        low = wrong(student)[name]
        assert 1 < high < 2
        assert low < 1


def test_factors_are_one_where_both_know_as_much_and_where_nothing_is_known(finished: Run) -> None:
    rows = asked(finished, 0.5)
    advantage = Advantage.find(rows, finished.dataset, DistillConfig(), seed=0)
    student = trained_towers(finished)
    # A teacher that says what the student says.
    users = finished.student.user_vectors(advantage.histories)
    same = np.einsum("nd,ncd->nc", users, finished.student.item_vectors[advantage.candidate])
    user, position, candidate, _ = rows
    assert len(same) == len(user)
    copy = Advantage.find(
        (user, position, candidate, same.astype(np.float32)), finished.dataset, DistillConfig(), seed=0
    )
    assert list(copy(student).values()) == pytest.approx([1.0] * len(SEGMENTS), abs=1e-6)
    nobody = tuple(part[:0] for part in rows)
    empty = Advantage.find(nobody, finished.dataset, DistillConfig(), seed=0)  # type: ignore[arg-type]
    assert list(empty(student).values()) == [1.0] * len(SEGMENTS)


def test_segments_are_by_events_before_and_by_the_first_choice(finished: Run) -> None:
    dataset = finished.dataset
    events = np.bincount(dataset.train.item_idx, minlength=dataset.n_items)
    most, least = int(events.argmax()), int(events.argmin())
    candidate = np.array([[most, least, -1], [least, most, -1]] * 2, dtype=np.int32)
    logit = np.tile(np.array([1.0, 0.0, 5.0], dtype=np.float32), (4, 1))  # padding has no say
    position = np.array([LIGHT, LIGHT, LIGHT + 1, LIGHT + 1], dtype=np.int32)
    found = [SEGMENTS[code] for code in segments(position, candidate, logit, dataset)]
    assert found == ["light_head", "light_tail", "known_head", "known_tail"]


def test_a_segment_counts_as_much_as_was_measured(finished: Run) -> None:
    dataset = finished.dataset
    config = DistillConfig(by_segment=True)
    windows = sliding_windows(dataset.train, config.max_history)
    soft = Soft.find(finished.soft_labels.padded(), dataset.train, windows, config, dataset=dataset)
    assert soft.segment is not None
    batch = np.arange(len(windows.user))
    width = config.max_history + 1
    users = torch.randn(len(batch) * width, 8, generator=torch.Generator().manual_seed(0))
    items = torch.randn(dataset.n_items, 8, generator=torch.Generator().manual_seed(1))

    def value(**factors: float) -> float:
        soft.follow({f"soft_weight_{name}": factor for name, factor in factors.items()})
        return soft(batch, users, items, width, progress=0.0)[1]

    by_segment = [value(**{each: float(each == name) for each in SEGMENTS}) for name in SEGMENTS]
    there = sorted({SEGMENTS[code] for code in soft.segment})
    assert len(there) > 1
    assert value() == pytest.approx(sum(by_segment), rel=1e-5)
    assert value(**{there[0]: 3.0}) == pytest.approx(
        value() + 2 * by_segment[SEGMENTS.index(there[0])], rel=1e-5
    )  # fmt: skip


def test_the_weights_are_logged_and_a_killed_run_goes_on_with_them(
    finished: Run, tiny: PipelineConfig, tmp_path: Path
) -> None:
    config = tiny.distill.model_copy(update={"by_segment": True, "epochs": 3})
    options = {"seed": 1, "threads": 1, "progress": False}
    arguments = (finished.dataset, finished.soft_labels, config)
    whole = distill(*arguments, tmp_path / "whole", runtime=Interrupted(**options, at="nowhere"))
    with pytest.raises(KeyboardInterrupt):
        distill(*arguments, tmp_path / "student", runtime=Interrupted(**options, at="epoch 3"))
    again = distill(*arguments, tmp_path / "student", runtime=Interrupted(**options, at="epoch 1"))
    assert hash_file(whole.path / "weights.safetensors") == hash_file(again.path / "weights.safetensors")
    weights = [[row[f"soft_weight_{name}"] for name in SEGMENTS] for row in whole.manifest["info"]["history"]]
    assert all(0 <= factor <= 2 for row in weights for factor in row)
    assert weights[0] != [1.0] * len(SEGMENTS)
    alike = distill(
        finished.dataset,
        finished.soft_labels,
        config.model_copy(update={"by_segment": False}),
        tmp_path / "alike",
        runtime=Runtime(seed=1, threads=1, progress=False),
    )
    assert hash_file(whole.path / "weights.safetensors") != hash_file(alike.path / "weights.safetensors")


def trained_towers(finished: Run) -> Towers:
    """The student of the finished run as towers, whose item vectors are the saved ones."""
    student = finished.student

    class Saved:
        user = student._tower

        def eval(self) -> None:
            """Nothing to do."""

        def items(self) -> torch.Tensor:
            return torch.from_numpy(np.array(student.item_vectors))

    return Saved()  # type: ignore[return-value]
