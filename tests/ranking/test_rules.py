"""Rules: what is forbidden stays out, nobody is left short, and the list is the one that is made by hand."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ranking_shop import (
    EVENT_TYPES,
    RUNTIME,
    Event,
    build_shop,
    integer_vectors,
    moment,
    permuted,
    random_histories,
)
from test_recommender import everyone, lists_of

from recsys.errors import InputError
from recsys.ranking.config import Again, Boost, RecommendConfig
from recsys.ranking.recommend import recommend
from recsys.ranking.recommender import REASON_DRAWN, Recommender
from recsys.ranking.rules import Cap
from recsys.ranking.select import select

BRANDS, CATEGORIES = ("Acme", "Bolt", None), ("Hair", "Hair > Care", "Hairy", "Skin > Care", None)
TITLES, PRICES = ("Cream", "CREAM", "Soap"), (None, 1.0, 5.0, 9.0)


def catalogue(rng: np.random.Generator, n_items: int) -> dict[str, list[Any]]:
    return {
        name: [values[c] for c in rng.integers(0, len(values), n_items)]
        for name, values in {
            "brand": BRANDS,
            "category": CATEGORIES,
            "price": PRICES,
            "title": TITLES,
            "in_stock": (True, True, None, False),
        }.items()
    }


def below(category: str | None, path: str) -> bool:
    return category is not None and (category == path or category.startswith(path + " > "))


def forbidden(item: dict[str, Any], config: RecommendConfig) -> bool:
    price = item["price"]
    return (
        (config.in_stock_only and item["in_stock"] is False)
        or item["item_id"] in config.blocked_items
        or item["brand"] in config.blocked_brands
        or any(below(item["category"], path) for path in config.blocked_categories)
        or (price is not None and config.min_price is not None and price < config.min_price)
        or (price is not None and config.max_price is not None and price > config.max_price)
    )


def hidden_from(history: list[Event], items: list[dict[str, Any]], config: RecommendConfig, now: float) -> set[int]:
    found = set()
    for second, (item, code) in enumerate(history):
        name = EVENT_TYPES[code]
        if config.exclude_seen == "none" or (config.exclude_seen != "all" and name not in config.exclude_seen):
            continue
        age = (now - second) / 86400
        if not any(
            age >= rule.after_days
            and (not rule.event_types or name in rule.event_types)
            and (rule.category is None or below(items[item]["category"], rule.category))
            for rule in config.again
        ):
            found.add(item)
    return found


def lift(item: dict[str, Any], config: RecommendConfig, now: float) -> float:
    return sum(
        math.log(boost.factor)
        for boost in config.boosts
        if (boost.until is None or moment(0).timestamp() + now < boost.until.timestamp())
        and (
            item["item_id"] in boost.items
            or item["brand"] in boost.brands
            or any(below(item["category"], path) for path in boost.categories)
        )
    )


def groups(item: dict[str, Any], config: RecommendConfig) -> list[tuple[str, Any, int, bool]]:
    """(kind, group, cap, gives way) of an item; None is no group."""
    path = item["category"]
    if path is not None and config.category_levels is not None:
        path = " > ".join(path.split(" > ")[: config.category_levels])
    found = [("variant", (item["title"].lower(), item["brand"]), 1, False)] if config.one_of_variants else []
    found += [("brand", item["brand"], config.max_per_brand, True)] if config.max_per_brand else []
    found += [("category", path, config.max_per_category, True)] if config.max_per_category else []
    return [each for each in found if each[1] is not None]


def by_hand(scores: dict[int, float], items: list[dict[str, Any]], config: RecommendConfig) -> list[int]:
    chosen: list[int] = []
    order = sorted(scores, key=lambda item: (-scores[item], item))
    for loosely in (False, True):
        for item in order:
            own = [g for g in groups(items[item], config) if not (loosely and g[3])]
            held = [(kind, group) for each in chosen for kind, group, _, _ in groups(items[each], config)]
            if item in chosen or len(chosen) == config.k or any(held.count((g[0], g[1])) >= g[2] for g in own):
                continue
            chosen.append(item)
    return chosen


CONFIGS = st.fixed_dictionaries(
    {
        "k": st.integers(1, 12),
        "pool": st.sampled_from([1, 5, 100]),
        "exclude_seen": st.sampled_from(["all", "none", ("purchase", "view")]),
        "again": st.sampled_from(
            [(), (Again(after_days=2, category="Hair"),), (Again(after_days=1, event_types=("purchase",)),)]
        ),
        "blocked_items": st.sampled_from([(), ("i3", "i5", "gone")]),
        "blocked_brands": st.sampled_from([(), ("Bolt",)]),
        "blocked_categories": st.sampled_from([(), ("Skin",), ("Hair > Care",)]),
        "min_price": st.sampled_from([None, 2.0]),
        "max_price": st.sampled_from([None, 5.0]),
        "one_of_variants": st.booleans(),
        "max_per_brand": st.sampled_from([None, 1, 3]),
        "max_per_category": st.sampled_from([None, 1, 2]),
        "category_levels": st.sampled_from([None, 1]),
        "boosts": st.sampled_from(
            [
                (),
                (Boost(factor=20, brands=("Acme",)), Boost(factor=0.01, categories=("Hair",))),
                (Boost(factor=50, items=("i1", "i2"), until=moment(5)), Boost(factor=3, items=("i2",))),
            ]
        ),
    }
)


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_items=st.integers(1, 60), given_config=CONFIGS, days=st.integers(0, 4))
def test_lists_under_all_rules_are_those_made_by_hand(
    seed: int, n_items: int, given_config: dict[str, Any], days: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors, shown = integer_vectors(rng, n_items), catalogue(rng, n_items)
    histories = random_histories(rng, 6, n_items, 30)
    now = days * 86400 + 3
    config = RecommendConfig(**given_config, as_of=moment(now))
    with tempfile.TemporaryDirectory() as folder:
        dataset, student, index = build_shop(Path(folder), vectors, histories, **shown)
        rows = dataset.histories(everyone(6))
        table = Recommender(dataset, student, index, config, runtime=RUNTIME).recommend_for(rows)
        users = student.user_vectors(rows)
        items = dataset.items.to_pylist()
    found = lists_of(table, 6)
    for user, history in enumerate(histories):
        hidden = hidden_from(history, items, config, now)
        eligible = [i for i in range(n_items) if not forbidden(items[i], config) and i not in hidden]
        scores = {
            i: float(np.float32(users[user] @ vectors[i]) + np.float32(lift(items[i], config, now))) for i in eligible
        }
        expected = by_hand(scores, items, config)
        # Two boosts add up in float32 or in float64: where that decides, either is right.
        assert [scores[i] for i in found[user]] == pytest.approx([scores[i] for i in expected], abs=1e-4)
        if not config.boosts:
            assert found[user] == expected
        if not config.one_of_variants:
            assert len(found[user]) == min(config.k, len(eligible))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    diversity=st.sampled_from([0.0, 0.3, 1.0]),
    explore=st.sampled_from([0.0, 0.2, 0.6]),
    cap=st.sampled_from([None, 2]),
)
def test_diverse_and_drawn_lists_obey_rules_and_do_not_depend_on_company(
    seed: int, diversity: float, explore: float, cap: int | None
) -> None:
    rng = np.random.default_rng(seed)
    vectors, shown = integer_vectors(rng, 40), catalogue(rng, 40)
    histories = random_histories(rng, 8, 40, 20)
    config = RecommendConfig(
        k=6, pool=12, diversity=diversity, explore=explore, max_per_brand=cap, blocked_brands=("Bolt",)
    )
    with tempfile.TemporaryDirectory() as folder:
        dataset, student, index = build_shop(Path(folder), vectors, histories, **shown)
        recommender = Recommender(dataset, student, index, config, runtime=RUNTIME)
        rows = dataset.histories(everyone(8))
        table = recommender.recommend_for(rows)
        order = rng.permutation(8)
        turned = lists_of(recommender.recommend_for(permuted(rows, order)), 8)
        items = dataset.items.to_pylist()
    found = lists_of(table, 8)
    assert [turned[list(order).index(user)] for user in range(8)] == found
    for user, history in enumerate(histories):
        eligible = {i for i in range(40) if not forbidden(items[i], config)} - {item for item, _ in history}
        assert set(found[user]) <= eligible
        assert len(set(found[user])) == len(found[user]) == min(6, len(eligible))
    drawn = [row["rank"] for row in table.to_pylist() if row["reason"] == REASON_DRAWN]
    assert all(rank > 6 - max(round(6 * explore), 1) for rank in drawn) if explore else not drawn


def test_with_diversity_each_next_item_has_the_largest_marginal_relevance() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = np.sort(rng.normal(size=30))[::-1].astype(np.float32)
    d = 0.4
    chosen = select(
        np.arange(30)[None], scores[None], 8, diversity=d, directions=vectors[None]
    )[0].tolist()  # fmt: skip
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    by_hand = [0]
    while len(by_hand) < 8:
        left = [i for i in range(30) if i not in by_hand]
        worth = [(1 - d) * relevance[i] - d * max(float(vectors[i] @ vectors[j]) for j in by_hand) for i in left]
        by_hand.append(left[int(np.argmax(worth))])
    assert chosen == by_hand != list(range(8))


def test_what_is_drawn_comes_from_the_candidates_and_changes_from_day_to_day(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 4)).astype(np.float32)
    histories = [[(int(item), 0)] for item in rng.integers(0, 200, 400)]
    dataset, student, index = build_shop(tmp_path, vectors, histories)
    rows = dataset.histories(everyone(400))
    tables = []
    for day in (1, 1, 2):
        config = RecommendConfig(k=10, pool=30, explore=0.3, as_of=moment(day * 86400))
        tables.append(lists_of(Recommender(dataset, student, index, config, runtime=RUNTIME).recommend_for(rows), 400))
    assert tables[0] == tables[1] != tables[2]
    plain = lists_of(
        Recommender(dataset, student, index, RecommendConfig(k=30), runtime=RUNTIME).recommend_for(rows), 400
    )
    places = np.array([[plain[user].index(item) for item in table[7:]] for user, table in enumerate(tables[0])])
    assert all(table[:7] == best[:7] for table, best in zip(tables[0], plain, strict=True))
    # Uniform over the places 7 to 29: mean 18, standard error of 1200 draws .19.
    assert abs(places.mean() - 18) < 1


def test_a_cap_that_cannot_be_kept_gives_way_and_one_of_variants_does_not(tmp_path: Path) -> None:
    vectors = np.arange(20, 0, -1, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    shown = {"brand": ["Acme"] * 20, "title": [f"t{i // 4}" for i in range(20)]}
    dataset, student, index = build_shop(tmp_path, vectors, [[]], **shown)
    rows = dataset.histories(everyone(1))
    capped = RecommendConfig(k=6, pool=6, max_per_brand=2)
    assert lists_of(Recommender(dataset, student, index, capped, runtime=RUNTIME).recommend_for(rows), 1) == [
        list(range(6))
    ]
    variants = RecommendConfig(k=6, pool=2, one_of_variants=True)
    found = lists_of(Recommender(dataset, student, index, variants, runtime=RUNTIME).recommend_for(rows), 1)
    assert found == [[0, 4, 8, 12, 16]]


def test_the_manifest_names_rules_that_mean_no_item(tmp_path: Path) -> None:
    vectors = integer_vectors(np.random.default_rng(0), 5)
    dataset, student, index = build_shop(tmp_path, vectors, [[]], brand=["Acme"] * 5, category=["Hair"] * 5)
    config = RecommendConfig(
        blocked_brands=("Acme", "Acmee"),
        blocked_categories=("Hare",),
        boosts=(Boost(factor=2, items=("i1", "i9")),),
        again=(Again(after_days=1, category="Skin"),),
    )
    written = recommend(dataset, student, index, config, tmp_path / "lists", runtime=RUNTIME)
    named = written.manifest["info"]["rules_without_items"]
    assert set(named) == {
        "blocked_brands: Acmee", "blocked_categories: Hare", "boosts.items: i9", "again.category: Skin",
    }  # fmt: skip
    assert len(written.table) == 0


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    for wrong in ({"boosts": [{"factor": 0}]}, {"diversity": 1.5}, {"explore": 1.0}, {"max_per_brand": 0}):
        with pytest.raises(ValidationError):
            RecommendConfig.model_validate(wrong)
    shop = build_shop(tmp_path, integer_vectors(np.random.default_rng(0), 5), [[]])
    config = RecommendConfig(again=(Again(after_days=1, event_types=("buy",)),))
    with pytest.raises(InputError, match=r"recommend\.again\.event_types names 'buy'"):
        Recommender(*shop, config, runtime=RUNTIME)


def test_nothing_to_choose_from_is_an_empty_list() -> None:
    cap = Cap(np.zeros(3, np.int32), 1, gives_way=False)
    none = np.full((2, 4), -1)
    assert (select(none, np.zeros((2, 4), np.float32), 3, [cap]) == -1).all()
    assert select(np.zeros((0, 4), np.int64), np.zeros((0, 4), np.float32), 3).shape == (0, 3)
    assert (select(np.zeros((2, 0), np.int64), np.zeros((2, 0), np.float32), 3) == -1).all()
