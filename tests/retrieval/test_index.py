"""The item index: exact where it says so, as good as it says elsewhere, and never a −1."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recsys.artifacts import hash_file
from recsys.errors import InputError
from recsys.ingest.dataset import Sequences
from recsys.retrieval.config import IndexConfig
from recsys.retrieval.index import ItemIndex, Vectors, build_index, exact_search
from recsys.runtime import Runtime

RUNTIME = Runtime(seed=3, threads=1, progress=False)


@dataclass
class Items:
    """Item vectors alone: all of a two-tower model that an index is built from."""

    item_vectors: Vectors
    fingerprint: str = "items"

    def user_vectors(self, histories: Sequences, *, runtime: Runtime) -> Vectors:
        raise AssertionError("an index that is tuned without a dataset asks for no users")


def clustered(n: int, dim: int, seed: int) -> tuple[Vectors, Vectors]:
    """Items as a student spreads them (clusters, norms that differ) and users near them, from other draws."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(n // 100, 3), dim))
    items = centres[rng.integers(0, len(centres), n)] + 0.5 * rng.normal(size=(n, dim))
    items *= rng.lognormal(0, 0.1, (n, 1))
    users = items[rng.choice(n, 400)] + 0.5 * rng.normal(size=(400, dim))
    return items.astype(np.float32), users.astype(np.float32)


def oracle(queries: Vectors, vectors: Vectors, k: int, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Every score in float64, sorted, the forbidden items dropped."""
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    ranked = [[i for i in np.lexsort((np.arange(len(vectors)), -row)) if allowed[i]] for row in scores]
    return np.array([row[:k] for row in ranked], dtype=np.int64).reshape(len(queries), min(k, allowed.sum()))


def recall(found: npt.NDArray[np.int64], truth: npt.NDArray[np.int64]) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, truth, strict=True)]))


@pytest.fixture(scope="module")
def many() -> tuple[Vectors, Vectors]:
    return clustered(20_000, 32, seed=11)


@pytest.fixture(scope="module", params=["hnsw", "ivf_pq"])
def approximate(
    request: pytest.FixtureRequest, many: tuple[Vectors, Vectors], tmp_path_factory: pytest.TempPathFactory
) -> ItemIndex:
    out = tmp_path_factory.mktemp(request.param) / "index"
    return build_index(Items(many[0]), IndexConfig(type=request.param), out, runtime=RUNTIME)


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
    monkeypatch.setattr("recsys.retrieval.index.GATHER_ITEMS", 700)
    np.testing.assert_array_equal(exact_search(users, vectors, 50, items)[1], whole[1])
    np.testing.assert_array_equal(whole[1][:20], oracle(users[:20], vectors, 50, np.arange(3000) % 3 > 0))


def test_a_small_catalogue_gets_a_flat_index_that_is_mapped_from_the_file(tmp_path: Path) -> None:
    vectors, users = clustered(500, 16, seed=1)
    index = build_index(Items(vectors), IndexConfig(), tmp_path / "index", runtime=RUNTIME)
    assert index.manifest["info"]["type"] == "flat"
    assert index.counts == {
        "items": 500,
        "dim": 16,
        "recall": 1.0,
        "bytes": (index.path / "items.faiss").stat().st_size,
    }
    np.testing.assert_array_equal(index.vectors, vectors)
    assert not index.vectors.flags.writeable
    if (maps := Path("/proc/self/maps")).exists():
        assert str(index.path / "items.faiss") in maps.read_text()
    everything = np.ones(500, dtype=np.bool_)
    np.testing.assert_array_equal(index.search(users, 30)[1], oracle(users, vectors, 30, everything))
    np.testing.assert_array_equal(index.search(users, 30, allowed=everything)[1], index.search(users, 30)[1])


def test_fewer_allowed_items_than_asked_for_give_narrower_lists(tmp_path: Path) -> None:
    vectors, users = clustered(500, 16, seed=1)
    index = build_index(Items(vectors), IndexConfig(), tmp_path / "index", runtime=RUNTIME)
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
    truth = np.argsort(-(users @ vectors.T), axis=1)[:, :100]
    assert recall(found, truth) >= 0.97  # 400 users whose vectors no one has tuned on


def test_recall_holds_when_only_some_items_are_allowed(approximate: ItemIndex, many: tuple[Vectors, Vectors]) -> None:
    vectors, users = many
    allowed = np.random.default_rng(0).random(len(vectors)) < 0.2
    _, found = approximate.search(users, 100, allowed=allowed)
    assert allowed[found].all()
    truth = np.argsort(np.where(allowed, -(users @ vectors.T), np.inf), axis=1)[:, :100]
    assert recall(found, truth) >= 0.97


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


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf_pq"])
def test_the_same_vectors_give_the_same_bytes(kind: str, tmp_path: Path) -> None:
    vectors, _ = clustered(3000, 16, seed=2)
    config = IndexConfig(type=kind, target_recall=0.5)
    paths = [build_index(Items(vectors), config, tmp_path / name / "index", runtime=RUNTIME).path for name in "ab"]
    assert hash_file(paths[0] / "items.faiss") == hash_file(paths[1] / "items.faiss")


def test_what_is_up_to_date_is_not_built_again(tmp_path: Path) -> None:
    items, out = Items(clustered(300, 8, seed=1)[0]), tmp_path / "index"
    first = build_index(items, IndexConfig(), out, runtime=RUNTIME)
    assert build_index(items, IndexConfig(), out, runtime=RUNTIME).path == first.path
    assert build_index(items, IndexConfig(), out, runtime=RUNTIME, force=True).path != first.path
    other = build_index(replace(items, fingerprint="other"), IndexConfig(), out, runtime=RUNTIME)
    assert other.manifest["inputs"] == {"student": "other"}


def test_auto_falls_back_to_flat_where_the_target_is_out_of_reach(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)  # no structure to make use of
    out = tmp_path / "index"
    index = build_index(Items(vectors), IndexConfig(flat_up_to=1000, target_recall=1), out, runtime=RUNTIME)
    info = index.manifest["info"]
    assert (info["type"], info["recall"]) == ("flat", 1.0)
    assert [(tried["type"], tried["recall"] < 1) for tried in info["rejected"]] == [("ivf_pq", True)]
    with pytest.raises(InputError, match=r"reached recall@100 0\.\d+") as error:
        build_index(Items(vectors), IndexConfig(type="ivf_pq", target_recall=1), out, runtime=RUNTIME)
    assert "index.type = 'auto'" in error.value.do
    assert ItemIndex.open(out).fingerprint == index.fingerprint


def test_bad_input_is_named(tmp_path: Path) -> None:
    vectors, users = clustered(300, 8, seed=1)
    with pytest.raises(InputError, match="ivf_pq' for 300 items"):
        build_index(Items(vectors), IndexConfig(type="ivf_pq"), tmp_path / "index", runtime=RUNTIME)
    broken = vectors.copy()
    broken[5, 3] = np.nan
    with pytest.raises(InputError, match="NaN or infinity"):
        build_index(Items(broken), IndexConfig(), tmp_path / "index", runtime=RUNTIME)

    index = build_index(Items(vectors), IndexConfig(), tmp_path / "index", runtime=RUNTIME)
    with pytest.raises(InputError, match=r"shape \[400, 7\]"):
        index.search(users[:, :7], 5)
    with pytest.raises(InputError, match="NaN or infinity"):
        index.search(np.full((1, 8), np.nan, np.float32), 5)
    with pytest.raises(InputError, match="k = 0"):
        index.search(users, 0)
    with pytest.raises(InputError, match=r"shape \[299\]"):
        index.search(users, 5, allowed=np.ones(299, np.bool_))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    vectors, users = clustered(300, 8, seed=1)
    index = build_index(Items(vectors), IndexConfig(), tmp_path / "index", runtime=RUNTIME)
    file = index.path / "items.faiss"
    file.write_bytes(b"xxxx" + file.read_bytes()[4:])
    with pytest.raises(InputError, match="cannot be read"):
        ItemIndex.open(tmp_path / "index").search(users, 5)
    assert json.loads((index.path / "manifest.json").read_text())["kind"] == "index"
