"""What the towers are trained on, and what they may see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.ingest.dataset import Sequences, take
from recsys.ingest.windows import sliding_windows
from recsys.runtime import Runtime
from recsys.sequence.config import TowersConfig
from recsys.sequence.features import ItemFeatures, item_features
from recsys.sequence.towers import GAPS, ItemTower, UserTower, encode_users, gap_codes, pad_right
from recsys.sequence.train import Trained, batches, collate, train_towers
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
        step = collate(train, windows, batch)
        items, target, place = step.items, step.targets, step.places
        width = items.shape[1] + 1
        targets.extend(target.tolist())
        for event, (row, column) in zip(target.tolist(), zip(place // width, place % width, strict=True), strict=True):
            # What stands before the place in the window are the events right before the target, none after it.
            seen = items[row, :column].tolist()
            assert seen == list(range(event - len(seen), event))
    assert sorted(targets) == list(range(sum(lengths)))


def test_the_user_tower_cannot_see_the_future() -> None:
    torch.manual_seed(0)
    tower = UserTower(TowersConfig(dim=16, max_history=8), n_event_types=3).eval()
    torch.nn.init.normal_(tower.gap.weight)
    events, types, gaps = torch.randn(2, 6, 16), torch.randint(3, (2, 6)), torch.randint(GAPS, (2, 6))
    changed = events.clone()
    changed[:, 4:] = torch.randn(2, 2, 16)
    later = gaps.clone()
    later[:, 4:] = (later[:, 4:] + 1) % GAPS
    before, after = tower(events, types, gaps), tower(changed, types, later)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-3


def test_a_history_longer_than_any_in_training_is_read_as_the_longest(tmp_path: Path) -> None:
    small = TowersConfig(dim=16, layers=1, epochs=1, max_history=30)
    tower = train(small, tmp_path, train=shop()).model.user
    assert int(tower.longest) == 11  # a sequence of twelve has no thirteenth event to ask for
    with torch.inference_mode():
        events, zeros = torch.randn(1, 20, 16), torch.zeros(1, 20, dtype=torch.int64)
        before = tower(events, zeros, zeros)
        tower.place.weight[12:] += 10  # untrained: whatever it is
        torch.testing.assert_close(tower(events, zeros, zeros), before)


def test_gaps_are_octaves_of_minutes() -> None:
    minute = 60_000_000
    times = np.array([[5, 5, 5 + minute, 5 + 4 * minute, 5 + 3 * 1440 * minute, 2**62]])
    assert gap_codes(times).tolist() == [[0, 1, 2, 3, 1 + 12, GAPS - 1]]
    assert gap_codes(times[:, :0]).shape == (1, 0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(2, 6), st.integers(0, 99))
def test_training_and_asking_read_the_same(lengths: list[int], last: int, seed: int) -> None:
    """A user's last window is padded as the history that is asked about later."""
    rows = numbered(lengths)
    rows.timestamp[:] = np.random.default_rng(seed).integers(0, 10**12, len(rows.timestamp))
    for row in range(len(rows)):
        rows.timestamp[rows.offsets[row] : rows.offsets[row + 1]].sort()
    windows = sliding_windows(rows, 100)
    step = collate(rows, windows, np.arange(len(windows.count)))
    items, types, gaps, length = pad_right(rows, last=100)
    for mine, theirs in ((items, step.items), (types, step.types), (gaps, step.gaps)):
        np.testing.assert_array_equal(mine[:, : theirs.shape[1]], theirs.numpy())
    assert length.tolist() == lengths
    cut = pad_right(rows, last=last)
    for row, count in enumerate(np.minimum(lengths, last)):
        assert cut[0][row, :count].tolist() == items[row, lengths[row] - count : lengths[row]].tolist()
        assert cut[2][row, 1:count].tolist() == gaps[row, lengths[row] - count + 1 : lengths[row]].tolist()


KNOWN = torch.tensor([True] * 5 + [False])
FEATURES = ItemFeatures(
    np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32), {"brand": np.array([1, 1, 2, 2, 0, 1])}
)


@pytest.mark.parametrize("id_rows", [0, 3])
def test_an_item_is_the_sum_of_what_is_known_of_it(id_rows: int) -> None:
    torch.manual_seed(0)
    tower = ItemTower(FEATURES, KNOWN, TowersConfig(dim=8, id_rows=id_rows)).eval()
    torch.nn.init.normal_(tower.groups[0].weight)
    with torch.inference_mode():
        every, some = tower(), tower(torch.tensor([4, 5, 0]))
        torch.testing.assert_close(some, every[[4, 5, 0]])
        text = torch.nn.functional.linear(tower.text, tower.project.weight, tower.project.bias)
        # A new item is its text and its brand, whatever rows its id falls on.
        torch.testing.assert_close(every[5], text[5] + tower.groups[0].weight[1])
        if not id_rows:
            torch.testing.assert_close(every[0], text[0] + tower.groups[0].weight[1] + tower.ids.weight[0])


def test_items_that_share_rows_by_hash_are_told_apart() -> None:
    torch.manual_seed(0)
    n, rows = 5000, 1000
    tower = ItemTower(ItemFeatures(), torch.ones(n, dtype=torch.bool), TowersConfig(dim=16, id_rows=rows)).eval()
    with torch.inference_mode():
        vectors = tower()
    assert tower.ids.weight.shape == (rows, 16)
    distinct = len(np.unique(vectors.numpy().round(4), axis=0))
    assert distinct > 0.99 * n  # with one row each there could be no more than a fifth


def test_features_of_a_catalogue() -> None:
    items = pa.table(
        {
            "brand": ["a", "b", "a", None, "c"],
            "category": ["x > y > z", "x > y > w", "x > y > w", None, "q"],
            "price": [1.0, None, 3.0, 2.0, 0.0],
        }
    )
    text = np.random.default_rng(0).normal(3, 1, (5, 4)).astype(np.float32)
    found = item_features(items, text, TowersConfig())
    assert found.groups["brand"].tolist() == [1, 0, 1, 0, 0]  # a brand of one item says what its id says
    assert found.groups["category"].tolist() == [0, 1, 1, 0, 0]
    assert found.groups["department"].tolist() == [1, 1, 1, 0, 0]
    price = found.groups["price"]
    assert price[0] < price[3] < price[2]
    assert price[1] == price[4] == 0
    np.testing.assert_allclose(np.linalg.norm(found.text, axis=1), 1, rtol=1e-5)
    assert item_features(items, None, TowersConfig(item_features=())) == ItemFeatures()


def train(config: TowersConfig, folder: Path, **options: Any) -> Trained:
    return train_towers(
        options.pop("train"),
        ItemFeatures(),
        config,
        n_items=40,
        event_types=("view", "cart", "purchase"),
        validation=None,
        scratch=folder,
        tensorboard=folder / "log",
        runtime=Runtime(progress=False, threads=1),
        label="test",
        **options,
    )


def shop(seed: int = 0) -> Sequences:
    """Users who view what follows what they saw last, and buy, every third time, one of 20 items more."""
    rng = np.random.default_rng(seed)
    rows = numbered([12] * 120)
    start = rng.integers(0, 20, 120)[:, None] + np.arange(12)[None, :]
    buys = np.tile(np.arange(12) % 3 == 2, (120, 1))
    rows.item_idx[:] = (start % 20 + 20 * buys).ravel()
    rows.event_type[:] = np.where(buys, 2, 0).ravel()
    return rows


def test_events_count_as_much_as_they_are_weighted(tmp_path: Path) -> None:
    small = {"dim": 16, "layers": 1, "epochs": 3, "batch_positions": 256, "dropout": 0.0, "id_dropout": 0.0}
    rows = shop()
    with pytest.raises(InputError, match=r"test\.event_weights names 'buy'"):
        train(TowersConfig(**small, event_weights={"buy": 1.0}), tmp_path / "x", train=rows)
    plain = train(TowersConfig(**small), tmp_path / "plain", train=rows)
    # Where views count nothing, only purchases are foreseen.
    bought = train(
        TowersConfig(**small | {"epochs": 60, "lr": 5e-3}, event_weights={"view": 0.0}), tmp_path / "b", train=rows
    )
    with torch.inference_mode():
        items = bought.model.items()
        before_view = take(rows, rows.offsets[:-1], np.full(120, 9))
        before_purchase = take(rows, rows.offsets[:-1], np.full(120, 11))
        log_p = [
            (torch.from_numpy(encode_users(bought.model.user, items, part, max_history=50)) @ items.T).log_softmax(1)
            for part in (before_view, before_purchase)
        ]
    rows_of = torch.arange(120)
    view, purchase = (
        float(of[rows_of, torch.from_numpy(rows.item_idx.reshape(120, 12)[:, place].astype(np.int64))].mean())
        for of, place in zip(log_p, (9, 11), strict=True)
    )
    assert purchase > view + 0.5
    alike = train(
        TowersConfig(**small, event_weights={"view": 2.0, "cart": 2.0, "purchase": 2.0}), tmp_path / "alike", train=rows
    )
    np.testing.assert_allclose([r["hard"] for r in alike.history], [r["hard"] for r in plain.history], rtol=1e-5)


def test_a_large_catalogue_learns_what_a_small_one_learns(tmp_path: Path) -> None:
    """With a sample for the catalogue, and only the vectors that a step needs."""
    small = {
        "dim": 32,
        "layers": 1,
        "epochs": 80,
        "batch_positions": 256,
        "lr": 5e-3,
        "dropout": 0.0,
        "id_dropout": 0.0,
    }
    rows = shop()
    histories = take(rows, rows.offsets[:-1], np.full(120, 9))  # the next is a view of what is next
    expected = (rows.item_idx.reshape(120, 12)[:, 7] + 2) % 20
    for softmax_items in (100, 15):
        model = train(
            TowersConfig(**small, softmax_items=softmax_items), tmp_path / str(softmax_items), train=rows
        ).model
        with torch.inference_mode():
            items = model.items()
            users = torch.from_numpy(encode_users(model.user, items, histories, max_history=50))
            found = (users @ items.T).argmax(1).numpy()
        assert (found == expected).mean() > 0.9, softmax_items
