"""From the scores of a row to the probability that its user takes an item.

A listwise score means nothing but against the others of its row: adding a number to a whole row changes no order and no
loss. So what is calibrated is the log-softmax of a row's scores over its candidates, by a curve from that to a
probability: isotonic regression (Zadrozny and Elkan, "Transforming Classifier Scores into Accurate Multiclass
Probability Estimates", KDD 2002) or, where few items were taken and isotonic regression would follow their noise
(Niculescu-Mizil and Caruana, "Predicting Good Probabilities with Supervised Learning", ICML 2005), the logistic line of
Platt ("Probabilistic Outputs for Support Vector Machines", 1999). A row's probabilities need not add up to 1, and that
of a candidate depends on which others stand beside it: calibrate on lists made like those that are served.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from recsys.artifacts import write_json
from recsys.errors import InputError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

ENOUGH: Final = 300  # items taken, for isotonic regression
BINS: Final = 10


@dataclass(frozen=True)
class Isotonic:
    """A rising curve through points, linear between them and level outside.

    Attributes:
        x: log-softmax of the points, ascending.
        y: probabilities, not falling.
    """

    method: ClassVar[str] = "isotonic"

    x: list[float]
    y: list[float]

    @classmethod
    def fit(cls, x: Doubles, taken: Bools) -> Self:
        """Fit by least squares among all rising curves."""
        from sklearn.isotonic import IsotonicRegression

        curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x, taken.astype(np.float64))
        return cls(curve.X_thresholds_.tolist(), curve.y_thresholds_.tolist())

    def __call__(self, x: Doubles) -> Doubles:
        """Probabilities at x."""
        values: Doubles = np.interp(x, self.x, self.y)
        return values


@dataclass(frozen=True)
class Platt:
    """1 / (1 + exp(−(slope · x + intercept))), slope ≥ 0."""

    method: ClassVar[str] = "platt"

    slope: float
    intercept: float

    @classmethod
    def fit(cls, x: Doubles, taken: Bools) -> Self:
        """Fit by maximum likelihood to Platt's smoothed targets, which keep the line finite where x tells all."""
        from scipy.optimize import minimize
        from scipy.special import expit

        n_taken = int(taken.sum())
        high, low = (n_taken + 1) / (n_taken + 2), 1 / (len(taken) - n_taken + 2)
        target = np.where(taken, high, low)
        mean, std = x.mean(), x.std() or 1.0
        z = (x - mean) / std

        def loss_and_gradient(line: Doubles) -> tuple[float, Doubles]:
            logit = line[0] * z + line[1]
            residual = expit(logit) - target
            loss = float(np.mean(np.logaddexp(0, logit) - target * logit))
            return loss, np.array([np.mean(residual * z), np.mean(residual)])

        rate = target.mean()
        solved = minimize(
            loss_and_gradient,
            np.array([1.0, np.log(rate / (1 - rate))]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None), (None, None)],
            options={"ftol": 1e-14, "gtol": 1e-9},
        )
        slope = float(solved.x[0] / std)
        return cls(slope, float(solved.x[1] - slope * mean))

    def __call__(self, x: Doubles) -> Doubles:
        """Probabilities at x."""
        values: Doubles = np.exp(-np.logaddexp(0, -(self.slope * x + self.intercept)))
        return values


@dataclass(frozen=True)
class Calibration:
    """A curve from scores to probabilities, and how good it is.

    Attributes:
        curve: from log-softmax to probability.
        n_rows: rows of candidates that it was fitted on.
        n_taken: items taken in them.
        error_before: expected calibration error of the softmax itself.
        error_after: … of the curve, each half of the rows under a curve fitted on the other half.
    """

    curve: Isotonic | Platt
    n_rows: int
    n_taken: int
    error_before: float
    error_after: float

    @classmethod
    def fit(cls, scores: Floats, there: Bools, taken: Bools, *, seed: int) -> Self:
        """Fit on rows that the model was not trained on, those in which nothing was taken included.

        Args:
            scores: [n, C] float32 of the model.
            there: [n, C] bool, False for padding.
            taken: [n, C] bool, what the user took; not read where there is padding.
            seed: splits the rows into halves for `error_after`; the curve itself is of all rows.

        Raises:
            InputError: a score is not finite, fewer than two rows have candidates, or nothing was taken.
        """
        logs, taken, filled = log_softmax(scores, there), taken & there, there.any(axis=1)
        logs, taken, there = logs[filled], taken[filled], there[filled]
        n_taken = int(taken.sum())
        if len(logs) < 2 or not n_taken:
            raise InputError(
                f"{len(logs)} rows of candidates with {n_taken} items taken",
                expected="at least 2 rows, and an item taken",
                do="calibrate on more users, or do without probabilities",
            )
        method = Isotonic if n_taken >= ENOUGH else Platt
        half = np.random.default_rng([seed, len(logs)]).permutation(len(logs)) % 2 == 0
        after = np.zeros(logs.shape)
        for part in (half, ~half):
            after[part] = method.fit(logs[~part][there[~part]], taken[~part][there[~part]])(logs[part])
        curve = method.fit(logs[there], taken[there])
        before = expected_calibration_error(np.exp(logs[there]), taken[there])
        return cls(curve, len(logs), n_taken, before, expected_calibration_error(after[there], taken[there]))

    def probability(self, scores: Floats, there: Bools) -> Floats:
        """How likely the user is to take each candidate.

        Args:
            scores: [n, C] float32 of the model that this was fitted for.
            there: [n, C] bool, False for padding.

        Returns:
            [n, C] float32 in [0, 1], not falling with the score within a row; 0 for padding.

        Raises:
            InputError: a score is not finite.
        """
        return np.where(there, self.curve(log_softmax(scores, there)), 0).astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write `calibration.json`."""
        write_json(folder / "calibration.json", {"method": self.curve.method, **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; it gives the same probabilities to the bit."""
        content: dict[str, Any] = json.loads((folder / "calibration.json").read_text())
        curves: dict[str, type[Isotonic] | type[Platt]] = {each.method: each for each in (Isotonic, Platt)}
        curve = curves[content.pop("method")](**content.pop("curve"))
        return cls(curve, **content)


def log_softmax(scores: Floats, there: Bools) -> Doubles:
    """[n, C] float64, the logarithm of each candidate's share of its row; 0 for padding.

    Raises:
        InputError: a score of a candidate is not finite.
    """
    if scores.shape != there.shape or scores.ndim != 2:
        raise InputError(f"scores {scores.shape} and there {there.shape}", expected="the same [rows, candidates]")
    if not np.isfinite(scores[there]).all():
        raise InputError("a score is not finite", expected="finite scores of all candidates")
    logs = np.where(there, scores, -np.inf).astype(np.float64)
    logs -= logs.max(axis=1, keepdims=True, initial=np.finfo(np.float32).min)
    shares = np.exp(logs).sum(axis=1, keepdims=True)
    return np.where(there, logs - np.log(np.maximum(shares, 1)), 0)


def expected_calibration_error(probability: npt.NDArray[np.floating[Any]], taken: Bools, *, bins: int = BINS) -> float:
    """Mean over pairs of |share taken − mean probability| of the pair's bin; the bins hold about equally many pairs.

    Equal probabilities stand in one bin, however many they are. Bins of equal mass instead of equal width, because
    almost all pairs are improbable (Nixon et al., "Measuring Calibration in Deep Learning", CVPR workshops 2019).

    Args:
        probability: [m].
        taken: [m] bool.
        bins: how many.
    """
    edges = np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1])
    place = np.searchsorted(edges, probability)
    difference = np.bincount(place, taken, bins) - np.bincount(place, probability, bins)
    return float(np.abs(difference).sum() / max(len(probability), 1))
