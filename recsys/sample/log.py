"""From views to the shop's event log, with the dirt that real logs have."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.sample.browse import Views
from recsys.sample.catalogue import DAY, Catalogue
from recsys.sample.config import SampleConfig
from recsys.sample.shelf import Bools, Ints
from recsys.sample.shoppers import Visits
from recsys.sample.titles import numbered

# The reasons that ingestion gives for such rows.
DIRT = (
    "missing_user_id",
    "missing_item_id",
    "missing_event_type",
    "missing_timestamp",
    "unknown_item",
    "future_timestamp",
    "exact_duplicate",
)

EVENTS = pa.schema(
    [
        pa.field(schema.USER_ID, pa.string()),
        pa.field(schema.ITEM_ID, pa.string()),
        pa.field(schema.EVENT_TYPE, pa.string()),
        pa.field(schema.TIMESTAMP, pa.timestamp("us", tz="UTC")),
        pa.field(schema.SESSION_ID, pa.string()),
        pa.field(schema.VALUE, pa.float64()),
    ]
)


def events_table(
    rng: np.random.Generator,
    config: SampleConfig,
    catalogue: Catalogue,
    item_ids: pa.Array,
    visits: Visits,
    views: Views,
) -> pa.Table:
    """The sound log: every view, then carts and purchases as they follow, in the order of time."""
    visit = np.repeat(np.arange(len(visits.user)), visits.n_views)
    carted = np.flatnonzero(views.carted)
    # A cart follows its view while the shopper is still there; one checkout pays for all that a visit bought.
    cart_time = views.time[carted] + (visits.dwell[carted] * rng.uniform(0.3, 0.9, len(carted))).astype(np.int64)
    last_view = visits.first_view + visits.n_views - 1
    checkout = views.time[last_view] + visits.dwell[last_view] + rng.integers(20_000, 240_000, len(last_view))
    bought = np.flatnonzero(views.bought)
    bought = bought[catalogue.in_stock(views.item[bought], checkout[visit[bought]])]
    bought = bought[_needed(catalogue, visits.user[visit[bought]], views.item[bought], checkout[visit[bought]])]

    row = np.concatenate([np.arange(len(visit)), carted, bought])
    event_type = np.repeat(np.arange(3), [len(visit), len(carted), len(bought)])
    time = np.concatenate([views.time, cart_time, checkout[visit[bought]]])
    item = views.item[row]
    quantity = 1 + rng.binomial(2, np.where(catalogue.restock[item] > 0, 0.25, 0.03))
    order = np.lexsort((row, event_type, time))
    row, event_type, time, item, quantity = (column[order] for column in (row, event_type, time, item, quantity))

    users = numbered("U", rng.permutation(config.n_users), config.n_users)
    sessions = numbered("S", np.argsort(np.argsort(visits.start, kind="stable"), kind="stable"), len(visits.start))
    start = np.datetime64(config.first_day, "ms")
    value = np.round(catalogue.price[item] * quantity, 2)
    columns = [
        users.take(pa.array(visits.user[visit[row]])),
        item_ids.take(pa.array(item)),
        pa.array(schema.EVENT_TYPES).take(pa.array(event_type)),
        pa.array((start + time.astype("m8[ms]")).astype("M8[us]")).cast(pa.timestamp("us", tz="UTC")),
        sessions.take(pa.array(visit[row])),
        pa.array(value, mask=event_type != schema.EVENT_TYPES.index("purchase")),
    ]
    return pa.Table.from_arrays(columns, schema=EVENTS)


def _needed(catalogue: Catalogue, user: Ints, item: Ints, time: Ints) -> Bools:
    """Whether a purchase makes sense: nobody buys again what lasts, or what is not half used up."""
    order = np.lexsort((time, item, user))
    again = (np.diff(user[order], prepend=-1) == 0) & (np.diff(item[order], prepend=-1) == 0)
    last = catalogue.restock[item[order]]
    waited = (last > 0) & (np.diff(time[order], prepend=0) >= last // 2)
    needed = np.empty(len(order), dtype=bool)
    needed[order] = ~again | waited
    return needed


def soil(rng: np.random.Generator, config: SampleConfig, events: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Damage a few rows where they stand and repeat a few others; the number of rows of each kind comes along."""
    n = events.num_rows
    per_kind = round(n * config.dirty_share / len(DIRT))
    rows = dict(zip(DIRT, rng.choice(n, (len(DIRT), per_kind), replace=False), strict=True))
    time_type = EVENTS.field(schema.TIMESTAMP).type
    # Products that had left the catalogue before it was exported, and devices whose clock is ahead.
    gone = numbered("X", rng.integers(0, per_kind + 1, per_kind), config.n_items)
    ahead = np.datetime64(config.end, "us") + rng.integers(DAY, 400 * DAY, per_kind).astype("m8[ms]")
    damage = {
        "missing_user_id": (schema.USER_ID, pa.nulls(per_kind, pa.string())),
        "missing_item_id": (schema.ITEM_ID, pa.nulls(per_kind, pa.string())),
        "missing_event_type": (schema.EVENT_TYPE, pa.nulls(per_kind, pa.string())),
        "missing_timestamp": (schema.TIMESTAMP, pa.nulls(per_kind, time_type)),
        "unknown_item": (schema.ITEM_ID, gone),
        "future_timestamp": (schema.TIMESTAMP, pa.array(ahead.astype("M8[us]")).cast(time_type)),
    }
    for kind, (column, replacement) in damage.items():
        hit = pa.array(np.isin(np.arange(n), rows[kind]))
        damaged = pc.replace_with_mask(events[column].combine_chunks(), hit, replacement)
        events = events.set_column(EVENTS.get_field_index(column), EVENTS.field(column), damaged)
    # A sender that tries again: the same row, a few places on.
    again = rows["exact_duplicate"]
    source = np.concatenate([np.arange(n), again])
    place = np.concatenate([np.arange(n, dtype=np.float64), again + rng.integers(1, 9, per_kind) - 0.5])
    return events.take(pa.array(source[np.argsort(place, kind="stable")])), dict.fromkeys(DIRT, per_kind)
