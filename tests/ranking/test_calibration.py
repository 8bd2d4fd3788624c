"""Calibration: probabilities that come true, in the order of the scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from recsys.errors import InputError
from recsys.ranking.calibration import Calibration, Isotonic, Platt, expected_calibration_error, log_softmax


def shop(n: int, *, seed: int, rate: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores of rows that are shifted at will, with padding; the true probability is a power of the softmax."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 2, (n, 20)).astype(np.float32)
    there = rng.random((n, 20)) < 0.8
    there[:, 0] = True
    share = np.where(there, np.exp(scores), 0)
    share /= share.sum(axis=1, keepdims=True)
    truth = rate * share**0.6
    taken = (rng.random((n, 20)) < truth) | ~there  # padding is rubbish
    return scores + rng.normal(0, 50, (n, 1)).astype(np.float32), there, taken, truth


@pytest.mark.parametrize(("n", "method"), [(8000, Isotonic), (300, Platt)])
def test_probabilities_come_true(n: int, method: type, tmp_path: Path) -> None:
    scores, there, taken, _ = shop(n, seed=1)
    fitted = Calibration.fit(scores, there, taken, seed=0)
    assert isinstance(fitted.curve, method)
    assert fitted.n_rows == n and fitted.n_taken == (taken & there).sum()
    new_scores, new_there, new_taken, truth = shop(8000, seed=2)
    probability = fitted.probability(new_scores, new_there)
    assert probability.dtype == np.float32 and not probability[~new_there].any()
    error = expected_calibration_error(probability[new_there], new_taken[new_there])
    before = expected_calibration_error(np.exp(log_softmax(new_scores, new_there))[new_there], new_taken[new_there])
    assert error < 0.008 < 0.02 < before  # the mean rate is .07
    assert np.abs(probability - truth)[new_there].mean() < 0.008
    # The report on the rows of the fit says the same as new rows do.
    assert fitted.error_before == pytest.approx(before, abs=0.008)
    assert fitted.error_after < 0.015
    fitted.save(tmp_path)
    again = Calibration.load(tmp_path)
    assert again == fitted
    np.testing.assert_array_equal(again.probability(new_scores, new_there), probability)


def test_the_reported_error_is_that_of_rows_out_of_the_fit() -> None:
    """Scores that are pure noise, in lists so few that a curve follows it: on its own rows it would look right."""
    rng = np.random.default_rng(0)
    scores, there = rng.normal(size=(60, 40)).astype(np.float32), np.ones((60, 40), bool)
    taken = rng.random((60, 40)) < 0.3
    fitted = Calibration.fit(scores, there, taken, seed=0)
    assert isinstance(fitted.curve, Isotonic)
    inside = expected_calibration_error(fitted.probability(scores, there)[there], taken[there])
    assert inside < 0.005 < fitted.error_after


@settings(max_examples=60, deadline=None)
@given(
    scores=hnp.arrays(np.float32, (6, 9), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    there=hnp.arrays(bool, (6, 9)),
    method=st.sampled_from(["isotonic", "platt"]),
)
def test_in_a_row_they_rise_with_the_score_and_stay_between_0_and_1(
    scores: np.ndarray, there: np.ndarray, method: str
) -> None:
    fitted = CURVES[method]
    probability = fitted.probability(scores, there)
    assert ((probability >= 0) & (probability <= 1)).all()
    for row in range(6):
        order = np.flatnonzero(there[row])[np.argsort(scores[row, there[row]], kind="stable")]
        assert (np.diff(probability[row, order]) >= 0).all()


CURVES = {
    "isotonic": Calibration.fit(*shop(3000, seed=1)[:3], seed=0),
    "platt": Calibration.fit(*shop(100, seed=1)[:3], seed=0),
}


def test_shifting_a_row_or_moving_its_candidates_changes_nothing() -> None:
    fitted = CURVES["isotonic"]
    rng = np.random.default_rng(0)
    scores, there = rng.integers(-5, 5, (10, 8)).astype(np.float32), rng.random((10, 8)) < 0.7
    probability = fitted.probability(scores, there)
    np.testing.assert_array_equal(fitted.probability(scores + 64, there), probability)
    np.testing.assert_allclose(fitted.probability(scores[:, ::-1], there[:, ::-1])[:, ::-1], probability, rtol=1e-6)
    padded = fitted.probability(
        np.pad(scores, [(0, 0), (0, 3)], constant_values=np.nan), np.pad(there, [(0, 0), (0, 3)])
    )
    np.testing.assert_allclose(padded[:, :8], probability, rtol=1e-6)


def test_isotonic_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=500).round(1)
    taken = rng.random(500) < 1 / (1 + np.exp(-x))
    oracle = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x, taken)
    asked = np.linspace(-9, 9, 1000)
    np.testing.assert_allclose(Isotonic.fit(x, taken)(asked), oracle.predict(asked), atol=1e-12)


def test_platt_is_logistic_regression_on_smoothed_targets() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(-4, 2, size=400)
    taken = rng.random(400) < 1 / (1 + np.exp(-x))
    n = taken.sum()
    positive = np.where(taken, (n + 1) / (n + 2), 1 / (400 - n + 2))
    # A soft target is a pair of weighted hard ones.
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(
        np.r_[x, x][:, None], np.repeat([1, 0], 400), sample_weight=np.r_[positive, 1 - positive]
    )
    line = Platt.fit(x, taken)
    assert line.slope == pytest.approx(oracle.coef_[0, 0], rel=1e-3)
    assert line.intercept == pytest.approx(oracle.intercept_[0], rel=1e-3)


def test_platt_never_turns_the_order_round() -> None:
    x = np.linspace(-5, 0, 100)
    line = Platt.fit(x, x < -3)
    assert line.slope == 0
    np.testing.assert_allclose(line(x), 0.4, atol=0.01)  # the rate
    apart = Platt.fit(x, x > -1)  # x tells all: the line stays finite
    assert np.isfinite([apart.slope, apart.intercept]).all()


def test_the_error_is_that_of_scikit_learns_curve() -> None:
    rng = np.random.default_rng(0)
    probability = rng.permutation(np.linspace(0, 0.8, 1000))
    taken = rng.random(1000) < probability**2
    true, predicted = calibration_curve(taken, probability, n_bins=10, strategy="quantile")
    assert expected_calibration_error(probability, taken) == pytest.approx(np.abs(true - predicted).mean())
    assert expected_calibration_error(np.full(1000, taken.mean()), taken) == pytest.approx(0)  # ties share a bin
    assert expected_calibration_error(np.ones(10), np.zeros(10, bool)) == 1


def test_what_cannot_be_calibrated_is_said() -> None:
    scores, there = np.zeros((3, 2), np.float32), np.ones((3, 2), bool)
    with pytest.raises(InputError, match="3 rows of candidates with 0 items taken"):
        Calibration.fit(scores, there, ~there, seed=0)
    one = there.copy()
    one[1:] = False
    with pytest.raises(InputError, match="1 rows of candidates"):
        Calibration.fit(scores, one, there, seed=0)
    with pytest.raises(InputError, match="not finite"):
        Calibration.fit(np.full_like(scores, np.nan), there, there, seed=0)
    with pytest.raises(InputError, match="not finite"):
        CURVES["platt"].probability(np.full_like(scores, np.inf), there)
    with pytest.raises(InputError, match=r"there \(3, 1\)"):
        CURVES["platt"].probability(scores, there[:, :1])


def test_everything_taken_is_a_rate_too() -> None:
    scores, there = np.zeros((5, 2), np.float32), np.ones((5, 2), bool)
    assert Calibration.fit(scores, there, there, seed=0).probability(scores, there).min() > 0.9
