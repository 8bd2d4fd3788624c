"""A nightly run reads only what is new, and its dataset is that of a full run, to the byte."""

from __future__ import annotations

import os
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingest_oracle import Row
from test_ingest import FUTURE, ITEMS, configs, good_log, log_rows

from recsys.errors import InputError
from recsys.ingest import staging
from recsys.ingest.config import IngestConfig
from recsys.ingest.dataset import Dataset
from recsys.ingest.ingest import ingest
from recsys.runtime import Runtime

TYPES = {"timestamp": pa.int64(), "quantity": pa.float64(), "position": pa.int64(), "is_goods": pa.bool_()}
RUNTIME = Runtime(threads=1, progress=False)


def write(path: Path, rows: list[Row]) -> None:
    columns = sorted({key for row in rows for key in row})
    table = pa.table({key: pa.array([row[key] for row in rows], TYPES.get(key, pa.string())) for key in columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def files_of(dataset: Dataset) -> dict[str, bytes]:
    return {name: (dataset.path / name).read_bytes() for name in dataset.manifest["files"]}


def refused_or_files(config: IngestConfig, out: Path, data: Path) -> dict[str, bytes] | str:
    try:
        return files_of(ingest(config, out, data=data, runtime=RUNTIME))
    except InputError as error:
        return error.came


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    events=st.lists(log_rows, min_size=3, max_size=50),
    config=configs,
    nights=st.integers(1, 4),
    cut=st.randoms(use_true_random=False),
)
def test_any_cutting_into_nights_gives_the_full_rebuild(
    tmp_path_factory: pytest.TempPathFactory,
    events: list[Row],
    config: IngestConfig,
    nights: int,
    cut: random.Random,
) -> None:
    """Rows fall into nights at random, so most of them come late; a file of a night before may grow, shrink or go."""
    folder = tmp_path_factory.mktemp("nights")
    config = config.model_copy(update={"events": Path("log"), "as_of": datetime.fromtimestamp(FUTURE, UTC)})
    nightly = config.model_copy(update={"incremental": True})
    rows_of: dict[str, list[Row]] = {}
    for night in range(nights):
        for row in events:
            if cut.randrange(nights) == night:
                rows_of.setdefault(f"dt=2026-01-{night + 1:02}/part-{cut.randrange(2)}.parquet", []).append(row)
        if rows_of and cut.random() < 0.3:
            rows_of[cut.choice(sorted(rows_of))].append(cut.choice(events))
        if len(rows_of) > 1 and cut.random() < 0.2:
            gone = cut.choice(sorted(rows_of))
            del rows_of[gone]
            (folder / "log" / gone).unlink(missing_ok=True)
        # The catalogue knows of an item only after a while: rows of before come back from the quarantine.
        write(folder / "items.parquet", ITEMS if night == nights - 1 else ITEMS[:-2])
        for name, rows in rows_of.items():
            write(folder / "log" / name, rows)
        if rows_of:
            refused_or_files(nightly, folder / "nightly" / "dataset", folder)
    if rows_of:
        every_night = refused_or_files(nightly, folder / "nightly" / "dataset", folder)
        at_once = refused_or_files(config, folder / "full" / "dataset", folder)
        assert every_night == at_once


def test_only_new_and_changed_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    opened = staging.open_file
    monkeypatch.setattr(staging, "open_file", lambda *args: read.append(args[1].name) or opened(*args))
    config = IngestConfig(events=Path("log"), protocol="leave_one_out", incremental=True)
    write(tmp_path / "items.parquet", ITEMS)

    def night(**files: int) -> list[str]:
        for name, seed in files.items():
            write(tmp_path / "log" / f"{name}.parquet", good_log(seed=seed))
        read.clear()
        ingest(config, tmp_path / "run" / "dataset", data=tmp_path, runtime=RUNTIME)
        return [Path(name).name for name in read]

    assert night(a=1, b=2) == ["a.parquet", "b.parquet"]
    assert night() == []
    assert night(c=3) == ["c.parquet"]
    assert night(a=4, d=5) == ["a.parquet", "d.parquet"]
    assert len(list((tmp_path / "run" / "staged" / "dataset").glob("*/look.json"))) == 4  # what is gone is forgotten


def test_an_old_file_is_not_even_opened(tmp_path: Path) -> None:
    """Its content is replaced by nonsense of the same size and time: nobody notices, unless it is read."""
    config = IngestConfig(events=Path("log"), protocol="leave_one_out", incremental=True)
    write(tmp_path / "items.parquet", ITEMS)
    old = tmp_path / "log" / "old.parquet"
    bad: Any = {"item_id": "ghost"}
    write(old, [*good_log(seed=1), good_log(1)[0] | bad])
    ingest(config, tmp_path / "run" / "dataset", data=tmp_path, runtime=RUNTIME)
    write(tmp_path / "log" / "new.parquet", good_log(seed=2))
    full = ingest(
        config.model_copy(update={"incremental": False}), tmp_path / "full" / "dataset", data=tmp_path, runtime=RUNTIME
    )
    status = old.stat()
    old.write_bytes(b"x" * status.st_size)
    os.utime(old, ns=(status.st_atime_ns, status.st_mtime_ns))
    nightly = ingest(config, tmp_path / "run" / "dataset", data=tmp_path, runtime=RUNTIME)
    assert files_of(nightly) == files_of(full)
    assert nightly.counts["rows_in"] == 121 and nightly.counts["quarantined"] == {"unknown_item": 1}


def test_a_config_that_reads_files_differently_reads_them_again(tmp_path: Path) -> None:
    config = IngestConfig(events=Path("log"), protocol="leave_one_out", incremental=True)
    write(tmp_path / "items.parquet", ITEMS)
    write(tmp_path / "log" / "a.parquet", good_log())
    out = tmp_path / "run" / "dataset"
    before = ingest(config, out, data=tmp_path, runtime=RUNTIME)
    stricter = config.model_copy(update={"non_merchandise": ("^app",)})
    after = ingest(stricter, out, data=tmp_path, runtime=RUNTIME)
    assert before.counts["quarantined"] == {} and after.counts["quarantined"]["non_merchandise"] > 0
