"""Drift against oracles that do it another way: plain loops, and an SVD instead of a library's rotation."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Hashable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.nightly_parts.shop import DAY, FIRST, Shop
from recsys import schema
from recsys.api import open_run
from recsys.ingest.config import IngestConfig
from recsys.ingest.dataset import Dataset
from recsys.ingest.ingest import ingest
from recsys.ingest.report.drift import stability_index
from recsys.nightly import drift as module
from recsys.nightly import night as nights
from recsys.nightly.drift import drift, event_drift, item_drift, list_drift
from recsys.runtime import Runtime

Vectors = npt.NDArray[np.float32]
DIM = 8


def vectors(n: int, seed: int = 0, dim: int = DIM) -> Vectors:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def names(numbers: range) -> pa.Array:
    return pa.array([f"i{number}" for number in numbers], pa.string())


def rotated(of: Vectors, seed: int = 1) -> Vectors:
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(of.shape[1], of.shape[1])))
    return (of @ rotation).astype(np.float32)


def nearest(of: Vectors, item: int) -> set[int]:
    unit = of / np.linalg.norm(of, axis=1, keepdims=True)
    closeness = sorted((-float(unit[other] @ unit[item]), other) for other in range(len(of)) if other != item)
    return {other for _, other in closeness[:10]}


# ------------------------------------------------------------------------------------------------------------ items


def test_a_rotation_and_another_order_of_the_items_are_no_drift() -> None:
    before = vectors(300)
    order = np.random.default_rng(3).permutation(300)
    now = 3 * rotated(before)[order]
    figures = item_drift(names(range(300)), before, names(range(300)).take(pa.array(order)), now)
    assert figures == pytest.approx({"items_known": 1.0, "item_cosine": 1.0, "item_neighbours": 1.0}, abs=1e-5)


def test_moved_vectors_are_measured_as_by_hand() -> None:
    n = 400
    before = vectors(n)
    now = rotated(before) + 0.5 * vectors(n, seed=2)
    figures = item_drift(names(range(n)), before, names(range(n)), now)
    # The best rotation of all items, by an SVD (Schönemann's solution), on all items.
    a, b = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (before, now))
    u, _, v = np.linalg.svd(a.T @ b)
    assert figures["item_cosine"] == pytest.approx(np.mean(np.sum((a @ (u @ v)) * b, axis=1)), abs=0.02)
    overlap = np.mean([len(nearest(before, item) & nearest(now, item)) / 10 for item in range(n)])
    assert figures["item_neighbours"] == pytest.approx(overlap, abs=1e-6) and 0.2 < overlap < 0.8


def test_unrelated_vectors_have_nothing_in_common_though_a_rotation_would_fit_some() -> None:
    """With as many dimensions as items any two sets of vectors can nearly be rotated into each other."""
    for n, dim in ((100, 40), (2000, DIM)):
        figures = item_drift(names(range(n)), vectors(n, 1, dim), names(range(n)), vectors(n, 2, dim))
        assert abs(figures["item_cosine"]) < 0.15
        assert figures["item_neighbours"] < 0.3 * 10 / n * 10


def test_items_are_matched_by_id_and_new_ones_are_counted() -> None:
    before, new = vectors(120), vectors(30, seed=9)
    now = np.concatenate([new, before[20:]])
    ids = pa.concat_arrays([names(range(500, 530)), names(range(20, 120))])
    figures = item_drift(names(range(120)), before, ids, now)
    assert figures == pytest.approx({"items_known": 100 / 130, "item_cosine": 1, "item_neighbours": 1}, abs=1e-5)


@pytest.mark.parametrize("n", [0, 1, 10, 11, 15, 16])
def test_few_items_leave_out_what_cannot_be_said(n: int) -> None:
    figures = item_drift(names(range(n)), vectors(n), names(range(n + 1)), vectors(n + 1))
    assert ("item_neighbours" in figures) == (n > 10) and ("item_cosine" in figures) == (n >= 2 * DIM)
    assert figures["items_known"] == n / (n + 1)


def test_other_dimensions_leave_neighbours_only() -> None:
    before = vectors(60)
    now = np.concatenate([before, np.zeros((60, 2), np.float32)], axis=1)
    figures = item_drift(names(range(60)), before, names(range(60)), now)
    assert figures == {"items_known": 1.0, "item_neighbours": 1.0}


def test_twins_are_not_taken_for_the_item_itself() -> None:
    """Thirty items with the same vector: each one's neighbours are others, and finding them does not fail."""
    before = np.repeat(vectors(2), 30, axis=0)
    figures = item_drift(names(range(60)), before, names(range(60)), before)
    assert figures["item_neighbours"] == 1.0


def test_a_sample_tells_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 3000
    before = vectors(n)
    now = before + 0.3 * vectors(n, seed=2)
    whole = item_drift(names(range(n)), before, names(range(n)), now)
    monkeypatch.setattr(module, "ITEMS", 1000)
    monkeypatch.setattr(module, "QUERIES", 100)
    sampled = item_drift(names(range(n)), before, names(range(n)), now, seed=4)
    assert sampled["item_cosine"] == pytest.approx(whole["item_cosine"], abs=0.02) and sampled != whole
    assert sampled == item_drift(names(range(n)), before, names(range(n)), now, seed=4)


# ----------------------------------------------------------------------------------------------------------- events

START = datetime(2026, 3, 2, tzinfo=UTC)
Row = dict[str, Any]


def catalogue(n: int, prices: float = 1.0) -> list[Row]:
    return [
        {
            "item_id": f"i{place}",
            "title": f"Item {place}",
            "category": None if place % 7 == 0 else f"c{place % 25} > deep",
            "price": None if place % 5 == 0 else prices * (1 + place),
        }
        for place in range(n)
    ]


def log_of(n_days: int, n_items: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [
        {
            "user_id": f"u{rng.randrange(20)}",
            "item_id": f"i{int(n_items * rng.random() ** 2)}",
            "event_type": "view",
            "timestamp": START + day * DAY + timedelta(seconds=rng.randrange(86_400)),
        }
        for day in range(n_days)
        for _ in range(60)
    ]


def ingested(folder: Path, rows: list[Row], items: list[Row], days: int) -> Dataset:
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "events.parquet")
    pq.write_table(pa.Table.from_pylist(items), folder / "items.parquet")
    config = IngestConfig(as_of=START + days * DAY, test_days=3, valid_days=2, max_bad_share=1)
    runtime = Runtime(threads=1, progress=False)
    return ingest(config, folder / "run" / "dataset", data=folder, runtime=runtime, force=True)


def psi(before: Counter[Any], now: Counter[Any], parts: list[Any]) -> float:
    n, m = (sum(mix.values()) + 0.5 * len(parts) for mix in (before, now))
    shares = [((before[part] + 0.5) / n, (now[part] + 0.5) / m) for part in parts]
    return sum((q - p) * math.log(q / p) for p, q in shares)


def test_events_are_compared_as_by_plain_counting(tmp_path: Path) -> None:
    rows = log_of(14, 50)
    late = log_of(2, 60, seed=1)
    moved = [
        row | {"timestamp": row["timestamp"] + 12 * DAY, "item_id": f"i{59 - int(row['item_id'][1:])}"} for row in late
    ]
    before = ingested(tmp_path / "before", rows[: 12 * 60], catalogue(50), 12)
    now = ingested(tmp_path / "now", rows[: 12 * 60] + moved, catalogue(60, prices=1.5), 14)

    unique = {tuple(row.values()): row for row in rows[: 12 * 60] + moved}.values()
    windows = [
        [row["item_id"] for row in unique if START + (end - 3) * DAY <= row["timestamp"] < START + end * DAY]
        for end in (12, 14)
    ]
    windows[0] = [item for item in windows[0] if int(item[1:]) < 50]
    trained = Counter(row["item_id"] for row in unique if row["timestamp"] < START + 7 * DAY)

    def mixes(of: list[Callable[[str], Hashable]]) -> list[Counter[Any]]:
        return [Counter(map(part, items)) for part, items in zip(of, windows, strict=True)]

    # Popularity: ten groups of equal weight.
    group, passed = {}, 0
    for item in sorted(trained, key=lambda item: (-trained[item], before.items["item_id"].to_pylist().index(item))):
        group[item] = 10 * passed // sum(trained.values())
        passed += trained[item]
    popularity = psi(*mixes([lambda item: group.get(item, 10)] * 2), list(range(11)))

    # Categories: the first twenty of the window before.
    def top(item: str) -> str | None:
        place = int(item[1:])
        return None if place % 7 == 0 else f"c{place % 25}"

    counts = Counter(top(item) for item in windows[0])
    largest = sorted({f"c{place % 25}" for place in range(50) if place % 7}, key=lambda name: (-counts[name], name))[
        :20
    ]

    def kind(item: str) -> str | None:
        return name if (name := top(item)) is None or name in largest else "other"

    category = psi(*mixes([kind] * 2), [*largest, "other", None])

    # Prices: by the deciles of the events before.
    def price(item: str, factor: float) -> float | None:
        place = int(item[1:])
        return None if place % 5 == 0 else factor * (1 + place)

    known = sorted(value for item in windows[0] if (value := price(item, 1.0)) is not None)
    edges = [known[math.ceil(len(known) * tenth / 10) - 1] for tenth in range(1, 10)]

    def band(factor: float) -> Callable[[str], Hashable]:
        return lambda item: 10 if (value := price(item, factor)) is None else sum(edge < value for edge in edges)

    prices = psi(*mixes([band(1.0), band(1.5)]), list(range(11)))
    expected = {"psi.popularity": popularity, "psi.category": category, "psi.price": prices}
    assert min(expected.values()) > 0.1
    assert event_drift(before, now) == pytest.approx(expected)
    assert event_drift(before, before) == pytest.approx(dict.fromkeys(expected, 0.0))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=20))
def test_the_index_is_zero_for_equal_mixes_and_the_same_both_ways(pairs: list[tuple[int, int]]) -> None:
    before, now = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    parts = list(range(len(pairs)))
    mixes = [Counter(dict(enumerate(column))) for column in zip(*pairs, strict=True)]
    assert stability_index(before, now) == pytest.approx(psi(mixes[0], mixes[1], parts), rel=1e-6, abs=1e-9)
    assert stability_index(before, now) == pytest.approx(stability_index(now, before), abs=1e-9)
    assert stability_index(before, before) == 0


# ------------------------------------------------------------------------------------------------------------ lists


def write_lists(path: Path, lists: dict[str, list[str]]) -> Path:
    rows = [
        {
            "user_id": user,
            "item_id": item,
            "rank": rank,
            "score": 0.0,
            "probability": None,
            "source": "model",
            "reason": None,
            "run_id": "r",
            "generated_at": START,
        }
        for user, items in lists.items()
        for rank, item in enumerate(items, 1)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.RECOMMENDATIONS), path)
    return path


lists = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.integers(0, 14).map(str), unique=True, max_size=14), max_size=6
)


@settings(max_examples=40, deadline=None)
@given(before=lists, now=lists)
def test_the_share_of_the_lists_that_stays(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, list[str]], now: dict[str, list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    paths = [write_lists(folder / name, each) for name, each in (("before", before), ("now", now))]
    both = [user for user in before if before[user] and now.get(user)]
    places = sum(len(before[user][:10]) for user in both)
    kept = sum(len({*before[user][:10]} & {*now[user][:10]}) for user in both)
    assert list_drift(*paths, n_users=6) == ({"top_10_kept": kept / places} if places else {})


def test_the_same_users_are_sampled_on_both_sides_whether_in_one_file_or_in_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [f"user {number}" for number in range(1000)]
    before = write_lists(tmp_path / "before.parquet", {user: ["a", "b"] for user in users})
    folder = tmp_path / "now"
    folder.mkdir()
    for part, some in enumerate((users[500:], users[:500])):
        write_lists(folder / f"part-{part}.parquet", {user: ["b", "c"] for user in some})
    monkeypatch.setattr(module, "USERS", 100)
    looked_at = module._top(before, 0.1)
    assert 2 * 60 < len(looked_at) < 2 * 140
    assert list_drift(before, folder, n_users=1000) == {"top_10_kept": 0.5}


def test_a_night_is_compared_with_the_one_before(two_nights: Shop) -> None:
    live, before = (open_run(nights.folder_of(two_nights.run_dir, nights.name_of(day))) for day in (FIRST + DAY, FIRST))
    ones = ("items_known", "item_cosine", "item_neighbours", "top_10_kept")
    zeros = ("psi.popularity", "psi.category", "psi.price")
    itself = drift(live, live)
    assert itself == pytest.approx(dict.fromkeys(ones, 1.0) | dict.fromkeys(zeros, 0.0), abs=1e-5)
    figures = drift(before, live, seed=live.config.seed)
    assert figures.keys() == itself.keys()
    # It started from the other's weights and saw one more day.
    assert all(0.3 < figures[name] <= 1 for name in ones) and figures["item_cosine"] < 0.9999
    assert all(0 < figures[name] < 0.25 for name in zeros)
    assert nights.load_nights(two_nights.run_dir)[1].drift == pytest.approx(figures)
