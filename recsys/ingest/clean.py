"""Which rows are kept, which are rejected and why, and which are the same event: nothing is lost without a count."""

from __future__ import annotations

from typing import Final

import ibis

from recsys import schema
from recsys.ingest.engine import count
from recsys.ingest.log import DROPPED, NOT_POSITIVE, ROW, Log

# Users as numbers in the order of their ids: all that have a good row, while user_idx counts those that stay.
USER_KEY: Final = "user_key"
# What makes two rows the same event.
EVENT_KEY: Final = (USER_KEY, schema.ITEM_IDX, schema.EVENT_TYPE, schema.TIMESTAMP)
EXACT_DUPLICATE: Final = "exact_duplicate"
SAME_EVENT: Final = "same_event"
K_CORE: Final = "k_core"
# Rejections that the config asks for; all others but these are faults of the row.
WANTED: Final = frozenset({"dropped_event_type", "non_merchandise", K_CORE})


def check(log: Log, catalogue: ibis.Table, *, as_of: int) -> ibis.Table:
    """Give each row of the log its first reason for rejection, or none.

    In this order: `missing_user_id`, `missing_item_id`, `missing_event_type` and `missing_timestamp` (null, or empty
    text), `invalid_timestamp` (unreadable, or of 1970 and before, which is how systems write "unknown"),
    `future_timestamp` (after `as_of`), `dropped_event_type`, `unknown_item` (not in the catalogue),
    `non_merchandise`, and `not_positive_<column>` for each of the config's `positive`. Later `k_core` joins them.

    Args:
        log: the log.
        catalogue: as `read_catalogue` gives it.
        as_of: microseconds since 1970; a later event cannot have happened yet.

    Returns:
        The columns `row`, `user_id`, `item_idx`, `event_type`, `timestamp`, `reason`, and `session_id` and `position`
        where the log has them.
    """
    known = catalogue.select(known_id=schema.ITEM_ID, item_idx=schema.ITEM_IDX)
    rows = log.events.left_join(known, log.events.item_id == known.known_id)
    rules = [
        ("missing_user_id", rows.user_id.isnull()),
        ("missing_item_id", rows.item_id.isnull()),
        ("missing_event_type", rows.event_type.isnull()),
        ("missing_timestamp", ~rows.has_timestamp),
        ("invalid_timestamp", rows.timestamp.isnull() | (rows.timestamp <= 0)),
        ("future_timestamp", rows.timestamp > as_of),
        ("dropped_event_type", rows.event_type == DROPPED),
        ("unknown_item", rows.known_id.isnull()),
        ("non_merchandise", rows.item_idx.isnull()),
        *((name, rows[name]) for name in rows.columns if name.startswith(NOT_POSITIVE)),
    ]
    optional = [name for name in (schema.SESSION_ID, schema.POSITION) if name in rows.columns]
    return rows.select(
        "row",
        schema.USER_ID,
        schema.ITEM_IDX,
        schema.EVENT_TYPE,
        schema.TIMESTAMP,
        *optional,
        reason=ibis.cases(*((condition, reason) for reason, condition in rules)),
    )


def merge(rows: ibis.Table) -> ibis.Table:
    """One row per event: rows of the same user, item, type and time become one, `n_rows` says how many they were.

    Lines of an order that repeat an item, double clicks and copies of a row are all told once. The rows are those of
    `check` without a reason, with their `user_key`.
    """
    optional = {name: rows[name].min() for name in (schema.SESSION_ID, schema.POSITION) if name in rows.columns}
    return rows.group_by(*EVENT_KEY).aggregate(n_rows=rows.count(), **optional)


def rows_of(events: ibis.Table, rows: ibis.Table) -> ibis.Table:
    """The rows that `merge` made `events` of."""
    return rows.semi_join(events, list(EVENT_KEY))


def count_merged(log: Log, rows: ibis.Table, events: ibis.Table) -> dict[str, int]:
    """How many rows went into other rows of the same event, and why.

    Args:
        log: the log.
        rows: the rows that `merge` was given.
        events: what it made of them, or a part of it.

    Returns:
        Number of rows that are equal to another in every column of the log (`exact_duplicate`), and of those that
        differ in a column beside the event's own (`same_event`).
    """
    several = events.filter(events.n_rows > 1)
    in_several = rows_of(several, rows)
    repeated = log.rows.semi_join(in_several, log.rows[ROW] == in_several.row).select(log.columns)
    n_rows, n_distinct, n_events = (count(table) for table in (repeated, repeated.distinct(), several))
    return {EXACT_DUPLICATE: n_rows - n_distinct, SAME_EVENT: n_distinct - n_events}


def quarantine(log: Log, rejected: ibis.Table) -> ibis.Table:
    """The rejected rows as they came, in the order of the log.

    Args:
        log: the log.
        rejected: columns `row` and `reason`.

    Returns:
        The columns of `schema.QUARANTINE`.
    """
    # Names that no column of the log is likely to have.
    marked = rejected.select(recsys_row="row", recsys_reason="reason")
    rows = log.rows.inner_join(marked, log.rows[ROW] == marked.recsys_row)
    content = ibis.struct({name: _as_json_value(rows[name]) for name in log.columns})
    return rows.select(
        raw=content.cast("json").cast("string"),
        reason=rows.recsys_reason,
        source_file=ibis.literal(log.path.name),
        row=rows.recsys_row,
    ).order_by("row")


def _as_json_value(column: ibis.Value) -> ibis.Value:
    if not column.type().is_floating():
        return column
    return ibis.cases((~(column.isnan() | column.isinf()), column))  # JSON has no number for these
