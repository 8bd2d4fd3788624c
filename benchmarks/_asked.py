"""Which cases a benchmark asks about, what judges the answers, and how two models' are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from _common import Figure, at_least

from recsys.evaluation.metrics import NDCG, Recall
from recsys.evaluation.significance import percentile_interval, resampled_means
from recsys.ingest.dataset import Dataset, Sequences
from recsys.runtime import Runtime
from recsys.teacher.examples import history_rows
from recsys.teacher.model import Teacher, reranked

METRICS: Final = Recall(10), NDCG(10)
CANDIDATES: Final = 200
WITHIN_CANDIDATES: Final = Recall(CANDIDATES)
BLOCK: Final = 128

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """Which cases of the test part are asked about.

    Attributes:
        rows: of the cases: a sample, and all whose targets are cold.
        sampled: [n] whether a row is of the sample.
        cold: [n] whether its targets have no training event.
    """

    rows: npt.NDArray[np.int64]
    sampled: npt.NDArray[np.bool_]
    cold: npt.NDArray[np.bool_]

    @classmethod
    def draw(cls, dataset: Dataset, n_users: int) -> Asked:
        """A sample by seed, the same for every teacher."""
        cases = dataset.cases("test")
        sample = np.random.default_rng(0).permutation(len(cases))[:n_users]
        counts = np.bincount(dataset.train.item_idx, minlength=dataset.n_items)
        warm = np.add.reduceat(counts[cases.targets.values] > 0, cases.targets.offsets[:-1])
        rows = np.union1d(sample, np.flatnonzero(warm == 0))
        return cls(rows, np.isin(rows, sample), warm[rows] == 0)

    def block(
        self, dataset: Dataset, start: int, last: int
    ) -> tuple[
        npt.NDArray[np.int32],
        Sequences,
        tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]],
        Callable[[npt.NDArray[np.int32]], Values],
    ]:
        """Users, histories and seen items of some rows, and what judges lists of them: [n, 3], as `answers`."""
        cases, chosen = dataset.cases("test"), self.rows[start : start + BLOCK]
        users, end = cases.user_idx[chosen], cases.history_end[chosen]
        histories, seen = history_rows(dataset, users, end, last=last)
        targets = cases.targets.select(chosen)
        keys = np.repeat(np.arange(len(targets)), targets.lengths) * dataset.n_items + targets.values

        def judge(items: npt.NDArray[np.int32]) -> Values:
            hits = np.isin(np.arange(len(items))[:, None] * dataset.n_items + items, keys) & (items >= 0)
            return np.column_stack([metric(hits, targets.lengths) for metric in (*METRICS, WITHIN_CANDIDATES)])

        return users, histories, seen, judge


def best_ten(
    teacher: Teacher, histories: Sequences, pool: npt.NDArray[np.int32], runtime: Runtime
) -> npt.NDArray[np.int32]:
    """The ten of each row's candidates that the teacher puts first, [n, 10]."""
    return reranked(teacher.score(histories, np.maximum(pool, 0), runtime=runtime), pool)


def difference(about: str, one: Values, other: Values, *, place: int = 1, above: float | None = None) -> list[Figure]:
    """The mean of one minus the other, of recall (`place` 0) or NDCG (1), with its interval."""
    gain = one[:, place] - other[:, place]
    means = resampled_means(gain[:, None], n_resamples=2000, rng=np.random.default_rng(0))
    low, high = (float(bound[0]) for bound in percentile_interval(means, 0.95))
    return [
        Figure(f"{about}.difference", float(gain.mean())),
        Figure(f"{about}.low", low) if above is None else at_least(f"{about}.low", low, above),
        Figure(f"{about}.high", high),
    ]
