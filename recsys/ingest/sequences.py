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
    if schema.SESSION_ID not in events.columns:
        return _sessions_by_gap(events, gap)
    # Windows are dear, so only the events that need them go through them. No session_id is empty: the name is free.
    unnamed = _sessions_by_gap(events.filter(events.session_id.isnull()).mutate(session_id=ibis.literal("")), gap)
    named = events.filter(events.session_id.notnull()).mutate(session=ibis.literal(0, "int64"))
    events = named.union(unnamed.select(named.columns))
    key = [schema.USER_IDX, schema.SESSION_ID, "session"]
    starts = events.group_by(key).aggregate(start=events.timestamp.min())
    number = ibis.row_number().over(group_by=schema.USER_IDX, order_by=["start", schema.SESSION_ID, "session"])
    numbers = starts.mutate(number=number).drop("start")
    return events.inner_join(numbers, key).drop("session").rename(session="number")


def _sessions_by_gap(events: ibis.Table, gap: int) -> ibis.Table:
    previous = events.timestamp.lag().over(group_by=schema.USER_IDX, order_by=schema.TIMESTAMP)
    events = events.mutate(is_first=(events.timestamp - previous > gap).fill_null(False))
    # A range, not rows: events of equal time are in one session, whichever of them comes first.
    until_now = ibis.range_window(group_by=schema.USER_IDX, order_by=schema.TIMESTAMP, preceding=None, following=0)
    return events.mutate(session=events.is_first.cast("int64").sum().over(until_now)).drop("is_first")


def random_key(events: ibis.Table, *, seed: int) -> ibis.Value:
    """A text to order events of equal time by: a hash of the seed and the event itself.

    Neither the log's order nor another user's events have a say in it, and it is the same on every engine.

    Args:
        events: `user_id`, `item_id`, `event_type`, `timestamp`.
        seed: another seed gives another order.
    """
    text = ibis.literal(str(seed))
    for name in (schema.USER_ID, schema.ITEM_ID, schema.EVENT_TYPE, schema.TIMESTAMP):
        text = text + "|" + events[name].cast("string")
    return text.hexdigest("md5")[:12]  # 48 bits are enough for the few events of one user and moment


def sequences(events: ibis.Table, cuts: Cuts) -> ibis.Table:
    """One row per user, in the order of user_idx.

    Events are ordered by time, inside equal times by `position` where there is one, then by `random_key`.

    Args:
        events: `user_idx`, `item_idx`, `event_type`, `timestamp`, `session`, `random_key`, maybe `position`.
        cuts: where to split.

    Returns:
        The columns of `schema.SEQUENCES`, `train_end`, `valid_end` and `n_sessions`.
    """
    order = {schema.TIMESTAMP: events.timestamp}
    if schema.POSITION in events.columns:
        # Engines differ in where they sort a null inside a struct, so there is none.
        order[schema.POSITION] = events.position.fill_null(2**63 - 1)
    order["random_key"] = events.random_key
    lists = [name for name in schema.SEQUENCES.names if name != schema.USER_IDX]
    # Structs sort by their fields in turn: the order's come first, and the others settle what little is left.
    fields = order | {name: events[name] for name in lists if name not in order}
    ordered = events.group_by(schema.USER_IDX).aggregate(
        events=ibis.struct(fields).collect().sort(), n_sessions=events.session.max() + 1, **cuts.ends(events)
    )
    columns = {name: ordered.events.map(lambda event, name=name: event[name]) for name in lists}
    return ordered.select(schema.USER_IDX, "train_end", "valid_end", "n_sessions", **columns).order_by(schema.USER_IDX)
