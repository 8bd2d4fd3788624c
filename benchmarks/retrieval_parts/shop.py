"""Vectors of any number of items and users, and a dataset whose users have them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from recsys import schema
from recsys.artifacts import Recipe, create_npy
from recsys.ingest.dataset import Dataset, Ragged, Sequences
from recsys.ingest.histories import Histories
from recsys.ingest.sequences import write_parts
from recsys.retrieval.exact import exact_search
from recsys.runtime import Runtime
from recsys.student.model import Student

Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

DIM: Final = 128
CENTRES: Final = 12_000  # without a student
HISTORIES, LONGEST, NEAR = 20_000, 20, 50  # histories that users begin with, their events, the items these are among
NOISE: Final = 0.5  # of each number's deviation
ITEMS_PER_BRAND: Final = 4  # before the noise
BLOCK: Final = 1 << 16
START: Final = 1_700_000_000_000_000  # microseconds; user u's last event is u later, by which a model knows the user
SECOND: Final = 1_000_000


@dataclass(frozen=True)
class Shop:
    """What vectors are drawn around.

    Attributes:
        items: [n_centres, dim], a student's item vectors, or normal ones.
        users: [HISTORIES, dim].
        histories: of these users, rows of centres, the oldest event first.
        seed: decides what is drawn.
        name: of the vectors.
    """

    items: Vectors
    users: Vectors
    histories: Ragged
    seed: int
    name: str

    @classmethod
    def of(cls, student: Path | None, seed: int, runtime: Runtime) -> Shop:
        """Histories of items that are near to each other, and the vectors of the users who have them.

        A student's users are what its tower makes of the histories; without a student a user is the mean of the items.
        """
        rng = np.random.default_rng([seed, 0])
        model = None if student is None else Student.open(student)
        items = rng.standard_normal((CENTRES, DIM), dtype=np.float32) if model is None else np.array(model.item_vectors)
        near = exact_search(items[rng.integers(0, len(items), HISTORIES)], items, NEAR)[1]
        lengths = rng.integers(1, LONGEST + 1, HISTORIES)
        row = np.repeat(np.arange(HISTORIES), lengths)
        histories = Ragged(_offsets(lengths), near[row, rng.integers(0, NEAR, len(row))].astype(np.int32))
        if model is None:
            users = np.add.reduceat(items[histories.values], histories.offsets[:-1]) / lengths[:, None]
            users = users.astype(np.float32)
        else:
            empty = np.zeros(len(row), np.int8), START + np.arange(len(row)) * SECOND, np.zeros(len(row), np.int32)
            users = model.user_vectors(Sequences(histories.offsets, histories.values, *empty), runtime=runtime)
        return cls(items, users, histories, seed, "normal vectors" if student is None else "a student's vectors")

    def write_items(self, n: int, file: Path) -> Vectors:
        """[n, dim]: the first of the items as they are, or, where there are fewer, all of them, again with noise.

        Item i is one around the centre i modulo their number.
        """
        return self._spread(self.items, np.arange(n), file, as_they_are=n <= len(self.items))

    def write_users(self, n: int, file: Path) -> Vectors:
        """[n, dim]: users with noise; user u is around the user u modulo their number."""
        return self._spread(self.users, np.arange(n), file, as_they_are=False)

    def _spread(self, centres: Vectors, of: Ints, file: Path, *, as_they_are: bool) -> Vectors:
        rows = create_npy(file, shape=(len(of), centres.shape[1]), dtype=np.float32)
        deviation = NOISE * centres.std(axis=0)
        for start in range(0, len(of), BLOCK):
            block = centres[of[start : start + BLOCK] % len(centres)]
            if not as_they_are:
                rng = np.random.default_rng([self.seed, len(centres), start])
                block = block + deviation * rng.standard_normal(block.shape, dtype=np.float32)
            rows[start : start + BLOCK] = block
        rows.flush()
        return np.load(file, mmap_mode="r")

    def write_dataset(self, n_users: int, n_items: int, out: Path, out_of_stock: Ints | None = None) -> Dataset:
        """A dataset of so many users: the histories, with any item around each centre; brands of near centres."""
        source = _Source(name=f"{self.name}, seed {self.seed}, {n_users} users, {n_items} items")
        brand = np.arange(n_items) % len(self.items) // ITEMS_PER_BRAND
        number = np.arange(n_items).astype(str)
        columns = {
            schema.ITEM_IDX: np.arange(n_items, dtype=np.int32),
            schema.ITEM_ID: np.char.add("i", number),
            "title": np.char.add("Item ", number),
            "brand": np.char.add("Brand ", brand.astype(str)),
        }
        if out_of_stock is not None:
            columns["in_stock"] = ~np.isin(np.arange(n_items), out_of_stock)
        items = [pa.array(columns[name]) if name in columns else pa.nulls(n_items) for name in schema.ITEMS.names]
        users = {
            schema.USER_IDX: np.arange(n_users, dtype=np.int32),
            schema.USER_ID: np.char.add("u", np.arange(n_users).astype(str)),
        }
        with Recipe("dataset", source, {}, self.seed, ()).build(out) as draft:
            table = pa.table(items, names=schema.ITEMS.names).cast(schema.ITEMS)
            pq.write_table(table, draft.path / "items.parquet")
            pq.write_table(pa.table(users).cast(schema.USERS), draft.path / "users.parquet")
            write_parts(draft.path, self._all_histories(n_users, n_items))
            draft.info |= {"event_types": ["view"], "event_weights": [1.0], "protocol": "temporal"}
        return Dataset.open(out)

    def _all_histories(self, n_users: int, n_items: int) -> Iterator[Histories]:
        copies = -(-n_items // len(self.items))
        for start in range(0, n_users, BLOCK):
            user = np.arange(start, min(start + BLOCK, n_users))
            rows = self.histories.select(user % HISTORIES)
            rng = np.random.default_rng([self.seed, 1, start])
            item = rows.values + len(self.items) * rng.integers(0, copies, len(rows.values))
            lengths = rows.lengths
            until_last = np.repeat(rows.offsets[1:], lengths) - 1 - np.arange(len(item))
            yield Histories(
                user_idx=user.astype(np.int32),
                offsets=rows.offsets,
                item_idx=(item % n_items).astype(np.int32),
                event_type=np.zeros(len(item), np.int8),
                timestamp=START + np.repeat(user, lengths) - until_last * SECOND,
                session=np.zeros(len(item), np.int32),
                money=None,
                train_end=lengths.astype(np.int32),
                valid_end=lengths.astype(np.int32),
            )


@dataclass(frozen=True)
class Ready:
    """A two-tower model whose vectors are ready: of items, and of a dataset's users, whom it knows by the last event.

    Attributes:
        item_vectors: [n_items, dim].
        users: [n_users, dim].
    """

    item_vectors: Vectors
    users: Vectors

    @classmethod
    def open(cls, items: Path, users: Path) -> Ready:
        """Map two files."""
        return cls(np.asarray(np.load(items, mmap_mode="r")), np.load(users, mmap_mode="r"))

    @property
    def fingerprint(self) -> str:
        """Of the first vectors, and of how many there are."""
        parts = [repr((self.item_vectors.shape, self.users.shape)).encode()]
        parts += [each[:1000].tobytes() for each in (self.item_vectors, self.users)]
        return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()

    def user_vectors(self, histories: Sequences, *, runtime: Runtime) -> Vectors:
        """[n, dim]; every history has an event."""
        return self.users[histories.timestamp[histories.offsets[1:] - 1] - START]


class _Source(BaseModel):
    name: str


def _offsets(lengths: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths)])
