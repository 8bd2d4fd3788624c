"""The ranker: what it may know, what it learns, and lists in its order under every rule."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ranking_shop import EVENT_TYPES, RUNTIME, START, Event, Linear, moment, permuted, write_dataset
from test_recommender import everyone, lists_of

from recsys.artifacts import MANIFEST
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset
from recsys.ranking.config import Again, Boost, RankConfig, RecommendConfig
from recsys.ranking.features import Catalogue, feature_names
from recsys.ranking.ranker import NOTHING_HIDDEN, Pairs, Ranker, train_ranker
from recsys.ranking.recommend import recommend
from recsys.ranking.recommender import Recommender
from recsys.ranking.repurchase import repurchase_days
from recsys.retrieval.config import IndexConfig, SourcesConfig
from recsys.retrieval.index import ItemIndex, build_index
from recsys.retrieval.snapshot import Snapshot
from recsys.retrieval.sources import SOURCES, Sources
from recsys.text import TextVectors

N_ITEMS, N_USERS = 60, 300
SOURCE_QUOTAS = SourcesConfig(student=12, cooccurrence=8, text=3, popular=3, category=3, again=4)
CONFIG = RankConfig(sources=SOURCE_QUOTAS, models=("linear",), held_out=0.4)


class Texts(NamedTuple):
    """Text vectors as the ranker takes them."""

    vectors: np.ndarray
    fingerprint: str = "texts"


class Shop(NamedTuple):
    dataset: Dataset
    student: Linear
    index: ItemIndex
    ranker: Ranker
    text: TextVectors


def walks(rng: np.random.Generator) -> list[list[Event]]:
    """Each user goes on from item i to i + 1, now and then elsewhere, and buys nothing twice."""
    histories = []
    for _ in range(N_USERS):
        item, seen = int(rng.integers(N_ITEMS)), []
        for _ in range(int(rng.integers(4, 12))):
            seen.append(item)
            item = (item + 1) % N_ITEMS if rng.random() < 0.7 else int(rng.integers(N_ITEMS))
        histories.append([(each, int(rng.integers(0, 3))) for each in dict.fromkeys(seen)])
    return histories


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder, rng = tmp_path_factory.mktemp("ranked"), np.random.default_rng(5)
    dataset = write_dataset(
        folder / "dataset",
        walks(rng),
        N_ITEMS,
        held_out=1,
        brand=[("Acme", "Bolt", None)[c] for c in rng.integers(0, 3, N_ITEMS)],
        category=[("Hair > Care", "Skin", None)[c] for c in rng.integers(0, 3, N_ITEMS)],
        price=[None if c == 0 else float(c) for c in rng.integers(0, 9, N_ITEMS)],
        in_stock=[bool(c) for c in rng.random(N_ITEMS) < 0.9],
    )
    # A student that knows little: neighbours in the walk have only slightly similar vectors.
    angle = 2 * np.pi * np.arange(N_ITEMS) / N_ITEMS
    vectors = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    student = Linear(np.hstack([vectors, rng.normal(size=(N_ITEMS, 2)).astype(np.float32)]))
    index = build_index(student, IndexConfig(), folder / "index", runtime=RUNTIME)
    text: Any = Texts(rng.normal(size=(N_ITEMS, 6)).astype(np.float32))
    ranker = train_ranker(dataset, student, index, CONFIG, folder / "ranker", text=text, runtime=RUNTIME)
    yield Shop(dataset, student, index, ranker, text)


def test_it_learns_what_the_student_does_not_know(shop: Shop) -> None:
    info = shop.ranker.manifest["info"]
    assert info["model"] == "linear"
    contenders = info["contenders"]
    assert contenders["linear"]["ndcg_at_10"] > contenders["student"]["ndcg_at_10"] + 0.1
    weights = json.loads((shop.ranker.path / "linear.json").read_text())
    assert max(weights, key=lambda name: weights[name]["weight"]) in ("cooccurrence", "last_cooccurrence")
    assert sum(weights[name]["weight"] for name in ("own_view", "own_cart", "own_purchase", "own_recency")) < 0
    error = info["calibration_error"]
    assert error["after"] < error["before"]


def pairs_of(dataset: Dataset, shop: Shop) -> tuple[np.ndarray, np.ndarray]:
    """Candidates and features of the validation cases."""
    text = np.asarray(shop.text.vectors)
    sources = Sources.fit(dataset.train, dataset.items, text, SOURCE_QUOTAS)
    snapshot = Snapshot.before(dataset, "valid", SOURCE_QUOTAS.windows)
    pairs = Pairs(sources, Catalogue.of(dataset, 20), shop.student, snapshot, np.ones(N_ITEMS, np.bool_))
    cases = dataset.cases("valid")
    histories = dataset.histories(cases.user_idx, cases.history_end)
    vectors = shop.student.user_vectors(histories)
    of_student = shop.index.search(vectors, SOURCE_QUOTAS.student)[1]
    ((_, candidates, given),) = list(pairs.blocks(histories, vectors, of_student, NOTHING_HIDDEN))
    return candidates.items, given


def test_nothing_that_came_later_reaches_a_feature(shop: Shop, tmp_path: Path) -> None:
    other = Path(shutil.copytree(shop.dataset.path, tmp_path / "other"))
    manifest = json.loads((other / MANIFEST).read_text())
    rng = np.random.default_rng(0)
    for part in ("valid", "test"):
        file = f"{part}.parquet"
        table = pq.read_table(other / file)
        lists = [rng.integers(0, N_ITEMS, len(row)).tolist() for row in table["item_idx"].to_pylist()]
        place = table.column_names.index("item_idx")
        pq.write_table(
            table.set_column(place, table.schema.field(place), pa.array(lists, pa.list_(pa.int32()))), other / file
        )
        manifest["files"][file] = (other / file).stat().st_size
    (other / MANIFEST).write_text(json.dumps(manifest))
    changed = Dataset.open(other)
    assert not np.array_equal(changed.cases("valid").targets.values, shop.dataset.cases("valid").targets.values)
    for before, after in zip(pairs_of(shop.dataset, shop), pairs_of(changed, shop), strict=True):
        assert np.array_equal(before, after)


def test_features_are_what_their_names_say(shop: Shop) -> None:
    dataset, items = shop.dataset, shop.dataset.items.to_pylist()
    names = feature_names(EVENT_TYPES, SOURCE_QUOTAS.windows)
    found, given = pairs_of(dataset, shop)
    cases, train = dataset.cases("valid"), dataset.train
    now, (scores, _) = train.timestamp.max() + 1, (None, None)
    counts = np.bincount(train.item_idx, minlength=N_ITEMS)
    usual = repurchase_days(train, np.full(N_ITEMS, -1, np.int32))
    for row in range(0, len(found), 17):
        user, end = cases.user_idx[row], cases.history_end[row]
        history = dataset.histories(np.array([user]), np.array([end]))
        scores = (shop.student.user_vectors(history) @ shop.student.item_vectors.T)[0]
        events = list(zip(history.item_idx, history.event_type, history.timestamp, strict=True))
        weights = [0.7**age for age in range(len(events) - 1, -1, -1)]
        for column, item in enumerate(found[row]):
            if item < 0:
                continue
            value = dict(zip(names, given[row, column], strict=True))
            assert value["student"] == pytest.approx(scores[item], abs=1e-5)
            better = sum(scores[other] > scores[item] + 1e-6 for other in found[row] if other >= 0)
            assert np.expm1(-value["student_place"]) == pytest.approx(better, abs=0.01)
            assert value["popularity"] == pytest.approx(np.log1p(counts[item]), abs=1e-6)
            last = train.timestamp[train.item_idx == item].max(initial=-1)
            days = (now - last) / 86_400_000_000 if last >= 0 else 3650
            assert value["recency"] == pytest.approx(-np.log1p(days), abs=1e-5)
            assert value["fresh"] == (counts[item] == 0)
            brand = items[item]["brand"]
            share = sum(w for w, e in zip(weights, events, strict=True) if brand and items[e[0]]["brand"] == brand)
            assert value["brand"] == pytest.approx(share / max(sum(weights), 1e-9), abs=1e-5)
            for code, name in enumerate(EVENT_TYPES):
                n = sum(e[0] == item and e[1] == code for e in events)
                assert value[f"own_{name}"] == pytest.approx(np.log1p(n), abs=1e-6)
            own = [e for e in events if e[0] == item]
            assert value["own_recency"] == pytest.approx(
                -np.log1p((now - own[-1][2]) / 86_400_000_000 if own else 3650), abs=1e-5
            )
            bought = [e for e in own if e[1] == 2]
            expected = np.log(max((now - bought[-1][2]) / 86_400_000_000 / usual[item], 1e-3)) if bought else 0
            assert value["due"] == pytest.approx(np.clip(expected, -3, 3), abs=1e-4)


RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "seen may come again": {"exclude_seen": "none"},
    "blocked and capped": {"blocked_brands": ("Acme",), "max_per_brand": 1, "max_per_category": 2},
    "boosted": {"boosts": (Boost(factor=50, brands=("Bolt",)),)},
    "diverse and drawn": {"diversity": 0.4, "explore": 0.2},
    "again after a while": {"again": (Again(after_days=0.00001),), "as_of": moment(86_400)},
    "by revenue": {"order_by": "revenue"},
    "long": {"k": 58, "max_per_brand": 3},
}


@pytest.mark.parametrize("name", RULES)
def test_rules_hold_and_nobody_comes_short(shop: Shop, name: str) -> None:
    config = RecommendConfig(**({"k": 7, "pool": 10} | RULES[name]))
    recommender = Recommender(shop.dataset, shop.student, shop.index, config, ranker=shop.ranker, runtime=RUNTIME)
    rows = shop.dataset.histories(everyone(N_USERS))
    table = recommender.recommend_for(rows)
    found = lists_of(table, N_USERS)
    hidden = recommender.rules.hidden(rows)
    for user, listed in enumerate(found):
        own = set((hidden[(hidden >= user * N_ITEMS) & (hidden < (user + 1) * N_ITEMS)] - user * N_ITEMS).tolist())
        eligible = set(np.flatnonzero(recommender.allowed).tolist()) - own
        assert set(listed) <= eligible
        assert len(set(listed)) == len(listed) == min(config.k, len(eligible))
    some = np.random.default_rng(1).permutation(N_USERS)[:40]
    turned = lists_of(recommender.recommend_for(permuted(rows, some)), 40)
    assert turned == [found[user] for user in some]
    values = table.to_pandas()
    assert set(values["source"]) <= {*SOURCES, "explore"}
    assert values["probability"].between(0, 1).all()
    if name == "plain":
        assert (values.groupby("row")["score"].diff().dropna() <= 0).all()
        assert (values.groupby("row")["probability"].diff().dropna() <= 0).all()
        assert len(set(values["source"])) > 2


def test_a_boost_adds_to_the_rankers_score_and_small_blocks_change_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = shop.dataset.histories(everyone(N_USERS))

    def lists(**rules: Any) -> pa.Table:
        config = RecommendConfig(k=7, **rules)
        options: dict[str, Any] = {"ranker": shop.ranker, "runtime": RUNTIME}
        return Recommender(shop.dataset, shop.student, shop.index, config, **options).recommend_for(rows)

    plain, boosted = lists(), lists(boosts=(Boost(factor=50, brands=("Bolt",)),))
    is_bolt = np.array([brand == "Bolt" for brand in shop.dataset.items["brand"].to_pylist()])
    share = [is_bolt[table["item_idx"].to_numpy()].mean() for table in (plain, boosted)]
    assert share[1] > share[0] + 0.3
    score = {(v["row"], v["item_idx"]): v["score"] for v in plain.to_pylist()}
    for v in boosted.to_pylist():
        if (v["row"], v["item_idx"]) in score:
            lift = np.log(50) if is_bolt[v["item_idx"]] else 0
            assert v["score"] == pytest.approx(score[v["row"], v["item_idx"]] + lift, abs=1e-4)

    monkeypatch.setattr("recsys.ranking.ranker.BLOCK", 1)
    assert lists().equals(plain)


def test_reasons_say_where_an_item_comes_from(shop: Shop) -> None:
    config = RecommendConfig(k=55, exclude_seen="none")
    recommender = Recommender(shop.dataset, shop.student, shop.index, config, ranker=shop.ranker, runtime=RUNTIME)
    rows = shop.dataset.histories(everyone(N_USERS))
    values = recommender.recommend_for(rows).to_pylist()
    items, similarity = shop.dataset.items.to_pylist(), shop.ranker.sources.cooccurrence.toarray()
    met = set()
    for value in values:
        begin, end = rows.offsets[value["row"]], rows.offsets[value["row"] + 1]
        history, item = rows.item_idx[begin:end][-20:], value["item_idx"]
        met.add(value["source"])
        if value["source"] == "again":
            assert item in history
            assert value["reason"] in (
                "you viewed it before",
                "you added it to your cart before",
                "you bought it before",
            )
        elif value["source"] == "popular":
            assert value["reason"] == "popular these days"
        elif value["source"] == "category":
            last = (items[item]["category"] or "").split(" > ")[-1]
            assert value["reason"] == f"popular in {last}"
        elif value["source"] == "cooccurrence":
            worth = [0.6**age * similarity[other, item] for age, other in enumerate(history[::-1])]
            assert f"Title {history[::-1][int(np.argmax(worth))]}" in value["reason"]
    assert {"again", "cooccurrence", "student"} <= met


def test_by_revenue_the_dearer_of_equally_likely_items_stands_first(shop: Shop) -> None:
    options: dict[str, Any] = {"ranker": shop.ranker, "runtime": RUNTIME}
    config = RecommendConfig(k=10, order_by="revenue")
    table = Recommender(shop.dataset, shop.student, shop.index, config, **options).recommend_for(
        shop.dataset.histories(everyone(N_USERS))
    )
    price = np.nan_to_num(shop.dataset.items["price"].to_numpy().astype(np.float64))
    revenue = table["probability"].to_numpy() * price[table["item_idx"].to_numpy()]
    row = table["row"].to_numpy()
    within = row[1:] == row[:-1]
    assert (np.diff(revenue)[within] <= 1e-6).all()
    with pytest.raises(InputError, match="without purchase probabilities"):
        Recommender(shop.dataset, shop.student, shop.index, config, runtime=RUNTIME)


def test_a_ranker_of_another_student_is_refused(shop: Shop) -> None:
    other = Linear(shop.student.item_vectors, "trained again")
    index = build_index(other, IndexConfig(), shop.ranker.path.parent / "other", runtime=RUNTIME)
    with pytest.raises(InputError, match="come from different runs"):
        Recommender(shop.dataset, other, index, RecommendConfig(), ranker=shop.ranker, runtime=RUNTIME)


def test_too_few_users_leave_the_order_to_the_student(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dataset = write_dataset(tmp_path / "dataset", walks(rng)[:12], N_ITEMS, held_out=1)
    student = Linear(rng.normal(size=(N_ITEMS, 4)).astype(np.float32))
    index = build_index(student, IndexConfig(), tmp_path / "index", runtime=RUNTIME)
    ranker = train_ranker(dataset, student, index, CONFIG, tmp_path / "ranker", runtime=RUNTIME)
    assert ranker.manifest["info"]["model"] == "student"
    config = RecommendConfig(k=5)
    rows = dataset.histories(everyone(12))
    plain, ranked = (
        lists_of(Recommender(dataset, student, index, config, ranker=each, runtime=RUNTIME).recommend_for(rows), 12)
        for each in (None, ranker)
    )
    assert ranked == plain


def test_the_same_seed_gives_the_same_ranker_and_the_stage_its_lists(shop: Shop, tmp_path: Path) -> None:
    again = train_ranker(
        shop.dataset, shop.student, shop.index, CONFIG, tmp_path / "ranker", text=shop.text, runtime=RUNTIME
    )
    assert again.fingerprint == shop.ranker.fingerprint
    for file in ("linear.json", "calibration.json", "cooccurrence.data.npy", "text.data.npy"):
        assert (again.path / file).read_bytes() == (shop.ranker.path / file).read_bytes()
    config = RecommendConfig(k=4, shard_users=70)
    written = recommend(
        shop.dataset, shop.student, shop.index, config, tmp_path / "lists", ranker=again, runtime=RUNTIME
    )
    expected = Recommender(shop.dataset, shop.student, shop.index, config, ranker=again, runtime=RUNTIME).recommend_for(
        shop.dataset.histories(everyone(N_USERS))
    )
    for name in ("item_id", "rank", "score", "probability", "source", "reason"):
        assert written.table[name].to_pylist() == expected[name].to_pylist()


def test_repurchase_times_are_medians_of_the_narrowest_group_that_has_enough() -> None:
    day = 86_400
    # Item 0 is bought again after 10 days by six users, item 1 of the same category after 2 days by one.
    histories = [[(0, 0), (0, 10 * day)] for _ in range(6)] + [[(1, 0), (1, 2 * day)]]
    from recsys.ingest.dataset import Sequences

    offsets = np.arange(0, 2 * len(histories) + 1, 2)
    item = np.array([each for row in histories for each, _ in row], np.int32)
    time = START + np.array([when * 1_000_000 for row in histories for _, when in row])
    train = Sequences(offsets, item, np.full(len(item), 2, np.int8), time, np.zeros(len(item), np.int32))
    days = repurchase_days(train, np.array([0, 0, 1, -1], np.int32))
    assert days.tolist() == [10, 10, 10, 10]
    few = Sequences(offsets[:3], item[:4], np.full(4, 2, np.int8), time[:4], np.zeros(4, np.int32))
    assert repurchase_days(few, np.array([0, 0, 1, -1], np.int32)).tolist() == [30] * 4
