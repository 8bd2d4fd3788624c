"""A weighted sum of the features, fitted list by list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from recsys.artifacts import write_json
from recsys.ranking.models.judged import Floats, Judged, blocks, check_features

Doubles = npt.NDArray[np.float64]


class Linear:
    """Σ_f w_f · (x_f − mean_f) / std_f.

    The weights minimise the listwise softmax cross-entropy, over the rows in which something was taken and something
    was not,

        mean over rows of −Σ_c t_c · log softmax(s)_c  +  l2 / 2 · |w|²,   t = gain / Σ gain,

    which is ListNet's top-one loss (Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach",
    ICML 2007) with the gains themselves as target; on how it bounds NDCG see Bruch et al., "An Analysis of the Softmax
    Cross Entropy Loss for Learning-to-Rank with Binary Relevance" (ICTIR 2019). It is strictly convex, so there is one
    solution and no seed.

    Attributes:
        names: of the features.
        weights: [F] float64, of the standardised features; 0 for one that was constant in training.
        mean: [F] float64, of the pairs that the model was fitted on.
        std: [F] float64, likewise; 1 for a constant one.
    """

    name: ClassVar[str] = "linear"

    def __init__(self, names: tuple[str, ...], weights: Doubles, mean: Doubles, std: Doubles) -> None:
        self.names, self.weights, self.mean, self.std = names, weights, mean, std

    @classmethod
    def fit(cls, train: Judged, *, l2: float = 1e-4) -> Self:
        """Fit by L-BFGS, in float64, block by block.

        Args:
            train: rows that tell nothing of order are left out.
            l2: weight of the penalty, > 0.

        Raises:
            InputError: too few rows tell anything.
        """
        from scipy.optimize import minimize

        rows = train.telling_rows()
        mean, std, varies = _moments(train, rows)
        parts = [rows[block] for block in blocks(len(rows), train.features[0].size)]

        def loss_and_gradient(weights: Doubles) -> tuple[float, Doubles]:
            loss, gradient = l2 / 2 * float(weights @ weights), l2 * weights
            for part in parts:
                there = train.there[part]
                gain = np.where(there, train.gain[part], 0).astype(np.float64)
                target = gain / gain.sum(axis=1, keepdims=True)
                features = np.where(varies, (train.features[part] - mean) / std, 0)
                logits = np.where(there, features @ weights, -np.inf)
                logits -= logits.max(axis=1, keepdims=True)
                share = np.exp(logits)
                total = share.sum(axis=1, keepdims=True)
                share /= total
                log_share = np.where(there, logits, 0) - np.log(total)
                loss -= float((target * log_share).sum()) / len(rows)
                gradient += np.tensordot(share - target, features, axes=2) / len(rows)
            return loss, gradient

        solved = minimize(
            loss_and_gradient,
            np.zeros(len(train.names)),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-7},
        )
        return cls(train.names, solved.x, mean, std)

    def scores(self, features: Floats) -> Floats:
        """See `RankModel.scores`."""
        check_features(features, self.names)
        scores = np.empty(features.shape[:2], np.float32)
        # Feature after feature, because a matrix product sums in an order that depends on a pair's place.
        for block in blocks(len(features), features[:1].size):
            total = np.zeros(scores[block].shape)
            for place in np.flatnonzero(self.weights):
                total += (features[block, :, place] - self.mean[place]) * (self.weights[place] / self.std[place])
            scores[block] = total
        return scores

    def append_to(self, pairs: Floats) -> Floats:
        """Features of pairs [m, F] and, behind them, their score: [m, F + 1], what the trees learn from.

        Trees add a sum of many features up in small steps; given the sum, they have only to correct it.
        """
        return np.hstack([pairs, self.scores(pairs[:, None])])

    def save(self, folder: Path) -> None:
        """Write `linear.json`: weight, mean and std of each feature by its name."""
        columns = zip(self.names, self.weights, self.mean, self.std, strict=True)
        content = {name: {"weight": float(w), "mean": float(m), "std": float(s)} for name, w, m, s in columns}
        write_json(folder / "linear.json", content)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        content = json.loads((folder / "linear.json").read_text())
        columns = (np.array([each[key] for each in content.values()], float) for key in ("weight", "mean", "std"))
        return cls(tuple(content), *columns)


def _moments(train: Judged, rows: npt.NDArray[np.int64]) -> tuple[Doubles, Doubles, npt.NDArray[np.bool_]]:
    """Mean and standard deviation [F] over the pairs of some rows, padding left out, and which features vary."""
    n_features = len(train.names)
    count, total, squares = 0, np.zeros(n_features), np.zeros(n_features)
    parts = [rows[block] for block in blocks(len(rows), train.features[0].size)]
    for part in parts:
        pairs = train.features[part][train.there[part]]
        count += len(pairs)
        total += pairs.sum(axis=0, dtype=np.float64)
    mean = total / count
    for part in parts:  # a second pass, because the mean of squares less the squared mean cancels
        squares += np.square(train.features[part][train.there[part]] - mean).sum(axis=0)
    # Exact: the sum of a constant float32 has room in a float64, so that its mean is the constant itself.
    varies = squares > 0
    return mean, np.where(varies, np.sqrt(squares / count), 1.0), varies
