"""SASRec of RecTools, as the library sets it up, with its softmax over the whole catalogue.

    python3 -m venv rectools && rectools/bin/pip install torch==2.13.0 "rectools[torch]==0.19.0"
    rectools/bin/python benchmarks/student_peers/rectools_sasrec.py --data sequences.npz --out lists.npy --epochs 5 \
        --dim 64 --layers 2 --heads 2 --length 50 --positions 2048 --dropout 0.2 --lr 1e-3 --seed 0 --threads 1

Its feed-forward layers are as wide as the model: the layers of its SASRec take `ff_factors_multiplier` and do not look
at it. A batch is so many users that their positions are about `--positions`; of a long sequence only the last
`--length` positions are asked. Adam's betas are the library's, 0.9 and 0.98.
"""

from __future__ import annotations

import logging
import time
import warnings

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from common import TOP, Data, Ints, Items, Options, Outcome, main, peak_mb, users_and_places
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


class Stopwatch(pl.Callback):
    """Measures training without what comes before and after it."""

    started = 0.0
    seconds = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self.started = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.started


def trainer(epochs: int) -> pl.Trainer:
    """A trainer that trains and does nothing else."""
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        min_epochs=epochs,
        max_epochs=epochs,
        callbacks=[Stopwatch()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def train(data: Data, options: Options) -> Outcome:
    """Train, then rank for everybody."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    pl.seed_everything(options.seed)

    asked = np.minimum(np.diff(data.train_offsets) - 1, options.length)
    model = SASRecModel(
        n_blocks=options.layers,
        n_heads=options.heads,
        n_factors=options.dim,
        dropout_rate=options.dropout,
        session_max_len=options.length,
        loss="softmax",
        lr=options.lr,
        batch_size=max(round(options.positions / asked[asked > 0].mean()), 1),
        recommend_torch_device="cpu",
        get_trainer_func=trainer,
        get_trainer_func_kwargs={"epochs": options.epochs},
    )
    model.fit(_dataset(data.train_offsets, data.train_items))
    peak = peak_mb()
    # The trainer that trained is a copy of the one that was made above.
    (watch,) = (callback for callback in model.fit_trainer.callbacks if isinstance(callback, Stopwatch))
    sessions = model.data_preparator.get_dataloader_train().dataset.sessions
    positions = options.epochs * sum(len(session) - 1 for session in sessions)
    return Outcome(watch.seconds, positions, peak, _lists(model, data))


def _dataset(offsets: Ints, items: Items) -> Dataset:
    users, places = users_and_places(offsets)
    events = {Columns.User: users, Columns.Item: items, Columns.Weight: 1, Columns.Datetime: pd.to_datetime(places)}
    return Dataset.construct(pd.DataFrame(events))


def _lists(model: SASRecModel, data: Data) -> Items:
    # Ranked in blocks of users by the library. It leaves out who has seen no item that it was trained on.
    known = np.zeros(data.n_items, dtype=bool)
    known[model.data_preparator.get_known_item_ids().astype(np.int64)] = True
    users, _ = users_and_places(data.test_offsets)
    rows = model.recommend(
        users=np.unique(users[known[data.test_items]]),
        dataset=_dataset(data.test_offsets, data.test_items),
        k=TOP,
        filter_viewed=True,
    )
    lists = np.full((len(data.test_offsets) - 1, TOP), -1, dtype=np.int32)
    lists[rows[Columns.User].astype(np.int64), rows[Columns.Rank].to_numpy() - 1] = rows[Columns.Item].astype(np.int32)
    return lists


if __name__ == "__main__":
    main("rectools", __doc__, train)
