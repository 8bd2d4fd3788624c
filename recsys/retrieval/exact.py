"""Exact search by inner product: the flat index, and what recall of the others is measured against."""

from __future__ import annotations

import math

import faiss
import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]  # [n, dim]
Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]  # scores and item_idx, both [n, k]

# A search among few items copies their vectors, so many at a time.
GATHER_ITEMS = 1 << 17
# Entries of one table of scores while ties are resolved, 12 bytes each.
TIE_ENTRIES = 1 << 22


def exact_search(queries: Vectors, vectors: Vectors, k: int, items: npt.NDArray[np.int64] | None = None) -> Found:
    """The `k` items of largest inner product, equal ones in the order of item_idx, by looking at each.

    Args:
        queries: [n, dim], finite.
        vectors: [n_items, dim], finite.
        k: how many; there are as many items at least.
        items: [m] item_idx to look at, ascending; all by default.

    Returns:
        scores and item_idx, [n, k], the best first.
    """
    return _exact_search(queries, vectors, k, items, margin=1)


def rescored(queries: Vectors, vectors: Vectors, candidates: npt.NDArray[np.int64], k: int) -> Found:
    """The `k` candidates of largest inner product, equal ones in the order of item_idx.

    Args:
        queries: [n, dim], contiguous.
        vectors: [n_items, dim], contiguous; only the candidates' rows are read.
        candidates: [n, m] item_idx, m ≥ k, in any order, each once; −1 for none.
        k: how many.

    Returns:
        scores and item_idx, [n, k], the best first; −∞ and −1 where a row has fewer candidates.
    """
    candidates = np.ascontiguousarray(candidates)
    scores = np.empty(candidates.shape, np.float32)
    pointers = (faiss.swig_ptr(each) for each in (scores, queries, vectors, candidates))
    faiss.fvec_inner_products_by_idx(*pointers, vectors.shape[1], *candidates.shape)
    if k < candidates.shape[1]:
        # A sort of all candidates takes longer than the search that found them.
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        best = np.take_along_axis(scores, top, 1), np.take_along_axis(candidates, top, 1)
        tied = (scores >= best[0].min(axis=1, keepdims=True)).sum(axis=1) > k
        if tied.any():
            ordered_scores, ordered_items = ordered(scores[tied], candidates[tied])
            best[0][tied], best[1][tied] = ordered_scores[:, :k], ordered_items[:, :k]
        scores, candidates = best
    return ordered(scores, candidates)


def ordered(scores: npt.NDArray[np.float32], found: npt.NDArray[np.int64]) -> Found:
    """Each row by falling score, equal scores by item_idx."""
    order = np.lexsort((found, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)


def _exact_search(
    queries: Vectors, vectors: Vectors, k: int, items: npt.NDArray[np.int64] | None, margin: int
) -> Found:
    n_items = len(vectors) if items is None else len(items)
    fetch = min(k + margin, n_items)
    scores, found = ordered(*_knn(queries, vectors, fetch, items))
    top = scores[:, :k].copy(), found[:, :k].copy()
    if fetch < n_items:
        # When the last place has the score of the k-th, FAISS kept any of the equal ones: look further down.
        tied = np.flatnonzero(scores[:, k - 1] == scores[:, -1])
        margin *= 8
        for rows in np.array_split(tied, math.ceil(len(tied) * (k + margin) / TIE_ENTRIES) or 1) if tied.size else ():
            top[0][rows], top[1][rows] = _exact_search(queries[rows], vectors, k, items, margin)
    return top


def _knn(queries: Vectors, vectors: Vectors, k: int, items: npt.NDArray[np.int64] | None) -> Found:
    """Any exact top k. FAISS' own search with a selector compares pair by pair, 3 to 14 times slower than this."""
    if items is None:
        return _blas_knn(queries, vectors, k)
    scores, found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(items), GATHER_ITEMS):
        block = items[start : start + GATHER_ITEMS]
        more, place = _blas_knn(queries, vectors[block], min(k, len(block)))
        scores, found = ordered(np.hstack([scores, more]), np.hstack([found, block[place]]))
        scores, found = scores[:, :k], found[:, :k]
    return scores, found


def _blas_knn(queries: Vectors, vectors: Vectors, k: int) -> Found:
    scores, found = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, found
