"""From events to one ordered sequence per user: k-core, sessions, ordered lists."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import ibis

from recsys import schema
from recsys.ingest.clean import USER_KEY
from recsys.ingest.engine import count, drop
from recsys.ingest.split import Cuts

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend

_PAIR = (USER_KEY, schema.ITEM_IDX)


def k_core(connection: Backend, events: ibis.Table, *, min_user_events: int, min_item_events: int) -> ibis.Table:
    """The largest part of the log in which every user and every item has that many events.

    Removing a user takes events from items, and the other way round, so both are removed until nothing changes.

    Returns:
        The pairs `user_key`, `item_idx` whose events stay.
    """
    core = connection.create_table("core_0", events.group_by(*_PAIR).aggregate(n=events.count()))
    for step in itertools.count(1):
        users = core.group_by(USER_KEY).aggregate(n=core.n.sum()).filter(lambda t: t.n >= min_user_events)
        items = core.group_by(schema.ITEM_IDX).aggregate(n=core.n.sum()).filter(lambda t: t.n >= min_item_events)
        smaller = connection.create_table(
            f"core_{step}", core.semi_join(users, USER_KEY).semi_join(items, schema.ITEM_IDX)
        )
        unchanged = count(smaller) == count(core)
        drop(connection, core)
        core = smaller
        if unchanged:
            break
    return core.select(*_PAIR)


def number_sessions(events: ibis.Table, *, gap: int) -> ibis.Table:
    """Add `session`, counted 0, 1, … per user in the order in which sessions start.

    Events of one `session_id` are one session. Where there is none, a pause of more than `gap` microseconds after the
    user's previous such event starts a new one.
    """
    has_own = schema.SESSION_ID in events.columns
    keys = [schema.USER_IDX, schema.SESSION_ID] if has_own else [schema.USER_IDX]
    previous = events.timestamp.lag().over(group_by=keys, order_by=schema.TIMESTAMP)
    is_apart = (events.timestamp - previous > gap).fill_null(False)
    if has_own:
        is_apart &= events.session_id.isnull()
    events = events.mutate(is_apart=is_apart)
    # A range, not rows: events of equal time are in one session, whichever of them comes first.
    until_now = ibis.range_window(group_by=keys, order_by=schema.TIMESTAMP, preceding=None, following=0)
    events = events.mutate(session=events.is_apart.cast("int32").sum().over(until_now)).drop("is_apart")
    if not has_own:
        return events
    events = events.mutate(start=events.timestamp.min().over(group_by=[*keys, "session"]))
    by_start = ibis.dense_rank().over(group_by=schema.USER_IDX, order_by=["start", schema.SESSION_ID, "session"])
    return events.mutate(session=by_start).drop("start")


def sequences(events: ibis.Table, cuts: Cuts, *, seed: int) -> ibis.Table:
    """One row per user, in the order of user_idx.

    Events are ordered by time; inside equal times by `position` where there is one, else at random: by a hash of the
    seed and the event itself, so that neither the log's order nor another user's events have a say in it.

    Args:
        events: `user_idx`, `user_id`, `item_idx`, `item_id`, `event_type`, `timestamp`, `session`, maybe `position`.
        cuts: where to split.
        seed: of the random order.

    Returns:
        The columns of `schema.SEQUENCES`, `train_end`, `valid_end` and `n_sessions`.
    """
    order = {schema.TIMESTAMP: events.timestamp}
    if schema.POSITION in events.columns:
        # Engines differ in where they sort a null inside a struct, so there is none.
        order[schema.POSITION] = events.position.fill_null(2**63 - 1)
    text = ibis.literal(str(seed))
    for name in (schema.USER_ID, schema.ITEM_ID, schema.EVENT_TYPE, schema.TIMESTAMP):
        text = text + "|" + events[name].cast("string")
    order["tie"] = text.hexdigest("md5")[:12]  # 48 bits are enough for the few events of one user and moment
    lists = [name for name in schema.SEQUENCES.names if name != schema.USER_IDX]
    # Structs sort by their fields in turn: the order's come first, and the others settle what little is left.
    fields = order | {name: events[name] for name in lists if name not in order}
    ordered = events.group_by(schema.USER_IDX).aggregate(
        events=ibis.struct(fields).collect().sort(), n_sessions=events.session.max() + 1, **cuts.ends(events)
    )
    columns = {name: ordered.events.map(lambda event, name=name: event[name]) for name in lists}
    return ordered.select(schema.USER_IDX, "train_end", "valid_end", "n_sessions", **columns).order_by(schema.USER_IDX)
