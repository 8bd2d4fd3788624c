"""What every engine is asked to do, and the arithmetic that they share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

EVENT_TYPES: Final = ("view", "cart", "purchase")
PARTS: Final = ("train", "valid", "test")
# The first that applies is the row's.
REASONS: Final = (
    "missing_user_id",
    "missing_item_id",
    "missing_event_type",
    "missing_timestamp",
    "invalid_timestamp",
    "future_timestamp",
    "unknown_item",
)
_DAY: Final = 86_400_000_000

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Job:
    """One log to ingest.

    Attributes:
        folder: holds `events.parquet` and `items.parquet`.
        out: an empty folder; `users`, `items`, `train`, `valid`, `test` and `quarantine` are written to it, each
            `.parquet`.
        as_of: microseconds since 1970; a later event is rejected.
        seed: decides the order inside equal times.
    """

    folder: Path
    out: Path
    as_of: int
    seed: int = 0
    test_days: int = 7
    valid_days: int = 7
    gap: int = 30 * 60_000_000  # microseconds; a longer pause starts a new session

    @property
    def valid_until(self) -> int:
        """Where the test window begins, microseconds since 1970."""
        return self.as_of - self.test_days * _DAY

    @property
    def train_until(self) -> int:
        """Where the validation window begins, microseconds since 1970."""
        return self.valid_until - self.valid_days * _DAY


def counted(rows_in: int, kept: int, quarantined: dict[str, int], exact: int, same: int) -> dict[str, Any]:
    """The counts of a run, as recsys has them.

    Raises:
        ValueError: they do not add up.
    """
    if rows_in != kept + sum(quarantined.values()) + exact + same:
        raise ValueError(f"{rows_in} rows came, {kept} were kept, {quarantined} rejected, {exact} + {same} merged")
    merged = {"exact_duplicate": exact, "same_event": same}
    return {"rows_in": rows_in, "kept": kept, "quarantined": quarantined, "merged": merged}


def tie_key(users: Any, items: Any, event_type: npt.NDArray[np.int8], timestamp: Any, seed: int) -> Hashes:
    """What events of one user and time are ordered by.

    Args:
        users: ids, [n] texts.
        items: ids, [n] texts.
        event_type: codes, [n].
        timestamp: microseconds since 1970, [n] int64.
        seed: another seed gives another order.
    """
    key = _mix(_hash(users) + np.uint64(seed))
    for part in (_hash(items), event_type.astype(np.uint64), timestamp.astype(np.uint64)):
        key = _mix(key + part)
    return key


def _hash(ids: Any) -> Hashes:
    return pd.util.hash_array(np.asarray(ids, dtype=object), categorize=True)


def _mix(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
