"""This project's `recommend`: rules, reasons and a Parquet file included."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from common import peak_mb

sys.path.append(str(Path(__file__).resolve().parents[1]))
from retrieval_parts.shop import Ready

from recsys.ingest.dataset import Dataset
from recsys.ranking.config import RecommendConfig
from recsys.ranking.recommend import recommend
from recsys.retrieval.config import IndexConfig
from recsys.retrieval.index import ItemIndex, build_index
from recsys.runtime import Runtime


def main() -> None:
    """Build the index in a process of its own, then recommend."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--type", default="auto")
    parser.add_argument("--brand-cap", type=int, default=3)
    parser.add_argument("--build", action="store_true", help="the index alone")
    options = parser.parse_args()
    runtime = Runtime(threads=options.threads, progress=False)
    dataset, place = Dataset.open(options.data / "dataset"), options.data / f"index_{options.type}"
    model = Ready.open(options.data / "items.npy", options.data / "users.npy")
    if options.build:
        build_index(model, IndexConfig(type=options.type), place, dataset=dataset, runtime=runtime)
        return
    if not place.exists():
        subprocess.run([sys.executable, *sys.argv, "--build"], check=True)  # noqa: S603
    index, asked = ItemIndex.open(place), np.load(options.data / "asked.npz")
    ids = tuple(f"u{user}" for user in asked["users"])
    config = RecommendConfig(users=ids, max_per_brand=options.brand_cap or None)
    folder = options.data / "recommendations"
    shutil.rmtree(folder.resolve(), ignore_errors=True)
    started = time.perf_counter()
    done = recommend(dataset, model, index, config, folder, runtime=runtime, force=True)
    seconds = time.perf_counter() - started
    peak = peak_mb()
    table = done.table
    lists = np.full((dataset.n_users, 10), -1, np.int64)
    user, item = (pc.utf8_slice_codeunits(table[name], 1).cast("int64").to_numpy() for name in ("user_id", "item_id"))
    lists[user, table["rank"].to_numpy() - 1] = item
    np.save(options.out, lists[asked["users"]])
    told = {"users": len(ids), "seconds": seconds, "peak_mb": peak, "index": index.manifest["seconds"]}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
