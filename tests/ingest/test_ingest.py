"""The whole stage, against an oracle, and what must hold whatever comes."""

from __future__ import annotations

import json
import os
import random
import shutil
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ingest_oracle import DAY, START, Row, expected, found, run, write_shop

from recsys import schema
from recsys.errors import InputError
from recsys.ingest.config import EventColumns, IngestConfig
from recsys.ingest.dataset import PARTS, Dataset
from recsys.ingest.ingest import ingest
from recsys.runtime import Runtime

ITEMS: list[Row] = [
    {"item_id": "apple", "title": "An apple", "is_goods": True},
    {"item_id": "pear", "title": "A pear", "is_goods": None},
    {"item_id": "Birne", "title": None, "is_goods": True},
    {"item_id": "ünder", "title": "Sorts last", "is_goods": True},
    {"item_id": "postage", "title": "Postage", "is_goods": False},
]
HOUR = 3600
FUTURE = START + 30 * 24 * HOUR

# Few values each, so that ties, duplicates and all reasons meet; times lie in two dense days and one long pause.
log_rows = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(["u1", "u1", "u2", "u2", "U3", "é", "", None]),
        "item_id": st.sampled_from(["apple", "apple", "pear", "Birne", "ünder", "postage", "ghost", "", None]),
        "event_type": st.sampled_from(["view", "view", "cart", "purchase", "order", "wish", "ping", "", None]),
        "timestamp": st.one_of(
            st.integers(0, 12).map(lambda step: START + step * 1200),
            st.integers(0, 12).map(lambda step: START + 20 * 24 * HOUR + step * 1200),
            st.sampled_from([START, None, 0, -5, FUTURE + 1]),
        ),
        "quantity": st.sampled_from([1.0, 2.0, 2.0, 0.0, -1.0, None]),
        "session_id": st.sampled_from(["s1", "s2", None, ""]),
        "position": st.sampled_from([0, 1, 2, None]),
    }
)
configs = st.builds(
    IngestConfig,
    event_types=st.just({"order": "purchase", "wish": "keep", "ping": "drop"}),
    as_of=st.sampled_from([None, datetime.fromtimestamp(FUTURE, UTC)]),
    merchandise=st.just("is_goods"),
    positive=st.sampled_from([(), ("quantity",)]),
    columns=st.sampled_from(
        [{}, {"session_id": ""}, {"position": "position"}, {"session_id": "", "position": "position"}]
    ),
    session_gap_minutes=st.sampled_from([20, 30]),
    min_user_events=st.sampled_from([1, 1, 2, 3]),
    min_item_events=st.sampled_from([1, 1, 2]),
    protocol=st.sampled_from(["temporal", "leave_one_out"]),
    test_days=st.sampled_from([0.05, 5]),
    valid_days=st.sampled_from([0.05, 5]),
)


def good_log(n: int = 60, seed: int = 0) -> list[Row]:
    """A log without a fault: 6 users, 3 items, ties, several days."""
    rng = random.Random(seed)
    return [
        {
            "user_id": f"u{rng.randrange(6)}",
            "item_id": rng.choice(["apple", "pear", "Birne", "ünder"]),
            "event_type": rng.choice(schema.EVENT_TYPES),
            "timestamp": START + rng.randrange(12) * 24 * HOUR,
            "note": rng.choice("abc"),
        }
        for _ in range(n)
    ]


LEAVE_ONE_OUT = IngestConfig(protocol="leave_one_out")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    events=st.lists(log_rows, min_size=1, max_size=60),
    config=configs,
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_a_log_becomes_what_a_plain_loop_makes_of_it(
    tmp_path_factory: pytest.TempPathFactory, events: list[Row], config: IngestConfig, seed: int, data: st.DataObject
) -> None:
    events += data.draw(st.lists(st.sampled_from(events), max_size=5))  # exact duplicates
    shop = write_shop(tmp_path_factory.mktemp("shop"), events, ITEMS)
    truth = expected(events, ITEMS, config, seed)
    if truth is None:
        with pytest.raises(InputError, match=r"were rejected|no event to train on"):
            run(shop, config, seed)
        return
    dataset = run(shop, config, seed)
    assert found(dataset) == truth

    counts = dataset.counts
    assert counts["rows_in"] == len(events)
    assert counts["rows_in"] == counts["kept"] + len(truth.quarantine) + sum(counts["merged"].values())
    assert counts["quarantined"] == {
        reason: list(truth.quarantine.values()).count(reason) for reason in set(truth.quarantine.values())
    }
    flat = [event for sequence in truth.sequences for event in sequence]
    assert counts["kept"] == len(flat) == counts["train"] + counts["valid"] + counts["test"]
    assert counts["train"] == sum(train_end for train_end, _ in truth.splits)
    assert counts["users"] == len(truth.users) and counts["items"] == len(truth.items)
    assert counts["sessions"] == sum(len({event[3] for event in sequence}) for sequence in truth.sequences)
    assert list(counts["events"].values()) == [sum(event[1] == code for event in flat) for code in range(4)]
    assert dataset.event_types == ("view", "cart", "purchase", "wish")

    for row in pq.read_table(dataset.path / "quarantine.parquet").to_pylist():
        assert json.loads(row["raw"]) == events[row["row"]]
        assert row["source_file"] == "events.parquet"


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(events=st.lists(log_rows, min_size=5, max_size=60), config=configs, order=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, events: list[Row], config: IngestConfig, order: random.Random
) -> None:
    assume(expected(events, ITEMS, config, 0))
    shuffled = order.sample(events, len(events))
    folder = tmp_path_factory.mktemp("shop")
    one, other = (
        run(write_shop(folder / name, rows, ITEMS), config)
        for name, rows in (("as_is", events), ("shuffled", shuffled))
    )
    for name in ("users", "items", "train", "valid", "test"):
        assert (one.path / f"{name}.parquet").read_bytes() == (other.path / f"{name}.parquet").read_bytes()
    assert one.counts == other.counts
    rejected = [
        sorted((row["raw"], row["reason"]) for row in pq.read_table(each.path / "quarantine.parquet").to_pylist())
        for each in (one, other)
    ]
    assert rejected[0] == rejected[1]


def test_every_file_has_the_contract_s_schema(tmp_path: Path) -> None:
    dataset = run(write_shop(tmp_path, good_log(), ITEMS), LEAVE_ONE_OUT)
    for name in ("users", "items", "train", "valid", "test", "quarantine"):
        contract = schema.SEQUENCES if name in PARTS else getattr(schema, name.upper())
        assert pq.read_schema(dataset.path / f"{name}.parquet").equals(contract), name


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    shop = write_shop(tmp_path, good_log(500), ITEMS)
    one, other = run(shop, LEAVE_ONE_OUT, name="one"), run(shop, LEAVE_ONE_OUT, name="other")
    assert one.path != other.path and one.fingerprint == other.fingerprint
    for name in one.manifest["files"]:
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name


def test_equal_times_are_ordered_by_the_seed_alone(tmp_path: Path) -> None:
    """Not by item, not by row: over many users each of two items comes first in about half of the cases."""
    events = [
        {"user_id": f"u{user:03}", "item_id": item, "event_type": "view", "timestamp": START}
        for user in range(200)
        for item in ("apple", "pear")
    ]
    shop = write_shop(tmp_path, events, ITEMS)
    firsts = {seed: run(shop, LEAVE_ONE_OUT, seed).sequences.item_idx[::2].tolist() for seed in (0, 1)}
    for first in firsts.values():
        assert 70 < sum(item == first[0] for item in first) < 130
    assert 60 < sum(a == b for a, b in zip(firsts[0], firsts[1], strict=True)) < 140
    assert run(shop, LEAVE_ONE_OUT, 0).sequences.item_idx[::2].tolist() == firsts[0]


def test_position_orders_equal_times_and_only_those(tmp_path: Path) -> None:
    rows = [("apple", 0, 5), ("pear", 0, 3), ("Birne", 0, 4), ("ünder", 1, 0)]
    events = [
        {"user_id": "u", "item_id": item, "event_type": "view", "timestamp": START + hour * HOUR, "position": position}
        for item, hour, position in rows
    ]
    dataset = run(
        write_shop(tmp_path, events, ITEMS),
        IngestConfig(protocol="leave_one_out", columns=EventColumns(position="position")),
    )
    items = dataset.items["item_id"].to_pylist()
    assert [items[item] for item in dataset.sequences.item_idx] == ["pear", "Birne", "apple", "ünder"]


def sessions_of(tmp_path: Path, events: list[tuple[int, str | None]], **config: Any) -> list[int]:
    rows = [
        {"user_id": "u", "item_id": "apple", "event_type": "view", "timestamp": START + 60 * minute, "session_id": own}
        for minute, own in events
    ]
    dataset = run(write_shop(tmp_path, rows, ITEMS), IngestConfig(protocol="leave_one_out", **config))
    return list(dataset.sequences.session)


def test_a_pause_longer_than_the_gap_starts_a_session(tmp_path: Path) -> None:
    minutes = [0, 30, 60, 91, 92, 200]
    log: list[tuple[int, str | None]] = [(minute, None) for minute in minutes]
    assert sessions_of(tmp_path, log) == [0, 0, 0, 1, 1, 2]
    assert sessions_of(tmp_path, log, session_gap_minutes=29) == [0, 1, 2, 3, 3, 4]
    assert sessions_of(tmp_path, log, session_gap_minutes=1000) == [0] * 6


def test_the_log_s_own_sessions_stand_whatever_the_pause(tmp_path: Path) -> None:
    log = [(0, "b"), (1, "a"), (2, "b"), (500, "a"), (501, None), (502, None), (600, None)]
    assert sessions_of(tmp_path, log) == [0, 1, 0, 1, 2, 2, 3]
    assert sessions_of(tmp_path, log, columns={"session_id": ""}) == [0, 0, 0, 1, 1, 1, 2]


def test_sessions_of_one_name_belong_to_one_user_each(tmp_path: Path) -> None:
    rows = [
        {"user_id": user, "item_id": "apple", "event_type": "view", "timestamp": START + i, "session_id": "shared"}
        for i, user in enumerate("ab")
    ]
    dataset = run(write_shop(tmp_path, rows, ITEMS), LEAVE_ONE_OUT)
    assert dataset.sequences.session.tolist() == [0, 0] and dataset.counts["sessions"] == 2


def test_the_temporal_split_cuts_all_users_at_the_same_two_moments(tmp_path: Path) -> None:
    shop = write_shop(tmp_path, good_log(300), ITEMS)
    dataset = run(shop, IngestConfig(test_days=2, valid_days=3))
    info, sequences = dataset.manifest["info"], dataset.sequences
    last = int(sequences.timestamp.max())
    assert (info["train_until"], info["valid_until"]) == (last - 5 * DAY, last - 2 * DAY)
    for user in range(dataset.n_users):
        times = sequences.timestamp[sequences.offsets[user] : sequences.offsets[user + 1]]
        train_end, valid_end = dataset.split.train_end[user], dataset.split.valid_end[user]
        assert (times[:train_end] < info["train_until"]).all() and (times[valid_end:] >= info["valid_until"]).all()
        middle = times[train_end:valid_end]
        assert ((middle >= info["train_until"]) & (middle < info["valid_until"])).all()
    by_dates = run(
        shop,
        IngestConfig(
            train_until=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=info["train_until"]),
            valid_until=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=info["valid_until"]),
        ),
        name="by_dates",
    )
    assert found(by_dates) == found(dataset)


def test_leave_one_out_needs_three_events(tmp_path: Path) -> None:
    rows = [
        {"user_id": f"u{n}", "item_id": "apple", "event_type": "view", "timestamp": START + i}
        for n in (1, 2, 3, 4)
        for i in range(n)
    ]
    split = run(write_shop(tmp_path, rows, ITEMS), LEAVE_ONE_OUT).split
    assert split.train_end.tolist() == [1, 2, 1, 2] and split.valid_end.tolist() == [1, 2, 2, 3]


def test_what_comes_after_the_cut_changes_nothing_before_it(tmp_path: Path) -> None:
    """Not through the k-core either, which the later events would have widened."""
    config = IngestConfig(
        min_user_events=4,
        min_item_events=10,
        train_until=datetime.fromtimestamp(START + 8 * 24 * HOUR, UTC),
        valid_until=datetime.fromtimestamp(START + 10 * 24 * HOUR, UTC),
    )
    events = [row for row in good_log(60, seed=5) if row["timestamp"] < START + 10 * 24 * HOUR]
    planted = [
        {
            "user_id": f"u{i % 6}",
            "item_id": "ünder",
            "event_type": "purchase",
            "timestamp": START + 864_000 + i,
            "note": "",
        }
        for i in range(50)
    ]
    before = run(write_shop(tmp_path / "before", events, ITEMS), config)
    after = run(write_shop(tmp_path / "after", events + planted, ITEMS), config)
    assert before.counts["quarantined"]["k_core"] == after.counts["quarantined"]["k_core"] > 0
    assert after.counts["test"] == 50

    def training(dataset: Dataset) -> dict[str, list[tuple[Any, ...]]]:
        ids, train = dataset.users["user_id"].to_pylist(), dataset.train
        return {
            ids[user]: list(
                zip(*(getattr(train, name)[a:b].tolist() for name in ("item_idx", "timestamp", "session")), strict=True)
            )
            for user, (a, b) in enumerate(pairwise(train.offsets))
            if b > a
        }

    assert training(before) == training(after)


def test_nothing_is_done_twice_and_where_a_file_lies_does_not_matter(tmp_path: Path) -> None:
    shop = write_shop(tmp_path / "here", good_log(), ITEMS)
    out, runtime = tmp_path / "run" / "dataset", Runtime(threads=1, progress=False)
    first = ingest(LEAVE_ONE_OUT, out, data=shop, runtime=runtime)
    moved = shutil.copytree(shop, tmp_path / "there")
    absolute = LEAVE_ONE_OUT.model_copy(update={"events": moved / "events.parquet", "items": moved / "items.parquet"})
    assert ingest(LEAVE_ONE_OUT, out, data=moved, runtime=runtime).path == first.path
    assert ingest(absolute, out, runtime=runtime).path == first.path
    assert str(tmp_path) not in (first.path / "manifest.json").read_text()

    assert ingest(LEAVE_ONE_OUT, out, data=shop, runtime=runtime, force=True).path != first.path
    write_shop(shop, good_log(61), ITEMS)
    assert ingest(LEAVE_ONE_OUT, out, data=shop, runtime=runtime).counts["rows_in"] == 61


def test_a_failed_ingest_leaves_the_earlier_dataset_and_no_scratch(tmp_path: Path) -> None:
    shop = write_shop(tmp_path, good_log(), ITEMS)
    before = run(shop, LEAVE_ONE_OUT)
    write_shop(shop, [dict(row, item_id="ghost") for row in good_log()], ITEMS)
    with pytest.raises(InputError, match="all 60 rows"):
        run(shop, LEAVE_ONE_OUT)
    still = Dataset.open(shop / "run" / "dataset")
    assert still.path == before.path and found(still) == found(before)
    write_shop(shop, good_log(59), ITEMS)
    run(shop, LEAVE_ONE_OUT)
    assert not any(name == "scratch" for _, folders, _ in os.walk(shop / "run") for name in folders)
