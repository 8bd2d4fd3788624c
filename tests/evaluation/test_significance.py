from __future__ import annotations

import numpy as np
import pytest

from recsys.evaluation import significance
from recsys.evaluation.significance import percentile_interval, resampled_means


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
