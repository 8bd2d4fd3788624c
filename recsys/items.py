"""What the catalogue says of items, as numbers: groups that they share, and text vectors that can be compared."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema


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


def centred_vectors(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Text vectors [n, d] without their mean, which all share and which says nothing about an item, of unit length."""
    return unit_vectors(vectors - vectors.mean(axis=0))


def unit_vectors(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows [n, d] of unit length; a row of 0 stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)
