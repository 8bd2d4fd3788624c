"""Dataset + student (+ teacher) → report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recsys import schema
from recsys.artifacts import Draft, Recipe, write_json
from recsys.errors import InputError
from recsys.evaluation.baselines import ItemKNN, MostPopular, OrderedItemKNN
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.metrics import Metric, metrics_at
from recsys.evaluation.page import render
from recsys.evaluation.ranking import Scorer, rank
from recsys.evaluation.report import (
    METRICS_FILE,
    PAGE_FILE,
    USERS_FILE,
    CoverageRow,
    DifferenceRow,
    MetricRow,
    Report,
    UserSet,
)
from recsys.evaluation.scorers import Fitted, PairScorer, StudentScorer, TeacherScorer, TwoTower
from recsys.evaluation.significance import percentile_interval, resampled_means
from recsys.evidence import Cooccurrence
from recsys.ingest.dataset import Cases, Dataset, Ragged
from recsys.runtime import Runtime

Values = npt.NDArray[np.float64]

COVERAGE_K: Final = 10
# Users whose candidates the teacher reads between two steps of the progress bar.
TEACHER_BLOCK: Final = 32

# Streams of random numbers under the run's seed: what one draws changes nothing for the others.
_USERS, _TEACHER_USERS, _BOOTSTRAP = range(3)


def evaluate(
    dataset: Dataset,
    student: TwoTower,
    teacher: PairScorer | None,
    config: EvaluateConfig,
    out: Path,
    *,
    runtime: Runtime | None = None,
    force: bool = False,
) -> Report:
    """Measure the student, the teacher and the baselines on the test part, over the whole catalogue.

    Every model answers the same users under both rules for seen items. The teacher reranks candidates of the student
    and the ordered item-kNN for a sample of the users, on which the others are reported again, so that every
    difference is paired.

    Args:
        dataset: what `ingest` wrote; baselines are fitted on its training part, its test part is asked.
        student: what `distill` wrote.
        teacher: what `teach` wrote, or None to leave it out.
        config: metrics, sizes and intervals.
        out: where the artifact goes, e.g. `runs/sample/report`.
        runtime: seed, device and progress bars.
        force: measure again even when `out` is up to date.

    Raises:
        InputError: there is nobody to ask.
        RecsysError: a model gave a score that is NaN.
    """
    runtime = runtime or Runtime()
    models: dict[str, Fitted] = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    recipe = Recipe(
        kind=Report.kind,
        config=config,
        inputs={"dataset": dataset.fingerprint} | {name: model.fingerprint for name, model in models.items()},
        seed=runtime.seed,
        modules=(
            "recsys.evaluation",
            "recsys.evidence",
            "recsys.ingest.dataset",
            "recsys.ingest.report",
            "recsys.page",
        ),
    )
    if force or not recipe.is_current(out):
        cases = dataset.cases("test")
        if not len(cases):
            raise InputError(
                "no user has an event in the test part, so there is nothing to evaluate",
                expected="test events in the dataset",
                do="end the training part earlier (the split's settings under [ingest]), or bring more events",
            )
        with recipe.build(out) as draft:
            measured = _measure(dataset, student, teacher, cases, config, runtime)
            _write(measured, dataset, models, recipe, config, draft)
    return Report.open(out)


@dataclass
class Measured:
    """All per-user values, and how long they took.

    Attributes:
        cases: who was asked.
        metrics: the columns of the values.
        values: per model and rule for seen items, [n_cases, n_metrics]; NaN where the user was not asked (the
            teacher's sample) or has no target left.
        coverage: per model and rule, the share of the catalogue in the first `COVERAGE_K`.
        timings: per model, seconds of its fit and of its ranking under both rules, and how many users it ranked for.
    """

    cases: Cases
    metrics: list[Metric]
    values: dict[tuple[str, bool], Values] = field(default_factory=dict)
    coverage: dict[tuple[str, bool], float] = field(default_factory=dict)
    timings: dict[str, dict[str, float]] = field(default_factory=dict)


def _measure(
    dataset: Dataset,
    student: TwoTower,
    teacher: PairScorer | None,
    cases: Cases,
    config: EvaluateConfig,
    runtime: Runtime,
) -> Measured:
    runtime.torch_device()  # sets the threads
    cases = _select(cases, _sample(len(cases), config.max_users, np.random.default_rng([runtime.seed, _USERS])))
    measured = Measured(cases, metrics_at(config.ks))
    everybody = np.arange(len(cases))
    scorers: dict[str, Scorer] = {}
    started = time.perf_counter()
    for scorer in _scorers(dataset, student, config, runtime):
        fitted = time.perf_counter() - started
        scorers[scorer.name] = scorer
        _add(measured, scorer, dataset, everybody, fitted, runtime)
        started = time.perf_counter()
    if teacher is not None and config.teacher_users:
        reranker = TeacherScorer(
            teacher,
            [scorers[StudentScorer.name], scorers[OrderedItemKNN.name]],
            n_candidates=config.teacher_candidates,
            n_items=dataset.n_items,
            runtime=runtime,
        )
        sample = _sample(len(cases), config.teacher_users, np.random.default_rng([runtime.seed, _TEACHER_USERS]))
        _add(measured, reranker, dataset, sample, 0.0, runtime, block=TEACHER_BLOCK)
    return measured


def _scorers(dataset: Dataset, student: TwoTower, config: EvaluateConfig, runtime: Runtime) -> Iterator[Scorer]:
    """The models that answer everybody, each made when it is asked for, so that its time can be taken."""
    train, n_items = dataset.train, dataset.n_items
    yield StudentScorer(student, runtime)
    yield OrderedItemKNN(Cooccurrence.fit(train, n_items))
    yield ItemKNN(train, n_items, neighbours=config.item_knn_neighbours, shrinkage=config.item_knn_shrinkage)
    if config.recent_days and dataset.protocol == "temporal":
        yield MostPopular(train, n_items, days=config.recent_days)
    yield MostPopular(train, n_items)


def _add(
    measured: Measured,
    scorer: Scorer,
    dataset: Dataset,
    sample: npt.NDArray[np.int64],
    fitted: float,
    runtime: Runtime,
    block: int | None = None,
) -> None:
    """Rank for the sampled cases and put down what came of it."""
    started = time.perf_counter()
    cases = _select(measured.cases, sample)
    k = max(COVERAGE_K, *(metric.k for metric in measured.metrics))
    shown = {rule: np.zeros(dataset.n_items, dtype=np.bool_) for rule in (True, False)}
    for rule in shown:
        measured.values[scorer.name, rule] = np.full((len(measured.cases), len(measured.metrics)), np.nan)
    for ranked in rank(scorer, dataset, cases, k=k, runtime=runtime, block=block):
        values = np.column_stack([metric(ranked.hits, ranked.n_targets) for metric in measured.metrics])
        measured.values[scorer.name, ranked.seen_filtered][sample[ranked.rows]] = values
        first = ranked.items[:, :COVERAGE_K]
        shown[ranked.seen_filtered][first[first >= 0]] = True
    for rule, items in shown.items():
        measured.coverage[scorer.name, rule] = float(items.mean())
    seconds = time.perf_counter() - started
    measured.timings[scorer.name] = {"fit": round(fitted, 3), "rank": round(seconds, 3), "users": len(sample)}


def summarise(
    measured: Measured, config: EvaluateConfig, *, protocol: str, seed: int
) -> tuple[list[MetricRow], list[DifferenceRow]]:
    """Means, differences and their intervals from the per-user values.

    Args:
        measured: the values; the first model is compared with every other one.
        config: resamples and confidence.
        protocol: the split's name, for the rows.
        seed: of the bootstrap.

    Returns:
        Rows of every model, and of the first minus each other; for each rule all users first, then the sample.
    """
    rows: list[MetricRow] = []
    differences: list[DifferenceRow] = []
    for seen_filtered in (True, False):
        values = {model: of for (model, rule), of in measured.values.items() if rule == seen_filtered}
        for users, models, asked in _user_sets(values):
            n_users = int(asked.sum())
            if not n_users:
                continue
            # [n_users, n_models · n_metrics]: side by side, all models are resampled on the same users.
            columns = np.concatenate([values[model][asked] for model in models], axis=1)
            rng = np.random.default_rng([seed, _BOOTSTRAP])
            samples = resampled_means(columns, n_resamples=config.n_bootstrap, rng=rng)
            means = columns.mean(axis=0).reshape(len(models), -1)
            samples = samples.reshape(len(samples), *means.shape)
            low, high = percentile_interval(samples, config.confidence)
            gain = means[:1] - means
            gain_low, gain_high = percentile_interval(samples[:, :1] - samples, config.confidence)
            for (m, model), (j, metric) in product(enumerate(models), enumerate(measured.metrics)):
                value = float(means[m, j]), float(low[m, j]), float(high[m, j])
                rows.append(
                    MetricRow(
                        model, protocol, seen_filtered, metric.name, metric.k, *value, n_users=n_users, users=users
                    )
                )
                if m:
                    value = float(gain[m, j]), float(gain_low[m, j]), float(gain_high[m, j])
                    differences.append(
                        DifferenceRow(
                            models[0],
                            model,
                            protocol,
                            seen_filtered,
                            metric.name,
                            metric.k,
                            *value,
                            n_users=n_users,
                            users=users,
                        )
                    )
    return rows, differences


def _user_sets(values: dict[str, Values]) -> Iterator[tuple[UserSet, list[str], npt.NDArray[np.bool_]]]:
    """The models that can be compared on one set of users, and that set as a mask of the cases."""
    asked = {model: ~np.isnan(of[:, 0]) for model, of in values.items()}
    everybody = next(iter(asked.values()))
    complete = [model for model, mask in asked.items() if np.array_equal(mask, everybody)]
    yield "all", complete, everybody
    for model, mask in asked.items():
        if model not in complete:
            yield "sample", list(asked), mask


def _write(
    measured: Measured,
    dataset: Dataset,
    models: Mapping[str, Fitted],
    recipe: Recipe,
    config: EvaluateConfig,
    draft: Draft,
) -> None:
    rows, differences = summarise(measured, config, protocol=dataset.protocol, seed=recipe.seed)
    headline = [
        row
        for row in rows
        if (row.metric, row.k, row.seen_filtered, row.users)
        == (config.primary_metric, config.primary_k, config.primary_seen_filtered, "all")
    ]
    if not headline:
        raise InputError(
            "no user of the test part has a target that was not in the history already",
            expected="test events on items that are new to their user, where seen items are filtered",
            do="set evaluate.primary_seen_filtered = false, or bring more events",
        )
    coverage = [
        CoverageRow(
            model, dataset.protocol, rule, COVERAGE_K, share, int(np.isfinite(measured.values[model, rule][:, 0]).sum())
        )
        for (model, rule), share in measured.coverage.items()
    ]
    content = {
        "rows": [asdict(row) for row in rows],
        "differences": [asdict(row) for row in differences],
        "coverage": [asdict(row) for row in coverage],
    }
    write_json(draft.path / METRICS_FILE, content)
    _write_users(measured, draft.path / USERS_FILE)
    page = render(rows, differences, coverage, dataset=dataset, models=models, recipe=recipe, config=config)
    (draft.path / PAGE_FILE).write_text(page, encoding="utf-8")
    draft.counts |= {"users": headline[0].n_users}
    draft.counts |= {f"{row.model}_{row.metric}_at_{row.k}": row.value for row in headline}
    draft.info |= {"protocol": dataset.protocol, "timings": measured.timings}


def _write_users(measured: Measured, path: Path) -> None:
    """One row per model, rule for seen items and user that was asked."""
    columns = [metric.column for metric in measured.metrics]
    table_schema = pa.schema(
        [
            pa.field("model", pa.dictionary(pa.int8(), pa.string()), nullable=False),
            pa.field("seen_filtered", pa.bool_(), nullable=False),
            pa.field(schema.USER_IDX, pa.int32(), nullable=False),
            *(pa.field(column, pa.float64(), nullable=False) for column in columns),
        ]
    )
    names = pa.array(dict.fromkeys(model for model, _ in measured.values), pa.string())
    with pq.ParquetWriter(path, table_schema, compression="zstd") as writer:
        for (model, seen_filtered), values in measured.values.items():
            asked = ~np.isnan(values[:, 0])
            n = int(asked.sum())
            code = pa.array(np.full(n, names.index(model).as_py(), dtype=np.int8))
            writer.write_table(
                pa.Table.from_arrays(
                    [
                        pa.DictionaryArray.from_arrays(code, names),
                        pa.array(np.full(n, seen_filtered)),
                        pa.array(measured.cases.user_idx[asked]),
                        *(pa.array(column) for column in values[asked].T),
                    ],
                    schema=table_schema,
                )
            )


def _sample(n: int, most: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """All of 0 … n − 1 in order, or `most` of them."""
    return np.arange(n) if n <= most else np.sort(rng.choice(n, most, replace=False))


def _select(cases: Cases, rows: npt.NDArray[np.int64]) -> Cases:
    count = cases.targets.lengths[rows]
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(count, out=offsets[1:])
    place = np.repeat(cases.targets.offsets[rows] - offsets[:-1], count) + np.arange(offsets[-1])
    return Cases(cases.user_idx[rows], cases.history_end[rows], Ragged(offsets, cases.targets.values[place]))
