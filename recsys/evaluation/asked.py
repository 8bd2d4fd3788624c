"""What users are asked, and what may not be recommended to them again: the same for models, baselines and lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys import schema
from recsys.ingest.dataset import Cases, Dataset, Ragged, Sequences

# Events of histories held at a time, about 16 MB each as keys.
_EVENTS: Final = 1 << 21


def next_only(cases: Cases) -> Cases:
    """The same cases, asked for the item of the next event alone (a row of targets begins with it)."""
    first = cases.targets.values[cases.targets.offsets[:-1]]
    return Cases(cases.user_idx, cases.history_end, Ragged(np.arange(len(cases) + 1), first))


def not_again(histories: Sequences, n_items: int, *, repurchases: bool) -> npt.NDArray[np.bool_]:
    """Which events of histories stand for an item that may not be recommended again, [n_events].

    Without repurchases every item of the history; with them only those that were looked at and never bought, because
    what was bought may be bought again. It depends on the history alone: a rule that spared the targets would tell the
    models the answer.
    """
    if not repurchases:
        return np.ones(len(histories.item_idx), dtype=np.bool_)
    keys = np.repeat(np.arange(len(histories)), histories.lengths) * np.int64(n_items) + histories.item_idx
    bought = keys[histories.event_type == schema.EVENT_TYPES.index("purchase")]
    return ~np.isin(keys, bought)


def seen_keys(histories: Sequences, n_items: int, *, repurchases: bool) -> npt.NDArray[np.int64]:
    """The items of `not_again` as row · n_items + item, ascending and distinct."""
    keys = np.repeat(np.arange(len(histories)), histories.lengths) * np.int64(n_items) + histories.item_idx
    return np.unique(keys[not_again(histories, n_items, repurchases=repurchases)])


def unseen_targets(dataset: Dataset, cases: Cases, *, repurchases: bool) -> Ragged:
    """The cases' targets without those that may not be recommended again (see `not_again`), [n_cases] rows."""
    targets, n_items = cases.targets, dataset.n_items
    kept = np.ones(len(targets.values), dtype=np.bool_)
    for rows, histories in history_blocks(dataset, cases):
        seen = seen_keys(histories, n_items, repurchases=repurchases)
        flat = slice(targets.offsets[rows.start], targets.offsets[rows.stop])
        row = np.repeat(np.arange(len(histories)), targets.lengths[rows])
        kept[flat] = ~np.isin(row * np.int64(n_items) + targets.values[flat], seen)
    return Ragged(np.append(0, np.cumsum(kept))[targets.offsets], targets.values[kept])


def history_blocks(dataset: Dataset, cases: Cases) -> Iterator[tuple[slice, Sequences]]:
    """The cases' histories, some cases at a time, so that memory stays bounded."""
    events = np.cumsum(cases.history_end, dtype=np.int64)
    start = 0
    while start < len(cases):
        before = events[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(events, before + _EVENTS, side="right")))
        rows = slice(start, stop)
        yield rows, dataset.histories(cases.user_idx[rows], cases.history_end[rows])
        start = stop
