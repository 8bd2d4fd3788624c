"""Scoring what has changed: the rows that scoring everything gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.api import Run
from recsys.config import PipelineConfig
from recsys.runtime import Runtime
from recsys.teacher.rescore import save_taught, score_changes
from recsys.teacher.score import score
from tests.soft_label_rows import rows_of

RUNTIME = Runtime(seed=1, threads=1, precision="fp32", progress=False)


def test_scoring_what_changed_says_what_scoring_everything_says(
    finished: Run, tiny: PipelineConfig, tmp_path: Path
) -> None:
    """On the dataset that the teacher was taught on nothing has changed but that half of the rows are missing."""
    dataset, teacher = finished.dataset, finished.teacher
    everybody = tiny.score.model_copy(update={"max_rows": dataset.n_users})
    whole = score(dataset, teacher, everybody, tmp_path / "whole", runtime=RUNTIME)
    half = tiny.score.model_copy(update={"max_rows": whole.counts["rows"] // 2})
    earlier = score(dataset, teacher, half, tmp_path / "half", runtime=RUNTIME)
    save_taught(dataset, tmp_path / "taught.parquet")
    labels = score_changes(
        dataset, teacher, tmp_path / "taught.parquet", earlier, everybody, tmp_path / "labels", runtime=RUNTIME
    )
    assert labels.counts["scored"] == whole.counts["rows"] - earlier.counts["rows"] > 0
    expected, found = rows_of(whole, dataset), rows_of(labels, dataset)
    assert found.keys() == expected.keys()
    for key, logits in expected.items():
        assert found[key] == pytest.approx(logits, abs=1e-3)


def test_new_rows_go_first_where_there_are_more_than_may_be_kept(
    finished: Run, tiny: PipelineConfig, tmp_path: Path
) -> None:
    dataset, teacher = finished.dataset, finished.teacher
    save_taught(dataset, tmp_path / "taught.parquet")
    few = tiny.score.model_copy(update={"max_rows": 20})
    earlier = score(dataset, teacher, few, tmp_path / "few", runtime=RUNTIME)
    labels = score_changes(dataset, teacher, tmp_path / "taught.parquet", earlier, few, tmp_path / "l", runtime=RUNTIME)
    assert (labels.counts["rows"], labels.counts["scored"]) == (20, 20)
    assert not rows_of(labels, dataset).keys() & rows_of(earlier, dataset).keys()
