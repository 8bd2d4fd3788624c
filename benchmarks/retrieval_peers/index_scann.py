"""ScaNN's tree with asymmetric hashing and exact reordering.

    python3 -m venv ann && ann/bin/pip install hnswlib==0.8.0 scann==1.4.2

Set up as the library's notes on choosing an algorithm have it: about √n leaves, two numbers in a code of 4 bits,
anisotropic quantization with threshold 0.2. Below 20,000 items they advise no tree, and there is none.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import scann
from common import DEEP, Index, Ints, Vectors, index_main

NO_TREE = 20_000


def build(items: Vectors, out: Path, options: argparse.Namespace) -> None:
    """Train, and save the assets."""
    builder = scann.scann_ops_pybind.builder(np.asarray(items), DEEP, "dot_product")
    if len(items) >= NO_TREE:
        leaves = round(math.sqrt(len(items)))
        builder = builder.tree(leaves, max(leaves // 10, 1), training_sample_size=min(len(items), 250_000))
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(4 * DEEP)
    builder.set_n_training_threads(options.threads).build().serialize(str(out))


def load(out: Path, options: argparse.Namespace) -> Index:
    """Open the assets; what is set is how many leaves are searched and how many items are reordered."""
    n_items = len(np.load(options.data / "items.npy", mmap_mode="r"))
    searcher = scann.scann_ops_pybind.load_searcher(str(out))

    def search(queries: Vectors, k: int, setting: tuple[int, int]) -> Ints:
        leaves, reordered = setting
        found = searcher.search_batched(queries, k, reordered, leaves or None)[0]
        return found.astype(np.int64)

    if n_items < NO_TREE:
        return Index(search, [[(0, DEEP * more) for more in (2, 3, 4, 6, 8)]])
    most = round(math.sqrt(n_items)) // 2
    ladder = [round(4 * 2 ** (step / 2)) for step in range(18)]
    depths = [leaves for leaves in ladder if leaves <= most]
    return Index(search, [[(leaves, DEEP * more) for leaves in depths] for more in (2, 4, 8)])


if __name__ == "__main__":
    index_main("scann", __doc__, build, load)
