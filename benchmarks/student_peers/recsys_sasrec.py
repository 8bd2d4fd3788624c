"""This project's towers by item ids alone, which is a SASRec, by the same command line as the others.

    python benchmarks/student_peers/recsys_sasrec.py --data sequences.npz --out lists.npy --epochs 5 \
        --dim 64 --layers 2 --heads 2 --length 50 --positions 2048 --dropout 0.2 --lr 1e-3 --seed 0 --threads 1

Besides what the others ask it asks for every user's first item, which is not counted. Its precision is what the product
takes on the machine: on a CPU the softmax over the catalogue in bf16 where there is hardware for it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from common import TOP, Data, Ints, Items, Options, Outcome, main, peak_mb

from recsys.ingest.dataset import Sequences
from recsys.runtime import Runtime
from recsys.sequence.config import TowersConfig
from recsys.sequence.features import ItemFeatures
from recsys.sequence.towers import Towers, encode_users
from recsys.sequence.train import train_towers

BLOCK = 256  # users scored at once


def train(data: Data, options: Options) -> Outcome:
    """Train, then rank for everybody."""
    runtime = Runtime(seed=options.seed, threads=options.threads, progress=False)
    config = TowersConfig(
        use_text=False,
        item_features=(),
        time_gaps=False,
        id_dropout=0.0,
        dim=options.dim,
        layers=options.layers,
        heads=options.heads,
        max_history=options.length,
        dropout=options.dropout,
        lr=options.lr,
        epochs=options.epochs,
        patience=options.epochs,
        batch_positions=options.positions,
    )
    sequences = _sequences(data.train_offsets, data.train_items)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        trained = train_towers(
            sequences,
            ItemFeatures(),
            config,
            n_items=data.n_items,
            event_types=("view",),
            validation=None,
            scratch=Path(folder) / "scratch",
            tensorboard=Path(folder) / "tensorboard",
            runtime=runtime,
            label="towers",
        )
        seconds = time.perf_counter() - started
    peak = peak_mb()
    asked = len(data.train_items) - int((np.diff(data.train_offsets) > 0).sum())
    known = np.zeros(data.n_items, dtype=bool)
    known[data.train_items] = True
    return Outcome(seconds, options.epochs * asked, peak, _lists(trained.model, data, known, options.length))


def _sequences(offsets: Ints, items: Items) -> Sequences:
    zeros = np.zeros(len(items), dtype=np.int64)
    return Sequences(offsets, items, zeros.astype(np.int8), zeros, zeros.astype(np.int32))


@torch.inference_mode()
def _lists(model: Towers, data: Data, known: npt.NDArray[np.bool_], length: int) -> Items:
    items = model.items()
    users = encode_users(model.user, items, _sequences(data.test_offsets, data.test_items), max_history=length)
    lists = np.full((len(users), TOP), -1, dtype=np.int32)
    for first in range(0, len(users), BLOCK):
        scores = torch.from_numpy(users[first : first + BLOCK]) @ items.T
        scores[:, torch.from_numpy(~known)] = -torch.inf  # the others rank what they were trained on, too
        bounds = data.test_offsets[first : first + BLOCK + 1]
        rows = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        seen = data.test_items[bounds[0] : bounds[-1]].astype(np.int64)
        scores[torch.from_numpy(rows), torch.from_numpy(seen)] = -torch.inf
        lists[first : first + BLOCK] = scores.topk(TOP).indices.numpy()
    return lists


if __name__ == "__main__":
    main("recsys", __doc__, train)
