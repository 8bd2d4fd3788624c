"""Ranking metrics at k as small objects that give one value per user.

All take the same two arrays: `hits` [n_users, K] bool, whether the item at each rank (best first) is one of the
user's targets, and `n_targets` [n_users], how many distinct targets the user has. K may be less than k: a list that
ends early has no hits after its end, and a user without recommendations (a row of False) counts 0. A user without a
target has no value: NaN, to be left out of a mean.

Relevance is binary. On the definitions below see Herlocker et al., "Evaluating Collaborative Filtering Recommender
Systems" (TOIS 2004) and Tamm et al., "Quality Metrics in Recommender Systems: Do We Calculate Metrics Consistently?"
(RecSys 2021), which counts how far libraries diverge under one name. Every metric here equals that of ir-measures which
its docstring names, that is trec_eval's (MRR: MS MARCO's); `benchmarks/evaluation.py --definitions` shows what
other libraries say of the same lists.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Metric(ABC):
    """A metric of the first k ranks.

    Attributes:
        k: ranks that count.
    """

    k: int
    name: ClassVar[str]
    title: ClassVar[str]
    definition: ClassVar[str]  # one sentence, for the report

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, not {self.k}")

    @property
    def column(self) -> str:
        """Name of the metric's column in tables, such as `ndcg_at_10` (some trackers refuse an "@")."""
        return f"{self.name}_at_{self.k}"

    def __call__(self, hits: Bools, n_targets: Counts) -> Values:
        """One value per user, [n_users] in [0, 1]; NaN where `n_targets` is 0."""
        values = self._values(hits[:, : self.k], np.maximum(n_targets, 1))
        return np.where(n_targets > 0, values, np.nan)

    @abstractmethod
    def _values(self, hits: Bools, n_targets: Counts) -> Values:
        """The metric on lists cut at k, for users with at least one target."""


class Recall(Metric):
    """Share of the user's targets among the first k: |hits in the first k| / |targets|.

    ir-measures' `R@k`, trec_eval's `recall_k`: the denominator is the number of targets even where it exceeds k. So do
    RecTools, RecBole and RePlay. Some papers divide by min(k, |targets|) instead (Liang et al., WWW 2018), which reads
    higher; RecTools has it as `Precision(r_precision=True)`.
    """

    name = "recall"
    title = "Recall"
    definition = "share of a user's targets that stand among the first k, averaged over users"

    def _values(self, hits: Bools, n_targets: Counts) -> Values:
        found: Counts = hits.sum(axis=1)
        return found / n_targets


class HitRate(Metric):
    """1 if at least one target is among the first k, else 0.

    ir-measures' `Success@k`, trec_eval's `success_k`; the same in RecTools, RecBole and RePlay. With one target per
    user it equals recall.
    """

    name = "hit_rate"
    title = "Hit rate"
    definition = "share of users with at least one target among the first k"

    def _values(self, hits: Bools, n_targets: Counts) -> Values:
        found: Counts = hits.sum(axis=1)
        return (found > 0).astype(np.float64)


class NDCG(Metric):
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen, TOIS 2002), binary gains.

    DCG@k = Σ over hits at rank r ≤ k of 1 / log2(r + 1); NDCG@k = DCG@k / the DCG of a list that starts with
    min(k, |targets|) hits. ir-measures' `nDCG@k`, trec_eval's `ndcg_cut_k`; the same in RecBole and RePlay. RecTools
    divides by the ideal of k hits whatever the number of targets, which reads several times lower, unless it is asked
    with `divide_by_achievable=True`.
    """

    name = "ndcg"
    title = "NDCG"
    definition = (
        "every target among the first k earns 1 / log2(rank + 1), divided by what the best possible list would earn"
        " for this user's number of targets, averaged over users"
    )

    def _values(self, hits: Bools, n_targets: Counts) -> Values:
        discount = 1 / np.log2(np.arange(2, self.k + 2))
        ideal = np.cumsum(discount)[np.minimum(n_targets, self.k) - 1]
        gain: Values = hits @ discount[: hits.shape[1]]
        values: Values = gain / ideal
        return values


class MRR(Metric):
    """Reciprocal rank of the first hit, 0 if it is not among the first k (Voorhees, TREC-8 1999, cut at k).

    ir-measures' `RR@k`; the same in RecTools, RecBole and RePlay.
    """

    name = "mrr"
    title = "MRR"
    definition = "1 / rank of the first target among the first k, 0 if there is none, averaged over users"

    def _values(self, hits: Bools, n_targets: Counts) -> Values:
        rank = np.arange(1, hits.shape[1] + 1)
        reciprocal: Values = np.max(hits / rank, axis=1, initial=0.0)
        return reciprocal


class Precision(Metric):
    """Share of the first k ranks that are hits: |hits in the first k| / k.

    ir-measures' `P@k`, trec_eval's `P_k`: the denominator is k even where the list ends early, so a short list gains
    nothing. So do RecTools, RecBole and RePlay; rs_metrics divides by the length of the list.
    """

    name = "precision"
    title = "Precision"
    definition = "share of the first k ranks that hold a target, averaged over users; ranks without an item count"

    def _values(self, hits: Bools, n_targets: Counts) -> Values:
        found: Counts = hits.sum(axis=1)
        return found / self.k


class MAP(Metric):
    """Mean average precision, cut at k: Σ over hits at rank r ≤ k of precision@r / |targets|, averaged over users.

    ir-measures' `AP@k`, trec_eval's `map_cut_k` (Buckley and Voorhees, SIGIR 2000): the denominator is the number of
    targets even where it exceeds k. So does RecTools unless it is asked with `divide_by_k=True`. RecBole and RePlay
    divide by min(k, |targets|), which reads higher for users with more targets than k and the same for all others.
    """

    name = "map"
    title = "MAP"
    definition = (
        "every target among the first k earns the precision of the list down to it, divided by this user's number of"
        " targets, averaged over users"
    )

    def _values(self, hits: Bools, n_targets: Counts) -> Values:
        rank = np.arange(1, hits.shape[1] + 1)
        earned: Values = np.where(hits, np.cumsum(hits, axis=1) / rank, 0.0).sum(axis=1)
        return earned / n_targets


METRICS: Final[tuple[type[Metric], ...]] = (Recall, NDCG, HitRate, MRR, Precision, MAP)


def metrics_at(ks: Iterable[int]) -> list[Metric]:
    """Every metric at every k, k by k."""
    return [metric(k) for k in ks for metric in METRICS]
