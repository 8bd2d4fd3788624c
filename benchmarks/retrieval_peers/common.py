"""What the scripts share: their arguments, the arrays they read, the figures they print.

They run where this project is not installed, so nothing but numpy and the standard library is imported here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

# The folder above, which holds what all benchmarks share and imports nothing but the standard library.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import peak_mb

Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Setting = Any

DEEP, TOP = 100, 10


class Search(Protocol):
    """Searches an opened index, on one thread."""

    def __call__(self, queries: Vectors, k: int, setting: Setting) -> Ints:
        """[n, k], the best first."""


@dataclass(frozen=True)
class Index:
    """An index that is open.

    Attributes:
        search: it.
        settings: groups of what can be set, the cheapest of a group first.
    """

    search: Search
    settings: Sequence[Sequence[Setting]]


def index_main(
    package: str,
    doc: str | None,
    build: Callable[[Vectors, Path, argparse.Namespace], None],
    load: Callable[[Path, argparse.Namespace], Index],
) -> None:
    """One step of one index: `build` writes it, `search` opens it, tunes it and asks everything.

    Tuned is by the vectors of `tuning.npy`: of each group the first setting whose recall@100 reaches the target is
    timed, and the fastest one taken; the most accurate of all if none does.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with `items.npy`, `queries.npy` and so on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the index")
    parser.add_argument("--step", choices=("build", "search"), required=True)
    parser.add_argument("--type", default="", help="of ours: which")
    parser.add_argument("--target", type=float, default=0.98, help="recall@100")
    parser.add_argument("--threads", type=int, default=1, help="of the build")
    parser.add_argument("--rounds", type=int, default=3, help="of timing")
    options = parser.parse_args()
    answer: dict[str, object] = {"version": version(package)}
    if options.step == "build":
        options.out.mkdir(parents=True, exist_ok=True)
        items = np.load(options.data / "items.npy", mmap_mode="r")
        started = time.perf_counter()
        build(items, options.out, options)
        answer["seconds"] = time.perf_counter() - started
    else:
        index = load(options.out, options)
        setting = _tuned(index, options)
        queries = np.load(options.data / "queries.npy")
        for k in (DEEP, TOP):
            np.save(options.out / f"found_{k}.npy", index.search(queries, k, setting))
            answer[f"seconds_{k}"] = _seconds(lambda k=k: index.search(queries, k, setting), options.rounds)
        answer |= {"setting": repr(setting), "queries": len(queries)}
    print(json.dumps(answer | {"peak_mb": peak_mb()}))


def _tuned(index: Index, options: argparse.Namespace) -> Setting:
    tuning, truth = np.load(options.data / "tuning.npy"), np.load(options.data / "tuning_truth.npy")
    reached: list[tuple[float, Setting]] = []
    best: tuple[float, Setting] = (-1.0, None)
    for group in index.settings:
        for setting in group:
            if len(index.settings) == len(group) == 1:
                return setting
            found = recall(index.search(tuning, DEEP, setting), truth)
            best = max(best, (found, setting), key=lambda each: each[0])
            if found >= options.target:
                reached.append((_seconds(lambda: index.search(tuning, DEEP, setting), 2), setting))  # noqa: B023
                break
    return min(reached, key=lambda each: each[0])[1] if reached else best[1]


def _seconds(work: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def recall(found: Ints, truth: Ints) -> float:
    """Share of each row of `truth` that stands in the row of `found`; in the mean."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)]))


@dataclass(frozen=True)
class Batch:
    """What a batch recommender is asked.

    Attributes:
        items: [n_items, dim], memory-mapped.
        users: [n, dim].
        seen_offsets: [n + 1], where each user's seen items begin in `seen`, and the end.
        seen: items that each user must not be shown.
        blocked: items that nobody is shown, ascending.
        threads: to compute with.
    """

    items: Vectors
    users: Vectors
    seen_offsets: Ints
    seen: Ints
    blocked: Ints
    threads: int

    def seen_matrix(self) -> Any:
        """The seen items as a CSR matrix of ones, [n, n_items]."""
        from scipy import sparse

        ones = np.ones(len(self.seen), np.float32)
        shape = (len(self.users), len(self.items))
        return sparse.csr_matrix((ones, self.seen.astype(np.int32), self.seen_offsets.astype(np.int32)), shape=shape)


def batch_main(package: str, doc: str | None, recommend: Callable[[Batch], Ints]) -> None:
    """Recommend ten items to everybody of a sample; `recommend` answers [n, 10]."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with `items.npy`, `asked.npz` and so on")
    parser.add_argument("--out", type=Path, required=True, help="where the lists go, `.npy`")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    asked = np.load(options.data / "asked.npz")
    users = np.load(options.data / "users.npy", mmap_mode="r")[asked["users"]]
    items = np.load(options.data / "items.npy", mmap_mode="r")
    batch = Batch(items, users, asked["seen_offsets"], asked["seen"], asked["blocked"], options.threads)
    started = time.perf_counter()
    lists = recommend(batch)
    seconds = time.perf_counter() - started
    np.save(options.out, lists)
    print(json.dumps({"version": version(package), "users": len(users), "seconds": seconds, "peak_mb": peak_mb()}))


def one_blas_thread() -> None:
    """For libraries with threads of their own, which advise it; before anything loads BLAS again."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, "blas")


def files_mb(folder: Path) -> float:
    """MiB of the files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def limit_threads(n: int) -> None:
    """Whatever reads the environment takes so many threads; before it is loaded."""
    os.environ["OMP_NUM_THREADS"] = str(n)
