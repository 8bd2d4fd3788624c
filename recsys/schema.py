"""The table contract: the names and types in which the stages speak to each other.

Every table that crosses a stage's border has its Arrow schema here. Column names are the field's standard terms.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
EVENT_TYPE: Final = "event_type"
TIMESTAMP: Final = "timestamp"
SESSION_ID: Final = "session_id"
VALUE: Final = "value"
POSITION: Final = "position"
USER_IDX: Final = "user_idx"
ITEM_IDX: Final = "item_idx"

# An event type's code is its place in this tuple; a shop's further types are appended in the order of its config.
EVENT_TYPES: Final = ("view", "cart", "purchase")

REQUIRED_EVENT_COLUMNS: Final = (USER_ID, ITEM_ID, EVENT_TYPE, TIMESTAMP)
OPTIONAL_EVENT_COLUMNS: Final = (SESSION_ID, VALUE, POSITION)
REQUIRED_ITEM_COLUMNS: Final = (ITEM_ID, "title")
OPTIONAL_ITEM_COLUMNS: Final = (
    "category",
    "brand",
    "price",
    "description",
    "in_stock",
    "available_from",
)

# Levels of a category are split by this: "Makeup > Nails > Nail Polish".
CATEGORY_SEPARATOR: Final = " > "

USERS: Final = pa.schema(
    [
        pa.field(USER_IDX, pa.int32(), nullable=False),
        pa.field(USER_ID, pa.string(), nullable=False),
    ]
)

# One row per catalogue item, in the order of item_idx. Items without an event are here too: text gives them a vector.
ITEMS: Final = pa.schema(
    [
        pa.field(ITEM_IDX, pa.int32(), nullable=False),
        pa.field(ITEM_ID, pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        pa.field("brand", pa.string()),
        pa.field("price", pa.float64()),
        pa.field("description", pa.string()),
        pa.field("in_stock", pa.bool_()),
        pa.field("available_from", pa.timestamp("us", tz="UTC")),
    ]
)

# One row per user, in the order of user_idx; the lists run in time, equal times in a seeded random order. There is one
# such table for each part of the split (training, validation, test), with a row for each user who has events in it.
SEQUENCES: Final = pa.schema(
    [
        pa.field(USER_IDX, pa.int32(), nullable=False),
        pa.field(ITEM_IDX, pa.list_(pa.int32()), nullable=False),
        pa.field(EVENT_TYPE, pa.list_(pa.int8()), nullable=False),
        pa.field(TIMESTAMP, pa.list_(pa.int64()), nullable=False),  # microseconds since 1970, UTC
        pa.field("session", pa.list_(pa.int32()), nullable=False),  # 0, 1, … within the user, over all parts
    ]
)

# The only thing that the teacher tells the student: at `position` (the history is the events before it), the
# teacher's logit for each candidate.
SOFT_LABELS: Final = pa.schema(
    [
        pa.field(USER_IDX, pa.int32(), nullable=False),
        pa.field(POSITION, pa.int32(), nullable=False),
        pa.field("candidate", pa.list_(pa.int32()), nullable=False),
        pa.field("teacher_logit", pa.list_(pa.float32()), nullable=False),
    ]
)

RECOMMENDATIONS: Final = pa.schema(
    [
        pa.field(USER_ID, pa.string(), nullable=False),
        pa.field(ITEM_ID, pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("probability", pa.float32()),  # that the user buys it; null without a calibrated ranker
        pa.field("source", pa.string(), nullable=False),  # where the item comes from
        pa.field("reason", pa.string()),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("generated_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)

# A rejected row as it came (a JSON object of its columns), why, and where it stood.
QUARANTINE: Final = pa.schema(
    [
        pa.field("raw", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("source_file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # 0-based among the file's records
    ]
)
