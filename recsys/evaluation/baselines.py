"""Simple rankers that every model must beat: popularity, neighbours, linear and factor models, and titles.

They are fitted on the training part only, and asked with the whole history before the question.

All of them end a ranking in the same way. An item of which a model says nothing (no neighbour reaches it, it has no
training event, the history is empty) comes after those of which it does, the most popular first. So every user gets a
full list, and no model gains or loses by how it happens to fill it.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import lapack

from recsys.errors import InputError, MissingExtraError, RecsysError
from recsys.evaluation.ranking import BLOCK_SCORES, Scores
from recsys.evidence import Cooccurrence
from recsys.ingest.dataset import Sequences
from recsys.items import centred_vectors, unit_vectors

MICROSECONDS_A_DAY: Final = 86_400_000_000

Csr = sparse.csr_array[np.float32]
Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]


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
    WWW 2001; the shrinkage as in Ferrari Dacrema et al., RecSys 2019.)
    """

    name: ClassVar[str] = "item_knn"

    def __init__(self, train: Sequences, n_items: int, *, neighbours: int = 1000, shrinkage: float = 1.0) -> None:
        users = _distinct_items(train, n_items)
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
        scores = (_distinct_items(histories, len(self.counts)) @ self.similarity).toarray()
        return _with_popularity(scores, scores > 0, self.counts)


class OrderedItemKNN:
    """Item neighbours by what comes after what, and how soon: the strongest baseline without training.

    score(j) = Σ over the last `HISTORY` events of decay^(steps back) · sim(i → j), with the counts c(i→j) of
    `recsys.evidence.Cooccurrence` and sim(i→j) = c(i→j) / (n_i^source_exponent · n_j^target_exponent).

    Args:
        cooccurrence: the counts.
        source_exponent: how much a history item's popularity holds its votes down.
        target_exponent: how much a candidate's popularity holds it down.
        decay: weight of a history item per step back, in (0, 1].
    """

    name: ClassVar[str] = "ordered_item_knn"
    HISTORY: ClassVar[int] = 50  # at a decay of .6 what lies before is beyond float32's precision of a sum

    def __init__(
        self,
        cooccurrence: Cooccurrence,
        *,
        source_exponent: float = Cooccurrence.SOURCE_EXPONENT,
        target_exponent: float = Cooccurrence.TARGET_EXPONENT,
        decay: float = Cooccurrence.DECAY,
    ) -> None:
        self.counts, self.decay = cooccurrence.counts, decay
        similarities = cooccurrence.similarities(source_exponent=source_exponent, target_exponent=target_exponent)
        self.similarity: Csr = sparse.csr_array(
            (similarities, cooccurrence.columns, cooccurrence.offsets),
            shape=(cooccurrence.n_items, cooccurrence.n_items),
        )

    def score(self, histories: Sequences) -> Scores:
        """Decayed sums of similarities to the events of each history."""
        asked = _decayed(histories, len(self.counts), self.decay, self.HISTORY)
        scores = (asked @ self.similarity).toarray()
        return _with_popularity(scores, scores > 0, self.counts)


class OrderedItemKNNWithText(OrderedItemKNN):
    """The ordered item-kNN, and titles that read alike: score(j) = Σ decay^(steps back) · (sim(i→j) + w · text(i, j)).

    text(i, j) = exp(sharpness · (cos(i, j) − 1)) of vectors from which the catalogue's mean was taken: 1 for equal
    titles, next to nothing for unlike ones. It reaches items that nobody had yet. As an item is no neighbour of its own
    in the log, text(i, i) = 0; otherwise unfiltered lists would begin with the history.

    Args:
        cooccurrence: the counts.
        vectors: [n_items, d] float32, the items' text vectors (such as `recsys.text.TextVectors.vectors`).
        weight: w.
        sharpness: how alike titles must be to count.
        source_exponent: see `OrderedItemKNN`.
        target_exponent: see `OrderedItemKNN`.
        decay: see `OrderedItemKNN`.

    Raises:
        InputError: there is not one vector per item.
    """

    name: ClassVar[str] = "ordered_item_knn_text"

    def __init__(
        self,
        cooccurrence: Cooccurrence,
        vectors: Floats,
        *,
        weight: float = 1.0,
        sharpness: float = 12.0,
        source_exponent: float = 0.5,
        target_exponent: float = 0.5,
        decay: float = 0.7,
    ) -> None:
        super().__init__(cooccurrence, source_exponent=source_exponent, target_exponent=target_exponent, decay=decay)
        self.vectors = _unit_vectors(vectors, len(self.counts), centred=True)
        self.weight, self.sharpness = weight, sharpness

    def score(self, histories: Sequences) -> Scores:
        """Decayed sums of both similarities to the events of each history."""
        n_items = len(self.counts)
        asked = _decayed(histories, n_items, self.decay, self.HISTORY)
        asked.sum_duplicates()
        scores = (asked @ self.similarity).toarray()
        items, column = np.unique(asked.indices, return_inverse=True)
        # The text's similarities are dense, so only those of some items of the histories are held at a time.
        by_item = sparse.csr_array((asked.data, column, asked.indptr), shape=(len(histories), len(items))).tocsc()
        block = max(1, BLOCK_SCORES // n_items)
        for start in range(0, len(items), block):
            alike = self.vectors[items[start : start + block]] @ self.vectors.T
            np.exp(np.float32(self.sharpness) * (alike - 1), out=alike)
            alike[np.arange(len(alike)), items[start : start + block]] = 0
            scores += (by_item[:, start : start + block] * np.float32(self.weight)) @ alike
        return _with_popularity(scores, scores > 0, self.counts)


class TextSimilarity:
    """Items whose text reads like the history's: cos(Σ decay^(steps back) · v_i, v_j) over the last `HISTORY` events.

    It knows the log only for users without a history, who get what is popular.

    Args:
        train: the training part; it is only counted.
        vectors: [n_items, d] float32, the items' text vectors (such as `recsys.text.TextVectors.vectors`).
        decay: weight of an event per step back, in (0, 1]; 1 is the plain mean.
        centred: whether the catalogue's mean is taken from all vectors first, which spreads their cosines.

    Raises:
        InputError: there is not one vector per item.
    """

    name: ClassVar[str] = "text_similarity"
    HISTORY: ClassVar[int] = 50

    def __init__(
        self, train: Sequences, vectors: Floats, n_items: int, *, decay: float = 0.7, centred: bool = True
    ) -> None:
        self.vectors = _unit_vectors(vectors, n_items, centred=centred)
        self.counts = np.bincount(train.item_idx, minlength=n_items)
        self.decay = decay

    def score(self, histories: Sequences) -> Scores:
        """Cosines between the decayed mean of each history's vectors and all items."""
        asked = _decayed(histories, len(self.counts), self.decay, self.HISTORY)
        users = unit_vectors(asked @ self.vectors)
        return _with_popularity(users @ self.vectors.T, (histories.lengths > 0)[:, None], self.counts)


class EASE:
    """A linear model of each item from all others, in closed form (Steck, "Embarrassingly Shallow Autoencoders for
    Sparse Data", WWW 2019): with X [users, items] of 0 and 1 and P = (XᵀX + λI)⁻¹, B_ij = −P_ij / P_jj, B_jj = 0;
    score(j) = Σ B_ij over the distinct items i of the history.

    Fitting holds one dense matrix of n² × 4 bytes (586 MB for 12,101 items) and takes about n³ multiplications. So of a
    larger catalogue only the `max_items` items with the most users are modelled, ties by item index; others come after
    them by popularity. A refusal would leave the baseline out of just the reports of large shops, and the items left
    out are those with the fewest events.

    Args:
        train: the training part.
        n_items: size of the catalogue.
        regularisation: λ.
        max_items: most items that are modelled; 20,000 take 1.6 GB.

    Attributes:
        modelled: [m] int64 ascending, the items in the model; all have a training event.
        weights: [m, m] float32, B.

    Raises:
        InputError: λ is not above 0, without which the inverse may not exist.
    """

    name: ClassVar[str] = "ease"

    def __init__(
        self, train: Sequences, n_items: int, *, regularisation: float = 100.0, max_items: int = 20_000
    ) -> None:
        if not regularisation > 0:
            raise InputError(
                f"EASE was asked for with the regularisation {regularisation}",
                expected="a number above 0",
                do="set a regularisation such as 100",
            )
        self.counts = np.bincount(train.item_idx, minlength=n_items)
        users = _distinct_items(train, n_items)
        n_users = np.bincount(users.indices, minlength=n_items)
        best = np.argsort(-n_users, kind="stable")[:max_items]
        self.modelled = np.sort(best[n_users[best] > 0])
        self.weights = _ease_weights(users[:, self.modelled], regularisation)

    def score(self, histories: Sequences) -> Scores:
        """Sums of the weights of the distinct items of each history."""
        asked = _distinct_items(histories, len(self.counts))[:, self.modelled]
        scores = np.zeros((len(histories), len(self.counts)), dtype=np.float32)
        scores[:, self.modelled] = asked @ self.weights
        reached = np.zeros(scores.shape, dtype=np.bool_)
        reached[:, self.modelled] = (np.diff(asked.indptr) > 0)[:, None]
        return _with_popularity(scores, reached, self.counts)


class ALS:
    """Matrix factorisation by alternating least squares (Hu, Koren and Volinsky, ICDM 2008), by the library `implicit`.

    Users are folded in: a history's vector is the least-squares solution with all item vectors fixed, which is what
    the fit itself does for a training user. An event has the confidence `alpha` however often it was repeated.

    Args:
        train: the training part.
        n_items: size of the catalogue.
        factors: length of the vectors.
        regularisation: of the vectors' squared length.
        alpha: confidence of an item that the user had; one that he had not has 1.
        iterations: sweeps over users and items.
        seed: of the first vectors.

    Raises:
        MissingExtraError: `implicit` is not installed.
    """

    name: ClassVar[str] = "als"

    def __init__(
        self,
        train: Sequences,
        n_items: int,
        *,
        factors: int = 128,
        regularisation: float = 1.0,
        alpha: float = 10.0,
        iterations: int = 15,
        seed: int = 0,
    ) -> None:
        self.counts = np.bincount(train.item_idx, minlength=n_items)
        with warnings.catch_warnings():
            # The library asks for a BLAS of one thread for its speed; its results do not depend on it.
            warnings.simplefilter("ignore", RuntimeWarning)
            self.model = _implicit("als").AlternatingLeastSquares(
                factors=factors,
                regularization=regularisation,
                alpha=alpha,
                iterations=iterations,
                num_threads=1,
                random_state=seed,
            )
        _fit(self.model, train, n_items)

    def score(self, histories: Sequences) -> Scores:
        """Dot products of folded-in user vectors and item vectors."""
        asked = _distinct_items(histories, len(self.counts))
        if not self.counts.any() or not len(histories):
            return _with_popularity(np.zeros(asked.shape, np.float32), _known(asked, self.counts), self.counts)
        users = self.model.recalculate_user(np.arange(len(histories)), sparse.csr_matrix(asked))
        return _with_popularity(users @ self.model.item_factors.T, _known(asked, self.counts), self.counts)


class BPR:
    """Matrix factorisation by pairwise ranking (Rendle et al., UAI 2009), by the library `implicit`, with an item bias.

    The library's vectors belong to training users, and it has no fold-in. Here a history's vector points along the
    mean of its items' vectors minus the mean over all training pairs of user and item: the direction of the first
    step of BPR's own gradient from 0, whose negatives `implicit` draws in proportion to their users. Its length is
    the mean length of the training users' vectors, so that it weighs as much against the item bias as theirs do.

    Args:
        train: the training part.
        n_items: size of the catalogue.
        factors: length of the vectors.
        learning_rate: of the stochastic gradient.
        regularisation: of the vectors' squared length.
        iterations: passes over the events.
        seed: of the first vectors and the draws. One thread: with several the result would depend on their race.

    Raises:
        MissingExtraError: `implicit` is not installed.
    """

    name: ClassVar[str] = "bpr"

    def __init__(
        self,
        train: Sequences,
        n_items: int,
        *,
        factors: int = 128,
        learning_rate: float = 0.05,
        regularisation: float = 0.01,
        iterations: int = 100,
        seed: int = 0,
    ) -> None:
        self.counts = np.bincount(train.item_idx, minlength=n_items)
        model = _implicit("bpr").BayesianPersonalizedRanking(
            factors=factors,
            learning_rate=learning_rate,
            regularization=regularisation,
            iterations=iterations,
            num_threads=1,
            random_state=seed,
        )
        items, n_users = _fit(model, train, n_items)
        # The last column is the item's bias, and a constant 1 on the side of the users.
        self.items: Floats = np.ascontiguousarray(model.item_factors[:, :-1])
        self.bias: Floats = model.item_factors[:, -1].copy()
        if n_users:
            self.centre: Floats = (items.sum(axis=0) @ self.items / items.sum()).astype(np.float32)
            self.length = np.float32(np.linalg.norm(model.user_factors[:, :-1], axis=1).sum() / n_users)
        else:
            self.centre, self.length = np.zeros(self.items.shape[1], np.float32), np.float32(0)

    def score(self, histories: Sequences) -> Scores:
        """Dot products of folded-in user vectors and item vectors, plus the bias."""
        asked = _distinct_items(histories, len(self.counts))
        asked.data *= (self.counts > 0)[asked.indices]  # an item without a vector says nothing of the user
        size = np.maximum(asked.sum(axis=1), 1).astype(np.float32)[:, None]
        users = unit_vectors((asked @ self.items) / size - self.centre) * self.length
        scores = (users @ self.items.T + self.bias).astype(np.float32, copy=False)
        return _with_popularity(scores, _known(asked, self.counts), self.counts)


def _events(histories: Sequences, n_items: int) -> Csr:
    """One row per user with a 1 for every event, in the order of the events."""
    ones = np.ones(len(histories.item_idx), dtype=np.float32)
    shape = len(histories), n_items
    # Copied, because scipy merges entries in place: it would write into the sequences.
    return sparse.csr_array((ones, histories.item_idx, histories.offsets), shape=shape, copy=True)


def _distinct_items(histories: Sequences, n_items: int) -> Csr:
    """One row per user with a 1 for every item in it, however often."""
    users = _events(histories, n_items)
    users.sum_duplicates()
    users.data[:] = 1
    return users


def _decayed(histories: Sequences, n_items: int, decay: float, last: int) -> Csr:
    """One row per user with decay^(steps back) for each of the `last` events, in the order of the events."""
    asked = _events(histories, n_items)
    steps_back = np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(len(histories.item_idx))
    asked.data[:] = np.where(steps_back < last, decay ** np.minimum(steps_back, last), 0)
    return asked


def _nearest(together: Csr, first: int, norm: Floats, neighbours: int, shrinkage: float) -> Csr:
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


def _ease_weights(users: Csr, regularisation: float) -> Floats:
    """B of EASE from X, [m, m] float32, C order; one dense matrix is written over step by step."""
    m = users.shape[1]
    if not m:
        return np.zeros((0, 0), dtype=np.float32)
    block = max(1, BLOCK_SCORES // m)
    items = users.T.tocsr()
    matrix = np.empty((m, m), dtype=np.float32, order="F")
    for start in range(0, m, block):
        matrix[:, start : start + block] = (items[start : start + block] @ users).toarray().T
    matrix[np.diag_indices(m)] += np.float32(regularisation)
    # The matrix is positive definite: by Cholesky its inverse costs half, in place, in the lower triangle.
    matrix, failed = lapack.spotrf(matrix, lower=True, overwrite_a=True)
    if not failed:
        matrix, failed = lapack.spotri(matrix, lower=True, overwrite_c=True)
    if failed:
        raise RecsysError(f"EASE could not invert its matrix of {m} items (LAPACK's status {failed})")
    for start in range(0, m, block):
        stop = min(start + block, m)
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T
        square = np.tril(matrix[start:stop, start:stop])
        matrix[start:stop, start:stop] = square + np.tril(square, -1).T
    matrix = matrix.T  # symmetric, so this only says that it lies by rows
    matrix /= -np.diag(matrix).copy()
    np.fill_diagonal(matrix, 0)
    weights: Floats = matrix
    return weights


def _implicit(module: str) -> Any:
    """The CPU side of `implicit`, which is an optional dependency."""
    try:
        return importlib.import_module(f"implicit.cpu.{module}")
    except ImportError:
        raise MissingExtraError("implicit", "baselines") from None


def _fit(model: Any, train: Sequences, n_items: int) -> tuple[Csr, int]:
    """Fit a model of `implicit` on the users who have events.

    Returns:
        Their items [n_users, n_items], and how many users they are.
    """
    items = _distinct_items(train, n_items)
    items = items[np.diff(items.indptr) > 0]
    n_users = int(items.shape[0])
    if n_users:
        matrix = sparse.csr_matrix(items)
        # The library's compiled part takes 32-bit indices.
        matrix.indices, matrix.indptr = matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32)
        model.fit(matrix, show_progress=False)
    else:
        model.item_factors = np.zeros((n_items, model.factors + 1), dtype=np.float32)
    return items, n_users


def _known(asked: Csr, counts: Counts) -> npt.NDArray[np.bool_]:
    """[n, n_items] bool: the item has training events, and so has something in the user's history."""
    trained = counts > 0
    return ((asked @ trained.astype(np.float32)) > 0)[:, None] & trained


def _unit_vectors(vectors: Floats, n_items: int, *, centred: bool) -> Floats:
    """One vector per item, of unit length."""
    if vectors.ndim != 2 or len(vectors) != n_items:
        raise InputError(
            f"text vectors of shape {vectors.shape} came for {n_items:,} items",
            expected="one row for each item of the catalogue",
            do="make the text vectors of this dataset again",
        )
    vectors = np.array(vectors, dtype=np.float32)  # a copy, in memory
    return centred_vectors(vectors) if centred else unit_vectors(vectors)


def _with_popularity(scores: Scores, reached: npt.NDArray[np.bool_], counts: Counts) -> Scores:
    """Put the items that a model does not reach behind all others, the most popular first.

    Args:
        scores: [n, n_items].
        reached: [n, n_items], or what broadcasts to it.
        counts: [n_items], training events of each item.
    """
    floor = np.min(scores, axis=1, keepdims=True, initial=0, where=reached)
    return np.where(reached, scores, (floor - 1 / (1 + counts)).astype(np.float32))
