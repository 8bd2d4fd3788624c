"""Several test windows, one before the other: whether a verdict holds in more weeks than one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import pipeline, schema
from recsys.artifacts import write_json
from recsys.config import PipelineConfig
from recsys.errors import InputError
from recsys.evaluation.report import USERS_FILE, DifferenceRow, MetricRow, Report, UserSet
from recsys.evaluation.significance import (
    PairedComparison,
    holm,
    percentile_interval,
    randomization_p_values,
    resampled_means,
)
from recsys.ingest.dataset import Dataset

Users = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

FOLDS: Final = "folds"
FOLDS_FILE: Final = "folds.json"

_STUDENT: Final = "student"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENT: Final = timedelta(microseconds=1)  # what the log's clock resolves


@dataclass(frozen=True)
class Fold:
    """One test window and what was measured in it.

    Attributes:
        name: of its run folder, the day (UTC) on which the window ends.
        start: first moment of the test window.
        end: when the log was closed. The window stops short of it; only the first fold's takes in that moment too,
            as the plain run does, because its log may end with an event at it.
        dataset: what was known by then.
        report: the figures.
    """

    name: str
    start: datetime
    end: datetime
    dataset: Dataset
    report: Report


@dataclass(frozen=True)
class FoldRow:
    """A model's figure in every fold.

    Attributes:
        model: whose figure it is.
        protocol: how the folds are split.
        seen_filtered: whether items of the history were left out of lists and targets.
        metric: such as "ndcg".
        k: list length.
        users: "sample" if the model answered only a sample of the users in some fold.
        values: mean over users, fold by fold.
        n_users: how many users, fold by fold.
        mean: of `values`, every fold alike however many users it has.
        smallest: of `values`.
        largest: of `values`.
    """

    model: str
    protocol: str
    seen_filtered: bool
    metric: str
    k: int
    users: UserSet
    values: tuple[float, ...]
    n_users: tuple[int, ...]
    mean: float
    smallest: float
    largest: float


@dataclass(frozen=True)
class FoldDifference:
    """The student minus another model in every fold, and over all of them; see `Folds.differences`.

    Attributes:
        model: the student.
        other: what it is compared with.
        protocol: how the folds are split.
        seen_filtered: whether items of the history were left out of lists and targets.
        metric: the primary one.
        k: list length.
        users: "sample" if the other model answered only a sample of the users in some fold.
        by_fold: what each fold's report says of it.
        difference: pooled, mean over all questions (a question is a user in a fold).
        low: lower end of its bootstrap interval.
        high: upper end.
        p_value: of the paired randomization test over users, two-sided.
        p_holm: the same, corrected for all models that are compared on these users.
        n_users: different users in all folds.
        n_questions: users of every fold, added up.
        n_agree: folds whose difference has the sign of the pooled one.
    """

    model: str
    other: str
    protocol: str
    seen_filtered: bool
    metric: str
    k: int
    users: UserSet
    by_fold: tuple[DifferenceRow, ...]
    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float
    n_users: int
    n_questions: int
    n_agree: int


@dataclass(frozen=True)
class Folds:
    """What `run_folds` found.

    Attributes:
        config: of all folds, but for their ends and run folders.
        folds: the latest first.
    """

    config: PipelineConfig
    folds: tuple[Fold, ...]

    def rows(self) -> list[FoldRow]:
        """Per metric (the primary one, ndcg and recall, at the primary k) and model its figure in every fold.

        Models that some fold did not measure are left out.
        """
        measured, k = self.config.evaluate, self.config.evaluate.primary_k
        rows = []
        for metric in dict.fromkeys((measured.primary_metric, "ndcg", "recall")):
            found = [self._by_model(fold.report.rows, metric) for fold in self.folds]
            for model in _in_all(found):
                of = [each[model] for each in found]
                values = tuple(row.value for row in of)
                rows.append(
                    FoldRow(
                        model=model,
                        protocol=of[0].protocol,
                        seen_filtered=measured.primary_seen_filtered,
                        metric=metric,
                        k=k,
                        users=_user_set(of),
                        values=values,
                        n_users=tuple(row.n_users for row in of),
                        mean=sum(values) / len(values),
                        smallest=min(values),
                        largest=max(values),
                    )
                )
        return rows

    def differences(self) -> list[FoldDifference]:
        """The student minus every other model on the primary metric: in each fold, and pooled.

        Pooled are the paired differences of all questions, where a question is a user in a fold; every one counts
        the same, so a week with more users counts more. The interval and the p-value take the user as the unit: who
        comes in several weeks brings similar differences into each of them, and as many separate observations these
        would make the interval too narrow. See `pool`. The folds themselves are not resampled, for a few weeks are
        too few for that: the interval is about other users in these weeks. Whether other weeks would say the same,
        the folds' own differences show, and in how many of them the sign agrees.
        """
        return list(self._differences)

    @cached_property
    def _differences(self) -> list[FoldDifference]:
        measured = self.config.evaluate
        found = [self._by_model(fold.report.differences, measured.primary_metric) for fold in self.folds]
        of = {other: tuple(each[other] for each in found) for other in _in_all(found)}
        differences = []
        # Models of one set answered the same users, so that they can be resampled together.
        for users in ("all", "sample"):
            others = [other for other, rows in of.items() if _user_set(rows) == users]
            if not others:
                continue
            who, values = self._questions(others)
            pooled = pool(
                who,
                values,
                confidence=measured.confidence,
                n_resamples=measured.n_bootstrap,
                n_permutations=measured.n_permutations,
                rng=np.random.default_rng(self.config.seed),
            )
            for place, other in enumerate(others):
                by_fold, difference = of[other], float(pooled.difference[place])
                differences.append(
                    FoldDifference(
                        model=_STUDENT,
                        other=other,
                        protocol=by_fold[0].protocol,
                        seen_filtered=measured.primary_seen_filtered,
                        metric=measured.primary_metric,
                        k=measured.primary_k,
                        users=_user_set(by_fold),
                        by_fold=by_fold,
                        difference=difference,
                        low=float(pooled.low[place]),
                        high=float(pooled.high[place]),
                        p_value=float(pooled.p_value[place]),
                        p_holm=float(pooled.p_adjusted[place]),
                        n_users=len(np.unique(who)),
                        n_questions=len(who),
                        n_agree=sum(bool(np.sign(row.difference) == np.sign(difference)) for row in by_fold),
                    )
                )
        return differences

    def to_rows(self) -> list[dict[str, Any]]:
        """Everything as plain objects, for JSON: the folds, then the figures, then the differences.

        Each has a `kind` ("fold", "figure" or "difference"); lists run over the folds in their order.
        """
        folds = [
            {"name": fold.name, "start": fold.start.isoformat(), "end": fold.end.isoformat()}
            | {"n_users": fold.report.counts["users"], "report": fold.report.fingerprint}
            for fold in self.folds
        ]
        return [
            *({"kind": "fold", **fold} for fold in folds),
            *({"kind": "figure", **asdict(row)} for row in self.rows()),
            *({"kind": "difference", **asdict(row)} for row in self.differences()),
        ]

    def to_text(self) -> str:
        """The tables for a terminal, with what their figures are below."""
        measured, names = self.config.evaluate, [fold.name for fold in self.folds]
        windows = [("test window", "from", "until", "users")]
        for fold in self.folds:
            start, end = (f"{moment:%Y-%m-%d %H:%M:%S}" for moment in (fold.start, fold.end))
            windows.append((fold.name, start, end, f"{fold.report.counts['users']:,}"))
        figures = [("metric", "model", *names, "mean", "smallest", "largest")]
        for row in self.rows():
            values = (*row.values, row.mean, row.smallest, row.largest)
            figures.append((f"{row.metric}@{row.k}", _with_set(row.model, row.users), *(f"{x:.4f}" for x in values)))
        gains = [(f"{measured.primary_metric}@{measured.primary_k}", *names, "pooled", "p", "Holm", "sign agrees")]
        for gain in self.differences():
            cells = [*map(_interval, gain.by_fold), _interval(gain)]
            agree = f"{gain.n_agree} of {len(self.folds)}"
            other = f"student − {_with_set(gain.other, gain.users)}"
            gains.append((other, *cells, f"{gain.p_value:.4f}", f"{gain.p_holm:.4f}", agree))
        seen = "left out" if measured.primary_seen_filtered else "kept"
        about = [
            f"{self.config.name}, {self.folds[0].report.rows[0].protocol}, seen items {seen}, seed {self.config.seed};"
            f" windows in UTC. Means over users with {measured.confidence * 100:g} % bootstrap intervals.",
            f"Baselines are tuned in {sum(map(_is_tuned, self.folds))} of {len(self.folds)} folds, else they take their"
            " defaults.",
            "Pooled: all folds' users, each of whom is resampled with all of his or her folds. p: paired randomization"
            " test over users, two-sided; Holm: corrected for all models on the same users."
            f" {measured.n_bootstrap:,} resamples, {measured.n_permutations:,} permutations.",
        ]
        sampled = any(row.users == "sample" for row in self.rows())
        note = ["* on a sample of the users; differences are on the same users."] if sampled else []
        return "\n\n".join([_table(windows), _table(figures), _table(gains), "\n".join([*about, *note])])

    def _by_model(self, rows: Sequence[Any], metric: str) -> dict[str, Any]:
        """Each model's row of the metric at the primary k and rule: on all users where there is one, else the sample.

        Args:
            rows: of one report, metrics or differences; a difference belongs to the model that is not the student.
            metric: its name.
        """
        about = metric, self.config.evaluate.primary_k, self.config.evaluate.primary_seen_filtered
        found: dict[str, Any] = {}
        for row in rows:
            if (row.metric, row.k, row.seen_filtered) == about:
                # All users stand before the sample.
                found.setdefault(row.model if isinstance(row, MetricRow) else row.other, row)
        return found

    def _questions(self, others: Sequence[str]) -> tuple[Users, Values]:
        """Of every fold the users whom the student and all of the others answered.

        Returns:
            Who each one is, numbered alike in all folds, [n_questions], and the student's value of the primary metric
            minus each other's, [n_questions, n_others].
        """
        user_ids, differences = [], []
        for fold in self.folds:
            answers = [self._values(fold.report, model) for model in (_STUDENT, *others)]
            common = answers[0][0]
            for users, _ in answers[1:]:
                common = np.intersect1d(common, users, assume_unique=True)
            ours, *theirs = (values[np.searchsorted(users, common)] for users, values in answers)
            differences.append(ours[:, None] - np.column_stack(theirs))
            # A user_idx is a number of one dataset; from fold to fold a user keeps only the user_id.
            user_ids.append(fold.dataset.users[schema.USER_ID].take(pa.array(common)).combine_chunks())
        who = pa.concat_arrays(user_ids).dictionary_encode().indices
        return np.asarray(who).astype(np.int64), np.concatenate(differences)

    def _values(self, report: Report, model: str) -> tuple[Users, Values]:
        """The users who were asked, ascending, and their values of the primary metric."""
        measured = self.config.evaluate
        column = f"{measured.primary_metric}_at_{measured.primary_k}"
        asked = (pc.field("model") == model) & (pc.field("seen_filtered") == measured.primary_seen_filtered)
        table = pq.read_table(report.path / USERS_FILE, columns=[schema.USER_IDX, column], filters=asked)
        users = table[schema.USER_IDX].to_numpy().astype(np.int64)
        order = np.argsort(users)
        return users[order], table[column].to_numpy()[order]


def run_folds(
    config: PipelineConfig,
    n_folds: int,
    *,
    tune: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Folds:
    """Run the whole pipeline for several test windows, each of which ends where the one after it begins.

    The first fold is the config's own split. Fold f ends f · `ingest.test_days` earlier: its log is closed at that
    moment (`ingest.as_of`), and it tests on the `test_days` before it, validates on the `valid_days` before these and
    trains on what is earlier. Nothing at or after its end enters its dataset. Each fold is a run of its own in
    `<run_dir>/folds/<day of its end>`, which can be opened, compared and audited as any other; the table is written to
    `<run_dir>/folds/folds.json`. Stages that are up to date are not done again, so the same call takes up a killed one.
    If the log grows and `as_of` is not set, the ends move with its last event; folders of earlier ends stay.

    Events after a fold's end are put into its quarantine as `future_timestamp`, where every one is counted. They are no
    fault of the log, so `ingest.max_bad_share` is not asked of the folds but of the first, which judges all rows.

    What `recsys baselines` found for the config's own run does not count here: it was chosen on a validation part that
    earlier folds test on. With `tune` the baselines are tuned in each fold, on that fold's validation part.

    The catalogue has no history, unless it is made of the events (`ingest.items_from_events`): every fold ranks
    today's, with items that came only later. This is the same for all models.

    Args:
        config: the run; if `ingest.as_of` is not set, its log is ingested into its `run_dir` first, to find the end.
        n_folds: how many windows, two or more.
        tune: find the baselines' best parameters in every fold (`[baselines]` of the config; its budget is each
            fold's); without it they take their defaults, where `recsys baselines` was not run for the fold.
        progress: draw progress bars on a terminal.
        say: takes one line per fold and stage.

    Returns:
        The folds, the latest first.

    Raises:
        InputError: the split is not by time or is set by moments instead of days, there are fewer than two folds, or
            something in the input cannot be used, such as a log too short for so many folds. All folds are ingested
            before any is trained, so that this is known early.
    """
    _check(config, n_folds)
    window = timedelta(days=config.ingest.test_days)
    end = _last_end(config, window, progress=progress, say=say)
    configs, starts = [], []
    for place in range(n_folds):
        fold = _closed_at(config, end - place * window, own=place == 0)
        starts.append(end - (place + 1) * window)
        say(f"fold {place + 1} of {n_folds}: {fold.run_dir.name}, tested from {starts[-1]} to {end - place * window}")
        pipeline.run(fold, until="ingest", progress=progress, say=say)
        configs.append(fold)
    folds = []
    for place, (fold, start) in enumerate(zip(configs, starts, strict=True)):
        say(f"fold {place + 1} of {n_folds}: {fold.run_dir.name}")
        if tune:
            pipeline.tune_baselines(fold, progress=progress)
        run = pipeline.run(fold, progress=progress, say=say)
        folds.append(Fold(fold.run_dir.name, start, start + window, run.dataset, run.report))
    found = Folds(config, tuple(folds))
    about = {"name": config.name, "seed": config.seed, "confidence": config.evaluate.confidence}
    write_json(config.run_dir / FOLDS / FOLDS_FILE, about | {"rows": found.to_rows()})
    return found


def pool(
    users: Users,
    differences: Values,
    *,
    confidence: float,
    n_resamples: int,
    n_permutations: int,
    rng: np.random.Generator,
) -> PairedComparison:
    """Mean paired differences over questions of which one user may have several, with the user as the unit.

    With S_u the sum of user u's n_u differences, the mean is Σ S_u / Σ n_u. A bootstrap resample draws users with
    replacement and takes all questions of each, so both sums vary: the cluster bootstrap, see Davison and Hinkley,
    "Bootstrap Methods and their Application" (1997), section 3.8, and Cameron, Gelbach and Miller, "Bootstrap-Based
    Improvements for Inference with Clustered Errors" (2008). The randomization test swaps the two models' answers to
    all questions of a user together: it is that of `randomization_p_values` on S_u.

    Args:
        users: [n_questions], who was asked; n_questions ≥ 1.
        differences: [n_questions, n_columns], one model's value minus another's, without NaN.
        confidence: of the intervals.
        n_resamples: bootstrap resamples of the users.
        n_permutations: random signs behind the p-values.
        rng: the source of both.

    Returns:
        One place per column; `p_adjusted` is Holm's for all columns.
    """
    _, of = np.unique(users, return_inverse=True)
    n_questions = np.bincount(of)
    sums = np.zeros((len(n_questions), differences.shape[1]))
    np.add.at(sums, of, differences)
    means = resampled_means(np.column_stack([sums, n_questions]), n_resamples=n_resamples, rng=rng)
    low, high = percentile_interval(means[:, :-1] / means[:, -1:], confidence)
    p_values = randomization_p_values(sums, n_permutations=n_permutations, rng=rng)
    return PairedComparison(differences.mean(axis=0), low, high, p_values, holm(p_values))


def _check(config: PipelineConfig, n_folds: int) -> None:
    if n_folds < 2:
        raise InputError(
            f"{n_folds} folds were asked for",
            expected="two or more",
            do="ask for more, or run the config as it is: `recsys run`",
        )
    if config.ingest.protocol != "temporal":
        raise InputError(
            f'ingest.protocol = "{config.ingest.protocol}" has no test window that could be moved',
            expected='folds of a split by time: ingest.protocol = "temporal"',
            do='set ingest.protocol = "temporal", or run the config as it is: `recsys run`',
        )
    if config.ingest.train_until is not None:
        raise InputError(
            "ingest.train_until and ingest.valid_until set one split, and folds have several",
            expected="a split by days: ingest.test_days and ingest.valid_days",
            do="leave out train_until and valid_until, and set ingest.as_of to where the last window shall end",
        )


def _last_end(config: PipelineConfig, window: timedelta, *, progress: bool, say: Callable[[str], None]) -> datetime:
    """Where the config's own test window ends: days count back from here."""
    if config.ingest.as_of is not None:
        return config.ingest.as_of
    say("the log's end:")
    dataset = pipeline.run_stage("ingest", config, progress=progress, say=say)
    return _EPOCH + timedelta(microseconds=dataset.manifest["info"]["valid_until"]) + window


def _closed_at(config: PipelineConfig, end: datetime, *, own: bool) -> PipelineConfig:
    """The config of the fold that ends here; its `own` split is left as it is."""
    # Shorter windows than a day may end on the same one.
    name = f"{end:%Y-%m-%d}" if config.ingest.test_days >= 1 else f"{end:%Y-%m-%dT%H%M%S.%f}"
    fold = config.model_copy(update={"run_dir": config.run_dir / FOLDS / name})
    if own:
        return fold
    # An event at `as_of` would count as known, and belongs to the next window. The cuts stand as moments, because days
    # would count back from `as_of` and so leave a gap of a microsecond.
    valid_until = end - timedelta(days=config.ingest.test_days)
    split = {"valid_until": valid_until, "train_until": valid_until - timedelta(days=config.ingest.valid_days)}
    closed = config.ingest.model_copy(update={"as_of": end - _MOMENT, "max_bad_share": 1.0, **split})
    return fold.model_copy(update={"ingest": closed})


def _in_all(found: Sequence[dict[str, Any]]) -> list[str]:
    """The models that every fold has, in the order of the first."""
    return [model for model in found[0] if all(model in each for each in found)]


def _is_tuned(fold: Fold) -> bool:
    return any(setting["tuned"] for setting in fold.report.manifest["info"].get("baselines", {}).values())


def _user_set(rows: Sequence[MetricRow | DifferenceRow]) -> UserSet:
    return "all" if all(row.users == "all" for row in rows) else "sample"


def _interval(of: DifferenceRow | FoldDifference) -> str:
    return f"{of.difference:+.4f} [{of.low:+.4f}, {of.high:+.4f}]"


def _with_set(model: str, users: UserSet) -> str:
    return model if users == "all" else f"{model}*"


def _table(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in lines)
