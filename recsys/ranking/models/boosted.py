"""Boosted trees on single pairs: what was taken against a sample of what was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from recsys.ranking.models.judged import Floats, Judged, blocks, check_features
from recsys.ranking.models.linear import Linear

HELD_OUT: Final = 0.1  # of the training rows, to stop on
PATIENCE: Final = 10  # trees without a gain on them
MAX_LEAVES: Final = 31  # a tree's leaves are the bits of one integer

Masks = npt.NDArray[np.uint32]


class Boosted:
    """Trees of scikit-learn's HistGradientBoostingClassifier; a score is the log-odds of "taken" among the sample.

    The linear model's score is one more feature: on synthetic lists, with an interaction and without one, that was
    worth .005 to .012 of NDCG@10.

    The trees are kept as arrays in safetensors, not as a pickle. skops.io could keep the estimator without running
    code, but what it keeps are private classes of one scikit-learn version, which it has to be told to trust. With
    arrays a model outlives an upgrade, recommending needs no scikit-learn, and scoring is faster: instead of walking
    each tree, all trees are answered feature by feature with bit masks (QuickScorer: Lucchese et al., SIGIR 2015; here
    by a table of each feature's thresholds, which are few in histograms). A test compares with scikit-learn's own
    prediction.

    Args:
        linear: whose score is the last feature.
        arrays: the trees' nodes, one tree after the other, each in preorder, left child first: `first` [T + 1] where
            each tree begins; per node `feature` int32 (−1: a leaf), `threshold` float32 (x ≤ threshold goes left),
            `right` int32 (the right child's place within its tree), `value` float64 (a leaf's); and `baseline` [1].
    """

    name: ClassVar[str] = "boosted"

    def __init__(self, linear: Linear, arrays: dict[str, npt.NDArray[Any]]) -> None:
        self.names, self.linear, self.arrays = linear.names, linear, arrays
        self._baseline = float(arrays["baseline"][0])
        self._thresholds, self._masks, self._values = _tables(arrays, len(self.names) + 1)

    @property
    def n_trees(self) -> int:
        """How many trees there are."""
        return len(self.arrays["first"]) - 1

    @classmethod
    def fit(
        cls,
        train: Judged,
        linear: Linear,
        *,
        seed: int,
        threads: int = 0,
        negatives: int = 30,
        max_trees: int = 300,
        learning_rate: float = 0.1,
    ) -> Self:
        """Fit; stops early on rows that are held out whole, so that no list is on both sides.

        Args:
            train: rows that tell nothing of order are left out. What was taken weighs its gain over the mean gain.
            linear: fitted on the same rows.
            seed: draws negatives and held-out rows.
            threads: of OpenMP; 0 takes all.
            negatives: candidates per row that were not taken, at most, drawn uniformly.
            max_trees: trees, at most.
            learning_rate: factor of each tree.

        Raises:
            InputError: too few rows tell anything.
        """
        from sklearn.ensemble import HistGradientBoostingClassifier
        from threadpoolctl import threadpool_limits

        rows = train.telling_rows()
        rng = np.random.default_rng([seed, len(rows)])
        held_out = rng.permutation(len(rows)) < max(round(HELD_OUT * len(rows)), 1)
        taken = train.taken[rows]
        row, column = np.nonzero(taken | _sample(train.there[rows] & ~taken, negatives, rng))
        pairs, labels = linear.append_to(train.features[rows[row], column]), taken[row, column]
        gain = train.gain[rows[row], column].astype(np.float64)
        weights = np.where(labels, gain / gain[labels].mean(), 1.0)
        out = held_out[row]
        model = HistGradientBoostingClassifier(
            learning_rate=learning_rate,
            max_iter=max_trees,
            max_leaf_nodes=MAX_LEAVES,
            early_stopping=True,
            n_iter_no_change=PATIENCE,
            random_state=seed,
        )
        with threadpool_limits(limits=threads or None):
            model.fit(
                pairs[~out],
                labels[~out],
                sample_weight=weights[~out],
                X_val=pairs[out],
                y_val=labels[out],
                sample_weight_val=weights[out],
            )
        return cls.of(model, linear)

    @classmethod
    def of(cls, model: Any, linear: Linear) -> Self:
        """Take the trees out of a fitted binary HistGradientBoostingClassifier of F + 1 numerical features."""
        trees = [predictor.nodes for (predictor,) in model._predictors]
        nodes = np.concatenate(trees)
        leaf = nodes["is_leaf"].astype(bool)
        threshold = nodes["num_threshold"].astype(np.float32)
        # x is float32, so x ≤ t holds just where x ≤ the largest float32 that is not above t.
        above = threshold > nodes["num_threshold"]
        threshold[above] = np.nextafter(threshold[above], np.float32(-np.inf))
        arrays = {
            "first": np.cumsum([0, *(len(tree) for tree in trees)]).astype(np.int32),
            "feature": np.where(leaf, -1, nodes["feature_idx"]).astype(np.int32),
            "threshold": np.where(leaf, np.float32(0), threshold),
            "right": np.where(leaf, 0, nodes["right"]).astype(np.int32),
            "value": np.where(leaf, nodes["value"], 0.0),
            "baseline": np.array(model._baseline_prediction, np.float64).reshape(1),
        }
        return cls(linear, arrays)

    def scores(self, features: Floats) -> Floats:
        """See `RankModel.scores`."""
        check_features(features, self.names)
        flat = features.reshape(-1, len(self.names))
        scores = np.empty(len(flat), np.float32)
        for block in blocks(len(flat), 16 * self.n_trees):
            # Bit j of [pair, tree] stays set while leaf j can be reached; the lowest that is left is the exit leaf.
            leaves: Masks | None = None
            columns = self.linear.append_to(flat[block]).T
            for thresholds, masks, column in zip(self._thresholds, self._masks, columns, strict=True):
                if len(thresholds):
                    reachable = masks[np.searchsorted(thresholds, column)]
                    leaves = reachable if leaves is None else np.bitwise_and(leaves, reachable, out=leaves)
            if leaves is None:  # no tree has a split
                leaves = np.ones((columns.shape[1], self.n_trees), np.uint32)
            exits = np.frexp((leaves & -leaves).astype(np.float32))[1] - 1
            exits += np.arange(self.n_trees, dtype=exits.dtype) * (MAX_LEAVES + 1)
            scores[block] = self._values.take(exits).sum(axis=1) + self._baseline
        return scores.reshape(features.shape[:2])

    def save(self, folder: Path) -> None:
        """Write `boosted.safetensors`, and the linear model beside it."""
        save_file(self.arrays, folder / "boosted.safetensors")
        self.linear.save(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        return cls(Linear.load(folder), load_file(folder / "boosted.safetensors"))


def _sample(among: npt.NDArray[np.bool_], most: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """At most so many places of each row, drawn uniformly among those that are True."""
    if most >= among.shape[1]:
        return among
    keys = np.where(among, rng.random(among.shape, np.float32), 2)
    chosen = np.zeros_like(among)
    np.put_along_axis(chosen, np.argpartition(keys, most, axis=1)[:, :most], True, axis=1)
    return chosen & among


def _tables(
    arrays: dict[str, npt.NDArray[Any]], n_features: int
) -> tuple[list[Floats], list[Masks], npt.NDArray[np.float64]]:
    """What `Boosted.scores` looks up.

    Returns:
        Per feature the distinct thresholds [m], ascending; per feature masks [m + 1, T]: which leaves of each tree can
        still be reached by a value that exceeds the first m thresholds; and the leaves' values, [T · 32].
    """
    first, feature, threshold, right = (arrays[name] for name in ("first", "feature", "threshold", "right"))
    n_trees = len(first) - 1
    tree = np.repeat(np.arange(n_trees), np.diff(first))
    leaf = feature < 0
    before = np.concatenate([[0], np.cumsum(leaf)])  # leaves before each node
    number = before - before[first[np.append(tree, n_trees - 1)]]  # … within its tree
    values = np.zeros(n_trees * (MAX_LEAVES + 1))
    values[tree[leaf] * (MAX_LEAVES + 1) + number[:-1][leaf]] = arrays["value"][leaf]
    # In preorder the left subtree lies between a node and its right child. Going right rules its leaves out.
    begin, end = number[:-1].astype(np.uint64), number[first[tree] + right].astype(np.uint64)
    keeps = ~((np.uint64(1) << end) - (np.uint64(1) << begin)).astype(np.uint32)
    thresholds, masks = [], []
    for each in range(n_features):
        at = np.flatnonzero(feature == each)
        distinct, place = np.unique(threshold[at], return_inverse=True)
        table = np.full((len(distinct) + 1, n_trees), np.iinfo(np.uint32).max, np.uint32)
        np.bitwise_and.at(table, (place + 1, tree[at]), keeps[at])
        thresholds.append(distinct)
        masks.append(np.bitwise_and.accumulate(table, axis=0))
    return thresholds, masks, values
