"""What the log says without a model: popularity and ordered co-occurrence, and what they say of a pair.

The baselines rank by it, the teacher takes it as wide features, and soft-label candidates are drawn from it.
Needs only numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

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

    def similarities(
        self, *, source_exponent: float = SOURCE_EXPONENT, target_exponent: float = TARGET_EXPONENT
    ) -> Floats:
        """sim(i→j) for every stored pair, [n_pairs], in the order of `columns`; by other exponents where given."""
        source = np.repeat(np.maximum(self.counts, 1) ** source_exponent, np.diff(self.offsets))
        target = np.maximum(self.counts, 1)[self.columns] ** target_exponent
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


@dataclass(frozen=True)
class OwnPart:
    """What some users put into the counts themselves, to be taken out before they are asked about their own choices."""

    n_items: int
    item_keys: npt.NDArray[np.int64]  # [m] ascending: row · n_items + item
    item_counts: npt.NDArray[np.int64]  # [m], occurrences in the row's sequence
    pair_keys: npt.NDArray[np.int64]  # [p] ascending: (row · n_items + source) · n_items + target
    pair_weights: npt.NDArray[np.float64]  # [p], the row's part of c(source → target)

    @classmethod
    def fit(cls, history: Ints, sequences: Sequences, cooccurrence: Cooccurrence) -> OwnPart:
        """Count each row's own sequence; of its pairs only those whose source stands in the row's history.

        Args:
            history: [n, H] items asked with, −1 for padding.
            sequences: n rows, each user's whole training sequence.
            cooccurrence: the counts that the sequences are part of.
        """
        n_items, window = cooccurrence.n_items, cooccurrence.window
        row = np.repeat(np.arange(len(sequences)), sequences.lengths)
        keys = row * n_items + sequences.item_idx
        item_keys, item_counts = np.unique(keys, return_counts=True)
        asked = (np.arange(len(history))[:, None] * n_items + history)[history >= 0]
        place = np.flatnonzero(np.isin(keys, asked))[:, None]
        distance = np.concatenate([np.arange(-window, 0), np.arange(1, window + 1)])[None, :]
        other = np.clip(place + distance, 0, max(len(row) - 1, 0))
        pair = (other == place + distance) & (row[other] == row[place])
        pair &= sequences.item_idx[other] != sequences.item_idx[place]
        weight = np.where(distance > 0, 1.0, cooccurrence.backward) / np.abs(distance)
        pair_keys, pair_weights = _sum_by_key(
            (keys[place] * n_items + sequences.item_idx[other])[pair], np.broadcast_to(weight, pair.shape)[pair]
        )
        return cls(n_items, item_keys, item_counts, pair_keys, pair_weights)

    def counts(self, items: Ints) -> npt.NDArray[np.int64]:
        """How often each row's sequence holds `items` ([n, X], none negative): [n, X]."""
        wanted = np.arange(len(items))[:, None] * self.n_items + items.astype(np.int64)
        return _find(self.item_keys, self.item_counts, wanted)

    def pairs(self, source: Ints, target: Ints) -> npt.NDArray[np.float64]:
        """The rows' own c(source → target) for `source` [n, H] and `target` [n, C], none negative: [n, H, C]."""
        row = np.arange(len(source))[:, None] * self.n_items + source.astype(np.int64)
        return _find(self.pair_keys, self.pair_weights, row[:, :, None] * self.n_items + target[:, None, :])


Number = TypeVar("Number", np.int64, np.float64)


def _find(
    keys: npt.NDArray[np.int64], values: npt.NDArray[Number], wanted: npt.NDArray[np.int64]
) -> npt.NDArray[Number]:
    """The value of each wanted key, 0 where it is not among the ascending `keys`."""
    if not len(keys):
        return np.zeros(wanted.shape, dtype=values.dtype)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], values.dtype.type(0))


def _sum_by_key(
    keys: npt.NDArray[np.int64], values: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    unique, inverse = np.unique(keys, return_inverse=True)
    return unique, np.bincount(inverse, weights=values, minlength=len(unique)).astype(np.float64)
