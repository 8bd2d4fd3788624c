from __future__ import annotations

from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from recsys.evaluation import significance
from recsys.evaluation.significance import (
    benjamini_hochberg,
    compare_paired,
    holm,
    percentile_interval,
    randomization_p_values,
    resampled_means,
)

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    # 600 experiments of 200 users with a skewed, mostly-zero metric, side by side; the true mean is known.
    values = rng.random((200, 600)) * (rng.random((200, 600)) < 0.4)
    low, high = percentile_interval(resampled_means(values, n_resamples=500, rng=rng), 0.95)
    covered = ((low <= 0.2) & (high >= 0.2)).mean()
    assert 0.92 <= covered <= 0.975  # ± 3 standard errors of a 95 % rate, and the percentile method's known shortfall


def test_a_planted_winner_is_found_in_the_right_direction_and_a_draw_is_not() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(3000)
    worse = np.clip(base - 0.02 + 0.1 * rng.standard_normal(3000), 0, 1)
    equal = base[rng.permutation(3000)]
    means = resampled_means(np.column_stack([base, worse, equal]), n_resamples=500, rng=rng)
    low, high = percentile_interval(means[:, :1] - means, 0.95)
    assert low[1] > 0
    assert high[0] == low[0] == 0  # a model against itself: paired, so exactly nothing
    assert low[2] <= 0 <= high[2]
    flipped_low, flipped_high = percentile_interval(means[:, 1:2] - means, 0.95)
    assert flipped_high[0] < 0
    assert flipped_low[0] == pytest.approx(-high[1])


def test_pairing_narrows_the_difference_of_correlated_models() -> None:
    rng = np.random.default_rng(1)
    base = rng.random(1000)
    close = base + 0.01 * rng.standard_normal(1000)
    paired = resampled_means(np.column_stack([base, close]), n_resamples=400, rng=rng)
    other = resampled_means(close[:, None], n_resamples=400, rng=rng)
    assert np.std(paired[:, 0] - paired[:, 1]) < 0.1 * np.std(paired[:, 0] - other[:, 0])


def test_the_spread_is_the_standard_error() -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal((5000, 1))
    means = resampled_means(values, n_resamples=2000, rng=rng)
    assert np.std(means) == pytest.approx(1 / np.sqrt(5000), rel=0.08)
    assert means.mean() == pytest.approx(values.mean(), abs=0.002)


def test_same_seed_same_result_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).random((37, 3))
    whole = resampled_means(values, n_resamples=101, rng=np.random.default_rng(9))
    monkeypatch.setattr(significance, "_DRAWS", 100)
    blocks = resampled_means(values, n_resamples=101, rng=np.random.default_rng(9))
    np.testing.assert_allclose(whole, blocks, rtol=1e-12)


def test_rows_of_zeros_count_as_users() -> None:
    rng = np.random.default_rng(4)
    values = np.zeros((4000, 2))
    values[rng.choice(4000, 300, replace=False), 0] = 1
    means = resampled_means(values, n_resamples=3000, rng=rng)
    assert means[:, 0].mean() == pytest.approx(0.075, abs=0.0003)
    # Of a share: √(p (1 − p) / n). Had the 300 been drawn 300 times each time, it would be 0.
    assert np.std(means[:, 0]) == pytest.approx(np.sqrt(0.075 * 0.925 / 4000), rel=0.06)
    assert (means[:, 1] == 0).all()
    np.testing.assert_array_equal(resampled_means(values * 0, n_resamples=5, rng=rng), np.zeros((5, 2)))


def test_the_p_value_is_that_of_all_sign_flips() -> None:
    rng = np.random.default_rng(6)
    # Few distinct values, so that many flips give exactly the observed sum, in another order of addition.
    differences = rng.choice([-0.63, -0.5, 0.0, 0.1, 0.5, 0.63, 1.0], size=(12, 40))
    signs = np.array(list(product([-1, 1], repeat=12)))
    sums = np.round(signs @ differences, 9)
    exact = (np.abs(sums) >= np.round(np.abs(differences.sum(axis=0)), 9)).mean(axis=0)
    n = 20_000
    ours = randomization_p_values(differences, n_permutations=n, rng=np.random.default_rng(1))
    assert (np.abs(ours - exact) <= 4 * np.sqrt(exact * (1 - exact) / n) + 1 / n).all()
    assert exact.min() < 0.05
    exchanged = randomization_p_values(-differences, n_permutations=n, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(ours, exchanged)


def test_p_values_agree_with_scipy_s_permutation_test() -> None:
    rng = np.random.default_rng(8)
    values = rng.random((60, 2)) * (rng.random((60, 2)) < 0.5)
    values[:, 1] += 0.06
    theirs = stats.permutation_test(
        (values[:, 1], values[:, 0]),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        vectorized=True,
        permutation_type="samples",
        n_resamples=20_000,
        axis=0,
        rng=np.random.default_rng(1),
    )
    ours = randomization_p_values(values[:, 1:] - values[:, :1], n_permutations=20_000, rng=rng)
    assert 0.001 < theirs.pvalue < 0.9
    assert ours[0] == pytest.approx(theirs.pvalue, abs=0.02)


def test_a_p_value_is_never_zero_and_one_without_any_difference() -> None:
    rng = np.random.default_rng(0)
    differences = np.stack([np.full(500, 0.1), np.zeros(500), np.tile([0.3, -0.3], 250)], axis=1)
    assert randomization_p_values(differences, n_permutations=99, rng=rng).tolist() == [1 / 100, 1, 1]
    assert randomization_p_values(np.zeros((3, 2)), n_permutations=99, rng=rng).tolist() == [1, 1]


def test_p_values_are_the_same_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(5).standard_normal((131, 3))
    whole = randomization_p_values(differences, n_permutations=501, rng=np.random.default_rng(9))
    monkeypatch.setattr(significance, "_DRAWS", 700)
    blocks = randomization_p_values(differences, n_permutations=501, rng=np.random.default_rng(9))
    np.testing.assert_array_equal(whole, blocks)


P_VALUES = st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.05, 1.0]), min_size=1, max_size=12).map(np.array)
LEVELS = st.floats(0.001, 0.5)


@given(P_VALUES, LEVELS)
def test_holm_rejects_what_its_step_down_procedure_rejects(p_values: np.ndarray, level: float) -> None:
    adjusted = holm(p_values)
    assume(not np.isclose(adjusted, level, rtol=1e-9).any())
    rejected = set()
    for step, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[place] > level / (len(p_values) - step):
            break
        rejected.add(place)
    assert set(np.flatnonzero(adjusted <= level)) == rejected


@given(P_VALUES)
def test_benjamini_hochberg_is_scipy_s(p_values: np.ndarray) -> None:
    np.testing.assert_allclose(benjamini_hochberg(p_values), stats.false_discovery_control(p_values), rtol=1e-12)
    assert (benjamini_hochberg(p_values) <= holm(p_values) + 1e-15).all()


def test_corrections_of_published_size() -> None:
    p_values = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(p_values), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(benjamini_hochberg(p_values), [0.02, 0.04, 0.04, 0.02])
    assert holm(np.empty(0)).shape == (0,)


def test_a_comparison_finds_the_planted_winner_whichever_comes_first() -> None:
    rng = np.random.default_rng(0)
    base = rng.random((2000, 1)) * (rng.random((2000, 1)) < 0.3)
    better = base + 0.02 * (rng.random((2000, 1)) < 0.3)
    noise = base + 0.1 * rng.standard_normal((2000, 1))
    ours, theirs = np.hstack([better, base, noise, base]), np.hstack([base, better, base, base])
    found = compare_paired(ours, theirs, rng=rng)
    np.testing.assert_allclose(found.difference, (ours - theirs).mean(axis=0))
    assert found.low[0] > 0 > found.high[1]
    assert found.low[2] < 0 < found.high[2]
    assert found.low[3] == found.high[3] == 0
    assert found.p_value[:2].tolist() == [1 / 10_001] * 2
    assert found.p_value[3] == 1
    np.testing.assert_array_equal(found.p_adjusted, holm(found.p_value))
    milder = compare_paired(ours, theirs, rng=rng, adjust=benjamini_hochberg)
    np.testing.assert_array_equal(milder.p_adjusted, benjamini_hochberg(milder.p_value))


def test_a_comparison_refuses_what_is_not_paired() -> None:
    rng = np.random.default_rng(0)
    for ours, theirs in [(np.zeros((3, 1)), np.zeros((4, 1))), (np.zeros((0, 1)), np.zeros((0, 1)))]:
        with pytest.raises(ValueError, match="cannot pair"):
            compare_paired(ours, theirs, rng=rng)
    with pytest.raises(ValueError, match="NaN"):
        compare_paired(np.full((2, 1), np.nan), np.zeros((2, 1)), rng=rng)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark's script, as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("significance")


def test_equal_models_are_told_apart_as_rarely_as_promised(benchmark: ModuleType) -> None:
    n_trials = 1000
    said = benchmark.trials(benchmark.Shoppers(), n_users=1000, n_trials=n_trials, seed=3)
    least, most = stats.binom.interval(0.999, n_trials, 0.05)  # 29 to 75
    for verdict in (said.interval, said.randomization):
        assert least <= (verdict != 0).sum() <= most
        up = (verdict > 0).sum()
        assert stats.binomtest(int(up), int((verdict != 0).sum())).pvalue > 0.001  # either way as often
    # At every level, not at 5 % alone.
    assert stats.kstest(said.p_values, "uniform").pvalue > 0.001


@pytest.mark.parametrize("gain", [0.25, -0.25])
def test_a_planted_gain_is_found_as_often_as_theory_says(benchmark: ModuleType, gain: float) -> None:
    n_trials, n_users = 500, 4000
    shoppers = benchmark.Shoppers(gain=gain)
    theory = shoppers.power(n_users)
    assert 0.5 < theory < 0.75
    said = benchmark.trials(shoppers, n_users=n_users, n_trials=n_trials, seed=1)
    least, most = stats.binom.interval(0.999, n_trials, theory)
    for verdict in (said.interval, said.randomization):
        assert least <= (verdict == np.sign(gain)).sum() <= most
        assert (verdict == -np.sign(gain)).sum() <= 2


def test_the_invented_differences_are_what_theory_is_told(benchmark: ModuleType) -> None:
    shoppers = benchmark.Shoppers(gain=0.25)
    drawn = shoppers.differences(1_000_000, 1, np.random.default_rng(0))
    mean, deviation = shoppers.moments()
    assert drawn.mean() == pytest.approx(mean, abs=4 * deviation / 1000)
    assert drawn.std() == pytest.approx(deviation, rel=0.01)
    assert (drawn == 0).mean() > 0.8
    assert shoppers.power(shoppers.users_for(0.8)) == pytest.approx(0.8, abs=0.001)
