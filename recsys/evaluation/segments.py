"""The same figures for parts of the users and of the targets: whom a model serves, and with what.

A segment by *history* holds users. A segment by *popularity* or by *category* holds items, and a user's value in it is
computed on the targets of that segment only: the list is the one that everybody is shown, but only hits on the
segment's items count, against the number of the user's targets among them. A user stands in every segment in which
there is a target, so the users of two such segments overlap.

Nothing here looks at the test part to draw its lines: users and items are told apart by the training part alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.evaluation.metrics import Metric
from recsys.evaluation.ranking import RankedBlock
from recsys.evaluation.report import SegmentGainRow, SegmentKind, SegmentRow
from recsys.evaluation.significance import percentile_interval, resampled_means
from recsys.ingest.dataset import Ragged

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

USER_NAMES: Final = ("new", "light", "regular", "heavy")
HEAD, TAIL, COLD = POPULARITY_NAMES = ("head", "tail", "cold")
OTHER_CATEGORIES: Final = "all others"
NO_CATEGORY: Final = "without a category"


@dataclass(frozen=True)
class Segmentation:
    """One way to tell users, or items, apart.

    Attributes:
        kind: by what.
        names: of the segments, in the order in which they are shown.
        code: [n_users] or [n_items], which of `names`.
    """

    kind: SegmentKind
    names: tuple[str, ...]
    code: Ints

    @property
    def of_users(self) -> bool:
        """Whether it tells users apart, and not items."""
        return self.kind == "history"


def user_segments(train_events: npt.NDArray[np.integer], bounds: tuple[int, int, int]) -> Segmentation:
    """New, light, regular and heavy users by their number of training events.

    Args:
        train_events: [n_users].
        bounds: with how many events a user is light, regular, heavy; a user with fewer than the first is new.
    """
    return Segmentation("history", USER_NAMES, np.searchsorted(bounds, train_events, side="right"))


def popularity_segments(train_events: npt.NDArray[np.integer], head_share: float) -> Segmentation:
    """Head, tail and cold items by their number of training events.

    The head are the most popular items that together hold `head_share` of the events, with a half what Kilkki ("A
    practical model for analyzing long tails", First Monday 2007) calls N50; items that tie with the last of them are
    of the head too. Cold items have no training event. Other shares are in use: Cremonesi et al. (RecSys 2010) cut at
    a third.

    Args:
        train_events: [n_items].
        head_share: in (0, 1).
    """
    ordered = np.sort(train_events)[::-1]
    total = int(ordered.sum())
    last = int(np.searchsorted(np.cumsum(ordered), head_share * total))
    least = max(int(ordered[last]), 1) if total else 1
    code = np.where(train_events >= least, 0, np.where(train_events > 0, 1, 2))
    return Segmentation("popularity", POPULARITY_NAMES, code)


def category_segments(
    category: pa.ChunkedArray, train_events: npt.NDArray[np.integer], *, most: int
) -> Segmentation | None:
    """Items by their category's first level: the `most` with the most training events, the others, and those without.

    Args:
        category: [n_items] strings, levels split by `schema.CATEGORY_SEPARATOR`, or null.
        train_events: [n_items].
        most: categories with a segment of their own.

    Returns:
        None where there are not two categories to compare.
    """
    top = pc.list_element(pc.split_pattern(category, schema.CATEGORY_SEPARATOR, max_splits=1), 0)
    if isinstance(top, pa.ChunkedArray):
        top = top.combine_chunks()
    names = pc.unique(top.drop_null()).sort()
    if len(names) < 2:
        return None
    place = pc.fill_null(pc.index_in(top, names), len(names)).to_numpy(zero_copy_only=False).astype(np.int64)
    events = np.bincount(place, weights=train_events, minlength=len(names) + 1)[:-1]
    order = np.argsort(-events, kind="stable")[:most]
    code = np.full(len(names) + 1, len(order))
    code[order] = np.arange(len(order))
    code[-1] = len(order) + 1
    shown = tuple(str(names[first].as_py()) for first in order.tolist())
    return Segmentation("category", (*shown, OTHER_CATEGORIES, NO_CATEGORY), code[place])


@dataclass(frozen=True)
class Members:
    """Which case stands in which segment: one row each, in the order of the cases.

    Attributes:
        of: the segmentation.
        case: [n_members].
        code: [n_members], which segment.
        n_targets: [n_members], ≥ 1, the case's targets that count there.
    """

    of: Segmentation
    case: Ints
    code: Ints
    n_targets: Ints

    @classmethod
    def find(cls, of: Segmentation, user_idx: npt.NDArray[np.int32], targets: Ragged) -> Members:
        """All members, by the cases' users and the targets that count."""
        row = np.repeat(np.arange(len(targets)), targets.lengths)
        code = of.code[user_idx[row]] if of.of_users else of.code[targets.values]
        key, n_targets = np.unique(row * len(of.names) + code, return_counts=True)
        return cls(of, key // len(of.names), key % len(of.names), n_targets)

    def values(self, ranked: RankedBlock, metrics: Sequence[Metric]) -> tuple[slice, Values]:
        """The members of a block of cases, and their values [n, n_metrics]."""
        first, last = np.searchsorted(self.case, [ranked.rows.start, ranked.rows.stop])
        place = slice(int(first), int(last))
        row = self.case[place] - ranked.rows.start
        hits = ranked.hits[row]
        if not self.of.of_users:
            hits &= self.of.code[ranked.items[row]] == self.code[place, None]
        return place, np.column_stack([metric(hits, self.n_targets[place]) for metric in metrics])


@dataclass(frozen=True)
class Interval:
    """Figures of models side by side on the same users, each [n_models, n_metrics], and their ends."""

    value: Values
    low: Values
    high: Values

    def at(self, model: int, metric: int) -> tuple[float, float, float]:
        """Value, low and high of one figure."""
        return float(self.value[model, metric]), float(self.low[model, metric]), float(self.high[model, metric])


def intervals(
    models: Sequence[Values], *, n_resamples: int, confidence: float, rng: np.random.Generator
) -> tuple[Interval, Interval]:
    """Means, and the first model's mean minus each one's, with their bootstrap intervals.

    Args:
        models: [n_users, n_metrics] each, the same users in the same rows: all models are resampled together, so that
            the differences are paired.
        n_resamples: of the users.
        confidence: e.g. 0.95.
        rng: the source of the draws.
    """
    columns = np.concatenate(models, axis=1)
    samples = resampled_means(columns, n_resamples=n_resamples, rng=rng)
    means = columns.mean(axis=0).reshape(len(models), -1)
    samples = samples.reshape(len(samples), *means.shape)
    return (
        Interval(means, *percentile_interval(samples, confidence)),
        Interval(means[:1] - means, *percentile_interval(samples[:, :1] - samples, confidence)),
    )


def summarise_segments(
    members: Members,
    values: dict[str, Values],
    metrics: Sequence[Metric],
    *,
    best: str | None,
    protocol: str,
    seen_filtered: bool,
    n_resamples: int,
    confidence: float,
    seed: Sequence[int],
) -> tuple[list[SegmentRow], list[SegmentGainRow]]:
    """Means of every model in every segment, and what the first model gains over one other.

    Args:
        members: who stands where.
        values: of each model [n_members, n_metrics].
        metrics: their columns.
        best: whom the first model is compared with.
        protocol: for the rows.
        seen_filtered: for the rows.
        n_resamples: of the segment's users.
        confidence: of the intervals.
        seed: of the bootstrap.
    """
    names, rows, gains = list(values), [], []
    for code, segment in enumerate(members.of.names):
        inside = members.code == code
        n_users = int(inside.sum())
        if not n_users:
            continue
        rng = np.random.default_rng([*seed, code])
        mean, gain = intervals(
            [of[inside] for of in values.values()], n_resamples=n_resamples, confidence=confidence, rng=rng
        )
        n_targets = int(members.n_targets[inside].sum())
        for (m, model), (j, metric) in product(enumerate(names), enumerate(metrics)):
            about = protocol, seen_filtered, metric.name, metric.k
            rows.append(
                SegmentRow(
                    members.of.kind, segment, model, *about, *mean.at(m, j), n_users=n_users, n_targets=n_targets
                )
            )
            if model == best:
                gains.append(
                    SegmentGainRow(members.of.kind, segment, names[0], model, *about, *gain.at(m, j), n_users=n_users)
                )
    return rows, gains
