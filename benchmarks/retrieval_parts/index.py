"""The index beside hnswlib and ScaNN: recall, time and memory, each contender in processes of its own."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from _common import Figure, at_least, at_most

from recsys.retrieval.exact import exact_search
from recsys.retrieval.index import use_threads
from recsys.runtime import Runtime
from retrieval_parts.shop import Shop

TUNING, QUERIES = 1000, 2000
DEEP, TOP = 100, 10
RECALL, LOST = 0.98, 0.001
PEERS: Final = Path(__file__).resolve().parents[1] / "retrieval_peers"

Ints = npt.NDArray[np.int64]


def index(options: argparse.Namespace) -> list[Figure]:
    """Every contender at every size."""
    runtime = Runtime(seed=options.seed, threads=options.threads)
    runtime.torch_device()  # sets the threads
    use_threads(runtime)
    shop = Shop.of(options.student, options.seed, runtime)
    contenders = [("recsys", sys.executable, "recsys", "auto")]
    contenders += [(f"recsys_{kind}", sys.executable, "recsys", kind) for kind in options.types]
    if options.ann is not None:
        contenders += [(name, options.ann, name, "") for name in ("hnswlib", "scann")]
    figures = []
    for n in options.items:
        data = options.work / f"items_{n}"
        truth = _write(shop, n, data)
        for name, python, script, kind in contenders:
            out = data / name
            shutil.rmtree(out, ignore_errors=True)
            command = [python, str(PEERS / f"index_{script}.py"), "--data", str(data), "--out", str(out)]
            command += ["--type", kind, "--target", str(options.target)]
            built = answer([*command, "--step", "build", "--threads", str(options.threads)], options.threads)
            asked = answer([*command, "--step", "search"], 1)
            print(f"{n} {name}: {asked.get('setting')}", file=sys.stderr)
            figures += _judged(f"{n}.{name}", out, truth, built, asked)
    return figures


def _write(shop: Shop, n: int, data: Path) -> Ints:
    """Vectors, a dataset of the users that are for tuning, and what an exact search finds for the others."""
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    items = shop.write_items(n, data / "items.npy")
    users = shop.write_users(TUNING + QUERIES, data / "users.npy")
    np.save(data / "tuning.npy", users[:TUNING])
    np.save(data / "queries.npy", users[TUNING:])
    np.save(data / "tuning_truth.npy", exact_search(np.asarray(users[:TUNING]), items, DEEP)[1])
    shop.write_dataset(TUNING, n, data / "dataset")
    return exact_search(np.asarray(users[TUNING:]), items, DEEP)[1]


def _judged(name: str, out: Path, truth: Ints, built: dict[str, Any], asked: dict[str, Any]) -> list[Figure]:
    recall = shared(np.load(out / f"found_{DEEP}.npy"), truth)
    lost = 1 - ndcg(np.load(out / f"found_{TOP}.npy"), truth[:, :TOP])
    chosen = name.endswith(".recsys")
    return [
        at_least(f"{name}.recall_at_{DEEP}", recall, RECALL) if chosen else Figure(f"{name}.recall_at_{DEEP}", recall),
        at_most(f"{name}.ndcg_at_{TOP}_lost", lost, LOST) if chosen else Figure(f"{name}.ndcg_at_{TOP}_lost", lost),
        Figure(f"{name}.search", asked["queries"] / asked[f"seconds_{DEEP}"], "queries/s"),
        Figure(f"{name}.build", built["seconds"], "s"),
        Figure(f"{name}.build_memory", built["peak_mb"], "MiB"),
        Figure(f"{name}.search_memory", asked["peak_mb"], "MiB"),
        Figure(f"{name}.files", sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 2**20, "MiB"),
    ]


def shared(found: Ints, truth: Ints) -> float:
    """Mean share of each row of `truth` that stands in the row of `found`; −1 is nothing."""
    return float(np.mean([np.isin(row, other[other >= 0]).mean() for row, other in zip(truth, found, strict=True)]))


def ndcg(found: Ints, truth: Ints) -> float:
    """NDCG of lists where each row of `truth` is wanted, 1 / log2(rank + 1) for each, over the ideal list."""
    discount = 1 / np.log2(np.arange(2, found.shape[1] + 2))
    hits = (found[:, :, None] == truth[:, None, :]).any(axis=2)
    return float((hits @ discount).mean() / discount[: truth.shape[1]].sum())


def answer(command: list[str], threads: int) -> dict[str, Any]:
    """What a script prints last, as JSON."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)  # noqa: S603
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
