"""The report as one HTML page that needs nothing else: no server, no network, no second file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any, Final, Literal

import plotly.graph_objects as go

from recsys import __version__
from recsys.artifacts import Recipe
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.metrics import METRICS
from recsys.evaluation.report import CoverageRow, DifferenceRow, MetricRow
from recsys.evaluation.scorers import Fitted
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
    page,
    pairs_table,
    plot_block,
    words,
)

LABELS: Final[Mapping[str, str]] = {
    "student": "Student",
    "teacher": "Teacher",
    "ordered_item_knn": "Ordered item-kNN",
    "item_knn": "Item-kNN",
    "recently_popular": "Recently popular",
    "most_popular": "Most popular",
}
NOT_BASELINES: Final = ("student", "teacher")
TITLES: Final[Mapping[str, str]] = {metric.name: metric.title for metric in METRICS}

# Symbols and dashes say the same as colours.
STYLES: Final[Mapping[str, tuple[str, str, str]]] = {
    "student": (BLUE, "circle", "solid"),
    "teacher": (VERMILION, "diamond", "solid"),
    "ordered_item_knn": (GREEN, "square", "dash"),
    "item_knn": (PINK, "triangle-up", "dot"),
    "recently_popular": (ORANGE, "x", "dashdot"),
    "most_popular": (GREY, "cross", "longdash"),
}
OTHER_STYLE: Final = (SKY, "star", "solid")

PROTOCOLS: Final[Mapping[str, str]] = {
    "temporal": "Global temporal split: everything before one moment trains, everything after it is asked. Nobody's "
    "future was known to any model.",
    "leave_one_out": "Leave-one-out: each user's last event is asked, the one before it validates, the rest trains. It "
    "compares with papers; since users' last events lie at different times, models have seen other users' futures.",
}


@dataclass(frozen=True)
class _Figures:
    """The rows, found by what they are about."""

    rows: Sequence[MetricRow]
    differences: Sequence[DifferenceRow]
    coverage: Sequence[CoverageRow]
    config: EvaluateConfig

    def at(self, *, seen_filtered: bool, users: str = "all") -> dict[tuple[str, str, int], MetricRow]:
        """By (model, metric, k)."""
        return {
            (row.model, row.metric, row.k): row
            for row in self.rows
            if row.seen_filtered == seen_filtered and row.users == users
        }

    def gains(self, metric: str, k: int, *, seen_filtered: bool, users: str = "all") -> dict[str, DifferenceRow]:
        """By the other model's name."""
        about = metric, k, seen_filtered, users
        return {
            row.other: row for row in self.differences if (row.metric, row.k, row.seen_filtered, row.users) == about
        }

    @property
    def primary(self) -> str:
        """The verdict's metric, as people write it."""
        return f"{TITLES[self.config.primary_metric]}@{self.config.primary_k}"


def render(
    rows: Sequence[MetricRow],
    differences: Sequence[DifferenceRow],
    coverage: Sequence[CoverageRow],
    *,
    dataset: Dataset,
    models: Mapping[str, Fitted],
    recipe: Recipe,
    config: EvaluateConfig,
) -> str:
    """The whole page. The same figures give the same bytes.

    Args:
        rows: every model's means; those of the verdict's metric must be among them.
        differences: the student minus every other model.
        coverage: how much of the catalogue each model shows.
        dataset: for the data section.
        models: the trained models, for how they were made.
        recipe: the report's own.
        config: what is primary.
    """
    figures = _Figures(rows, differences, coverage, config)
    sections = [
        _verdict(figures, dataset),
        _results(figures),
        _curves(figures),
        _gains(figures),
        _teacher(figures),
        _coverage(figures),
        _data(dataset),
        _definitions(dataset, figures),
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
    points = "".join(
        f"<li>{_compare(row, student.value, at[other, row.metric, row.k].value, config.confidence)}</li>"
        for other, row in baselines.items()
    )
    found = at["student", "hit_rate", config.primary_k]
    best = max(at[other, "hit_rate", config.primary_k].value for other in baselines)
    return f"""<header>
<h1>Recommendation report</h1>
<p class="soft">{escape(dataset.protocol.replace("_", "-"))} test · {student.n_users:,} users · {dataset.n_items:,}
items, all of them ranked · {_rule(rule)}</p>
</header>
<section class="verdict">
<h2>{_headline(baselines)}</h2>
<p>Of 100 users, {100 * found.value:.1f} find something that they really chose next among the student's first
{found.k} recommendations; with the best baseline it is {100 * best:.1f}.</p>
<ul>{points}{_teacher_point(figures)}</ul>
</section>
"""


def _headline(baselines: Mapping[str, DifferenceRow]) -> str:
    by: dict[str, list[str]] = {"better": [], "worse": [], "open": []}
    for other, row in baselines.items():
        by[_standing(row)].append(_inline(other))
    if len(by["better"]) == len(baselines):
        return "The student beats every baseline"
    parts = [f"The student beats {len(by['better'])} of {len(baselines)} baselines"]
    if by["worse"]:
        parts.append(f"it loses to {_join(by['worse'])}")
    if by["open"]:
        parts.append(f"no difference from {_join(by['open'])} could be shown")
    return "; ".join(parts)


def _compare(row: DifferenceRow, ours: float, theirs: float, confidence: float) -> str:
    standing = _standing(row)
    mark = {"better": "▲", "worse": "▼", "open": "≈"}[standing]
    words = {"better": "better than", "worse": "worse than", "open": "not distinguishable from"}[standing]
    return (
        f'<span class="mark {standing}">{mark}</span><b class="{standing}">{words} {_inline(row.other)}</b>: '
        f"{TITLES[row.metric]}@{row.k} {ours:.4f} against {theirs:.4f}{_ratio(ours, theirs)}; "
        f"difference {_signed(row.difference)}, {100 * confidence:g} % interval {_signed(row.low)} to "
        f"{_signed(row.high)}, {row.n_users:,} users."
    )


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
    names = _in_order({model for model, _, _ in at})
    head = "".join(f"<th>{title}<wbr>@{k}</th>" for title in TITLES.values())
    lines = []
    for model in names:
        cells = "".join(
            f"<td>{row.value:.4f}<small>{row.low:.4f}–<wbr>{row.high:.4f}</small></td>"
            for row in (at[model, metric, k] for metric in TITLES)
        )
        ours = ' class="ours"' if model == "student" else ""
        lines.append(f"<tr{ours}><td>{_label(model)}</td>{cells}</tr>")
    return (
        f'<div class="scroll"><table class="figures"><thead><tr><th>Model</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _curves(figures: _Figures) -> str:
    rule = figures.config.primary_seen_filtered
    at = figures.at(seen_filtered=rule)
    plot = go.Figure()
    for model in _in_order({model for model, _, _ in at}):
        rows = [at[model, "recall", k] for k in figures.config.ks]
        color, symbol, dash = STYLES.get(model, OTHER_STYLE)
        plot.add_scatter(
            x=[row.k for row in rows],
            y=[row.value for row in rows],
            error_y=_whiskers([(row.value, row.low, row.high) for row in rows], color),
            name=_label(model),
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
{100 * figures.config.confidence:g} % intervals.</p>
{plot_block(plot, "recall-curves")}
</section>
"""


def _gains(figures: _Figures) -> str:
    config = figures.config
    rule, k = config.primary_seen_filtered, config.primary_k
    second: Literal["recall", "ndcg"] = "recall" if config.primary_metric != "recall" else "ndcg"
    others = _in_order(figures.gains(config.primary_metric, k, seen_filtered=rule))
    plot = go.Figure()
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
    plot.update_xaxes(title="student minus the other", tickformat="+", zeroline=True, zerolinecolor=INK)
    plot.update_yaxes(
        range=[len(others) - 0.5, -0.5],  # the first on top
        tickvals=list(range(len(others))),
        ticktext=[_label(other) for other in others],
        zeroline=False,
    )
    return f"""<section>
<h2>Differences</h2>
<p>The student minus each other model on the same users, {_rule(rule)}. Right of zero the student is better; where a
whisker crosses zero, no difference was shown. Each interval stands for itself: they are not corrected for
their number.</p>
{plot_block(plot, "differences", height=20)}
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
    rows = {row.model: row for row in figures.coverage if row.seen_filtered == rule}
    if not rows:
        return ""
    k = next(iter(rows.values())).k
    pairs = [
        (f"{_label(model)} <small>{rows[model].n_users:,} users</small>", f"{100 * rows[model].value:.1f} %")
        for model in _in_order(rows)
    ]
    return f"""<section>
<h2>Catalogue coverage</h2>
<p>Share of the catalogue that at least one user sees among the first {k}, {_rule(rule)}.</p>
{pairs_table(pairs)}
</section>
"""


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
    terms = [(f"{metric.title}@k", escape(metric.definition)) for metric in METRICS]
    terms += [
        ("Protocol", escape(PROTOCOLS.get(dataset.protocol, dataset.protocol)) + _moments(dataset)),
        (
            "What is ranked",
            "The whole catalogue, for every user; no sampled negatives. The history is all that came before.",
        ),
        (
            "Seen items",
            "Filtered: items of the user's history are dropped from the ranking and from the targets; a user whose "
            "targets all vanish is not counted. With seen items: everything stays. Compare figures of one rule only.",
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
            "Baselines",
            "Fitted on the training part only, asked with the same histories as the student. <i>Most popular</i>: "
            "number of training events. <i>Item-kNN</i>: cosine over the users that had both items. <i>Ordered "
            "item-kNN</i>: what comes after what, and how soon; recent events count more.",
        ),
    ]
    return f"""<section>
<h2>Definitions</h2>
<dl>{"".join(f"<dt>{term}</dt><dd>{text}</dd>" for term, text in terms)}</dl>
</section>
"""


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


def _in_order(models: Iterable[str]) -> list[str]:
    known = list(LABELS)
    return sorted(models, key=lambda model: (known.index(model) if model in known else len(known), model))


def _label(model: str) -> str:
    return LABELS.get(model) or escape(model.replace("_", " "))


def _inline(model: str) -> str:
    """The label inside a sentence."""
    label = _label(model)
    return "the teacher" if model == "teacher" else label[:1].lower() + label[1:]


def _json(content: object) -> str:
    return escape(json.dumps(content, indent=2, ensure_ascii=False))


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _rule(seen_filtered: bool) -> str:
    return "seen items filtered" if seen_filtered else "with seen items"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _ratio(ours: float, theirs: float) -> str:
    if theirs <= 0:
        return ""
    return f" ({ours / theirs:.1f} times as much)" if ours >= 2 * theirs else f" ({_percent(ours / theirs - 1)})"


def _percent(share: float) -> str:
    return f"{100 * share:+.0f} %".replace("-", "−")


def _standing(row: DifferenceRow) -> Literal["better", "worse", "open"]:
    """What the interval of student minus other allows to say."""
    return "better" if row.low > 0 else "worse" if row.high < 0 else "open"
