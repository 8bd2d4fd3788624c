"""What a user reads when the input cannot be used: what came, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.errors import InputError
from recsys.ingest.config import IngestConfig
from recsys.ingest.engine import open_duckdb
from recsys.ingest.ingest import ingest
from recsys.runtime import Runtime

EVENTS: dict[str, list[Any]] = {
    "user_id": ["u", "u", "v"],
    "item_id": ["a", "b", "a"],
    "event_type": ["view", "view", "cart"],
    "timestamp": [1_700_000_000, 1_700_000_060, 1_700_000_000],
}
ITEMS: dict[str, list[Any]] = {"item_id": ["a", "b"], "title": ["A", "B"]}


def write(folder: Path, events: dict[str, Any] | None = None, items: dict[str, Any] | None = None) -> Path:
    pq.write_table(pa.table(events or EVENTS), folder / "events.parquet")
    pq.write_table(pa.table(items or ITEMS), folder / "items.parquet")
    return folder


def refused(folder: Path, **config: Any) -> InputError:
    """The error, after checking that it carries a remedy and that nothing was published."""
    with pytest.raises(InputError) as caught:
        ingest(
            IngestConfig.model_validate({"protocol": "leave_one_out"} | config),
            folder / "run" / "dataset",
            data=folder,
            runtime=Runtime(threads=1, progress=False),
        )
    error = caught.value
    assert error.exit_code == 2 and error.came and error.expected and error.do
    assert not (folder / "run" / "dataset").exists()
    return error


def test_a_missing_column_is_named_with_those_that_came_and_the_lines_to_add(tmp_path: Path) -> None:
    events = {
        "UserId": EVENTS["user_id"],
        "item_id": EVENTS["item_id"],
        "kind": EVENTS["event_type"],
        "Timestamp": [1, 2, 3],
    }
    error = refused(write(tmp_path, events))
    assert "has no column 'user_id', 'event_type', 'timestamp'" in error.came
    assert "its columns are UserId, item_id, kind, Timestamp" in error.came
    assert "user_id, item_id, event_type, timestamp" in error.expected
    assert '[ingest.columns]\nuser_id = "UserId"\nevent_type = "…"\ntimestamp = "Timestamp"' in error.do


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"columns": {"user_id": "CustomerID"}}, "'CustomerID' (as user_id)"),
        ({"columns": {"position": "rank"}}, "'rank' (as position)"),
        ({"columns": {"session_id": "visit"}}, "'visit' (as session_id)"),
        ({"item_columns": {"brand": "maker"}}, "'maker' (as brand)"),
        ({"positive": ["quantity"]}, "'quantity', which ingest.positive names"),
        ({"merchandise": "is_merch"}, "'is_merch', which ingest.merchandise names"),
    ],
)
def test_a_column_that_the_config_names_must_be_there(tmp_path: Path, config: dict[str, Any], name: str) -> None:
    assert f"has no column {name}" in refused(write(tmp_path), **config).came


def test_an_empty_log(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"user_id": pa.array([], pa.string()), **{name: pa.array([], pa.int64()) for name in list(EVENTS)[1:]}},
    )
    assert "events.parquet has no rows" in refused(tmp_path).came


def test_an_unknown_event_type_comes_with_its_count_and_the_lines_to_add(tmp_path: Path) -> None:
    error = refused(write(tmp_path, EVENTS | {"event_type": ['say "hi"', "rating", "rating"]}))
    assert error.came.endswith("""event types that the config does not know: 'rating' (2 rows), 'say "hi"' (1 rows)""")
    assert error.expected == "view, cart, purchase"
    assert error.do.endswith('[ingest.event_types]\n"rating" = "keep"\n"say \\"hi\\"" = "keep"')


@pytest.mark.parametrize("name", ["events", "items"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_text("user_id,item_id\n1,2\n"),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-20]),
        lambda file: file.write_bytes(b"\0" * 300 + file.read_bytes()[300:]),
    ],
    ids=["csv", "empty", "cut off", "overwritten"],
)
def test_a_file_that_is_no_parquet(tmp_path: Path, name: str, spoil: Callable[[Path], None]) -> None:
    write(
        tmp_path,
        {key: values * 200 for key, values in EVENTS.items()},
        {key: values * 200 for key, values in ITEMS.items()},
    )
    spoil(tmp_path / f"{name}.parquet")
    error = refused(tmp_path)
    assert f"{name}.parquet cannot be read as Parquet" in error.came and "a whole Parquet file" in error.expected


def test_a_missing_file_and_an_empty_folder_in_its_place(tmp_path: Path) -> None:
    write(tmp_path)
    assert "nowhere.parquet is not there" in refused(tmp_path, items="nowhere.parquet").came
    (tmp_path / "folder").mkdir()
    assert "there is no file in" in refused(tmp_path, events="folder").came


def test_columns_whose_names_differ_in_case_alone(tmp_path: Path) -> None:
    error = refused(write(tmp_path, EVENTS | {"Item_ID": ["a", "b", "a"]}))
    assert "differ in nothing but case: item_id, Item_ID" in error.came


def test_a_catalogue_without_titles(tmp_path: Path) -> None:
    error = refused(write(tmp_path, items={"item_id": ["a", "b"], "name": ["A", "B"]}))
    assert "items.parquet has no column 'title'; its columns are item_id, name" in error.came
    error = refused(write(tmp_path, items={"item_id": ["a", "b"], "title": pa.array([None, " "])}))
    assert "a catalogue without titles: 'title' is empty for all 2 items" in error.came


def test_a_catalogue_without_items(tmp_path: Path) -> None:
    nothing = {"item_id": pa.array([None, ""]), "title": ["A", "B"], "goods": [True, True]}
    assert "has no item to recommend" in refused(write(tmp_path, items=nothing)).came
    only_fees = ITEMS | {"goods": [False, False]}
    assert "has no item to recommend" in refused(write(tmp_path, items=only_fees), merchandise="goods").came


def test_a_log_of_which_nothing_is_left(tmp_path: Path) -> None:
    error = refused(write(tmp_path, EVENTS | {"item_id": ["x", "y", None]}))
    assert "all 3 rows" in error.came and error.came.endswith("unknown_item 2, missing_item_id 1")
    error = refused(write(tmp_path), min_user_events=3)
    assert error.came.endswith("rejected: k_core 3")


def test_more_faulty_rows_than_allowed(tmp_path: Path) -> None:
    write(tmp_path, EVENTS | {"item_id": ["x", "b", "a"]})
    error = refused(tmp_path, max_bad_share=0.3)
    assert "1 of 3 rows" in error.came and "unknown_item 1" in error.came and "30.0%" in error.expected
    # What the config itself drops is no fault.
    write(tmp_path)
    config = IngestConfig(protocol="leave_one_out", max_bad_share=0, event_types={"cart": "drop"})
    assert ingest(config, tmp_path / "run" / "dataset", data=tmp_path).counts["quarantined"] == {
        "dropped_event_type": 1
    }


def test_a_split_that_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    error = refused(write(tmp_path), protocol="temporal", test_days=7, valid_days=7)
    assert "no event to train on" in error.came
    assert "from 2023-11-14T22:13:20+00:00 to 2023-11-14T22:14:20+00:00" in error.came


def test_a_time_column_of_a_type_that_is_no_time(tmp_path: Path) -> None:
    error = refused(write(tmp_path, EVENTS | {"timestamp": [True, False, True]}))
    assert "'timestamp' is of type boolean" in error.came


@pytest.mark.parametrize("name", ["file_row_number", "file_index", "recsys_row", "Recsys_Line", "recsys_file"])
def test_a_log_with_a_column_of_the_engine_s_own_name(tmp_path: Path, name: str) -> None:
    error = refused(write(tmp_path, EVENTS | {name: [1, 2, 3]}))
    assert "events.parquet has a column that cannot be used" in error.came and name in error.came


def test_a_full_disk_is_named_and_so_is_too_little_memory(tmp_path: Path) -> None:
    """The kernel's own error, out of the engine: /dev/full has no room for anything."""
    with (
        pytest.raises(InputError, match=r"the disk is full: .*No space left on device") as caught,
        open_duckdb(tmp_path / "scratch", Runtime(threads=1)) as engine,
    ):
        engine.connection.raw_sql("COPY (SELECT 1) TO '/dev/full'")
    assert caught.value.exit_code == 2 and str(tmp_path) in caught.value.expected
    with (
        pytest.raises(InputError, match="more than memory_limit = '20MB'"),
        open_duckdb(tmp_path / "scratch", Runtime(threads=1, memory_limit="20MB")) as engine,
    ):
        engine.connection.raw_sql("SELECT max(len(l)) FROM (SELECT list(range) AS l FROM range(20000000))").fetchall()
    with (
        pytest.raises(InputError, match=r"the disk is full: .*max_temp_directory_size|the disk is full: .*offload"),
        open_duckdb(tmp_path / "scratch", Runtime(threads=1, memory_limit="20MB")) as engine,
    ):
        engine.connection.raw_sql("SET max_temp_directory_size = '1MB'")
        engine.connection.raw_sql("CREATE TABLE t AS SELECT range, md5(range::text) FROM range(2000000)")


def test_a_fault_of_the_engine_itself_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(duckdb.CatalogException), open_duckdb(tmp_path / "scratch", Runtime(threads=1)) as engine:
        engine.connection.raw_sql("SELECT * FROM nothing_of_that_name")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"train_until": "2026-01-01"}, "given together"),
        ({"train_until": "2026-01-02", "valid_until": "2026-01-01"}, "must be before"),
        ({"event_types": {"x": "buy"}}, "'view', 'cart', 'purchase', 'keep', 'drop' or 'cancel'"),
        ({"columns": {"user": "u"}}, "user"),
    ],
)
def test_configs_that_cannot_be(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IngestConfig.model_validate(config)
