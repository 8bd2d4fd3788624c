"""Logs as real shops have them, where they are at hand."""

from __future__ import annotations

import os
import tomllib
from hashlib import md5
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from recsys.ingest.config import IngestConfig
from recsys.ingest.dataset import Dataset
from recsys.ingest.ingest import ingest
from recsys.runtime import Runtime

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("RECSYS_DATA") or ROOT.parent / "shared" / "data")


def dataset_of(name: str, folder: Path) -> tuple[Dataset, pd.DataFrame]:
    """Ingest by the shop's own pipeline file; the dataset and the log as it is."""
    if not (DATA / name / "events.parquet").is_file():
        pytest.skip(f"no {name} log in {DATA}")
    config = tomllib.loads((ROOT / "pipelines" / f"{name}.toml").read_text())["ingest"]
    dataset = ingest(IngestConfig.model_validate(config), folder / "dataset", data=DATA, runtime=Runtime(threads=1))
    return dataset, pd.read_parquet(DATA / name / "events.parquet")


def test_online_retail_adds_up_to_its_541_909_rows(tmp_path: Path) -> None:
    dataset, log = dataset_of("online_retail", tmp_path)
    counts = dataset.counts
    assert counts["rows_in"] == len(log) == 541_909
    assert counts["kept"] + sum(counts["quarantined"].values()) + sum(counts["merged"].values()) == 541_909

    items = pd.read_parquet(DATA / "online_retail" / "items.parquet").set_index("item_id")
    reason = pd.Series(None, index=log.index, dtype=object)
    for name, applies in [
        ("non_merchandise", ~log["item_id"].map(items["is_merch"])),
        ("not_positive_price", ~(log["price"] > 0)),
        ("not_positive_quantity", ~(log["quantity"] > 0)),
        ("dropped_event_type", log["event_type"] == "return"),
        ("missing_user_id", log["user_id"].isna()),
    ]:
        reason[applies] = name
    assert counts["quarantined"] == reason.value_counts().to_dict()
    good = log[reason.isna()]
    key = ["user_id", "item_id", "event_type", "timestamp"]
    assert counts["merged"]["exact_duplicate"] == good.duplicated().sum()
    assert counts["kept"] == len(good.drop_duplicates(key))

    quarantine = pd.read_parquet(dataset.path / "quarantine.parquet")
    assert (quarantine.set_index("row")["reason"] == reason.dropna()).all()
    assert quarantine["row"].is_monotonic_increasing


def test_beauty_s_targets_are_those_of_its_published_split(tmp_path: Path) -> None:
    dataset, log = dataset_of("beauty", tmp_path)
    assert (dataset.n_users, dataset.n_items, dataset.counts["kept"]) == (22_363, 12_101, 198_502)
    users, items = (np.array(table.column(1).to_pylist()) for table in (dataset.users, dataset.items))
    for part in ("valid", "test"):
        cases = dataset.cases(part)
        published = log[log["split"] == part].set_index("user_id")["item_id"]
        assert (published[users[cases.user_idx]].to_numpy() == items[cases.targets.values]).all()
    in_order = log.sort_values(["user_id", "position"])
    assert (items[dataset.sequences.item_idx] == in_order["item_id"].to_numpy()).all()


def test_rees46_keeps_its_own_sessions(tmp_path: Path) -> None:
    dataset, log = dataset_of("rees46", tmp_path)
    assert dataset.counts["rows_in"] == len(log) == 17_434
    # One event was logged under two sessions: it counts to the one whose hash is the least.
    log["number"] = [int(md5(session.encode()).hexdigest()[:15], 16) for session in log["session_id"]]
    events = log.sort_values("number").drop_duplicates(["user_id", "item_id", "event_type", "timestamp"])
    assert dataset.counts["sessions"] == len(events[["user_id", "session_id"]].drop_duplicates())
    assert dataset.counts["events"] == events["event_type"].value_counts().to_dict()
    assert min(dataset.counts[part] for part in ("train", "valid", "test")) > 1000
    category = pq.read_table(dataset.path / "items.parquet")["category"].drop_null().to_pylist()
    assert "electronics > smartphone" in category and not any("." in each for each in category)
