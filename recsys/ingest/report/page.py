"""The profile of a dataset as a page that people read: the data section of the report, or a page of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from html import escape
from typing import TYPE_CHECKING, Any, Final

from recsys import __version__
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
    number,
    page,
    pairs_table,
    plot_block,
    words,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Neighbours in a stack differ in lightness too.
COLORS: Final = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILION, GREY)
WEEKLY_AFTER: Final = 400  # days that still are a bar each
EDGE_WEEKS: Final = 8  # at the log's ends, where old items seem new and living ones gone
LABEL: Final = 22  # characters that fit beside the bars on a phone

TEXTS: Final[Mapping[str, str]] = {
    "title": "a title of its own",
    "brand": "a brand",
    "category": "a category",
    "price": "a price",
    "description": "a description",
}
QUANTILES: Final[Mapping[str, str]] = {
    "p50": "median",
    "mean": "mean",
    "p75": "75&nbsp;%",
    "p99": "99&nbsp;%",
    "max": "most",
}
MIXES: Final[Mapping[str, str]] = {
    "event_mix": "event types",
    "history_lengths": "events of a user",
    "hours": "hours of the day",
    "categories": "categories",
}
WEEKDAYS: Final = ("Mondays", "Tuesdays", "Wednesdays", "Thursdays", "Fridays", "Saturdays", "Sundays")


def data_page(profile: Mapping[str, Any], drift: Mapping[str, Any] | None = None, *, title: str) -> str:
    """A page about the data alone. The same profile gives the same bytes.

    Args:
        profile: as `Profile.finish` gives it, or read from `profile.json`.
        drift: as `recsys.ingest.profile.drift` gives it.
        title: the page's, plain text.
    """
    heading = f'<header>\n<h1>{escape(title)}</h1>\n<p class="soft">recsys {__version__}</p>\n</header>\n'
    return page(title, heading + data_section(profile, drift))


def data_section(profile: Mapping[str, Any], drift: Mapping[str, Any] | None = None) -> str:
    """The data section of a page, as HTML.

    Args:
        profile: as `Profile.finish` gives it, or read from `profile.json`.
        drift: as `recsys.ingest.profile.drift` gives it; nothing is compared without it.
    """
    parts = [_alarms(drift), _summary(profile)]
    if profile["events"]["total"]:
        parts += [_activity(profile), _event_mix(profile), _hours(profile), _lengths(profile)]
    parts += [_catalogue(profile), _churn(profile), _categories(profile), _rows(profile), _changes(drift)]
    parts.append(f"<details><summary>All counts</summary>{counts_table(_all_counts(profile))}</details>")
    return f'<section>\n<h2 id="data">Data</h2>\n{"".join(parts)}\n</section>\n'


def _alarms(drift: Mapping[str, Any] | None) -> str:
    if drift is None:
        return ""
    if alarms := drift["alarms"]:
        n = len(alarms)
        head = "One thing in the data needs a look" if n == 1 else f"{n} things in the data need a look"
        points = "".join(f'<li><span class="mark worse">!</span>{escape(alarm["words"])}</li>\n' for alarm in alarms)
        return f'<div class="verdict bad">\n<h2 class="worse">{head}</h2>\n<ul>{points}</ul>\n</div>\n'
    if not drift["previous"]:
        return '<p class="soft">There is no earlier run to compare with.</p>\n'
    changes = [
        f"{number(part['current'])} {name} ({_percent(part['ratio'] - 1)})"
        for name, part in drift.get("volume", {}).items()
    ]
    return (
        '<div class="verdict">\n<h2 class="better">Nothing unusual since the run before</h2>\n'
        f"<p>{', '.join(changes)}</p>\n</div>\n"
    )


def _summary(profile: Mapping[str, Any]) -> str:
    events, items, days = profile["events"], profile["items"], profile["days"]
    if not events["total"]:
        return f"<p>No event; {items['total']:,} items.</p>\n"
    first, last, parts = days["date"][0], days["date"][-1], profile["parts"]
    when = f"on {_day(first)}" if first == last else f"from {_day(first)} to {_day(last)}"
    return (
        f"<p><b>{events['total']:,} events</b> of <b>{profile['users']['total']:,} users</b> in "
        f"{profile['sessions']['total']:,} sessions, {when}. {items['with_event']:,} of the catalogue's "
        f"<b>{items['total']:,} items</b> have an event. {parts['train']['events']:,} events to learn from, "
        f"{parts['valid']['events']:,} to tune on, {parts['test']['events']:,} to test on.</p>\n"
    )


def _activity(profile: Mapping[str, Any]) -> str:
    days = profile["days"]
    n_days = (date.fromisoformat(days["date"][-1]) - date.fromisoformat(days["date"][0])).days + 1
    weekly = n_days > WEEKLY_AFTER
    plot = new_figure()
    for (name, counts), color in zip(days["events"].items(), _colors(len(days["events"])), strict=True):
        if not any(counts):
            continue
        bars = _by_week(days["date"], counts) if weekly else dict(zip(days["date"], counts, strict=True))
        plot.add_bar(
            x=list(bars),
            y=list(bars.values()),
            name=_label(name),
            marker={"color": color, "line": {"width": 0}},
            hovertemplate="%{x|%a %d %b %Y}: %{y:,}",
        )
    plot.update_layout(barmode="stack", bargap=0.1, hovermode="x unified")
    _date_axis(plot, days["date"][0], step=7 if weekly else 1, n_steps=n_days // (7 if weekly else 1))
    plot.update_yaxes(title=f"events a {'week' if weekly else 'day'}", tickformat=",")
    return (
        f"<h3>Activity by {'week' if weekly else 'day'}</h3>\n<p>{_gaps(days, n_days)}</p>\n"
        f"{plot_block(plot, 'data-activity', height=20)}\n"
    )


def _gaps(days: Mapping[str, Any], n_days: int) -> str:
    missing = days["n_without_events"]
    if not missing:
        every = "All events are of one day" if n_days == 1 else f"Each of the {n_days:,} days has an event"
        return f"{every} (days are those of UTC)."
    by_weekday = [0] * 7
    for gap in days["gaps"]:
        first = date.fromisoformat(gap["first"]).weekday()
        for weekday in range(7):
            by_weekday[weekday] += (gap["days"] + 6 - (weekday - first) % 7) // 7
    most = max(range(7), key=by_weekday.__getitem__)
    text = f"{missing:,} of {n_days:,} days have no event"
    if missing > 1 and by_weekday[most] > missing / 2:
        text += f", {by_weekday[most]} of them {WEEKDAYS[most]}"
    longest = max(days["gaps"], key=lambda gap: gap["days"])
    if longest["days"] > 1:
        text += f"; the longest gap is from {_day(longest['first'])} to {_day(longest['last'])}, {longest['days']} days"
    return f"{text} (days are those of UTC)."


def _event_mix(profile: Mapping[str, Any]) -> str:
    events = profile["events"]
    found = {name: n for name, n in events["by_type"].items() if n}
    if len(found) == 1:
        return f"<h3>Event types</h3>\n<p>All events are of the type “{words(next(iter(found)))}”.</p>\n"
    colors = [color for color, n in zip(_colors(len(events["by_type"])), events["by_type"].values(), strict=True) if n]
    shares = [n / events["total"] for n in found.values()]
    texts = [f"{_share(n / events['total'])} · {n:,}" for n in found.values()]
    return f"<h3>Event types</h3>\n{_bars(found, shares, texts, 'data-event-types', colors)}\n"


def _hours(profile: Mapping[str, Any]) -> str:
    total = profile["events"]["total"]
    plot = new_figure()
    plot.add_bar(
        x=list(profile["hours"]),
        y=[n / total for n in profile["hours"].values()],
        marker={"color": BLUE},
        hovertemplate="%{x}:00–%{x}:59: %{y:.1%}<extra></extra>",
    )
    plot.update_layout(bargap=0.1, showlegend=False)
    plot.update_xaxes(type="category", title="hour of the day, UTC", tickangle=0, dtick=3)
    plot.update_yaxes(title="share of events", tickformat=".0%")
    return f"<h3>Hours of the day</h3>\n{plot_block(plot, 'data-hours', height=15)}\n"


def _lengths(profile: Mapping[str, Any]) -> str:
    of_user = profile["users"]["events"]
    histogram = of_user["histogram"]
    plot = new_figure()
    plot.add_bar(
        x=[_compact(int(name.split("-")[0])) for name in histogram],
        y=list(histogram.values()),
        customdata=[name.replace("-", "–") for name in histogram],
        marker={"color": BLUE},
        hovertemplate="%{customdata} events: %{y:,} users<extra></extra>",
    )
    plot.update_layout(bargap=0.1, showlegend=False)
    plot.update_xaxes(type="category", title="events of a user, at least", tickangle=0)
    plot.update_xaxes(dtick=1 if len(histogram) < 10 else 2)
    plot.update_yaxes(title="users", tickformat=",")
    tables = {
        "events / user": of_user,
        "sessions / user": profile["users"]["sessions"],
        "events / session": profile["sessions"]["events"],
        "words / title": profile["catalogue"]["title_words"],
    }
    head = "".join(f"<th>{title}</th>" for title in QUANTILES.values())
    lines = "".join(
        f"<tr><td>{name}</td>{''.join(f'<td>{_short(summary[key])}</td>' for key in QUANTILES)}</tr>\n"
        for name, summary in tables.items()
        if summary
    )
    return (
        f"<h3>Length of histories</h3>\n<p>Half of the users have at most {of_user['p50']:,} "
        f"event{'' if of_user['p50'] == 1 else 's'}; one in a hundred has {of_user['p99']:,} or more.</p>\n"
        f"{plot_block(plot, 'data-lengths', height=18)}\n"
        f'<div class="scroll"><table class="figures"><thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>{lines}</tbody></table></div>\n"
    )


def _catalogue(profile: Mapping[str, Any]) -> str:
    catalogue, concentration, new = profile["catalogue"], profile["concentration"], profile["new_items"]
    if not profile["items"]["total"]:
        return ""
    shares = [catalogue["coverage"][name] for name in TEXTS]
    pairs = [
        ("in stock", _share(catalogue["in_stock"]) if catalogue["in_stock_known"] else "not said"),
        (f"items first seen in the last {new['days']} days", number(new["items"])),
        ("… among the items with an event in these days", _share(new["share_of_active_items"])),
        ("… their share of the events of these days", _share(new["share_of_events"])),
        ("events on the most popular 1 % of items", _share(concentration["top_1_percent"])),
        ("events on the most popular 10 % of items", _share(concentration["top_10_percent"])),
        ("Gini coefficient (0: all items alike, 1: one has all)", _or_dash(concentration["gini"])),
    ]
    return (
        "<h3>Catalogue</h3>\n<p>How many items say what about themselves. The models read the text; an item "
        "without a title is called by its brand and category, or by its id.</p>\n"
        f"{_bars(TEXTS.values(), shares, map(_share, shares), 'data-coverage')}\n{pairs_table(pairs)}\n"
    )


def _churn(profile: Mapping[str, Any]) -> str:
    days = profile["days"]
    if not days["date"]:
        return ""
    plot = new_figure()
    highest = 0
    for name, key, color, sign in (
        ("first event", "items_first_seen", GREEN, 1),
        ("last event", "items_last_seen", VERMILION, -1),
    ):
        weeks = _by_week(days["date"], days[key])
        ordinary = list(weeks.values())[EDGE_WEEKS:] if sign > 0 else list(weeks.values())[:-EDGE_WEEKS]
        highest = max(highest, *ordinary, 0)
        plot.add_bar(
            x=list(weeks),
            y=[sign * n for n in weeks.values()],
            customdata=list(weeks.values()),
            name=name,
            marker={"color": color},
            hovertemplate="%{customdata:,} items",
        )
    plot.update_layout(barmode="relative", bargap=0.1, hovermode="x unified")
    weeks = _by_week(days["date"], days["items_first_seen"])
    _date_axis(plot, next(iter(weeks)), step=7, n_steps=len(weeks))
    plot.update_yaxes(title="items a week", zeroline=True, zerolinecolor=INK, tickformat=",")
    cut = ""
    if highest:
        plot.update_yaxes(range=[-1.2 * highest, 1.2 * highest])
        cut = ": these bars are cut off where they are higher than all others"
    return (
        "<h3>Items that come and go</h3>\n<p>Upwards: items with their first event in that week; downwards: items with "
        f"their last. The log's own beginning and end look like a coming and a going of all items{cut}.</p>\n"
        f"{plot_block(plot, 'data-churn', height=18)}\n"
    )


def _categories(profile: Mapping[str, Any]) -> str:
    categories, total = profile["categories"], profile["events"]["total"]
    if not categories or not total:
        return ""
    mix = dict(categories["top"])
    rest = {"all others": categories["other"], "without a category": categories["none"]}
    names = [*mix, *(name for name, n in rest.items() if n)]
    counts = [*mix.values(), *(n for n in rest.values() if n)]
    colors = [BLUE] * len(mix) + [GREY] * (len(names) - len(mix))
    texts = [f"{_share(n / total)} · {n:,}" for n in counts]
    return (
        f"<h3>Categories</h3>\n<p>Events by top-level category; there are {categories['n']:,}.</p>\n"
        f"{_bars(names, [n / total for n in counts], texts, 'data-categories', colors)}\n"
    )


def _rows(profile: Mapping[str, Any]) -> str:
    counts = profile["counts"]
    rows_in = counts.get("rows_in") or 0
    fates = [
        (reason, n, color)
        for fate, color in (("quarantined", VERMILION), ("merged", SKY))
        for reason, n in sorted(dict(counts.get(fate, {})).items(), key=lambda pair: (-pair[1], pair[0]))
        if n
    ]
    if not rows_in:
        return ""
    kept = counts.get("kept", 0)
    text = f"{rows_in:,} rows came; {kept:,} ({_share(kept / rows_in)}) became events."
    if not fates:
        return f"<h3>Rows put aside</h3>\n<p>{text}</p>\n"
    plot = _bars(
        [reason for reason, _, _ in fates],
        [n / rows_in for _, n, _ in fates],
        [f"{_share(n / rows_in)} · {n:,}" for _, n, _ in fates],
        "data-rows",
        [color for _, _, color in fates],
    )
    return (
        f"<h3>Rows put aside</h3>\n<p>{text} The others by reason, as a share of all rows; those in light blue tell of "
        f"an event that another row tells already.</p>\n{plot}\n"
    )


def _changes(drift: Mapping[str, Any] | None) -> str:
    if drift is None or not drift["previous"]:
        return ""
    lines = [
        (words(name), number(part["previous"]), number(part["current"]), _percent(part["ratio"] - 1))
        for name, part in drift.get("volume", {}).items()
    ]
    shares = {
        "share of events: {}": drift.get("event_mix", {}).get("types", {}),
        "items with {}": drift.get("coverage", {}),
        "rows put aside: {}": drift.get("quarantined", {}),
        "rows merged: {}": drift.get("merged", {}),
    }
    lines += [
        (heading.format(words(name)), _share(part["previous"]), _share(part["current"]), _points(part))
        for heading, group in shares.items()
        for name, part in group.items()
    ]
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>\n" for line in lines)
    pairs = [
        (f"change of {title} (PSI)", f"{drift[name]['psi']:.3f}") for name, title in MIXES.items() if name in drift
    ]
    if items := drift.get("items"):
        pairs += [
            ("items that are new, about", _share(items["added_share"])),
            ("items that are gone, about", _share(items["gone_share"])),
        ]
    return (
        "<details><summary>Compared with the run before</summary>\n"
        '<div class="scroll"><table class="figures"><thead><tr><th></th><th>before</th><th>now</th><th>change</th></tr>'
        f"</thead>\n<tbody>{body}</tbody></table></div>\n"
        "<p>PSI, the population stability index, is 0 where a mix is as it was; from 0.1 on it has changed, from 0.25 "
        f"on a lot.</p>\n{pairs_table(pairs)}</details>\n"
    )


def _all_counts(profile: Mapping[str, Any]) -> dict[str, Any]:
    parts = {f"{part} {what}": n for part, of in profile["parts"].items() for what, n in of.items()}
    return {**profile["counts"], "events": profile["events"]["by_type"], "parts": parts}


def _bars(
    names: Iterable[str],
    shares: Iterable[float | None],
    texts: Iterable[str],
    element: str,
    colors: Iterable[str] | None = None,
) -> str:
    """Horizontal bars of shares, the first on top."""
    values = [share or 0.0 for share in shares]
    places = list(range(len(values)))
    plot = new_figure()
    plot.add_bar(
        x=values,
        y=places,
        orientation="h",
        text=list(texts),
        textposition="outside",
        cliponaxis=False,
        marker={"color": list(colors) if colors else BLUE},
        hoverinfo="skip",
    )
    plot.update_layout(showlegend=False, bargap=0.25, margin={"l": 8, "t": 4, "b": 8})
    # Room for the text beside the longest bar, on a phone too.
    plot.update_xaxes(range=[0, (max(values) or 1) * 2], visible=False)
    plot.update_yaxes(
        range=[len(values) - 0.5, -0.5],
        tickvals=places,
        ticktext=[_label(name) for name in names],
        ticks="outside",
        tickcolor="rgba(0,0,0,0)",  # they keep the names away from the bars
        zeroline=False,
        showgrid=False,
    )
    return plot_block(plot, element, height=1 + 1.8 * len(values))


def _date_axis(plot: go.Figure, first: str, *, step: int, n_steps: int) -> None:
    """Dates below bars that stand `step` days apart; never an hour of the day."""
    plot.update_layout(margin={"b": 40}, legend={"traceorder": "normal"})
    plot.update_xaxes(type="date", tickformat="%-d %b\n%Y", tick0=first)
    if n_steps <= 10:
        plot.update_xaxes(dtick=step * 86_400_000 * (1 if n_steps <= 5 else 2))


def _by_week(dates: Sequence[str], counts: Sequence[int]) -> dict[str, int]:
    """Sums by the week's Monday."""
    weeks: dict[str, int] = {}
    for text, n in zip(dates, counts, strict=True):
        day = date.fromisoformat(text)
        monday = (day - timedelta(days=day.weekday())).isoformat()
        weeks[monday] = weeks.get(monday, 0) + n
    return weeks


def _colors(n: int) -> list[str]:
    return [COLORS[place % len(COLORS)] for place in range(n)]


def _label(name: str) -> str:
    """A name beside a bar. Plotly reads a little HTML in it, so it is escaped."""
    name = name.replace("_", " ")
    return escape(name if len(name) <= LABEL else f"{name[: LABEL - 1]}…")


def _compact(n: int) -> str:
    """A power of two in few characters: 512, 1k, 2k, …, 1M."""
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if n >= size:
            return f"{n // size}{unit}"
    return str(n)


def _day(iso: str) -> str:
    day = date.fromisoformat(iso)
    return f"{day.day} {day:%B %Y}"


def _share(share: float | None) -> str:
    if share is None:
        return "–"
    return f"{100 * share:.1f} %" if share >= 0.0005 or not share else "< 0.1 %"


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _percent(change: float) -> str:
    return f"{_signed(100 * change)} %"


def _points(part: Mapping[str, float]) -> str:
    return f"{_signed(100 * (part['current'] - part['previous']))} points"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−") if abs(value) >= 0.05 else "±0"


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
