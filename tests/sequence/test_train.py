"""What the towers are trained on, and what they may see."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.ingest.windows import sliding_windows
from recsys.sequence.config import TowersConfig
from recsys.sequence.towers import user_tower
from recsys.sequence.train import batches, collate
from tests.written import numbered


@settings(deadline=None)
@given(st.lists(st.integers(0, 23), min_size=1, max_size=8), st.integers(2, 9), st.integers(8, 64), st.integers(0, 9))
def test_every_event_is_a_target_once_whatever_thesliding_windows(
    lengths: list[int], max_history: int, positions: int, seed: int
) -> None:
    train = numbered(lengths)
    windows = sliding_windows(train, max_history)
    targets = []
    for batch in batches(windows, positions, np.random.default_rng(seed)):
        items, _, target, place = collate(train, windows, batch)
        width = items.shape[1] + 1
        targets.extend(target.tolist())
        for event, (row, column) in zip(target.tolist(), zip(place // width, place % width, strict=True), strict=True):
            # What stands before the place in the window are the events right before the target, none after it.
            seen = items[row, :column].tolist()
            assert seen == list(range(event - len(seen), event))
    assert sorted(targets) == list(range(sum(lengths)))


def test_the_user_tower_cannot_see_the_future() -> None:
    torch.manual_seed(0)
    tower = user_tower(TowersConfig(dim=16, max_history=8), n_event_types=3).eval()
    events, types = torch.randn(2, 6, 16), torch.randint(3, (2, 6))
    changed = events.clone()
    changed[:, 4:] = torch.randn(2, 2, 16)
    before, after = tower(events, types), tower(changed, types)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-3
