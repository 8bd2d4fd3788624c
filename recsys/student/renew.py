"""The same student over another day's catalogue."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from recsys import schema
from recsys.artifacts import Recipe, save_npy
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset, places
from recsys.runtime import Runtime
from recsys.sequence.features import item_features, towers_texts
from recsys.sequence.towers import Towers
from recsys.sequence.train import MODULES
from recsys.student.model import Student
from recsys.student.warm_start import save_items, warm_start


def renew(student: Student, then: Dataset, now: Dataset, out: Path, *, runtime: Runtime = Runtime()) -> Student:
    """Give a student's weights to a later dataset, without training.

    Items keep the vectors that they have, whatever has become of their texts and prices, so that histories of the same
    events give the same scores. New items get theirs from text, brand, category and price, as far as the student knows
    these.

    Args:
        student: of the earlier dataset.
        then: that one.
        now: the later one.
        out: where the artifact goes.
        runtime: where to compute.

    Returns:
        A student of `now`; the next one can start from it as from any other.

    Raises:
        InputError: the event types are no longer the same.
    """
    if then.event_types != now.event_types:
        raise InputError(
            f"the log has the event types {', '.join(now.event_types)}",
            expected=f"those that the student has learned: {', '.join(then.event_types)}",
            do="train a student of this log",
        )
    config = student.config
    recipe = Recipe(
        kind=Student.kind,
        config=config,
        inputs={"dataset": now.fingerprint, "renews": student.fingerprint},
        seed=runtime.seed,
        modules=(*MODULES, "recsys.student.model", "recsys.student.renew", "recsys.student.warm_start"),
    )
    if not recipe.is_current(out):
        text = towers_texts(now, config, out, runtime=runtime)
        features = item_features(now.items, text, config)
        with recipe.build(out) as draft, torch.inference_mode():
            towers = Towers(
                config,
                features,
                torch.zeros(now.n_items, dtype=torch.bool),  # what it does not know has no id of its own
                n_event_types=len(now.event_types),
            ).eval()
            draft.counts |= {"items": now.n_items, "items_known_before": warm_start(towers, features, now, student)}
            weights = towers.state_dict()
            with safe_open(student.path / "weights.safetensors", "pt") as before:
                weights["user.longest"] = before.get_tensor("user.longest")
            vectors = towers.items().numpy()
            place = places(now.items[schema.ITEM_ID], then.items[schema.ITEM_ID])
            vectors[place >= 0] = student.item_vectors[place[place >= 0]]
            save_npy(draft.path / "item_vectors.npy", vectors)
            save_file({name: each.contiguous() for name, each in weights.items()}, draft.path / "weights.safetensors")
            save_items(now, features, draft.path)
            draft.info |= student.manifest["info"]
    return Student.open(out)
