"""The same expressions on Spark: every file of the dataset is the same, to the byte."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from ingest_oracle import START
from test_ingest import FUTURE, HOUR, ITEMS, good_log
from test_real_logs import DATA, ROOT

from recsys.config import load_config
from recsys.errors import InputError
from recsys.ingest.config import IngestConfig
from recsys.ingest.ingest import ingest
from recsys.ingest.spark import java_layout
from recsys.runtime import Runtime

pyspark = pytest.importorskip("pyspark", reason="the extra `spark` is not installed")
if shutil.which("java") is None:
    pytest.skip("no Java, which Spark runs on", allow_module_level=True)

# Ibis and pyspark call what pandas is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")

# Two worker processes of one core each, as on a cluster.
CLUSTER: dict[str, Any] = {
    "master": "local-cluster[2,1,1024]",
    "options": {
        "spark.executor.memory": "1g",
        "spark.sql.shuffle.partitions": "2",
        # Compiling Java for each of many small queries takes longer than to interpret them.
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    },
}


@pytest.fixture(scope="module", autouse=True)
def one_spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Starting Spark takes longer than the tests: they share a session, ended here."""
    from pyspark.sql import SparkSession

    patch = pytest.MonkeyPatch()
    # Its own temporary files must not go with the first of the runs.
    patch.setitem(CLUSTER["options"], "spark.local.dir", str(tmp_path_factory.mktemp("spark")))
    patch.setenv("SPARK_HOME", str(Path(pyspark.__file__).parent))
    stop = SparkSession.stop
    patch.setattr(SparkSession, "stop", lambda self: None)
    yield
    patch.undo()
    session = SparkSession.getActiveSession()
    if session is not None:
        stop(session)


def assert_same_on_both(config: IngestConfig, data: Path, folder: Path) -> dict[str, Any]:
    """Ingest by DuckDB and by Spark, compare all files, and give the counts."""
    datasets = [
        ingest(
            config.model_copy(update={"engine": engine, "spark": type(config.spark).model_validate(CLUSTER)}),
            folder / engine / "dataset",
            data=data,
            runtime=Runtime(threads=2, progress=False),
        )
        for engine in ("duckdb", "spark")
    ]
    duck, spark = datasets
    assert duck.manifest["files"].keys() == spark.manifest["files"].keys()
    for name in duck.manifest["files"]:
        assert (duck.path / name).read_bytes() == (spark.path / name).read_bytes(), name
    assert duck.counts == spark.counts
    return duck.counts


def test_the_sample_shop(shop: Path, tmp_path: Path) -> None:
    config = IngestConfig(as_of=datetime(2026, 5, 1, tzinfo=UTC), min_user_events=3, min_item_events=2)
    counts = assert_same_on_both(config, shop, tmp_path)
    assert counts["quarantined"]["k_core"] > 0 and counts["merged"]["exact_duplicate"] > 0


def test_every_rule_on_a_messy_log_of_several_kinds_of_files(tmp_path: Path) -> None:
    data = tmp_path / "data"
    rows = [
        row
        | {
            "event_type": "refund" if place % 11 == 3 else row["event_type"],
            "timestamp": START + (place * 7919 % 90) * HOUR,
            "session_id": [None, "s1", "s2"][place % 3],
            "quantity": str(1 + place % 3) if place % 17 else "many",
            "price": "9.95",
        }
        for place, row in enumerate(good_log(400))
    ]
    rows += [rows[0], rows[1] | {"note": "a copy but for this"}, rows[2] | {"user_id": ""}, rows[3] | {"item_id": "x"}]
    rows += [{**rows[4], "user_id": "bot", "timestamp": START + 50 * HOUR + n} for n in range(40)]
    for part, folder in enumerate(("dt=2026-01-01", "dt=2026-01-02")):
        (data / "shop [a=1]" / folder).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows[part:300:2]), data / "shop [a=1]" / folder / "log.parquet")
    text = pa.Table.from_pylist(
        [
            row | {"timestamp": datetime.fromtimestamp(row["timestamp"], UTC).strftime("%d/%m/%Y %H:%M:%S")}
            for row in rows[300:]
        ]
    )
    pacsv.write_csv(text, data / "late.csv")
    with (data / "late.csv").open("a") as file:
        file.write('"u1,never closed\n')
    pq.write_table(pa.Table.from_pylist(ITEMS), data / "items.parquet")
    options = {
        "sources": [
            {"events": "shop [[]a=1]"},
            {"events": "late.csv", "timestamp_format": "%d/%m/%Y %H:%M:%S", "timezone": "Europe/London"},
        ],
        "event_types": {"refund": "cancel"},
        "as_of": datetime.fromtimestamp(FUTURE, UTC),
        "bot_events_per_hour": 20,
        "bounds": {"quantity": {"min": 1, "max": 10}},
        "non_merchandise": ["^Bir"],
        "min_item_events": 2,
        "train_until": datetime.fromtimestamp(START + 60 * HOUR, UTC),
        "valid_until": datetime.fromtimestamp(START + 75 * HOUR, UTC),
    }
    counts = assert_same_on_both(IngestConfig.model_validate(options), data, tmp_path / "at_once")
    reasons = {"bot", "cancellation", "cancelled_purchase", "malformed_line", "non_merchandise", "unknown_item"}
    assert reasons | {"out_of_bounds_quantity", "missing_user_id"} <= counts["quarantined"].keys()
    nightly = IngestConfig.model_validate(options | {"incremental": True})
    assert assert_same_on_both(nightly, data, tmp_path / "nightly") == counts


@pytest.mark.parametrize("name", ["online_retail", "rees46"])
def test_logs_of_real_shops(name: str, tmp_path: Path) -> None:
    if not (DATA / name / "events.parquet").is_file():
        pytest.skip(f"no {name} log in {DATA}")
    config = load_config(ROOT / "pipelines" / f"{name}.toml", env={}).ingest
    counts = assert_same_on_both(config, DATA, tmp_path)
    assert counts["rows_in"] == {"online_retail": 541_909, "rees46": 17_434}[name]


def test_layouts_of_time_in_java_s_letters() -> None:
    assert java_layout("%d/%m/%Y at %H:%M:%S") == "d/M/yyyy 'a''t' H:m:s"
    with pytest.raises(InputError, match="'%j', which Spark cannot read"):
        java_layout("%Y%j")
