"""What a ranker reads of a user and a candidate: every source's word, the item's state, the user's own dealings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys import schema
from recsys.ingest.dataset import Dataset, Sequences, pad_left
from recsys.items import category_codes, group_codes, group_shares, log_prices, price_distance
from recsys.ranking.repurchase import repurchase_days
from recsys.retrieval.neighbours import Spread
from recsys.retrieval.snapshot import DAY, NEVER, Snapshot
from recsys.retrieval.sources import TEXT_DECAY, Candidates

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Counts and similarities are read as logarithms, so that a weighted sum of them is a product of evidence. What is added
# before it says how little "nothing" is.
NO_COOCCURRENCE: Final = 0.01
NO_TEXT: Final = 0.05
LONG_AGO: Final = 3650.0  # days, for what never was
DUE: Final = 3.0  # bound of the logarithm of a repurchase's lateness


@dataclass(frozen=True)
class Catalogue:
    """What the features take from the catalogue and the training part."""

    groups: npt.NDArray[np.int32]  # [n_items, 3], brand, category, department (the category's first two levels)
    log_price: Floats  # [n_items], NaN where there is none
    repurchase: Floats  # [n_items], the usual days between two purchases of an item by one user
    last_neighbours: int  # events of a history that similarities are looked up for
    event_types: tuple[str, ...]

    @classmethod
    def of(cls, dataset: Dataset, history: int) -> Catalogue:
        """Read a dataset; of its log only the training part."""
        items = dataset.items
        codes = [group_codes(items["brand"]), *(category_codes(items["category"], levels=n) for n in (None, 2))]
        days = repurchase_days(dataset.train, codes[1])
        return cls(np.stack(codes, axis=1), log_prices(items), days, history, dataset.event_types)


def feature_names(event_types: tuple[str, ...], windows: tuple[int, ...]) -> list[str]:
    """The columns of `features`, in their order.

    * `student`: the dot product; `student_place`: −log(1 + its place among the user's candidates);
    * `cooccurrence`: log(.01 + Σ .6^age · similarity), `last_cooccurrence` of the last event alone;
    * `text`: log(.05 + Σ .7^age · exp(12 · (cosine − 1)));
    * `popularity`: log(1 + events), `popularity_7d` and so on of the last days;
    * `recency`: −log(1 + days since anybody's last event with the item); `fresh`: whether it has none;
    * `brand`, `category`, `department`: their shares of the history, later events more; `price`: −|log price − the
      history's mean log price|;
    * `own_view` and so on: log(1 + the user's events of this type with the item); `own_recency`: −log(1 + days since
      the last of them);
    * `due`: log(days since the user last bought it / the days after which it is usually bought again), 0 if never.
    """
    return [
        "student",
        "student_place",
        "cooccurrence",
        "last_cooccurrence",
        "text",
        "popularity",
        *(f"popularity_{days}d" for days in windows),
        "recency",
        "fresh",
        "brand",
        "category",
        "department",
        "price",
        *(f"own_{name}" for name in event_types),
        "own_recency",
        "due",
    ]


def features(
    histories: Sequences,
    candidates: Candidates,
    last: Spread,
    student: Floats,
    snapshot: Snapshot,
    catalogue: Catalogue,
) -> Floats:
    """Evidence of pairs.

    Args:
        histories: n rows, complete.
        candidates: of these rows, C at most.
        last: what co-occurrence says of the last event alone.
        student: [n, C] the student's scores.
        snapshot: the log at the moment that is asked about.
        catalogue: of the shop.

    Returns:
        [n, C, F] float32, finite, in the order of `feature_names`; behind the end of a row it means nothing.
    """
    items = np.maximum(candidates.items, 0)
    history, _ = pad_left(histories, catalogue.last_neighbours)
    weight = TEXT_DECAY ** np.arange(history.shape[1])[::-1] * (history >= 0)
    source = np.maximum(history, 0)
    place = np.argsort(np.argsort(np.where(candidates.items >= 0, -student, np.inf), axis=1, kind="stable"), axis=1)
    columns = [
        student,
        -np.log1p(place),
        np.log(NO_COOCCURRENCE + candidates.cooccurrence.at(items)),
        np.log(NO_COOCCURRENCE + last.at(items)),
        np.log(NO_TEXT + candidates.text.at(items)),
        np.log1p(snapshot.events[items]),
        *(np.log1p(of_window[items]) for of_window in snapshot.recent),
        -np.log1p(_days_since(snapshot.last, snapshot.now)[items]),
        snapshot.events[items] == 0,
        *np.moveaxis(group_shares(catalogue.groups, source, weight, items), -1, 0),
        -price_distance(catalogue.log_price, source, weight, items),
        *_own(histories, items, snapshot.now, catalogue),
    ]
    return np.stack([np.asarray(column, np.float32) for column in columns], axis=-1)


def _own(histories: Sequences, items: Ints, now: int, catalogue: Catalogue) -> list[npt.NDArray[np.floating]]:
    """How often the user did what with the item, how long ago, and whether it is due again: each [n, C]."""
    n_items, n_types = np.int64(len(catalogue.log_price)), len(catalogue.event_types)
    row = np.repeat(np.arange(len(histories)), histories.lengths)
    keys, pair = np.unique(row * n_items + histories.item_idx, return_inverse=True)
    counts = np.zeros((n_types, len(keys) + 1))
    np.add.at(counts, (histories.event_type, pair), 1)
    latest, bought = np.full(len(keys) + 1, NEVER), np.full(len(keys) + 1, NEVER)
    np.maximum.at(latest, pair, histories.timestamp)
    is_purchase = histories.event_type == schema.EVENT_TYPES.index("purchase")
    np.maximum.at(bought, pair[is_purchase], histories.timestamp[is_purchase])
    wanted = np.arange(len(items))[:, None] * n_items + items
    place = np.searchsorted(keys, wanted)
    place = np.where(np.append(keys, -1)[place] == wanted, place, len(keys))  # the last entry stands for none
    days = _days_since(bought, now)[place] / np.maximum(catalogue.repurchase[items], 1e-3)
    due = np.clip(np.log(np.maximum(days, 1e-3)), -DUE, DUE)
    return [
        *np.log1p(counts)[:, place],
        -np.log1p(_days_since(latest, now)[place]),
        np.where(bought[place] == NEVER, 0, due),
    ]


def _days_since(moment: Ints, now: int) -> npt.NDArray[np.float64]:
    return np.where(moment == NEVER, LONG_AGO, np.maximum(now - np.maximum(moment, 0), 0) / DAY)
