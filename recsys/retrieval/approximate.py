"""Approximate indexes of FAISS: which there are, what they take, how they are built and searched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
import numpy.typing as npt

from recsys.retrieval.config import IndexConfig, IndexType, Refine
from recsys.retrieval.exact import Found, Vectors, rescored
from recsys.runtime import Runtime

# FAISS trains its clusters on at least 39 vectors each; a 4-bit product quantizer has 16 of them.
POINTS_PER_CENTROID: Final = 39
FEWEST_FOR_IVF: Final = 16 * POINTS_PER_CENTROID
# FAISS' defaults (25 passes over 256 vectors a cluster) take ten times as long, for clusters that are searched at the
# same nprobe.
TRAIN_PASSES, TRAIN_POINTS = 10, 64
LINKS: Final = 32  # of a graph's node on each level above the lowest, which has twice as many
HEADERS: Final = 1 << 14  # bytes, more than the parts of a file that do not grow
REFINED: Final = ("ivf_pq", "ivf_rabitq")  # types whose codes are too short to choose by
BYTES_PER_NUMBER: Final[Mapping[Refine, int]] = {"fp32": 4, "fp16": 2, "sq8": 1}
# Vectors that are added to an index at a time, and entries of one table of candidates, 20 bytes each.
ADD_ITEMS, CANDIDATES = 1 << 16, 1 << 22


@dataclass(frozen=True)
class Plan:
    """An index as it would be built.

    Attributes:
        type: which.
        refine: the vectors that choose among what the codes find; None where the codes do.
        factory: the string by which FAISS makes the index; "" for flat, which needs nothing but the vectors.
        nlist: clusters; 0 without.
        memory: bytes of what every search reads: an upper bound, close for catalogues that are not small.
    """

    type: IndexType
    refine: Refine | None
    factory: str
    nlist: int
    memory: int

    @classmethod
    def of(cls, kind: IndexType, refine: Refine | None, n_items: int, dim: int) -> Plan:
        """The index of a type for a catalogue.

        Clusters: about 4 √n, as FAISS' guidelines have it, rounded to a power of two. Bytes an item: 8 for its number
        in a cluster and its code, which is half a byte for each part of a product quantizer (two numbers of the
        vector), 1 for each number (SQ8), or 1 bit for each and two float32 (RaBitQ, Gao and Long, SIGMOD 2024); in
        a graph its 4-byte links, on 1 + 1 / (LINKS − 1) levels in the mean, and 12 to find them.
        """
        if kind == "flat":
            return cls(kind, None, "", 0, 4 * dim * n_items)
        if kind == "hnsw":
            links = 4 * (2 * LINKS + LINKS / (LINKS - 1)) + 12
            return cls(kind, None, f"HNSW{LINKS}_SQ8", 0, math.ceil(1.02 * n_items * (dim + links)) + HEADERS)
        nlist = max(1, min(2 ** round(math.log2(4 * math.sqrt(n_items))), n_items // POINTS_PER_CENTROID))
        parts = dim // 2 if dim % 2 == 0 else dim
        code, name = {
            "ivf_pq": ((parts + 1) // 2, f"PQ{parts}x4fs"),
            "ivf_sq": (dim, "SQ8"),
            "ivf_rabitq": ((dim + 7) // 8 + 8, "RaBitQ"),
        }[kind]
        # The codes of a 4-bit product quantizer stand in blocks of 32.
        coded = n_items * (8 + code) + (31 * code * nlist if kind == "ivf_pq" else 0)
        clusters = nlist * (4 * dim + 16) + 4 * 16 * dim
        refining = BYTES_PER_NUMBER[refine] * dim * n_items if refine else 0
        stored = {"fp16": ",Refine(SQfp16)", "sq8": ",Refine(SQ8)"}.get(refine or "", "")
        memory = coded + clusters + refining + 8 * dim + HEADERS
        return cls(kind, refine, f"IVF{nlist},{name}{stored}", nlist, memory)


@dataclass(frozen=True)
class Approximate:
    """A FAISS index over vectors that lie beside it, which give everything it finds its exact score.

    Attributes:
        index: `faiss.Index`.
        type: which.
        refine: "fp32" where the vectors choose among what the codes find.
        vectors: [n_items, dim], contiguous.
    """

    index: Any
    type: IndexType
    refine: Refine | None
    vectors: Vectors

    def search(
        self, queries: Vectors, k: int, params: Mapping[str, int], allowed: npt.NDArray[np.bool_] | None = None
    ) -> Found:
        """The `k` best of what FAISS finds, by exact score, equal ones by item_idx; −1 where it found too few.

        Args:
            queries: [n, dim], contiguous.
            k: how many.
            params: efSearch of a graph or nprobe of clusters, for all items; k_factor, how many times k candidates
                the codes give.
            allowed: [n_items] bool, what may be found.
        """
        selector, share = None, 1.0
        if allowed is not None:
            selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            share = float(allowed.mean())
        # The top k of a tenth of the items is spread over the top 10 k of all.
        if self.type == "hnsw":
            search = faiss.SearchParametersHNSW(efSearch=math.ceil(params["efSearch"] / share), sel=selector)
        else:
            nlist = faiss.extract_index_ivf(self.index).nlist
            search = faiss.SearchParametersIVF(nprobe=min(math.ceil(params["nprobe"] / share), nlist), sel=selector)
        fetch = min(k * params["k_factor"], max(k, len(self.vectors)))
        if self.refine in ("fp16", "sq8"):
            search = faiss.IndexRefineSearchParameters(k_factor=params["k_factor"], base_index_params=search)
            fetch = k
        scores, found = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        step = max(1, CANDIDATES // (k * params["k_factor"]))
        for start in range(0, len(queries), step):
            rows = slice(start, start + step)
            _, candidates = self.index.search(queries[rows], fetch, params=search)
            scores[rows], found[rows] = rescored(queries[rows], self.vectors, candidates, k)
        return scores, found


def build(plan: Plan, vectors: Vectors, config: IndexConfig, scratch: Path, *, runtime: Runtime) -> Any:
    """Train an index and put vectors into it, in shards where there are many.

    Every shard is the same trained index with other vectors, written to the scratch folder; a build that was killed
    takes the ones that are there. Merged one after the other they are what one index of all vectors would be. Memory:
    the sample that it is trained on, then the merged index and one shard.

    Args:
        plan: which; not flat.
        vectors: [n_items, dim], which may be memory-mapped.
        config: size of a shard.
        scratch: folder for the shards.
        runtime: seed, progress.

    Returns:
        `faiss.Index`.
    """
    n_items, size = len(vectors), config.shard_items
    if plan.type == "hnsw" or n_items <= size:
        index = _trained(plan, vectors, runtime)
        add(index, plan.type, vectors, runtime=runtime)
        return index
    folder = scratch / f"{plan.type}-{plan.refine}"
    folder.mkdir(parents=True, exist_ok=True)
    trained = _kept(folder / "trained.faiss", lambda: _trained(plan, vectors, runtime))
    starts = range(0, n_items, size)

    def shard(start: int) -> Any:
        index = faiss.read_index(str(trained))
        add(index, plan.type, vectors[start : start + size], runtime=runtime)
        return index

    files = [_kept(folder / f"{start:012d}.faiss", lambda start=start: shard(start)) for start in starts]
    merged = faiss.read_index(str(files[0]))
    for file in files[1:]:
        _merge(merged, faiss.read_index(str(file)))
    return merged


def add(index: Any, kind: IndexType, vectors: Vectors, *, runtime: Runtime) -> None:
    """Put vectors into an index, behind those that are there."""
    # Threads that add to a graph race, and the same vectors would give another graph every time.
    with _one_thread() if kind == "hnsw" else nullcontext():
        starts = range(0, len(vectors), ADD_ITEMS)
        for start in runtime.track(starts, label=f"index {kind}", unit="block"):
            index.add(np.ascontiguousarray(vectors[start : start + ADD_ITEMS]))


def _trained(plan: Plan, vectors: Vectors, runtime: Runtime) -> Any:
    index = faiss.index_factory(vectors.shape[1], plan.factory, faiss.METRIC_INNER_PRODUCT)
    n_points = max(plan.nlist * TRAIN_POINTS, 1 << 16)
    if plan.type != "hnsw":
        ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
        ivf.cp.niter, ivf.cp.max_points_per_centroid = TRAIN_PASSES, TRAIN_POINTS
        ivf.cp.seed = runtime.seed % (1 << 31)
        if plan.type == "ivf_pq":
            ivf.pq.cp.seed = ivf.cp.seed
    if n_points < len(vectors):
        rng = np.random.default_rng([runtime.seed, 2])
        vectors = vectors[np.sort(rng.choice(len(vectors), n_points, replace=False))]
    index.train(np.ascontiguousarray(vectors))
    return index


def _merge(index: Any, shard: Any) -> None:
    """Append a shard's vectors; the shard is empty afterwards."""
    n_items, n_more = index.ntotal, shard.ntotal
    into, source = faiss.downcast_index(index), faiss.downcast_index(shard)
    if isinstance(into, faiss.IndexRefine):
        faiss.downcast_index(into.base_index).merge_from(faiss.downcast_index(source.base_index), n_items)
        faiss.downcast_index(into.refine_index).merge_from(faiss.downcast_index(source.refine_index), 0)
        into.ntotal = n_items + n_more
    else:
        into.merge_from(source, n_items)


def _kept(file: Path, make: Any) -> Path:
    """The file, written if it is not there."""
    if not file.exists():
        temporary = file.with_suffix(".tmp")
        faiss.write_index(make(), str(temporary))
        temporary.replace(file)
    return file


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
