"""Spark's TorchDistributor trains what one process trains."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from recsys.api import Run
from recsys.config import PipelineConfig
from recsys.errors import MissingExtraError
from recsys.runtime import Runtime
from recsys.student.config import DistillConfig
from recsys.student.distill import distill

RUNTIME = Runtime(seed=1, threads=2, precision="fp32", progress=False)
ALIKE = {"dropout": 0.0, "id_dropout": 0.0, "epochs": 2}  # what dropout draws depends on the process


def test_processes_that_spark_starts_have_the_weights_of_one(
    finished: Run, tiny: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyspark = pytest.importorskip("pyspark", reason="the extra `spark` is not installed")
    if shutil.which("java") is None:
        pytest.skip("no Java, which Spark runs on")
    monkeypatch.setenv("SPARK_HOME", str(Path(pyspark.__file__).parent))
    local = tiny.distill.model_copy(update=ALIKE)
    spark: dict[str, Any] = {"master": "local[2]", "options": {"spark.driver.memory": "1g"}}
    by_spark = DistillConfig.model_validate(local.model_dump() | {"engine": "spark", "spark": spark})
    one = distill(finished.dataset, finished.soft_labels, local, tmp_path / "one" / "student", runtime=RUNTIME)
    monkeypatch.chdir(tmp_path)  # where relative paths start
    two = distill(finished.dataset, finished.soft_labels, by_spark, Path("two") / "student", runtime=RUNTIME)
    assert two.fingerprint == one.fingerprint
    assert [student.manifest["info"]["processes"] for student in (one, two)] == [1, 2]
    histories = (student.manifest["info"]["history"] for student in (one, two))
    for mine, theirs in zip(*histories, strict=True):
        assert [theirs[name] for name in ("hard", "soft")] == pytest.approx([mine["hard"], mine["soft"]], rel=2e-3)
    mine, theirs = (load_file(student.path / "weights.safetensors") for student in (one, two))
    assert mine.keys() == theirs.keys()
    for name in mine:
        # Adam divides by what may be rounding alone, so that single weights may differ by a step.
        assert np.abs(mine[name] - theirs[name]).mean() < 2e-4, name
    # Who trains does not change what is trained: it is up to date for either.
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)  # as if it were not installed
    assert distill(finished.dataset, finished.soft_labels, by_spark, one.path, runtime=RUNTIME).path == one.path
    with pytest.raises(MissingExtraError, match=r"recsys\[spark\]"):
        distill(finished.dataset, finished.soft_labels, by_spark, tmp_path / "three", runtime=RUNTIME)
