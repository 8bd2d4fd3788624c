"""The sample shop: what it promises of its size, its time, its signal and its dirt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recsys import schema
from recsys.config import load_config
from recsys.errors import InputError
from recsys.ingest.config import IngestConfig
from recsys.ingest.ingest import ingest
from recsys.sample import sample
from recsys.sample.catalogue import TYPES, Catalogue
from recsys.sample.config import SampleConfig
from recsys.sample.log import DIRT, EVENTS
from recsys.sample.sample import SampleShop, write_sample
from recsys.sample.vocabulary import STYLES

SMALL = SampleConfig(n_items=200, n_users=150, n_events=4000)
FILES = ("events.parquet", "items.parquet", "truth.json")


def midnight(config: SampleConfig) -> pd.Timestamp:
    return pd.Timestamp(datetime.combine(config.end, time(), UTC))


def sound_rows(events: pd.DataFrame, items: pd.DataFrame, config: SampleConfig) -> pd.DataFrame:
    """The log without the rows that any reader would reject."""
    whole = events.dropna(subset=list(schema.REQUIRED_EVENT_COLUMNS)).drop_duplicates()
    return whole[(whole["timestamp"] < midnight(config)) & whole["item_id"].isin(items["item_id"])]


@dataclass(frozen=True)
class Shop:
    written: SampleShop
    config: SampleConfig
    events: pd.DataFrame  # as written
    items: pd.DataFrame
    sound: pd.DataFrame  # without dirty rows, with the columns of items beside each event
    catalogue: Catalogue  # the hidden truth, row for row as items


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The shop that `recsys sample` writes when nothing is said."""
    folder, config = tmp_path_factory.mktemp("sample") / "shop", SampleConfig()
    catalogues: list[Catalogue] = []
    with pytest.MonkeyPatch.context() as patch:
        build = sample.build_catalogue
        patch.setattr(sample, "build_catalogue", lambda *args: catalogues.append(build(*args)) or catalogues[0])
        written = write_sample(folder)
    events, items = (pd.read_parquet(folder / name) for name in FILES[:2])
    sound = sound_rows(events, items, config).merge(items.assign(row=items.index), on="item_id", how="left")
    return Shop(written, config, events, items, sound, catalogues[0])


@pytest.fixture(scope="module")
def steps(shop: Shop) -> pd.DataFrame:
    """Every view with the one that follows it in its session: `row` and `next_row` of two different items."""
    views = shop.sound[shop.sound["event_type"] == "view"].sort_values(["session_id", "timestamp"])
    after = views.groupby("session_id")["row"].shift(-1)
    known = after.notna() & (after != views["row"])
    return views[known].assign(next_row=after[known].astype(int))


# --- files


def test_one_seed_gives_one_shop_to_the_byte(tmp_path: Path) -> None:
    write_sample(tmp_path / "a", SMALL, seed=3)
    write_sample(tmp_path / "b", SMALL, seed=3)
    write_sample(tmp_path / "c", SMALL, seed=4)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_tables_have_the_contracts_columns(shop: Shop) -> None:
    assert pq.read_schema(shop.written.path / "events.parquet").equals(EVENTS)
    written, contract = pq.read_schema(shop.written.path / "items.parquet"), schema.ITEMS
    assert written.names == [name for name in contract.names if name != schema.ITEM_IDX]
    assert all(written.field(name).type == contract.field(name).type for name in written.names)


def test_an_earlier_shop_is_replaced(tmp_path: Path) -> None:
    write_sample(tmp_path / "shop", SMALL, seed=1)
    write_sample(tmp_path / "shop", SMALL, seed=2)
    assert json.loads((tmp_path / "shop" / "truth.json").read_text())["seed"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]


def test_anything_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "events.parquet").write_text("mine")
    with pytest.raises(InputError, match="did not write"):
        write_sample(tmp_path, SMALL)
    assert (tmp_path / "events.parquet").read_text() == "mine"


def test_a_failed_write_leaves_the_earlier_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sample(tmp_path / "shop", SMALL, seed=1)
    before = (tmp_path / "shop" / "events.parquet").read_bytes()
    write_table = pq.write_table

    def run_out_of_space(table: pa.Table, path: Path) -> None:
        if path.name == "items.parquet":
            raise OSError(28, "No space left on device")
        write_table(table, path)

    monkeypatch.setattr(pq, "write_table", run_out_of_space)
    with pytest.raises(OSError, match="No space left"):
        write_sample(tmp_path / "shop", SMALL, seed=2)
    assert (tmp_path / "shop" / "events.parquet").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]


def test_the_pipelines_as_of_is_the_default_shops_end() -> None:
    config = load_config(Path(__file__).parents[1] / "pipelines" / "sample.toml", env={})
    assert config.ingest.as_of == midnight(SampleConfig()).to_pydatetime()


# --- size and dirt


def test_counts_are_near_the_target(shop: Shop) -> None:
    assert len(shop.items) == shop.items["item_id"].nunique() == shop.written.n_items == shop.config.n_items
    assert len(shop.events) == shop.written.n_events == pytest.approx(shop.config.n_events, rel=0.05)
    assert shop.sound["user_id"].nunique() == pytest.approx(shop.config.n_users, rel=0.005)
    per_user = shop.sound.groupby("user_id").size()
    assert (per_user == 1).mean() > shop.config.one_event_share
    assert per_user.nlargest(len(per_user) // 10).sum() > 0.35 * per_user.sum(), "few shoppers do much"


def test_dirty_rows_are_those_that_the_truth_counts(shop: Shop) -> None:
    events, n = shop.events, shop.written.dirty
    assert set(n) == set(DIRT)
    assert sum(n.values()) == pytest.approx(shop.config.dirty_share * len(events), rel=0.01)
    for column in schema.REQUIRED_EVENT_COLUMNS:
        assert events[column].isna().sum() == n[f"missing_{column}"]
    unknown = ~events["item_id"].isin(shop.items["item_id"]) & events["item_id"].notna()
    assert unknown.sum() == n["unknown_item"]
    assert (events["timestamp"] >= midnight(shop.config)).sum() == n["future_timestamp"]
    assert events.duplicated().sum() == n["exact_duplicate"]
    assert len(shop.sound) == len(events) - sum(n.values())
    truth = json.loads((shop.written.path / "truth.json").read_text())
    assert truth["dirty"] == n
    assert sum(truth["events"].values()) == len(events) - n["exact_duplicate"]


def test_ingestion_finds_every_dirty_row(tmp_path: Path) -> None:
    written = write_sample(tmp_path / "shop", SMALL)
    config = IngestConfig(as_of=midnight(SMALL).to_pydatetime())
    dataset = ingest(config, tmp_path / "run" / "dataset", data=tmp_path / "shop")
    found = pq.read_table(dataset.path / "quarantine.parquet")["reason"].value_counts().to_pylist()
    quarantined = {each["values"]: each["counts"] for each in found}
    assert quarantined == {kind: n for kind, n in written.dirty.items() if kind != "exact_duplicate"}
    assert len(dataset.sequences.item_idx) == written.n_events - sum(written.dirty.values())


def test_the_log_stands_in_the_order_of_time(shop: Shop) -> None:
    assert shop.sound["timestamp"].is_monotonic_increasing
    dirty = shop.events.index[shop.events["user_id"].isna()]
    assert np.abs(np.mean(dirty / len(shop.events)) - 0.5) < 0.1, "dirt lies anywhere"


def test_too_few_events_for_the_users_is_an_error() -> None:
    with pytest.raises(ValidationError, match="n_events must be n_users or more"):
        SampleConfig(n_users=1000, n_events=999)


# --- time


def test_sessions_are_one_users_and_plausible(shop: Shop) -> None:
    by_session = shop.sound.groupby("session_id")
    assert (by_session["user_id"].nunique() == 1).all()
    span = by_session["timestamp"].max() - by_session["timestamp"].min()
    assert span.max() < pd.Timedelta(hours=2)
    assert span[by_session.size() > 3].median() > pd.Timedelta(minutes=1)
    ordered = shop.sound.sort_values(["user_id", "timestamp"], kind="stable")
    pause = ordered.groupby("user_id")["timestamp"].diff() > pd.Timedelta(minutes=30)
    changed = ordered["session_id"] != ordered.groupby("user_id")["session_id"].shift(fill_value="")
    same_user = ordered["user_id"] == ordered["user_id"].shift()
    assert (changed == pause)[same_user].mean() > 0.999, "a pause of half an hour tells sessions apart"


def test_carts_follow_views_and_purchases_follow_carts(shop: Shop) -> None:
    # The dirt has taken a few rows of these pairs away, hence not all.
    key = ["session_id", "item_id"]
    first = {kind: rows.groupby(key)["timestamp"].min() for kind, rows in shop.sound.groupby("event_type")}
    for earlier, later in (("view", "cart"), ("cart", "purchase")):
        pairs = pd.concat([first[earlier], first[later]], axis=1, keys=["earlier", "later"])
        pairs = pairs[pairs["later"].notna()]
        assert pairs["earlier"].notna().mean() > 0.98
        pairs = pairs.dropna()
        assert (pairs["earlier"] < pairs["later"]).mean() > 0.99
    views, carts, purchases = (shop.written.events[kind] for kind in schema.EVENT_TYPES)
    assert 0.05 < carts / views < 0.2
    assert 0.25 < purchases / carts < 0.6


def test_the_shop_sleeps_at_night_and_is_busy_on_sundays(shop: Shop) -> None:
    hours = shop.sound.groupby(shop.sound["timestamp"].dt.hour).size()
    assert hours[20] > 5 * hours[4]
    per_day = shop.sound.groupby(shop.sound["timestamp"].dt.floor("D")).size()
    by_weekday = per_day.groupby(per_day.index.day_of_week).mean()
    assert by_weekday[6] > 1.1 * by_weekday[1]


def test_launches_are_spread_and_nothing_happens_before_them(shop: Shop) -> None:
    assert (shop.sound["timestamp"] >= shop.sound["available_from"]).all()
    last_week = shop.items["available_from"] >= midnight(shop.config) - pd.Timedelta(days=7)
    assert last_week.sum() == round(shop.config.launched_last_week_share * len(shop.items))
    seen = shop.items["item_id"].isin(shop.sound["item_id"])
    assert seen[last_week].mean() > 0.8, "new items are looked at"


def test_nothing_is_bought_while_it_is_out_of_stock(shop: Shop) -> None:
    start = pd.Timestamp(shop.config.first_day, tz="UTC")
    now = ((shop.sound["timestamp"] - start) // pd.Timedelta(milliseconds=1)).to_numpy()
    out = ~shop.catalogue.in_stock(shop.sound["row"].to_numpy(), now)
    kind = shop.sound["event_type"]
    assert (out & (kind == "view")).sum() > 500, "it is still looked at"
    assert not (out & (kind == "purchase")).any()
    sold_out = shop.items.index[~shop.items["in_stock"]]
    assert 0.005 < len(sold_out) / len(shop.items) < 0.05
    assert (shop.catalogue.out_until[sold_out] > shop.config.days * 86_400_000).all()


def test_consumables_are_bought_again_after_their_time(shop: Shop) -> None:
    bought = shop.sound[shop.sound["event_type"] == "purchase"].sort_values("timestamp")
    days = bought.groupby(["user_id", "item_id"])["timestamp"].diff() / pd.Timedelta(days=1)
    expected = bought["row"].map(lambda row: TYPES[shop.catalogue.kind[row]].restock_days)[days.notna()]
    days = days.dropna()
    assert len(days) > 300
    assert (expected > 0).all(), "what lasts is bought once"
    assert (days >= expected / 2 - 0.1).all()
    assert (days / expected).median() == pytest.approx(1.1, abs=0.25)


def test_purchases_say_what_they_cost(shop: Shop) -> None:
    bought = shop.sound["event_type"] == "purchase"
    quantity = shop.sound["value"] / shop.sound["price"]
    assert quantity[~bought].isna().all()
    assert np.allclose(quantity[bought], quantity[bought].round())
    assert set(quantity[bought].round()) == {1, 2, 3}


# --- signal


def test_bestsellers_lead_and_change(shop: Shop) -> None:
    day = (shop.sound["timestamp"] - pd.Timestamp(shop.config.first_day, tz="UTC")).dt.days
    early, late = (
        np.bincount(shop.sound["row"][window], minlength=len(shop.items)) for window in (day < 14, day >= 46)
    )
    top = np.sort(early)[::-1]
    assert top[: len(top) // 10].sum() > 0.3 * top.sum()
    best_early, best_late = (set(np.argsort(-counts)[:50]) for counts in (early, late))
    assert 5 < len(best_early & best_late) < 45


def test_the_next_look_depends_on_the_item_at_hand_and_on_the_direction(shop: Shop, steps: pd.DataFrame) -> None:
    successors = shop.catalogue.successors
    here, there = steps["row"].to_numpy(), steps["next_row"].to_numpy()
    forward = (successors[here] == there[:, None]).any(axis=1).mean()
    backward = (successors[there] == here[:, None]).any(axis=1).mean()
    by_chance = (successors[here] == np.random.default_rng(0).permutation(there)[:, None]).any(axis=1).mean()
    assert forward > 0.1
    assert forward > 1.8 * backward
    assert forward > 10 * by_chance


def test_the_past_of_the_log_predicts_its_last_week(shop: Shop, steps: pd.DataFrame) -> None:
    old = steps["timestamp"] < midnight(shop.config) - pd.Timedelta(days=7)
    counts = np.zeros((len(shop.items),) * 2)
    np.add.at(counts, (steps["row"][old], steps["next_row"][old]), 1)
    popularity = counts.sum(axis=0)
    new = steps[~old]

    def hit_rate(scores: np.ndarray) -> float:
        best = np.argpartition(-scores, 10, axis=1)[:, :10]
        return float((best == new["next_row"].to_numpy()[:, None]).any(axis=1).mean())

    popular = hit_rate(np.broadcast_to(popularity, (len(new), len(popularity))))
    by_pairs = hit_rate(counts[new["row"]] + 1e-6 * popularity)
    assert by_pairs > 3 * popular
    assert by_pairs < 0.6, "nobody can be foreseen that well"


def test_titles_tell_what_a_shopper_likes(shop: Shop) -> None:
    style_of_word = {word: number for number, words in enumerate(STYLES) for word in words}
    pattern = f"({'|'.join(style_of_word)})"
    style = shop.sound["title"].str.extract(pattern)[0].map(style_of_word)
    views = shop.sound.assign(style=style).dropna(subset=["style"])
    # Two views of a shopper in different departments: what they share cannot be the product.
    pairs = views[["user_id", "style", "category", "timestamp"]].sample(frac=1, random_state=0)
    pairs = pairs.groupby("user_id").head(2).sort_values("user_id", kind="stable")
    first, second = pairs[pairs.groupby("user_id").cumcount() == 0], pairs[pairs.groupby("user_id").cumcount() == 1]
    both = first.merge(second, on="user_id", suffixes=("", "_2"))
    department = both["category"].str.split(" > ").str[0] != both["category_2"].str.split(" > ").str[0]
    both = both[department]
    same = (both["style"] == both["style_2"]).mean()
    by_chance = (both["style"].to_numpy() == both["style_2"].sample(frac=1, random_state=0).to_numpy()).mean()
    assert same > 2.5 * by_chance


def test_tastes_drift(shop: Shop) -> None:
    section = shop.sound["category"].str.split(" > ").str[:2].str.join(" > ")
    day = (shop.sound["timestamp"] - pd.Timestamp(shop.config.first_day, tz="UTC")).dt.days
    looks = shop.sound.assign(section=section, period=day // 10).groupby(["period", "user_id", "section"]).size()
    shares = looks / looks.groupby(["period", "user_id"]).transform("sum")

    def likeness(earlier: int, later: int) -> float:
        both = pd.concat([shares[earlier], shares[later]], axis=1, keys=["a", "b"]).fillna(0)
        users = shares[earlier].index.unique("user_id").intersection(shares[later].index.unique("user_id"))
        return float((both["a"] * both["b"]).groupby("user_id").sum()[users].mean())

    assert likeness(4, 5) > 1.3 * likeness(0, 5)


# --- any size


@settings(max_examples=15, deadline=None)
@given(
    n_items=st.integers(50, 300),
    n_users=st.integers(20, 150),
    events_per_user=st.integers(1, 60),
    days=st.integers(14, 90),
    seed=st.integers(0, 2**32),
    one_event_share=st.sampled_from([0.0, 0.04, 1.0]),
)
def test_any_size_is_a_sound_shop(
    tmp_path_factory: pytest.TempPathFactory,
    n_items: int,
    n_users: int,
    events_per_user: int,
    days: int,
    seed: int,
    one_event_share: float,
) -> None:
    config = SampleConfig(
        n_items=n_items,
        n_users=n_users,
        n_events=n_users * events_per_user,
        days=days,
        one_event_share=one_event_share,
        dirty_share=0.02,
    )
    folder = tmp_path_factory.mktemp("any") / "shop"
    written = write_sample(folder, config, seed=seed)
    events, items = (pd.read_parquet(folder / name) for name in FILES[:2])
    sound = sound_rows(events, items, config)
    assert len(events) == written.n_events
    assert len(sound) == len(events) - sum(written.dirty.values())
    assert (sound["timestamp"] >= pd.Timestamp(config.first_day, tz="UTC")).all()
    assert sound["user_id"].nunique() <= written.n_users
    sold = sound.merge(items, on="item_id", how="left")
    assert (sold["timestamp"] >= sold["available_from"]).all()
    assert items["item_id"].is_unique
    assert items[["title", "category", "brand", "price", "in_stock", "available_from"]].notna().all(axis=None)
    assert (items["price"] > 0).all()
    if one_event_share == 1.0:
        assert sum(written.events.values()) == n_users
