"""Sources of candidates: each says what a patient clerk would say, and nothing that may not be shown gets through."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import schema
from recsys.evidence import Cooccurrence
from recsys.ingest.dataset import Sequences, take
from recsys.retrieval.config import SourcesConfig
from recsys.retrieval.neighbours import Spread, cooccurrence_neighbours, load_neighbours, save_neighbours
from recsys.retrieval.snapshot import DAY, NEVER, Snapshot
from recsys.retrieval.sources import SOURCES, Candidates, Popular, Sources

N_ITEMS = 40
NOW = 100 * DAY


def random_log(rng: np.random.Generator, n_users: int, longest: int) -> Sequences:
    """Random users; times ascend within each, up to day 100."""
    lengths = rng.integers(0, longest + 1, n_users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(offsets[-1])
    times = [np.sort(rng.integers(0, NOW, length)) for length in lengths]
    return Sequences(
        offsets,
        rng.integers(0, N_ITEMS - 5, n).astype(np.int32),  # the last five are new
        rng.integers(0, 3, n).astype(np.int8),
        np.concatenate([*times, np.empty(0, np.int64)]),
        np.zeros(n, np.int32),
    )


def catalogue(rng: np.random.Generator) -> pa.Table:
    columns = {
        schema.ITEM_IDX: range(N_ITEMS),
        schema.ITEM_ID: [f"i{i}" for i in range(N_ITEMS)],
        "title": [f"Title {i}" for i in range(N_ITEMS)],
        "category": [(None, "Hair", "Skin", "Hair > Care")[c] for c in rng.integers(0, 4, N_ITEMS)],
    }
    return pa.table({each.name: columns.get(each.name) or [None] * N_ITEMS for each in schema.ITEMS}, schema.ITEMS)


def rows_of(histories: Sequences) -> list[list[int]]:
    return [list(histories.item_idx[b:e]) for b, e in zip(histories.offsets, histories.offsets[1:], strict=False)]


def ask(seed: int, config: SourcesConfig) -> tuple[Sources, Candidates, Popular, Sequences, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    log, items = random_log(rng, 12, 15), catalogue(rng)
    sources = Sources.fit(log, items, rng.normal(size=(N_ITEMS, 8)).astype(np.float32), config)
    allowed = rng.random(N_ITEMS) < 0.8
    hidden = np.sort(rng.choice(12 * N_ITEMS, 60, replace=False))
    popular = sources.popular(Snapshot.of(log, N_ITEMS, config.windows, now=NOW), allowed)
    students = np.argsort(rng.random((12, N_ITEMS)), axis=1)[:, : config.student]
    may = allowed[students] & ~np.isin(np.arange(12)[:, None] * N_ITEMS + students, hidden)
    found = sources.candidates(log, np.where(may, students, -1), popular, allowed=allowed, hidden=hidden)
    return sources, found, popular, log, allowed, hidden


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), quota=st.sampled_from([0, 1, 4, 40]))
def test_every_source_fills_its_quota_with_its_best(seed: int, quota: int) -> None:
    config = SourcesConfig(
        student=5, cooccurrence=quota, text=quota, popular=quota, category=0, again=quota, windows=(10, 40)
    )
    sources, found, _, log, allowed, hidden = ask(seed, config)
    similarity, text = sources.cooccurrence.toarray(), sources.text.toarray()
    recent = [Counter(log.item_idx[log.timestamp >= NOW - days * DAY].tolist()) for days in config.windows]
    for user, history in enumerate(rows_of(log)):

        def best(worth: dict[int, float], user: int = user) -> list[int]:
            may = [i for i in worth if allowed[i] and user * N_ITEMS + i not in hidden and worth[i] > 0]
            return sorted(may, key=lambda i: (-worth[i], i))[:quota]

        ages = range(len(history) - 1, -1, -1)
        together = sum(
            (0.6**age * similarity[item].astype(float) for age, item in zip(ages, history, strict=True)),
            np.zeros(N_ITEMS),
        )
        alike = sum(
            (0.7**age * text[item].astype(float) for age, item in zip(ages, history, strict=True)), np.zeros(N_ITEMS)
        )
        latest = {item: float(place + 1) for place, item in enumerate(history)}
        new = [i for i in range(N_ITEMS) if not (log.item_idx == i).any()]
        expected = {
            "cooccurrence": best({i: round(together[i], 6) for i in range(N_ITEMS)}),
            "text": best({i: alike[i] for i in new}),
            "again": best(latest),
            "popular": [i for counts in recent for i in best({i: float(n) for i, n in counts.items()})],
        }
        row = found.items[user][found.items[user] >= 0]
        listed = set(row.tolist())
        assert len(row) == len(listed)
        # Sums in another order may turn what is equal but for rounding.
        wanted = set(expected["text"]) | set(expected["again"]) | set(expected["popular"])
        assert wanted <= listed
        worths = sorted((together[i] for i in expected["cooccurrence"]), reverse=True)
        from_pairs = sorted((together[i] for i in listed), reverse=True)[: len(worths)]
        assert np.allclose(worths, from_pairs, rtol=1e-4) or set(expected["cooccurrence"]) <= listed
        for item in row:
            assert allowed[item] and user * N_ITEMS + item not in hidden
        np.testing.assert_allclose(
            found.cooccurrence.at(np.arange(N_ITEMS)[None].repeat(12, 0))[user], together, rtol=1e-4, atol=1e-6
        )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_categories_are_the_users_own_and_the_source_is_where_an_item_stands_highest(seed: int) -> None:
    config = SourcesConfig(student=3, cooccurrence=4, text=2, popular=3, category=6, again=2)
    sources, found, popular, log, _, _ = ask(seed, config)
    for user, history in enumerate(rows_of(log)):
        row = found.items[user] >= 0
        named = [SOURCES[of] for of in found.source[user][row]]
        own = {int(sources.category[item]) for item in history} - {-1}
        for item, name in zip(found.items[user][row], named, strict=True):
            if name == "category":
                assert int(sources.category[item]) in own
                assert item in popular.by_category[sources.category[item]]
            if name == "again":
                assert item in history
            if name == "text":
                assert sources.fresh[item]
        if history and "again" in named:
            first = found.items[user][row][named.index("again")]
            assert first in history


def test_who_else_is_asked_changes_nothing() -> None:
    config = SourcesConfig(student=4, cooccurrence=5, text=3, popular=3, category=3, again=3)
    sources, found, popular, log, allowed, hidden = ask(7, config)
    for user in range(12):
        alone = take(log, log.offsets[user : user + 1], log.lengths[user : user + 1])
        own = hidden[(hidden >= user * N_ITEMS) & (hidden < (user + 1) * N_ITEMS)] - user * N_ITEMS
        rng = np.random.default_rng(7)
        random_log(rng, 12, 15), catalogue(rng), rng.normal(size=(N_ITEMS, 8)), rng.random(N_ITEMS)
        rng.choice(12 * N_ITEMS, 60, replace=False)
        students = np.argsort(rng.random((12, N_ITEMS)), axis=1)[user : user + 1, :4]
        may = allowed[students] & ~np.isin(students, own)
        single = sources.candidates(alone, np.where(may, students, -1), popular, allowed=allowed, hidden=own)
        together = found.items[user] >= 0
        assert np.array_equal(single.items[0][single.items[0] >= 0], found.items[user][together])
        assert np.array_equal(single.source[0][single.items[0] >= 0], found.source[user][together])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), days=st.integers(0, 120))
def test_a_snapshot_knows_what_was_before_and_nothing_after(seed: int, days: int) -> None:
    log = random_log(np.random.default_rng(seed), 10, 20)
    now = days * DAY
    snapshot = Snapshot.of(log, N_ITEMS, (7, 30), now=now)
    past = [(int(i), int(t)) for i, t in zip(log.item_idx, log.timestamp, strict=True) if t < now]
    for item in range(N_ITEMS):
        times = [time for each, time in past if each == item]
        assert snapshot.events[item] == len(times)
        assert snapshot.last[item] == max(times, default=NEVER)
        assert snapshot.first[item] == min(times, default=NEVER)
        for window, length in enumerate((7, 30)):
            assert snapshot.recent[window, item] == sum(time >= now - length * DAY for time in times)


@pytest.mark.parametrize("most", [1, 3, 100])
def test_neighbours_are_each_rows_best_pairs_and_are_read_as_they_were_written(
    most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = random_log(np.random.default_rng(3), 30, 12)
    counts = Cooccurrence.fit(log, N_ITEMS)
    matrix = cooccurrence_neighbours(counts, most)
    dense = np.zeros((N_ITEMS, N_ITEMS), np.float32)
    dense[np.repeat(np.arange(N_ITEMS), np.diff(counts.offsets)), counts.columns] = counts.similarities()
    for item in range(N_ITEMS):
        kept = matrix.toarray()[item]
        assert sorted(kept[kept > 0]) == sorted(np.sort(dense[item][dense[item] > 0])[::-1][:most])
    folder = tmp_path_factory.mktemp("neighbours")
    save_neighbours(matrix, folder, "pairs")
    again = load_neighbours(folder, "pairs")
    assert (again != matrix).nnz == 0
    spread = Spread.of(log, again, decay=0.6, last=20)
    assert np.array_equal(spread.values, Spread.of(log, matrix, decay=0.6, last=20).values)
