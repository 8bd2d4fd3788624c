"""Spark's workers make the lists that one process makes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from recsys import schema
from recsys.api import Run
from recsys.errors import MissingExtraError
from recsys.ranking.config import RecommendConfig
from recsys.ranking.recommend import recommend
from recsys.runtime import Runtime

RUNTIME = Runtime(seed=1, threads=1, progress=False)


def test_spark_s_workers_make_the_same_lists(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyspark = pytest.importorskip("pyspark", reason="the extra `spark` is not installed")
    if shutil.which("java") is None:
        pytest.skip("no Java, which Spark runs on")
    monkeypatch.setenv("SPARK_HOME", str(Path(pyspark.__file__).parent))
    inputs = finished.dataset, finished.student, finished.index
    local = RecommendConfig(shard_users=100, max_per_brand=2, explore=0.1)
    spark = {"master": "local[2]", "options": {"spark.driver.memory": "1g"}}
    by_spark = RecommendConfig.model_validate(local.model_dump() | {"engine": "spark", "spark": spark})
    one = recommend(*inputs, local, tmp_path / "one" / "recommendations", runtime=RUNTIME)
    monkeypatch.chdir(tmp_path)  # where relative paths start
    two = recommend(*inputs, by_spark, Path("two") / "recommendations", runtime=RUNTIME)
    assert finished.dataset.n_users > 200
    assert two.fingerprint == one.fingerprint
    assert two.counts == one.counts
    same = [name for name in schema.RECOMMENDATIONS.names if name not in ("score", "reason")]
    assert two.table.select(same).equals(one.table.select(same))
    np.testing.assert_allclose(two.table["score"].to_numpy(), one.table["score"].to_numpy(), rtol=1e-4)
    # Who makes the lists does not change them: they are up to date for either.
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)  # as if it were not installed
    assert recommend(*inputs, by_spark, one.path, runtime=RUNTIME).path == one.path
    with pytest.raises(MissingExtraError, match=r"recsys\[spark\]"):
        recommend(*inputs, by_spark, tmp_path / "three", runtime=RUNTIME)
