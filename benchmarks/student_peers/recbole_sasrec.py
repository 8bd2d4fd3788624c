"""SASRec of RecBole, with its cross-entropy over the whole catalogue (`loss_type=CE`).

    python3 -m venv recbole && recbole/bin/pip install torch==2.13.0
    recbole/bin/pip install recbole==1.2.1 "numpy<2" "pandas<3"
    recbole/bin/python benchmarks/student_peers/recbole_sasrec.py --data sequences.npz --out lists.npy --epochs 5 \
        --dim 64 --layers 2 --heads 2 --length 50 --positions 2048 --dropout 0.2 --lr 1e-3 --seed 0 --threads 1

RecBole makes a sample of every position, with the history before it, so a batch is `--positions` samples; of a long
sequence every position is asked, each with the `--length` events before it.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import TOP, Data, Ints, Items, Options, Outcome, main, peak_mb, users_and_places
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.dataloader import TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed

BLOCK = 256  # users scored at once


def train(data: Data, options: Options) -> Outcome:
    """Train, then rank for everybody."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    torch.set_num_threads(options.threads)
    sys.argv = sys.argv[:1]  # the library takes settings from there
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where it leaves what it logs
        try:
            return _train(data, options, Path(folder))
        finally:
            os.chdir(home)


def _train(data: Data, options: Options, folder: Path) -> Outcome:
    _write_events(data, folder / "shop" / "shop.inter")
    config = Config(model="SASRec", dataset="shop", config_dict=_settings(options, folder))
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    # What its `build` does before it splits; here all events are for training.
    dataset._change_feat_format()
    batches = TrainDataLoader(config, dataset, None, shuffle=True)
    model = SASRec(config, dataset).to(config["device"])
    trainer = Trainer(config, model)

    started = time.perf_counter()
    trainer.fit(batches, saved=False, verbose=False, show_progress=False)
    seconds = time.perf_counter() - started
    peak = peak_mb()
    token = dataset.field2id_token[dataset.iid_field]
    item_of_id = np.array([-1, *token[1:]], dtype=np.int64)  # the first is the padding
    return Outcome(seconds, options.epochs * len(dataset), peak, _lists(model, data, item_of_id))


def _write_events(data: Data, file: Path) -> None:
    users, places = users_and_places(data.train_offsets)
    columns = {"user_id:token": users, "item_id:token": data.train_items, "timestamp:float": places}
    file.parent.mkdir()
    pd.DataFrame(columns).to_csv(file, sep="\t", index=False)


def _settings(options: Options, folder: Path) -> dict[str, object]:
    return {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "use_gpu": False,
        "seed": options.seed,
        "epochs": options.epochs,
        "train_batch_size": options.positions,
        "learning_rate": options.lr,
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "MAX_ITEM_LIST_LENGTH": options.length,
        "hidden_size": options.dim,
        "inner_size": 4 * options.dim,
        "n_layers": options.layers,
        "n_heads": options.heads,
        "hidden_dropout_prob": options.dropout,
        "attn_dropout_prob": options.dropout,
    }


def _lists(model: SASRec, data: Data, item_of_id: Ints) -> Items:
    id_of_item = np.zeros(data.n_items, dtype=np.int64)  # 0 for an item that it was not trained on
    id_of_item[item_of_id[1:]] = np.arange(1, len(item_of_id))
    users, _ = users_and_places(data.test_offsets)
    ids = id_of_item[data.test_items]
    users, ids = users[ids > 0], ids[ids > 0]
    n_users = len(data.test_offsets) - 1
    bounds = np.searchsorted(users, np.arange(n_users + 1))
    lists = np.full((n_users, TOP), -1, dtype=np.int32)
    asked = np.flatnonzero(np.diff(bounds))
    model.eval()
    for first in range(0, len(asked), BLOCK):
        block = asked[first : first + BLOCK]
        lengths = bounds[block + 1] - bounds[block]
        rows = np.repeat(np.arange(len(block)), lengths)
        places = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        seen = ids[np.repeat(bounds[block], lengths) + places]
        history, known = _histories(rows, places, lengths, seen, model.max_seq_length)
        with torch.no_grad():
            scores = model.full_sort_predict(
                Interaction({model.ITEM_SEQ: torch.from_numpy(history), model.ITEM_SEQ_LEN: torch.from_numpy(known)})
            )
        scores[:, 0] = -torch.inf
        scores[torch.from_numpy(rows), torch.from_numpy(seen)] = -torch.inf
        best = scores.topk(min(TOP, scores.shape[1]))
        found = np.where(np.isfinite(best.values.numpy()), item_of_id[best.indices.numpy()], -1)
        lists[block, : found.shape[1]] = found
    return lists


def _histories(rows: Ints, places: Ints, lengths: Ints, seen: Ints, length: int) -> tuple[Ints, Ints]:
    """The last events of each row, from the left as the library wants them, and how many they are."""
    place = places - np.maximum(lengths - length, 0)[rows]
    history = np.zeros((len(lengths), length), dtype=np.int64)
    history[rows[place >= 0], place[place >= 0]] = seen[place >= 0]
    return history, np.minimum(lengths, length)


if __name__ == "__main__":
    main("recbole", __doc__, train)
