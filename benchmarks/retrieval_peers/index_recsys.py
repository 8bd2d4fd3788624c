"""This project's index, built and searched as its stage does; `--type` as in `[index]`, with `refine` behind a colon.

It is tuned in the build, with the users of the dataset.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import Index, Ints, Vectors, index_main

sys.path.append(str(Path(__file__).resolve().parents[1]))
from retrieval_parts.shop import Ready

from recsys.ingest.dataset import Dataset
from recsys.retrieval.config import IndexConfig
from recsys.retrieval.index import ItemIndex, build_index, use_threads
from recsys.runtime import Runtime


def build(items: Vectors, out: Path, options: argparse.Namespace) -> None:
    """By the stage's function."""
    model = Ready.open(options.data / "items.npy", options.data / "tuning.npy")
    kind, _, refine = options.type.partition(":")
    config = IndexConfig(type=kind, refine=refine or "auto", target_recall=options.target)
    runtime = Runtime(threads=options.threads, progress=False)
    build_index(model, config, out / "index", dataset=Dataset.open(options.data / "dataset"), runtime=runtime)


def load(out: Path, options: argparse.Namespace) -> Index:
    """Open the artifact."""
    use_threads(Runtime(threads=1))
    index = ItemIndex.open(out / "index")
    info = index.manifest["info"]

    def search(queries: Vectors, k: int, setting: object) -> Ints:
        return index.search(queries, k)[1]

    return Index(search, [[{name: info[name] for name in ("factory", "refine", "params", "recall", "seconds")}]])


if __name__ == "__main__":
    index_main("recsys", __doc__, build, load)
