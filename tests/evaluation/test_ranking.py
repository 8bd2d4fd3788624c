from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recsys.errors import RecsysError
from recsys.evaluation.metrics import Recall
from recsys.evaluation.ranking import RankedBlock, Scorer, rank, tie_keys, top_k
from recsys.ingest.dataset import Cases, Dataset, Ragged
from recsys.runtime import Runtime

N_USERS, N_ITEMS = 60, 40
MakeScorer = Callable[[np.ndarray], Scorer]


@pytest.fixture
def shop(write_dataset: Callable[..., Dataset]) -> Dataset:
    """Users with histories of 1 to 6 events and tests of 1 to 3, some of items that they had before."""
    rng = np.random.default_rng(0)
    histories = [rng.integers(N_ITEMS, size=rng.integers(3, 10)).tolist() for _ in range(N_USERS)]
    valid_end = [max(1, len(row) - int(rng.integers(1, 4))) for row in histories]
    return write_dataset(histories, [1] * N_USERS, valid_end, n_items=N_ITEMS)


def ranked(
    scorer: Scorer, dataset: Dataset, *, k: int = 10, seed: int = 0, block: int | None = None
) -> list[RankedBlock]:
    cases = dataset.cases("test")
    return list(rank(scorer, dataset, cases, k=k, runtime=Runtime(seed=seed, progress=False), block=block))


def together(blocks: list[RankedBlock], *, seen_filtered: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mine = [block for block in blocks if block.seen_filtered == seen_filtered]
    return tuple(np.concatenate([getattr(block, name) for block in mine]) for name in ("items", "hits", "n_targets"))


@pytest.mark.parametrize("seen_filtered", [True, False])
def test_equals_a_plain_loop_over_users(shop: Dataset, table_scorer: MakeScorer, seen_filtered: bool) -> None:
    table = np.random.default_rng(1).permutation(N_ITEMS * N_ITEMS).reshape(N_ITEMS, N_ITEMS).astype(np.float32)
    items, hits, n_targets = together(ranked(table_scorer(table), shop, k=12), seen_filtered=seen_filtered)
    cases = shop.cases("test")
    for row, (user, end) in enumerate(zip(cases.user_idx, cases.history_end, strict=True)):
        events = shop.sequences.item_idx[shop.sequences.offsets[user] : shop.sequences.offsets[user + 1]].tolist()
        history, targets = events[:end], set(events[end:])
        if seen_filtered:
            targets -= set(history)
        expected = sorted(range(N_ITEMS), key=lambda item: -table[history[0], item])
        expected = [item for item in expected if not (seen_filtered and item in history)][:12]
        assert items[row].tolist() == expected
        assert hits[row].tolist() == [item in targets for item in expected]
        assert n_targets[row] == len(targets)
    if seen_filtered:
        assert (n_targets == 0).any()  # the case of a user without a target left is in the data


@pytest.mark.parametrize("block", [1, 7, 59, 1000])
@pytest.mark.parametrize("levels", [1, 3, 10_000])
def test_blocks_change_nothing(shop: Dataset, table_scorer: MakeScorer, block: int, levels: int) -> None:
    scorer = table_scorer(np.random.default_rng(2).integers(levels, size=(N_ITEMS, N_ITEMS)).astype(np.float32))
    whole, parts = ranked(scorer, shop), ranked(scorer, shop, block=block)
    for seen_filtered in (True, False):
        for a, b in zip(
            together(whole, seen_filtered=seen_filtered), together(parts, seen_filtered=seen_filtered), strict=True
        ):
            np.testing.assert_array_equal(a, b)


@settings(deadline=None, max_examples=150)
@given(
    scores=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 30)),
        elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 0.5, 2.0]),
    ),
    k=st.integers(1, 35),
    seed=st.integers(0, 100),
)
def test_top_k_is_one_fixed_order_of_all_items(scores: np.ndarray, k: int, seed: int) -> None:
    n, n_items = scores.shape
    keys = tie_keys(np.arange(n, dtype=np.int32), seed)
    # The order of ties is what the rule gives where everything is tied.
    order = top_k(np.zeros_like(scores), n_items, keys)
    assert (np.sort(order, axis=1) == np.arange(n_items)).all()
    place = np.argsort(order, axis=1)
    found = top_k(scores, k, keys)
    for row in range(n):
        allowed = [item for item in range(n_items) if scores[row, item] > -np.inf]
        expected = sorted(allowed, key=lambda item: (-scores[row, item], place[row, item]))[:k]
        assert found[row].tolist() == expected + [-1] * (k - len(expected))


@pytest.mark.parametrize("target", [0, 17, 199])
def test_a_constant_score_finds_what_chance_finds_wherever_the_targets_stand(target: int) -> None:
    n_users, n_items, k = 4000, 200, 10
    for seed in range(3):
        items = top_k(np.ones((n_users, n_items), np.float32), k, tie_keys(np.arange(n_users, dtype=np.int32), seed))
        recall = Recall(k)(items == target, np.ones(n_users, np.int64)).mean()
        # Chance is k / n_items = .05; five standard errors of a share over 4,000 users are ± .017.
        assert abs(recall - k / n_items) < 0.017


def test_targets_cannot_move_a_tie(shop: Dataset, table_scorer: MakeScorer) -> None:
    scorer = table_scorer(np.zeros((N_ITEMS, N_ITEMS), np.float32))
    cases = shop.cases("test")
    moved = Cases(
        cases.user_idx,
        cases.history_end,
        Ragged(cases.targets.offsets, (N_ITEMS - 1 - cases.targets.values).astype(np.int32)),
    )
    runtime = Runtime(progress=False)
    lists = [
        together(list(rank(scorer, shop, asked, k=10, runtime=runtime)), seen_filtered=False)[0]
        for asked in (cases, moved)
    ]
    np.testing.assert_array_equal(*lists)


def test_users_and_seeds_order_ties_differently() -> None:
    constant, users = np.zeros((50, 100), np.float32), np.arange(50, dtype=np.int32)
    first, second = (top_k(constant, 10, tie_keys(users, seed)) for seed in (0, 1))
    assert len(np.unique(first[:, 0])) > 25
    assert (first != second).any(axis=1).all()


def test_nan_and_a_wrong_shape_are_refused(shop: Dataset, table_scorer: MakeScorer) -> None:
    table = np.zeros((N_ITEMS, N_ITEMS), np.float32)
    table[:, 3] = np.nan
    with pytest.raises(RecsysError, match="table gave a score that is NaN"):
        ranked(table_scorer(table), shop)
    with pytest.raises(RecsysError, match="shape"):
        ranked(table_scorer(np.zeros((N_ITEMS, 3), np.float32)), shop)
