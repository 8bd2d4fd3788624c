"""The item index: exact where it says so, as good as it says elsewhere, and never a −1."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from retrieval_items import APPROXIMATE, RUNTIME, Items, best, build, clustered, oracle, recall

from recsys.artifacts import hash_file
from recsys.errors import InputError
from recsys.retrieval.config import IndexConfig
from recsys.retrieval.exact import exact_search, rescored
from recsys.retrieval.index import ItemIndex, Vectors, build_index


@pytest.fixture(scope="module")
def many() -> tuple[Vectors, Vectors]:
    return clustered(20_000, 32, seed=11)


@pytest.fixture(scope="module", params=APPROXIMATE)
def approximate(
    request: pytest.FixtureRequest, many: tuple[Vectors, Vectors], tmp_path_factory: pytest.TempPathFactory
) -> ItemIndex:
    return build(many[0], tmp_path_factory.mktemp(request.param) / "index", type=request.param)


def is_mapped(file: Path) -> bool:
    maps = Path("/proc/self/maps")
    return not maps.exists() or str(file) in maps.read_text()


# Small integers: their products are exact in any order of summation, and equal scores are frequent.
INTEGERS = st.integers(-2, 2).map(float)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), n_items=st.integers(1, 60), n_queries=st.integers(0, 30), k=st.integers(1, 70))
def test_an_exact_search_equals_sorting_all_scores(data: st.DataObject, n_items: int, n_queries: int, k: int) -> None:
    vectors = data.draw(hnp.arrays(np.float32, (n_items, 3), elements=INTEGERS))
    queries = data.draw(hnp.arrays(np.float32, (n_queries, 3), elements=INTEGERS))
    allowed = data.draw(hnp.arrays(np.bool_, n_items))
    items = np.flatnonzero(allowed)
    width = min(k, len(items))
    if width:
        scores, found = exact_search(queries, vectors, width, items)
        np.testing.assert_array_equal(found, oracle(queries, vectors, width, allowed))
        np.testing.assert_array_equal(scores, np.take_along_axis(queries @ vectors.T, found, axis=1))
        assert scores.dtype == np.float32
        assert found.dtype == np.int64


def test_among_thousands_of_equal_scores_the_first_items_are_found() -> None:
    vectors = np.ones((5000, 4), np.float32)
    vectors[4000] = 2
    _, found = exact_search(np.ones((40, 4), np.float32), vectors, 10)
    np.testing.assert_array_equal(found, np.tile([4000, *range(9)], (40, 1)))


def test_a_search_among_more_items_than_one_gather_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, users = clustered(3000, 8, seed=5)
    items = np.flatnonzero(np.arange(3000) % 3 > 0)
    whole = exact_search(users, vectors, 50, items)
    monkeypatch.setattr("recsys.retrieval.exact.GATHER_ITEMS", 700)
    np.testing.assert_array_equal(exact_search(users, vectors, 50, items)[1], whole[1])
    np.testing.assert_array_equal(whole[1][:20], oracle(users[:20], vectors, 50, np.arange(3000) % 3 > 0))


def test_a_small_catalogue_gets_a_flat_index_that_is_mapped_from_the_file(tmp_path: Path) -> None:
    vectors, users = clustered(500, 16, seed=1)
    index = build(vectors, tmp_path / "index")
    assert index.manifest["info"]["type"] == "flat"
    assert index.counts == {
        "items": 500,
        "dim": 16,
        "recall": 1.0,
        "bytes": (index.path / "vectors.npy").stat().st_size,
        "memory": (index.path / "vectors.npy").stat().st_size,
    }
    np.testing.assert_array_equal(index.vectors, vectors)
    assert not index.vectors.flags.writeable
    assert is_mapped(index.path / "vectors.npy")
    assert {file.name for file in index.path.iterdir()} == {"vectors.npy", "manifest.json"}
    everything = np.ones(500, dtype=np.bool_)
    np.testing.assert_array_equal(index.search(users, 30)[1], oracle(users, vectors, 30, everything))
    np.testing.assert_array_equal(index.search(users, 30, allowed=everything)[1], index.search(users, 30)[1])


def test_fewer_allowed_items_than_asked_for_give_narrower_lists(tmp_path: Path) -> None:
    vectors, users = clustered(500, 16, seed=1)
    index = build(vectors, tmp_path / "index")
    allowed = np.zeros(500, dtype=np.bool_)
    assert index.search(users, 5, allowed=allowed)[1].shape == (400, 0)
    allowed[[7, 300]] = True
    scores, found = index.search(users, 5, allowed=allowed)
    assert scores.shape == found.shape == (400, 2)
    assert set(found.ravel()) == {7, 300}
    assert index.search(users, 1000)[1].shape == (400, 500)
    assert index.search(users[:0], 5)[1].shape == (0, 5)


def test_the_recall_in_the_manifest_holds_for_other_queries(
    approximate: ItemIndex, many: tuple[Vectors, Vectors]
) -> None:
    info = approximate.manifest["info"]
    assert info["recall"] >= 0.98
    assert info["recall_at"] == 100
    vectors, users = many
    _, found = approximate.search(users, 100)
    truth = best(users, vectors, 100, np.ones(len(vectors), np.bool_))
    assert recall(found, truth) >= 0.97  # 400 users whose vectors no one has tuned on


def test_recall_holds_when_only_some_items_are_allowed(approximate: ItemIndex, many: tuple[Vectors, Vectors]) -> None:
    vectors, users = many
    allowed = np.random.default_rng(0).random(len(vectors)) < 0.2
    _, found = approximate.search(users, 100, allowed=allowed)
    assert allowed[found].all()
    assert recall(found, best(users, vectors, 100, allowed)) >= 0.97


@settings(max_examples=60, deadline=None)
@given(n_allowed=st.one_of(st.integers(0, 40), st.integers(0, 20_000)), k=st.integers(1, 3000), seed=st.integers(0, 9))
def test_an_approximate_index_gives_k_distinct_allowed_items(
    approximate: ItemIndex, many: tuple[Vectors, Vectors], n_allowed: int, k: int, seed: int
) -> None:
    allowed = np.zeros(20_000, dtype=np.bool_)
    allowed[np.random.default_rng(seed).choice(20_000, n_allowed, replace=False)] = True
    scores, found = approximate.search(many[1][:8], k, allowed=allowed)
    assert found.shape == scores.shape == (8, min(k, n_allowed))
    assert allowed[found].all()  # −1 would read the last item, which is why the next lines are here too
    assert (found >= 0).all()
    assert all(len(set(row)) == len(row) for row in found)
    assert (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_allclose(scores, np.einsum("nd,nkd->nk", many[1][:8], many[0][found]), rtol=1e-4, atol=1e-4)


def test_where_faiss_runs_out_of_items_the_search_is_exact(
    approximate: ItemIndex, many: tuple[Vectors, Vectors]
) -> None:
    # More than a tenth is allowed, so the index itself is searched, but all of it lies far from the users.
    vectors, users = many
    far = np.argsort(vectors @ users[0])[:2500]
    allowed = np.zeros(20_000, dtype=np.bool_)
    allowed[far] = True
    _, found = approximate.search(users[:1], 2500, allowed=allowed)
    assert set(found[0]) == set(far)


def test_the_order_of_queries_changes_nothing(approximate: ItemIndex, many: tuple[Vectors, Vectors]) -> None:
    order = np.random.default_rng(0).permutation(400)
    scores, found = approximate.search(many[1], 50)
    shuffled_scores, shuffled = approximate.search(many[1][order], 50)
    np.testing.assert_array_equal(shuffled, found[order])
    np.testing.assert_array_equal(shuffled_scores, scores[order])


def test_a_search_in_small_blocks_finds_the_same(
    approximate: ItemIndex, many: tuple[Vectors, Vectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = approximate.search(many[1], 50)
    monkeypatch.setattr("recsys.retrieval.approximate.CANDIDATES", 5000)
    np.testing.assert_array_equal(approximate.search(many[1], 50)[1], whole[1])


def test_an_approximate_index_is_mapped_from_its_files(approximate: ItemIndex, many: tuple[Vectors, Vectors]) -> None:
    approximate.search(many[1][:1], 5)
    assert is_mapped(approximate.path / "items.faiss")
    assert is_mapped(approximate.path / "vectors.npy")
    np.testing.assert_array_equal(approximate.vectors, many[0])


def test_among_equal_vectors_the_first_items_stand_first(tmp_path: Path) -> None:
    vectors = np.repeat(clustered(1000, 16, seed=2)[0], 4, axis=0)
    index = build(vectors, tmp_path / "index", type="ivf_sq")
    scores, found = index.search(vectors[:400:4], 8)
    equal = np.diff(scores, axis=1) == 0
    assert equal.mean() > 0.7
    assert (np.diff(found, axis=1)[equal] > 0).all()


@settings(max_examples=150, deadline=None)
@given(data=st.data(), n_items=st.integers(1, 40), n_queries=st.integers(1, 8))
def test_candidates_are_rescored_exactly(data: st.DataObject, n_items: int, n_queries: int) -> None:
    vectors = data.draw(hnp.arrays(np.float32, (n_items, 3), elements=INTEGERS))
    queries = data.draw(hnp.arrays(np.float32, (n_queries, 3), elements=INTEGERS))
    rows = [data.draw(st.permutations(range(-n_items, n_items))) for _ in range(n_queries)]
    candidates = np.maximum(np.array(rows), -1)[:, : data.draw(st.integers(1, 2 * n_items))]
    k = data.draw(st.integers(1, candidates.shape[1]))
    scores, found = rescored(queries, vectors, candidates, k)
    for query, row, row_scores, row_found in zip(queries, candidates, scores, found, strict=True):
        there = np.isin(np.arange(n_items), row)
        expected = oracle(query[None], vectors, k, there)[0]
        np.testing.assert_array_equal(row_found, np.pad(expected, (0, k - len(expected)), constant_values=-1))
        np.testing.assert_array_equal(row_scores[: len(expected)], vectors[expected] @ query)
        assert (row_scores[len(expected) :] == -np.inf).all()


@pytest.mark.parametrize("kind", ["flat", *APPROXIMATE])
def test_the_same_vectors_give_the_same_bytes(kind: str, tmp_path: Path) -> None:
    vectors, _ = clustered(3000, 16, seed=2)
    paths = [build(vectors, tmp_path / name / "index", type=kind, target_recall=0.5).path for name in "ab"]
    for name in ("vectors.npy", *(() if kind == "flat" else ("items.faiss", "queries.npy"))):
        assert hash_file(paths[0] / name) == hash_file(paths[1] / name)


def test_what_is_up_to_date_is_not_built_again(tmp_path: Path) -> None:
    items, out = Items(clustered(300, 8, seed=1)[0]), tmp_path / "index"
    first = build_index(items, IndexConfig(), out, runtime=RUNTIME)
    assert build_index(items, IndexConfig(), out, runtime=RUNTIME).path == first.path
    assert build_index(items, IndexConfig(), out, runtime=RUNTIME, force=True).path != first.path
    others = replace(items, item_vectors=items.item_vectors + 1)
    other = build_index(others, IndexConfig(), out, runtime=RUNTIME)
    assert other.manifest["inputs"] == {"student": others.fingerprint} != first.manifest["inputs"]


def test_bad_input_is_named(tmp_path: Path) -> None:
    vectors, users = clustered(300, 8, seed=1)
    for kind in ("ivf_pq", "ivf_sq", "ivf_rabitq"):
        with pytest.raises(InputError, match=f"{kind}' for 300 items"):
            build(vectors, tmp_path / "index", type=kind)
    broken = vectors.copy()
    broken[5, 3] = np.nan
    with pytest.raises(InputError, match="NaN or infinity"):
        build(broken, tmp_path / "index")

    index = build(vectors, tmp_path / "index")
    with pytest.raises(InputError, match=r"shape \[400, 7\]"):
        index.search(users[:, :7], 5)
    with pytest.raises(InputError, match="NaN or infinity"):
        index.search(np.full((1, 8), np.nan, np.float32), 5)
    with pytest.raises(InputError, match="k = 0"):
        index.search(users, 0)
    with pytest.raises(InputError, match=r"shape \[299\]"):
        index.search(users, 5, allowed=np.ones(299, np.bool_))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    vectors, users = clustered(1000, 8, seed=1)
    index = build(vectors, tmp_path / "index", type="ivf_sq", target_recall=0.1)
    file = index.path / "items.faiss"
    file.write_bytes(b"xxxx" + file.read_bytes()[4:])
    with pytest.raises(InputError, match="cannot be read"):
        ItemIndex.open(tmp_path / "index").search(users, 5)
    assert json.loads((index.path / "manifest.json").read_text())["kind"] == "index"
