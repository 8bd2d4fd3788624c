from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.evaluation import lists
from recsys.evaluation.lists import evaluate_lists, hits_of, score_lists
from recsys.evaluation.metrics import MAP, METRICS, MRR, Recall, metrics_at
from recsys.evaluation.ranking import rank
from recsys.ingest.dataset import Ragged
from recsys.runtime import Runtime
from tests.evaluation.conftest import TableScorer, WriteDataset

METRICS_AT = metrics_at([1, 3, 10])

# A row: user, item (−1: not in the catalogue) and place, in which ties and repeated items are common.
rows = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 8), st.integers(0, 5)), max_size=60)
wanted = st.lists(st.sets(st.integers(0, 8), max_size=6), min_size=5, max_size=5)


def ragged(sets: list[set[int]]) -> Ragged:
    flat = [item for row in sets for item in sorted(row)]
    return Ragged(np.cumsum([0, *map(len, sets)]), np.array(flat, dtype=np.int32))


def plainly(table: list[tuple[int, int, int]], targets: list[set[int]]) -> tuple[np.ndarray, int]:
    """The rules of the module, one user at a time: best place first, copies as misses, targets last within a tie."""
    values, copies = np.empty((len(targets), len(METRICS_AT))), 0
    for u, of in enumerate(targets):
        listed = sorted(((place, item) for user, item, place in table if user == u), key=lambda row: row[0])
        met: set[int] = set()
        flags = []
        for place, item in listed:
            copies += item in met
            flags.append((place, item in of and item not in met))
            met |= {item} if item >= 0 else set()
        hits = np.array([[hit for _, hit in sorted(flags)]], dtype=bool).reshape(1, -1)
        values[u] = [metric(hits, np.array([len(of)]))[0] for metric in METRICS_AT]
    return values, copies


def columns(table: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(np.array([row[i] for row in table], dtype=np.int32) for i in range(3))  # type: ignore[return-value]


@settings(deadline=None, max_examples=150)
@given(table=rows, targets=wanted, sort=st.booleans(), cells=st.sampled_from([1, 20, 1 << 20]))
def test_equals_the_rules_in_plain_python(
    table: list[tuple[int, int, int]], targets: list[set[int]], sort: bool, cells: int
) -> None:
    table = sorted(table, key=lambda row: (row[0], row[2])) if sort else table
    expected, copies = plainly(table, targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "BLOCK_CELLS", cells)
        patch.setattr(lists, "BLOCK_ROWS", 7)
        values, duplicates = evaluate_lists(*columns(table), ragged(targets), METRICS_AT)
    np.testing.assert_allclose(values, expected, atol=1e-12)
    assert duplicates == copies


@settings(deadline=None, max_examples=60)
@given(table=rows, targets=wanted, seed=st.integers(0, 99))
def test_no_order_of_a_tie_is_worth_less(table: list[tuple[int, int, int]], targets: list[set[int]], seed: int) -> None:
    given_, _ = evaluate_lists(*columns(table), ragged(targets), METRICS_AT)
    # The same lists with every tie broken at random, each item once.
    noise = np.random.default_rng(seed).random(len(table))
    unique = {(user, item): place for user, item, place in sorted(table, key=lambda row: -row[2]) if item >= 0}
    copies = len([row for row in table if row[1] >= 0]) - len(unique)
    user, item, place = columns(table)
    broken, again = evaluate_lists(user, item, place + noise, ragged(targets), METRICS_AT)
    assert again == copies
    known = np.isfinite(given_)
    assert np.all(broken[known] >= given_[known] - 1e-12)


def test_a_constant_score_earns_nothing_before_the_end_of_the_tie() -> None:
    n = 50
    user, item, score = np.zeros(n, np.int32), np.arange(n, dtype=np.int32), np.ones(n)
    values, _ = evaluate_lists(user, item, -score, ragged([{0, 7}]), [Recall(48), Recall(49), Recall(50), MRR(50)])
    np.testing.assert_allclose(values, [[0, 0.5, 1, 1 / 49]])


def test_narrow_and_wide_types_are_alike() -> None:
    table = [(u, (7 * u + i) % 9, i) for u in range(5) for i in range(4)]
    targets = ragged([{0, 1}, {2}, {3}, {4}, {5, 6}])
    expected, _ = evaluate_lists(*columns(table), targets, METRICS_AT)
    for kind in (np.int8, np.uint16, np.int64):
        values, _ = evaluate_lists(*(column.astype(kind) for column in columns(table)), targets, METRICS_AT)
        np.testing.assert_array_equal(values, expected)


def test_hits_of_padded_lists() -> None:
    items = np.array([[3, 1, -1], [-1, -1, -1], [2, 0, 1]], dtype=np.int32)
    expected = [[True, False, False], [False] * 3, [False, True, True]]
    np.testing.assert_array_equal(hits_of(items, ragged([{3, 8}, {1}, {0, 1}])), expected)
    np.testing.assert_array_equal(hits_of(items[:1], ragged([{3, 8}])), expected[:1])


@pytest.mark.parametrize(
    ("user", "item", "order"),
    [([0, 5], [1, 1], [0.0, 1.0]), ([-1], [1], [0.0]), ([0], [1], [np.nan]), ([0, 0], [1], [1.0])],
)
def test_arrays_that_do_not_fit_are_refused(user: list[int], item: list[int], order: list[float]) -> None:
    with pytest.raises(InputError):
        evaluate_lists(np.array(user), np.array(item), np.array(order), ragged([{1}] * 5), METRICS_AT)


# u0 bought 0, 1 and is asked for 2, 3; u1 bought 0 and is asked for 0, 1; u2 bought 4 and is asked for 4 alone; u3 is
# asked nothing.
HISTORIES = [[0, 1, 2, 3], [0, 0, 1], [4, 4], [1, 2]]
TRAINED = [2, 1, 1, 2]


def table(*rows: tuple[str, str, float], by: str = "rank") -> pa.Table:
    user, item, order = zip(*rows, strict=True) if rows else ((), (), ())
    kind = pa.int32() if by == "rank" else pa.float32()
    return pa.table(
        {"user_id": pa.array(user, pa.string()), "item_id": pa.array(item, pa.string()), by: pa.array(order, kind)}
    )


def test_lists_by_the_shops_ids(write_dataset: WriteDataset) -> None:
    dataset = write_dataset(HISTORIES, TRAINED, TRAINED, n_items=6)
    given_ = table(
        *(("u0", "i5", 3), ("u0", "i0", 1), ("u0", "i3", 4), ("u0", "i2", 9), ("u0", "gone", 2), ("u0", "i3", 7)),
        *(("stranger", "i1", 1), ("u3", "i2", 1)),
    )
    scores = score_lists(given_, dataset, ks=[3, 10])
    assert scores.user_idx.tolist() == [0, 1]  # u2 has nothing new left
    # u0: i0 was seen, so the list is gone, i5, i3, (i3), i2.
    assert scores.means["recall_at_3"] == pytest.approx((1 / 2 + 0) / 2)
    assert scores.means["mrr_at_3"] == pytest.approx((1 / 3 + 0) / 2)
    assert scores.means["map_at_10"] == pytest.approx((1 / 3 + 2 / 5) / 2 / 2)
    assert scores.counts == {
        "rows": 8,
        "unknown_user_rows": 1,
        "unknown_users": 1,
        "unasked_rows": 1,
        "unknown_item_rows": 1,
        "unknown_items": 1,
        "users": 2,
        "users_without_list": 1,
        "seen_rows": 1,
        "duplicate_rows": 1,
    }
    assert scores.per_user.column_names[:2] == ["user_idx", "recall_at_3"]
    assert scores.per_user["recall_at_10"].to_pylist() == [1, 0]


def test_with_seen_items_everybody_is_asked(write_dataset: WriteDataset) -> None:
    dataset = write_dataset(HISTORIES, TRAINED, TRAINED, n_items=6)
    given_ = table(("u1", "i0", 1), ("u1", "i1", 2), ("u2", "i4", 1))
    scores = score_lists(given_, dataset, ks=[1], metrics=["recall"], seen_filtered=False)
    assert scores.user_idx.tolist() == [0, 1, 2]
    assert scores.values[:, 0].tolist() == [0, 0.5, 1]
    assert scores.counts["seen_rows"] == 0
    filtered = score_lists(given_, dataset, ks=[1], metrics=["recall"])
    assert (filtered.user_idx.tolist(), filtered.values[:, 0].tolist()) == ([0, 1], [0, 1])


def test_scores_descend_and_their_ties_do_not_flatter(write_dataset: WriteDataset) -> None:
    dataset = write_dataset(HISTORIES, TRAINED, TRAINED, n_items=6)
    best_first = table(("u0", "i4", 0.1), ("u0", "i2", 0.9), ("u0", "i5", 0.5), ("u0", "i3", 0.5), by="score")
    scores = score_lists(best_first, dataset, ks=[1, 2, 3], metrics=["recall"])
    assert scores.values[0].tolist() == [0.5, 0.5, 1]
    # A rank is the system's own word, and goes before a score.
    both = best_first.append_column("rank", pa.array([1, 2, 3, 4]))
    assert score_lists(both, dataset, ks=[1, 2, 3], metrics=["recall"]).values[0].tolist() == [0, 0.5, 0.5]


@pytest.mark.parametrize("seen_filtered", [True, False])
def test_the_projects_own_lists_get_the_same_values(
    seen_filtered: bool, write_dataset: WriteDataset, table_scorer: type[TableScorer]
) -> None:
    rng = np.random.default_rng(5)
    histories = [[u, *rng.integers(30, size=rng.integers(3, 9)).tolist()] for u in range(20)]
    cut = [len(row) - 2 for row in histories]
    dataset = write_dataset(histories, cut, cut, n_items=30)
    cases = dataset.cases("test")
    scorer = table_scorer(rng.normal(size=(30, 30)).astype(np.float32))
    ranked = [
        block
        for block in rank(scorer, dataset, cases, k=30, runtime=Runtime(progress=False))
        if block.seen_filtered == seen_filtered
    ]
    items = np.concatenate([block.items for block in ranked])
    row, place = np.nonzero(items >= 0)
    shuffled = rng.permutation(len(row))
    listed = pa.table(
        {
            "user_id": [f"u{cases.user_idx[r]}" for r in row],
            "item_id": [f"i{i}" for i in items[row, place]],
            "rank": place,
        }
    ).take(shuffled)
    scores = score_lists(listed, dataset, ks=[1, 5, 30], seen_filtered=seen_filtered)
    expected = np.column_stack(
        [np.concatenate([metric(block.hits, block.n_targets) for block in ranked]) for metric in metrics_at([1, 5, 30])]
    )
    asked = np.isfinite(expected[:, 0])
    assert asked.sum() > 10
    np.testing.assert_array_equal(scores.user_idx, cases.user_idx[asked])
    np.testing.assert_array_equal(scores.values, expected[asked])
    assert scores.counts["seen_rows"] == 0


def test_nobody_listed(write_dataset: WriteDataset) -> None:
    dataset = write_dataset(HISTORIES, TRAINED, TRAINED, n_items=6)
    scores = score_lists(table(), dataset)
    assert set(scores.means.values()) == {0}
    assert scores.counts["users_without_list"] == scores.counts["users"] == 2
    assert len(scores.metrics) == 3 * len(METRICS)


def test_ids_of_other_types_are_read_as_text(write_dataset: WriteDataset) -> None:
    dataset = write_dataset(HISTORIES, TRAINED, TRAINED, n_items=6)
    plain = table(("u0", "i2", 1), ("u1", "i1", 1))
    encoded = pa.table(
        {
            name: column.dictionary_encode()
            for name, column in list(zip(plain.column_names, plain.columns, strict=True))[:2]
        }
    )
    encoded = encoded.append_column("rank", plain["rank"])
    np.testing.assert_array_equal(score_lists(encoded, dataset).values, score_lists(plain, dataset).values)


@pytest.mark.parametrize(
    ("given_", "options", "word"),
    [
        (table(("u0", "i1", 1)).drop_columns("rank"), {}, "missing: score"),
        (table(("u0", "i1", 1)).drop_columns("item_id"), {}, "missing: item_id"),
        (table(("u0", None, 1)), {}, "no item_id"),  # type: ignore[arg-type]
        (table(("u0", "i1", float("nan")), by="score"), {}, "NaN"),
        (table(("u0", "i1", 1)).set_column(2, "rank", pa.array(["first"])), {}, "numbers"),
        (table(("u0", "i1", 1)), {"metrics": ["auc"]}, "auc"),
        (table(("u0", "i1", 1)), {"ks": [0]}, "from 1 on"),
        (table(("u0", "i1", 1)), {"ks": []}, "at least one"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    given_: pa.Table, options: dict[str, object], word: str, write_dataset: WriteDataset
) -> None:
    dataset = write_dataset(HISTORIES, TRAINED, TRAINED, n_items=6)
    with pytest.raises(InputError, match=word):
        score_lists(given_, dataset, **options)  # type: ignore[arg-type]


def test_a_long_list_with_many_targets_stands_alone_in_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "BLOCK_CELLS", 100)
    n = 40
    user = np.repeat(np.arange(3, dtype=np.int32), [2, n, 1])
    item = np.concatenate([[0, 1], np.arange(n), [5]]).astype(np.int32)
    targets = ragged([{1}, set(range(0, n, 2)), {5}])
    values, _ = evaluate_lists(user, item, np.arange(len(user)), targets, [Recall(n), MAP(2)])
    np.testing.assert_allclose(values, [[1, 0.5], [1, 1 / 20], [1, 1]])
