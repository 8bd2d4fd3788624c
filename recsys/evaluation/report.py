"""The report artifact: figures as typed rows, per-user values as a table, the page as HTML."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.artifacts import Artifact
from recsys.errors import InputError
from recsys.evaluation.tuning import Setting

METRICS_FILE: Final = "metrics.json"
USERS_FILE: Final = "per_user.parquet"
SEGMENTS_FILE: Final = "per_segment.parquet"
EXAMPLES_FILE: Final = "examples.json"
PAGE_FILE: Final = "report.html"

NOT_BASELINES: Final = ("student", "ranker", "champion", "teacher")

# "all": every evaluated user; "sample": those on whom the costly teacher was measured too.
UserSet = Literal["all", "sample"]

# Users by their training history, targets by their items' popularity or category.
SegmentKind = Literal["history", "popularity", "category"]


@dataclass(frozen=True)
class MetricRow:
    """A model's mean over users, with its bootstrap interval."""

    model: str
    protocol: str
    seen_filtered: bool
    metric: str
    k: int
    value: float
    low: float
    high: float
    n_users: int
    users: UserSet


@dataclass(frozen=True)
class DifferenceRow:
    """`model` minus `other` on the same users, with the paired bootstrap interval.

    The comparisons of the verdict's metric have a `p_value` too (randomization test, two-sided), and `p_holm`: adjusted
    for all of them on these users.
    """

    model: str
    other: str
    protocol: str
    seen_filtered: bool
    metric: str
    k: int
    difference: float
    low: float
    high: float
    n_users: int
    users: UserSet
    p_value: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class CoverageRow:
    """The share of the catalogue that stands in at least one user's first k."""

    model: str
    protocol: str
    seen_filtered: bool
    k: int
    value: float
    n_users: int


@dataclass(frozen=True)
class BeyondRow:
    """What a model's first k are like apart from hits, one of the measures of `recsys.evaluation.beyond`."""

    model: str
    protocol: str
    seen_filtered: bool
    measure: str
    k: int
    value: float
    n_users: int


@dataclass(frozen=True)
class SegmentRow:
    """A model's mean over the users of one segment, with its bootstrap interval; see `recsys.evaluation.segments`."""

    kind: SegmentKind
    segment: str
    model: str
    protocol: str
    seen_filtered: bool
    metric: str
    k: int
    value: float
    low: float
    high: float
    n_users: int
    n_targets: int


@dataclass(frozen=True)
class SegmentGainRow:
    """`model` minus `other`, the best baseline on all users, in one segment, with the paired bootstrap interval."""

    kind: SegmentKind
    segment: str
    model: str
    other: str
    protocol: str
    seen_filtered: bool
    metric: str
    k: int
    difference: float
    low: float
    high: float
    n_users: int


@dataclass(frozen=True)
class Shown:
    """An item on the page."""

    item_id: str
    title: str
    hit: bool = False  # in a list: whether it is one of the targets


@dataclass(frozen=True)
class Why:
    """Why the teacher put an item first, as `recsys.teacher.explain` tells it.

    Attributes:
        item: which.
        history: the user's last items, the most recent first, with what each added to the score.
        words: those of the item's text, with what each added likewise.
    """

    item: Shown
    history: list[tuple[Shown, float]]
    words: list[tuple[str, float]]


@dataclass(frozen=True)
class Example:
    """One user, as people look at one.

    Attributes:
        user_id: as in the log.
        n_history: events before the question.
        history: the last of them, oldest first.
        targets: what came after, as far as the rule for seen items lets it count.
        lists: each model's first items, best first; a model that was not asked about this user has none.
        why: the teacher's reasons for its first item, where it was asked for any.
    """

    user_id: str
    n_history: int
    history: list[Shown]
    targets: list[Shown]
    lists: dict[str, list[Shown]]
    why: Why | None = None


@dataclass(frozen=True)
class Figures:
    """All that a report says."""

    rows: list[MetricRow]
    differences: list[DifferenceRow]
    coverage: list[CoverageRow]
    beyond: list[BeyondRow]
    segments: list[SegmentRow]
    segment_gains: list[SegmentGainRow]
    timings: dict[str, dict[str, float]]
    examples: list[Example]
    baselines: dict[str, Setting]


class Report(Artifact):
    """What `recsys evaluate` writes.

    Files: `metrics.json` (the rows below), `per_user.parquet` (one row per model, user and rule for seen items, one
    column per metric), `examples.json` (some users' histories and lists) and `report.html` (a page that needs nothing
    else); where a champion was measured also `per_segment.parquet`.
    """

    kind: ClassVar[str] = "report"
    stage: ClassVar[str] = "evaluate"

    @property
    def html(self) -> Path:
        """The page."""
        return self.path / PAGE_FILE

    @cached_property
    def rows(self) -> list[MetricRow]:
        """Every model's figures."""
        return [MetricRow(**row) for row in self._metrics["rows"]]

    @cached_property
    def differences(self) -> list[DifferenceRow]:
        """The student minus every other model."""
        return [DifferenceRow(**row) for row in self._metrics["differences"]]

    @cached_property
    def coverage(self) -> list[CoverageRow]:
        """How much of the catalogue each model shows."""
        return [CoverageRow(**row) for row in self._metrics["coverage"]]

    @cached_property
    def beyond(self) -> list[BeyondRow]:
        """What each model's lists are like apart from hits."""
        return [BeyondRow(**row) for row in self._metrics["beyond"]]

    @cached_property
    def segments(self) -> list[SegmentRow]:
        """Every model's figures by segment of the users and of the targets."""
        return [SegmentRow(**row) for row in self._metrics["segments"]]

    @cached_property
    def segment_gains(self) -> list[SegmentGainRow]:
        """The student minus the best baseline by segment."""
        return [SegmentGainRow(**row) for row in self._metrics["segment_gains"]]

    @property
    def timings(self) -> dict[str, dict[str, float]]:
        """Per model, seconds of its `fit` and of its `rank` for so many `users` (under both rules for seen items)."""
        timings: dict[str, dict[str, float]] = self.manifest["info"]["timings"]
        return timings

    @property
    def baselines(self) -> dict[str, Setting]:
        """What each baseline was fitted with, and whether that was tuned."""
        return {name: Setting(**setting) for name, setting in self.manifest["info"]["baselines"].items()}

    @cached_property
    def examples(self) -> list[Example]:
        """Some users, drawn by seed, with their histories and every model's list."""
        return [
            Example(
                user_id=each["user_id"],
                n_history=each["n_history"],
                history=[Shown(**item) for item in each["history"]],
                targets=[Shown(**item) for item in each["targets"]],
                lists={model: [Shown(**item) for item in items] for model, items in each["lists"].items()},
                why=each["why"]
                and Why(
                    Shown(**each["why"]["item"]),
                    [(Shown(**item), added) for item, added in each["why"]["history"]],
                    [(word, added) for word, added in each["why"]["words"]],
                ),
            )
            for each in json.loads((self.path / EXAMPLES_FILE).read_text())
        ]

    @property
    def per_user(self) -> pa.Table:
        """Columns model, seen_filtered, user_idx and one per metric (`ndcg_at_10`), float64."""
        return pq.read_table(self.path / USERS_FILE)

    @property
    def per_segment(self) -> pa.Table:
        """Where a champion was measured, values by segment of all that may be served, under the rule of the verdict.

        Columns kind, segment, model, user_idx and one per metric of `segments`, float64; users stand in the same order
        for all models.
        """
        return pq.read_table(self.path / SEGMENTS_FILE)

    def value(
        self, model: str, metric: str, k: int, *, seen_filtered: bool = True, users: UserSet | None = None
    ) -> float:
        """One figure; by default on all users, or on the sample for a model that was measured only there.

        Raises:
            InputError: nothing of the kind was measured.
        """
        found = [
            row
            for row in self.rows
            if (row.model, row.metric, row.k, row.seen_filtered) == (model, metric, k, seen_filtered)
            and users in (None, row.users)
        ]
        if not found:
            raise InputError(
                f"the report has no {metric}@{k} of {model!r} with seen_filtered={seen_filtered}"
                + (f" on users={users!r}" if users else ""),
                expected=f"a model of {sorted({row.model for row in self.rows})}, "
                f"a metric of {sorted({row.metric for row in self.rows})}, k of {sorted({row.k for row in self.rows})}",
                do="correct the name, or measure it (evaluate.ks, evaluate.teacher_users)",
            )
        return found[0].value  # all users stand before the sample

    @cached_property
    def _metrics(self) -> dict[str, list[dict[str, Any]]]:
        metrics: dict[str, list[dict[str, Any]]] = json.loads((self.path / METRICS_FILE).read_text())
        return metrics
