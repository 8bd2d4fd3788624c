"""What is known of items beside their ids, as the item tower reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys.ingest.dataset import Dataset
from recsys.items import category_codes, centred_vectors, group_codes
from recsys.runtime import Runtime
from recsys.sequence.config import TowersConfig
from recsys.text import TextVectorsConfig, text_vectors

PRICES: Final = 16  # quantiles


@dataclass(frozen=True)
class ItemFeatures:
    """The catalogue as numbers.

    Attributes:
        text: [n_items, width] float32, sentence vectors: centred, of unit length; None where text is not read.
        groups: by name, [n_items] int64, which group an item is of; 0 for none and for a group of one.
    """

    text: npt.NDArray[np.float32] | None = None
    groups: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)


def towers_texts(
    dataset: Dataset, config: TowersConfig, out: Path, *, runtime: Runtime
) -> npt.NDArray[np.float32] | None:
    """[n_items, width] sentence vectors for towers that are written to `out`, beside which they lie.

    None where `config` reads no texts.
    """
    if not config.use_text:
        return None
    encoder = TextVectorsConfig(encoder=config.encoder)
    return text_vectors(dataset, encoder, out.parent / "text_vectors", runtime=runtime).vectors


def item_features(items: pa.Table, text: npt.NDArray[np.float32] | None, config: TowersConfig) -> ItemFeatures:
    """What of the catalogue `config` asks for.

    Args:
        items: the catalogue, as `schema.ITEMS`.
        text: [n_items, width] float32, the items' sentence vectors, or None.
        config: which features.
    """
    if text is not None:
        text = centred_vectors(text)
    groups: dict[str, npt.NDArray[np.int64]] = {}
    for feature in config.item_features:
        if feature == "price":
            groups["price"] = _quantiles(items["price"].to_numpy())
        elif feature == "category":
            groups["category"], groups["department"] = (
                _without_single(category_codes(items["category"], levels=levels)) for levels in (None, 2)
            )
        else:
            groups[feature] = _without_single(group_codes(items[feature]))
    return ItemFeatures(text, groups)


def _without_single(codes: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Codes from 1 of the groups that have at least two items, 0 for all else: one item has an id of its own."""
    shared = np.bincount(codes[codes >= 0], minlength=1) > 1
    number = np.cumsum(shared) * shared
    return np.where(codes >= 0, number[np.maximum(codes, 0)], 0).astype(np.int64)


def _quantiles(price: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Codes from 1, dear items last; 0 where there is no price."""
    price = price.astype(np.float64)
    there = price > 0
    if not there.any():
        return np.zeros(len(price), dtype=np.int64)
    bounds = np.unique(np.quantile(price[there], np.arange(1, PRICES) / PRICES))
    codes = 1 + np.searchsorted(bounds, price, side="right")
    return np.where(there, codes, 0).astype(np.int64)
