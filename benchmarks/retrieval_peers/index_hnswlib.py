"""hnswlib's graph by inner product, over the vectors as they are.

    python3 -m venv ann && ann/bin/pip install hnswlib==0.8.0 scann==1.4.2

M = 32 links (64 on the lowest level), as many as ours has, and ef_construction = 200, the library's default.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import hnswlib
import numpy as np
from common import DEEP, Index, Ints, Vectors, index_main

BLOCK = 1 << 16


def build(items: Vectors, out: Path, options: argparse.Namespace) -> None:
    """Add the items and save the graph."""
    graph = hnswlib.Index(space="ip", dim=items.shape[1])
    graph.init_index(max_elements=len(items), M=32, ef_construction=200, random_seed=1)
    graph.set_num_threads(options.threads)
    for start in range(0, len(items), BLOCK):
        block = np.ascontiguousarray(items[start : start + BLOCK])
        graph.add_items(block, np.arange(start, start + len(block)))
    graph.save_index(str(out / "graph.bin"))


def load(out: Path, options: argparse.Namespace) -> Index:
    """Open the graph; what is set is ef."""
    n_items, dim = np.load(options.data / "items.npy", mmap_mode="r").shape
    graph = hnswlib.Index(space="ip", dim=dim)
    graph.load_index(str(out / "graph.bin"), max_elements=n_items)
    graph.set_num_threads(1)

    def search(queries: Vectors, k: int, setting: int) -> Ints:
        graph.set_ef(setting)
        return graph.knn_query(queries, k)[0].astype(np.int64)

    return Index(search, [[round(DEEP * 2 ** (step / 4)) for step in range(28)]])


if __name__ == "__main__":
    index_main("hnswlib", __doc__, build, load)
