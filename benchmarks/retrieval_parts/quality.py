"""What sources, the ranker and diversity bring: the lists of one run, judged on its test part."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from _asked import METRICS, Values, difference
from _common import Figure, at_least

from recsys.api import Run
from recsys.evaluation.asked import not_again
from recsys.evaluation.beyond import CategoryDiversity, Exposure
from recsys.evaluation.ranking import Items, Scorer, Scores, item_mask, tie_keys, top_k
from recsys.evaluation.scorers import RankerScorer, StudentScorer
from recsys.ingest.dataset import Dataset, Sequences
from recsys.items import category_codes
from recsys.ranking.config import RecommendConfig
from recsys.ranking.models.model import RankModel
from recsys.ranking.ranker import NOTHING_HIDDEN, Floats, Ints, Ordered, Pairs
from recsys.ranking.select import select
from recsys.runtime import Runtime

K: Final = 10
POOL: Final = RecommendConfig().pool
BLOCK: Final = 1024
FUSED: Final = ("student", "cooccurrence", "text")
FUSION_RANK: Final = 60
# Recall and NDCG at 10 of the whole pipeline, leave-one-out, by whether seen items are filtered.
TARGETS: Final = {True: (0.115, 0.069), False: (0.098, 0.052)}


def quality(run: Run, runtime: Runtime, diversities: list[float], prefix: str = "", judge: bool = True) -> list[Figure]:
    """The student alone, then with the other sources, then in the ranker's order, then diverse.

    Args:
        run: with its artifacts up to the ranker.
        runtime: seed and threads.
        diversities: of `recommend.diversity`.
        prefix: of the figures' names.
        judge: whether the targets are for this dataset.
    """
    runtime.torch_device()  # sets the threads
    dataset, student, ranker = run.dataset, run.student, run.ranker
    of_ranker = RankerScorer(ranker, dataset, student, runtime)
    figures = [Figure(f"{prefix}{name}", value) for name, value in candidates(dataset, of_ranker, runtime).items()]
    models: list[tuple[str, Scorer, float]] = [
        ("student", StudentScorer(student, runtime), 0.0),
        ("sources", Fused.scorer(of_ranker), 0.0),
        ("ranker", of_ranker, 0.0),
        *((f"diversity_{each:g}", of_ranker, each) for each in diversities),
    ]
    found: dict[tuple[str, bool], Values] = {}
    for name, scorer, diversity in models:
        made = lists_of(dataset, name, scorer, diversity, np.asarray(student.item_vectors), runtime)
        for filtered, lists in made.items():
            found[name, filtered] = lists.values
            about = f"{prefix}{name}{'' if filtered else '.unfiltered'}"
            targets = TARGETS[filtered] if judge and name == "ranker" else (None, None)
            for metric, value, target in zip(METRICS, np.nanmean(lists.values, axis=0), targets, strict=True):
                column = f"{about}.{metric.column}"
                figures.append(Figure(column, value) if target is None else at_least(column, value, target))
            figures.append(Figure(f"{about}.coverage_at_10", lists.exposure.coverage))
            figures.append(Figure(f"{about}.category_diversity_at_10", float(np.nanmean(lists.diversity))))
    pairs = [("sources", "student"), ("ranker", "student"), ("ranker", "sources")]
    pairs += [(name, "ranker") for name, _, diversity in models if diversity]
    for one, other in pairs:
        for filtered in (True, False):
            about = f"{prefix}{one}-{other}{'' if filtered else '.unfiltered'}.ndcg_at_10"
            asked = np.isfinite(found[one, filtered]).all(axis=1)
            figures += difference(about, found[one, filtered][asked], found[other, filtered][asked])
    return figures


@dataclass
class Lists:
    """What one model's lists are like under one rule for seen items.

    Attributes:
        values: [n_cases, 2] recall and NDCG; NaN where no target is left.
        diversity: [n_cases] share of pairs of different categories.
        exposure: what was shown.
    """

    values: Values
    diversity: npt.NDArray[np.float64]
    exposure: Exposure = field(repr=False)


def lists_of(
    dataset: Dataset, name: str, scorer: Scorer, diversity: float, directions: Floats, runtime: Runtime
) -> dict[bool, Lists]:
    """Make and judge everybody's lists, by whether what was seen is left out."""
    directions = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    category = CategoryDiversity(K, category_codes(dataset.items["category"]))
    n, n_items = len(dataset.cases("test")), dataset.n_items
    found = {
        filtered: Lists(np.full((n, len(METRICS)), np.nan), np.full(n, np.nan), Exposure(n_items, K))
        for filtered in (False, True)
    }
    for rows, users, histories, targets in blocks(dataset, runtime, name):
        scores, keys = scorer.score(histories), tie_keys(users, runtime.seed)
        for filtered, lists in found.items():
            if filtered:
                gone = not_again(histories, n_items, repurchases=False)
                seen = np.repeat(np.arange(len(users)), histories.lengths)[gone], histories.item_idx[gone]
                scores[seen], targets[seen] = -np.inf, False
            items = top_k(scores, POOL if diversity else K, keys)
            if diversity:
                items = diverse(items, scores, directions, diversity)
            hits = np.take_along_axis(targets, np.maximum(items, 0), axis=1) & (items >= 0)
            lists.values[rows] = np.column_stack([metric(hits, targets.sum(axis=1)) for metric in METRICS])
            lists.diversity[rows] = category(items)
            lists.exposure.add(items)
    return found


def diverse(items: Items, scores: Scores, directions: Floats, diversity: float) -> Items:
    """The ten of each row's items that `recommend.diversity` chooses."""
    of_items = np.take_along_axis(scores, np.maximum(items, 0), axis=1)
    around = directions[np.maximum(items, 0)]
    place = select(items, of_items, K, diversity=diversity, directions=around)
    return np.where(place >= 0, np.take_along_axis(items, np.maximum(place, 0), axis=1), -1)


def candidates(dataset: Dataset, scorer: RankerScorer, runtime: Runtime) -> dict[str, float]:
    """Which share of the targets is among the candidates: of all sources, and of as many of the student's."""
    student, pairs = scorer.of_student, scorer.pairs
    quota = pairs.sources.config.student
    number, among, n_targets = 0, {"quota": 0.0, "as_many": 0.0, "sources": 0.0}, 0
    for _, users, histories, targets in blocks(dataset, runtime, "candidates"):
        vectors = student.student.user_vectors(histories, runtime=runtime)
        order = torch.topk(torch.from_numpy(vectors @ student.items.T), 2 * quota, dim=1).indices.numpy()
        for rows, merged, _ in pairs.blocks(histories, vectors, order[:, :quota], NOTHING_HIDDEN):
            some, there = targets[rows], merged.items >= 0
            many = there.sum(axis=1)
            own = np.take_along_axis(some, order[rows], axis=1) / some.sum(axis=1, keepdims=True)
            among["quota"] += own[:, :quota].sum()
            among["as_many"] += (own * (np.arange(own.shape[1]) < many[:, None])).sum()
            hit = np.take_along_axis(some, np.maximum(merged.items, 0), axis=1) & there
            among["sources"] += (hit / some.sum(axis=1, keepdims=True)).sum()
            number += int(many.sum())
        n_targets += len(users)
    return {
        "candidates.number": number / n_targets,
        f"candidates.student_{quota}.recall": among["quota"] / n_targets,
        "candidates.student_as_many.recall": among["as_many"] / n_targets,
        "candidates.sources.recall": among["sources"] / n_targets,
    }


def blocks(
    dataset: Dataset, runtime: Runtime, label: str
) -> Iterator[tuple[slice, npt.NDArray[np.int32], Sequences, npt.NDArray[np.bool_]]]:
    """Rows of the test part, whose they are, histories, and [n, n_items] what is wanted."""
    cases = dataset.cases("test")
    starts = range(0, len(cases), BLOCK)
    for start in runtime.track(starts, total=len(starts), label=label, unit="block"):
        rows = slice(start, min(start + BLOCK, len(cases)))
        users = cases.user_idx[rows]
        histories = dataset.histories(users, cases.history_end[rows])
        yield rows, users, histories, item_mask(cases.targets.select(np.arange(rows.start, rows.stop)), dataset.n_items)


class Fused(Pairs):
    """The same candidates without anything learned, by reciprocal rank fusion.

    Σ over the student, co-occurrence and the likeness of texts of 1 / (60 + the candidate's rank among the user's):
    Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank Learning Methods"
    (SIGIR 2009).
    """

    @classmethod
    def scorer(cls, of_ranker: RankerScorer) -> RankerScorer:
        """The ranker's scorer with this order instead of the ranker's."""
        pairs, fused = of_ranker.pairs, copy.copy(of_ranker)
        fused.pairs = cls(pairs.sources, pairs.catalogue, pairs.student, pairs.snapshot, pairs.allowed)
        return fused

    def ordered(self, model: RankModel, histories: Sequences, users: Floats, of_student: Ints, hidden: Ints) -> Ordered:
        """Arguments as `Pairs.ordered`; the model is not asked."""
        columns = [self.names.index(each) for each in FUSED]
        shape = len(histories), of_student.shape[1] + self.sources.config.besides_student
        items, source, scores = np.full(shape, -1, np.int64), np.zeros(shape, np.int8), np.zeros(shape, np.float32)
        for rows, merged, features in self.blocks(histories, users, of_student, hidden):
            place = rows, slice(merged.items.shape[1])
            values = np.where((merged.items >= 0)[:, :, None], features[:, :, columns], -np.inf)
            rank = 1 + np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1)
            items[place], source[place] = merged.items, merged.source
            scores[place] = (1 / (FUSION_RANK + rank)).sum(axis=2)
        return Ordered(items, source, scores)
