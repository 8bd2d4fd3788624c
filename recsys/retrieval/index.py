"""Stage `index`: the student's item vectors, searchable by inner product."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import faiss
import numpy as np
import numpy.typing as npt

from recsys.artifacts import Artifact, Draft, Recipe, create_npy, save_npy
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset, Sequences
from recsys.retrieval.approximate import Approximate, Plan, add
from recsys.retrieval.config import IndexConfig
from recsys.retrieval.exact import Found, Vectors, exact_search
from recsys.retrieval.fit import EXACT, Measured, fit, limits_of, tune
from recsys.runtime import Runtime

__all__ = ["ItemIndex", "VectorModel", "Vectors", "build_index", "update_index", "use_threads"]

FILE = "items.faiss"
VECTORS = "vectors.npy"
QUERIES = "queries.npy"
REMOVED = "removed.npy"

COPY_ITEMS = 1 << 16  # rows that are copied at a time


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
        config: which index, how good, in how much memory.
        out: where the artifact goes.
        dataset: users whose vectors are the queries that an approximate index is tuned with. Without it the queries
            are item vectors with noise, which lie nearer to the items than users do.
        runtime: seed, threads.
        force: build even if `out` is up to date.

    Raises:
        InputError: the vectors are not finite, or no index that the config allows fits in `memory_limit` and reaches
            the target.
    """
    inputs = {"student": student.fingerprint} | ({"dataset": dataset.fingerprint} if dataset is not None else {})
    recipe = Recipe(kind="index", config=config, inputs=inputs, seed=runtime.seed, modules=("recsys.retrieval",))
    if force or not recipe.is_current(out):
        with recipe.build(out) as draft:
            use_threads(runtime)
            vectors = _written(draft.path / VECTORS, [student.item_vectors])
            if dataset is None:
                queries = partial(_noisy, vectors, config, runtime)
            else:
                queries = partial(_user_vectors, student, dataset, config, runtime)

            def kept_queries() -> Vectors:
                if not (draft.path / QUERIES).exists():
                    save_npy(draft.path / QUERIES, queries())
                return _mapped(draft.path / QUERIES)

            fitted = fit(vectors, config, draft.scratch, queries=kept_queries, runtime=runtime)
            if fitted.index is None:
                (draft.path / QUERIES).unlink(missing_ok=True)  # of an approximate index that was rejected
            else:
                faiss.write_index(fitted.index, str(draft.path / FILE))
            draft.info |= {
                "type": fitted.plan.type,
                "refine": fitted.plan.refine,
                "factory": fitted.plan.factory or "Flat",
                "nlist": fitted.plan.nlist,
                "tuned_with": "item vectors with noise" if dataset is None else "user vectors",
                "rejected": list(fitted.rejected),
                "seconds": dict(fitted.seconds),
                "memory_estimated": fitted.plan.memory,
            }
            _describe(draft, vectors, config, fitted.params, fitted.measured, added=0, removed=0)
    return ItemIndex.open(out)


def update_index(
    index: ItemIndex,
    out: Path,
    *,
    added: Vectors | None = None,
    removed: Sequence[int] | npt.NDArray[np.integer[Any]] = (),
    runtime: Runtime = Runtime(),
    force: bool = False,
) -> ItemIndex:
    """The index with new items and without removed ones, made without training its clusters again.

    Every item keeps its item_idx, and new ones get those that follow. A removed item leaves a hole: no search finds it
    any more, and its number is not given again until the next build. Recall is measured anew, with the queries of the
    build and with the items added since, with noise; where it fell below the target, searches go deeper. `rebuild_due`
    in the manifest says why a rebuild is due, if it is. Memory: `items.faiss`; vectors are copied in blocks.

    Args:
        index: what to begin with; it stays as it is.
        out: where the artifact goes; the index's own place is allowed.
        added: [m, dim] float32 vectors of new items, by the same student.
        removed: item_idx that shall not be found any more, in any order; some may be removed already.
        runtime: seed, threads.
        force: write even if `out` is up to date.

    Raises:
        InputError: vectors of another width or not finite, or an item_idx that the index does not have.
    """
    before, config, info = index.vectors, IndexConfig.model_validate(index.manifest["config"]), index.manifest["info"]
    new = np.empty((0, before.shape[1]), np.float32) if added is None else np.ascontiguousarray(added, dtype=np.float32)
    if new.ndim != 2 or new.shape[1] != before.shape[1]:
        raise InputError(
            f"added vectors of shape {list(new.shape)}",
            expected=f"[m, {before.shape[1]}]",
            do="use vectors of the student that the index was built from",
        )
    gone = np.unique(np.asarray(removed, np.int64))
    if gone.size and not 0 <= gone[0] <= gone[-1] < len(before):
        raise InputError(
            f"removed item_idx from {gone[0]} to {gone[-1]}",
            expected=f"0 to {len(before) - 1}",
            do="leave out the items that the index does not have",
        )
    digests = {"added": hashlib.blake2b(new.tobytes()), "removed": hashlib.blake2b(gone.tobytes())}
    inputs = index.manifest["inputs"] | {name: digest.hexdigest()[:32] for name, digest in digests.items()}
    inputs |= {"index": index.fingerprint}
    recipe = Recipe(kind="index", config=config, inputs=inputs, seed=runtime.seed, modules=("recsys.retrieval",))
    if force or not recipe.is_current(out):
        with recipe.build(out) as draft:
            use_threads(runtime)
            vectors = _written(draft.path / VECTORS, [before, new])
            gone = np.union1d(index.removed, gone)
            save_npy(draft.path / REMOVED, gone)
            names = ("type", "refine", "factory", "nlist", "tuned_with", "rejected", "seconds", "memory_estimated")
            draft.info |= {name: info[name] for name in names}
            params, measured = info["params"], EXACT
            n_added = info["since_build"]["added"] + len(new)
            if info["type"] != "flat":
                shutil.copyfile(index.path / QUERIES, draft.path / QUERIES)
                extended = faiss.read_index(str(index.path / FILE))
                add(extended, info["type"], new, runtime=runtime)
                faiss.write_index(extended, str(draft.path / FILE))
                present = _present(len(vectors), gone)
                if present is None or present.any():
                    near_new = _noisy(vectors[len(vectors) - n_added :], config, runtime)
                    plan = Plan(info["type"], info["refine"], info["factory"], info["nlist"], 0)
                    limits = limits_of(plan, len(vectors), min(config.recall_at, len(vectors)))
                    approximate = Approximate(extended, plan.type, plan.refine, vectors)
                    groups = [_mapped(draft.path / QUERIES), near_new]
                    params, measured = tune(approximate, limits, params, groups, config, allowed=present)
            _describe(draft, vectors, config, params, measured, added=n_added, removed=len(gone))
    return ItemIndex.open(out)


class ItemIndex(Artifact):
    """What `recsys index` writes; type, parameters, measured recall and bytes stand in the manifest.

    `vectors.npy`: [n_items, dim] float32, memory-mapped; all of a flat index. `items.faiss`: codes, clusters, graph
    and vectors to refine with, of an approximate one, memory-mapped too, but for the codes of ivf_pq: FAISS 1.15
    reads the blocks of its fast scan into memory. `queries.npy`: what recall is measured with. `removed.npy`: the
    item_idx that are not found any more.
    """

    kind: ClassVar[str] = "index"
    stage: ClassVar[str] = "index"

    def search(self, queries: Vectors, k: int, *, allowed: npt.NDArray[np.bool_] | None = None) -> Found:
        """The items with the largest inner product with each query.

        Scores are exact. A flat index finds exactly the best: equal scores are in the order of item_idx, at the last
        place too. An approximate one finds the share that its manifest names, and is searched as much deeper as
        `allowed` is narrower. Where it finds fewer items than were asked for, or few items are allowed, the search
        is exact.

        Args:
            queries: [n, dim] float32.
            k: how many items, at least 1.
            allowed: [n_items] bool, the items that may be found; all by default. Removed ones never are.

        Returns:
            scores float32 and item_idx int64, both [n, min(k, number of allowed items)], the best first. All entries
            are items: there is no padding.

        Raises:
            InputError: shapes that do not fit, or queries that are not finite.
        """
        queries = self._checked(queries, k, allowed)
        if self._present is not None:
            allowed = self._present if allowed is None else allowed & self._present
        items = None if allowed is None or allowed.all() else np.flatnonzero(allowed)
        n_items = len(self.vectors)
        n_allowed = n_items if items is None else len(items)
        width = min(k, n_allowed)
        if not len(queries) or not width:
            return np.empty((len(queries), width), np.float32), np.empty((len(queries), width), np.int64)
        # A graph or a cluster of which a tenth is left is mostly a way through items that may not be found.
        few = items is not None and n_allowed <= min(self.manifest["config"]["flat_up_to"], n_items // 10)
        if self.manifest["info"]["type"] == "flat" or few:
            return exact_search(queries, self.vectors, width, items)
        # The parameters are those for a list of `recall_at`: a shorter one is its beginning.
        depth, params = max(width, min(self.manifest["info"]["recall_at"], n_allowed)), self.manifest["info"]["params"]
        scores, found = self._approximate.search(queries, depth, params, None if items is None else allowed)
        scores, found = scores[:, :width].copy(), found[:, :width].copy()
        short = np.flatnonzero((found < 0).any(axis=1))
        if short.size:
            scores[short], found[short] = exact_search(queries[short], self.vectors, width, items)
        return scores, found

    @cached_property
    def vectors(self) -> Vectors:
        """The indexed vectors, [n_items, dim] float32, those of removed items too: a read-only memory map."""
        return _mapped(self.path / VECTORS)

    @cached_property
    def removed(self) -> npt.NDArray[np.int64]:
        """The item_idx that are not found any more, ascending."""
        file = self.path / REMOVED
        return np.load(file) if file.exists() else np.empty(0, np.int64)

    @cached_property
    def _present(self) -> npt.NDArray[np.bool_] | None:
        return _present(len(self.vectors), self.removed)

    @cached_property
    def _approximate(self) -> Approximate:
        info = self.manifest["info"]
        try:
            index = faiss.read_index(str(self.path / FILE), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise InputError(
                f"{self.path / FILE} cannot be read: {str(error).splitlines()[0]}",
                expected="the file as it was written",
                do="write the artifact again: `recsys run --from index`",
            ) from None
        return Approximate(index, info["type"], info["refine"], self.vectors)

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


def use_threads(runtime: Runtime) -> None:
    """Let FAISS compute with as many threads as the run may use."""
    if runtime.threads:
        faiss.omp_set_num_threads(runtime.threads)


def _describe(
    draft: Draft,
    vectors: Vectors,
    config: IndexConfig,
    params: Mapping[str, int],
    measured: Measured,
    *,
    added: int,
    removed: int,
) -> None:
    """What the manifest says of an index, after its files are written."""
    info, n_items = draft.info, len(vectors)
    size = {name: path.stat().st_size for name in (FILE, VECTORS) if (path := draft.path / name).exists()}
    # What every search reads: without float32 vectors to refine with, it is the few rows that it returns of `VECTORS`.
    memory = size.get(FILE, 0) + (size[VECTORS] if info["refine"] == "fp32" or info["type"] == "flat" else 0)
    why = None
    if added + removed > config.rebuild_after * (n_items - added):
        why = f"{added + removed} items were added or removed since the build of {n_items - added}"
    if measured.worst < config.target_recall:
        why = (
            f"recall fell to {measured.recall}, that of the first places to {measured.top}, below the target of "
            f"{config.target_recall}, at the deepest search"
        )
    info |= {
        "params": dict(params),
        "recall": measured.recall,
        "top_recall": measured.top,
        "recall_at": min(config.recall_at, n_items),
        "memory": memory,
        "bytes": sum(size.values()),
        "since_build": {"added": added, "removed": removed},
        "rebuild_due": why,
    }
    draft.counts |= {
        "items": n_items - removed,
        "dim": vectors.shape[1],
        "recall": measured.recall,
        "bytes": info["bytes"],
        "memory": memory,
    }


def _written(file: Path, parts: Sequence[Vectors]) -> Vectors:
    """Copy vectors into one file, in blocks, and open it."""
    shape = (sum(len(part) for part in parts), parts[0].shape[1])
    rows = create_npy(file, shape=shape, dtype=np.float32)
    place = 0
    for part in parts:
        for start in range(0, len(part), COPY_ITEMS):
            block = np.asarray(part[start : start + COPY_ITEMS])
            if not np.isfinite(block).all():
                raise InputError(
                    "the student's item vectors hold NaN or infinity",
                    expected="finite numbers",
                    do="train again with a lower distill.lr or precision = 'fp32': `recsys run --from distill`",
                )
            rows[place : place + len(block)] = block
            place += len(block)
    rows.flush()
    return _mapped(file)


def _mapped(file: Path) -> Vectors:
    return np.asarray(np.load(file, mmap_mode="r"))  # a plain view: a memmap makes every slice slower


def _present(n_items: int, removed: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
    """[n_items] bool, which items are there; None for all."""
    if not removed.size:
        return None
    present = np.ones(n_items, np.bool_)
    present[removed] = False
    return present


def _user_vectors(student: VectorModel, dataset: Dataset, config: IndexConfig, runtime: Runtime) -> Vectors:
    users = _sample(dataset.n_users, config, runtime).astype(np.int32)
    return student.user_vectors(dataset.histories(users), runtime=runtime)


def _noisy(vectors: Vectors, config: IndexConfig, runtime: Runtime) -> Vectors:
    """Some of the vectors, with noise of half their deviation: queries where there are no users."""
    items = vectors[_sample(len(vectors), config, runtime)]
    noise = np.random.default_rng([runtime.seed, 1]).standard_normal(items.shape, dtype=np.float32)
    return items + 0.5 * items.std(axis=0) * noise if len(items) else items


def _sample(n_rows: int, config: IndexConfig, runtime: Runtime) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng([runtime.seed, 0])
    return np.sort(rng.choice(n_rows, min(config.tuning_queries, n_rows), replace=False))
