"""Rank the whole catalogue for many users, block by block, by a rule for ties that favours nobody.

**Ties.** Equal scores are common (popularity counts, items that no evidence reaches), and whoever orders them decides
the metric: in the order of item ids, or with targets first, a constant score can look good; with targets last, a
baseline looks worse than it is, which flatters the model that it is compared with. Here equal scores stand in a
pseudo-random order that depends on the user, the item and the seed alone, never on the targets. In expectation a tie
is worth exactly what a random order is worth, and a constant score finds k / n_items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from recsys.errors import RecsysError
from recsys.evaluation.asked import not_again
from recsys.hashing import Keys, mix, seeded_keys
from recsys.ingest.dataset import Cases, Dataset, Ragged, Sequences
from recsys.runtime import Runtime

Scores = npt.NDArray[np.float32]
Items = npt.NDArray[np.int32]

# Scores held at a time (32 MB). A baseline's sparse product, the order of ties and the masks of seen items and
# targets lie beside it, which makes about 256 MB at the peak.
BLOCK_SCORES: Final = 1 << 23


class Scorer(Protocol):
    """Anything that gives every catalogue item a score for a user: the higher, the better."""

    @property
    def name(self) -> str:
        """Name in tables, such as `item_knn`."""

    def score(self, histories: Sequences) -> Scores:
        """Scores of the whole catalogue.

        Args:
            histories: one row per user, all events before the question, oldest first; rows may be empty.

        Returns:
            [n, n_items] float32, the caller's to overwrite. −inf: never recommended. NaN is refused.
        """


@dataclass(frozen=True)
class RankedBlock:
    """Some cases, ranked by one scorer under one rule for seen items.

    Attributes:
        rows: which cases.
        seen_filtered: whether items that may not be recommended again were dropped from ranking and targets.
        items: [n, k] int32, best first, −1 after the last item that may be recommended.
        hits: [n, k] bool, whether the item is one of the targets.
        n_targets: [n] int64; 0 where all targets were seen before.
    """

    rows: slice
    seen_filtered: bool
    items: Items
    hits: npt.NDArray[np.bool_]
    n_targets: npt.NDArray[np.int64]


def rank(
    scorer: Scorer,
    dataset: Dataset,
    cases: Cases,
    *,
    k: int,
    runtime: Runtime,
    block: int | None = None,
    repurchases: bool = False,
) -> Iterator[RankedBlock]:
    """Rank the catalogue for every case, with and without the items of the history, from one pass over the scores.

    Args:
        scorer: what gives the scores.
        dataset: where the histories are taken from; all events before `history_end` count as seen.
        cases: whom to ask, and the targets.
        k: length of the lists.
        runtime: its seed orders ties.
        block: cases at a time; by default as many as keep memory bounded. It changes no result.
        repurchases: what a user has bought before stays in the filtered ranking and among its targets; see
            `recsys.evaluation.asked.not_again`.

    Yields:
        For each block of cases the unfiltered ranking, then the filtered one.

    Raises:
        RecsysError: a score is NaN, or the scores are not [n, n_items].
    """
    n_items = dataset.n_items
    block = block or max(1, BLOCK_SCORES // n_items)
    starts = range(0, len(cases), block)
    for start in runtime.track(starts, total=len(starts), label=f"evaluate {scorer.name}", unit="block"):
        rows = slice(start, min(start + block, len(cases)))
        users = cases.user_idx[rows]
        histories = dataset.histories(users, cases.history_end[rows])
        scores = scorer.score(histories)
        if scores.shape != (len(users), n_items):
            raise RecsysError(f"{scorer.name} gave scores of shape {scores.shape}, not {(len(users), n_items)}")
        if np.isnan(scores).any():
            raise RecsysError(f"{scorer.name} gave a score that is NaN, which has no place in a ranking")
        keys = tie_keys(users, runtime.seed)
        targets = item_mask(_rows(cases.targets, rows), n_items)
        yield _compare(top_k(scores, k, keys), targets, rows, seen_filtered=False)
        gone = not_again(histories, n_items, repurchases=repurchases)
        seen = np.repeat(np.arange(len(users)), histories.lengths)[gone], histories.item_idx[gone]
        scores[seen] = -np.inf
        targets[seen] = False
        yield _compare(top_k(scores, k, keys), targets, rows, seen_filtered=True)


def top_k(scores: Scores, k: int, keys: Keys) -> Items:
    """The k best items of every row, best first; see this module on ties.

    Args:
        scores: [n, n_items], without NaN.
        k: length of the lists.
        keys: [n] from `tie_keys`: the row's part in the order of equal scores.

    Returns:
        [n, k] int32; −1 where fewer than k items have a score above −inf.
    """
    n_items = scores.shape[1]
    width = min(k, n_items)
    # One item more than asked shows whether a tie crosses the end of the list.
    best = torch.topk(torch.from_numpy(scores), min(width + 1, n_items), dim=1)
    values, items = best.values.numpy(), best.indices.numpy().astype(np.int32)
    if n_items > width:
        end, beyond = values[:, width - 1], values[:, width]
        values, items = values[:, :width].copy(), items[:, :width].copy()
        crossed = np.flatnonzero((end == beyond) & (end > -np.inf))
        if len(crossed):
            tied = scores[crossed] == end[crossed, None]
            columns = np.flatnonzero(tied.any(axis=0))  # of all items, those that are tied for anybody
            order = np.where(tied[:, columns], _tie_order(columns, keys[crossed]), -1)
            first = torch.topk(torch.from_numpy(order), min(width, len(columns)), dim=1).indices.numpy()
            winners = columns[first].astype(np.int32)
            above = (values[crossed] > end[crossed, None]).sum(axis=1)
            place = np.arange(width) - above[:, None]
            chosen = np.take_along_axis(winners, np.clip(place, 0, winners.shape[1] - 1), axis=1)
            items[crossed] = np.where(place < 0, items[crossed], chosen)
    equal = np.flatnonzero((values[:, 1:] == values[:, :-1]).any(axis=1))
    if len(equal):
        order = np.lexsort((-_tie_order(items[equal], keys[equal]), -values[equal]), axis=1)
        items[equal] = np.take_along_axis(items[equal], order, axis=1)
    items[values == -np.inf] = -1
    return np.pad(items, ((0, 0), (0, k - width)), constant_values=-1)


def tie_keys(user_idx: npt.NDArray[np.int32], seed: int) -> Keys:
    """Each user's part in the order of ties, [n] uint32: the same whatever block or sample the user is in."""
    return seeded_keys(user_idx, seed)


def item_mask(rows: Ragged | Sequences, n_items: int) -> npt.NDArray[np.bool_]:
    """[n, n_items] bool: whether the item stands in the row."""
    mask = np.zeros((len(rows), n_items), dtype=np.bool_)
    values = rows.values if isinstance(rows, Ragged) else rows.item_idx
    mask[np.repeat(np.arange(len(rows)), rows.lengths), values] = True
    return mask


def _compare(items: Items, targets: npt.NDArray[np.bool_], rows: slice, *, seen_filtered: bool) -> RankedBlock:
    hits = np.take_along_axis(targets, np.maximum(items, 0), axis=1) & (items >= 0)
    return RankedBlock(rows, seen_filtered, items, hits, targets.sum(axis=1))


def _rows(ragged: Ragged, rows: slice) -> Ragged:
    offsets = ragged.offsets[rows.start : rows.stop + 1]
    return Ragged(offsets - offsets[0], ragged.values[offsets[0] : offsets[-1]])


def _tie_order(items: npt.NDArray[np.integer], keys: Keys) -> npt.NDArray[np.int64]:
    """Distinct pseudo-random numbers ≥ 0 of the items of each row (`items` is [n_items] or [n, m])."""
    return mix(items.astype(np.uint32) ^ keys[:, None]).astype(np.int64)
