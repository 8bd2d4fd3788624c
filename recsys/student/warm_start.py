"""Start where yesterday's student ended, though items, brands and categories have come and gone."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from recsys import schema
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset, places
from recsys.sequence.features import ItemFeatures
from recsys.sequence.towers import Towers
from recsys.student.model import Student

ITEMS_FILE: Final = "items.parquet"


def save_items(dataset: Dataset, features: ItemFeatures, folder: Path) -> None:
    """Write which item stood in which row, and of which groups it was, for the student of the next night."""
    columns = {schema.ITEM_ID: dataset.items[schema.ITEM_ID]}
    columns |= {f"group_{name}": pa.chunked_array([pa.array(codes)]) for name, codes in features.groups.items()}
    pq.write_table(pa.table(columns), folder / ITEMS_FILE, compression="zstd")


def warm_start(model: Towers, features: ItemFeatures, dataset: Dataset, student: Student) -> int:
    """Copy a student's weights into fresh towers.

    The user tower and the projection of texts are taken whole. Items are matched by item_id; a brand, a category or a
    price band takes over from the one that an item of it was in. What is new keeps its fresh weights, and so do id rows
    that items share by hash (`id_rows`): which items share one changes with the catalogue.

    Args:
        model: the towers, changed in place.
        features: of today's items.
        dataset: today's.
        student: of another night, of the same shape.

    Returns:
        How many items were known to it.

    Raises:
        InputError: the student is built otherwise.
    """
    before = load_file(student.path / "weights.safetensors")
    now = model.state_dict()
    fresh = {"user.longest"}  # how long sequences are is a matter of today's
    by_row: tuple[str, ...] = ("items.ids.weight",)
    if model.items.id_rows:
        fresh, by_row = fresh | set(by_row), ()
    of_groups = [f"items.groups.{place}.weight" for place in range(len(features.groups))]
    by_name = {*by_row, *of_groups}  # their rows are matched one by one, so that only their width must be the same
    shapes = [
        {name: tensor.shape[1:] if name in by_name else tensor.shape for name, tensor in weights.items()}
        for weights in (now, before)
    ]
    wrong = {name for name, _ in shapes[0].items() ^ shapes[1].items()}
    if wrong:
        raise InputError(
            f"distill.warm_start: the student at {student.path} is built otherwise: {', '.join(sorted(wrong)[:3])}",
            expected="the same [distill] settings of width, depth, history and features",
            do="train it anew without warm_start, or set these as they were",
        )
    items = pq.read_table(student.path / ITEMS_FILE)
    place = places(dataset.items[schema.ITEM_ID], items[schema.ITEM_ID]).astype(np.int64)
    today = np.flatnonzero(place >= 0)
    then = place[today]
    for name in now.keys() - by_name - fresh:
        now[name].copy_(before[name])
    for name in by_row:
        now[name][torch.from_numpy(today)] = before[name][torch.from_numpy(then)].to(now[name].device)
    for name, (group, codes) in zip(of_groups, features.groups.items(), strict=True):
        old = items[f"group_{group}"].to_numpy()[then]
        both = (codes[today] > 0) & (old > 0)
        rows, sources = torch.from_numpy(codes[today][both]), torch.from_numpy(old[both])
        now[name][rows] = before[name][sources].to(now[name].device)
    return len(today)
