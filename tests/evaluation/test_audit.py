"""Each fault is planted, found and counted; sound data show none."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys import schema
from recsys.api import Run
from recsys.errors import InputError
from recsys.evaluation.audit import Finding, audit, exit_code, to_text
from recsys.ingest.config import IngestConfig
from recsys.ingest.dataset import Dataset
from recsys.ingest.ingest import ingest
from recsys.runtime import Runtime
from recsys.soft_labels import SoftLabels
from tests.written import write_sequences

WriteDataset = Callable[..., Dataset]
ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("RECSYS_DATA") or ROOT.parent / "shared" / "data")
CUT = {"train_until": 100, "valid_until": 200}


def found(dataset: Dataset, **more: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in audit(dataset, **more)}


def counts(findings: dict[str, Finding], *names: str) -> list[tuple[int, int]]:
    return [(findings[name].count, findings[name].out_of) for name in names]


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Dataset:
    """A copy of the finished run's dataset, for tests that tamper with it."""
    shutil.copytree(finished.dataset.path, tmp_path / "dataset")
    return Dataset(tmp_path / "dataset", finished.dataset.manifest)


def rewrite(dataset: Dataset, file: str, column: str, values: Any) -> Dataset:
    """Replace one column of a file; the dataset is read anew."""
    table = pq.read_table(dataset.path / file)
    place = table.schema.get_field_index(column)
    table = table.set_column(place, table.schema.field(column), pa.array(values, table.schema.field(column).type))
    pq.write_table(table, dataset.path / file)
    return Dataset(dataset.path, dataset.manifest)


def test_a_finished_run_has_no_leak_and_no_caution(finished: Run) -> None:
    findings = audit(finished.dataset, soft_labels=finished.soft_labels, recommendations=finished.recommendations)
    assert [each.name for each in findings if each.found and each.severity != "fact"] == []
    assert exit_code(findings) == 0
    looked_at = {each.name for each in findings if each.out_of}
    assert looked_at >= {
        *("training_after_cut", "validation_outside_window", "test_before_window", "history_after_target"),
        *("item_statistics_train", "item_statistics_valid", "user_statistics_train", "user_statistics_valid"),
        *("soft_labels_beyond_training", "copies_across_cut", "cold_targets", "recommended_cold"),
    }
    assert len({each.name for each in findings}) == len(findings)


def test_events_on_the_wrong_side_of_a_cut_are_counted(write_dataset: WriteDataset) -> None:
    times = [[10, 100, 130, 250], [20, 90, 99, 199, 300], [120, 150, 199, 200]]
    dataset = write_dataset(
        [[0, 1, 2, 3], [0, 1, 2, 3, 4], [5, 4, 3, 2]],
        [2, 2, 0],
        [3, 3, 1],
        n_items=6,
        protocol="temporal",
        timestamps=times,
        info=CUT,
    )
    findings = found(dataset)
    # User 0 trains at 100; user 1 validates at 99 and tests at 199; user 2 tests at 150 and 199.
    assert counts(findings, "training_after_cut", "validation_outside_window", "test_before_window") == [
        (1, 4),
        (1, 3),
        (3, 6),
    ]
    assert findings["training_after_cut"].examples == (
        {"user": "u0", "item": "i1", "part": "train", "time": "1970-01-01T00:00:00.000100Z"},
    )
    assert all(findings[name].is_leak for name in ("training_after_cut", "test_before_window"))
    assert exit_code(findings.values()) == 1


def test_without_cuts_in_the_manifest_nothing_is_claimed(write_dataset: WriteDataset) -> None:
    findings = found(write_dataset([[0, 1, 2]], [1], [2], n_items=3, protocol="temporal"))
    assert not findings["training_after_cut"].found and findings["training_after_cut"].out_of == 0


def test_a_history_later_than_its_target_is_a_leak(write_dataset: WriteDataset) -> None:
    findings = found(
        write_dataset([[0, 1, 2, 3], [0, 1, 2]], [2, 1], [3, 2], n_items=4, timestamps=[[1, 9, 5, 7], [1, 2, 3]])
    )
    assert counts(findings, "history_after_target", "out_of_order") == [(1, 5), (1, 7)]
    assert findings["history_after_target"].examples[0]["item"] == "i1"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_counts_equal_those_of_plain_loops(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    n_users, n_items = data.draw(st.integers(1, 5)), 4
    rows = st.lists(
        st.tuples(st.integers(0, n_items - 1), st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=8
    )
    logs = [data.draw(rows) for _ in range(n_users)]
    ends = [sorted(data.draw(st.tuples(*[st.integers(0, len(log))] * 2))) for log in logs]
    dataset = hand_made(tmp_path_factory.mktemp("audit"), logs, ends, n_items)

    def part(user: int, place: int) -> int:
        return sum(place >= end for end in ends[user])

    events = [(u, part(u, i), *event, i) for u, log in enumerate(logs) for i, event in enumerate(log)]
    held_out = [event for event in events if event[1]]
    test = [event for event in events if event[1] == 2]
    trained = {event[2] for event in events if event[1] == 0}
    targets = {event[:3] for event in held_out}

    def earlier(event: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [other for other in events if other[0] == event[0] and other[1] < event[1]]

    def same_moment(event: tuple[int, ...], *, exact: bool) -> bool:
        return any(o[2:4] == event[2:4] and (o[4] == event[4] or not exact) for o in earlier(event))

    expected = {
        "history_after_target": sum(
            any(o[0] == e[0] and o[1] > e[1] and o[3] < e[3] for o in events) for e in events if e[1] < 2
        ),
        "other_users_futures": sum(any(o[0] != e[0] and o[1] == 0 and o[3] > e[3] for o in events) for e in test),
        "copies_across_cut": sum(same_moment(e, exact=True) for e in held_out),
        "same_moment_across_cut": sum(same_moment(e, exact=False) and not same_moment(e, exact=True) for e in held_out),
        "repeated_targets": sum(any(o[0] == u and o[1] < p and o[2] == item for o in events) for u, p, item in targets),
        "cold_targets": sum(item not in trained for _, _, item in targets),
        "tied_events": sum(
            any(o[0] == e[0] and abs(o[5] - e[5]) == 1 and o[3] == e[3] for o in events) for e in events
        ),
        "tied_targets": sum(bool(earlier(e)) and max(o[3] for o in earlier(e)) == e[3] for e in held_out),
    }
    findings = found(dataset)
    assert {name: findings[name].count for name in expected} == expected
    assert findings["cold_targets"].out_of == len(targets)


def hand_made(
    folder: Path, logs: Sequence[Sequence[tuple[int, int, int]]], ends: Sequence[Sequence[int]], n_items: int
) -> Dataset:
    """A dataset of rows (item, time, event type) as they come."""
    items, times, types = ([[row[field] for row in log] for log in logs] for field in range(3))
    write_sequences(folder, items, times, [end[0] for end in ends], [end[1] for end in ends], types)
    users = pa.table({"user_idx": range(len(logs)), "user_id": [f"u{u}" for u in range(len(logs))]}, schema.USERS)
    columns = {field.name: pa.nulls(n_items, field.type) for field in schema.ITEMS}
    names = [f"i{item}" for item in range(n_items)]
    columns |= {"item_idx": pa.array(range(n_items), pa.int32()), "item_id": pa.array(names), "title": pa.array(names)}
    pq.write_table(users, folder / "users.parquet")
    pq.write_table(pa.table(columns, schema.ITEMS), folder / "items.parquet")
    info = {"protocol": "leave_one_out", "event_types": list(schema.EVENT_TYPES)}
    return Dataset(folder, {"fingerprint": "", "config": {}, "counts": {}, "info": info})


def test_other_users_futures_are_a_fact_of_leave_one_out_and_a_leak_in_time(write_dataset: WriteDataset) -> None:
    for protocol, severity in (("leave_one_out", "fact"), ("temporal", "leak")):
        findings = found(
            write_dataset(
                [[0, 1, 2], [0, 1, 2]],
                [1, 1],
                [2, 2],
                n_items=3,
                protocol=protocol,
                timestamps=[[1, 2, 3], [9, 10, 11]],
            )
        )
        assert counts(findings, "other_users_futures") == [(1, 2)]
        assert findings["other_users_futures"].severity == severity


@pytest.mark.parametrize(
    ("table", "column"),
    [
        *(("item", name) for name in ("n_view", "popularity", "popularity_7d", "last_seen", "conversion")),
        *(("user", name) for name in ("n_purchase", "n_sessions", "last_seen", "mean_gap")),
    ],
)
@pytest.mark.parametrize("part", ["train", "valid"])
def test_a_statistic_that_knows_more_is_a_leak(copied: Dataset, table: str, column: str, part: str) -> None:
    name = f"{table}_statistics_{part}"
    values = pq.read_table(copied.path / f"{name}.parquet")[column].to_pylist()
    row = next(place for place, value in enumerate(values) if value is not None)
    tampered = rewrite(
        copied, f"{name}.parquet", column, [v + (i == row) if v is not None else v for i, v in enumerate(values)]
    )
    finding = found(tampered)[name]
    assert finding.is_leak and finding.count == 1
    assert finding.examples[0]["columns"] == column


def test_the_statistics_of_a_later_part_are_a_leak_and_old_ones_a_caution(copied: Dataset) -> None:
    for kind in ("item", "user"):
        later = (copied.path / f"{kind}_statistics_valid.parquet").read_bytes()
        (copied.path / f"{kind}_statistics_train.parquet").write_bytes(later)
    findings = found(Dataset(copied.path, copied.manifest))
    assert findings["item_statistics_train"].is_leak and findings["user_statistics_train"].is_leak
    assert not findings["item_statistics_valid"].found
    name = "item_statistics_valid"
    views = pq.read_table(copied.path / f"{name}.parquet")["n_view"].to_pylist()
    fewer = found(rewrite(copied, f"{name}.parquet", "n_view", [max(n - 1, 0) for n in views]))[name]
    assert fewer.severity == "caution" and fewer.count == sum(n > 0 for n in views)


def test_training_events_moved_behind_the_cut_are_found_in_an_ingested_shop(copied: Dataset) -> None:
    times = pq.read_table(copied.path / "train.parquet")["timestamp"].to_pylist()
    until = copied.manifest["info"]["train_until"]
    moved = [[*row[:-1], until] if place < 7 else row for place, row in enumerate(times)]
    findings = found(rewrite(copied, "train.parquet", "timestamp", moved))
    assert findings["training_after_cut"].count == 7 and len(findings["training_after_cut"].examples) == 5
    assert findings["item_statistics_train"].found  # they were computed from the log as it was


def test_a_catalogue_from_events_knows_items_that_came_later(write_dataset: WriteDataset) -> None:
    log = [[0, 1, 2], [0, 1, 3]], [2, 2], [2, 2]
    derived = found(write_dataset(*log, n_items=5, counts={"catalogue": {"from_events": 5}}))
    assert counts(derived, "attributes_from_later") == [(2, 5)]
    assert derived["attributes_from_later"].severity == "caution"
    from_file = found(write_dataset(*log, n_items=5, counts={"catalogue": {"rows_in": 5}}))
    assert counts(from_file, "attributes_from_later") == [(0, 0)]


def test_events_before_their_item_was_there_are_counted(copied: Dataset) -> None:
    sequences = copied.sequences
    item = int(np.bincount(sequences.item_idx).argmax())
    times = sequences.timestamp[sequences.item_idx == item]
    later: list[int | None] = [None] * copied.n_items
    later[item] = int(times.max())
    findings = found(rewrite(copied, "items.parquet", "available_from", later))
    assert counts(findings, "before_available") == [(int((times < times.max()).sum()), len(times))]


def test_recommendations_of_what_is_not_there_yet_are_counted(copied: Dataset, finished: Run) -> None:
    table = finished.recommendations.table
    first = table["item_id"][0].as_py()
    moment = table["generated_at"][0].as_py()
    ids = copied.items["item_id"].to_pylist()
    late = [moment.replace(year=2030) if name == first else None for name in ids]
    findings = found(rewrite(copied, "items.parquet", "available_from", late), recommendations=finished.recommendations)
    assert counts(findings, "recommended_unavailable") == [(table["item_id"].to_pylist().count(first), table.num_rows)]
    train = copied.train.item_idx
    unknown = [name not in {ids[item] for item in np.unique(train)} for name in table["item_id"].to_pylist()]
    assert findings["recommended_cold"].count == sum(unknown)


def labels(folder: Path, user: list[int], position: list[int], candidate: list[list[int]]) -> SoftLabels:
    folder.mkdir()
    logits = [[0.0] * len(row) for row in candidate]
    columns = {"user_idx": user, "position": position, "candidate": candidate, "teacher_logit": logits}
    pq.write_table(pa.table(columns, schema.SOFT_LABELS), folder / "soft_labels.parquet")
    return SoftLabels(folder, {})


def test_soft_labels_after_training_are_a_leak(write_dataset: WriteDataset, tmp_path: Path) -> None:
    dataset = write_dataset([[0, 1, 2, 3], [3, 2, 1, 0]], [2, 2], [3, 3], n_items=5)
    at = labels(tmp_path / "at", [0, 0, 1], [1, 2, 2], [[2], [4, 3], [1, 4]])
    findings = found(dataset, soft_labels=at)
    assert counts(findings, "soft_labels_beyond_training", "soft_labels_with_target") == [(0, 3), (1, 2)]
    assert findings["soft_labels_with_target"].severity == "fact"
    beyond = labels(tmp_path / "beyond", [0, 1, 1], [3, 2, 4], [[4], [4, 1], [2]])
    findings = found(dataset, soft_labels=beyond)
    assert counts(findings, "soft_labels_beyond_training", "soft_labels_with_target") == [(2, 3), (1, 1)]
    assert findings["soft_labels_beyond_training"].is_leak
    assert findings["soft_labels_with_target"].severity == "caution"
    with pytest.raises(InputError, match="user_idx"):
        audit(dataset, soft_labels=labels(tmp_path / "other", [2], [1], [[0]]))


def test_copied_users_are_found_whatever_the_order_inside_ties(write_dataset: WriteDataset) -> None:
    one, times = [0, 1, 2, 3, 4], [1, 2, 2, 3, 4]
    users = [one, [0, 2, 1, 3, 4], [5, 1, 2, 3, 4], one, one[:4]]
    n = len(users)
    dataset = write_dataset(
        users,
        [3, 3, 3, 3, 2],
        [4, 4, 4, 4, 3],
        n_items=6,
        timestamps=[times, times, times, [time + 50 for time in times], times[:4]],
    )
    findings = found(dataset)
    assert counts(findings, "copied_users") == [(2, n - 1)]  # the last is too short to tell
    assert findings["copied_users"].examples == ({"user": "u0", "other user": "u1", "events": 5},)
    # User 3 has the items of user 0 at other times; user 0 was counted above.
    assert findings["same_item_sequences"].count == 1
    assert findings["same_item_sequences"].examples == ({"user": "u0", "other user": "u3", "events": 5},)


@pytest.mark.parametrize(("order", "suspicious"), [("ascending", True), ("descending", True), ("random", False)])
def test_an_order_inside_ties_by_item_is_told_from_chance(
    write_dataset: WriteDataset, order: str, suspicious: bool
) -> None:
    rng = np.random.default_rng(5)
    rows = [rng.choice(50, size=4, replace=False) for _ in range(300)]
    if order != "random":
        rows = [np.sort(row)[:: 1 if order == "ascending" else -1] for row in rows]
    findings = found(
        write_dataset([row.tolist() for row in rows], [2] * 300, [3] * 300, n_items=50, timestamps=[[7] * 4] * 300)
    )
    finding = findings["ties_follow_item_ids"]
    assert finding.found is suspicious and finding.out_of == 900
    assert finding.count == sum(int((np.diff(row) > 0).sum()) for row in rows)
    assert counts(findings, "tied_events", "tied_targets") == [(1200, 1200), (600, 600)]


def test_the_text_names_what_was_found_first_and_leaves_nothing_out(write_dataset: WriteDataset) -> None:
    findings = audit(write_dataset([[0, 1, 2, 3]], [2], [3], n_items=4, timestamps=[[1, 9, 5, 7]]))
    text = to_text(findings)
    assert text.index("LEAK") < text.index("FACT") < text.index("Nothing found") < text.index("Nothing to look at")
    assert all(each.title in " ".join(text.split()) for each in findings)
    assert "e.g. user u0, item i1, part train" in text
    assert text.startswith("Leakage audit: 1 leak, ")


def test_an_empty_part_is_nothing_to_look_at(write_dataset: WriteDataset) -> None:
    findings = audit(write_dataset([[0, 1], [1]], [2, 1], [2, 1], n_items=3))
    assert not any(each.found for each in findings)
    assert to_text(findings)


def test_beauty_s_days_hide_the_order_of_its_reviews(tmp_path: Path) -> None:
    if not (DATA / "beauty" / "events.parquet").is_file():
        pytest.skip(f"no beauty log in {DATA}")
    config = tomllib.loads((ROOT / "pipelines" / "beauty.toml").read_text())["ingest"]
    dataset = ingest(IngestConfig.model_validate(config), tmp_path / "dataset", data=DATA, runtime=Runtime(threads=1))
    findings = found(dataset)
    log = pq.read_table(DATA / "beauty" / "events.parquet").to_pandas().sort_values(["user_id", "position"])
    by_day = log.groupby(["user_id", "timestamp"])["item_id"].transform("size")
    assert findings["tied_events"].count == (by_day > 1).sum() == 114_204
    same = (log["user_id"] == log["user_id"].shift()) & (log["timestamp"] == log["timestamp"].shift())
    assert findings["tied_targets"].count == (same & log["split"].isin(["valid", "test"])).sum() == 20_381
    # The published order inside a day is that of the item ids, in all 77,402 cases.
    ordered = findings["ties_follow_item_ids"]
    assert ordered.found and ordered.count == ordered.out_of == same.sum() == 77_402
    assert exit_code(findings.values()) == 0
