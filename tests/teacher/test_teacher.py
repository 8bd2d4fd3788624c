"""The teacher: what it may know, what its parts add up to, and that a killed run ends as an undisturbed one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.api import Run
from recsys.artifacts import hash_file
from recsys.config import PipelineConfig
from recsys.errors import InputError
from recsys.ingest.dataset import Sequences, pad_left, take
from recsys.teacher.examples import Examples, draw_candidates, history_rows, own_sequences
from recsys.teacher.model import PRIOR, TeacherModel, reranked, split_encoder
from recsys.teacher.teach import teach
from recsys.teacher.wide import WideEvidence
from recsys.text import TextVectors, encoder_path, item_texts, load_encoder
from tests.interrupt import Interrupted


@pytest.fixture(scope="module")
def wide(finished: Run) -> WideEvidence:
    return finished.teacher.wide


def without(train: Sequences, user: int) -> Sequences:
    """Everybody's training events but one user's."""
    count = train.lengths.copy()
    count[user] = 0
    return take(train, train.offsets[:-1], count)


def test_an_example_is_read_as_if_its_user_had_never_been_counted(finished: Run, wide: WideEvidence) -> None:
    dataset, text = finished.dataset, TextVectors.open(finished.config.run_dir / "text_vectors").vectors
    users = np.flatnonzero(dataset.train.lengths > 5)[:5].astype(np.int32)
    position = (dataset.train.lengths[users] - 2).astype(np.int32)
    candidates = np.stack([dataset.train.item_idx[dataset.train.offsets[users] + position + i] for i in (0, 1)], 1)
    history = pad_left(dataset.histories(users, position), WideEvidence.HISTORY)[0]
    read = wide.features(history, candidates, own_sequences(dataset, users))
    naive = wide.features(history, candidates)
    for row, user in enumerate(users):
        others = WideEvidence.fit(without(dataset.train, user), dataset.items, text)
        expected = others.features(history[row : row + 1], candidates[row : row + 1])[0]
        np.testing.assert_allclose(read[row], expected, atol=2e-4)
    assert np.abs(read - naive).max() > 0.1  # there was something to take out


@pytest.mark.parametrize("blind", [False, True])
def test_retrieval_is_the_best_of_the_whole_catalogue(finished: Run, wide: WideEvidence, blind: bool) -> None:
    """Also where the users' own part is taken out of the counts (`blind`)."""
    dataset = finished.dataset
    users = np.flatnonzero(dataset.train.lengths > 3)[:30].astype(np.int32)
    histories, seen = history_rows(dataset, users, (dataset.train.lengths[users] // 2).astype(np.int32), last=50)
    history = pad_left(histories, WideEvidence.HISTORY)[0]
    own = own_sequences(dataset, users) if blind else None
    found = wide.retrieve(history, seen, 10, own)
    everything = np.broadcast_to(np.arange(dataset.n_items, dtype=np.int32), (30, dataset.n_items))
    features = wide.features(history, everything, own)
    # The text part is retrieved from each item's nearest texts only: what is further away counts as nothing.
    near = np.zeros_like(features[..., 0])
    for row in range(30):
        for age, item in enumerate(history[row][::-1]):
            if item >= 0:
                near[row, wide.neighbours[item]] += WideEvidence.TEXT_DECAY**age * wide.kernel[item]
    features[..., WideEvidence.FEATURES.index("text")] = np.log(0.05 + near)
    value = features @ np.array(WideEvidence.PRIOR)
    value[seen] = -np.inf
    new = features[..., WideEvidence.FEATURES.index("popularity")] == 0
    for row in range(30):
        # One of ten is kept for items without an event; here it goes to the one of the most similar text.
        by_value = np.argsort(-value[row], kind="stable")
        np.testing.assert_allclose(value[row][found[row, :9]], value[row][by_value[:9]], atol=1e-4)
        eligible = new[row] & (near[row] > 0) & np.isfinite(value[row])
        eligible[found[row, :9]] = False
        if eligible.any():
            assert near[row][found[row, 9]] == pytest.approx(near[row][eligible].max(), rel=1e-3)
        else:
            np.testing.assert_allclose(value[row][found[row, 9]], value[row][by_value[9]], atol=1e-4)
        assert len(set(found[row])) == 10
    assert new.any()


def test_new_items_are_retrieved_by_their_text(finished: Run, wide: WideEvidence) -> None:
    """Even where many others have more to say for themselves."""
    dataset = finished.dataset
    cold = np.bincount(dataset.train.item_idx, minlength=dataset.n_items) == 0
    assert cold.any()
    item = int(np.flatnonzero(cold)[0])
    near = wide.neighbours[item][1]  # a text much like the new item's
    history = np.full((1, WideEvidence.HISTORY), -1, np.int32)
    history[0, -1] = near
    nothing = np.zeros(0, np.int64), np.zeros(0, np.int32)
    sure = np.where(cold, -50.0, 0.0).astype(np.float32)[None]  # what towers say of what they were not trained on
    found = wide.retrieve(history, nothing, 40, more=sure)
    assert item in found
    assert cold[found[0]].sum() <= 4
    assert not cold[found[0, :36]].any()


def test_retrieval_says_where_there_is_nothing_left(finished: Run, wide: WideEvidence) -> None:
    n_items = finished.dataset.n_items
    history = np.full((1, WideEvidence.HISTORY), -1, np.int32)
    seen = np.zeros(n_items - 3, np.int64), np.arange(n_items - 3, dtype=np.int32)
    found = wide.retrieve(history, seen, 5)
    assert set(found[0]) == {n_items - 3, n_items - 2, n_items - 1, -1}


def test_before_training_the_teacher_is_the_evidence(finished: Run) -> None:
    teacher, dataset = finished.teacher, finished.dataset
    _, encoder = split_encoder(load_encoder(teacher.config.encoder)[1], teacher.config.joint_layers)
    model = TeacherModel(encoder, torch.zeros(dataset.n_items, 16), teacher.config, n_event_types=3).eval()
    histories = dataset.histories(np.arange(4, dtype=np.int32))
    candidates = np.tile(np.arange(6, dtype=np.int32), (4, 1))
    packed = teacher.packer().pack(histories, candidates, device=torch.device("cpu"))
    expected = packed.features @ torch.tensor(PRIOR)
    torch.testing.assert_close(model(packed).detach(), expected)


def test_a_teacher_that_knows_nothing_gains_nothing_from_the_order_of_its_pool() -> None:
    pool = np.argsort(np.random.default_rng(0).random((4000, 40)), axis=1).astype(np.int32)
    listed = reranked(np.zeros(pool.shape, np.float32), pool)
    first_of_pool = (listed == pool[:, :1]).any(axis=1)
    assert abs(first_of_pool.mean() - 10 / 40) < 0.03

    logits = -np.arange(40, dtype=np.float32) * np.ones((4000, 1), np.float32)
    assert np.array_equal(reranked(logits, pool), pool[:, :10])
    pool[:, 0] = -1
    assert np.array_equal(reranked(logits, pool), pool[:, 1:11])


def test_a_candidate_is_scored_alike_in_any_company(finished: Run) -> None:
    dataset = finished.dataset
    users = np.arange(8, dtype=np.int32)
    histories = dataset.histories(users)
    candidates = np.random.default_rng(0).integers(0, dataset.n_items, (8, 5)).astype(np.int32)
    together = finished.teacher.score(histories, candidates, runtime=finished.config.runtime())
    for column in range(5):
        alone = finished.teacher.score(histories, candidates[:, [column]], runtime=finished.config.runtime())
        np.testing.assert_allclose(together[:, column], alone[:, 0], atol=0.05)  # bf16 where the machine has it
    for row in range(8):
        one = finished.teacher.score(dataset.histories(users[[row]]), candidates[[row]])
        np.testing.assert_allclose(together[row], one[0], atol=0.05)


def test_negatives_come_from_where_the_target_comes_from() -> None:
    pool = np.array([[1, 2, 3, 4, -1], [5, 6, 7, 8, 9]], dtype=np.int32)
    target = np.array([3, 20], dtype=np.int32)
    user = np.zeros(2, np.int32)
    examples = Examples(user, user, target, pool, np.array([True, False]))
    drawn = draw_candidates(examples, np.array([0, 1]), 4, 30, np.random.default_rng(0))
    assert drawn[:, 0].tolist() == [3, 20]
    assert set(drawn[0, 1:]) == {1, 2, 4}
    many = np.concatenate(
        [draw_candidates(examples, np.array([1]), 4, 30, np.random.default_rng(s)) for s in range(300)]
    )
    assert set(many[:, 1:].ravel()) == set(range(30))  # asked against anything, the target itself is masked later


def test_a_killed_teach_ends_as_an_undisturbed_one(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    config = tiny.teach.model_copy(update={"evaluations": 2})
    options = {"seed": 1, "threads": 1, "progress": False}
    whole = teach(finished.dataset, config, tmp_path / "whole", runtime=Interrupted(**options, at="nowhere"))
    with pytest.raises(KeyboardInterrupt):
        teach(finished.dataset, config, tmp_path / "teacher", runtime=Interrupted(**options, at="part 2"))
    again = teach(finished.dataset, config, tmp_path / "teacher", runtime=Interrupted(**options, at="part 1"))
    assert hash_file(whole.path / "weights.safetensors") == hash_file(again.path / "weights.safetensors")
    # The kept weights may be the untrained ones; the losses tell that the training went the same way, and went on.
    history = whole.manifest["info"]["history"]
    assert again.manifest["info"]["history"] == history
    assert history[0]["loss"] != history[1]["loss"]


def test_a_step_in_parts_is_the_same_step(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    runtime = Interrupted(seed=1, threads=1, progress=False, precision="fp32", at="nowhere")
    config = tiny.teach.model_copy(update={"dropout": 0.0})
    losses = []
    for parts in (1, 3, 100):
        each = config.model_copy(update={"accumulate": parts})
        teacher = teach(finished.dataset, each, tmp_path / str(parts) / "teacher", runtime=runtime)
        losses.append(teacher.manifest["info"]["history"][0]["loss"])
    np.testing.assert_allclose(losses[1:], losses[0], rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{"evidence": False}, {"item_tokens": False}, {"packed": False}, {"adapt_epochs": 1}],
    ids=lambda changes: next(iter(changes)),
)
def test_every_way_of_reading_can_be_taught(
    finished: Run, tiny: PipelineConfig, tmp_path: Path, changes: dict[str, bool]
) -> None:
    dataset = finished.dataset
    config = tiny.teach.model_copy(update={**changes, "examples": 32})
    teacher = teach(dataset, config, tmp_path / "teacher", runtime=tiny.runtime(progress=False))
    assert np.isfinite(teacher.manifest["info"]["history"][-1]["loss"])
    histories = dataset.histories(np.arange(6, dtype=np.int32))
    candidates = np.tile(np.arange(5, dtype=np.int32), (6, 1))
    logits = teacher.score(histories, candidates, runtime=tiny.runtime())
    assert np.isfinite(logits).all()
    alone = teacher.score(histories, candidates[:, [3]], runtime=tiny.runtime())
    np.testing.assert_allclose(logits[:, [3]], alone, atol=0.05)  # bf16 where the machine has it
    if not config.evidence:  # what counts say does not reach the score
        counts = teacher.packer().wide
        object.__setattr__(counts, "log_price", counts.log_price + 100)
        object.__setattr__(counts.cooccurrence, "weights", counts.cooccurrence.weights * 0)
        np.testing.assert_array_equal(teacher.score(histories, candidates, runtime=tiny.runtime()), logits)


def test_texts_hold_what_the_catalogue_knows(finished: Run) -> None:
    items = finished.dataset.items
    for text, title, category in zip(
        item_texts(finished.dataset), items["title"].to_pylist(), items["category"].to_pylist(), strict=True
    ):
        assert text.startswith(title)
        assert category is None or category.split(" > ")[-1] in text


def test_an_encoder_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="no encoder could be loaded from '/nowhere/at/all'"):
        load_encoder("/nowhere/at/all")
    assert (Path(encoder_path("minilm-l6")) / "model.safetensors").is_file()
