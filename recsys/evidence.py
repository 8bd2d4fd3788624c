"""What the log says without a model: popularity and ordered co-occurrence, and what they say of a pair.

The baselines rank by it, the teacher takes it as wide features, and soft-label candidates are drawn from it.
Needs only numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from recsys.ingest.dataset import Sequences

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Cooccurrence:
    """How often, and how near, item j stands after (or before) item i: a sparse matrix by rows.

    Every ordered pair of a sequence at distance d ≤ `window` adds 1/d to c(i→j) and `backward`/d to c(j→i).
    The similarity is sim(i→j) = c(i→j) / (n_i^.5 · n_j^.3), with n an item's number of events: popular targets are
    held down less than popular sources.
    """

    SOURCE_EXPONENT: ClassVar[float] = 0.5
    TARGET_EXPONENT: ClassVar[float] = 0.3
    DECAY: ClassVar[float] = 0.6  # of a history item's weight per step back

    offsets: npt.NDArray[np.int64]  # [n_items + 1]
    columns: Ints  # [n_pairs], ascending within a row
    weights: Floats  # [n_pairs], c(i→j)
    counts: npt.NDArray[np.int64]  # [n_items], events of each item
    window: int
    backward: float

    @classmethod
    def fit(cls, train: Sequences, n_items: int, *, window: int = 20, backward: float = 0.6) -> Cooccurrence:
        """Count the pairs of all sequences, one distance at a time (memory: the distinct pairs, 12 bytes each)."""
        user = np.repeat(np.arange(len(train)), train.lengths)
        keys, weights = np.empty(0, np.int64), np.empty(0)
        longest = int(train.lengths.max(initial=1))
        for distance in range(1, min(window, longest - 1) + 1):
            near = user[distance:] == user[:-distance]
            source = train.item_idx[:-distance][near].astype(np.int64)
            target = train.item_idx[distance:][near].astype(np.int64)
            other = source != target
            source, target = source[other], target[other]
            forward = np.full(len(source), 1.0 / distance)
            keys, weights = _sum_by_key(
                np.concatenate([keys, source * n_items + target, target * n_items + source]),
                np.concatenate([weights, forward, forward * backward]),
            )
        offsets = np.zeros(n_items + 1, dtype=np.int64)
        np.cumsum(np.bincount(keys // n_items, minlength=n_items), out=offsets[1:])
        return cls(
            offsets=offsets,
            columns=(keys % n_items).astype(np.int32),
            weights=weights.astype(np.float32),
            counts=np.bincount(train.item_idx, minlength=n_items),
            window=window,
            backward=backward,
        )

    @property
    def n_items(self) -> int:
        """Number of catalogue items."""
        return len(self.counts)

    def similarities(self) -> Floats:
        """sim(i→j) for every stored pair, [n_pairs], in the order of `columns`."""
        source = np.repeat(np.maximum(self.counts, 1) ** self.SOURCE_EXPONENT, np.diff(self.offsets))
        target = np.maximum(self.counts, 1)[self.columns] ** self.TARGET_EXPONENT
        return (self.weights / (source * target)).astype(np.float32)

    def lookup(self, source: Ints, target: Ints) -> Floats:
        """c(i→j) of any pairs; `source` and `target` broadcast, 0 where the pair never occurred."""
        source, target = np.broadcast_arrays(source, target)
        low, high = self.offsets[source], self.offsets[source + 1]
        end = high
        while True:  # one binary search in all rows at once
            open_ = low < high
            if not open_.any():
                break
            middle = (low + high) // 2
            before = open_ & (self.columns[np.minimum(middle, len(self.columns) - 1)] < target)
            low = np.where(before, middle + 1, low)
            high = np.where(open_ & ~before, middle, high)
        if not len(self.columns):
            return np.zeros(source.shape, dtype=np.float32)
        place = np.minimum(low, len(self.columns) - 1)
        return np.where((low < end) & (self.columns[place] == target), self.weights[place], np.float32(0))


def own_part(history: Ints, candidates: Ints, sequence: Ints, cooccurrence: Cooccurrence) -> tuple[Floats, Ints, Ints]:
    """What each user's own training sequence put into the counts, to be taken out before that user is asked.

    Args:
        history: [n, H] items asked with, −1 for padding.
        candidates: [n, C] items asked about.
        sequence: [n, L] the user's whole training sequence, −1 for padding on the right.
        cooccurrence: the counts that the sequences are part of.

    Returns:
        c_own(history item → candidate), [n, H, C] float32; and how often each user's sequence holds the history items,
        [n, H] int32, and the candidates, [n, C] int32.
    """
    distance = np.arange(sequence.shape[1])[None, :] - np.arange(sequence.shape[1])[:, None]
    pair = np.where(distance > 0, 1.0, cooccurrence.backward) / np.maximum(np.abs(distance), 1)
    pair[(np.abs(distance) > cooccurrence.window) | (distance == 0)] = 0.0
    source = ((history[:, :, None] == sequence[:, None, :]) & (history >= 0)[:, :, None]).astype(np.float32)
    target = ((sequence[:, :, None] == candidates[:, None, :]) & (sequence >= 0)[:, :, None]).astype(np.float32)
    own = source @ pair.astype(np.float32) @ target
    own[history[:, :, None] == candidates[:, None, :]] = 0.0  # an item is not counted as its own neighbour
    return own, source.sum(axis=2).astype(np.int32), target.sum(axis=1).astype(np.int32)


def _sum_by_key(
    keys: npt.NDArray[np.int64], values: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    unique, inverse = np.unique(keys, return_inverse=True)
    return unique, np.bincount(inverse, weights=values, minlength=len(unique)).astype(np.float64)
