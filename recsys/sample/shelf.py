"""Drawing from weighted groups, for any number of draws at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Shelf:
    """Items that stand in groups; a draw takes one of a group, in proportion to its weight in an epoch.

    Args:
        group: the group of each item, [n_items].
        weight: non-negative weight of each item in each epoch, [n_epochs, n_items].
        n_groups: number of groups; some may be empty.
    """

    def __init__(self, group: Ints, weight: Floats, n_groups: int) -> None:
        self.order: Ints = np.argsort(group, kind="stable")
        self.bounds: Ints = np.searchsorted(group[self.order], np.arange(n_groups + 1))
        # One running sum over all epochs, so that one binary search serves every draw.
        self.running: Floats = np.concatenate([[0.0], np.cumsum(weight[:, self.order])])

    def draw(self, rng: np.random.Generator, epoch: Ints, group: Ints) -> Ints:
        """One item for each epoch and group; all three arrays have one shape.

        An empty group, or one without weight, gives an item that stands next to it.
        """
        begin = epoch * len(self.order)
        low, high = self.running[begin + self.bounds[group]], self.running[begin + self.bounds[group + 1]]
        point = low + rng.random(group.shape) * (high - low)
        place = np.searchsorted(self.running, point, side="right") - 1 - begin
        item: Ints = self.order[np.clip(place, 0, len(self.order) - 1)]
        return item
