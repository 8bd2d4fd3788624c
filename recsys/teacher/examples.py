"""What the teacher learns on: positions of the training part, and candidates beside what was chosen there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.errors import InputError
from recsys.ingest.dataset import Dataset, Sequences, take
from recsys.runtime import Runtime
from recsys.teacher.config import TeachConfig
from recsys.teacher.model import Packer


def history_rows(
    dataset: Dataset, users: npt.NDArray[np.int32], position: npt.NDArray[np.int32], *, last: int
) -> tuple[Sequences, tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]]:
    """Each user's `last` events before `position`, and all (row, item) pairs seen before it."""
    return dataset.histories(users, position, last=last), seen_before(dataset, users, position)


def seen_before(
    dataset: Dataset, users: npt.NDArray[np.int32], position: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """All (row, item) pairs of the users' events before `position`."""
    whole = dataset.histories(users, position)
    return np.repeat(np.arange(len(users)), whole.lengths), whole.item_idx


def own_sequences(dataset: Dataset, users: npt.NDArray[np.int32]) -> Sequences:
    """The users' whole training sequences, one row each."""
    return take(dataset.train, dataset.train.offsets[users], dataset.train.lengths[users])


@dataclass(frozen=True)
class Examples:
    """Training positions with the pool that evidence retrieves there."""

    user: npt.NDArray[np.int32]
    position: npt.NDArray[np.int32]
    target: npt.NDArray[np.int32]
    pool: npt.NDArray[np.int32]  # [n, pool], −1 for padding
    inside: npt.NDArray[np.bool_]  # the target is in the pool


def choose_examples(dataset: Dataset, packer: Packer, config: TeachConfig, runtime: Runtime) -> Examples:
    """Some of the users' last training events, until enough of them lie inside the pool that is retrieved there.

    Args:
        dataset: its training part.
        packer: retrieves, with the towers that do not know these events.
        config: how many of which kind.
        runtime: the seed that chooses.

    Raises:
        InputError: nobody took a second item.
    """
    train = dataset.train
    user = np.repeat(np.arange(len(train), dtype=np.int32), train.lengths)
    position = (np.arange(len(user)) - train.offsets[user]).astype(np.int32)
    # A target seen before is answered by the history itself; a position without history asks about nobody.
    _, first = np.unique(user * np.int64(dataset.n_items) + train.item_idx, return_index=True)
    asked = (position > 0) & (position >= train.lengths[user] - config.behaviour.held_out)
    usable = np.intersect1d(first, np.flatnonzero(asked))
    if not len(usable):
        raise InputError(
            "no user took a second item in the training part",
            expected="histories to learn from",
            do="use a longer log, or shorten ingest.valid_days and ingest.test_days",
        )
    order = np.random.default_rng([runtime.seed, 2]).permutation(usable)
    want_inside = round(config.examples * (1 - config.outside_share))
    parts: list[Examples] = []
    found, block = 0, 256
    bar = runtime.track(range(0, len(order), block), label="retrieve candidate pools", unit="block")
    for start in bar:
        rows = order[start : start + block]
        users, places, target = user[rows], position[rows], train.item_idx[rows]
        histories, seen = history_rows(dataset, users, places, last=packer.history)
        pool = packer.retrieve(histories, seen, config.pool, own_sequences(dataset, users))
        inside = (pool == target[:, None]).any(1)
        parts.append(Examples(users, places, target, pool, inside))
        found += int(inside.sum())
        if found >= want_inside:
            break
    every = Examples(*(np.concatenate([getattr(part, name) for part in parts]) for name in Examples.__annotations__))
    chosen = np.concatenate(
        [
            np.flatnonzero(every.inside)[:want_inside],
            np.flatnonzero(~every.inside)[: config.examples - want_inside],
        ]
    )
    return Examples(*(getattr(every, name)[chosen] for name in Examples.__annotations__))


def draw_candidates(
    examples: Examples, rows: npt.NDArray[np.int64], count: int, n_items: int, rng: np.random.Generator
) -> npt.NDArray[np.int32]:
    """[n, count]: the target first, then others of its kind: of the pool if it is in the pool, else random items."""
    pool, target = examples.pool[rows], examples.target[rows, None]
    others = np.where((pool >= 0) & (pool != target), rng.random(pool.shape), 2.0)
    place = np.argsort(others, axis=1)[:, : count - 1]
    from_pool = np.take_along_axis(np.where(others > 1, -1, pool), place, axis=1)
    random = rng.integers(0, n_items, from_pool.shape, dtype=np.int32)
    negatives = np.where(examples.inside[rows, None] & (from_pool >= 0), from_pool, random)
    return np.concatenate([target, negatives], axis=1).astype(np.int32)
