"""What HTML pages of this package share. A page needs nothing else: no server, no network, no second file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Okabe and Ito's palette, told apart with any kind of colour vision.
BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
GREEN: Final = "#009E73"
PINK: Final = "#CC79A7"
ORANGE: Final = "#E69F00"
SKY: Final = "#56B4E9"
GREY: Final = "#555555"
INK: Final = "#1c2430"
LINE: Final = "#dde2e8"

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
.verdict.bad { border-color: #D55E00; }
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
th { font-weight: 600; font-size: .9rem; white-space: normal; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; padding-left: 0;
  white-space: normal; }
tr.ours td { font-weight: 600; } tr.ours td small { font-weight: 400; }
td small { display: block; font-size: .75rem; }
.plot { margin: .5rem 0 1rem; }
.pairs td:first-child { padding-right: 2rem; }
details { border: 1px solid var(--line); border-radius: 4px; margin: .6rem 0; padding: 0 .9rem; }
summary { cursor: pointer; padding: .55rem 0; font-weight: 600; }
pre { background: var(--panel); padding: .75rem; overflow-x: auto; font-size: .8rem; line-height: 1.45; }
.lists { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 0 1.5rem;
  margin-bottom: .5rem; }
.lists h4 { font-size: .9rem; margin: .5rem 0 .2rem; }
.lists ul, .lists ol { margin: 0 0 .5rem; padding-left: 1.6rem; font-size: .86rem; line-height: 1.4; }
.lists li { margin: .15rem 0; overflow-wrap: anywhere; }
.hit { background: #d9f0e8; color: #00513b; font-weight: 600; border-radius: 3px; padding: 0 .25rem; }
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


def page(title: str, body: str) -> str:
    """A whole page.

    Args:
        title: plain text.
        body: HTML, of which all that is not this package's own is escaped.
    """
    from plotly.offline import get_plotlyjs

    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def new_figure() -> go.Figure:
    """An empty Plotly figure. Plotly is loaded here, so that who draws nothing need not wait for it."""
    import plotly.graph_objects as go

    return go.Figure()


def plot_block(figure: go.Figure, name: str, *, height: float = 24) -> str:
    """The HTML of a plot.

    Args:
        figure: what to draw; its look is set here, but for margins that it has.
        name: id of its element, unique in the page.
        height: of the plot, in rem.
    """
    figure.update_layout(
        template="none",
        font={"family": "system-ui, Segoe UI, Roboto, DejaVu Sans, sans-serif", "size": 13, "color": INK},
        margin={"l": 56, "r": 12, "t": 12, "b": 48} | figure.layout.margin.to_plotly_json(),
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        dragmode=False,
    )
    figure.update_xaxes(gridcolor=LINE, fixedrange=True, automargin=True)
    figure.update_yaxes(gridcolor=LINE, fixedrange=True, automargin=True)
    body = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,  # plotly's own is random
        config={"displayModeBar": False, "responsive": True},
    )
    return f'<div class="plot" style="height: {height:g}rem">{body}</div>'


def pairs_table(pairs: Iterable[tuple[str, str]]) -> str:
    """A table of names and values, both HTML."""
    lines = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in pairs)
    return f'<div class="scroll"><table class="pairs"><tbody>{lines}</tbody></table></div>'


def counts_table(counts: Mapping[str, Any], heading: str = "") -> str:
    """Plain numbers in one table, each group of numbers under a heading of its own."""
    plain = [(words(name), number(value)) for name, value in counts.items() if not isinstance(value, Mapping)]
    groups = [(f"{heading}{words(name)}", value) for name, value in counts.items() if isinstance(value, Mapping)]
    parts = [pairs_table(plain)] if plain else []
    for name, group in groups:
        parts.append(
            f"<h3>{name[:1].upper()}{name[1:]}</h3>{counts_table(group, f'{name}: ') if group else '<p>none</p>'}"
        )
    return "".join(parts)


def words(name: str) -> str:
    """A key as words, escaped."""
    return escape(str(name).replace("_", " "))


def number(value: object) -> str:
    """A number as people read it, anything else as text, escaped."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return escape(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
