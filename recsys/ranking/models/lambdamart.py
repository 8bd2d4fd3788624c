"""LambdaMART by LightGBM: boosted trees whose gradients are what a swap would change in NDCG."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from recsys.errors import MissingExtraError
from recsys.ranking.models.boosted import HELD_OUT
from recsys.ranking.models.judged import Floats, Judged, check_features
from recsys.ranking.models.linear import Linear

GRADES: Final = 31  # distinct gains that are told apart
PATIENCE: Final = 20  # trees without a better NDCG@10 on the held-out rows


class LambdaMart:
    """LightGBM's `lambdarank` (Burges, "From RankNet to LambdaRank to LambdaMART: An Overview", MSR-TR-2010-82).

    The linear model's score is one more feature, as in `Boosted`. Saved in LightGBM's own text format.
    """

    name: ClassVar[str] = "lambdamart"

    def __init__(self, linear: Linear, booster: Any) -> None:
        self.names, self.linear, self.booster = linear.names, linear, booster

    @classmethod
    def fit(
        cls,
        train: Judged,
        linear: Linear,
        *,
        seed: int,
        threads: int = 0,
        max_trees: int = 300,
        learning_rate: float = 0.1,
    ) -> Self:
        """Fit; stops early on rows that are held out whole.

        Args:
            train: rows that tell nothing of order are left out.
            linear: fitted on the same rows.
            seed: draws the held-out rows.
            threads: of LightGBM; 0 takes all.
            max_trees: trees, at most.
            learning_rate: factor of each tree.

        Raises:
            InputError: too few rows tell anything.
            MissingExtraError: `lightgbm` is not installed.
        """
        lightgbm = _lightgbm()
        rows = train.telling_rows()
        n_held_out = max(round(HELD_OUT * len(rows)), 1)
        rows = np.random.default_rng([seed, len(rows)]).permutation(rows)
        # LightGBM wants whole numbers, and what each is worth.
        worth = np.unique(train.gain[rows][train.taken[rows]]).astype(np.float64)
        if len(worth) > GRADES:
            worth = np.unique(np.quantile(worth, np.linspace(0, 1, GRADES), method="nearest"))

        def lists(part: npt.NDArray[np.int64], **options: Any) -> Any:
            there = train.there[part]
            gain = np.where(train.taken[part], train.gain[part], 0)[there]
            label = np.searchsorted(worth, gain, side="right")
            return lightgbm.Dataset(
                linear.append_to(train.features[part][there]), label, group=there.sum(axis=1), **options
            )

        learn = lists(np.sort(rows[n_held_out:]))
        booster = lightgbm.train(
            {
                "objective": "lambdarank",
                "metric": "ndcg",
                "eval_at": [10],
                "label_gain": [0.0, *worth.tolist()],
                "learning_rate": learning_rate,
                "num_leaves": 31,
                "min_data_in_leaf": 20,
                "deterministic": True,
                "force_row_wise": True,
                "num_threads": threads,
                "seed": seed,
                "verbosity": -1,
            },
            learn,
            num_boost_round=max_trees,
            valid_sets=[lists(np.sort(rows[:n_held_out]), reference=learn)],
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
        )
        # As text and back, so that a model that was just fitted is the same as one that was loaded.
        text = booster.model_to_string(num_iteration=booster.best_iteration)
        return cls(linear, lightgbm.Booster(model_str=text))

    def scores(self, features: Floats) -> Floats:
        """See `RankModel.scores`. OpenMP's settings decide the number of threads."""
        check_features(features, self.names)
        if not features.size:
            return np.zeros(features.shape[:2], np.float32)
        pairs = self.linear.append_to(features.reshape(-1, len(self.names)))
        scores: Floats = self.booster.predict(pairs).astype(np.float32)
        return scores.reshape(features.shape[:2])

    def save(self, folder: Path) -> None:
        """Write `lambdamart.txt`, and the linear model beside it."""
        (folder / "lambdamart.txt").write_text(self.booster.model_to_string())
        self.linear.save(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            MissingExtraError: `lightgbm` is not installed.
        """
        return cls(Linear.load(folder), _lightgbm().Booster(model_str=(folder / "lambdamart.txt").read_text()))


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError:
        raise MissingExtraError("lightgbm", "lambdamart") from None
    return lightgbm
