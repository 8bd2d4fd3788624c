"""The towers inside the teacher: what they say is a distribution, and what they are judged on they have not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.api import Run
from recsys.artifacts import hash_file
from recsys.ingest.dataset import Sequences
from recsys.runtime import Runtime
from recsys.sequence.features import ItemFeatures
from recsys.sequence.train import train_towers
from recsys.teacher.behaviour import Behaviour, BehaviourTowers, train_behaviour, without_last
from recsys.teacher.config import BehaviourConfig
from recsys.teacher.examples import Examples
from recsys.teacher.fit_evidence import fit_evidence
from recsys.teacher.model import Evidence
from tests.interrupt import Interrupted
from tests.written import numbered

QUIET = Runtime(progress=False, threads=1)
CONFIG = BehaviourConfig(use_text=False, dim=16, layers=1, epochs=2, valid_users=20, max_history=8, seeds=2)


@pytest.fixture(scope="module")
def trained(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Behaviour:
    return train_behaviour(finished.dataset, CONFIG, tmp_path_factory.mktemp("run") / "behaviour", runtime=QUIET).all


def test_what_it_says_is_the_mean_of_log_probabilities(trained: Behaviour, finished: Run) -> None:
    behaviour = trained
    histories = finished.dataset.histories(np.arange(6, dtype=np.int32))
    singles = [
        Behaviour([tower], [items], behaviour.max_history).log_probabilities(histories)
        for tower, items in zip(behaviour.towers, behaviour.items, strict=True)
    ]
    assert len(singles) == 2
    for single in singles:
        np.testing.assert_allclose(np.exp(single.astype(np.float64)).sum(1), 1, rtol=1e-4)
    assert np.abs(singles[0] - singles[1]).max() > 0.01  # two seeds, two opinions
    mean = behaviour.log_probabilities(histories)
    np.testing.assert_allclose(mean, np.mean(singles, axis=0), atol=1e-5)
    candidates = np.tile(np.array([5, 2, 9], dtype=np.int32), (6, 1))
    np.testing.assert_array_equal(behaviour.of_pairs(histories, candidates), mean[:, [5, 2, 9]])


def test_it_reads_back_as_it_was(trained: Behaviour, finished: Run, tmp_path: Path) -> None:
    histories = finished.dataset.histories(np.arange(4, dtype=np.int32))
    trained.save(tmp_path / "b.safetensors")
    again = Behaviour.load(tmp_path / "b.safetensors", CONFIG)
    np.testing.assert_array_equal(again.log_probabilities(histories), trained.log_probabilities(histories))


def test_only_the_last_events_are_held_out() -> None:
    rows = without_last(numbered([5, 1, 0, 3]), 2)
    assert rows.lengths.tolist() == [3, 0, 0, 1]
    assert rows.item_idx.tolist() == [0, 1, 2, 6]


def test_the_towers_that_the_teacher_learns_on_do_not_know_what_it_is_asked(
    trained: Behaviour, finished: Run, tmp_path: Path
) -> None:
    """Whatever the held-out events are, these towers are the same."""
    train = finished.dataset.train
    other = train.item_idx.copy()
    last = train.offsets[1:][train.lengths > 0] - 1
    other[last] = (other[last] + 7) % finished.dataset.n_items
    changed = Sequences(train.offsets, other, train.event_type, train.timestamp, train.session)

    def towers(sequences: Sequences, folder: Path) -> dict[str, torch.Tensor]:
        return train_towers(
            without_last(sequences, 1),
            ItemFeatures(),
            CONFIG,
            n_items=finished.dataset.n_items,
            event_types=finished.dataset.event_types,
            validation=None,
            scratch=folder,
            tensorboard=folder / "log",
            runtime=QUIET,
            label="test",
        ).model.state_dict()

    one, two = towers(train, tmp_path / "a"), towers(changed, tmp_path / "b")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_killed_training_goes_on_where_it_was(finished: Run, tmp_path: Path) -> None:
    options = {"seed": 1, "threads": 1, "progress": False}
    whole = train_behaviour(finished.dataset, CONFIG, tmp_path / "whole", runtime=Interrupted(**options, at="nowhere"))
    for after in (0, 1):  # killed in the second epoch of whatever comes next; the first kill's tower is finished then
        with pytest.raises(KeyboardInterrupt):
            at = Interrupted(**options, at="epoch 2/2", after=after)
            train_behaviour(finished.dataset, CONFIG, tmp_path / "behaviour", runtime=at)
    again = train_behaviour(finished.dataset, CONFIG, tmp_path / "behaviour", runtime=Interrupted(**options, at="no"))
    for file in (BehaviourTowers.FILE, BehaviourTowers.BEFORE_FILE):
        assert hash_file(whole.path / file) == hash_file(again.path / file)


class Told:
    """Evidence in which one feature speaks for the chosen item with half of the users, and against it with the others.

    Another feature tells which half a user is of.
    """

    history = 4

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def features(self, histories: object, candidates: np.ndarray, own: object = None) -> np.ndarray:
        found = self.rng.normal(size=(*candidates.shape, 11)).astype(np.float32)
        half = np.where(self.rng.random(len(candidates)) < 0.5, -1.0, 1.0)[:, None]
        found[:, :, 6] = half
        found[:, :, 4] += 3 * half * (candidates == candidates[:, :1])
        return found


def test_the_evidence_learns_what_weights_alone_cannot_say(finished: Run) -> None:
    dataset = finished.dataset
    users = np.tile(np.flatnonzero(dataset.train.lengths > 1), 20).astype(np.int32)
    n = len(users)
    pool = np.tile(np.arange(40, dtype=np.int32), (n, 1))
    ends = (dataset.train.lengths[users] - 1).astype(np.int32)
    examples = Examples(users, ends, np.random.default_rng(1).integers(0, 40, n, np.int32), pool, np.ones(n, np.bool_))
    torch.manual_seed(0)
    evidence, told = Evidence(11, 0.0), Told()
    fit_evidence(evidence, dataset, examples, told, QUIET)  # type: ignore[arg-type]
    asked = np.random.default_rng(2).permuted(np.tile(np.arange(40), (1000, 1)), axis=1)
    features = torch.from_numpy(told.features(None, asked))
    with torch.inference_mode():
        by_all = (evidence(features).argmax(1) == 0).float().mean()
        by_weights = (evidence.linear(features).squeeze(-1).argmax(1) == 0).float().mean()
    assert by_weights < 0.2  # chance is 1 in 40
    assert by_all > 0.4
