"""The choice of an index: the budget holds, recall is what it is said to be, and shards come to the same."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from retrieval_items import APPROXIMATE, RUNTIME, Items, best, build, clustered, recall

from recsys.errors import InputError
from recsys.retrieval import approximate, fit
from recsys.retrieval.approximate import REFINED, Plan
from recsys.retrieval.config import IndexConfig
from recsys.retrieval.index import ItemIndex, build_index

WAYS = [(kind, refine) for kind in APPROXIMATE for refine in (("fp32", "fp16", "sq8") if kind in REFINED else (None,))]


def info_of(index: ItemIndex) -> dict[str, Any]:
    return dict(index.manifest["info"])


@pytest.mark.parametrize(("way", "dim"), [*product(WAYS, [24]), (("ivf_pq", "sq8"), 15), (("ivf_rabitq", "sq8"), 15)])
def test_the_estimate_is_a_close_upper_bound_of_the_files(
    way: tuple[str, str | None], dim: int, tmp_path: Path
) -> None:
    kind, refine = way
    vectors, _ = clustered(12_000, dim, seed=4)
    index = build(vectors, tmp_path / "index", type=kind, refine=refine or "auto", target_recall=0.8)
    info, files = info_of(index), index.manifest["files"]
    held = files["items.faiss"] + (files["vectors.npy"] if refine == "fp32" else 0)
    assert (info["type"], info["refine"], info["memory"]) == (kind, refine, held)
    assert held <= info["memory_estimated"] <= 1.15 * held
    assert info["bytes"] == files["items.faiss"] + files["vectors.npy"]


def test_a_flat_index_takes_its_vectors(tmp_path: Path) -> None:
    index = build(clustered(500, 8, seed=1)[0], tmp_path / "index")
    assert info_of(index)["memory_estimated"] == 500 * 8 * 4 == info_of(index)["memory"] - 128  # the head of the .npy


def test_auto_takes_the_finest_that_the_budget_has_room_for(tmp_path: Path) -> None:
    vectors, users = clustered(12_000, 24, seed=4)
    memory = {way: Plan.of(*way, *vectors.shape).memory for way in WAYS}  # type: ignore[arg-type]
    expected = [("ivf_pq", "fp32"), ("ivf_pq", "fp16"), ("ivf_pq", "sq8"), ("ivf_sq", None)]
    assert sorted(expected, key=lambda way: -memory[way]) == expected
    seen = []
    for number, way in enumerate(expected):
        index = build(vectors, tmp_path / str(number), flat_up_to=0, target_recall=0.9, memory_limit=memory[way])
        info = info_of(index)
        seen.append((info["type"], info["refine"]))
        assert info["memory"] <= memory[way]
        too_large = [(each["type"], each.get("refine")) for each in info["rejected"]]
        assert too_large == expected[:number]
        assert all(each["memory"] > memory[way] for each in info["rejected"])
        found = index.search(users, 100)[1]
        assert recall(found, best(users, vectors, 100, np.ones(12_000, np.bool_))) >= 0.88
    assert seen == expected


def test_a_small_catalogue_is_flat_where_the_budget_has_room(tmp_path: Path) -> None:
    vectors, _ = clustered(12_000, 24, seed=4)
    assert info_of(build(vectors, tmp_path / "a", memory_limit="2MB"))["type"] == "flat"
    assert info_of(build(vectors, tmp_path / "b", memory_limit="1MB", target_recall=0.9))["type"] == "ivf_pq"


def test_the_error_names_a_budget_that_would_do(tmp_path: Path) -> None:
    vectors, _ = clustered(12_000, 24, seed=4)
    with pytest.raises(InputError, match="12,000 vectors of 24 numbers") as error:
        build(vectors, tmp_path / "index", memory_limit="10kB")
    assert not (tmp_path / "index").exists()
    limit = error.value.do.split("'")[1]
    info = info_of(build(vectors, tmp_path / "index", memory_limit=limit, target_recall=0.9))
    assert info["memory"] <= int(limit.removesuffix("MB")) * 1_000_000
    assert f"at least {Plan.of('ivf_sq', None, 12_000, 24).memory}" in error.value.expected


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_the_measured_recall_is_that_of_the_kept_queries(kind: str, tmp_path: Path) -> None:
    vectors, _ = clustered(12_000, 24, seed=4)
    index = build(vectors, tmp_path / "index", type=kind, tuning_queries=300, target_recall=0.9, recall_at=50)
    queries = np.load(index.path / "queries.npy")
    assert queries.shape == (300, 24)
    found = index.search(queries, 50)[1]
    measured = recall(found, best(queries, vectors, 50, np.ones(12_000, np.bool_)))
    assert index.counts["recall"] == pytest.approx(measured, abs=2e-4)  # scores that differ by a rounding error
    assert measured >= 0.9


def test_tuning_goes_no_deeper_than_the_target_asks() -> None:
    class Recorded:
        """Recall rises with each parameter; the items are ordered, so that what is found follows from it."""

        vectors = np.eye(1000, dtype=np.float32)[:, :1] + np.linspace(1, 2, 1000, dtype=np.float32)[:, None]

        def search(self, queries: Any, k: int, params: dict[str, int], allowed: Any) -> Any:
            order = np.argsort(-self.vectors[:, 0])[:k]
            n_found = min(k, params["nprobe"])
            found = np.where(np.arange(k) < n_found, order, -1)
            return np.where(found >= 0, self.vectors[found, 0], -np.inf)[None].astype(np.float32), found[None]

    params, reached = fit.tune(
        Recorded(),  # type: ignore[arg-type]
        {"nprobe": 500, "k_factor": 4},
        {"nprobe": 4, "k_factor": 1},
        [np.ones((1, 1), np.float32)],
        IndexConfig(recall_at=100, target_recall=0.65),
    )
    assert 65 <= params["nprobe"] <= 73  # doubling alone would end at 128
    assert reached == fit.Measured(pytest.approx(params["nprobe"] / 100), 1.0)


@pytest.mark.parametrize(("deep", "top", "worst"), [(0.98, 0.999, 0.98), (0.99, 0.9985, 0.97), (1.0, 1.0, 1.0)])
def test_a_miss_among_the_first_ten_counts_twenty_times(deep: float, top: float, worst: float) -> None:
    assert fit.Measured(deep, top).worst == pytest.approx(worst)


def test_the_first_ten_are_found_even_where_the_whole_list_need_not_be(tmp_path: Path) -> None:
    vectors, users = clustered(12_000, 16, seed=4)
    index = build(vectors, tmp_path / "index", type="ivf_pq", target_recall=0.8)
    assert info_of(index)["top_recall"] >= 0.99
    # A short list is the beginning of a long one, so that this holds for it too.
    scores, found = index.search(users, 10)
    longer_scores, longer = index.search(users, 100)
    np.testing.assert_array_equal(found, longer[:, :10])
    np.testing.assert_array_equal(scores, longer_scores[:, :10])
    assert recall(found, best(users, vectors, 10, np.ones(12_000, np.bool_))) >= 0.98


def test_auto_falls_back_to_flat_where_the_target_is_out_of_reach(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)  # no structure to make use of
    index = build(vectors, tmp_path / "index", flat_up_to=1000, target_recall=1)
    info = info_of(index)
    assert (info["type"], info["recall"]) == ("flat", 1.0)
    tried = [(each["type"], each["recall"] < 1, bool(each["params"])) for each in info["rejected"]]
    assert tried == [("ivf_pq", True, True), ("ivf_sq", True, True)]
    assert not (index.path / "queries.npy").exists()
    with pytest.raises(InputError, match=r"reached recall@100 0\.\d+") as error:
        build(vectors, tmp_path / "index", type="ivf_pq", target_recall=1)
    assert "index.type = 'auto'" in error.value.do
    with pytest.raises(InputError, match=r"reached recall@100 0\.\d+") as error:
        build(vectors, tmp_path / "index", flat_up_to=1000, target_recall=1, memory_limit="400kB")
    assert "index.memory_limit = '1MB'" in error.value.do
    assert ItemIndex.open(tmp_path / "index").fingerprint == index.fingerprint


@pytest.mark.parametrize("way", [way for way in WAYS if way[0] != "hnsw"])
def test_merged_shards_are_what_one_index_would_be(way: tuple[str, str | None], tmp_path: Path) -> None:
    vectors, users = clustered(7000, 16, seed=6)
    options = {"type": way[0], "refine": way[1] or "auto", "target_recall": 0.8}
    whole = build(vectors, tmp_path / "whole", **options)
    shards = build(vectors, tmp_path / "shards", shard_items=1500, **options)
    assert info_of(shards)["params"] == info_of(whole)["params"]
    assert info_of(shards)["recall"] == info_of(whole)["recall"]
    allowed = np.random.default_rng(0).random(7000) < 0.5
    for options in ({}, {"allowed": allowed}):
        for mine, other in zip(shards.search(users, 60, **options), whole.search(users, 60, **options), strict=True):
            np.testing.assert_array_equal(mine, other)
    assert not (shards.path / "scratch").exists()


def test_a_killed_build_goes_on_after_its_last_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = clustered(7000, 16, seed=6)
    config = IndexConfig(type="ivf_sq", target_recall=0.8, shard_items=1500)
    added: list[int] = []
    plain = approximate.add

    def add(index: Any, kind: Any, block: Any, **options: Any) -> None:
        if len(added) == 3:
            raise KeyboardInterrupt
        added.append(len(block))
        plain(index, kind, block, **options)

    monkeypatch.setattr(approximate, "add", add)
    with pytest.raises(KeyboardInterrupt):
        build_index(Items(vectors), config, tmp_path / "index", runtime=RUNTIME)
    added.clear()
    index = build_index(Items(vectors), config, tmp_path / "index", runtime=RUNTIME)
    assert added == [1500, 1000]
    assert index.search(vectors[:50], 1)[1].shape == (50, 1)
    assert index.counts["items"] == 7000
