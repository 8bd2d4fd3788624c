"""Which rows are kept, and which are rejected and why: nothing is lost without a count."""

from __future__ import annotations

from typing import Final

import ibis

from recsys import schema
from recsys.ingest.config import IngestConfig
from recsys.ingest.engine import Engine, count
from recsys.ingest.log import CANCELLATION, QUANTITY
from recsys.ingest.split import Cuts

K_CORE: Final = "k_core"
# Rejections that the config asks for; all others are faults of the row.
WANTED: Final = frozenset(
    {"dropped_event_type", "non_merchandise", "bot", "cancellation", "cancelled_purchase", K_CORE}
)
_HOUR: Final = 3_600_000_000
_PLACE: Final = ("file", "row")


def check(rows: ibis.Table, catalogue: ibis.Table | None, *, as_of: int) -> ibis.Table:
    """Give each row of the log its first reason for rejection, or none.

    In this order: the reasons that the row gives by itself (`missing_user_id`, `missing_item_id`,
    `missing_event_type` and `missing_timestamp`: null, or empty text; `invalid_timestamp`: unreadable, or of 1970 and
    before, which is how systems write "unknown"; `dropped_event_type`, `too_early`, `non_merchandise`,
    `not_positive_<column>`, `out_of_bounds_<column>`), then `future_timestamp` (after `as_of`), `unknown_item` (not in
    the catalogue) and `non_merchandise` (by the catalogue). What depends on other rows comes later: `bots`,
    `cancellations` and the k-core.

    Args:
        rows: as `Log.rows` gives them.
        catalogue: as `read_catalogue` gives it; None leaves out what it has a say in.
        as_of: microseconds since 1970; a later event cannot have happened yet.

    Returns:
        The same columns, with `item_idx` if there is a catalogue.
    """
    rules = [("future_timestamp", rows.timestamp > as_of)]
    if catalogue is not None:
        known = catalogue.select(known_id=schema.ITEM_ID, item_idx=schema.ITEM_IDX)
        rows = rows.left_join(known, rows.item_id == known.known_id)
        rules = [
            ("future_timestamp", rows.timestamp > as_of),
            ("unknown_item", rows.known_id.isnull()),
            ("non_merchandise", rows.item_idx.isnull()),
        ]
    reason = ibis.coalesce(rows.reason, ibis.cases(*((condition, reason) for reason, condition in rules)))
    checked = rows.mutate(reason=reason)
    return checked if catalogue is None else checked.drop("known_id", schema.ITEM_ID)


def bots(rows: ibis.Table, cuts: Cuts, config: IngestConfig) -> ibis.Table:
    """Rows of users who act faster than people do: more rows in a clock hour or a day (UTC) than the config allows.

    A bot loses all its rows of the part of the split in which it is found out, and of the parts after it; the parts
    before stay as they looked then.

    Args:
        rows: those without a fault so far.
        cuts: where the log is split.
        config: the limits.

    Returns:
        The columns `file` and `row`.
    """
    rows = rows.mutate(part=cuts.part(rows.timestamp))
    found: list[ibis.Table] = []
    for limit, window in ((config.bot_events_per_hour, _HOUR), (config.bot_events_per_day, 24 * _HOUR)):
        if limit:
            windows = rows.mutate(window=rows.timestamp // window).group_by([schema.USER_ID, "part", "window"])
            busy = windows.aggregate(n=lambda t: t.count()).filter(lambda t, limit=limit: t.n > limit)
            found.append(busy.select(schema.USER_ID, "part"))
    both = found[0] if len(found) == 1 else found[0].union(found[1])
    since = both.group_by(schema.USER_ID).aggregate(since=both.part.min())
    return rows.inner_join(since, schema.USER_ID).filter(lambda t: t.part >= t.since).select(*_PLACE)


def cancellations(rows: ibis.Table, cuts: Cuts) -> ibis.Table:
    """Cancellations, and the purchases that they take back.

    A cancellation takes back the user's last purchase of the item before it that is still standing, in the same part
    of the split; with quantities, pieces are taken back one by one and a purchase falls when none is left of it. So
    purchases and cancellations nest like brackets: with s the running sum of pieces bought minus pieces taken back, a
    purchase of q pieces is gone if s later falls back to where it was before, s − q, or below. Copies of a row count
    once, and go together.

    Args:
        rows: those without a fault so far, cancellations among them.
        cuts: where the log is split.

    Returns:
        The columns `file`, `row` and `reason` ("cancellation" or "cancelled_purchase").
    """
    purchase = schema.EVENT_TYPES.index("purchase")
    taking = rows.filter(rows.event_type == CANCELLATION)
    marked = taking.select(*_PLACE, reason=ibis.literal("cancellation"))
    pair = [schema.USER_ID, schema.ITEM_IDX]
    both = rows.filter(rows.event_type.isin([purchase, CANCELLATION]))
    both = both.semi_join(taking.select(pair).distinct(), pair)
    pieces = both[QUANTITY].abs() if QUANTITY in rows.columns else ibis.null("float64")
    both = both.mutate(part=cuts.part(both.timestamp), pieces=ibis.coalesce(pieces, 1.0))
    copies = [*pair, schema.EVENT_TYPE, schema.TIMESTAMP, "content"]
    lines = both.group_by([*copies, "part", "pieces"]).aggregate(file=both.file.min(), row=both.row.min())
    lines = lines.mutate(change=(lines.event_type == purchase).ifelse(lines.pieces, -lines.pieces))
    key = [*pair, "part"]
    # At one moment purchases come first, so that an order and its cancellation can share a time stamp.
    order = [schema.TIMESTAMP, ibis.desc(schema.EVENT_TYPE), "pieces", *_PLACE]
    until_now = ibis.window(group_by=key, order_by=order, preceding=None, following=0)
    lines = lines.mutate(standing=lines.change.sum().over(until_now))
    from_now = ibis.window(group_by=key, order_by=order, preceding=0, following=None)
    lines = lines.mutate(lowest=lines.standing.min().over(from_now))
    gone = lines.filter((lines.event_type == purchase) & (lines.lowest <= lines.standing - lines.change))
    taken_back = both.semi_join(gone, copies).select(*_PLACE, reason=ibis.literal("cancelled_purchase"))
    return marked.union(taken_back)


def outside_core(
    engine: Engine, rows: ibis.Table, cuts: Cuts, *, min_user_events: int, min_item_events: int
) -> ibis.Table:
    """Rows of training events outside the k-core: the largest part in which every user and item has so many events.

    Removing a user takes events from items, and the other way round, so both are removed until nothing changes.
    Validation and test have no say in it, and lose nothing to it.

    Returns:
        The columns `file` and `row`.
    """
    pair = [schema.USER_ID, schema.ITEM_IDX]
    training = rows.filter(cuts.part(rows.timestamp) == 0)
    events = training.select(*pair, schema.EVENT_TYPE, schema.TIMESTAMP).distinct()
    core = engine.keep("core_0", events.group_by(pair).aggregate(n=events.count()))
    n_before, step = count(core), 0
    while True:
        step += 1
        users = core.group_by(schema.USER_ID).aggregate(n=core.n.sum()).filter(lambda t: t.n >= min_user_events)
        items = core.group_by(schema.ITEM_IDX).aggregate(n=core.n.sum()).filter(lambda t: t.n >= min_item_events)
        smaller = core.semi_join(users, schema.USER_ID).semi_join(items, schema.ITEM_IDX)
        smaller = engine.keep(f"core_{step}", smaller)
        engine.drop(core)
        core, n_after = smaller, count(smaller)
        if n_after == n_before:
            return training.anti_join(core, pair).select(*_PLACE)
        n_before = n_after
