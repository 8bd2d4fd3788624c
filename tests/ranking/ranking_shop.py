"""A shop from plain lists as a real dataset artifact, and a linear two-tower model over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from recsys import schema
from recsys.artifacts import Recipe
from recsys.ingest.dataset import Dataset, Sequences, take
from recsys.retrieval.config import IndexConfig
from recsys.retrieval.index import ItemIndex, Vectors, build_index
from recsys.runtime import Runtime
from tests.written import write_sequences

RUNTIME = Runtime(seed=1, threads=1, progress=False)
EVENT_TYPES = ("view", "cart", "purchase", "wishlist")
START = 1_700_000_000_000_000  # microseconds, 2023-11-14T22:13:20Z

Event = tuple[int, int]  # item_idx, code of the event type


class Source(BaseModel):
    name: str


def write_dataset(
    out: Path,
    histories: Sequence[Sequence[Event]],
    n_items: int,
    *,
    held_out: int = 0,
    **catalogue: Sequence[object],
) -> Dataset:
    """The files that `recsys ingest` writes. Event p of a user happens p seconds after the start.

    The last `held_out` events of each user are the test part, as many before them the validation part.
    """
    n_users = len(histories)
    columns: dict[str, Sequence[object]] = {
        schema.ITEM_IDX: range(n_items),
        schema.ITEM_ID: [f"i{i}" for i in range(n_items)],
        "title": [f"Title {i}" for i in range(n_items)],
    } | catalogue
    items = {each.name: columns.get(each.name) or [None] * n_items for each in schema.ITEMS}
    lengths = [len(row) for row in histories]
    tables = {
        "users": pa.table(
            {schema.USER_IDX: range(n_users), schema.USER_ID: [f"u{u}" for u in range(n_users)]}, schema.USERS
        ),
        "items": pa.table(items, schema.ITEMS),
    }
    with Recipe("dataset", Source(name=str(out)), {}, 0, ()).build(out) as draft:
        for name, table in tables.items():
            pq.write_table(table, draft.path / f"{name}.parquet")
        write_sequences(
            draft.path,
            [[item for item, _ in row] for row in histories],
            [[START + p * 1_000_000 for p in range(len(row))] for row in histories],
            [max(n - 2 * held_out, 0) for n in lengths],
            [max(n - held_out, 0) for n in lengths],
            [[code for _, code in row] for row in histories],
        )
        weights = [1.0] * len(EVENT_TYPES)
        draft.info |= {"event_types": list(EVENT_TYPES), "event_weights": weights, "protocol": "leave_one_out"}
    return Dataset.open(out)


@dataclass
class Linear:
    """A user is the sum of the item vectors of the last three events, an empty history a vector of its own.

    Over small integers all of its arithmetic is exact, so that scores do not depend on the order of summation.
    """

    item_vectors: Vectors
    fingerprint: str = "linear"
    asked: list[int] = field(default_factory=list)  # how many users, call by call

    def user_vectors(self, histories: Sequences, *, runtime: Runtime = RUNTIME) -> Vectors:
        self.asked.append(len(histories))
        vectors = np.zeros((len(histories), self.item_vectors.shape[1]), np.float32)
        for row, (begin, end) in enumerate(zip(histories.offsets, histories.offsets[1:], strict=False)):
            last = histories.item_idx[max(begin, end - 3) : end]
            vectors[row] = self.item_vectors[last].sum(axis=0) if len(last) else self.item_vectors[:2].sum(axis=0)
        return vectors


def integer_vectors(rng: np.random.Generator, n_items: int, dim: int = 4) -> Vectors:
    """Small integers: sums and products are exact, and equal scores are frequent."""
    return rng.integers(-2, 3, (n_items, dim)).astype(np.float32)


def build_shop(
    folder: Path,
    vectors: Vectors,
    histories: Sequence[Sequence[Event]],
    *,
    index: IndexConfig | None = None,
    **catalogue: Sequence[object],
) -> tuple[Dataset, Linear, ItemIndex]:
    """Dataset, model and index of one shop."""
    dataset = write_dataset(folder / "dataset", histories, len(vectors), **catalogue)
    student = Linear(vectors)
    return dataset, student, build_index(student, index or IndexConfig(), folder / "index", runtime=RUNTIME)


def random_histories(rng: np.random.Generator, n_users: int, n_items: int, longest: int) -> list[list[Event]]:
    """Histories of 0 to `longest` events, some items more than once."""
    return [
        [(int(item), int(code)) for item, code in zip(rng.integers(0, n_items, n), rng.integers(0, 4, n), strict=True)]
        for n in rng.integers(0, longest + 1, n_users)
    ]


def moment(seconds: int) -> datetime:
    """A time relative to the first event."""
    return datetime.fromtimestamp(START // 1_000_000 + seconds, UTC)


def permuted(histories: Sequences, order: npt.NDArray[np.int64]) -> Sequences:
    """The same rows in another order."""
    return take(histories, histories.offsets[order], histories.lengths[order])
