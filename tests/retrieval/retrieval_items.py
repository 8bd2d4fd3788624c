"""Items to index, and what the right answer would be."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recsys.ingest.dataset import Sequences
from recsys.retrieval.config import IndexConfig
from recsys.retrieval.index import ItemIndex, Vectors, build_index
from recsys.runtime import Runtime

RUNTIME = Runtime(seed=3, threads=1, progress=False)
APPROXIMATE = ("hnsw", "ivf_pq", "ivf_sq", "ivf_rabitq")


@dataclass
class Items:
    """Item vectors alone: all of a two-tower model that an index is built from."""

    item_vectors: Vectors

    @property
    def fingerprint(self) -> str:
        return hashlib.blake2b(repr(self.item_vectors.shape).encode() + self.item_vectors.tobytes()).hexdigest()

    def user_vectors(self, histories: Sequences, *, runtime: Runtime) -> Vectors:
        raise AssertionError("an index that is tuned without a dataset asks for no users")


def build(vectors: Vectors, out: Path, **config: object) -> ItemIndex:
    return build_index(Items(vectors), IndexConfig(**config), out, runtime=RUNTIME)


def clustered(n: int, dim: int, seed: int) -> tuple[Vectors, Vectors]:
    """Items as a student spreads them (clusters, norms that differ) and users near them, from other draws."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(n // 100, 3), dim))
    items = centres[rng.integers(0, len(centres), n)] + 0.5 * rng.normal(size=(n, dim))
    items *= rng.lognormal(0, 0.1, (n, 1))
    users = items[rng.choice(n, 400)] + 0.5 * rng.normal(size=(400, dim))
    return items.astype(np.float32), users.astype(np.float32)


def oracle(queries: Vectors, vectors: Vectors, k: int, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Every score in float64, sorted, the forbidden items dropped."""
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    ranked = [[i for i in np.lexsort((np.arange(len(vectors)), -row)) if allowed[i]] for row in scores]
    return np.array([row[:k] for row in ranked], dtype=np.int64).reshape(len(queries), min(k, allowed.sum()))


def best(queries: Vectors, vectors: Vectors, k: int, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The same in float32 and without an order among equal scores, for larger catalogues."""
    return np.argsort(np.where(allowed, -(queries @ vectors.T), np.inf), axis=1)[:, :k]


def recall(found: npt.NDArray[np.int64], truth: npt.NDArray[np.int64]) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, truth, strict=True)]))
