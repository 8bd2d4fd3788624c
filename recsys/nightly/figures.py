"""What the gate looks at, of a run's report and lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from recsys.api import Run
from recsys.config import PipelineConfig
from recsys.nightly.gate import ListFigures

if TYPE_CHECKING:
    from recsys.evaluation.report import Report


def served(config: PipelineConfig) -> str:
    """What the report calls the model whose lists are served."""
    return "ranker" if config.use_ranker else "student"


def measured(report: Report, values: Mapping[str, np.ndarray], config: PipelineConfig) -> dict[str, dict[str, Any]]:
    """The served model's and, if there is one, the champion's figures of a report: `Measured` but for the lists."""
    rule, k = config.evaluate.primary_seen_filtered, 10
    column = f"{config.evaluate.primary_metric}_at_{config.evaluate.primary_k}"
    coverage = {row.model: row.value for row in report.coverage if (row.seen_filtered, row.k) == (rule, k)}
    found: dict[str, dict[str, Any]] = {}
    for model in (served(config), "champion"):
        if model in values:
            found[model] = {"values": values[model], "coverage": coverage[model], "segments": {}}
    if "champion" in found:
        table = report.per_segment.to_pandas()
        table = table[(table["kind"] != "category") & table["model"].isin(list(found))]
        for (model, segment), rows in table.groupby(["model", "segment"], observed=True):
            found[str(model)]["segments"][str(segment)] = rows[column].to_numpy()
    return found


def headline(report: Report, config: PipelineConfig) -> dict[str, np.ndarray]:
    """By model, the per-user values of the primary metric, [n_users], in the order of user_idx."""
    column = f"{config.evaluate.primary_metric}_at_{config.evaluate.primary_k}"
    table = report.per_user.to_pandas()
    table = table[table["seen_filtered"] == config.evaluate.primary_seen_filtered].sort_values("user_idx")
    return {str(model): rows[column].to_numpy() for model, rows in table.groupby("model", observed=True, sort=False)}


def list_figures(run: Run) -> ListFigures:
    """What the gate looks at in a run's lists, read as a stream."""
    lists, n, total, squares, first = run.recommendations, 0, 0.0, 0.0, 0
    for file in [lists.file] if lists.file.is_file() else sorted(lists.file.glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(1 << 20, columns=["rank", "score"]):
            scores = batch["score"].to_numpy(zero_copy_only=False).astype(np.float64)
            first += int((batch["rank"].to_numpy() == 1).sum())
            n, total, squares = n + len(scores), total + float(scores.sum()), squares + float(scores @ scores)
    mean = total / max(n, 1)
    variance = squares / max(n, 1) - mean**2
    users = int(lists.counts["users"])
    return ListFigures(
        users=users,
        empty=users - first,
        full=int(lists.counts["full_lists"]),
        spread=float(np.sqrt(max(variance, 0.0))) if np.isfinite(variance) else float("nan"),
        bytes=sum(sum(artifact.manifest["files"].values()) for artifact in (lists, run.index)),
        seconds=float(lists.manifest["seconds"]),
    )
