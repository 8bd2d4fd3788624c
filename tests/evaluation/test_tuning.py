from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recsys.errors import InputError
from recsys.evaluation import tuning
from recsys.evaluation.config import TuningConfig
from recsys.evaluation.metrics import NDCG, Recall
from recsys.evaluation.ranking import rank
from recsys.evaluation.tuning import (
    BASELINES,
    Material,
    Trial,
    Tuning,
    available,
    best,
    fit_baselines,
    settings,
    tune,
    tune_baselines,
)
from recsys.ingest.dataset import Dataset
from recsys.runtime import Runtime
from tests.evaluation.conftest import build_dataset

N_USERS, N_ITEMS = 60, 30
QUIET = Runtime(progress=False, threads=1)
FAST = ("most_popular", "item_knn", "ordered_item_knn")
VECTORS = np.random.default_rng(5).normal(size=(N_ITEMS, 4)).astype(np.float32)


def shop(out: Path, *, last: int = 0, protocol: str = "leave_one_out") -> Dataset:
    """Users who walk through the items; `last` is the item that everybody's test part holds."""
    rng = np.random.default_rng(0)
    histories = []
    for _ in range(N_USERS):
        steps = rng.integers(1, 4, size=rng.integers(4, 9))
        histories.append([*((np.cumsum(steps) + rng.integers(N_ITEMS)) % N_ITEMS).tolist(), last])
    n = [len(row) for row in histories]
    train_end, valid_end = [m - 2 for m in n], [m - 1 for m in n]
    return build_dataset(out, histories, train_end, valid_end, n_items=N_ITEMS, protocol=protocol)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return shop(tmp_path / "dataset")


def content(trials: list[Trial]) -> list[tuple[object, ...]]:
    return [(each.baseline, each.parameters, each.recall_at_10, each.ndcg_at_10, each.n_users) for each in trials]


def of(trials: list[Trial], name: str) -> list[tuple[object, ...]]:
    return content([trial for trial in trials if trial.baseline == name])


def test_every_baseline_starts_with_its_defaults_and_tries_nothing_twice(dataset: Dataset) -> None:
    config = TuningConfig(baselines=FAST, max_trials=12)
    trials = tune(dataset, config, budget_seconds=60, runtime=QUIET)
    for name in FAST:
        own = [trial.parameters for trial in trials if trial.baseline == name]
        assert own[0] == BASELINES[name].defaults
        assert len(own) == (1 if name == "most_popular" else 12)
        assert all(a != b for a, b in itertools.combinations(own, 2))
        for parameters in own:
            assert parameters.keys() == BASELINES[name].grid.keys()
            assert all(value in BASELINES[name].grid[key] for key, value in parameters.items())


def test_a_small_grid_is_tried_out(dataset: Dataset) -> None:
    trials = tune(dataset, TuningConfig(baselines=("text_similarity",)), vectors=VECTORS, runtime=QUIET)
    assert len(trials) == 10
    assert len({tuple(trial.parameters.items()) for trial in trials}) == 10


@pytest.mark.parametrize("seen_filtered", [True, False])
def test_a_trial_s_figures_are_those_of_the_validation_part(dataset: Dataset, seen_filtered: bool) -> None:
    config = TuningConfig(baselines=("item_knn",), max_trials=3, seen_filtered=seen_filtered)
    cases = dataset.cases("valid")
    for trial in tune(dataset, config, runtime=QUIET):
        scorer = BASELINES["item_knn"].make(Material(dataset), trial.parameters)
        block = next(b for b in rank(scorer, dataset, cases, k=10, runtime=QUIET) if b.seen_filtered == seen_filtered)
        recall, ndcg = (metric(block.hits, block.n_targets) for metric in (Recall(10), NDCG(10)))
        assert trial.recall_at_10 == pytest.approx(np.nanmean(recall))
        assert trial.ndcg_at_10 == pytest.approx(np.nanmean(ndcg))
        assert trial.n_users == np.isfinite(recall).sum()
        assert trial.seen_filtered == seen_filtered


def test_the_test_part_changes_nothing(tmp_path: Path) -> None:
    config = TuningConfig(baselines=FAST, max_trials=6)
    one, other = (tune(shop(tmp_path / f"{last}", last=last), config, runtime=QUIET) for last in (0, 17))
    for name in FAST:
        assert of(one, name) == of(other, name)


def test_the_seed_decides_a_baseline_s_trials(dataset: Dataset) -> None:
    config = TuningConfig(baselines=("item_knn", "ordered_item_knn"), max_trials=6, max_users=40)
    first, again, otherwise = (tune(dataset, config, seed=seed, runtime=QUIET) for seed in (3, 3, 4))
    for name in config.baselines:
        assert of(first, name) == of(again, name)
        assert of(first, name) != of(otherwise, name)
    assert all(trial.n_users <= 40 for trial in first)


class Clock:
    """A clock that only trials move."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_the_budget_is_shared_by_time_and_not_exceeded(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    cost = {"item_knn": 10.0, "ordered_item_knn": 1.0}

    def costly(name: str, parameters: dict[str, object], *_: object) -> Trial:
        clock.now += cost[name]
        return Trial(name, parameters, cost[name], 0.0, 0.0, 0.0, 1, True)

    monkeypatch.setattr(tuning, "time", clock)
    monkeypatch.setattr(tuning, "_try", costly)
    config = TuningConfig(baselines=tuple(cost), max_trials=1000)
    trials = tune(dataset, config, budget_seconds=60, runtime=QUIET)
    assert clock.now == 60
    spent = {name: sum(trial.seconds for trial in trials if trial.baseline == name) for name in cost}
    assert spent == {"item_knn": 30, "ordered_item_knn": 30}

    clock.now = 0
    trials = tune(dataset, config, budget_seconds=15, runtime=QUIET)
    assert clock.now == 15
    assert [trial.baseline for trial in trials].count("item_knn") == 1

    trials = tune(dataset, config, budget_seconds=0.001, runtime=QUIET)
    assert len(trials) == 1  # there is always something to report


def trial(baseline: str, ndcg: float, **parameters: float) -> Trial:
    return Trial(baseline, parameters, 1.0, 1.0, 0.5, ndcg, 10, True)


def test_the_best_is_the_first_of_the_highest_ndcg() -> None:
    trials = [trial("ease", 0.1, a=1), trial("ease", 0.3, a=2), trial("ease", 0.3, a=3), trial("als", 0.05, a=4)]
    assert {name: each.parameters for name, each in best(trials).items()} == {"ease": {"a": 2}, "als": {"a": 4}}


def test_baselines_take_the_best_parameters_and_defaults_else(dataset: Dataset) -> None:
    trials = [
        trial("ordered_item_knn", 0.1, window=5, backward=0.0, source_exponent=0.0, target_exponent=0.0, decay=0.4),
        trial("ordered_item_knn", 0.2, window=10, backward=1.0, source_exponent=1.0, target_exponent=0.5, decay=0.9),
    ]
    histories = dataset.histories(np.arange(5, dtype=np.int32))
    chosen = settings(dataset, trials, baselines=FAST, has_text=False)
    assert {name: setting.tuned for name, setting in chosen.items()} == {
        "most_popular": False,
        "item_knn": False,
        "ordered_item_knn": True,
    }
    tuned = {scorer.name: scorer.score(histories) for scorer in fit_baselines(dataset, chosen)}
    assert list(tuned) == list(FAST)
    for name, parameters in (
        ("ordered_item_knn", trials[1].parameters),
        ("item_knn", BASELINES["item_knn"].defaults),
        ("most_popular", {}),
    ):
        expected = BASELINES[name].make(Material(dataset), parameters).score(histories)
        np.testing.assert_array_equal(tuned[name], expected)


@pytest.mark.parametrize("name", BASELINES)
def test_defaults_lie_on_the_grid_and_make_a_scorer_of_that_name(dataset: Dataset, name: str) -> None:
    baseline = BASELINES[name]
    if baseline.needs == "implicit":
        pytest.importorskip("implicit")
    assert all(baseline.defaults[key] in values for key, values in baseline.grid.items())
    assert baseline.defaults.keys() == baseline.grid.keys()
    scorer = baseline.make(Material(dataset, VECTORS), baseline.defaults)
    assert scorer.name == name
    assert scorer.score(dataset.histories(np.arange(3, dtype=np.int32))).shape == (3, N_ITEMS)


def test_what_cannot_run_is_left_out_with_its_reason(tmp_path: Path) -> None:
    names, left_out = available(shop(tmp_path / "a"), has_text=False)
    assert {"text_similarity", "ordered_item_knn_text", "recently_popular"} <= left_out.keys()
    assert set(names) | left_out.keys() == BASELINES.keys()
    assert not set(names) & left_out.keys()
    names, left_out = available(shop(tmp_path / "b", protocol="temporal"), has_text=True)
    assert {"text_similarity", "ordered_item_knn_text", "recently_popular"} <= set(names)
    assert left_out.keys() <= {"als", "bpr"}


@pytest.mark.parametrize(
    ("baselines", "message"), [(("no_such",), "unknown baseline"), (("text_similarity",), "text vectors")]
)
def test_a_baseline_that_cannot_run_is_refused(dataset: Dataset, baselines: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tune(dataset, TuningConfig(baselines=baselines), runtime=QUIET)


def test_nobody_to_ask_is_said(tmp_path: Path) -> None:
    dataset = build_dataset(tmp_path / "dataset", [[0, 1], [1, 0]], [2, 2], [2, 2], n_items=2)
    with pytest.raises(InputError, match="validation part"):
        tune(dataset, TuningConfig(baselines=FAST), runtime=QUIET)
    seen = build_dataset(tmp_path / "seen", [[0, 0, 1], [1, 1, 0]], [1, 1], [2, 2], n_items=2)
    with pytest.raises(InputError, match="not in the history already"):
        tune(seen, TuningConfig(baselines=FAST), runtime=QUIET)


def test_the_artifact_keeps_every_trial(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TuningConfig(baselines=FAST, max_trials=3)
    made: list[list[Trial]] = []

    def spy(*args: object, search: Callable[..., list[Trial]] = tune, **kwargs: object) -> list[Trial]:
        made.append(search(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(tuning, "tune", spy)
    written = tune_baselines(dataset, config, tmp_path / "tuning", runtime=QUIET)
    assert written.trials == made[0]
    assert written.counts["trials"] == 7
    assert "text_similarity" in written.left_out
    assert Tuning.open(tmp_path / "tuning").trials == written.trials
    tune_baselines(dataset, config, tmp_path / "tuning", runtime=QUIET)
    assert len(made) == 1  # up to date
    tune_baselines(dataset, config, tmp_path / "tuning", runtime=QUIET, force=True)
    assert len(made) == 2
