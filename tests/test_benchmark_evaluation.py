"""The evaluation benchmark compares like with like, and its lists are what it says."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
N_USERS = 2_000


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("evaluation")


def test_recsys_and_ir_measures_say_the_same(benchmark: ModuleType, tmp_path: Path) -> None:
    benchmark.one("generate", tmp_path, N_USERS)
    runs = [benchmark.one(name, tmp_path, N_USERS) for name in ("recsys", "ir_measures")]
    means, expected = (run["means"] for run in runs)
    assert means.keys() == expected.keys()
    assert len(means) == 6
    for name, mean in means.items():
        assert mean == pytest.approx(expected[name], abs=1e-9), name
    # Something is found, and more the longer the list.
    assert 0.01 < means["recall_at_10"] < means["recall_at_20"] < means["recall_at_100"] < 0.5


def test_lists_are_distinct_sorted_and_the_same_each_time(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "BLOCK", 700)
    for name in ("one", "other"):
        benchmark.generate(tmp_path / name, N_USERS)
    data, again = (benchmark._load(tmp_path / name) for name in ("one", "other"))
    for name, array in data.items():
        np.testing.assert_array_equal(array, again[name])
    items = data["item"].reshape(-1, benchmark.K)
    assert len(items) == N_USERS * 99 // 100
    assert np.all(np.diff(np.sort(items, axis=1)) > 0)
    assert np.all(np.diff(data["user"]) >= 0)
    assert np.all(np.diff(data["target_user"]) >= 0)
    n_targets = np.bincount(data["target_user"], minlength=N_USERS)
    assert (n_targets.min(), n_targets.max()) == (1, 5)
    pairs = data["target_user"] * np.int64(benchmark.N_ITEMS) + data["target_item"]
    assert len(np.unique(pairs)) == len(pairs)


def test_the_worked_example(benchmark: ModuleType) -> None:
    ours, oracle = benchmark.recsys_definitions(), benchmark.ir_measures_definitions()
    for name in benchmark.METRIC_NAMES:
        assert ours[name] == pytest.approx(oracle[name], abs=1e-9), name
    recbole, replay = benchmark.recbole_formulas(), benchmark.replay_formulas()
    for name in ("recall", "ndcg", "hit_rate", "mrr", "precision"):
        assert replay[name] == pytest.approx(ours[name]), name
        assert recbole[name][:2] == pytest.approx(ours[name][:2]), name
    # User 1's list is short, user 2 has more targets than ranks.
    assert ours["precision"][0] == 2 / 5
    assert ours["map"][1] == pytest.approx((1 + 2 / 4) / 7)
    assert replay["map"][1] == recbole["map"][1] == pytest.approx((1 + 2 / 4) / 5)
    table = benchmark.definitions(None)
    assert "RecTools " not in table.splitlines()[5]
    assert table.count("mean ") >= 6
