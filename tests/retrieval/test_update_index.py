"""Items come and go without a build: numbers stay, what is removed is gone, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from retrieval_items import APPROXIMATE, RUNTIME, best, build, clustered, oracle, recall

from recsys.artifacts import hash_file
from recsys.errors import InputError
from recsys.retrieval.index import ItemIndex, Vectors, update_index

INTEGERS = st.integers(-2, 2).map(float)


@pytest.fixture(scope="module")
def many() -> tuple[Vectors, Vectors]:
    return clustered(8000, 16, seed=21)


@pytest.fixture(scope="module", params=APPROXIMATE)
def approximate(
    request: pytest.FixtureRequest, many: tuple[Vectors, Vectors], tmp_path_factory: pytest.TempPathFactory
) -> ItemIndex:
    """An index of the first 7000."""
    out = tmp_path_factory.mktemp(request.param) / "index"
    return build(many[0][:7000], out, type=request.param, target_recall=0.95, tuning_queries=300)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flat_index_after_any_updates_equals_sorting_what_is_left(data: st.DataObject, tmp_path: Path) -> None:
    vectors = data.draw(hnp.arrays(np.float32, (data.draw(st.integers(1, 12)), 3), elements=INTEGERS))
    index = build(vectors, tmp_path / "index")
    present = np.ones(len(vectors), np.bool_)
    for _ in range(data.draw(st.integers(1, 3))):
        added = data.draw(hnp.arrays(np.float32, (data.draw(st.integers(0, 5)), 3), elements=INTEGERS))
        removed = data.draw(st.lists(st.integers(0, len(vectors) - 1), max_size=8))
        index = update_index(index, tmp_path / "index", added=added, removed=removed, runtime=RUNTIME)
        present[removed] = False
        vectors, present = np.vstack([vectors, added]), np.append(present, np.ones(len(added), np.bool_))
        allowed = data.draw(hnp.arrays(np.bool_, len(vectors)))
        queries = data.draw(hnp.arrays(np.float32, (4, 3), elements=INTEGERS))
        np.testing.assert_array_equal(index.search(queries, 6)[1], oracle(queries, vectors, 6, present))
        found = index.search(queries, 6, allowed=allowed)[1]
        np.testing.assert_array_equal(found, oracle(queries, vectors, 6, allowed & present))
    assert index.counts["items"] == present.sum()
    np.testing.assert_array_equal(index.removed, np.flatnonzero(~present))


def test_added_and_removed_items_of_an_approximate_index(
    approximate: ItemIndex, many: tuple[Vectors, Vectors], tmp_path: Path
) -> None:
    vectors, users = many
    removed = np.random.default_rng(0).choice(7000, 300, replace=False)
    index = update_index(approximate, tmp_path / "index", added=vectors[7000:], removed=removed, runtime=RUNTIME)
    present = np.ones(8000, np.bool_)
    present[removed] = False
    scores, found = index.search(users, 50)
    assert present[found].all()
    assert (found >= 0).all()
    assert (found >= 7000).any()
    assert recall(found, best(users, vectors, 50, present)) >= 0.9
    np.testing.assert_allclose(scores, np.einsum("nd,nkd->nk", users, vectors[found]), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(index.vectors, vectors)
    info = index.manifest["info"]
    assert (info["type"], info["since_build"]) == (
        approximate.manifest["info"]["type"],
        {"added": 1000, "removed": 300},
    )
    assert index.counts["items"] == 7700
    assert info["recall"] >= 0.95
    assert info["rebuild_due"] is None
    assert approximate.search(users, 50)[1].max() < 7000  # the one before is as it was


def test_what_is_removed_is_not_found_by_an_exact_search_either(
    approximate: ItemIndex, many: tuple[Vectors, Vectors], tmp_path: Path
) -> None:
    vectors, users = many
    near = best(users[:1], vectors[:7000], 600, np.ones(7000, np.bool_))[0]
    index = update_index(approximate, tmp_path / "index", removed=near[:200], runtime=RUNTIME)
    allowed = np.zeros(7000, np.bool_)
    allowed[near] = True  # few: the search is exact
    scores, found = index.search(users[:1], 1000, allowed=allowed)
    assert set(found[0]) == set(near[200:])
    assert scores.shape == (1, 400)
    whole = index.search(users[:1], 7000)[1]  # all there are: the index alone does not find them
    assert set(whole[0]) == set(range(7000)) - set(near[:200])
    nobody = update_index(index, tmp_path / "nobody", removed=range(7000), runtime=RUNTIME)
    assert nobody.search(users[:3], 5)[1].shape == (3, 0)
    assert nobody.counts["items"] == 0


def test_an_index_that_is_updated_step_by_step_or_at_once_is_the_same(
    approximate: ItemIndex, many: tuple[Vectors, Vectors], tmp_path: Path
) -> None:
    vectors, users = many
    once = update_index(approximate, tmp_path / "once", added=vectors[7000:], removed=[5, 9], runtime=RUNTIME)
    steps = update_index(approximate, tmp_path / "steps", added=vectors[7000:7300], removed=[9], runtime=RUNTIME)
    steps = update_index(steps, tmp_path / "steps", added=vectors[7300:], removed=[9, 5], runtime=RUNTIME)
    assert once.manifest["info"]["since_build"] == steps.manifest["info"]["since_build"]
    np.testing.assert_array_equal(once.vectors, steps.vectors)
    np.testing.assert_array_equal(once.removed, steps.removed)
    found, in_steps = once.search(users, 20)[1], steps.search(users, 20)[1]
    assert recall(found, in_steps) >= 0.95
    # Tuning begins with the parameters before. A graph draws a level for each item.
    same_params = once.manifest["info"]["params"] == steps.manifest["info"]["params"]
    if same_params and once.manifest["info"]["type"] != "hnsw":
        np.testing.assert_array_equal(found, in_steps)


def test_a_rebuild_is_due_when_much_has_changed(tmp_path: Path) -> None:
    vectors, _ = clustered(300, 8, seed=1)
    index = build(vectors[:200], tmp_path / "index", rebuild_after=0.1)
    assert index.manifest["info"]["rebuild_due"] is None
    index = update_index(index, tmp_path / "index", added=vectors[200:212], removed=range(8), runtime=RUNTIME)
    assert index.manifest["info"]["rebuild_due"] is None  # 20 of 200 are not more than a tenth
    index = update_index(index, tmp_path / "index", removed=[7, 8], runtime=RUNTIME)
    assert index.manifest["info"]["since_build"] == {"added": 12, "removed": 9}
    assert "21 items were added or removed since the build of 200" in index.manifest["info"]["rebuild_due"]


def test_where_new_items_lie_far_from_all_clusters_searches_go_deeper_or_a_rebuild_is_due(tmp_path: Path) -> None:
    vectors, _ = clustered(4000, 16, seed=3)
    # All of the new items are nearest to one cluster, and codes that were trained on others tell them badly apart.
    rng = np.random.default_rng(0)
    new = (40 + 0.01 * rng.normal(size=(600, 16))).astype(np.float32)
    options = {"type": "ivf_pq", "refine": "sq8", "target_recall": 0.95, "tuning_queries": 200}
    before = build(vectors, tmp_path / "before", **options)
    index = update_index(before, tmp_path / "after", added=new, runtime=RUNTIME)
    info = index.manifest["info"]
    assert before.manifest["info"]["recall"] >= 0.95 > info["recall"]
    assert "recall fell" in info["rebuild_due"]
    deeper = [info["params"][name] >= value for name, value in before.manifest["info"]["params"].items()]
    assert all(deeper)


def test_the_same_update_is_not_made_again(tmp_path: Path) -> None:
    vectors, _ = clustered(300, 8, seed=1)
    index = build(vectors[:200], tmp_path / "index")
    first = update_index(index, tmp_path / "new", added=vectors[200:], removed=[1, 2], runtime=RUNTIME)
    same = update_index(index, tmp_path / "new", added=vectors[200:], removed=[2, 1, 1], runtime=RUNTIME)
    assert same.path == first.path
    assert hash_file(first.path / "vectors.npy") != hash_file(index.path / "vectors.npy")
    assert first.manifest["inputs"]["student"] == index.manifest["inputs"]["student"]
    assert first.fingerprint != index.fingerprint
    other = update_index(index, tmp_path / "new", added=vectors[200:], removed=[1, 3], runtime=RUNTIME)
    assert other.path != first.path


def test_bad_updates_are_named(tmp_path: Path) -> None:
    vectors, _ = clustered(300, 8, seed=1)
    index = build(vectors, tmp_path / "index")
    with pytest.raises(InputError, match=r"shape \[300, 7\]"):
        update_index(index, tmp_path / "new", added=vectors[:, :7], runtime=RUNTIME)
    with pytest.raises(InputError, match="NaN or infinity"):
        update_index(index, tmp_path / "new", added=np.full((1, 8), np.inf, np.float32), runtime=RUNTIME)
    for number in (-1, 300):
        with pytest.raises(InputError, match=f"{number}"):
            update_index(index, tmp_path / "new", removed=[5, number], runtime=RUNTIME)
    assert not (tmp_path / "new").exists()
