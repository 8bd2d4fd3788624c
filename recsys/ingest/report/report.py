"""The data report: `data_report.html` to read and `data_report.json` for alarms, beside the artifacts of a run.

It compares a dataset with the one of the run before, so it is no part of the dataset, which depends on its input alone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from recsys.artifacts import write_json
from recsys.ingest.dataset import Dataset
from recsys.ingest.report.drift import drift
from recsys.ingest.report.page import data_page

JSON: Final = "data_report.json"
PAGE: Final = "data_report.html"


def write_data_report(dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Bring the report up to date with the dataset.

    Nothing is done if it is; else the report that stands is the run before, and is compared with.

    Args:
        dataset: what to report on.
        folder: where the two files go: the run's folder.

    Returns:
        What stands in the JSON: `dataset` (its fingerprint), `drift` with its `alarms`, and `profile`.
    """
    path = folder / JSON
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict):
        before = {}
    if before.get("dataset") == dataset.fingerprint and (folder / PAGE).exists():
        return before
    # A page that was lost is drawn again; its dataset did not change.
    previous = before.get("previous") if before.get("dataset") == dataset.fingerprint else before.get("profile")
    profile = dataset.profile
    changes = drift(previous, profile)
    report = {"dataset": dataset.fingerprint, "drift": changes, "profile": profile, "previous": previous}
    page = folder / f".{PAGE}.{os.getpid()}.tmp"
    page.write_text(data_page(profile, changes, title=f"Data of {folder.name}"), encoding="utf-8")
    page.replace(folder / PAGE)
    write_json(path, report)
    return report
