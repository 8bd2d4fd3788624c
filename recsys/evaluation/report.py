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

METRICS_FILE: Final = "metrics.json"
USERS_FILE: Final = "per_user.parquet"
PAGE_FILE: Final = "report.html"

# "all": every evaluated user; "sample": those on whom the costly teacher was measured too.
UserSet = Literal["all", "sample"]


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
    """`model` minus `other` on the same users, with the paired bootstrap interval."""

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


@dataclass(frozen=True)
class CoverageRow:
    """The share of the catalogue that stands in at least one user's first k."""

    model: str
    protocol: str
    seen_filtered: bool
    k: int
    value: float
    n_users: int


class Report(Artifact):
    """What `recsys evaluate` writes.

    Files: `metrics.json` (the rows below), `per_user.parquet` (one row per model, user and rule for seen items, one
    column per metric) and `report.html` (a page that needs nothing else).
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

    @property
    def per_user(self) -> pa.Table:
        """Columns model, seen_filtered, user_idx and one per metric (`ndcg_at_10`), float64."""
        return pq.read_table(self.path / USERS_FILE)

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
