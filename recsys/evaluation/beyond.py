"""What lists are like apart from hits: how much of the catalogue they show, how popular, how new, how varied.

All take lists as the ranking gives them: `items` [n_users, K] int32, best first, −1 where there is no item (at the end
or in between), in blocks of any size. A property of a list (`ListProperty`) gives one value per user, NaN where a list
has none; means leave NaN out. A property of all lists together (`Exposure`) is added up block by block and holds one
number per catalogue item.

On these measures see Castells, Hurley and Vargas, "Novelty and Diversity in Recommender Systems" (Recommender Systems
Handbook, 2022), and Kaminskas and Bridge, "Diversity, Serendipity, Novelty, and Coverage" (ACM TiiS 2016).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from recsys.errors import InputError
from recsys.evaluation.lists import hits_of
from recsys.evaluation.metrics import Bools, Counts, Values
from recsys.ingest.dataset import Ragged, Sequences

Items = npt.NDArray[np.int32]

# Numbers of gathered text vectors held at a time (16 MB of float32).
_VECTOR_CELLS: Final = 1 << 22


@dataclass(frozen=True)
class ListProperty(ABC):
    """A property of the first k items of each list.

    Attributes:
        k: ranks that count.
    """

    k: int
    name: ClassVar[str]
    title: ClassVar[str]
    definition: ClassVar[str]  # one sentence, for the report

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, not {self.k}")

    @property
    def column(self) -> str:
        """Name of the property's column in tables, such as `novelty_at_10`."""
        return f"{self.name}_at_{self.k}"

    def __call__(self, items: Items) -> Values:
        """One value per list of `items` [n, K] int32 (−1: none), [n] float64; NaN where the list has none."""
        first = items[:, : self.k]
        return self._values(first, first >= 0)

    @abstractmethod
    def _values(self, items: Items, listed: Bools) -> Values:
        """The property of lists cut at k, and where they hold an item."""


@dataclass(frozen=True)
class Novelty(ListProperty):
    """Mean self-information of the listed items: the mean of −log2 p(i), in bits.

    p(i) is the item's share of all training events. Zhou et al., "Solving the apparent diversity-accuracy dilemma of
    recommender systems" (PNAS 2010); Vargas and Castells, "Rank and relevance in novelty and diversity metrics" (RecSys
    2011), without rank discount and relevance. An item without a training event would be infinitely new: it counts as
    if it had one. (RecTools' `MeanInvUserFreq` takes the share of users instead, and treats such items alike.)

    Attributes:
        counts: [n_items], training events of each item.
    """

    counts: Counts
    name = "novelty"
    title = "Novelty"
    definition = (
        "mean of −log2 of the listed items' shares of the training events, in bits, averaged over users; an item"
        " without a training event counts as if it had one"
    )

    def _values(self, items: Items, listed: Bools) -> Values:
        total = max(1, int(self.counts.sum()))
        return _mean(-np.log2(np.maximum(self.counts, 1) / total), items, listed)


@dataclass(frozen=True)
class Popularity(ListProperty):
    """Average recommendation popularity: the mean number of training events of the listed items.

    Yin et al., "Challenging the Long Tail Recommendation" (VLDB 2012); RecTools' `AvgRecPopularity`. See
    `popularity_lift` for how it compares with what users chose themselves.

    Attributes:
        counts: [n_items], training events of each item.
    """

    counts: Counts
    name = "popularity"
    title = "Popularity"
    definition = "mean number of training events of the listed items, averaged over users"

    def _values(self, items: Items, listed: Bools) -> Values:
        return _mean(self.counts, items, listed)

    def of_histories(self, histories: Sequences) -> Values:
        """The same mean over all events of each history, [n]; NaN for empty ones."""
        row = np.repeat(np.arange(len(histories)), histories.lengths)
        total = np.bincount(row, weights=self.counts[histories.item_idx], minlength=len(histories))
        return _ratio(total, histories.lengths)


@dataclass(frozen=True)
class ColdShare(ListProperty):
    """Share of the listed items that have no training event: what only content can recommend.

    Attributes:
        counts: [n_items], training events of each item.
    """

    counts: Counts
    name = "cold_share"
    title = "Cold items"
    definition = "share of the listed items that have no training event, averaged over users"

    def _values(self, items: Items, listed: Bools) -> Values:
        return _mean(self.counts == 0, items, listed)


@dataclass(frozen=True)
class TextDiversity(ListProperty):
    """Intra-list diversity by text: the mean of 1 − cosine over all pairs of listed items.

    Smyth and McClave, "Similarity vs. Diversity" (ICCBR 2001); one minus the intra-list similarity of Ziegler et al.
    (WWW 2005), as a mean over pairs. Of unit vectors, Σ over pairs of cosines = (|Σ v|² − Σ |v|²) / 2, so a list costs
    k additions rather than k² products. A zero vector (no text) has the cosine 0 to all others. Lists with fewer than
    two items have no value.

    Attributes:
        vectors: [n_items, d] float32, of any length.
    """

    vectors: npt.NDArray[np.float32]
    name = "text_diversity"
    title = "Diversity (text)"
    definition = "mean of 1 − cosine of the text vectors over all pairs of listed items, averaged over users"

    def _values(self, items: Items, listed: Bools) -> Values:
        block = max(1, _VECTOR_CELLS // max(1, items.shape[1] * self.vectors.shape[1]))
        parts = [
            self._block(items[start : start + block], listed[start : start + block])
            for start in range(0, len(items), block)
        ]
        return np.concatenate([np.empty(0), *parts])

    def _block(self, items: Items, listed: Bools) -> Values:
        vectors = self.vectors[np.maximum(items, 0)]
        length = np.linalg.norm(vectors, axis=2, keepdims=True)
        vectors = np.divide(vectors, length, out=np.zeros_like(vectors), where=(length > 0) & listed[:, :, None])
        total = vectors.sum(axis=1, dtype=np.float64)
        own: Values = np.square(vectors).sum(axis=(1, 2), dtype=np.float64)
        pairs = _pairs(listed.sum(axis=1))
        return _ratio(pairs - (np.square(total).sum(axis=1) - own) / 2, pairs)


@dataclass(frozen=True)
class CategoryDiversity(ListProperty):
    """Intra-list diversity by category: the share of pairs of listed items whose categories differ.

    The mean pairwise distance of Smyth and McClave (ICCBR 2001) with the distance 0 within a category and 1 across, or
    Simpson's index of a list. Items without a category are left out. Lists with fewer than two others have no value.

    Attributes:
        codes: [n_items] int32, the category as a number, −1 for none; see `recsys.items`.
    """

    codes: npt.NDArray[np.int32]
    name = "category_diversity"
    title = "Diversity (category)"
    definition = "share of pairs of listed items whose categories differ, averaged over users"

    def _values(self, items: Items, listed: Bools) -> Values:
        codes = np.sort(np.where(listed, self.codes[np.maximum(items, 0)], -1), axis=1)
        known = codes >= 0
        # In ascending order, an item makes an equal pair with each one before it in its run.
        place = np.arange(codes.shape[1])
        begins = np.ones(codes.shape, dtype=np.bool_)
        begins[:, 1:] = codes[:, 1:] != codes[:, :-1]
        begin = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
        equal = np.where(known, place - begin, 0).sum(axis=1)
        pairs = _pairs(known.sum(axis=1))
        return _ratio(pairs - equal, pairs)


@dataclass(frozen=True)
class TopCategoryDiversity(CategoryDiversity):
    """`CategoryDiversity` of the categories' top levels: give the codes of `category_codes(…, levels=1)`."""

    name = "top_category_diversity"
    title = "Diversity (top category)"
    definition = "share of pairs of listed items whose top-level categories differ, averaged over users"


@dataclass(frozen=True)
class ValueRecall:
    """Recall in money: the share of the value of a user's targets that stands among the first k.

    Σ over targets among the first k of value / Σ over all targets of value; with equal values it is recall. (On why
    money: Jannach and Adomavicius, "Price and Profit Awareness in Recommender Systems", VAMS at RecSys 2017.)

    Attributes:
        k: ranks that count.
        value: [n_items] float64, an item's price or margin; NaN (unknown) counts as nothing.
    """

    k: int
    value: Values
    name: ClassVar[str] = "value_recall"
    title: ClassVar[str] = "Recall (value)"
    definition: ClassVar[str] = "share of the value of a user's targets that stands among the first k, over users"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, not {self.k}")
        if np.any(self.value < 0):
            raise InputError("an item's value is below 0", expected="prices or margins from 0 on")

    def __call__(self, items: Items, targets: Ragged) -> Values:
        """One value per user, [n] in [0, 1]; NaN where the targets are worth nothing."""
        found, total = self.sums(items, targets)
        return _ratio(found, total)

    def sums(self, items: Items, targets: Ragged) -> tuple[Values, Values]:
        """The value found and the value of all targets of each user, [n] each.

        Their sums over users give the share of all value that was found, in which big baskets weigh more than in the
        mean of the users' shares.
        """
        value = np.nan_to_num(self.value)
        first = items[:, : self.k]
        found = np.where(hits_of(first, targets), value[np.maximum(first, 0)], 0.0).sum(axis=1)
        row = np.repeat(np.arange(len(targets)), targets.lengths)
        return found, np.bincount(row, weights=value[targets.values], minlength=len(targets)).astype(np.float64)


@dataclass
class Exposure:
    """How often each catalogue item was shown among the first k, over all lists that were added.

    Attributes:
        n_items: size of the catalogue, items that were never shown included.
        k: ranks that count.
        shown: [n_items], in how many lists the item stood.
    """

    n_items: int
    k: int
    shown: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.shown = np.zeros(self.n_items, dtype=np.int64)

    def add(self, items: Items) -> None:
        """Count the lists of one block, [n, K] int32."""
        first = items[:, : self.k]
        self.shown += np.bincount(first[first >= 0], minlength=self.n_items)

    @property
    def coverage(self) -> float:
        """Catalogue coverage: the share of the catalogue that stands in at least one list (Herlocker et al., 2004)."""
        return float(np.mean(self.shown > 0)) if self.n_items else float("nan")

    @property
    def gini(self) -> float:
        """Gini index of exposure: 0 if all items are shown equally often, (n − 1) / n if only one is.

        Σ (2 r − n − 1) x_r / (n Σ x) with x ascending, r = 1 … n over the whole catalogue: Fleder and Hosanagar,
        "Blockbuster Culture's Next Rise or Fall" (Management Science 2009). NaN if nothing was shown. (Shani and
        Gunawardana, 2011, divide by n − 1 instead of n.)
        """
        total = int(self.shown.sum())
        if not total:
            return float("nan")
        weight = 2 * np.arange(1, self.n_items + 1) - self.n_items - 1
        return float(weight @ np.sort(self.shown) / (self.n_items * total))


def popularity_lift(listed: Values, chosen: Values) -> float:
    """How much more popular the lists are than what the same users chose before: 0 if they are alike, 1 if twice.

    (mean of listed − mean of chosen) / mean of chosen over users who have both: the ΔGAP of Abdollahpouri et al., "The
    Unfairness of Popularity Bias in Recommendation" (RMSE at RecSys 2019). It is meant for groups of users too.

    Args:
        listed: [n], `Popularity` of the lists.
        chosen: [n], `Popularity.of_histories` of the same users.

    Returns:
        At least −1; NaN if no user has both, or the histories hold no item with a training event.
    """
    both = np.isfinite(listed) & np.isfinite(chosen)
    if not both.any() or not chosen[both].sum():
        return float("nan")
    return float(listed[both].sum() / chosen[both].sum() - 1)


def _mean(of: npt.NDArray[np.generic], items: Items, listed: Bools) -> Values:
    """The mean of an item's number over each list, NaN for empty ones."""
    total = np.where(listed, of[np.maximum(items, 0)], 0).sum(axis=1, dtype=np.float64)
    return _ratio(total, listed.sum(axis=1))


def _pairs(n: Counts) -> Counts:
    return n * (n - 1) // 2


def _ratio(part: npt.NDArray[np.generic], whole: npt.NDArray[np.generic]) -> Values:
    """The ratio, NaN where the whole is 0."""
    out = np.full(len(part), np.nan)
    np.divide(part, whole, out=out, where=whole != 0)
    return out
