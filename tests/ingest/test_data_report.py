"""The data report stands beside the run, compares with the run before, and mends itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ingest_oracle import run as ingested
from ingest_oracle import write_shop
from test_ingest import ITEMS, LEAVE_ONE_OUT, good_log

from recsys.ingest.config import IngestConfig
from recsys.ingest.dataset import Dataset
from recsys.ingest.report import report as module
from recsys.ingest.report.report import write_data_report


def run(shop: Path, config: IngestConfig) -> Dataset:
    """Ingest, and report on it."""
    dataset = ingested(shop, config)
    write_data_report(dataset, shop / "run")
    return dataset


def test_it_compares_with_the_run_before_and_only_once(tmp_path: Path) -> None:
    folder = tmp_path / "shop" / "run"
    first = run(write_shop(tmp_path / "shop", good_log(200), ITEMS), LEAVE_ONE_OUT)
    report = json.loads((folder / "data_report.json").read_text())
    assert report["dataset"] == first.fingerprint and report["profile"] == first.profile
    assert report["drift"]["previous"] is False and report["previous"] is None

    second = run(write_shop(tmp_path / "shop", good_log(400), ITEMS), LEAVE_ONE_OUT)
    report = json.loads((folder / "data_report.json").read_text())
    assert report["dataset"] == second.fingerprint and report["previous"] == first.profile
    assert report["drift"]["previous"] is True
    assert {"events"} <= {alarm["name"].split(".")[-1] for alarm in report["drift"]["alarms"]}
    before = (folder / "data_report.json").stat().st_mtime_ns
    assert write_data_report(second, folder) == report
    assert (folder / "data_report.json").stat().st_mtime_ns == before


def test_a_lost_page_is_drawn_again_from_the_same_comparison(tmp_path: Path) -> None:
    folder = tmp_path / "shop" / "run"
    run(write_shop(tmp_path / "shop", good_log(200), ITEMS), LEAVE_ONE_OUT)
    dataset = run(write_shop(tmp_path / "shop", good_log(400), ITEMS), LEAVE_ONE_OUT)
    page, report = ((folder / name).read_bytes() for name in ("data_report.html", "data_report.json"))
    (folder / "data_report.html").unlink()
    write_data_report(dataset, folder)
    assert (folder / "data_report.html").read_bytes() == page
    assert (folder / "data_report.json").read_bytes() == report
    (folder / "data_report.json").write_text("{ this is no JSON")
    assert write_data_report(dataset, folder)["drift"]["previous"] is False


def test_a_kill_between_dataset_and_report_loses_no_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shop" / "run"
    first = run(write_shop(tmp_path / "shop", good_log(200), ITEMS), LEAVE_ONE_OUT)
    with monkeypatch.context() as killed:
        killed.setattr(module, "data_page", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(write_shop(tmp_path / "shop", good_log(400), ITEMS), LEAVE_ONE_OUT)
    second = run(write_shop(tmp_path / "shop", good_log(400), ITEMS), LEAVE_ONE_OUT)
    report = json.loads((folder / "data_report.json").read_text())
    assert report["dataset"] == second.fingerprint and report["previous"] == first.profile
