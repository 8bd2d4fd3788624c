"""The same rows in whatever files a shop has them, and files that are broken in whatever way."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ingest_oracle import found
from test_ingest import good_log

from recsys.errors import InputError
from recsys.ingest.config import IngestConfig
from recsys.ingest.dataset import Dataset
from recsys.ingest.ingest import ingest
from recsys.runtime import Runtime

Rows = list[dict[str, Any]]
LOG = good_log(80)
CATALOGUE = [{"item_id": item, "title": f"One {item}"} for item in ("apple", "pear", "Birne", "ünder")]


def ingested(folder: Path, **config: Any) -> Dataset:
    return ingest(
        IngestConfig.model_validate({"protocol": "leave_one_out"} | config),
        folder / "run" / "dataset",
        data=folder,
        runtime=Runtime(threads=1, progress=False),
        force=True,
    )


def as_csv(rows: Rows, path: Path) -> None:
    pacsv.write_csv(pa.Table.from_pylist(rows), path)


def as_lines(rows: Rows, path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def as_parquet(rows: Rows, path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def zipped(write: Callable[[Rows, Path], None]) -> Callable[[Rows, Path], None]:
    def both(rows: Rows, path: Path) -> None:
        write(rows, path)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return both


FORMATS: dict[str, Callable[[Rows, Path], None]] = {
    "log.csv": as_csv,
    "log.csv.gz": zipped(as_csv),
    "log.jsonl": as_lines,
    "log.jsonl.gz": zipped(as_lines),
    "log.pq": as_parquet,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_histories(tmp_path: Path, name: str) -> None:
    as_parquet(LOG, tmp_path / "events.parquet")
    as_parquet(CATALOGUE, tmp_path / "items.parquet")
    expected = found(ingested(tmp_path))
    FORMATS[name](LOG, tmp_path / name)
    FORMATS[name](CATALOGUE, tmp_path / f"items-{name}")
    assert found(ingested(tmp_path, events=name, items=f"items-{name}")) == expected


def test_a_warehouse_s_folders_with_files_of_differing_types(tmp_path: Path) -> None:
    """Ids are numbers in one file and text in another; the day is said by the folder alone."""
    as_parquet([{"item_id": str(n), "title": f"Item {n}"} for n in range(3)], tmp_path / "items.parquet")
    days = {
        "dt=2026-11-20": pa.table({"user_id": [7, 8], "item_id": [0, 1], "event_type": ["view", "cart"]}),
        "dt=2026-11-21": pa.table({"event_type": ["view"], "item_id": ["2"], "user_id": ["7"], "extra": [1.5]}),
        "dt=2026-11-22": pa.table({"user_id": [7.0, None], "item_id": ["1", "1"], "event_type": ["purchase", "view"]}),
    }
    for day, table in days.items():
        (tmp_path / "log" / day).mkdir(parents=True)
        pq.write_table(table, tmp_path / "log" / day / "part-0.parquet")
    (tmp_path / "log" / "_SUCCESS").write_text("")
    dataset = ingested(tmp_path, events="log", columns={"timestamp": "dt"})
    assert dataset.users["user_id"].to_pylist() == ["7", "8"]
    assert dataset.history(0).tolist() == [0, 2, 1]
    days_of_7 = [datetime.fromtimestamp(time / 1e6, UTC).day for time in dataset.sequences.timestamp[:3]]
    assert days_of_7 == [20, 21, 22]
    [row] = pq.read_table(dataset.path / "quarantine.parquet").to_pylist()
    assert (row["source_file"], row["row"], row["reason"]) == ("log/dt=2026-11-22/part-0.parquet", 1, "missing_user_id")
    assert json.loads(row["raw"]) == {"user_id": None, "item_id": "1", "event_type": "view", "dt": "2026-11-22"}
    assert dataset.counts["files"] == 3


def test_a_log_in_several_kinds_of_files(tmp_path: Path) -> None:
    as_parquet(CATALOGUE, tmp_path / "items.parquet")
    (tmp_path / "clicks.dat").write_text("u1;1700000000;apple\nu1;1700000100;pear\n")
    as_lines([{"who": "u1", "what": "pear", "at": "2023-11-15T00:00:00Z", "sum": 3}], tmp_path / "orders.jsonl")
    sources = [
        {
            "events": "clicks.dat",
            "event_type": "view",
            "text": {"header": ["user_id", "timestamp", "item_id"], "delimiter": ";"},
        },
        {
            "events": "orders.jsonl",
            "event_type": "order",
            "columns": {"user_id": "who", "item_id": "what", "timestamp": "at", "value": "sum"},
        },
    ]
    dataset = ingested(tmp_path, sources=sources, event_types={"order": "purchase"})
    assert [dataset.event_types[code] for code in dataset.sequences.event_type] == ["view", "view", "purchase"]
    assert sum(dataset.item_statistics("test")["revenue"].to_pylist()) == 3


def test_a_catalogue_made_of_the_log(tmp_path: Path) -> None:
    rows = [
        {"user_id": "u", "item_id": item, "event_type": "view", "timestamp": 1_700_000_000 + n, "kind": kind, "by": by}
        for n, (item, kind, by) in enumerate(
            [("b", "home.lamp", "Lux"), ("b", "home.lamp", "lux"), ("b", "home.sofa", "Lux"), ("a", None, None)]
        )
    ]
    as_csv(rows, tmp_path / "events.csv")
    config = {
        "events": "events.csv",
        "items_from_events": True,
        "category_separator": ".",
        "item_columns": {"category": "kind", "brand": "by"},
    }
    dataset = ingested(tmp_path, **config)
    assert dataset.items.select(["item_id", "title", "category", "brand"]).to_pylist() == [
        {"item_id": "a", "title": "a", "category": None, "brand": None},
        {"item_id": "b", "title": "Lux lamp", "category": "home > lamp", "brand": "Lux"},
    ]
    as_csv([row | {"kind": None, "by": None} for row in rows], tmp_path / "events.csv")
    with pytest.raises(InputError, match="a catalogue without titles"):
        ingested(tmp_path, **config)


# What may stand between good lines; none of it can be taken for a part of a neighbour, as only quotes could join lines.
BAD_CSV = [b"", b"u9", b"u9,apple,view", b"u9,apple,view,1700000000,more", b"\xff\xfa,apple,view,1700000000", b",,,"]
BAD_JSON = [b"", b"{", b"[1]", b"null", b'{"user_id": "u9"', b'"text"', b"\xff\xfa{}", b"{}", b'{"item_id": {"a": 1}}']


NO_SHRINKING = [Phase.explicit, Phase.reuse, Phase.generate]  # each example is a run of the stage


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=NO_SHRINKING)
@given(
    good=st.lists(st.tuples(st.sampled_from(["u1", "u2"]), st.integers(0, 50)), min_size=1, max_size=12, unique=True),
    data=st.data(),
    kind=st.sampled_from(["csv", "jsonl"]),
    ending=st.sampled_from([b"\n", b"\r\n"]),
    cut=st.booleans(),
)
def test_a_broken_file_costs_its_broken_rows_and_no_good_one(
    tmp_path_factory: pytest.TempPathFactory,
    good: list[tuple[str, int]],
    data: st.DataObject,
    kind: str,
    ending: bytes,
    cut: bool,
) -> None:
    folder = tmp_path_factory.mktemp("shop")
    as_parquet(CATALOGUE, folder / "items.parquet")
    lines: list[bytes] = []
    for user, second in good:
        lines += data.draw(st.lists(st.sampled_from(BAD_CSV if kind == "csv" else BAD_JSON), max_size=2))
        row = {"user_id": user, "item_id": "apple", "event_type": "view", "timestamp": 1_700_000_000 + second}
        lines.append((json.dumps(row) if kind == "jsonl" else ",".join(map(str, row.values()))).encode())
    header = [b"user_id,item_id,event_type,timestamp"] if kind == "csv" else []
    content = ending.join(header + lines) + (b"" if cut else ending)
    (folder / f"log.{kind}").write_bytes(content)
    dataset = ingested(folder, events=f"log.{kind}")
    kept = set(zip(dataset.users["user_id"].to_pylist(), dataset.sequences.lengths.tolist(), strict=True))
    assert kept == {(user, sum(each == user for each, _ in good)) for user in {user for user, _ in good}}
    counts = dataset.counts
    assert counts["rows_in"] == counts["kept"] + sum(counts["quarantined"].values()) + sum(counts["merged"].values())
    assert counts["rows_in"] == sum(bool(line) for line in lines)  # an empty line is no row


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=st.binary(max_size=200), name=st.sampled_from(["log.csv", "log.jsonl", "log.parquet", "log.csv.gz"]))
def test_any_bytes_end_in_a_dataset_or_in_a_clear_word(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    folder = tmp_path_factory.mktemp("shop")
    as_parquet(CATALOGUE, folder / "items.parquet")
    (folder / name).write_bytes(content)
    with pytest.raises(InputError):
        ingested(folder, events=name)
