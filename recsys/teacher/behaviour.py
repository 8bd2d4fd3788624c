"""What the order of a user's events says without reading a word: towers over sequences, trained for the teacher alone.

Of all single kinds of evidence this is the strongest, and it is overconfident about events that it was trained on. A
teacher that learned how far to trust it on those would trust it too far on others. So it is trained twice, in the
manner of stacking (Wolpert, 1992), but along time: once without each user's last events, on which the teacher then
learns, and once on everything, for all that comes after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from recsys.evidence import Floats
from recsys.ingest.dataset import Dataset, Sequences, take
from recsys.runtime import Runtime
from recsys.sequence.config import TowersConfig
from recsys.sequence.towers import UserTower, encode_users, user_tower
from recsys.sequence.train import Validation, train_towers


@dataclass(frozen=True)
class Behaviour:
    """One or several pairs of towers; what they say is the mean of their log-probabilities.

    Attributes:
        towers: over histories.
        items: [n_items, d] float32, each tower's item vectors.
        max_history: most recent events that are read.
    """

    towers: Sequence[UserTower]
    items: Sequence[torch.Tensor]
    max_history: int

    def log_probabilities(self, histories: Sequences) -> Floats:
        """Mean log softmax over the catalogue of the item that comes next, [n, n_items] float32."""
        total = torch.zeros(len(histories), len(self.items[0]))
        for tower, items in zip(self.towers, self.items, strict=True):
            users = torch.from_numpy(encode_users(tower, items, histories, max_history=self.max_history))
            total += (users.to(items.device) @ items.T).log_softmax(dim=1).cpu()
        found: Floats = (total / len(self.items)).numpy()
        return found

    def of_pairs(self, histories: Sequences, candidates: npt.NDArray[np.int32]) -> Floats:
        """The same of `candidates` [n, C] alone: [n, C]."""
        return np.take_along_axis(self.log_probabilities(histories), candidates.astype(np.int64), axis=1)

    def to(self, device: torch.device) -> Behaviour:
        """Move the towers."""
        return replace(
            self, towers=[tower.to(device) for tower in self.towers], items=[each.to(device) for each in self.items]
        )

    def save(self, path: Path) -> None:
        """Write everything to one safetensors file."""
        tensors: dict[str, torch.Tensor] = {}
        for number, (tower, items) in enumerate(zip(self.towers, self.items, strict=True)):
            tensors |= {f"{number}.user.{name}": value.contiguous() for name, value in tower.state_dict().items()}
            tensors[f"{number}.items"] = items.contiguous()
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path, config: TowersConfig) -> Behaviour:
        """Read what `save` wrote; `config` is the one that it was trained with."""
        tensors = load_file(path)
        items = [tensors[f"{number}.items"] for number in range(sum(name.endswith(".items") for name in tensors))]
        towers = []
        for number in range(len(items)):
            start = f"{number}.user."
            weights = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
            tower = user_tower(config, len(weights["event_type.weight"]))
            tower.load_state_dict(weights)
            towers.append(tower.eval().requires_grad_(False))
        return cls(towers, items, config.max_history)


def without_last(sequences: Sequences, events: int) -> Sequences:
    """Every row without its last so many events."""
    return take(sequences, sequences.offsets[:-1], np.maximum(sequences.lengths - events, 0))


def train_behaviour(
    dataset: Dataset,
    text: npt.NDArray[np.float32] | None,
    config: TowersConfig,
    *,
    seeds: int,
    held_out: int,
    scratch: Path,
    tensorboard: Path,
    runtime: Runtime,
) -> tuple[Behaviour, Behaviour]:
    """Train the towers on all of the training part, and on it without each user's last `held_out` events.

    The first stop early on the validation part; the second, which have nothing to validate on that the first would not
    be asked about too, end after as many epochs. What was finished before a kill is not trained again.

    Args:
        dataset: only its training part is trained on.
        text: [n_items, width] float32, the items' sentence vectors; None if the config does not use them.
        config: width, depth and schedule.
        seeds: how many towers, whose log-probabilities are averaged.
        held_out: the last events of each user.
        scratch: where checkpoints and finished towers lie.
        tensorboard: where curves are written.
        runtime: device, seed, precision.

    Returns:
        The towers that know all of the training part, and those that do not know the held-out events.
    """
    found: list[Behaviour] = []
    epochs: list[int | None] = [None] * seeds
    for name, train in (("all", dataset.train), ("before", without_last(dataset.train, held_out))):
        parts = []
        for number in range(seeds):
            folder = scratch / f"behaviour_{name}_{number}"
            done = folder / "towers.safetensors"
            if not done.is_file():
                trained = train_towers(
                    train,
                    text,
                    config,
                    n_items=dataset.n_items,
                    n_event_types=len(dataset.event_types),
                    validation=Validation(dataset, config, runtime.seed) if name == "all" else None,
                    scratch=folder,
                    tensorboard=tensorboard / f"behaviour_{name}_{number}",
                    runtime=replace(runtime, seed=runtime.seed + 1000 * number),
                    label="teach.behaviour",
                    epochs=epochs[number],
                )
                with torch.inference_mode():
                    items = trained.model.items().cpu()
                tower = trained.model.user.cpu().eval().requires_grad_(False)
                temporary = folder / "towers.tmp"
                Behaviour([tower], [items], config.max_history).save(temporary)
                (folder / "epoch").write_text(str(trained.best_epoch))
                temporary.replace(done)
            epochs[number] = int((folder / "epoch").read_text())
            parts.append(Behaviour.load(done, config))
        towers, vectors = ([getattr(part, each)[0] for part in parts] for each in ("towers", "items"))
        found.append(Behaviour(towers, vectors, config.max_history))
    return found[0], found[1]
