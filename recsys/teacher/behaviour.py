"""What the order of a user's events says without reading a word: towers over sequences, trained for the teacher alone.

Of all single kinds of evidence this is the strongest, and it is overconfident about events that it was trained on. A
teacher that learned how far to trust it on those would trust it too far on others. So it is trained twice, in the
manner of stacking (Wolpert, 1992), but along time: once without each user's last events, on which the teacher then
learns, and once on everything, for all that comes after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from recsys import distributed
from recsys.artifacts import Artifact, Draft, Recipe
from recsys.evidence import Floats
from recsys.ingest.dataset import Dataset, Sequences, take
from recsys.runtime import Runtime
from recsys.sequence.config import TowersConfig
from recsys.sequence.features import item_features, towers_texts
from recsys.sequence.towers import UserTower, encode_users
from recsys.sequence.train import MODULES, Validation, train_towers
from recsys.teacher.config import BehaviourConfig


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
            tower = UserTower(config, len(weights["event_type.weight"]))
            tower.load_state_dict(weights)
            towers.append(tower.eval().requires_grad_(False))
        return cls(towers, items, config.max_history)


def without_last(sequences: Sequences, events: int) -> Sequences:
    """Every row without its last so many events."""
    return take(sequences, sequences.offsets[:-1], np.maximum(sequences.lengths - events, 0))


class BehaviourTowers(Artifact):
    """What `teach` trains first: towers that know all of the training part, and towers that do not know its end."""

    kind: ClassVar[str] = "behaviour"
    stage: ClassVar[str] = "teach"

    FILE: ClassVar[str] = "behaviour.safetensors"
    BEFORE_FILE: ClassVar[str] = "behaviour_before.safetensors"

    @cached_property
    def config(self) -> BehaviourConfig:
        """The config that they were trained with."""
        return BehaviourConfig.model_validate(self.manifest["config"])

    @cached_property
    def all(self) -> Behaviour:
        """Those that know all of the training part."""
        return Behaviour.load(self.path / self.FILE, self.config)

    @cached_property
    def before(self) -> Behaviour:
        """Those that do not know each user's last `held_out` events."""
        return Behaviour.load(self.path / self.BEFORE_FILE, self.config)


def train_behaviour(
    dataset: Dataset,
    config: BehaviourConfig,
    out: Path,
    *,
    runtime: Runtime | None = None,
) -> BehaviourTowers:
    """Train the towers on all of the training part, and on it without each user's last events.

    The first stop early on the validation part; the second, which have nothing to validate on that the first would not
    be asked about too, end after as many epochs. What was finished before a kill is not trained again. They are an
    artifact of their own, so that teachers that read differently share them.

    Args:
        dataset: only its training part is trained on.
        config: width, depth and schedule; how many are averaged, and how many events are held out.
        out: where the artifact goes, e.g. `runs/sample/behaviour`.
        runtime: device, seed, precision.
    """
    runtime = runtime or Runtime()
    recipe = Recipe(
        kind=BehaviourTowers.kind,
        config=config,
        inputs={"dataset": dataset.fingerprint},
        seed=runtime.seed,
        modules=(*MODULES, "recsys.teacher.behaviour"),
    )
    if not distributed.from_first(recipe.is_current(out)):
        text = towers_texts(dataset, config, out, runtime=runtime)
        with recipe.build(out) as draft:
            _train(dataset, text, config, draft, runtime)
    return BehaviourTowers.open(out)


def _train(
    dataset: Dataset,
    text: npt.NDArray[np.float32] | None,
    config: BehaviourConfig,
    draft: Draft,
    runtime: Runtime,
) -> None:
    epochs: list[int | None] = [None] * config.seeds
    for name, train in (("all", dataset.train), ("before", without_last(dataset.train, config.held_out))):
        parts = []
        for number in range(config.seeds):
            folder = draft.scratch / f"{name}_{number}"
            done = folder / "towers.safetensors"
            if not distributed.from_first(done.is_file()):
                trained = train_towers(
                    train,
                    item_features(dataset.items, text, config),
                    config,
                    n_items=dataset.n_items,
                    event_types=dataset.event_types,
                    validation=Validation(dataset, config, runtime.seed) if name == "all" else None,
                    scratch=folder,
                    tensorboard=draft.path / "tensorboard" / f"{name}_{number}",
                    runtime=replace(runtime, seed=runtime.seed + 1000 * number),
                    label="teach.behaviour",
                    epochs=epochs[number],
                )
                with torch.inference_mode():
                    items = trained.model.items().cpu()
                tower = trained.model.user.cpu().eval().requires_grad_(False)
                if not distributed.rank():
                    temporary = folder / "towers.tmp"
                    Behaviour([tower], [items], config.max_history).save(temporary)
                    (folder / "epoch").write_text(str(trained.best_epoch))
                    temporary.replace(done)
                distributed.barrier()
                draft.info[f"valid_ndcg_at_10_{number}"] = trained.best_value
            epochs[number] = int((folder / "epoch").read_text())
            parts.append(Behaviour.load(done, config))
        towers, vectors = ([getattr(part, each)[0] for part in parts] for each in ("towers", "items"))
        file = BehaviourTowers.FILE if name == "all" else BehaviourTowers.BEFORE_FILE
        Behaviour(towers, vectors, config.max_history).save(draft.path / file)
    draft.counts.update(seeds=config.seeds, epochs=sum(each or 0 for each in epochs))
