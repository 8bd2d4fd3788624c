"""Candidates from several sources, merged: no single one finds what all of them find together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys.artifacts import save_npy
from recsys.evidence import Cooccurrence
from recsys.ingest.dataset import Sequences, pad_left
from recsys.items import category_codes, centred_vectors
from recsys.retrieval.config import SourcesConfig
from recsys.retrieval.neighbours import (
    Csr,
    Spread,
    cooccurrence_neighbours,
    is_in,
    load_neighbours,
    save_neighbours,
    text_neighbours,
)
from recsys.retrieval.snapshot import Snapshot

# In the order in which they claim an item that stands equally high in several of them.
SOURCES: Final = ("again", "cooccurrence", "text", "student", "category", "popular")

TEXT_DECAY: Final = 0.7  # of a history item's weight per step back
CATEGORIES: Final = 3  # of a user, that popular items are taken from

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Candidates:
    """What the sources put forward for some users.

    Attributes:
        items: [n, C] item_idx, ascending, −1 behind the end of a row; each once.
        source: [n, C] int8, in which of `SOURCES` the item stands highest.
        cooccurrence: what co-occurrence says of each user and item.
        text: what the likeness of texts says of them.
    """

    items: Ints
    source: npt.NDArray[np.int8]
    cooccurrence: Spread
    text: Spread


@dataclass(frozen=True)
class Popular:
    """What is popular at one moment among the items that may be shown, the most popular first.

    Attributes:
        everywhere: [n_windows, L] item_idx, −1 for none: only items with an event in the window.
        by_category: [n_categories + 1, L], likewise, by the events of the longest window; the last row is empty.
    """

    everywhere: Ints
    by_category: Ints


@dataclass(frozen=True)
class Sources:
    """The sources beside the student, fitted on a training part."""

    config: SourcesConfig
    cooccurrence: Csr  # [n_items, n_items]
    text: Csr  # [n_items, n_items]
    fresh: Bools  # [n_items], without an event in training
    category: npt.NDArray[np.int32]  # [n_items], −1 for none

    @classmethod
    def fit(
        cls, train: Sequences, items: pa.Table, text: npt.NDArray[np.float32] | None, config: SourcesConfig
    ) -> Sources:
        """Find every item's neighbours.

        Args:
            train: the sequences.
            items: the catalogue, as `schema.ITEMS`.
            text: [n_items, width] float32, sentence vectors; without them no source goes by text.
            config: how many neighbours.
        """
        fresh = np.bincount(train.item_idx, minlength=len(items)) == 0
        return cls(
            config,
            cooccurrence_neighbours(Cooccurrence.fit(train, len(items)), config.neighbours),
            text_neighbours(
                np.zeros((len(items), 1), np.float32) if text is None else centred_vectors(text),
                fresh,
                0 if text is None else config.neighbours,
            ),
            fresh,
            category_codes(items["category"]),
        )

    def save(self, folder: Path) -> None:
        """Write everything but the config."""
        save_neighbours(self.cooccurrence, folder, "cooccurrence")
        save_neighbours(self.text, folder, "text")
        save_npy(folder / "fresh.npy", self.fresh)
        save_npy(folder / "category.npy", self.category)

    @classmethod
    def load(cls, folder: Path, config: SourcesConfig) -> Sources:
        """Open what `save` wrote, neighbours memory-mapped."""
        cooccurrence, text = (load_neighbours(folder, name) for name in ("cooccurrence", "text"))
        return cls(config, cooccurrence, text, np.load(folder / "fresh.npy"), np.load(folder / "category.npy"))

    def popular(self, snapshot: Snapshot, allowed: Bools) -> Popular:
        """Rank the items that may be shown once for all users."""
        # Longer than a quota, so that enough is left of them for most of those who have seen some.
        width = 2 * max(self.config.popular, self.config.category) + 20
        counts = np.where(allowed, snapshot.recent, 0)
        everywhere = np.full((len(counts), width), -1, np.int64)
        for of_window, row in zip(everywhere, counts, strict=True):
            first = np.argsort(-row, kind="stable")[:width]
            of_window[: len(first)] = np.where(row[first] > 0, first, -1)
        longest = counts[int(np.argmax(self.config.windows))]
        listed = np.flatnonzero((longest > 0) & (self.category >= 0))
        listed = listed[np.lexsort((listed, -longest[listed], self.category[listed]))]
        code = self.category[listed]
        place = np.arange(len(listed)) - np.searchsorted(code, code)
        by_category = np.full((int(self.category.max(initial=-1)) + 2, width), -1, np.int64)
        kept = place < width
        by_category[code[kept], place[kept]] = listed[kept]
        return Popular(everywhere, by_category)

    def candidates(
        self, histories: Sequences, of_student: Ints, popular: Popular, *, allowed: Bools, hidden: Ints
    ) -> Candidates:
        """Ask all sources and merge what they say.

        A source's quota counts items that may be shown to the user. Lists of popular items are of bounded length:
        somebody who has seen most of one gets fewer.

        Args:
            histories: n rows, complete.
            of_student: [n, Q] what the student found, the best first, −1 for none; all of it is taken.
            popular: what is popular at the moment.
            allowed: [n_items], what may be shown to anybody.
            hidden: row · n_items + item that may not be shown to a row, ascending.
        """
        config, n_items = self.config, len(allowed)
        cooccurrence = Spread.of(histories, self.cooccurrence, decay=Cooccurrence.DECAY, last=config.history)
        text = Spread.of(histories, self.text, decay=TEXT_DECAY, last=config.history)
        windows = [np.tile(row, (len(histories), 1)) for row in popular.everywhere]
        found = {
            "again": _latest(histories, allowed, hidden, config.again),
            "cooccurrence": cooccurrence.best(config.cooccurrence, allowed, hidden),
            "text": text.best(config.text, allowed & self.fresh, hidden),
            "student": of_student,
            "category": _unhidden(popular.by_category[self._categories(histories)], hidden, config.category, n_items),
            "popular": np.hstack([_unhidden(each, hidden, config.popular, n_items) for each in windows]),
        }
        items, source = _merged([found[name] for name in SOURCES], n_items)
        return Candidates(items, source, cooccurrence, text)

    def _categories(self, histories: Sequences) -> Ints:
        """The categories that stand most in each history, later events more: [n, CATEGORIES], −1 for none."""
        items, _ = pad_left(histories, self.config.history)
        category = np.where(items >= 0, self.category[items], -1)
        weight = TEXT_DECAY ** np.arange(items.shape[1])[::-1] * (category >= 0)
        same = category[:, :, None] == category[:, None, :]
        total = np.einsum("nab,nb->na", same, weight)
        later = np.triu(np.ones(same.shape[1:], np.bool_), 1)
        total[(same & later).any(axis=2) | (category < 0)] = 0  # counted where the category stands last
        first = np.argsort(-total, axis=1, kind="stable")[:, :CATEGORIES]
        return np.where(np.take_along_axis(total, first, 1) > 0, np.take_along_axis(category, first, 1), -1)


def _latest(histories: Sequences, allowed: Bools, hidden: Ints, most: int) -> Ints:
    """The items of each history that may be shown, the latest first, each once: [n, most], −1 for none."""
    row = np.repeat(np.arange(len(histories)), histories.lengths)
    keys = (row * np.int64(len(allowed)) + histories.item_idx)[::-1]
    distinct, first = np.unique(keys, return_index=True)
    may = allowed[distinct % len(allowed)] & ~is_in(distinct, hidden)
    latest = len(keys) - 1 - np.sort(first[may])  # descending places: rows from the last one on
    row, item = row[latest], histories.item_idx[latest]
    place = np.arange(len(row)) - np.searchsorted(-row, -row)
    found = np.full((len(histories), most), -1, np.int64)
    kept = place < most
    found[row[kept], place[kept]] = item[kept]
    return found


def _unhidden(lists: Ints, hidden: Ints, most: int, n_items: int) -> Ints:
    """The first items of each row that are not hidden from it, [n, most], −1 for none.

    Args:
        lists: [n, L], or [n, G, L] for G lists that are taken in turn.
        hidden: row · n_items + item, ascending.
        most: how many.
        n_items: size of the catalogue.
    """
    lists = lists if lists.ndim == 2 else np.swapaxes(lists, 1, 2).reshape(len(lists), -1)
    keys = np.arange(len(lists))[:, None] * np.int64(n_items) + lists
    may = (lists >= 0) & ~is_in(keys, hidden)
    place = may.cumsum(axis=1) - 1
    may &= place < most
    found = np.full((len(lists), most), -1, np.int64)
    row, column = np.nonzero(may)
    found[row, place[row, column]] = lists[row, column]
    return found


def _merged(found: list[Ints], n_items: int) -> tuple[Ints, npt.NDArray[np.int8]]:
    """Each row's items of all sources, ascending, and in which each stands highest; of equal places the first source.

    Args:
        found: [n, Q] of each source, the best first, −1 for none.
        n_items: size of the catalogue.

    Returns:
        items [n, C], −1 behind the end of a row, and the place of the source in `found` [n, C].
    """
    n = len(found[0])
    parts = []
    for source, items in enumerate(found):
        row, place = np.nonzero(items >= 0)
        key = row * np.int64(n_items) + items[row, place]
        parts.append(key << 24 | np.minimum(place, 2**20 - 1) << 4 | source)
    entries = np.sort(np.concatenate(parts))
    key = entries >> 24
    first = np.flatnonzero(np.diff(key, prepend=-1))
    row, item = np.divmod(key[first], n_items)
    column = np.arange(len(row)) - np.searchsorted(row, row)
    items = np.full((n, int(column.max(initial=-1)) + 1), -1, np.int64)
    of = np.zeros(items.shape, np.int8)
    items[row, column], of[row, column] = item, entries[first] & 15
    return items, of
