"""Stage `index`: the student's item vectors, searchable by inner product."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import faiss
import numpy as np
import numpy.typing as npt

from recsys.artifacts import Artifact, Recipe
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset, Sequences
from recsys.retrieval.config import IndexConfig, IndexType
from recsys.runtime import Runtime

FILE = "items.faiss"

Vectors = npt.NDArray[np.float32]  # [n, dim]
Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]  # scores and item_idx, both [n, k]

# Where tuning starts.
FIRST_PARAMS = {"efSearch": 32, "nprobe": 4, "k_factor": 2}
# FAISS trains its clusters on at least 39 vectors each; a 4-bit product quantizer has 16 of them.
POINTS_PER_CENTROID = 39
FEWEST_FOR_IVF_PQ = 16 * POINTS_PER_CENTROID
# A search among few items copies their vectors, so many at a time.
GATHER_ITEMS = 1 << 17
# Entries of one table of scores while ties are resolved, 12 bytes each.
TIE_ENTRIES = 1 << 22


class VectorModel(Protocol):
    """A two-tower model as the stages after training see it; `recsys.student.model.Student` is one."""

    @property
    def fingerprint(self) -> str:
        """Digest of all that made the model."""

    @property
    def item_vectors(self) -> Vectors:
        """[n_items, dim] float32, row i is item_idx i; a pair's score is the dot product with the user's vector."""

    def user_vectors(self, histories: Sequences, *, runtime: Runtime) -> Vectors:
        """[n, dim] float32, one row per history; an empty history has a vector too."""


def build_index(
    student: VectorModel,
    config: IndexConfig,
    out: Path,
    *,
    dataset: Dataset | None = None,
    runtime: Runtime = Runtime(),
    force: bool = False,
) -> ItemIndex:
    """Index the student's item vectors; an approximate index is tuned until its measured recall reaches the target.

    Args:
        student: whose item vectors.
        config: which index, and how good.
        out: where the artifact goes.
        dataset: users whose vectors are the queries that an approximate index is tuned with. Without it the queries
            are item vectors with noise, which lie nearer to the items than users do.
        runtime: seed, threads.
        force: build even if `out` is up to date.

    Raises:
        InputError: the vectors are not finite, or the index that the config names cannot reach the target.
    """
    inputs = {"student": student.fingerprint} | ({"dataset": dataset.fingerprint} if dataset is not None else {})
    recipe = Recipe(kind="index", config=config, inputs=inputs, seed=runtime.seed, modules=("recsys.retrieval",))
    if force or not recipe.is_current(out):
        with recipe.build(out) as draft:
            use_threads(runtime)
            vectors = student.item_vectors
            if not np.isfinite(vectors).all():
                raise InputError(
                    "the student's item vectors hold NaN or infinity",
                    expected="finite numbers",
                    do="train again with a lower distill.lr or precision = 'fp32': `recsys run --from distill`",
                )
            queries = None if dataset is None else partial(_user_vectors, student, dataset, config, runtime)
            fitted = fit(vectors, config, queries=queries, runtime=runtime)
            faiss.write_index(fitted.index, str(draft.path / FILE))
            size = (draft.path / FILE).stat().st_size
            draft.counts |= {"items": len(vectors), "dim": vectors.shape[1], "recall": fitted.recall, "bytes": size}
            draft.info |= {
                "type": fitted.type,
                "factory": fitted.factory,
                "params": dict(fitted.params),
                "recall": fitted.recall,
                "recall_at": min(config.recall_at, len(vectors)),
                "tuned_with": "item vectors with noise" if dataset is None else "user vectors",
                "rejected": fitted.rejected,
                "seconds": fitted.seconds,
                "bytes": size,
            }
    return ItemIndex.open(out)


class ItemIndex(Artifact):
    """What `recsys index` writes: `items.faiss`; its type, parameters and measured recall stand in the manifest."""

    kind: ClassVar[str] = "index"
    stage: ClassVar[str] = "index"

    def search(self, queries: Vectors, k: int, *, allowed: npt.NDArray[np.bool_] | None = None) -> Found:
        """The items with the largest inner product with each query.

        A flat index is exact: equal scores are in the order of item_idx, at the last place too. An approximate one
        finds the share that its manifest names, and is searched as much deeper as `allowed` is narrower. Where it
        finds fewer items than were asked for, or few items are allowed, the search is exact.

        Args:
            queries: [n, dim] float32.
            k: how many items, at least 1.
            allowed: [n_items] bool, the items that may be found; all by default.

        Returns:
            scores float32 and item_idx int64, both [n, min(k, number of allowed items)], the best first. All entries
            are items: there is no padding.

        Raises:
            InputError: shapes that do not fit, or queries that are not finite.
        """
        queries = self._checked(queries, k, allowed)
        items = None if allowed is None or allowed.all() else np.flatnonzero(allowed)
        n_items = len(self.vectors)
        n_allowed = n_items if items is None else len(items)
        width = min(k, n_allowed)
        if not len(queries) or not width:
            return np.empty((len(queries), width), np.float32), np.empty((len(queries), width), np.int64)
        info = self.manifest["info"]
        # A graph or a cluster of which a tenth is left is mostly a way through items that may not be found.
        few = items is not None and n_allowed <= min(self.manifest["config"]["flat_up_to"], n_items // 10)
        if info["type"] == "flat" or few:
            return exact_search(queries, self.vectors, width, items)
        scores, found = _approximate(self._index, info["type"], info["params"], queries, width, allowed)
        short = np.flatnonzero((found < 0).any(axis=1))
        if short.size:
            scores[short], found[short] = exact_search(queries[short], self.vectors, width, items)
        return scores, found

    @cached_property
    def vectors(self) -> Vectors:
        """The indexed vectors, [n_items, dim] float32: a read-only view of the memory-mapped file."""
        flat = self._index
        if self.manifest["info"]["type"] == "hnsw":
            flat = faiss.downcast_index(flat.storage)
        elif self.manifest["info"]["type"] == "ivf_pq":
            flat = faiss.downcast_index(flat.refine_index)
        view: Vectors = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
        view.flags.writeable = False  # the map is read-only: a write would be a segmentation fault
        return view

    @cached_property
    def _opened(self) -> Any:
        """What `read_index` gave: it owns the memory that `_index`, its view by actual type, points into."""
        try:
            return faiss.read_index(str(self.path / FILE), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise InputError(
                f"{self.path / FILE} cannot be read: {str(error).splitlines()[0]}",
                expected="the file as it was written",
                do="write the artifact again: `recsys run --from index`",
            ) from None

    @cached_property
    def _index(self) -> Any:
        return faiss.downcast_index(self._opened)

    def _checked(self, queries: Vectors, k: int, allowed: npt.NDArray[np.bool_] | None) -> Vectors:
        n_items, dim = self.vectors.shape
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise InputError(
                f"queries of shape {list(queries.shape)}",
                expected=f"[n, {dim}]",
                do="use the vectors of the student that the index was built from",
            )
        if not np.isfinite(queries).all():
            raise InputError("queries hold NaN or infinity", expected="finite numbers", do="look at the user vectors")
        if k < 1:
            raise InputError(f"k = {k}", expected="at least 1", do="correct k")
        if allowed is not None and (allowed.shape != (n_items,) or allowed.dtype != np.bool_):
            raise InputError(
                f"allowed of shape {list(allowed.shape)} and type {allowed.dtype}",
                expected=f"[{n_items}] bool, one for each item",
                do="make the mask from the same dataset",
            )
        return np.ascontiguousarray(queries, dtype=np.float32)


@dataclass(frozen=True)
class Fitted:
    """An index and how it came out."""

    index: Any  # faiss.Index
    type: IndexType
    factory: str  # the string by which FAISS makes such an index
    params: Mapping[str, int]  # of the search
    recall: float  # measured, 1 for an exact index
    seconds: Mapping[str, float]  # of building and of tuning
    rejected: list[dict[str, Any]]  # the type that "auto" tried before, with what it reached


def fit(
    vectors: Vectors,
    config: IndexConfig,
    *,
    queries: Callable[[], Vectors] | None = None,
    runtime: Runtime = Runtime(),
) -> Fitted:
    """Build an index of vectors, and tune it if it is an approximate one.

    Args:
        vectors: [n_items, dim], the items.
        config: which index, and how good.
        queries: gives the vectors that an approximate index is tuned with, [n, dim]; by default items with noise.
        runtime: seed, progress.

    Raises:
        InputError: the index that the config names cannot be built of so few items, or cannot reach the target.
    """
    kind: IndexType = (
        config.type if config.type != "auto" else "flat" if len(vectors) <= config.flat_up_to else "ivf_pq"
    )
    if kind == "ivf_pq" and len(vectors) < FEWEST_FOR_IVF_PQ:
        if config.type != "auto":
            raise InputError(
                f"index.type = 'ivf_pq' for {len(vectors)} items",
                expected=f"at least {FEWEST_FOR_IVF_PQ}, which its clusters are trained on",
                do="set index.type = 'auto'",
            )
        kind = "flat"
    fitted = _fit(kind, vectors, config, queries, runtime)
    if fitted.recall >= config.target_recall:
        return fitted
    reached = {"type": kind, "factory": fitted.factory, "params": dict(fitted.params), "recall": fitted.recall}
    if config.type != "auto":
        raise InputError(
            f"{fitted.factory} reached recall@{config.recall_at} {fitted.recall:.4f} at its deepest search",
            expected=f"index.target_recall = {config.target_recall}",
            do="set index.type = 'auto' or 'flat', or a lower target",
        )
    flat = _fit("flat", vectors, config, queries, runtime)
    return Fitted(flat.index, "flat", flat.factory, {}, 1.0, flat.seconds, [reached])


def exact_search(queries: Vectors, vectors: Vectors, k: int, items: npt.NDArray[np.int64] | None = None) -> Found:
    """The `k` items of largest inner product, equal ones in the order of item_idx, by looking at each.

    Args:
        queries: [n, dim], finite.
        vectors: [n_items, dim], finite.
        k: how many; there are as many items at least.
        items: [m] item_idx to look at, ascending; all by default.

    Returns:
        scores and item_idx, [n, k], the best first.
    """
    return _exact_search(queries, vectors, k, items, margin=1)


def use_threads(runtime: Runtime) -> None:
    """Let FAISS compute with as many threads as the run may use."""
    if runtime.threads:
        faiss.omp_set_num_threads(runtime.threads)


def _exact_search(
    queries: Vectors, vectors: Vectors, k: int, items: npt.NDArray[np.int64] | None, margin: int
) -> Found:
    n_items = len(vectors) if items is None else len(items)
    fetch = min(k + margin, n_items)
    scores, found = _ordered(*_knn(queries, vectors, fetch, items))
    top = scores[:, :k].copy(), found[:, :k].copy()
    if fetch < n_items:
        # When the last place has the score of the k-th, FAISS kept any of the equal ones: look further down.
        tied = np.flatnonzero(scores[:, k - 1] == scores[:, -1])
        margin *= 8
        for rows in np.array_split(tied, math.ceil(len(tied) * (k + margin) / TIE_ENTRIES) or 1) if tied.size else ():
            top[0][rows], top[1][rows] = _exact_search(queries[rows], vectors, k, items, margin)
    return top


def _knn(queries: Vectors, vectors: Vectors, k: int, items: npt.NDArray[np.int64] | None) -> Found:
    """Any exact top k. FAISS' own search with a selector compares pair by pair, 3 to 14 times slower than this."""
    if items is None:
        return _blas_knn(queries, vectors, k)
    scores, found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(items), GATHER_ITEMS):
        block = items[start : start + GATHER_ITEMS]
        more, place = _blas_knn(queries, vectors[block], min(k, len(block)))
        scores, found = _ordered(np.hstack([scores, more]), np.hstack([found, block[place]]))
        scores, found = scores[:, :k], found[:, :k]
    return scores, found


def _blas_knn(queries: Vectors, vectors: Vectors, k: int) -> Found:
    scores, found = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, found


def _ordered(scores: npt.NDArray[np.float32], found: npt.NDArray[np.int64]) -> Found:
    """Each row by falling score, equal scores by item_idx."""
    order = np.lexsort((found, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)


def _approximate(
    index: Any,
    kind: IndexType,
    params: Mapping[str, int],
    queries: Vectors,
    k: int,
    allowed: npt.NDArray[np.bool_] | None = None,
) -> Found:
    """What FAISS finds, ordered; −1 where it found too few."""
    selector, share = None, 1.0
    if allowed is not None:
        selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        share = float(allowed.mean())
    # The top k of a tenth of the items is spread over the top 10 k of all.
    if kind == "hnsw":
        search = faiss.SearchParametersHNSW(efSearch=math.ceil(params["efSearch"] / share), sel=selector)
    else:
        nlist = faiss.extract_index_ivf(index).nlist
        clusters = faiss.SearchParametersIVF(nprobe=min(math.ceil(params["nprobe"] / share), nlist), sel=selector)
        search = faiss.IndexRefineSearchParameters(k_factor=params["k_factor"], base_index_params=clusters)
    return _ordered(*index.search(queries, k, params=search))


def _fit(
    kind: IndexType,
    vectors: Vectors,
    config: IndexConfig,
    queries: Callable[[], Vectors] | None,
    runtime: Runtime,
) -> Fitted:
    n_items, dim = vectors.shape
    # About 4 √n clusters, as FAISS' guidelines have it, rounded to a power of two.
    nlist = max(1, min(2 ** round(math.log2(4 * math.sqrt(n_items))), n_items // POINTS_PER_CENTROID))
    factory = {
        "flat": "Flat",
        "hnsw": "HNSW32",
        "ivf_pq": f"IVF{nlist},PQ{dim // 2 if dim % 2 == 0 else dim}x4fs,RFlat",
    }[kind]
    started = time.perf_counter()
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    # Threads that add to a graph race, and the same vectors would give another graph every time.
    with _one_thread() if kind == "hnsw" else nullcontext():
        if not index.is_trained:
            _prepare_training(index, runtime.seed)
            index.train(np.ascontiguousarray(vectors))
        step = 1 << 16
        for start in runtime.track(range(0, n_items, step), label=f"index {factory}", unit="block"):
            index.add(np.ascontiguousarray(vectors[start : start + step]))
    built = time.perf_counter()
    params: dict[str, int] = {}
    recall = 1.0
    if kind != "flat":
        tuning = queries() if queries is not None else _noisy_items(vectors, config, runtime)
        params, recall = _tune(index, kind, nlist, vectors, tuning, config)
    seconds = {"build": round(built - started, 3), "tune": round(time.perf_counter() - built, 3)}
    return Fitted(index, kind, factory, params, round(recall, 5), seconds, [])


def _tune(
    index: Any, kind: IndexType, nlist: int, vectors: Vectors, queries: Vectors, config: IndexConfig
) -> tuple[dict[str, int], float]:
    """Double the parameter that gains the most recall until the target is reached, or all are at their limit."""
    n_items, k = len(vectors), min(config.recall_at, len(vectors))
    # A search that looks at more than a quarter of the items is no better than the exact one.
    limits = {"efSearch": n_items // 4} if kind == "hnsw" else {"nprobe": nlist // 4, "k_factor": n_items // (4 * k)}
    limits = {name: max(1, limit) for name, limit in limits.items()}
    params = {name: min(FIRST_PARAMS[name], limit) for name, limit in limits.items()}
    least = exact_search(queries, vectors, k)[0][:, -1:]

    def recall(params: Mapping[str, int]) -> float:
        # An item as good as the k-th counts, whichever of the equal ones it is; the scores that are compared come
        # from two kernels, which round differently.
        scores, found = _approximate(index, kind, params, queries, k)
        return float(((scores >= least - 1e-5 * np.abs(least)) & (found >= 0)).mean())

    reached = recall(params)
    while reached < config.target_recall:
        steps = [
            {**params, name: min(2 * value, limits[name])} for name, value in params.items() if value < limits[name]
        ]
        if not steps:
            break
        reached, params = max(((recall(step), step) for step in steps), key=lambda measured: measured[0])
    return params, reached


def _user_vectors(student: VectorModel, dataset: Dataset, config: IndexConfig, runtime: Runtime) -> Vectors:
    users = _sample(dataset.n_users, config, runtime).astype(np.int32)
    return student.user_vectors(dataset.histories(users), runtime=runtime)


def _noisy_items(vectors: Vectors, config: IndexConfig, runtime: Runtime) -> Vectors:
    items = np.asarray(vectors[_sample(len(vectors), config, runtime)])
    noise = np.random.default_rng([runtime.seed, 1]).standard_normal(items.shape, dtype=np.float32)
    noise *= 0.5 * items.std(axis=0)
    return items + noise


def _sample(n_rows: int, config: IndexConfig, runtime: Runtime) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng([runtime.seed, 0])
    return np.sort(rng.choice(n_rows, min(config.tuning_queries, n_rows), replace=False))


def _prepare_training(index: Any, seed: int) -> None:
    """Seed everything in an IVF-PQ index that draws at random, and shorten its clustering."""
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    ivf.cp.seed = ivf.pq.cp.seed = seed % (1 << 31)
    # FAISS' defaults (25 passes over 256 vectors a cluster) take ten times as long, for clusters that are searched
    # at the same nprobe.
    ivf.cp.niter, ivf.cp.max_points_per_centroid = 10, 64


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
