"""The recommender: rules hold, nobody comes short, and each list equals the one that a patient clerk would write."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking_shop import (
    EVENT_TYPES,
    RUNTIME,
    Event,
    Linear,
    build_shop,
    integer_vectors,
    moment,
    permuted,
    random_histories,
)

from recsys.errors import InputError
from recsys.ingest.dataset import Sequences
from recsys.ranking.config import RecommendConfig
from recsys.ranking.recommender import LISTS, Recommender
from recsys.retrieval.config import IndexConfig

SAYS = {
    "view": "because you viewed Title {}",
    "cart": "because you added Title {} to your cart",
    "purchase": "because you bought Title {}",
    "wishlist": "because of Title {}",
}


def everyone(n_users: int) -> np.ndarray:
    return np.arange(n_users, dtype=np.int32)


def lists_of(table: pa.Table, n_rows: int) -> list[list[int]]:
    lists: list[list[int]] = [[] for _ in range(n_rows)]
    for row, item in zip(table["row"].to_pylist(), table["item_idx"].to_pylist(), strict=True):
        lists[row].append(item)
    return lists


def by_hand(
    history: Sequence[Event], scores: np.ndarray, allowed: Sequence[bool], hiding: set[str], k: int
) -> list[int]:
    """One user's list, item by item."""
    hidden = {item for item, code in history if EVENT_TYPES[code] in hiding}
    eligible = [item for item in range(len(scores)) if allowed[item] and item not in hidden]
    return sorted(eligible, key=lambda item: (-scores[item], item))[:k]


def possible_reasons(history: Sequence[Event], item: int, vectors: np.ndarray) -> set[str]:
    """The sentences that may explain an item; where rounding decides between equally similar events, each of them."""
    if not history:
        return {"chosen for new visitors"}
    recent = history[-20:]
    norms = np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
    cosines = np.array([vectors[item] @ vectors[past] / (norms[item] * norms[past]) for past, _ in recent])
    if cosines.max() < 0.05:  # between small integers of 4 dimensions none lies near this
        return {"based on your recent activity"}
    best = [recent[place] for place in np.flatnonzero(cosines > cosines.max() - 1e-5)]
    return {SAYS[EVENT_TYPES[code]].format(past) for past, code in best}


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_items=st.integers(1, 50),
    n_users=st.integers(1, 12),
    longest=st.sampled_from([3, 30, 200]),
    k=st.integers(1, 60),
    exclude_seen=st.sampled_from(["all", "none", ("purchase",), ("cart", "wishlist")]),
    in_stock_only=st.booleans(),
    as_of=st.sampled_from([None, moment(-10), moment(100)]),
)
def test_lists_and_reasons_are_those_made_by_hand(
    seed: int,
    n_items: int,
    n_users: int,
    longest: int,
    k: int,
    exclude_seen: str | tuple[str, ...],
    in_stock_only: bool,
    as_of: datetime | None,
) -> None:
    rng = np.random.default_rng(seed)
    vectors = integer_vectors(rng, n_items)
    histories = random_histories(rng, n_users, n_items, longest)
    in_stock = [(True, None, False)[c] for c in rng.integers(0, 3, n_items)]
    available_from = [
        (None, moment(-5), moment(50), moment(100), moment(10_000))[c] for c in rng.integers(0, 5, n_items)
    ]
    config = RecommendConfig(k=k, exclude_seen=exclude_seen, in_stock_only=in_stock_only, as_of=as_of)
    with tempfile.TemporaryDirectory() as folder:
        dataset, student, index = build_shop(
            Path(folder), vectors, histories, in_stock=in_stock, available_from=available_from
        )
        recommender = Recommender(dataset, student, index, config, runtime=RUNTIME)
        rows = dataset.histories(everyone(n_users))
        table = recommender.recommend_for(rows)
        users = student.user_vectors(rows)

    now = as_of or moment(max((len(history) for history in histories), default=0) - 1)
    if not any(histories):
        now = as_of or datetime.fromtimestamp(0, moment(0).tzinfo)
    allowed = [
        (not in_stock_only or stocked is not False) and (launch is None or launch <= now)
        for stocked, launch in zip(in_stock, available_from, strict=True)
    ]
    hiding = set(EVENT_TYPES) if exclude_seen == "all" else set() if exclude_seen == "none" else set(exclude_seen)
    scores = users @ vectors.T
    expected = [by_hand(histories[u], scores[u], allowed, hiding, k) for u in range(n_users)]

    assert table.schema.equals(LISTS)
    assert lists_of(table, n_users) == expected
    for row in table.to_pylist():
        assert row["item_id"] == f"i{row['item_idx']}"
        assert row["score"] == scores[row["row"], row["item_idx"]]
        assert row["reason"] in possible_reasons(histories[row["row"]], row["item_idx"], vectors)
    assert table["rank"].to_pylist() == [rank for row in expected for rank in range(1, len(row) + 1)]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_and_the_company_of_users_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    histories = random_histories(rng, 30, 40, 60)
    with tempfile.TemporaryDirectory() as folder:
        dataset, student, index = build_shop(Path(folder), integer_vectors(rng, 40), histories)
        recommender = Recommender(dataset, student, index, RecommendConfig(k=7), runtime=RUNTIME)
        rows = dataset.histories(everyone(30))
        together = recommender.recommend_for(rows)
        order = rng.permutation(30)[: rng.integers(1, 31)]
        shuffled = recommender.recommend_for(permuted(rows, order))
    columns = ["item_id", "rank", "score", "reason"]
    for place, user in enumerate(order):
        mine = together.filter(pa.compute.equal(together["row"], user)).select(columns)
        assert shuffled.filter(pa.compute.equal(shuffled["row"], place)).select(columns).equals(mine)


@pytest.mark.parametrize("kind", ["hnsw", "ivf_pq"])
def test_an_approximate_index_leaves_nobody_short(kind: str, tmp_path: Path) -> None:
    n_items, k = 3000, 20
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(30, 16))
    vectors = (centres[rng.integers(0, 30, n_items)] + 0.4 * rng.normal(size=(n_items, 16))).astype(np.float32)
    in_stock = (rng.random(n_items) < 0.5).tolist()
    stocked = np.flatnonzero(in_stock)
    has_seen_all_but = [0, 3, 19, 20, 21, 700]
    histories = [[(int(i), 0) for i in rng.permutation(stocked)[left:]] for left in has_seen_all_but]
    histories += random_histories(rng, 40, n_items, 30)
    dataset, student, index = build_shop(
        tmp_path, vectors, histories, index=IndexConfig(type=kind, target_recall=0.9), in_stock=in_stock
    )
    assert index.manifest["info"]["type"] == kind
    table = Recommender(dataset, student, index, RecommendConfig(k=k), runtime=RUNTIME).recommend_for(
        dataset.histories(everyone(len(histories)))
    )
    lists = lists_of(table, len(histories))
    assert [len(each) for each in lists[:6]] == [min(k, left) for left in has_seen_all_but]
    assert all(len(each) == k for each in lists[6:])
    for each, history in zip(lists, histories, strict=True):
        assert len(set(each)) == len(each)
        assert not set(each) & {item for item, _ in history}
        assert all(in_stock[item] for item in each)


def test_a_reason_looks_at_the_last_twenty_events_and_takes_the_most_recent_of_equals(tmp_path: Path) -> None:
    vectors = np.eye(30, 30, dtype=np.float32)
    vectors[25] = vectors[0] + vectors[1]  # like both
    old_then_new = [(0, 2), *[(i, 0) for i in range(2, 20)], (1, 1)]  # 20 events: item 0 is the oldest that counts
    dataset, student, index = build_shop(tmp_path, vectors, [old_then_new, [*old_then_new, (20, 0)], [(0, 0), (0, 2)]])
    recommender = Recommender(dataset, student, index, RecommendConfig(k=30), runtime=RUNTIME)
    table = recommender.recommend_for(dataset.histories(everyone(3)))
    said = {(row["row"], row["item_idx"]): row["reason"] for row in table.to_pylist()}
    assert said[0, 25] == "because you added Title 1 to your cart"
    assert said[2, 25] == "because you bought Title 0"
    assert said[0, 29] == "based on your recent activity"

    without_1 = vectors.copy()
    without_1[25] = vectors[0]
    dataset, student, index = build_shop(tmp_path / "b", without_1, [old_then_new, [*old_then_new, (20, 0)]])
    table = Recommender(dataset, student, index, RecommendConfig(k=30), runtime=RUNTIME).recommend_for(
        dataset.histories(everyone(2))
    )
    said = {(row["row"], row["item_idx"]): row["reason"] for row in table.to_pylist()}
    assert said[0, 25] == "because you bought Title 0"
    assert said[1, 25] == "based on your recent activity"  # the 21st event from the end no longer counts


def test_no_users_and_nothing_to_recommend_give_empty_tables(tmp_path: Path) -> None:
    dataset, student, index = build_shop(tmp_path, np.eye(3, dtype=np.float32), [[(0, 0)]], in_stock=[False] * 3)
    for rules in (RecommendConfig(), RecommendConfig(in_stock_only=False)):
        recommender = Recommender(dataset, student, index, rules, runtime=RUNTIME)
        assert recommender.recommend_for(dataset.histories(everyone(0))).equals(LISTS.empty_table())
    assert (
        Recommender(dataset, student, index, RecommendConfig(), runtime=RUNTIME)
        .recommend_for(dataset.histories(everyone(1)))
        .equals(LISTS.empty_table())
    )


def test_bad_input_is_named(tmp_path: Path) -> None:
    dataset, student, index = build_shop(tmp_path, np.eye(3, dtype=np.float32), [[(0, 0)]])
    with pytest.raises(InputError, match="exclude_seen names 'bought'") as error:
        Recommender(dataset, student, index, RecommendConfig(exclude_seen=("bought", "view")))
    assert "'wishlist'" in error.value.expected
    with pytest.raises(InputError, match="different runs"):
        Recommender(dataset, Linear(student.item_vectors, "trained again"), index, RecommendConfig())
    recommender = Recommender(dataset, student, index, RecommendConfig(), runtime=RUNTIME)
    one = np.zeros(1, np.int64)
    for item, code, named in ((3, 0, "item_idx"), (-1, 0, "item_idx"), (0, 4, "event_type")):
        history = Sequences(np.array([0, 1]), one.astype(np.int32) + item, one.astype(np.int8) + code, one, one)
        with pytest.raises(InputError, match=f"hold a {named} from"):
            recommender.recommend_for(history)
