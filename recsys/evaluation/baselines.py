"""Simple rankers that every model must beat: popularity and item neighbours.

They are fitted on the training part only, and asked with the whole history before the question.
"""

from __future__ import annotations

from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
from scipy import sparse

from recsys.evaluation.ranking import BLOCK_SCORES, Scores
from recsys.evidence import Cooccurrence
from recsys.ingest.dataset import Sequences

MICROSECONDS_A_DAY: Final = 86_400_000_000

Csr = sparse.csr_array[np.float32]


class MostPopular:
    """Everybody gets the items with the most training events.

    Args:
        train: the training part.
        n_items: size of the catalogue.
        days: count only the last so many days of train.
    """

    def __init__(self, train: Sequences, n_items: int, *, days: int | None = None) -> None:
        self.name = "most_popular" if days is None else "recently_popular"
        items = train.item_idx
        if days is not None and len(items):
            items = items[train.timestamp > train.timestamp.max() - days * MICROSECONDS_A_DAY]
        self.counts = np.bincount(items, minlength=n_items)

    def score(self, histories: Sequences) -> Scores:
        """The counts, the same in every row."""
        return np.tile(self.counts.astype(np.float32), (len(histories), 1))


class ItemKNN:
    """Item neighbours by cosine over the users that had both.

    sim(i, j) = |users of both| / (√|users of i| · √|users of j| + shrinkage), of which each item i keeps its
    `neighbours` most similar items j; score(j) = Σ sim(i, j) over the distinct items i of the history. (Sarwar et al.,
    WWW 2001; the shrinkage as in Ferrari Dacrema et al., RecSys 2019.) Items that no neighbour reaches come after all
    others, the most popular first.
    """

    name: ClassVar[str] = "item_knn"

    def __init__(self, train: Sequences, n_items: int, *, neighbours: int = 1000, shrinkage: float = 1.0) -> None:
        users = _history_matrix(train, n_items)
        users.sum_duplicates()
        users.data[:] = 1
        items = users.T.tocsr()
        norm = np.sqrt(np.diff(items.indptr)).astype(np.float32)
        block = max(1, BLOCK_SCORES // n_items)
        self.similarity: Csr = sparse.vstack(
            [
                _nearest(items[start : start + block] @ users, start, norm, neighbours, shrinkage)
                for start in range(0, n_items, block)
            ],
            format="csr",
        )
        self.counts = np.bincount(train.item_idx, minlength=n_items)

    def score(self, histories: Sequences) -> Scores:
        """Sums of similarities to the distinct items of each history."""
        asked = _history_matrix(histories, len(self.counts))
        asked.sum_duplicates()
        asked.data[:] = 1
        return _with_popularity((asked @ self.similarity).toarray(), self.counts)


class OrderedItemKNN:
    """Item neighbours by what comes after what, and how soon: the strongest baseline without training.

    score(j) = Σ over the last `HISTORY` events of decay^(steps back) · sim(i → j), with the similarity and the decay of
    `recsys.evidence.Cooccurrence`. Items that no neighbour reaches come after all others, the most popular first.
    """

    name: ClassVar[str] = "ordered_item_knn"
    HISTORY: ClassVar[int] = 50  # the event before these weighs .6^50, beyond float32's precision of a sum

    def __init__(self, cooccurrence: Cooccurrence) -> None:
        self.counts = cooccurrence.counts
        self.similarity: Csr = sparse.csr_array(
            (cooccurrence.similarities(), cooccurrence.columns, cooccurrence.offsets),
            shape=(cooccurrence.n_items, cooccurrence.n_items),
        )

    def score(self, histories: Sequences) -> Scores:
        """Decayed sums of similarities to the events of each history."""
        asked = _history_matrix(histories, len(self.counts))
        steps_back = np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(len(histories.item_idx))
        decayed = Cooccurrence.DECAY ** np.minimum(steps_back, self.HISTORY)
        asked.data[:] = np.where(steps_back < self.HISTORY, decayed, 0)
        return _with_popularity((asked @ self.similarity).toarray(), self.counts)


def _history_matrix(histories: Sequences, n_items: int) -> Csr:
    """One row per user with a 1 for every event, in the order of the events."""
    ones = np.ones(len(histories.item_idx), dtype=np.float32)
    shape = len(histories), n_items
    # Copied, because scipy merges entries in place: it would write into the sequences.
    return sparse.csr_array((ones, histories.item_idx, histories.offsets), shape=shape, copy=True)


def _nearest(together: Csr, first: int, norm: npt.NDArray[np.float32], neighbours: int, shrinkage: float) -> Csr:
    """Rows `first`, `first` + 1, … of the similarity matrix, from their counts of common users."""
    pairs = together.tocoo()
    other = pairs.row + first != pairs.col
    row, column, both = pairs.row[other], pairs.col[other], pairs.data[other]
    similarity = both / (norm[row + first] * norm[column] + np.float32(shrinkage))
    order = np.lexsort((column, -similarity, row))
    row, column, similarity = row[order], column[order], similarity[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)  # within the row, the most similar first
    near = place < neighbours
    return sparse.csr_array((similarity[near], (row[near], column[near])), shape=together.shape)


def _with_popularity(scores: Scores, counts: npt.NDArray[np.int64]) -> Scores:
    """Give items without evidence a negative score that rises with their popularity."""
    return np.where(scores > 0, scores, (-1 / (1 + counts)).astype(np.float32))
