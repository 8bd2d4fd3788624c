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
from recsys.evaluation.asked import history_blocks, next_only, unseen_targets
from recsys.evaluation.baselines import OrderedItemKNN
from recsys.evaluation.beyond import (
    CategoryDiversity,
    ColdShare,
    Exposure,
    ListProperty,
    Novelty,
    Popularity,
    TextDiversity,
    ValueRecall,
    popularity_lift,
)
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.metrics import Metric, metrics_at
from recsys.evaluation.page import render
from recsys.evaluation.ranking import Scorer, rank
from recsys.evaluation.report import (
    EXAMPLES_FILE,
    METRICS_FILE,
    NOT_BASELINES,
    PAGE_FILE,
    SEGMENTS_FILE,
    USERS_FILE,
    BeyondRow,
    CoverageRow,
    DifferenceRow,
    Example,
    Figures,
    MetricRow,
    Report,
    SegmentGainRow,
    SegmentRow,
    Shown,
    UserSet,
    Why,
)
from recsys.evaluation.scorers import (
    Champion,
    Explainer,
    Fitted,
    PairScorer,
    RankerScorer,
    StudentScorer,
    TeacherScorer,
    TwoTower,
)
from recsys.evaluation.segments import (
    Members,
    Segmentation,
    category_segments,
    intervals,
    popularity_segments,
    summarise_segments,
    user_segments,
)
from recsys.evaluation.significance import holm, randomization_p_values
from recsys.evaluation.tuning import Setting, Tuning, fit_baselines, settings
from recsys.evidence import Cooccurrence
from recsys.ingest.dataset import Cases, Dataset, Ragged
from recsys.items import category_codes
from recsys.ranking.ranker import Ranker
from recsys.runtime import Runtime
from recsys.text import TextVectors

Values = npt.NDArray[np.float64]

COVERAGE_K: Final = 10
# Events before the question that make a user worth looking at, and how many of them are shown.
EXAMPLE_LEAST: Final = 3
EXAMPLE_HISTORY: Final = 8
# Users whose candidates the teacher reads between two steps of the progress bar.
TEACHER_BLOCK: Final = 32

# Streams of random numbers under the run's seed: what one draws changes nothing for the others.
_USERS, _TEACHER_USERS, _BOOTSTRAP, _SEGMENTS, _EXAMPLES, _PERMUTATIONS = range(6)


def evaluate(
    dataset: Dataset,
    student: TwoTower,
    teacher: PairScorer | None,
    config: EvaluateConfig,
    out: Path,
    *,
    ranker: Ranker | None = None,
    text: TextVectors | None = None,
    tuning: Tuning | None = None,
    explain: Explainer | None = None,
    champion: Champion | None = None,
    runtime: Runtime | None = None,
    force: bool = False,
) -> Report:
    """Measure the student, the ranker, the teacher and the baselines on the test part, over the whole catalogue.

    Every model answers the same users under both rules for seen items. The teacher reranks candidates of the student
    and the ordered item-kNN for a sample of the users, on which the others are reported again, so that every
    difference is paired.

    Args:
        dataset: what `ingest` wrote; baselines are fitted on its training part, its test part is asked.
        student: what `distill` wrote.
        teacher: what `teach` wrote, or None to leave it out.
        config: metrics, sizes and intervals.
        out: where the artifact goes, e.g. `runs/sample/report`.
        ranker: what `rank` wrote, or None to leave it out.
        text: the items' text vectors; without them the baselines that read titles are left out.
        tuning: what `recsys baselines` wrote; without it baselines take their defaults.
        explain: the teacher's reasons, which are shown for the first items of the users that are looked at.
        champion: what an earlier run serves, to be measured on the same users.
        runtime: seed, device and progress bars.
        force: measure again even when `out` is up to date.

    Raises:
        InputError: there is nobody to ask, or a baseline of the config is unknown or cannot run.
        RecsysError: a model gave a score that is NaN.
    """
    runtime = runtime or Runtime()
    optional = {"ranker": ranker, "champion": champion.model if champion else None, "teacher": teacher}
    models: dict[str, Fitted] = {"student": student} | {name: each for name, each in optional.items() if each}
    recipe = Recipe(
        kind=Report.kind,
        config=config,
        inputs={"dataset": dataset.fingerprint}
        | {name: model.fingerprint for name, model in models.items()}
        | {each.kind: each.fingerprint for each in (text, tuning) if each is not None},
        seed=runtime.seed,
        modules=(
            "recsys.evaluation",
            "recsys.evidence",
            "recsys.ingest.dataset",
            "recsys.ingest.report",
            "recsys.page",
            "recsys.teacher.explain",
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
            vectors = None if text is None else text.vectors
            baselines = settings(
                dataset, tuning.trials if tuning else (), baselines=config.baselines, has_text=vectors is not None
            )
            measured = _measure(dataset, student, ranker, teacher, baselines, vectors, cases, config, runtime, champion)
            _write(measured, dataset, models, recipe, config, draft, explain)
    return Report.open(out)


@dataclass
class Measured:
    """All per-user values, and how long they took.

    Attributes:
        cases: who was asked.
        metrics: the columns of the values.
        values: per model and rule for seen items, [n_cases, n_metrics]; NaN where the user was not asked (the
            teacher's sample) or has no target left.
        exposure: per model and rule, what the first `COVERAGE_K` showed.
        properties: what lists are like, the columns of `property_values`.
        property_values: per model and rule, [n_cases, n_properties + 1]: the last is the recall in money; NaN where
            there is no value.
        value: the recall in money.
        chosen: how popular the users' own choices were, [n_cases].
        timings: per model, seconds of its fit and of its ranking under both rules, and how many users it ranked for.
        segment_metrics: the columns of the values by segment.
        members: per rule, who stands in which segment, one entry for each segmentation.
        segment_values: per model that answered everybody and rule, [n_members, n_segment_metrics] of each `members`.
        targets: per rule, the targets that count, [n_cases] rows.
        examples: the cases to show, ascending.
        lists: per model, its first items under the rule of the verdict, [n_examples, primary_k]; −1 for none.
        baselines: what they were fitted with.
    """

    cases: Cases
    metrics: list[Metric]
    segment_metrics: list[Metric]
    properties: list[ListProperty]
    value: ValueRecall
    chosen: Values
    targets: dict[bool, Ragged]
    members: dict[bool, list[Members]]
    examples: npt.NDArray[np.int64]
    values: dict[tuple[str, bool], Values] = field(default_factory=dict)
    segment_values: dict[tuple[str, bool], list[Values]] = field(default_factory=dict)
    property_values: dict[tuple[str, bool], Values] = field(default_factory=dict)
    exposure: dict[tuple[str, bool], Exposure] = field(default_factory=dict)
    timings: dict[str, dict[str, float]] = field(default_factory=dict)
    lists: dict[str, npt.NDArray[np.int32]] = field(default_factory=dict)
    baselines: dict[str, Setting] = field(default_factory=dict)


def _measure(
    dataset: Dataset,
    student: TwoTower,
    ranker: Ranker | None,
    teacher: PairScorer | None,
    baselines: dict[str, Setting],
    vectors: npt.NDArray[np.float32] | None,
    cases: Cases,
    config: EvaluateConfig,
    runtime: Runtime,
    champion: Champion | None = None,
) -> Measured:
    runtime.torch_device()  # sets the threads
    cases = _select(cases, _sample(len(cases), config.max_users, np.random.default_rng([runtime.seed, _USERS])))
    if config.targets == "next":
        cases = next_only(cases)
    everybody = np.arange(len(cases))
    sample = everybody
    if teacher is not None and config.teacher_users:
        sample = _sample(len(cases), config.teacher_users, np.random.default_rng([runtime.seed, _TEACHER_USERS]))
    measured = _prepare(dataset, vectors, cases, sample, config, runtime)
    measured.baselines |= baselines
    of_student = StudentScorer(student, runtime)
    ordered: Scorer | None = None
    _add(measured, of_student, dataset, everybody, 0.0, config, runtime)
    if ranker is not None:
        _add(measured, RankerScorer(ranker, dataset, student, runtime), dataset, everybody, 0.0, config, runtime)
    if champion is not None:
        _add(measured, champion, dataset, everybody, 0.0, config, runtime)
    started = time.perf_counter()
    for scorer in fit_baselines(dataset, baselines, vectors=vectors, seed=runtime.seed):
        fitted = time.perf_counter() - started
        _add(measured, scorer, dataset, everybody, fitted, config, runtime)
        if scorer.name == OrderedItemKNN.name:
            ordered = scorer  # the only one to keep: others may be as large as the square of the catalogue
        started = time.perf_counter()
    if teacher is not None and config.teacher_users:
        reranker = TeacherScorer(
            teacher,
            [of_student, ordered or OrderedItemKNN(Cooccurrence.fit(dataset.train, dataset.n_items))],
            n_candidates=config.teacher_candidates,
            n_items=dataset.n_items,
            runtime=runtime,
        )
        _add(measured, reranker, dataset, sample, 0.0, config, runtime, block=TEACHER_BLOCK)
    return measured


def _prepare(
    dataset: Dataset,
    vectors: npt.NDArray[np.float32] | None,
    cases: Cases,
    sample: npt.NDArray[np.int64],
    config: EvaluateConfig,
    runtime: Runtime,
) -> Measured:
    """What is the same for all models: who stands in which segment, and who is shown."""
    second = "recall" if config.primary_metric != "recall" else "ndcg"
    by_segment = [metric for metric in metrics_at([config.primary_k]) if metric.name in (config.primary_metric, second)]
    targets = {
        True: unseen_targets(dataset, cases, repurchases=config.repurchases),
        False: cases.targets,
    }
    counts = np.bincount(dataset.train.item_idx, minlength=dataset.n_items)
    popularity = Popularity(COVERAGE_K, counts)
    chosen = np.empty(len(cases))
    for rows, histories in history_blocks(dataset, cases):
        chosen[rows] = popularity.of_histories(histories)
    of = _segmentations(dataset, counts, config)
    # Those whom the teacher answers too, if there is one, and who can be hit.
    hittable = targets[config.primary_seen_filtered].lengths[sample] > 0
    known = sample[(cases.history_end[sample] >= EXAMPLE_LEAST) & hittable]
    place = _sample(len(known), config.examples, np.random.default_rng([runtime.seed, _EXAMPLES]))
    return Measured(
        cases,
        metrics_at(config.ks),
        by_segment,
        [
            popularity,
            Novelty(COVERAGE_K, counts),
            ColdShare(COVERAGE_K, counts),
            CategoryDiversity(COVERAGE_K, category_codes(dataset.items["category"])),
            *([] if vectors is None else [TextDiversity(COVERAGE_K, vectors)]),
        ],
        ValueRecall(COVERAGE_K, np.maximum(dataset.items["price"].to_numpy().astype(np.float64), 0)),
        chosen,
        targets,
        {rule: [Members.find(each, cases.user_idx, targets[rule]) for each in of] for rule in targets},
        known[place],
    )


def _segmentations(dataset: Dataset, items: npt.NDArray[np.int64], config: EvaluateConfig) -> list[Segmentation]:
    category = category_segments(dataset.items["category"], items, most=config.top_categories)
    return [
        user_segments(dataset.split.train_end, config.user_segments),
        popularity_segments(items, config.head_share),
        *([category] if category else []),
    ]


def _add(
    measured: Measured,
    scorer: Scorer,
    dataset: Dataset,
    sample: npt.NDArray[np.int64],
    fitted: float,
    config: EvaluateConfig,
    runtime: Runtime,
    block: int | None = None,
) -> None:
    """Rank for the sampled cases and put down what came of it."""
    started = time.perf_counter()
    cases = _select(measured.cases, sample)
    by_segment = len(sample) == len(measured.cases)
    k = max(COVERAGE_K, *(metric.k for metric in measured.metrics))
    lists = np.full((len(measured.examples), config.primary_k), -1, dtype=np.int32)
    targets = {rule: measured.targets[rule].select(sample) for rule in (True, False)}
    n_cases = len(measured.cases)
    for rule in targets:
        measured.exposure[scorer.name, rule] = Exposure(dataset.n_items, COVERAGE_K)
        measured.property_values[scorer.name, rule] = np.full((n_cases, len(measured.properties) + 1), np.nan)
        measured.values[scorer.name, rule] = np.full((n_cases, len(measured.metrics)), np.nan)
        if by_segment:
            measured.segment_values[scorer.name, rule] = [
                np.empty((len(members.case), len(measured.segment_metrics))) for members in measured.members[rule]
            ]
    for ranked in rank(scorer, dataset, cases, k=k, runtime=runtime, block=block, repurchases=config.repurchases):
        rule = ranked.seen_filtered
        values = np.column_stack([metric(ranked.hits, ranked.n_targets) for metric in measured.metrics])
        measured.values[scorer.name, rule][sample[ranked.rows]] = values
        if by_segment:
            for members, found in zip(measured.members[rule], measured.segment_values[scorer.name, rule], strict=True):
                place, of = members.values(ranked, measured.segment_metrics)
                found[place] = of
        measured.exposure[scorer.name, rule].add(ranked.items)
        of_block = targets[rule].select(np.arange(ranked.rows.start, ranked.rows.stop))
        measured.property_values[scorer.name, rule][sample[ranked.rows]] = np.column_stack(
            [*(each(ranked.items) for each in measured.properties), measured.value(ranked.items, of_block)]
        )
        if rule == config.primary_seen_filtered:
            _, row, example = np.intersect1d(sample[ranked.rows], measured.examples, return_indices=True)
            lists[example] = ranked.items[row, : config.primary_k]
    measured.lists[scorer.name] = lists
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
            mean, gain = intervals(
                [values[model][asked] for model in models],
                n_resamples=config.n_bootstrap,
                confidence=config.confidence,
                rng=np.random.default_rng([seed, _BOOTSTRAP]),
            )
            p_values = _p_values(measured, {model: values[model][asked] for model in models}, config, seed)
            for (m, model), (j, metric) in product(enumerate(models), enumerate(measured.metrics)):
                about = protocol, seen_filtered, metric.name, metric.k
                rows.append(MetricRow(model, *about, *mean.at(m, j), n_users=n_users, users=users))
                if m:
                    p_value, p_holm = p_values.get((model, metric), (None, None))
                    differences.append(
                        DifferenceRow(
                            models[0],
                            model,
                            *about,
                            *gain.at(m, j),
                            n_users=n_users,
                            users=users,
                            p_value=p_value,
                            p_holm=p_holm,
                        )
                    )
    return rows, differences


def _p_values(
    measured: Measured, values: dict[str, Values], config: EvaluateConfig, seed: int
) -> dict[tuple[str, Metric], tuple[float, float]]:
    """Of the verdict's comparisons: each one's p-value, and what Holm's correction for their number makes of it."""
    first, *others = values
    primary = next(
        place
        for place, metric in enumerate(measured.metrics)
        if (metric.name, metric.k) == (config.primary_metric, config.primary_k)
    )
    if not others:
        return {}
    gains = np.column_stack([values[first][:, primary] - values[other][:, primary] for other in others])
    rng = np.random.default_rng([seed, _PERMUTATIONS])
    p_values = randomization_p_values(gains, n_permutations=config.n_permutations, rng=rng)
    adjusted = holm(p_values)
    metric = measured.metrics[primary]
    return {
        (other, metric): (p, p_holm)
        for other, p, p_holm in zip(others, p_values.tolist(), adjusted.tolist(), strict=True)
    }


def _by_segment(
    measured: Measured, rows: list[MetricRow], config: EvaluateConfig, *, protocol: str, seed: int
) -> tuple[list[SegmentRow], list[SegmentGainRow]]:
    """Means by segment, and the first model's gain over the baseline that is best on all users."""
    means: list[SegmentRow] = []
    gains: list[SegmentGainRow] = []
    for rule, all_members in measured.members.items():
        best = best_baseline(rows, config, seen_filtered=rule)
        for place, members in enumerate(all_members):
            values = {model: of[place] for (model, under), of in measured.segment_values.items() if under == rule}
            some, more = summarise_segments(
                members,
                values,
                measured.segment_metrics,
                best=best,
                protocol=protocol,
                seen_filtered=rule,
                n_resamples=config.n_bootstrap,
                confidence=config.confidence,
                seed=[seed, _SEGMENTS, place],
            )
            means += some
            gains += more
    return means, gains


def best_baseline(rows: list[MetricRow], config: EvaluateConfig, *, seen_filtered: bool) -> str | None:
    """The baseline with the highest primary metric on all users; None where nobody could be asked."""
    values = {
        row.model: row.value
        for row in rows
        if (row.metric, row.k, row.seen_filtered, row.users)
        == (config.primary_metric, config.primary_k, seen_filtered, "all")
        and row.model not in NOT_BASELINES
    }
    return max(values, key=values.__getitem__, default=None)


def _apart_from_hits(measured: Measured, protocol: str) -> tuple[list[CoverageRow], list[BeyondRow]]:
    """What the lists are like: coverage, and what else there is a value of."""
    coverage, beyond = [], []
    names = [*(each.name for each in measured.properties), measured.value.name]
    for (model, rule), exposure in measured.exposure.items():
        n_users = int(np.isfinite(measured.values[model, rule][:, 0]).sum())
        values = measured.property_values[model, rule]
        coverage.append(CoverageRow(model, protocol, rule, COVERAGE_K, exposure.coverage, n_users))
        listed = values[:, names.index(Popularity.name)]
        found = {
            "gini": (exposure.gini, n_users),
            "popularity_lift": (popularity_lift(listed, measured.chosen), int(np.isfinite(listed).sum())),
        }
        for name, column in zip(names, values.T, strict=True):
            known = column[np.isfinite(column)]
            if len(known):
                found[name] = float(known.mean()), len(known)
        beyond += [
            BeyondRow(model, protocol, rule, name, COVERAGE_K, value, n)
            for name, (value, n) in found.items()
            if np.isfinite(value)
        ]
    return coverage, beyond


def _examples(measured: Measured, dataset: Dataset, config: EvaluateConfig, explain: Explainer | None) -> list[Example]:
    """The chosen users, in words."""
    cases = measured.cases
    examples = []
    for place, case in enumerate(measured.examples.tolist()):
        user, end = int(cases.user_idx[case]), int(cases.history_end[case])
        targets = measured.targets[config.primary_seen_filtered][case]
        examples.append(
            Example(
                user_id=str(dataset.users["user_id"][user]),
                n_history=end,
                history=_shown(dataset, dataset.history(user, end, last=EXAMPLE_HISTORY)),
                targets=_shown(dataset, targets, hits=measured.lists[StudentScorer.name][place]),
                lists={model: _shown(dataset, items[place], hits=targets) for model, items in measured.lists.items()},
                why=None
                if explain is None
                else _why(dataset, user, end, measured.lists[TeacherScorer.name][place], explain),
            )
        )
    return examples


def _why(dataset: Dataset, user: int, end: int, items: npt.NDArray[np.int32], explain: Explainer) -> Why | None:
    if items[0] < 0:
        return None
    history = dataset.histories(np.array([user], dtype=np.int32), np.array([end], dtype=np.int32))
    (reasons,) = explain(history, items[:1])
    shown = _shown(dataset, np.array([item for item, _ in reasons.history], dtype=np.int32))
    added = [added for _, added in reasons.history]
    return Why(_shown(dataset, items[:1])[0], list(zip(shown, added, strict=True)), reasons.words)


def _shown(dataset: Dataset, items: npt.NDArray[np.int32], *, hits: npt.NDArray[np.int32] | None = None) -> list[Shown]:
    items = items[items >= 0]
    hit = np.zeros(len(items), dtype=np.bool_) if hits is None else np.isin(items, hits)
    rows = dataset.items.select(["item_id", "title"]).take(items)
    return [
        Shown(item_id, title, bool(h))
        for item_id, title, h in zip(rows["item_id"].to_pylist(), rows["title"].to_pylist(), hit, strict=True)
    ]


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
    explain: Explainer | None,
) -> None:
    protocol = dataset.protocol
    if protocol == "temporal" and config.targets == "next":
        protocol = "temporal_next"
    rows, differences = summarise(measured, config, protocol=protocol, seed=recipe.seed)
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
    coverage, beyond = _apart_from_hits(measured, protocol)
    segments, gains = _by_segment(measured, rows, config, protocol=protocol, seed=recipe.seed)
    figures = Figures(
        rows=rows,
        differences=differences,
        coverage=coverage,
        beyond=beyond,
        segments=segments,
        segment_gains=gains,
        timings=measured.timings,
        examples=_examples(measured, dataset, config, explain),
        baselines=measured.baselines,
    )
    of_rows = ("rows", "differences", "coverage", "beyond", "segments", "segment_gains")
    write_json(draft.path / METRICS_FILE, {name: [asdict(row) for row in getattr(figures, name)] for name in of_rows})
    write_json(draft.path / EXAMPLES_FILE, [asdict(example) for example in figures.examples])
    _write_users(measured, draft.path / USERS_FILE)
    if Champion.name in models:
        _write_segments(measured, config, draft.path / SEGMENTS_FILE)
    page = render(figures, dataset=dataset, models=models, recipe=recipe, config=config)
    (draft.path / PAGE_FILE).write_text(page, encoding="utf-8")
    draft.counts |= {"users": headline[0].n_users}
    draft.counts |= {f"{row.model}_{row.metric}_at_{row.k}": row.value for row in headline}
    draft.info |= {
        "protocol": protocol,
        "timings": measured.timings,
        "baselines": {name: asdict(setting) for name, setting in measured.baselines.items()},
    }


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


def _write_segments(measured: Measured, config: EvaluateConfig, path: Path) -> None:
    """One row per segment, user in it and model that may be served, under the verdict's rule."""
    rule, tables = config.primary_seen_filtered, []
    for place, members in enumerate(measured.members[rule]):
        names = pa.array(members.of.names, pa.string()).take(pa.array(members.code))
        for model in sorted({"student", "ranker", "champion"} & {name for name, _ in measured.segment_values}):
            columns = {
                "kind": pa.repeat(members.of.kind, len(members.code)),
                "segment": names,
                "model": pa.repeat(model, len(members.code)),
                schema.USER_IDX: pa.array(measured.cases.user_idx[members.case]),
            }
            values = measured.segment_values[model, rule][place]
            columns |= {
                metric.column: column for metric, column in zip(measured.segment_metrics, values.T, strict=True)
            }
            tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


def _sample(n: int, most: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """All of 0 … n − 1 in order, or `most` of them."""
    return np.arange(n) if n <= most else np.sort(rng.choice(n, most, replace=False))


def _select(cases: Cases, rows: npt.NDArray[np.int64]) -> Cases:
    return Cases(cases.user_idx[rows], cases.history_end[rows], cases.targets.select(rows))
