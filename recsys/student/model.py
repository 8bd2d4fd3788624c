"""The student: an item tower over text and id, a user tower over the history, one dot product between them."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from recsys.artifacts import Artifact
from recsys.ingest.dataset import Sequences
from recsys.runtime import Runtime
from recsys.sequence.towers import UserTower, encode_users
from recsys.student.config import DistillConfig


class Student(Artifact):
    """What `recsys distill` writes: `weights.safetensors` and `item_vectors.npy`."""

    kind: ClassVar[str] = "student"
    stage: ClassVar[str] = "distill"

    @cached_property
    def config(self) -> DistillConfig:
        """The config that it was trained with."""
        return DistillConfig.model_validate(self.manifest["config"])

    @property
    def item_vectors(self) -> npt.NDArray[np.float32]:
        """[n_items, dim] float32, memory-mapped read-only; a pair's score is the dot product with the user's vector."""
        return np.load(self.path / "item_vectors.npy", mmap_mode="r")  # type: ignore[no-any-return]  # numpy types it Any

    @cached_property
    def _items(self) -> torch.Tensor:
        return torch.from_numpy(np.array(self.item_vectors))  # a copy: torch wants memory that may be written

    @cached_property
    def _tower(self) -> UserTower:
        tower = UserTower(self.config, int(self.manifest["info"]["n_event_types"]))
        weights = load_file(self.path / "weights.safetensors")
        tower.load_state_dict({k.removeprefix("user."): v for k, v in weights.items() if k.startswith("user.")})
        return tower.eval().requires_grad_(False)

    def user_vectors(self, histories: Sequences, *, runtime: Runtime | None = None) -> npt.NDArray[np.float32]:
        """Vectors of users from their histories.

        Args:
            histories: one row per user, oldest event first; only the last `max_history` events are read. An empty row
                gives the vector of somebody of whom nothing is known.
            runtime: where to compute.

        Returns:
            [n, dim] float32.
        """
        device = (runtime or Runtime()).torch_device()
        items = self._items.to(device)
        return encode_users(self._tower.to(device), items, histories, max_history=self.config.max_history)
