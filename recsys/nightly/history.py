"""The page about all nights of a shop: quality, data, drift and cost from night to night, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

from recsys.nightly.night import Night
from recsys.page import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    new_figure,
    page,
    pairs_table,
    plot_block,
    words,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Nights in the plots and in the table, the latest ones.
DRAWN, LISTED = 400, 60
# Symbols say the same as colours.
STATES: Final[Mapping[str, tuple[str, str]]] = {
    "promoted": (GREEN, "circle"),
    "kept_out": (ORANGE, "diamond"),
    "held": (VERMILION, "x"),
    "failed": (PINK, "triangle-down"),
    "abandoned": (GREY, "triangle-left"),
    "running": (SKY, "circle-open"),
}
COLOURS: Final = (BLUE, VERMILION, GREEN, ORANGE, PINK, SKY, GREY)
DATA: Final = (
    "events_per_day",
    "users_per_day",
    "new_item_share",
    "repeated_share",
    "quarantined_share",
    "hours_since_last_event",
)


def write_history(nights: Sequence[Night], live: str | None, out: Path) -> Path:
    """Write the page, whole or not at all.

    Args:
        nights: all of them, the earliest first.
        live: name of the night that is served.
        out: the file.
    """
    drawn = nights[-DRAWN:]
    parts = [_summary(nights, live), _quality(drawn), _data(drawn), _drift(drawn), _cost(drawn), _table(nights, live)]
    unfinished = out.with_name(f".{out.name}.tmp")
    unfinished.write_text(page("Nights", "\n".join(part for part in parts if part)), encoding="utf-8")
    unfinished.replace(out)
    return out


def _summary(nights: Sequence[Night], live: str | None) -> str:
    counts = [(words(state), str(sum(night.state == state for night in nights))) for state in STATES]
    served = (
        f"<p>Served is the night <strong>{escape(live)}</strong>.</p>" if live else "<p>No night is served yet.</p>"
    )
    last = nights[-1] if nights else None
    why = f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in _why(last))}</ul>" if last and _why(last) else ""
    said = f"<p>The last one, {escape(last.name)}, is {words(last.state)}.</p>{why}" if last else ""
    return f"<h1>Nights</h1>{served}{said}{pairs_table([each for each in counts if each[1] != '0'])}"


def _quality(nights: Sequence[Night]) -> str:
    """The primary metric of every model, and what became of each night."""
    measured = [night for night in nights if night.metrics]
    if not measured:
        return ""
    names = list(dict.fromkeys(name for night in measured for name in night.metrics))
    figure = _lines(measured, names, lambda night, name: night.metrics.get(name))
    lowest = min(min(night.metrics.values()) for night in measured)
    for state, (colour, symbol) in STATES.items():
        some = [night for night in nights if night.state == state]
        if some:
            figure.add_scatter(
                x=[night.as_of for night in some],
                y=[lowest] * len(some),
                name=state.replace("_", " "),
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 8},
                text=[escape("; ".join(_why(night))[:300]) for night in some],
                hovertemplate="%{x}<br>%{text}",
            )
    return (
        "<section><h2>Quality</h2><p>The primary metric on each night's fresh window, all models on the same users. "
        "Windows differ from night to night, so compare lines at one night, not one line with itself. The lowest row "
        f"of marks says what became of the night.</p>{plot_block(figure, 'quality', height=28)}</section>"
    )


def _data(nights: Sequence[Night]) -> str:
    """What the data checks looked at; findings are marked."""
    blocks = []
    found_in = {str(finding["figure"]) for night in nights for finding in night.findings if finding.get("figure")}
    for place, name in enumerate([*DATA, *sorted(found_in.difference(DATA))]):
        some = [night for night in nights if name in night.figures]
        if not some:
            continue
        figure = _lines(some, [name], lambda night, name: night.figures.get(name))
        found = [night for night in some if any(finding.get("figure") == name for finding in night.findings)]
        if found:
            figure.add_scatter(
                x=[night.as_of for night in found],
                y=[night.figures[name] for night in found],
                name="found",
                mode="markers",
                marker={"color": VERMILION, "symbol": "x", "size": 10},
            )
        blocks.append(f"<h3>{words(name)}</h3>{plot_block(figure, f'data-{place}', height=12)}")
    return f"<section><h2>Data</h2>{''.join(blocks)}</section>" if blocks else ""


def _drift(nights: Sequence[Night]) -> str:
    """How far each night's student, events and lists were from those that were live."""
    some = [night for night in nights if night.drift]
    if not some:
        return ""
    names = sorted({name for night in some for name in night.drift})
    same, moved = ([name for name in names if name.startswith("psi.") is psi] for psi in (False, True))
    blocks = [
        f"<p>{said}</p>{plot_block(_lines(some, of, lambda night, name: night.drift.get(name)), place, height=18)}"
        for said, of, place in (
            ("What stayed: 1 is all of it.", same, "drift-same"),
            (
                "Population stability index of the events: by custom 0.1 is a change, 0.25 a large one.",
                moved,
                "drift-psi",
            ),
        )
        if of
    ]
    return f"<section><h2>Drift against the live night</h2>{''.join(blocks)}</section>"


def _cost(nights: Sequence[Night]) -> str:
    """Minutes and memory by stage."""
    some = [night for night in nights if night.stages]
    if not some:
        return ""
    names = list(dict.fromkeys(stage.stage for night in some for stage in night.stages))
    minutes = new_figure()
    for place, name in enumerate(names):
        minutes.add_bar(
            x=[night.as_of for night in some],
            y=[sum(stage.seconds for stage in night.stages if stage.stage == name) / 60 for night in some],
            name=name,
            marker={"color": COLOURS[place % len(COLOURS)], "pattern": {"shape": "/" if place >= len(COLOURS) else ""}},
        )
    minutes.update_layout(barmode="stack")
    minutes.update_yaxes(title="minutes")
    peak = new_figure()
    peak.add_scatter(
        x=[night.as_of for night in some],
        y=[max(stage.peak_mb for stage in night.stages) for night in some],
        name="largest stage",
        mode="lines+markers",
        line={"color": BLUE},
        text=[max(night.stages, key=lambda stage: stage.peak_mb).stage for night in some],
        hovertemplate="%{y:.0f} MiB in %{text}",
    )
    peak.update_yaxes(title="MiB", rangemode="tozero")
    return (
        f"<section><h2>Time and memory</h2>{plot_block(minutes, 'minutes')}{plot_block(peak, 'memory', height=14)}"
        "</section>"
    )


def _table(nights: Sequence[Night], live: str | None) -> str:
    rows = []
    for night in reversed(nights[-LISTED:]):
        state = "live" if night.name == live else words(night.state)
        minutes = sum(stage.seconds for stage in night.stages) / 60
        why = "<br>".join(escape(line) for line in _why(night))
        ours = ' class="ours"' if night.name == live else ""
        rows.append(
            f"<tr{ours}><td>{escape(night.name)}</td><td>{state}</td><td>{minutes:.1f}</td>"
            f'<td style="text-align: left; white-space: normal">{why}</td></tr>'
        )
    head = "<tr><th>night</th><th>state</th><th>minutes</th><th style='text-align: left'>why</th></tr>"
    return (
        f'<section><h2>The last {min(len(nights), LISTED)} nights</h2><div class="scroll"><table class="figures">'
        f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _why(night: Night) -> list[str]:
    """What a reader should know of it, a sentence each."""
    warned = [str(finding["message"]) for finding in night.findings if finding.get("level") == "warn"]
    return [*([night.error] if night.error else []), *night.against, *night.notes, *warned]


def _lines(nights: Sequence[Night], names: Sequence[str], value: Callable[[Night, str], float | None]) -> go.Figure:
    figure = new_figure()
    for place, name in enumerate(names):
        figure.add_scatter(
            x=[night.as_of for night in nights],
            y=[value(night, name) for night in nights],
            name=escape(name.replace("_", " ")),  # Plotly reads a little HTML in it
            mode="lines+markers",
            line={
                "color": COLOURS[place % len(COLOURS)],
                "dash": ("solid", "dash", "dot")[place // len(COLOURS) % 3],
                "width": 2,
            },
            marker={"size": 5},
        )
    return figure
