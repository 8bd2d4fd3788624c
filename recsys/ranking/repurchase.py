"""After how long an item is usually bought again."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from recsys import schema
from recsys.ingest.dataset import Sequences

DAY: Final = 86_400_000_000  # microseconds
FEWEST: Final = 5  # repurchases that a median is taken of
UNKNOWN: Final = 30.0  # days, where nothing was ever bought again


def repurchase_days(train: Sequences, category: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """The median time between two purchases of an item by one user: of the item, of its category, or of all.

    The narrowest of the three that has at least five repurchases is taken; with fewer in all the time is 30 days.

    Args:
        train: the sequences.
        category: [n_items], −1 for none.

    Returns:
        [n_items] float32, days.
    """
    n_items = len(category)
    bought = train.event_type == schema.EVENT_TYPES.index("purchase")
    user = np.repeat(np.arange(len(train)), train.lengths)[bought]
    item, time = train.item_idx[bought], train.timestamp[bought]
    order = np.lexsort((time, item, user))
    user, item, time = user[order], item[order], time[order]
    again = (user[1:] == user[:-1]) & (item[1:] == item[:-1]) & (time[1:] > time[:-1])
    item, gap = item[1:][again], (np.diff(time)[again] / DAY).astype(np.float64)
    days = np.full(n_items, UNKNOWN)
    if len(gap) >= FEWEST:
        days[:] = np.median(gap)
    of_category = _medians(category[item], gap, int(category.max(initial=-1)) + 1)
    known = (category >= 0) & ~np.isnan(of_category[category] if len(of_category) else np.full(n_items, np.nan))
    days[known] = of_category[category[known]]
    of_item = _medians(item, gap, n_items)
    return np.where(np.isnan(of_item), days, of_item).astype(np.float32)


def _medians(group: npt.NDArray[np.integer], value: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.float64]:
    """[n] medians by group, NaN where a group has fewer than `FEWEST` values; negative groups count nowhere."""
    value, group = value[group >= 0], group[group >= 0]
    order = np.lexsort((value, group))
    value = value[order]
    count = np.bincount(group, minlength=n)
    start = np.cumsum(count) - count
    enough = np.flatnonzero(count >= FEWEST)
    low, high = start[enough] + (count[enough] - 1) // 2, start[enough] + count[enough] // 2
    medians = np.full(n, np.nan)
    medians[enough] = (value[low] + value[high]) / 2
    return medians
