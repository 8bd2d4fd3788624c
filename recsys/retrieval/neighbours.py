"""Which items go together, as a sparse matrix by rows, and what that says of whole histories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from recsys.artifacts import save_npy
from recsys.evidence import Cooccurrence
from recsys.ingest.dataset import Sequences
from recsys.retrieval.approximate import Approximate
from recsys.retrieval.config import IndexConfig
from recsys.retrieval.exact import Found, exact_search
from recsys.retrieval.fit import fit

Csr = sparse.csr_array[np.float32]
Ints = npt.NDArray[np.int64]

TEXT_RECALL: Final = 0.9  # of the neighbours in a catalogue that is too large for exact search
_PARTS: Final = ("indptr", "indices", "data")


def cooccurrence_neighbours(counts: Cooccurrence, most: int) -> Csr:
    """Of each item the `most` items of the largest ordered co-occurrence, [n_items, n_items]; see `Cooccurrence`."""
    source = np.repeat(np.arange(counts.n_items), np.diff(counts.offsets))
    similarity = counts.similarities()
    kept = _first_of_rows(source, counts.columns, similarity, most)
    return _csr(source[kept], counts.columns[kept], similarity[kept], counts.n_items)


def text_neighbours(vectors: npt.NDArray[np.float32], fresh: npt.NDArray[np.bool_], most: int) -> Csr:
    """Of each item the items of the most similar texts: exp(12 · (cosine − 1)), [n_items, n_items].

    Items without an event are few beside the others and would hardly ever be among the most similar ones: `most` of
    them are kept besides `most` of the rest.

    Args:
        vectors: [n_items, width] float32 of unit length.
        fresh: [n_items], the items without an event.
        most: items of each kind.
    """
    parts = [_nearest(vectors, np.flatnonzero(kind), most) for kind in (~fresh, fresh)]
    source, target, cosine = (np.concatenate(each) for each in zip(*parts, strict=True))
    return _csr(source, target, np.exp(12 * (cosine - 1)), len(vectors))


@dataclass(frozen=True)
class Spread:
    """What neighbours say of some histories: a sparse [n, n_items].

    Attributes:
        offsets: [n + 1], where each row's entries begin, and the end.
        keys: [m] ascending, row · n_items + item.
        values: [m] float32, above 0.
    """

    offsets: Ints
    keys: Ints
    values: npt.NDArray[np.float32]
    n_items: int

    @classmethod
    def of(cls, histories: Sequences, neighbours: Csr, *, decay: float, last: int) -> Spread:
        """Σ decay^age · neighbours[item] over the `last` events of each history, age 0 for its latest.

        Memory: the neighbours of all these events.
        """
        n_items = neighbours.shape[0]
        age = np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(len(histories.item_idx))
        row = np.repeat(np.arange(len(histories)), histories.lengths)
        kept = age < last
        weights = (decay ** age[kept]).astype(np.float32)
        shape = (len(histories), n_items)
        taken = sparse.csr_array((weights, (row[kept], histories.item_idx[kept])), shape=shape)
        found = sparse.csr_array(taken @ neighbours)
        found.sort_indices()
        offsets = np.asarray(found.indptr, np.int64)
        keys = np.repeat(np.arange(len(histories)) * np.int64(n_items), np.diff(offsets))
        keys += found.indices
        return cls(offsets, keys, found.data, n_items)

    def at(self, items: Ints) -> npt.NDArray[np.float32]:
        """The values at `items` [n, C], 0 where nothing is stored and for negative items."""
        if not len(self.keys):
            return np.zeros(items.shape, np.float32)
        wanted = np.arange(len(items))[:, None] * np.int64(self.n_items) + items
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where((self.keys[place] == wanted) & (items >= 0), self.values[place], np.float32(0))

    def best(self, most: int, allowed: npt.NDArray[np.bool_], hidden: Ints) -> Ints:
        """Each row's items of largest value, equal ones in the order of item_idx: [n, most], −1 for none.

        Args:
            most: how many.
            allowed: [n_items], which items may be found.
            hidden: row · n_items + item that may not be, ascending.
        """
        n, width = len(self.offsets) - 1, int(np.diff(self.offsets).max(initial=0))
        best = np.full((n, most), -1, np.int64)
        if not width or not most:
            return best
        column = self.keys - np.repeat(np.arange(n) * np.int64(self.n_items), np.diff(self.offsets))
        # Positive floats are ordered as their bits are; below them the item, so that no two are equal.
        order = self.values.view(np.int32).astype(np.int64) << 32 | (2**32 - 1 - column)
        order[~allowed[column]] = -1
        place = np.minimum(np.searchsorted(self.keys, hidden), len(self.keys) - 1)
        order[place[self.keys[place] == hidden]] = -1
        table = np.full((n, width), -1, np.int64)
        row = np.repeat(np.arange(n), np.diff(self.offsets))
        table[row, np.arange(len(row)) - self.offsets[row]] = order
        top = torch.from_numpy(table).topk(min(most, width), dim=1).values.numpy()
        best[:, : top.shape[1]] = np.where(top >= 0, 2**32 - 1 - (top & (2**32 - 1)), -1)
        return best


def is_in(values: Ints, ordered: Ints) -> npt.NDArray[np.bool_]:
    """Which values stand among the ascending ones; np.isin sorts both every time."""
    if not len(ordered):
        return np.zeros(values.shape, np.bool_)
    place = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.equal(ordered[place], values)


def save_neighbours(matrix: Csr, folder: Path, name: str) -> None:
    """Write a matrix as three `.npy` files that can be mapped."""
    for part in _PARTS:
        save_npy(folder / f"{name}.{part}.npy", getattr(matrix, part))


def load_neighbours(folder: Path, name: str) -> Csr:
    """Open what `save_neighbours` wrote, memory-mapped."""
    indptr, indices, data = (np.load(folder / f"{name}.{part}.npy", mmap_mode="r") for part in _PARTS)
    n_items = len(indptr) - 1
    return sparse.csr_array((data, indices, indptr), shape=(n_items, n_items), copy=False)


def _nearest(
    vectors: npt.NDArray[np.float32], among: npt.NDArray[np.int64], most: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Each item's `most` nearest others of some, as rows of (item, other, cosine)."""
    empty = np.empty(0, np.int64)
    if not len(among) or not most:
        return empty, empty, np.empty(0, np.float32)
    cosine, place = _search(np.ascontiguousarray(vectors), np.ascontiguousarray(vectors[among]), most + 1)
    item = np.repeat(np.arange(len(vectors)), place.shape[1])
    other = np.where(place.ravel() >= 0, among[place.ravel()], -1)
    kept = (other >= 0) & (other != item)
    item, other, value = item[kept], other[kept], cosine.ravel()[kept]
    kept = _first_of_rows(item, other, value, most)
    return item[kept], other[kept], value[kept]


def _search(queries: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], most: int) -> Found:
    """The `most` of the vectors with the largest inner product; −1 where an approximate index found fewer."""
    most = min(most, len(vectors))
    config = IndexConfig(target_recall=TEXT_RECALL, recall_at=most)
    if len(vectors) <= config.flat_up_to:
        return exact_search(queries, vectors, most)
    with TemporaryDirectory(prefix="recsys-") as scratch:
        fitted = fit(vectors, config, Path(scratch), queries=lambda: queries[: config.tuning_queries])
        if fitted.index is None:
            return exact_search(queries, vectors, most)
        return Approximate(fitted.index, fitted.plan.type, fitted.plan.refine, vectors).search(
            queries, most, fitted.params
        )


def _first_of_rows(
    row: npt.NDArray[np.int64], column: npt.NDArray[np.integer], value: npt.NDArray[np.float32], most: int
) -> npt.NDArray[np.int64]:
    """Places of each row's `most` largest values, rows ascending, the best first; equal ones by column."""
    order = np.lexsort((column, -value, row))
    ordered = row[order]
    start = np.searchsorted(ordered, ordered)
    first: npt.NDArray[np.int64] = order[np.arange(len(order)) - start < most]
    return first


def _csr(
    row: npt.NDArray[np.int64], column: npt.NDArray[np.integer], value: npt.NDArray[np.float32], n_items: int
) -> Csr:
    matrix = sparse.csr_array((value.astype(np.float32), (row, column)), shape=(n_items, n_items))
    matrix.sort_indices()
    return matrix
