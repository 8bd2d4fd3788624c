"""The report's plots as PNG files, for slides. Needs the package `matplotlib`, which the page itself does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import unescape
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from recsys.errors import MissingExtraError
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.page import FEW, KINDS, TITLES, in_order, label, on_curves, short, styles
from recsys.evaluation.report import DifferenceRow, Report, SegmentGainRow
from recsys.page import INK, LINE

Axes = Any  # Matplotlib's: a type checker need not have it

# As Plotly calls them, and as Matplotlib does.
MARKERS: Final = {
    "circle": "o",
    "diamond": "D",
    "square": "s",
    "triangle-up": "^",
    "x": "X",
    "cross": "P",
    "star": "*",
    "triangle-down": "v",
    "hexagon": "h",
    "pentagon": "p",
}
DASHES: Final[dict[str, Any]] = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3))}
WIDTH: Final = 8.0  # inches, at DPI dots each
DPI: Final = 200


def write_pngs(report: Report, folder: Path) -> list[Path]:
    """Draw the report's plots: recall by length of the list, differences, gain by segment.

    Args:
        report: what `recsys evaluate` wrote.
        folder: where the files go; it is made if need be, files of these names are replaced.

    Returns:
        `recall_curves.png`, `differences.png` and, where there are segments, `segments.png`; 1600 pixels wide.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    try:
        mpl, drawn = (import_module(name) for name in ("matplotlib", "matplotlib.figure"))
    except ImportError:
        raise MissingExtraError("matplotlib", "plots") from None
    config = EvaluateConfig(**report.manifest["config"])
    segments = [
        row
        for row in report.segment_gains
        if (row.seen_filtered, row.metric) == (config.primary_seen_filtered, config.primary_metric)
    ]
    drawings: dict[str, tuple[float, Callable[[Axes], None]]] = {
        "recall_curves": (4.5, lambda axes: _curves(axes, report, config)),
        "differences": (3.5, lambda axes: _differences(axes, report, config)),
    }
    if segments:
        drawings["segments"] = (1.5 + 0.3 * len(segments), lambda axes: _segments(axes, segments))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    # Without pyplot: no window system is looked for, and no figure outlives this call.
    with mpl.rc_context(
        {"font.family": "DejaVu Sans", "font.size": 11, "axes.edgecolor": INK, "text.parse_math": False}
    ):
        for name, (height, draw) in drawings.items():
            figure = drawn.Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
            axes = figure.add_subplot()
            axes.grid(color=LINE)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            draw(axes)
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], metadata={"Software": None})
    return paths


def _curves(axes: Axes, report: Report, config: EvaluateConfig) -> None:
    rows = [
        row
        for row in report.rows
        if (row.metric, row.seen_filtered, row.users) == ("recall", config.primary_seen_filtered, "all")
    ]
    models = {row.model for row in rows}
    rule = config.primary_seen_filtered
    values = {m: report.value(m, config.primary_metric, config.primary_k, seen_filtered=rule) for m in models}
    drawn = on_curves(values)
    for model, (color, symbol, dash) in styles(drawn).items():
        mine = [row for row in rows if row.model == model]
        axes.errorbar(
            [row.k for row in mine],
            [row.value for row in mine],
            yerr=_ends([(row.value, row.low, row.high) for row in mine]),
            label=unescape(label(model)),
            color=color,
            marker=MARKERS[symbol],
            linestyle=DASHES[dash],
            capsize=3,
        )
    axes.set_xscale("log")
    axes.set_xticks(list(config.ks), [str(k) for k in config.ks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("k, length of the list (log scale)")
    axes.set_ylabel("recall@k")
    axes.legend(frameon=False)


def _differences(axes: Axes, report: Report, config: EvaluateConfig) -> None:
    rows = {
        row.other: row
        for row in report.differences
        if (row.metric, row.k, row.seen_filtered, row.users)
        == (config.primary_metric, config.primary_k, config.primary_seen_filtered, "all")
    }
    others = in_order(rows)
    _forest(axes, [rows[other] for other in others], list(range(len(others))), color=KINDS["history"][1], marker="o")
    axes.set_yticks(range(len(others)), [unescape(label(other)) for other in others])
    axes.set_xlabel(f"student minus the other, {TITLES[config.primary_metric]}@{config.primary_k}")
    axes.invert_yaxis()


def _segments(axes: Axes, gains: Sequence[SegmentGainRow]) -> None:
    place, ticks = 0, []
    for kind, (title, color, symbol) in KINDS.items():
        of_kind = [row for row in gains if row.kind == kind]
        if not of_kind:
            continue
        places = list(range(place, place + len(of_kind)))
        ticks += [(at, unescape(short(row.segment))) for at, row in zip(places, of_kind, strict=True)]
        _forest(axes, of_kind, places, color=color, marker=MARKERS[symbol], title=title)
        place += len(of_kind) + 1
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
    axes.set_xlabel(f"student minus {unescape(label(gains[0].other))}, {TITLES[gains[0].metric]}@{gains[0].k}")
    axes.legend(frameon=False)
    axes.invert_yaxis()


def _forest(
    axes: Axes,
    rows: Sequence[DifferenceRow | SegmentGainRow],
    places: Sequence[int],
    *,
    color: str,
    marker: str,
    title: str = "",
) -> None:
    """Differences with their intervals, one below the other; hollow where users are few."""
    axes.axvline(0, color=INK, linewidth=1)
    for hollow in (False, True):
        some = [(place, row) for place, row in zip(places, rows, strict=True) if (row.n_users < FEW) == hollow]
        if some:
            axes.errorbar(
                [row.difference for _, row in some],
                [place for place, _ in some],
                xerr=_ends([(row.difference, row.low, row.high) for _, row in some]),
                linestyle="none",
                color=color,
                marker=marker,
                markerfacecolor="white" if hollow else color,
                capsize=3,
                label=title if title and not hollow else "_",
            )


def _ends(intervals: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    """How far (value, low, high) reach below and above; a bootstrap interval need not hold the value itself."""
    return [
        [max(value - low, 0) for value, low, _ in intervals],
        [max(high - value, 0) for value, _, high in intervals],
    ]
