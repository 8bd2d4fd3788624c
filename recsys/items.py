"""What the catalogue says of items, as numbers: groups that they share, and text vectors that can be compared."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema

Floats = npt.NDArray[np.floating]


def group_codes(column: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    """[n] int32, a number for each distinct value in the order of their first item, −1 for null."""
    codes = pc.index_in(column, value_set=pc.unique(column).drop_null())
    filled: npt.NDArray[np.int32] = pc.fill_null(codes, -1).to_numpy()
    return filled


def category_codes(categories: pa.ChunkedArray, *, levels: int | None = None) -> npt.NDArray[np.int32]:
    """Categories as numbers, [n] int32, −1 for none.

    Args:
        categories: the catalogue's `category`, levels split by `schema.CATEGORY_SEPARATOR`.
        levels: number the paths' first so many levels instead of the whole paths.
    """
    names = categories.cast(pa.string())
    if levels is not None:
        split = pc.split_pattern(names, schema.CATEGORY_SEPARATOR)
        names = pc.binary_join(pc.list_slice(split, 0, levels), schema.CATEGORY_SEPARATOR)
    return group_codes(names)


def group_shares(
    groups: npt.NDArray[np.int32], history: npt.NDArray[np.int32], weight: Floats, candidates: npt.NDArray[np.integer]
) -> Floats:
    """How much of a history has the candidate's brand, category, or whatever else groups items.

    Args:
        groups: [n_items, G] from `group_codes`.
        history: [n, H] items, any where the weight is 0.
        weight: [n, H], what each counts.
        candidates: [n, C] items.

    Returns:
        [n, C, G], from 0 to 1; 0 for a candidate of no group.
    """
    share = weight / np.maximum(weight.sum(1, keepdims=True), 1e-9)
    columns = [
        np.einsum(
            "nh,nhc->nc",
            share,
            (of[history][:, :, None] == of[candidates][:, None]) & (of[candidates] >= 0)[:, None],
        )
        for of in groups.T
    ]
    return np.stack(columns, axis=-1)


def log_prices(items: pa.Table) -> npt.NDArray[np.float32]:
    """[n_items] float32 natural logarithms, NaN where there is no price or none above 0."""
    price = items["price"].to_numpy().astype(np.float64)
    return np.log(np.where(price > 0, price, np.nan)).astype(np.float32)


def price_distance(
    log_price: Floats, history: npt.NDArray[np.int32], weight: Floats, candidates: npt.NDArray[np.integer]
) -> Floats:
    """|log price − the weighted mean log price of the history|, [n, C]; 0 where either is unknown.

    Args:
        log_price: [n_items] from `log_prices`.
        history: [n, H] items, any where the weight is 0.
        weight: [n, H], what each counts.
        candidates: [n, C] items.
    """
    priced = weight * ~np.isnan(log_price[history])
    usual = (priced * np.nan_to_num(log_price[history])).sum(1) / np.maximum(priced.sum(1), 1e-9)
    distance = np.nan_to_num(np.abs(log_price[candidates] - usual[:, None]))
    return np.where((priced.sum(1) > 0)[:, None], distance, 0.0)


def centred_vectors(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Text vectors [n, d] without their mean, which all share and which says nothing about an item, of unit length."""
    return unit_vectors(vectors - vectors.mean(axis=0))


def unit_vectors(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows [n, d] of unit length; a row of 0 stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)
