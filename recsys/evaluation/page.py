"""The report as one HTML page that needs nothing else: no server, no network, no second file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any, Final, Literal

from recsys import __version__
from recsys.artifacts import Recipe
from recsys.evaluation.beyond import CategoryDiversity, ColdShare, Novelty, TextDiversity, ValueRecall
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.metrics import METRICS
from recsys.evaluation.report import (
    NOT_BASELINES,
    DifferenceRow,
    Example,
    Figures,
    MetricRow,
    SegmentGainRow,
    SegmentRow,
    Shown,
    Why,
)
from recsys.evaluation.scorers import Fitted
from recsys.evaluation.tuning import Setting
from recsys.ingest.dataset import Dataset
from recsys.ingest.report.page import data_section
from recsys.page import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    counts_table,
    new_figure,
    page,
    plot_block,
    words,
)

LABELS: Final[Mapping[str, str]] = {
    "student": "Student",
    "ranker": "Student and ranker",
    "champion": "Champion",
    "teacher": "Teacher",
    "ordered_item_knn_text": "Ordered item-kNN with text",
    "ordered_item_knn": "Ordered item-kNN",
    "ease": "EASE",
    "item_knn": "Item-kNN",
    "als": "ALS",
    "bpr": "BPR",
    "text_similarity": "Text similarity",
    "recently_popular": "Recently popular",
    "most_popular": "Most popular",
}
TITLES: Final[Mapping[str, str]] = {metric.name: metric.title for metric in METRICS}

# Symbols and dashes say the same as colours.
STYLES: Final[Mapping[str, tuple[str, str, str]]] = {
    "student": (BLUE, "circle", "solid"),
    "ranker": (BLUE, "star", "dash"),
    "champion": (BLUE, "square", "dash"),
    "teacher": (VERMILION, "diamond", "solid"),
    "ordered_item_knn": (GREEN, "square", "dash"),
    "ordered_item_knn_text": (GREEN, "star", "solid"),
    "ease": (SKY, "pentagon", "dash"),
    "item_knn": (PINK, "triangle-up", "dot"),
    "als": (INK, "triangle-down", "dot"),
    "bpr": (INK, "square", "dashdot"),
    "text_similarity": (PINK, "hexagon", "dashdot"),
    "recently_popular": (ORANGE, "x", "dashdot"),
    "most_popular": (GREY, "cross", "longdash"),
}
OTHER_STYLES: Final = (
    (SKY, "star", "solid"),
    (INK, "diamond", "dash"),
    (SKY, "hexagon", "dot"),
    (ORANGE, "pentagon", "longdash"),
)

NAMES: Final[Mapping[str, str]] = {
    "temporal": "temporal test, all that followed",
    "temporal_next": "temporal test, the next item",
    "leave_one_out": "leave-one-out test",
}
PROTOCOLS: Final[Mapping[str, str]] = {
    "temporal": "Global temporal split: everything before one moment trains, everything after it is asked. Nobody's "
    "future was known to any model.",
    "temporal_next": "Global temporal split: everything before one moment trains; the item of each user's first event "
    "after it is asked. Nobody's future was known to any model.",
    "leave_one_out": "Leave-one-out: each user's last event is asked, the one before it validates, the rest trains. It "
    "compares with papers; since users' last events lie at different times, models have seen other users' futures.",
}


KINDS: Final[Mapping[str, tuple[str, str, str]]] = {
    "history": ("Users by history", BLUE, "circle"),
    "popularity": ("Targets by popularity", VERMILION, "square"),
    "category": ("Targets by category", GREEN, "diamond"),
}


@dataclass(frozen=True)
class _Measure:
    """How a measure of `recsys.evaluation.beyond` is shown."""

    title: str
    unit: str
    definition: str


BASELINE_TEXTS: Final[Mapping[str, str]] = {
    "most_popular": "number of training events",
    "recently_popular": "of the last days only",
    "item_knn": "cosine over the users that had both items",
    "ordered_item_knn": "what comes after what, and how soon; recent events count more",
    "ordered_item_knn_text": "the same, and titles that read alike",
    "text_similarity": "items whose text reads like the history's",
    "ease": "a linear model of each item from all others, in closed form (Steck, 2019)",
    "als": "matrix factorisation by alternating least squares (Hu et al., 2008)",
    "bpr": "matrix factorisation by pairwise ranking (Rendle et al., 2009)",
}

MEASURES: Final[Mapping[str, _Measure]] = {
    "gini": _Measure(
        "Gini index", "", "how unevenly the catalogue's items are shown: 0 if all alike, near 1 if a few have it all"
    ),
    "popularity_lift": _Measure(
        "Popularity lift",
        "+%",
        "how much more popular the listed items are than what the same users chose before, by training events",
    ),
    **{
        each.name: _Measure(each.title, unit, each.definition)
        for each, unit in (
            (Novelty, " bits"),
            (ColdShare, "%"),
            (CategoryDiversity, "%"),
            (TextDiversity, ""),
            (ValueRecall, "%"),
        )
    },
}
MOST_P: Final = 0.05  # corrected p above which a difference is not called one
STRONGEST: Final = 3  # baselines that are spoken of one by one
FEW: Final = 30  # users below which a segment's interval is not worth much
TITLE: Final = 90  # characters of an item's title
LABEL: Final = 22  # characters that fit beside a plot on a phone
SHOWN_TARGETS: Final = 10
SHOWN_REASONS: Final = 4  # of each kind
LEAST_REASON: Final = 0.005  # what would be shown as nothing is not shown


@dataclass(frozen=True)
class _Figures:
    """The figures, found by what they are about."""

    all: Figures
    config: EvaluateConfig

    @property
    def protocol(self) -> str:
        """The rows' own."""
        return self.all.rows[0].protocol

    def at(self, *, seen_filtered: bool, users: str = "all") -> dict[tuple[str, str, int], MetricRow]:
        """By (model, metric, k)."""
        return {
            (row.model, row.metric, row.k): row
            for row in self.all.rows
            if row.seen_filtered == seen_filtered and row.users == users
        }

    def gains(self, metric: str, k: int, *, seen_filtered: bool, users: str = "all") -> dict[str, DifferenceRow]:
        """By the other model's name."""
        about = metric, k, seen_filtered, users
        return {
            row.other: row for row in self.all.differences if (row.metric, row.k, row.seen_filtered, row.users) == about
        }

    @property
    def primary(self) -> str:
        """The verdict's metric, as people write it."""
        return f"{TITLES[self.config.primary_metric]}@{self.config.primary_k}"


def render(
    figures: Figures, *, dataset: Dataset, models: Mapping[str, Fitted], recipe: Recipe, config: EvaluateConfig
) -> str:
    """The whole page. The same figures (seconds among them) give the same bytes.

    Args:
        figures: what was measured.
        dataset: for the data section.
        models: the trained models, for how they were made.
        recipe: the report's own.
        config: what is primary.
    """
    found = _Figures(figures, config)
    sections = [
        _verdict(found, dataset),
        _results(found),
        _teacher(found),
        _curves(found),
        _gains(found),
        _segments(found),
        _coverage(found),
        _cost(found, models),
        _examples(found),
        _data(dataset),
        _definitions(dataset, found),
        _provenance(dataset, models, recipe),
    ]
    return page("Recommendation report", "".join(sections))


def _verdict(figures: _Figures, dataset: Dataset) -> str:
    config = figures.config
    rule = config.primary_seen_filtered
    at = figures.at(seen_filtered=rule)
    gains = figures.gains(config.primary_metric, config.primary_k, seen_filtered=rule)
    baselines = {other: row for other, row in gains.items() if other not in NOT_BASELINES}
    student = at["student", config.primary_metric, config.primary_k]
    strongest = sorted(baselines, key=lambda other: -at[other, config.primary_metric, config.primary_k].value)
    theirs = {other: at[other, student.metric, student.k].value for other in strongest}
    points = [
        f"<li>{_compare(baselines[other], student.value, value, config.confidence)}</li>"
        for other, value in theirs.items()
    ]
    rest = points[STRONGEST:]
    others = (
        f"<details><summary>{len(rest)} weaker baselines</summary><ul>{''.join(rest)}</ul></details>" if rest else ""
    )
    found = at["student", "hit_rate", config.primary_k]
    best = max(at[other, "hit_rate", config.primary_k].value for other in baselines)
    return f"""<header>
<h1>Recommendation report</h1>
<p class="soft">{NAMES.get(figures.protocol, words(figures.protocol))} · {student.n_users:,} users · {dataset.n_items:,}
items, all of them ranked · {_rule(rule)}</p>
</header>
<section class="verdict">
<h2>{_headline(baselines)}</h2>
<p>Of 100 users, {100 * found.value:.1f} find something that they really chose next among the student's first
{found.k} recommendations; with the best baseline it is {100 * best:.1f}.</p>
<ul>{"".join(points[:STRONGEST])}{_teacher_point(figures)}</ul>
{others}
</section>
"""


def _headline(baselines: Mapping[str, DifferenceRow]) -> str:
    by: dict[str, list[str]] = {"better": [], "worse": [], "open": []}
    for other, row in baselines.items():
        by[_standing(row)].append(_inline(other))
    if len(by["better"]) == len(baselines):
        return "The student beats every baseline"
    parts = [f"The student beats {len(by['better']) or 'none'} of {len(baselines)} baselines"]
    if by["worse"]:
        parts.append(f"it loses to {_few(by['worse'])}")
    if by["open"]:
        parts.append(f"no difference from {_few(by['open'])} could be shown")
    return "; ".join(parts)


def _compare(row: DifferenceRow, ours: float, theirs: float, confidence: float) -> str:
    standing = _standing(row)
    words = {"better": "better than", "worse": "worse than", "open": "not distinguishable from"}[standing]
    return (
        f'{_mark(row)}<b class="{standing}">{words} {_inline(row.other)}</b>: '
        f"{TITLES[row.metric]}@{row.k} {ours:.4f} against {theirs:.4f}{_ratio(ours, theirs)}; "
        f"difference {_signed(row.difference)}, {100 * confidence:g} % interval {_signed(row.low)} to "
        f"{_signed(row.high)}{_p_value(row)}, {row.n_users:,} users."
    )


def _mark(row: DifferenceRow | SegmentGainRow) -> str:
    standing = _standing(row)
    return f'<span class="mark {standing}">{ {"better": "▲", "worse": "▼", "open": "≈"}[standing] }</span>'


def _teacher_point(figures: _Figures) -> str:
    config = figures.config
    rule = config.primary_seen_filtered
    for users in ("all", "sample"):
        gains = figures.gains(config.primary_metric, config.primary_k, seen_filtered=rule, users=users)
        if row := gains.get("teacher"):
            at = figures.at(seen_filtered=rule, users=users)
            ours, theirs = (at[model, row.metric, row.k].value for model in ("student", "teacher"))
            return f"<li>{_compare(row, ours, theirs, config.confidence)}</li>"
    return ""


def _results(figures: _Figures) -> str:
    config = figures.config
    rule = config.primary_seen_filtered
    primary, other = (figures.at(seen_filtered=filtered) for filtered in (rule, not rule))
    more = [_table(primary, k) for k in config.ks if k != config.primary_k]
    parts = [_table(primary, config.primary_k)]
    if more:
        parts.append(f"<details><summary>Other list lengths, {_rule(rule)}</summary>{''.join(more)}</details>")
    if other:
        tables = "".join(_table(other, k) for k in config.ks)
        parts.append(f"<details><summary>All list lengths, {_rule(not rule)}</summary>{tables}</details>")
    return f"""<section>
<h2>Results</h2>
<p class="soft">Mean over users, below it the {100 * config.confidence:g} % bootstrap interval; {_rule(rule)}.</p>
{"".join(parts)}
</section>
"""


def _table(at: Mapping[tuple[str, str, int], MetricRow], k: int) -> str:
    names = in_order({model for model, _, _ in at})
    head = "".join(f"<th>{title}<wbr>@{k}</th>" for title in TITLES.values())
    lines = []
    for model in names:
        cells = "".join(
            f"<td>{row.value:.4f}<small>{row.low:.4f}–<wbr>{row.high:.4f}</small></td>"
            for row in (at[model, metric, k] for metric in TITLES)
        )
        ours = ' class="ours"' if model == "student" else ""
        lines.append(f"<tr{ours}><td>{label(model)}</td>{cells}</tr>")
    return (
        f'<div class="scroll"><table class="figures"><thead><tr><th>Model</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _curves(figures: _Figures) -> str:
    rule = figures.config.primary_seen_filtered
    at = figures.at(seen_filtered=rule)
    plot = new_figure()
    primary = figures.config.primary_metric, figures.config.primary_k
    drawn = on_curves({model: at[model, *primary].value for model, _, _ in at})
    n_left = len({model for model, _, _ in at} - drawn)
    left_out = f" {n_left} weaker baselines are left out." if n_left else ""
    for model, (color, symbol, dash) in styles(drawn).items():
        rows = [at[model, "recall", k] for k in figures.config.ks]
        plot.add_scatter(
            x=[row.k for row in rows],
            y=[row.value for row in rows],
            error_y=_whiskers([(row.value, row.low, row.high) for row in rows], color),
            name=label(model),
            mode="lines+markers",
            line={"color": color, "dash": dash, "width": 2},
            marker={"color": color, "symbol": symbol, "size": 9},
            hovertemplate="%{y:.4f} at %{x}",
        )
    ks = list(figures.config.ks)
    plot.update_xaxes(type="log", title="k, length of the list (log scale)", tickvals=ks, ticktext=[str(k) for k in ks])
    plot.update_yaxes(title="recall@k", rangemode="tozero")
    return f"""<section>
<h2>Recall by length of the list</h2>
<p>How much of what users chose next is found when they are shown k items, {_rule(rule)}. Whiskers are
{100 * figures.config.confidence:g} % intervals.{left_out}</p>
{plot_block(plot, "recall-curves")}
</section>
"""


def _gains(figures: _Figures) -> str:
    config = figures.config
    rule, k = config.primary_seen_filtered, config.primary_k
    second: Literal["recall", "ndcg"] = "recall" if config.primary_metric != "recall" else "ndcg"
    others = in_order(figures.gains(config.primary_metric, k, seen_filtered=rule))
    plot = new_figure()
    for metric, color, symbol, shift in (
        (config.primary_metric, BLUE, "circle", -0.12),
        (second, ORANGE, "square", 0.12),
    ):
        gains = figures.gains(metric, k, seen_filtered=rule)
        rows = [gains[other] for other in others]
        plot.add_scatter(
            x=[row.difference for row in rows],
            y=[place + shift for place in range(len(rows))],
            error_x=_whiskers([(row.difference, row.low, row.high) for row in rows], color),
            name=f"{TITLES[metric]}@{k}",
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 10},
            hovertemplate="%{x:+.4f}",
        )
    plot.update_layout(hovermode="closest")
    plot.update_xaxes(title="student minus<br>the other", tickformat="+", zeroline=True, zerolinecolor=INK)
    plot.update_yaxes(
        range=[len(others) - 0.5, -0.5],  # the first on top
        tickvals=list(range(len(others))),
        ticktext=[label(other) for other in others],
        zeroline=False,
    )
    return f"""<section>
<h2>Differences</h2>
<p>The student minus each other model on the same users, {_rule(rule)}. Right of zero the student is better; where a
whisker crosses zero, no difference was shown. Each interval stands for itself; the p-values of the verdict are
corrected for their number.</p>
{plot_block(plot, "differences", height=10 + 1.9 * len(others))}
</section>
"""


def _teacher(figures: _Figures) -> str:
    config = figures.config
    at = figures.at(seen_filtered=config.primary_seen_filtered, users="sample")
    if not at:
        return ""
    n_users = next(iter(at.values())).n_users
    return f"""<section>
<h2>The teacher, on a sample</h2>
<p>The teacher is a large model that reads text; ranking the whole catalogue by it costs too much. It was measured on
{n_users:,} users drawn at random, for each of whom it reordered the {config.teacher_candidates} unseen
items that student and ordered item-kNN put first. What neither of them found, it could not find.
All models on these same users:</p>
{_table(at, config.primary_k)}
</section>
"""


def _coverage(figures: _Figures) -> str:
    rule = figures.config.primary_seen_filtered
    rows = {row.model: row for row in figures.all.coverage if row.seen_filtered == rule}
    if not rows:
        return ""
    k = next(iter(rows.values())).k
    other = {(row.model, row.measure): row.value for row in figures.all.beyond if row.seen_filtered == rule}
    measures = [name for name in MEASURES if any((model, name) in other for model in rows)]
    head = "".join(f"<th>{MEASURES[name].title}</th>" for name in measures)
    lines = []
    for model in in_order(rows):
        cells = "".join(f"<td>{_measure(other.get((model, name)), MEASURES[name].unit)}</td>" for name in measures)
        ours = ' class="ours"' if model == "student" else ""
        lines.append(
            f"<tr{ours}><td>{label(model)}<small>{rows[model].n_users:,} users</small></td>"
            f"<td>{100 * rows[model].value:.1f} %</td>{cells}</tr>"
        )
    terms = "".join(f"<dt>{MEASURES[name].title}</dt><dd>{MEASURES[name].definition}</dd>" for name in measures)
    return f"""<section>
<h2>Coverage and popularity</h2>
<p>Accuracy alone can be had by showing everybody the same few items. Coverage is the share of the catalogue that at
least one user sees among the first {k}; it rises with the number of users. All {_rule(rule)}.</p>
<div class="scroll"><table class="figures"><thead><tr><th>Model</th><th>Coverage</th>{head}</tr></thead>
<tbody>{"".join(lines)}</tbody></table></div>
<details><summary>What these say</summary><dl>{terms}</dl></details>
</section>
"""


def _measure(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "%":
        return f"{100 * value:.1f} %"
    return _percent(value) if unit == "+%" else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}{unit}"


def _cost(figures: _Figures, models: Mapping[str, Fitted]) -> str:
    timings = figures.all.timings
    if not timings:
        return ""
    lines = []
    for model in in_order(timings):
        fit, rank, users = (timings[model][key] for key in ("fit", "rank", "users"))
        trained = models[model].manifest.get("seconds") if model in models else fit
        ours = ' class="ours"' if model == "student" else ""
        lines.append(
            f"<tr{ours}><td>{label(model)}</td><td>{_seconds(trained)}</td><td>{_seconds(rank)}</td>"
            f"<td>{users:,.0f}</td><td>{_rate(users, rank)}</td></tr>"
        )
    words_of = ""
    if {"student", "teacher"} <= set(timings):
        each = {model: timings[model]["rank"] / max(timings[model]["users"], 1) for model in ("student", "teacher")}
        if each["student"] > 0:
            words_of = (
                f"<p>The teacher takes {_times(each['teacher'] / each['student'])} as long for a user as the student, "
                "although it reads only the candidates that others put forward.</p>"
            )
    return f"""<section id="cost">
<h2>Time and cost</h2>
<p>Seconds on the machine of this run: to train or fit a model, and to rank the whole catalogue exactly for the test's
users and take all measures.</p>
{words_of}
<div class="scroll"><table class="figures"><thead><tr><th>Model</th><th>training, s</th><th>ranking, s</th>
<th>users</th><th>users per second</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>
</section>
"""


def _segments(figures: _Figures) -> str:
    config = figures.config
    rule = config.primary_seen_filtered
    rows = [row for row in figures.all.segments if (row.seen_filtered, row.metric) == (rule, config.primary_metric)]
    gains = [
        row for row in figures.all.segment_gains if (row.seen_filtered, row.metric) == (rule, config.primary_metric)
    ]
    if not gains:
        return ""
    best = _inline(gains[0].other)
    plot = new_figure()
    place, ticks = 0, []
    for kind, (title, color, symbol) in KINDS.items():
        of_kind = [row for row in gains if row.kind == kind]
        if not of_kind:
            continue
        places = list(range(place, place + len(of_kind)))
        ticks += [(at, short(row.segment)) for at, row in zip(places, of_kind, strict=True)]
        plot.add_scatter(
            x=[row.difference for row in of_kind],
            y=places,
            error_x=_whiskers([(row.difference, row.low, row.high) for row in of_kind], color),
            name=title,
            mode="markers",
            marker={
                "color": color,
                "symbol": [symbol if row.n_users >= FEW else f"{symbol}-open" for row in of_kind],
                "size": 10,
            },
            customdata=[[f"{row.n_users:,}"] for row in of_kind],
            hovertemplate="%{x:+.4f}, %{customdata[0]} users",
        )
        place += len(of_kind) + 1
    plot.update_layout(hovermode="closest")
    plot.update_xaxes(title=f"student minus<br>{best}<br>{figures.primary}", zeroline=True, zerolinecolor=INK, nticks=6)
    plot.update_yaxes(
        range=[place - 1.5, -0.7],
        tickvals=[at for at, _ in ticks],
        ticktext=[name for _, name in ticks],
        zeroline=False,
    )
    tables = "".join(_segment_table(kind, [row for row in rows if row.kind == kind], gains) for kind in KINDS)
    return f"""<section>
<h2>Whom it serves, and with what</h2>
<p>{_segment_words(gains, best)}</p>
<p>The student minus {best}, the baseline that is best on all users, in {figures.primary}, {_rule(rule)}. Whiskers are
{100 * config.confidence:g} % intervals; hollow marks stand for fewer than {FEW} users, too few to judge by. The
intervals are not corrected for their number: of many segments without a difference, some stand out by chance.</p>
{plot_block(plot, "segments", height=5 + 1.7 * place)}
{tables}
</section>
"""


def _segment_words(gains: Sequence[SegmentGainRow], best: str) -> str:
    """What the segments' intervals allow to say, in a sentence or two."""
    enough = [row for row in gains if row.n_users >= FEW]
    by = {
        standing: [_segment_name(row) for row in enough if _standing(row) == standing]
        for standing in ("better", "worse")
    }
    if not enough:
        return f"No segment has {FEW} users."
    text = (
        f"Of {len(enough)} segments with {FEW} users or more, the student is better than {best} in {len(by['better'])}"
    )
    text += f" and worse in {len(by['worse'])}" if by["worse"] else " and worse in none"
    text += (
        "; in the others no difference could be shown." if len(by["better"]) + len(by["worse"]) < len(enough) else "."
    )
    return text + (f" Worse: {_join(by['worse'])}." if by["worse"] else "")


def _segment_name(row: SegmentRow | SegmentGainRow) -> str:
    """A segment inside a sentence."""
    name = escape(row.segment)
    return {"history": f"{name} users", "popularity": f"{name} items"}.get(row.kind, f"“{name}”")


def _segment_table(kind: str, rows: Sequence[SegmentRow], gains: Sequence[SegmentGainRow]) -> str:
    if not rows:
        return ""
    models = in_order({row.model for row in rows})
    at = {(row.segment, row.model): row for row in rows}
    gain = {row.segment: row for row in gains if row.kind == kind}
    lines = []
    for segment in dict.fromkeys(row.segment for row in rows):
        first = at[segment, models[0]]
        mark = _mark(gain[segment]) if segment in gain and first.n_users >= FEW else ""
        cells = "".join(
            f"<td>{row.value:.4f}<small>{row.low:.4f}–<wbr>{row.high:.4f}</small></td>"
            for row in (at[segment, model] for model in models)
        )
        lines.append(
            f"<tr><td>{escape(segment)} {mark}<small>{first.n_users:,} users, {first.n_targets:,} targets</small></td>"
            f"{cells}</tr>"
        )
    head = "".join(f"<th>{label(model)}</th>" for model in models)
    return (
        f"<details><summary>{KINDS[kind][0]}: all models</summary>"
        f'<div class="scroll"><table class="figures"><thead><tr><th>Segment</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></details>"
    )


def _examples(figures: _Figures) -> str:
    examples = figures.all.examples
    if not examples:
        return ""
    rule, k = figures.config.primary_seen_filtered, figures.config.primary_k
    best = next((row.other for row in figures.all.segment_gains if row.seen_filtered == rule), None)
    models = [model for model in ("student", "ranker", "teacher", best) if model in examples[0].lists]
    blocks = "".join(
        _example(number, example, models, opened=number == 1) for number, example in enumerate(examples, start=1)
    )
    return f"""<section>
<h2>{len(examples)} users, looked at</h2>
<p>Drawn at random among those with enough history, not picked: what they did, what they chose next, and each model's
first {k}, {_rule(rule)}. <span class="hit">✓ Marked</span> items are what the user did choose.</p>
{blocks}
</section>
"""


def _example(number: int, example: Example, models: Sequence[str], *, opened: bool) -> str:
    found = sum(item.hit for item in example.lists.get("student", []))
    n = len(example.targets)
    columns = "".join(
        f"<div><h4>{label(model)}</h4><ol>{''.join(map(_item, example.lists[model]))}</ol></div>"
        for model in models
        if example.lists.get(model)
    )
    left_out = example.n_history - len(example.history)
    before = (
        f' <span class="soft">(the last {len(example.history)} of {example.n_history:,})</span>' if left_out else ""
    )
    user_id = escape(example.user_id)
    return f"""<details{" open" if opened else ""}><summary>User {number} <code class="soft">{user_id}</code>:
the student found {found} of {n}</summary>
<div class="lists">
<div><h4>History{before}</h4><ul>{"".join(map(_item, example.history))}</ul></div>
<div><h4>Chosen next</h4><ul>{"".join(map(_item, example.targets[:SHOWN_TARGETS]))}{_more(n - SHOWN_TARGETS)}</ul></div>
</div>
<div class="lists">{columns}</div>
{_why(example.why) if example.why else ""}</details>
"""


def _why(why: Why) -> str:
    """The reasons that weigh most, for and against."""
    events = [(item.title, added) for item, added in why.history]
    parts = [("without an event of the history", events), ("without a word of its text", why.words)]
    told = "".join(
        f"<div><h4>{what}</h4><ul>{''.join(f'<li>{_minus(added)} {escape(_cut(text))}</li>' for text, added in chosen)}"
        "</ul></div>"
        for what, reasons in parts
        if (chosen := sorted((each for each in reasons if abs(each[1]) >= LEAST_REASON), key=_size)[:SHOWN_REASONS])
    )
    return f"""<p>Why the teacher put <b>{escape(_cut(why.item.title))}</b> first: how its score would change</p>
<div class="lists">{told}</div>
"""


def _size(reason: tuple[str, float]) -> float:
    return -abs(reason[1])


def _minus(added: float) -> str:
    """What a score loses without what added so much."""
    return f'<span class="soft">{-added:+.2f}</span>'.replace("-", "−")


def _cut(title: str) -> str:
    return title if len(title) <= TITLE else f"{title[: TITLE - 1]}…"


def _item(item: Shown) -> str:
    title = _cut(item.title)
    return f'<li class="hit">✓ {escape(title)}</li>' if item.hit else f"<li>{escape(title)}</li>"


def _more(n: int) -> str:
    return f'<li class="soft">and {n} more</li>' if n > 0 else ""


def _data(dataset: Dataset) -> str:
    profile = dataset.path / "profile.json"
    if profile.is_file():
        return data_section(json.loads(profile.read_text(encoding="utf-8")))
    counts = {"users": dataset.n_users, "items": dataset.n_items} | dict(dataset.manifest.get("counts", {}))
    return f"""<section>
<h2>Data</h2>
{counts_table(counts)}
</section>
"""


def _definitions(dataset: Dataset, figures: _Figures) -> str:
    config = figures.config
    shown = {row.model for row in figures.all.rows}
    terms = [(f"{metric.title}@k", escape(metric.definition)) for metric in METRICS]
    terms += [
        ("Protocol", escape(PROTOCOLS.get(figures.protocol, figures.protocol)) + _moments(dataset)),
        (
            "What is ranked",
            "The whole catalogue, for every user; no sampled negatives. The history is all that came before.",
        ),
        (
            "Seen items",
            f"Filtered: items of the user's history {_but_bought(config)}are dropped from the ranking and from the "
            "targets; a user whose targets all vanish is not counted. With seen items: everything stays. Compare "
            "figures of one rule only.",
        ),
        (
            "Equal scores",
            "stand in a random order that depends on user, item and seed, never on what the user chose.",
        ),
        (
            "Intervals",
            f"Percentile bootstrap over users, {config.n_bootstrap:,} resamples, {100 * config.confidence:g} %; "
            "differences are paired: both models are resampled on the same users.",
        ),
        (
            "p",
            "How often chance alone would give so large a difference, if it made no difference which model answered a "
            f"user: paired randomization test, two-sided, {config.n_permutations:,} random signs; Holm's correction "
            "for the number of models compared. It is taken of the verdict's metric only, which speaks of a difference "
            f"only where the interval leaves out zero and p is at most {MOST_P:g}.",
        ),
        (
            "Segments",
            "Drawn by the training part alone. <i>History</i>: a user's number of training events. <i>Popularity</i>: "
            f"the head are the most popular items that hold {100 * config.head_share:g} % of the training events, the "
            "tail are the others with an event, cold are items without one. In a segment of items only a user's "
            "targets among them count, in the same lists; users with several targets stand in several segments.",
        ),
        *(
            [
                (
                    "Champion",
                    "What was served before, of an earlier night: asked with the same histories, as far as it knows "
                    "their items. What has come into the catalogue since, it cannot recommend.",
                )
            ]
            if "champion" in shown
            else []
        ),
        (
            "Baselines",
            "Fitted on the training part only, asked with the same histories as the student. What a baseline says "
            "nothing of comes last, the most popular first. "
            + " ".join(f"<i>{label(name)}</i>: {text}." for name, text in BASELINE_TEXTS.items() if name in shown)
            + _settings(figures.all.baselines),
        ),
    ]
    return f"""<section>
<h2>Definitions</h2>
<dl>{"".join(f"<dt>{term}</dt><dd>{text}</dd>" for term, text in terms)}</dl>
</section>
"""


def _settings(baselines: Mapping[str, Setting]) -> str:
    """What the baselines were fitted with."""
    lines = "".join(
        f"<tr><td>{label(name)}</td><td>{'tuned on validation' if setting.tuned else 'defaults'}</td><td>"
        + ", ".join(f"{escape(words(key))} {value:g}" for key, value in setting.parameters.items())
        + "</td></tr>"
        for name, setting in baselines.items()
        if setting.parameters
    )
    if not lines:
        return ""
    return (
        '<details><summary>Their parameters</summary><div class="scroll"><table class="plain"><thead><tr><th>Baseline'
        f"</th><th>chosen</th><th>parameters</th></tr></thead><tbody>{lines}</tbody></table></div></details>"
    )


def _but_bought(config: EvaluateConfig) -> str:
    return "(but not those that the user has bought: they may be bought again) " if config.repurchases else ""


def _moments(dataset: Dataset) -> str:
    """When the parts of a temporal split end."""
    ends = [
        f"{part} ends {datetime.fromtimestamp(moment / 1e6, UTC):%Y-%m-%d %H:%M} UTC"
        for part, key in (("training", "train_until"), ("validation", "valid_until"))
        if (moment := dataset.manifest["info"].get(key)) is not None
    ]
    return f" Here {' and '.join(ends)}." if ends else ""


def _provenance(dataset: Dataset, models: Mapping[str, Fitted], recipe: Recipe) -> str:
    made: dict[str, Mapping[str, Any]] = {"dataset": dataset.manifest}
    made |= {name: model.manifest for name, model in models.items()}
    blocks = [
        f"<details><summary>{words(name)} <code>{escape(str(manifest.get('fingerprint', '')))}</code></summary>"
        f"<pre>{_json({key: manifest.get(key) for key in ('seed', 'inputs', 'config')})}</pre></details>"
        for name, manifest in made.items()
    ]
    own = {"seed": recipe.seed, "inputs": dict(recipe.inputs), "config": recipe.config.model_dump(mode="json")}
    blocks.append(
        f"<details><summary>report <code>{recipe.fingerprint}</code></summary><pre>{_json(own)}</pre></details>"
    )
    return f"""<section>
<h2>How it was made</h2>
<p class="soft">recsys {__version__}. A fingerprint stands for config, inputs, seed and code: equal fingerprints, equal
content.</p>
{"".join(blocks)}
</section>
"""


def _whiskers(intervals: Sequence[tuple[float, float, float]], color: str) -> dict[str, object]:
    """Plotly's error bars of (value, low, high)."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, _, high in intervals],
        "arrayminus": [value - low for value, low, _ in intervals],
        "color": color,
        "thickness": 1.5,
        "width": 4,
    }


def on_curves(values: Mapping[str, float]) -> set[str]:
    """Of all models, those that are drawn: more curves than these hide each other.

    Args:
        values: by model, the verdict's metric.
    """
    baselines = [model for model in values if model not in NOT_BASELINES]
    strongest = sorted(baselines, key=lambda model: -values[model])[:STRONGEST]
    return {*strongest, *(model for model in values if model in (*NOT_BASELINES, "most_popular"))}


def styles(models: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, symbol and dash of each model, in the order in which they are shown; no two look alike."""
    ordered = in_order(models)
    others = [model for model in ordered if model not in STYLES]
    rest = {model: OTHER_STYLES[place % len(OTHER_STYLES)] for place, model in enumerate(others)}
    return {model: STYLES.get(model) or rest[model] for model in ordered}


def in_order(models: Iterable[str]) -> list[str]:
    """The models as they are shown: student, ranker, champion, teacher, baselines, then what is not known here."""
    known = list(LABELS)
    return sorted(models, key=lambda model: (known.index(model) if model in known else len(known), model))


def label(model: str) -> str:
    """A model's name, as HTML."""
    return LABELS.get(model) or escape(model.replace("_", " "))


def _inline(model: str) -> str:
    """The label inside a sentence."""
    name = label(model)
    if model in NOT_BASELINES:
        return f"the {model}"
    return name if name[:2].isupper() else name[:1].lower() + name[1:]


def _json(content: object) -> str:
    return escape(json.dumps(content, indent=2, ensure_ascii=False))


def _few(names: Sequence[str]) -> str:
    """Names, or how many there are."""
    return _join(names) if len(names) <= STRONGEST else f"{len(names)} of them"


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _rule(seen_filtered: bool) -> str:
    return "seen items filtered" if seen_filtered else "with seen items"


def short(name: str) -> str:
    """A name beside a plot. Plotly reads a little HTML in it, so it is escaped."""
    return escape(name if len(name) <= LABEL else f"{name[: LABEL - 1]}…")


def _seconds(value: float | None) -> str:
    return (
        "–" if value is None else f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
    )


def _rate(users: float, seconds: float) -> str:
    if seconds <= 0:
        return "–"
    rate = users / seconds
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:,.1f}"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _ratio(ours: float, theirs: float) -> str:
    if theirs <= 0:
        return ""
    return f" ({ours / theirs:.1f} times as much)" if ours >= 2 * theirs else f" ({_percent(ours / theirs - 1)})"


def _percent(share: float) -> str:
    return f"{100 * share:+.0f} %".replace("-", "−")


def _p_value(row: DifferenceRow) -> str:
    if row.p_holm is None:
        return ""
    return f", p {'< 0.001' if row.p_holm < 0.001 else f'= {row.p_holm:.3f}'}"


def _standing(row: DifferenceRow | SegmentGainRow) -> Literal["better", "worse", "open"]:
    """What may be said of student minus other: what the interval shows, unless the corrected p-value doubts it."""
    doubted = isinstance(row, DifferenceRow) and row.p_holm is not None and row.p_holm > MOST_P
    if doubted:
        return "open"
    return "better" if row.low > 0 else "worse" if row.high < 0 else "open"
