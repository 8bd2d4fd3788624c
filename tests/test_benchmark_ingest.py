"""The ingest benchmark compares like with like: its peers write what recsys writes."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
N_EVENTS = 20_000


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as a module."""
    pytest.importorskip("polars")
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("ingest")


def test_all_engines_write_the_same_rows_and_counts(benchmark: ModuleType, tmp_path: Path) -> None:
    benchmark.one("generate", tmp_path, N_EVENTS)
    counts: list[dict[str, Any]] = [benchmark.one(engine, tmp_path, N_EVENTS)["counts"] for engine in benchmark.ENGINES]
    assert all(each == counts[0] for each in counts)
    assert benchmark.one("compare", tmp_path, N_EVENTS) == {"differences": []}
    # Each fault and each kind of copy is there to be handled.
    assert len(counts[0]["quarantined"]) == 7
    assert min(counts[0]["merged"].values()) > 0


def test_a_repeated_run_does_all_of_the_work_again(benchmark: ModuleType, tmp_path: Path) -> None:
    benchmark.one("generate", tmp_path, N_EVENTS)
    for engine in benchmark.ENGINES:
        written = []
        for _ in range(2):
            benchmark.one(engine, tmp_path, N_EVENTS)
            written.append((benchmark.output(tmp_path, engine) / "train.parquet").stat().st_mtime_ns)
        assert written[0] < written[1], engine


def test_a_difference_is_found(benchmark: ModuleType, tmp_path: Path) -> None:
    benchmark.one("generate", tmp_path, N_EVENTS)
    benchmark.one("polars", tmp_path, N_EVENTS)
    one, other = tmp_path / "by_polars", tmp_path / "other"
    shutil.copytree(one, other)
    differences = import_module("ingest_peers.compare").differences
    assert list(differences(one, other)) == []

    users = pq.read_table(one / "users.parquet")
    pq.write_table(users.take([1, 0, *range(2, len(users))]), other / "users.parquet")
    quarantine = pq.read_table(one / "quarantine.parquet")
    raw = quarantine["raw"].to_pylist()
    spaced = [json.dumps(json.loads(text), indent=1) for text in raw]  # the same content
    spaced[5] = json.dumps(json.loads(raw[5]) | {"user_id": "somebody else"})
    pq.write_table(quarantine.set_column(0, "raw", pa.array(spaced)), other / "quarantine.parquet")
    pq.write_table(pq.read_table(one / "test.parquet").slice(1), other / "test.parquet")
    found = [line.split()[0] for line in differences(one, other)]
    assert found == ["users.user_idx:", "users.user_id:", "test:", "quarantine.raw:"]


def test_a_log_is_the_same_each_time(benchmark: ModuleType, tmp_path: Path) -> None:
    for name in ("one", "other"):
        benchmark.one("generate", tmp_path / name, N_EVENTS)
    for file in ("events.parquet", "items.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
