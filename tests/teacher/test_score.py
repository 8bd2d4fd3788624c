"""Scoring: the same rows however they are shared out, and candidates that are what they should be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from scipy import stats

from recsys.api import Run
from recsys.config import PipelineConfig
from recsys.errors import InputError
from recsys.runtime import Runtime
from recsys.soft_labels import SoftLabels
from recsys.teacher.config import ScoreConfig
from recsys.teacher.score import RowScorer, score

# In float32 the logits do not depend on the company but for the last bits.
RUNTIME = Runtime(seed=1, threads=1, precision="fp32", progress=False)


@pytest.fixture(scope="module")
def labels(finished: Run, tiny: PipelineConfig, tmp_path_factory: pytest.TempPathFactory) -> SoftLabels:
    return score(finished.dataset, finished.teacher, tiny.score, tmp_path_factory.mktemp("s") / "s", runtime=RUNTIME)


def assert_same(one: SoftLabels, two: SoftLabels) -> None:
    assert one.table.drop_columns("teacher_logit").equals(two.table.drop_columns("teacher_logit"))
    np.testing.assert_allclose(one.padded()[3], two.padded()[3], atol=1e-3)


@pytest.mark.parametrize("shard_rows", [7, 1000])
def test_rows_do_not_depend_on_their_shard(
    labels: SoftLabels, finished: Run, tiny: PipelineConfig, tmp_path: Path, shard_rows: int
) -> None:
    config = tiny.score.model_copy(update={"shard_rows": shard_rows})
    assert_same(labels, score(finished.dataset, finished.teacher, config, tmp_path / "soft_labels", runtime=RUNTIME))


def test_random_candidates_are_uniform_and_follow_the_seed(finished: Run, tiny: PipelineConfig) -> None:
    dataset = finished.dataset
    config = ScoreConfig(top=1, random=60)
    users = np.flatnonzero(dataset.split.train_end > 0)[:120].astype(np.int32)
    ends = dataset.split.train_end[users].astype(np.int32)
    batch = pa.RecordBatch.from_arrays([pa.array(users), pa.array(ends)], names=["user_idx", "position"])

    def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
        runtime = Runtime(seed=seed, threads=1, progress=False)
        (found,) = RowScorer(dataset, [finished.teacher], config, runtime)([batch])
        table = found.column("candidate")
        counts = np.zeros(dataset.n_items)
        free = np.zeros(dataset.n_items)
        for row, user in enumerate(users):
            candidates = np.array(table[row].as_py())
            counts[candidates[1:]] += 1
            open_ = np.ones(dataset.n_items, bool)
            open_[dataset.history(int(user), int(ends[row]))] = False
            open_[candidates[0]] = False
            free += open_ * (len(candidates) - 1) / open_.sum()
        return counts, free

    counts, expected = drawn(0)
    others, _ = drawn(1)
    assert not np.array_equal(counts, others)
    # Draws without replacement vary a little less than Poisson's, so that this is on the safe side.
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert stats.chi2.sf(statistic, dataset.n_items - 1) > 0.001
    assert stats.chi2.cdf(statistic, dataset.n_items - 1) > 0.001


def lists(folder: Path, rows: list[tuple[str, str, int]]) -> Path:
    folder.mkdir()
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(("user_id", "item_id", "rank"))})
    pq.write_table(
        table.cast(pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("rank", pa.int32())])),
        folder / "recommendations.parquet",
    )
    return folder


def test_a_student_s_first_items_are_scored_too(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    dataset = finished.dataset
    users, items = (dataset.users["user_id"].to_pylist(), dataset.items["item_id"].to_pylist())
    rng = np.random.default_rng(0)
    wanted = {user: rng.permutation(dataset.n_items)[:5] for user in range(0, dataset.n_users, 2)}
    rows = [(users[user], items[item], rank) for user, of in wanted.items() for rank, item in enumerate(of, start=1)]
    folder = lists(tmp_path / "recommendations", [*rows, ("nobody", items[0], 1), (users[1], "gone", 1)])
    changes = {"student_top": 3, "recommendations": folder, "positions_per_user": 2, "max_rows": 500}
    config = tiny.score.model_copy(update=changes)
    labels = score(dataset, finished.teacher, config, tmp_path / "soft_labels", runtime=RUNTIME)
    user, position, candidate, logit = labels.padded()
    at_end = position == dataset.split.train_end[user]
    met = 0
    for row in range(len(user)):
        asked = candidate[row][candidate[row] >= 0].tolist()
        seen = set(dataset.history(int(user[row]), int(position[row])).tolist())
        assert len(set(asked)) == len(asked)
        assert not set(asked) & seen
        if at_end[row] and int(user[row]) in wanted:
            assert set(wanted[int(user[row])][:3].tolist()) - seen <= set(asked)
            met += 1
    assert met > 50
    assert (~at_end).any()
    assert np.isfinite(logit).all()
    pq.write_table(pq.read_table(folder / "recommendations.parquet").slice(1), folder / "recommendations.parquet")
    other = score(dataset, finished.teacher, config, tmp_path / "soft_labels", runtime=RUNTIME)
    assert other.fingerprint != labels.fingerprint  # other lists, other labels


def test_lists_that_cannot_be_used_are_refused(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="go together"):
        ScoreConfig(student_top=3)
    config = tiny.score.model_copy(update={"student_top": 3, "recommendations": tmp_path / "nowhere"})
    with pytest.raises(InputError, match="there are no lists"):
        score(finished.dataset, finished.teacher, config, tmp_path / "soft_labels", runtime=RUNTIME)
    pq.write_table(pa.table({"user_id": ["a"]}), tmp_path / "lists.parquet")
    config = config.model_copy(update={"recommendations": tmp_path / "lists.parquet"})
    with pytest.raises(InputError, match="no column item_id, rank"):
        score(finished.dataset, finished.teacher, config, tmp_path / "soft_labels", runtime=RUNTIME)


def test_spark_s_workers_score_the_same_rows(
    labels: SoftLabels, finished: Run, tiny: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyspark = pytest.importorskip("pyspark", reason="the extra `spark` is not installed")
    if shutil.which("java") is None:
        pytest.skip("no Java, which Spark runs on")
    monkeypatch.setenv("SPARK_HOME", str(Path(pyspark.__file__).parent))
    spark: dict[str, Any] = {"master": "local[2]", "options": {"spark.driver.memory": "1g"}}
    config = ScoreConfig.model_validate(tiny.score.model_dump() | {"engine": "spark", "spark": spark})
    by_spark = score(finished.dataset, finished.teacher, config, tmp_path / "soft_labels", runtime=RUNTIME)
    assert_same(labels, by_spark)
