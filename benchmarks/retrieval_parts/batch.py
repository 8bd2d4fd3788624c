"""A batch of lists among a million items, beside what other libraries have for it."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Final

import numpy as np
from _common import Figure, at_least, at_most

from recsys.ingest.dataset import Dataset
from recsys.retrieval.exact import exact_search
from recsys.retrieval.index import use_threads
from recsys.runtime import Runtime
from retrieval_parts.index import PEERS, TOP, answer, shared
from retrieval_parts.shop import Shop

JUDGED: Final = 1000  # users whose lists are compared with the exact ones
BLOCKED: Final = 100  # one item of so many is out of stock
MOST_MB: Final = 4096.0
DEPTH: Final = 256


def batch(options: argparse.Namespace) -> list[Figure]:
    """Users a second, memory and recall of every contender, one after the other."""
    runtime = Runtime(seed=options.seed, threads=options.threads)
    runtime.torch_device()  # sets the threads
    use_threads(runtime)
    n_users, n_items = options.shop
    data = options.work / f"batch_{n_users}_{n_items}"
    dataset = _write(Shop.of(options.student, options.seed, runtime), n_users, n_items, options.batch_users, data)
    truth = _exact(dataset, data)
    contenders = [("recsys", sys.executable, "recsys", ["--type", "auto"])]
    contenders += [
        ("recsys_without_cap", sys.executable, "recsys", ["--type", "auto", "--brand-cap", "0"]),
        ("recsys_exact", sys.executable, "recsys", ["--type", "flat", "--brand-cap", "0"]),
    ]
    for name in ("implicit", "rectools", "replay"):
        if (python := getattr(options, name)) is not None:
            contenders.append((name, python, name, []))
    figures, speed = [], {}
    for name, python, script, more in contenders:
        command = [python, str(PEERS / f"batch_{script}.py"), "--data", str(data), "--out", str(data / f"{name}.npy")]
        told = answer([*command, "--threads", str(options.threads), *more], options.threads)
        recall = shared(np.load(data / f"{name}.npy")[: len(truth)], truth)
        speed[name] = told["users"] / told["seconds"]
        memory, peak = f"batch.{name}.memory", float(told["peak_mb"])
        figures += [
            Figure(f"batch.{name}.speed", speed[name], "users/s"),
            at_most(memory, peak, MOST_MB, "MiB") if name == "recsys" else Figure(memory, peak, "MiB"),
            Figure(f"batch.{name}.recall", recall),
        ]
        if "index" in told:
            figures.append(Figure(f"batch.{name}.build", told["index"], "s"))
    peers = [value for name, value in speed.items() if not name.startswith("recsys")]
    if peers:
        figures.append(at_least("batch.recsys.speed_of_fastest_peer", speed["recsys"] / max(peers), 1.0))
        figures.append(at_least("batch.recsys_exact.speed_of_fastest_peer", speed["recsys_exact"] / max(peers), 1.0))
    return figures


def _write(shop: Shop, n_users: int, n_items: int, n_asked: int, data: Path) -> Dataset:
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    shop.write_items(n_items, data / "items.npy")
    shop.write_users(n_users, data / "users.npy")
    rng = np.random.default_rng([shop.seed, 2])
    blocked = np.sort(rng.choice(n_items, n_items // BLOCKED, replace=False))
    dataset = shop.write_dataset(n_users, n_items, data / "dataset", out_of_stock=blocked)
    users = np.sort(rng.choice(n_users, min(n_asked, n_users), replace=False)).astype(np.int32)
    histories = dataset.histories(users)
    asked = {"users": users, "seen_offsets": histories.offsets, "seen": histories.item_idx, "blocked": blocked}
    np.savez(data / "asked.npz", **asked)
    return dataset


def _exact(dataset: Dataset, data: Path) -> np.ndarray:
    """The exact lists of the first of those who are asked, what was seen and what is out of stock left out."""
    asked = np.load(data / "asked.npz")
    items, users = np.load(data / "items.npy", mmap_mode="r"), np.load(data / "users.npy", mmap_mode="r")
    some = asked["users"][:JUDGED]
    blocked = np.zeros(dataset.n_items, np.bool_)
    blocked[asked["blocked"]] = True
    found = exact_search(np.asarray(users[some]), items, min(DEPTH, dataset.n_items))[1]
    lists = np.full((len(some), TOP), -1, np.int64)
    for row, each in enumerate(found):
        seen = asked["seen"][asked["seen_offsets"][row] : asked["seen_offsets"][row + 1]]
        left = each[~blocked[each] & ~np.isin(each, seen)][:TOP]
        lists[row, : len(left)] = left
    return lists
