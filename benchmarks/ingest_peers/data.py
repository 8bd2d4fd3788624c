"""Logs of any size, as dirty as real ones: the same size and seed give the same files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

AS_OF: Final = datetime(2026, 3, 2, tzinfo=UTC)
DAYS: Final = 60
BLOCK: Final = 500_000

_US: Final = timedelta(microseconds=1)
_END: Final = (AS_OF - datetime(1970, 1, 1, tzinfo=UTC)) // _US
_SPAN: Final = timedelta(days=DAYS) // _US
_EVENTS: Final = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("event_type", pa.string()),
        ("timestamp", pa.timestamp("us")),
        ("value", pa.float64()),
    ]
)

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def generate(folder: Path, n_events: int, seed: int = 0) -> None:
    """Write `events.parquet` and `items.parquet`.

    A twentieth as many users as events and a hundredth as many items (at most 200,000), both skewed; times lie in the
    60 days before `AS_OF`. About 1 % of the rows are faulty, each in one of seven ways; 0.2 % repeat another row,
    0.1 % repeat its event with another value, and 0.5 % happen at the same time as another event of their user.

    Args:
        folder: where to write; made if it is not there.
        n_events: rows of the log; blocks of them are made one after the other, so memory does not grow with it.
        seed: another seed gives another log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    n_users, n_items = max(n_events // 20, 1), max(min(n_events // 100, 200_000), 1)
    pq.write_table(_items(n_items, np.random.default_rng([seed, 0])), folder / "items.parquet", compression="zstd")
    with pq.ParquetWriter(folder / "events.parquet", _EVENTS, compression="zstd") as writer:
        for number, first in enumerate(range(0, n_events, BLOCK), start=1):
            rng = np.random.default_rng([seed, number])
            writer.write_table(_events(min(BLOCK, n_events - first), n_users, n_items, rng))


def _events(n: int, n_users: int, n_items: int, rng: np.random.Generator) -> pa.Table:
    user = np.floor(n_users * rng.random(n) ** 1.5).astype(np.int64)
    item = np.floor(n_items * rng.random(n) ** 3).astype(np.int64)
    kind = rng.choice(3, n, p=[0.85, 0.09, 0.06])
    time = _END - 1 - rng.integers(0, _SPAN, n)
    value = np.round(rng.random(n) * 100, 2)

    # Few rows each: which of these a row is, if any.
    luck = rng.random(n)
    other = rng.integers(0, n, n)
    duplicate, same_event, tie = luck < 0.002, (luck >= 0.002) & (luck < 0.003), (luck >= 0.003) & (luck < 0.008)
    kind[other[same_event]] = 2  # only a purchase has a value to differ in
    for column, copied in (
        (user, duplicate | same_event | tie),
        (time, duplicate | same_event | tie),
        (item, duplicate | same_event),
        (kind, duplicate | same_event),
        (value, duplicate),
    ):
        column[copied] = column[other[copied]]

    fault = rng.integers(0, 7, n)
    fault[rng.random(n) >= 0.01] = -1
    time[fault == 4] = rng.choice([0, -1_000_000, -86_400_000_000], int((fault == 4).sum()))
    time[fault == 5] = _END + 1 + rng.integers(0, _SPAN, int((fault == 5).sum()))
    empty = (fault == 2) & (luck < 0.5)
    return pa.table(
        [
            _ids("U", user, 8, fault == 0),
            _ids("P", item, 7, fault == 1, odd=(fault == 6, "X")),
            pa.DictionaryArray.from_arrays(
                pa.array(np.where(empty, 3, kind), pa.int32(), mask=(fault == 2) & ~empty),
                pa.array(["view", "cart", "purchase", ""]),
            ).cast(pa.string()),
            pa.array(time, pa.timestamp("us"), mask=fault == 3),
            pa.array(value, mask=kind != 2),
        ],
        schema=_EVENTS,
    )


def _items(n: int, rng: np.random.Generator) -> pa.Table:
    order = rng.permutation(n)
    category, brand = rng.integers(0, 200, n), rng.integers(0, 1000, n)
    return pa.table(
        {
            "item_id": _ids("P", order, 7),
            "title": _ids("Item ", order, 7),
            "category": [f"Department {number // 10} > Shelf {number}" for number in category.tolist()],
            "brand": [f"Brand {number}" for number in brand.tolist()],
            "price": np.round(1 + 99 * rng.random(n), 2),
        }
    )


def _ids(
    prefix: str, number: Ints, digits: int, missing: Bools | None = None, odd: tuple[Bools, str] | None = None
) -> pa.Array:
    """Texts such as U00000001, null where `missing`; where `odd` says so, they begin with its letter instead."""
    width = len(prefix) + digits
    text = np.empty((len(number), width), dtype=np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix.encode(), dtype=np.uint8)
    if odd is not None:
        text[odd[0], 0] = ord(odd[1])
    for place in range(digits):
        text[:, width - 1 - place] = number // 10**place % 10 + ord("0")
    valid = None if missing is None else pa.array(~missing).buffers()[1]
    offsets = np.arange(0, text.size + 1, width, dtype=np.int32)
    return pa.StringArray.from_buffers(len(number), pa.py_buffer(offsets), pa.py_buffer(text), valid)
