"""Runs side by side: their reports' per-user values, paired user by user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import schema
from recsys.errors import InputError
from recsys.evaluation.report import USERS_FILE, Report
from recsys.evaluation.significance import compare_paired, percentile_interval, resampled_means
from recsys.ingest.dataset import Dataset, places

Users = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

Verdict = Literal["better", "worse", "undecided"]

# Settings of [evaluate] that decide what a question is: figures under different ones are different figures.
_RULES: Final = ("targets", "repurchases")
# Streams of random numbers under the seed.
_MEANS, _DIFFERENCES = range(2)


@dataclass(frozen=True)
class ComparedRow:
    """One run's figure, and how it differs from the first run's on the same users.

    Attributes:
        run: the run, as it was named.
        model: whose figure it is.
        metric: such as "ndcg".
        k: list length.
        seen_filtered: whether items of the history were left out of lists and targets.
        value: mean over the users that all runs share.
        low: lower end of its bootstrap interval.
        high: upper end.
        difference: this run minus the first; None in the first run's rows, as all that follows.
        difference_low: lower end of the paired bootstrap interval.
        difference_high: upper end.
        p_value: of the paired randomization test, two-sided.
        p_holm: the same, corrected by Holm for all differences of the table.
        verdict: better or worse than the first run where `p_holm` ≤ 1 − confidence, else undecided.
        n_users: how many users.
    """

    run: str
    model: str
    metric: str
    k: int
    seen_filtered: bool
    value: float
    low: float
    high: float
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    p_value: float | None
    p_holm: float | None
    verdict: Verdict | None
    n_users: int


@dataclass(frozen=True)
class Comparison:
    """What `recsys compare` says.

    Attributes:
        rows: metric by metric, the runs in the order in which they were given.
        notes: what a reader must know about the comparison, a sentence each.
        protocol: how the runs' datasets are split.
        confidence: of the intervals and the verdicts.
        n_resamples: bootstrap resamples, and random signs of the tests.
    """

    rows: list[ComparedRow]
    notes: list[str]
    protocol: str
    confidence: float
    n_resamples: int

    def to_rows(self) -> list[dict[str, Any]]:
        """The rows as plain objects, for JSON."""
        return [asdict(row) for row in self.rows]

    def to_text(self) -> str:
        """The table for a terminal, with what its figures are and the notes below."""
        first = self.rows[0]
        table = [("metric", "run", "value", "", "− first run", "", "p", "Holm", "")]
        for row in self.rows:
            cells = (f"{row.metric}@{row.k}", row.run, f"{row.value:.4f}", f"[{row.low:.4f}, {row.high:.4f}]")
            if row.difference is None:
                table.append((*cells, "", "", "", "", ""))
            else:
                interval = f"[{row.difference_low:+.4f}, {row.difference_high:+.4f}]"
                p_values = f"{row.p_value:.4f}", f"{row.p_holm:.4f}"
                table.append((*cells, f"{row.difference:+.4f}", interval, *p_values, row.verdict or ""))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
        seen = "left out" if first.seen_filtered else "kept"
        lines.append("")
        lines.append(
            f"{first.model}, {first.n_users:,} users of all runs, {self.protocol}, seen items {seen}; means over users"
            f" with {self.confidence * 100:g} % bootstrap intervals. p: paired randomization test, two-sided;"
            f" Holm: corrected for all differences of the table, and the verdict is by it. {self.n_resamples:,} draws."
        )
        return "\n".join([*lines, *(f"! {note}" for note in self.notes)])


@dataclass(frozen=True)
class _Measured:
    """One run's part: its report, and the values of the users that it asked, in ascending user_idx."""

    name: str
    path: Path
    report: Report
    users: Users  # [n]
    values: Values  # [n, n_metrics]

    @property
    def dataset_fingerprint(self) -> str:
        return str(self.report.manifest["inputs"]["dataset"])

    @property
    def protocol(self) -> str:
        return str(self.report.manifest["info"]["protocol"])

    def dataset(self) -> Dataset:
        """The dataset that the report is about."""
        dataset = Dataset.open(self.path / Dataset.kind)
        if dataset.fingerprint != self.dataset_fingerprint:
            raise InputError(
                f"{self.name} holds another dataset than the one that its report is about",
                expected="a report that was written after the dataset",
                do=f"measure again: `recsys evaluate` for {self.name}",
            )
        return dataset


def compare(
    runs: Sequence[Path],
    *,
    model: str = "student",
    metrics: Sequence[str] = ("ndcg", "recall"),
    k: int = 10,
    seen_filtered: bool = True,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare a model's figures across runs with the first run's, on the users that all runs asked.

    Runs on one dataset are paired by user_idx. Runs on different datasets are paired by user_id, and only users whose
    targets are the same items, seen before or not alike, are compared; notes say how many were not.

    Args:
        runs: run folders, at least two; all are compared with the first.
        model: the model in every run, such as "student" or "item_knn".
        metrics: names as in `evaluate`'s report.
        k: list length.
        seen_filtered: the rule for seen items.
        confidence: of the intervals and the verdicts.
        n_resamples: bootstrap resamples, and random signs of the randomization test.
        seed: of both.

    Returns:
        The table.

    Raises:
        InputError: fewer than two runs, a run without a report, a figure that a report does not hold, runs of
            different protocols or rules, or no user in common.
    """
    if len(runs) < 2:
        raise InputError(
            f"{len(runs)} run was given" if len(runs) == 1 else "no run was given",
            expected="two run folders or more",
            do="name another run to compare with",
        )
    if not metrics:
        raise InputError("no metric was named", expected="one or more, such as ndcg", do="name a metric")
    metrics = list(dict.fromkeys(metrics))
    measured = [_read(Path(run), model, metrics, k, seen_filtered) for run in runs]
    notes = _check_rules(measured)
    users, places = measured[0].users, []
    for other in measured[1:]:
        theirs, comparable, found = _pair(measured[0], other)
        notes += found
        users = users[np.isin(users, comparable)]
        places.append(theirs)
    if not len(users):
        raise InputError(
            f"no user has the same question in all of {', '.join(each.name for each in measured)}",
            expected="runs whose test parts share users and their targets",
            do="compare runs of the same log, split in the same way",
        )
    largest = max(len(each.users) for each in measured)
    if len(users) < largest:
        notes.append(f"{len(users):,} users are compared; a run asked up to {largest:,}")
    values = [measured[0].values[np.searchsorted(measured[0].users, users)]]
    for other, theirs in zip(measured[1:], places, strict=True):
        order = np.argsort(theirs)
        values.append(other.values[order[np.searchsorted(theirs, users, sorter=order)]])

    # [n_users, n_runs · n_metrics], the first run's metrics first.
    columns = np.concatenate(values, axis=1)
    means = columns.mean(axis=0)
    rng = np.random.default_rng([seed, _MEANS])
    low, high = percentile_interval(resampled_means(columns, n_resamples=n_resamples, rng=rng), confidence)
    paired = compare_paired(
        columns[:, len(metrics) :],
        np.tile(values[0], len(measured) - 1),
        confidence=confidence,
        n_resamples=n_resamples,
        n_permutations=n_resamples,
        rng=np.random.default_rng([seed, _DIFFERENCES]),
    )
    rows = []
    for (m, metric), (r, run) in product(enumerate(metrics), enumerate(measured)):
        place = r * len(metrics) + m
        figure = (run.name, model, metric, k, seen_filtered, float(means[place]), float(low[place]), float(high[place]))
        if r == 0:
            rows.append(ComparedRow(*figure, None, None, None, None, None, None, n_users=len(users)))
            continue
        place -= len(metrics)
        difference, p_holm = float(paired.difference[place]), float(paired.p_adjusted[place])
        verdict: Verdict = "undecided"
        if p_holm <= 1 - confidence:
            verdict = "better" if difference > 0 else "worse"
        rows.append(
            ComparedRow(
                *figure,
                difference,
                float(paired.low[place]),
                float(paired.high[place]),
                float(paired.p_value[place]),
                p_holm,
                verdict,
                n_users=len(users),
            )
        )
    return Comparison(rows, notes, measured[0].protocol, confidence, n_resamples)


def _read(run: Path, model: str, metrics: Sequence[str], k: int, seen_filtered: bool) -> _Measured:
    """Only the asked columns and rows of a run's per-user table."""
    report = Report.open(run / Report.kind)
    file = report.path / USERS_FILE
    columns = [f"{metric}_at_{k}" for metric in metrics]
    there = [name for name in pq.read_schema(file).names if "_at_" in name]
    missing = [column for column in columns if column not in there]
    if missing:
        raise InputError(
            f"the report of {run} has no {', '.join(missing)}",
            expected=f"figures among {', '.join(there)}",
            do="name another metric or list length, or measure it (evaluate.ks) in every run",
        )
    asked = (pc.field("model") == model) & (pc.field("seen_filtered") == seen_filtered)
    table = pq.read_table(file, columns=[schema.USER_IDX, *columns], filters=asked)
    if not table.num_rows:
        raise InputError(
            f"the report of {run} has no users of {model!r} with seen_filtered={seen_filtered}",
            expected=f"a model of {sorted({row.model for row in report.rows})}",
            do="correct the name, or measure it in every run",
        )
    users = table[schema.USER_IDX].to_numpy().astype(np.int64)
    order = np.argsort(users)
    values = np.column_stack([table[column].to_numpy() for column in columns])
    return _Measured(str(run), run, report, users[order], values[order])


def _check_rules(measured: Sequence[_Measured]) -> list[str]:
    """Refuse runs whose figures have different definitions; notes on what may differ with them."""
    first, notes = measured[0], []
    for other in measured[1:]:
        rules = [
            {"protocol": each.protocol} | {rule: each.report.manifest["config"].get(rule) for rule in _RULES}
            for each in (first, other)
        ]
        different = [rule for rule in rules[0] if rules[0][rule] != rules[1][rule]]
        if different:
            words = [f"{rule}: {rules[0][rule]!r} and {rules[1][rule]!r}" for rule in different]
            raise InputError(
                f"{first.name} and {other.name} do not ask the same question ({'; '.join(words)})",
                expected="runs of one protocol and one rule for targets",
                do="evaluate them alike, then compare",
            )
        if first.report.manifest["code"] != other.report.manifest["code"]:
            notes.append(f"{first.name} and {other.name} were evaluated by different versions of the code")
    return notes


def _pair(first: _Measured, other: _Measured) -> tuple[Users, Users, list[str]]:
    """Whom of the first run each user of the other run is.

    Returns:
        For each of `other.users` the user_idx in the first run, and a negative number of its own for who is not there;
        of these, the ones that both runs asked the same; notes.
    """
    if first.dataset_fingerprint == other.dataset_fingerprint:
        return other.users, other.users, []
    ours, theirs = first.dataset(), other.dataset()
    notes = [f"{first.name} and {other.name} have different datasets: users are paired by user_id"]
    if ours.n_items != theirs.n_items:
        notes.append(
            f"the catalogues differ ({ours.n_items:,} items in {first.name}, {theirs.n_items:,} in {other.name}):"
            " a larger one is harder to rank"
        )
    user_map = places(theirs.users[schema.USER_ID], ours.users[schema.USER_ID]).astype(np.int64)
    item_map = places(theirs.items[schema.ITEM_ID], ours.items[schema.ITEM_ID]).astype(np.int64)
    # An item that the first catalogue lacks gets a number beyond it, which equals nothing.
    item_map = np.where(item_map < 0, ours.n_items, item_map)
    only_next = first.report.manifest["config"].get("targets") == "next"
    our_keys, our_users = _questions(ours, np.arange(ours.n_users), np.arange(ours.n_items), ours.n_items, only_next)
    their_keys, their_users = _questions(theirs, user_map, item_map, ours.n_items, only_next)
    count = np.bincount(our_users, minlength=ours.n_users)
    their_count = np.bincount(their_users, minlength=ours.n_users)
    matched = np.bincount(their_users[np.isin(their_keys, our_keys)], minlength=ours.n_users)
    same = (count > 0) & (count == their_count) & (count == matched)
    paired = user_map[other.users]
    paired = np.where(paired < 0, -1 - other.users, paired)
    both = np.intersect1d(first.users, paired)
    comparable = both[same[both]]
    if len(comparable) < len(both):
        notes.append(
            f"{len(both) - len(comparable):,} of {len(both):,} users of both {first.name} and {other.name} have other"
            " targets in one than in the other, or have seen other targets before: they are left out"
        )
    return paired, comparable, notes


def _questions(
    dataset: Dataset, user_map: Users, item_map: Users, n_items: int, only_next: bool
) -> tuple[npt.NDArray[np.int64], Users]:
    """Every target of the test part as one number of its user, item and whether the user had seen it; and its user.

    Args:
        dataset: where the targets are.
        user_map: [dataset.n_users] what to call a user; who has a negative number is left out.
        item_map: [dataset.n_items] what to call an item, 0 … n_items.
        n_items: size of the catalogue that the items are called by.
        only_next: whether only the first target counts.
    """
    cases = dataset.cases("test")
    histories = dataset.histories(cases.user_idx, cases.history_end)
    row = np.repeat(np.arange(len(cases)), cases.targets.lengths)
    items = cases.targets.values
    if only_next:
        first = cases.targets.offsets[:-1]
        row, items = row[first], items[first]
    before = np.repeat(np.arange(len(cases)), histories.lengths) * dataset.n_items + histories.item_idx
    seen = np.isin(row * dataset.n_items + items, before)
    users = user_map[cases.user_idx[row]]
    known = users >= 0
    keys = (users * (n_items + 1) + item_map[items]) * 2 + seen
    return keys[known], users[known]
