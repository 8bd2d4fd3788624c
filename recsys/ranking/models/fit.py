"""Fit several models, measure them on other rows, keep one: the student's order where none is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys.errors import InputError
from recsys.ranking.models.boosted import Boosted
from recsys.ranking.models.judged import Judged, ndcg
from recsys.ranking.models.lambdamart import LambdaMart
from recsys.ranking.models.linear import Linear
from recsys.ranking.models.model import RankModel, StudentOrder

MODELS: Final[Mapping[str, type[RankModel]]] = {
    model.name: model for model in (StudentOrder, Linear, Boosted, LambdaMart)
}


@dataclass(frozen=True)
class Contender:
    """What a model reached on the validation rows.

    Attributes:
        name: of the model.
        ndcg: mean NDCG@10 over rows with a target.
        gain: how much that is above the student's order.
        error: standard error of `gain`, paired by row.
    """

    name: str
    ndcg: float
    gain: float
    error: float

    @property
    def is_better(self) -> bool:
        """Whether it is above the student's order by more than two errors: less may be luck, and not worth its cost."""
        return self.gain > 2 * self.error


@dataclass(frozen=True)
class Fitted:
    """What `fit_models` gives.

    Attributes:
        model: the one that was kept.
        contenders: the student's order, then the models as they were named.
        models: all of them, by name.
    """

    model: RankModel
    contenders: tuple[Contender, ...]
    models: Mapping[str, RankModel]


def fit_models(
    train: Judged,
    valid: Judged,
    names: Sequence[str] = ("linear", "boosted"),
    *,
    seed: int,
    threads: int = 0,
    negatives: int = 30,
    max_trees: int = 300,
) -> Fitted:
    """Fit each model on `train`, measure it on `valid`, keep the best one.

    The student's order always takes part. It is kept unless a model's mean NDCG@10 is above its by more than two
    standard errors of the difference; of those the highest is kept, the earlier named of equal ones.

    Args:
        train: what the models learn from.
        valid: other rows, with the same features.
        names: of models, out of "linear", "boosted", "lambdamart".
        seed: of all that is drawn.
        threads: 0 takes all.
        negatives: of the boosted model, per row.
        max_trees: of the boosted models.

    Raises:
        InputError: a name is unknown, the features differ or have no "student", too few training rows tell anything, or
            no validation row has a target.
        MissingExtraError: "lambdamart" is named, and `lightgbm` is not installed.
    """
    unknown = sorted(set(names) - (MODELS.keys() - {StudentOrder.name}))
    if unknown:
        raise InputError(f"unknown models {unknown}", expected=f"of {', '.join([*MODELS][1:])}")
    if train.names != valid.names:
        raise InputError(f"features {valid.names} of the validation rows", expected=f"those of training, {train.names}")
    if not (valid.n_targets > 0).any():
        raise InputError("no validation row has a target", expected="users of whom it is known what they took")
    models: dict[str, RankModel] = {StudentOrder.name: StudentOrder(train.names)}
    linear = Linear.fit(train)  # the trees correct it
    for name in names:
        if name == Linear.name:
            models[name] = linear
        elif name == Boosted.name:
            models[name] = Boosted.fit(
                train, linear, seed=seed, threads=threads, negatives=negatives, max_trees=max_trees
            )
        else:
            models[name] = LambdaMart.fit(train, linear, seed=seed, threads=threads, max_trees=max_trees)
    counts = valid.n_targets > 0
    values = {name: ndcg(model.scores(valid.features), valid)[counts] for name, model in models.items()}
    contenders = tuple(_contender(name, each, values[StudentOrder.name]) for name, each in values.items())
    best = max((each for each in contenders if each.is_better), key=lambda each: each.ndcg, default=contenders[0])
    return Fitted(models[best.name], contenders, models)


def _contender(name: str, values: npt.NDArray[np.float64], student: npt.NDArray[np.float64]) -> Contender:
    difference = values - student
    error = difference.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.inf
    return Contender(name, float(values.mean()), float(difference.mean()), float(error))
