"""The report as one HTML page that needs nothing else: no server, no network, no second file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any, Final, Literal

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from recsys import __version__
from recsys.artifacts import Recipe
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.metrics import METRICS
from recsys.evaluation.report import CoverageRow, DifferenceRow, MetricRow
from recsys.evaluation.scorers import Fitted
from recsys.ingest.dataset import Dataset

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

# Okabe and Ito's palette, told apart with any kind of colour vision; symbols and dashes say the same again.
STYLES: Final[Mapping[str, tuple[str, str, str]]] = {
    "student": ("#0072B2", "circle", "solid"),
    "teacher": ("#D55E00", "diamond", "solid"),
    "ordered_item_knn": ("#009E73", "square", "dash"),
    "item_knn": ("#CC79A7", "triangle-up", "dot"),
    "recently_popular": ("#E69F00", "x", "dashdot"),
    "most_popular": ("#555555", "cross", "longdash"),
}
OTHER_STYLE: Final = ("#56B4E9", "star", "solid")

PROTOCOLS: Final[Mapping[str, str]] = {
    "temporal": "Global temporal split: everything before one moment trains, everything after it is asked. Nobody's "
    "future was known to any model.",
    "leave_one_out": "Leave-one-out: each user's last event is asked, the one before it validates, the rest trains. It "
    "compares with papers; since users' last events lie at different times, models have seen other users' futures.",
}

# The browser itself is told to load nothing: plotly.js names map servers that these plots never use.
POLICY: Final = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

STYLE: Final = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dde2e8; --panel: #f5f7f9; --accent: #0072B2; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans",
  sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .35rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, small { color: var(--soft); }
.verdict { background: var(--panel); border-left: 5px solid var(--accent); border-radius: 4px; padding: 1rem 1.25rem;
  margin: 1.25rem 0; }
.verdict h2 { border: 0; margin: 0 0 .35rem; padding: 0; font-size: 1.3rem; }
.verdict ul { list-style: none; margin: .75rem 0 0; padding: 0; }
.verdict li { margin: .6rem 0; padding-left: 1.9rem; text-indent: -1.9rem; }
.mark { display: inline-block; width: 1.9rem; text-indent: 0; font-weight: 700; }
.better { color: #00664b; } .worse { color: #a63c00; } .open { color: #4f5968; }
.scroll { overflow-x: auto; margin: .5rem 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.figures { width: 100%; }
th, td { text-align: right; padding: .4rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }
th { font-weight: 600; font-size: .9rem; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; padding-left: 0;
  white-space: normal; }
tr.ours td { font-weight: 600; } tr.ours td small { font-weight: 400; }
td small { display: block; font-size: .75rem; }
.plot { height: 24rem; margin: .5rem 0 1rem; } .plot.low { height: 20rem; }
.pairs td:first-child { padding-right: 2rem; }
details { border: 1px solid var(--line); border-radius: 4px; margin: .6rem 0; padding: 0 .9rem; }
summary { cursor: pointer; padding: .55rem 0; font-weight: 600; }
pre { background: var(--panel); padding: .75rem; overflow-x: auto; font-size: .8rem; line-height: 1.45; }
code { overflow-wrap: anywhere; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: .1rem 0 0; max-width: 46rem; }
@media (max-width: 600px) {
  main { padding: 1rem .9rem 3rem; } h1 { font-size: 1.35rem; }
  th, td { padding: .35rem .3rem; font-size: .86rem; } td small { font-size: .68rem; white-space: normal; }
  .figures th { white-space: normal; }
  .verdict { padding: .8rem .9rem; }
}
@media print { details { break-inside: avoid; } }
"""


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
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Recommendation report</title>
<style>{STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<main>
{"".join(sections)}
</main>
</body>
</html>
"""


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
{_plot(plot, "recall-curves")}
</section>
"""


def _gains(figures: _Figures) -> str:
    config = figures.config
    rule, k = config.primary_seen_filtered, config.primary_k
    second: Literal["recall", "ndcg"] = "recall" if config.primary_metric != "recall" else "ndcg"
    others = _in_order(figures.gains(config.primary_metric, k, seen_filtered=rule))
    plot = go.Figure()
    for metric, color, symbol, shift in (
        (config.primary_metric, "#0072B2", "circle", -0.12),
        (second, "#E69F00", "square", 0.12),
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
    plot.update_xaxes(title="student minus the other", tickformat="+", zeroline=True, zerolinecolor="#1c2430")
    plot.update_yaxes(
        range=[len(others) - 0.5, -0.5],  # the first on top
        tickvals=list(range(len(others))),
        ticktext=[_label(other) for other in others],
        zeroline=False,
        automargin=True,
    )
    return f"""<section>
<h2>Differences</h2>
<p>The student minus each other model on the same users, {_rule(rule)}. Right of zero the student is better; where a
whisker crosses zero, no difference was shown. Each interval stands for itself: they are not corrected for
their number.</p>
{_plot(plot, "differences", low=True)}
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
{_pairs(pairs)}
</section>
"""


def _data(dataset: Dataset) -> str:
    counts = {"users": dataset.n_users, "items": dataset.n_items} | dict(dataset.manifest.get("counts", {}))
    return f"""<section>
<h2>Data</h2>
{_counts(counts)}
</section>
"""


def _counts(counts: Mapping[str, Any], heading: str = "") -> str:
    """Plain numbers in one table, each group of numbers under a heading of its own."""
    plain = [(_words(name), _number(value)) for name, value in counts.items() if not isinstance(value, Mapping)]
    groups = [(f"{heading}{_words(name)}", value) for name, value in counts.items() if isinstance(value, Mapping)]
    parts = [_pairs(plain)] if plain else []
    for name, group in groups:
        parts.append(f"<h3>{name[:1].upper()}{name[1:]}</h3>{_counts(group, f'{name}: ') if group else '<p>none</p>'}")
    return "".join(parts)


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
        f"<details><summary>{_words(name)} <code>{escape(str(manifest.get('fingerprint', '')))}</code></summary>"
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


def _plot(figure: go.Figure, name: str, *, low: bool = False) -> str:
    figure.update_layout(
        template="none",
        font={"family": "system-ui, Segoe UI, Roboto, DejaVu Sans, sans-serif", "size": 13, "color": "#1c2430"},
        margin={"l": 56, "r": 12, "t": 12, "b": 48},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        dragmode=False,
    )
    figure.update_xaxes(gridcolor="#dde2e8", fixedrange=True)
    figure.update_yaxes(gridcolor="#dde2e8", fixedrange=True)
    body = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,  # plotly's own is random
        config={"displayModeBar": False, "responsive": True},
    )
    return f'<div class="plot{" low" if low else ""}">{body}</div>'


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


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in pairs)
    return f'<div class="scroll"><table class="pairs"><tbody>{lines}</tbody></table></div>'


def _in_order(models: Iterable[str]) -> list[str]:
    known = list(LABELS)
    return sorted(models, key=lambda model: (known.index(model) if model in known else len(known), model))


def _label(model: str) -> str:
    return LABELS.get(model) or escape(model.replace("_", " "))


def _inline(model: str) -> str:
    """The label inside a sentence."""
    label = _label(model)
    return "the teacher" if model == "teacher" else label[:1].lower() + label[1:]


def _words(name: str) -> str:
    return escape(str(name).replace("_", " "))


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return escape(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


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
