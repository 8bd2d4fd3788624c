"""Scoring: the same rows however they are shared out, and candidates that are what they should be."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from recsys.api import Run
from recsys.config import PipelineConfig
from recsys.errors import InputError, MissingExtraError
from recsys.runtime import Runtime
from recsys.soft_labels import SoftLabels
from recsys.teacher.config import ScoreConfig
from recsys.teacher.examples import own_sequences
from recsys.teacher.score import RowScorer, score
from recsys.teacher.teach import teach
from tests.interrupt import Interrupted

# In float32 the logits do not depend on the company but for the last bits.
RUNTIME = Runtime(seed=1, threads=1, precision="fp32", progress=False)


@pytest.fixture(scope="module")
def labels(finished: Run, tiny: PipelineConfig, tmp_path_factory: pytest.TempPathFactory) -> SoftLabels:
    return score(finished.dataset, finished.teacher, tiny.score, tmp_path_factory.mktemp("s") / "s", runtime=RUNTIME)


def assert_same(one: SoftLabels, two: SoftLabels) -> None:
    assert one.table.drop_columns("teacher_logit").equals(two.table.drop_columns("teacher_logit"))
    np.testing.assert_allclose(one.padded()[3], two.padded()[3], atol=1e-3)


def rows_of(users: np.ndarray, positions: np.ndarray) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(users), pa.array(positions)], names=["user_idx", "position"])


@pytest.mark.parametrize("shard_rows", [7, 1000])
def test_rows_do_not_depend_on_their_shard(
    labels: SoftLabels, finished: Run, tiny: PipelineConfig, tmp_path: Path, shard_rows: int
) -> None:
    config = tiny.score.model_copy(update={"shard_rows": shard_rows})
    assert_same(labels, score(finished.dataset, finished.teacher, config, tmp_path / "soft_labels", runtime=RUNTIME))


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_rows_do_not_depend_on_their_batch(finished: Run, data: st.DataObject) -> None:
    """Any rows, in any order, cut anywhere: the whole is what its parts are."""
    ends = finished.dataset.split.train_end
    able = np.flatnonzero(ends > 1).astype(np.int32)
    users = data.draw(st.lists(st.sampled_from(able.tolist()), min_size=1, max_size=12).map(np.int32))
    back = data.draw(st.lists(st.integers(0, 1), min_size=len(users), max_size=len(users)).map(np.int32))
    rows = rows_of(users, ends[users].astype(np.int32) - back)
    cut = data.draw(st.integers(0, len(users)))
    scorer = RowScorer(finished.dataset, [finished.teacher], ScoreConfig(top=5, random=20), RUNTIME)
    (whole,) = scorer([rows])
    parts = pa.Table.from_batches(scorer([rows.slice(0, cut), rows.slice(cut)])).combine_chunks()
    assert parts.drop_columns("teacher_logit").equals(pa.table(whole).drop_columns("teacher_logit"))
    logits = (np.concatenate(table["teacher_logit"].to_pylist()) for table in (parts, whole))
    np.testing.assert_allclose(*logits, atol=1e-3)


def test_random_candidates_are_uniform_and_follow_the_seed(finished: Run, tiny: PipelineConfig) -> None:
    dataset = finished.dataset
    config = ScoreConfig(top=1, random=60)
    users = np.flatnonzero(dataset.split.train_end > 0)[:120].astype(np.int32)
    ends = dataset.split.train_end[users].astype(np.int32)
    batch = rows_of(users, ends)

    def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
        runtime = Runtime(seed=seed, threads=1, progress=False)
        (found,) = RowScorer(dataset, [finished.teacher], config, runtime)([batch])
        table = found.column("candidate")
        counts = np.zeros(dataset.n_items)
        free = np.zeros(dataset.n_items)
        for row, user in enumerate(users):
            candidates = np.array(table[row].as_py())
            assert len(set(candidates)) == len(candidates)
            counts[candidates[1:]] += 1
            open_ = np.ones(dataset.n_items, bool)
            open_[dataset.history(int(user), int(ends[row]))] = False
            assert open_[candidates].all()
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


def test_a_student_s_first_new_items_are_scored_too(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    """Lists may name what was bought or delisted since, and an item twice: the next ones take its place."""
    dataset = finished.dataset
    users, items = (dataset.users["user_id"].to_pylist(), dataset.items["item_id"].to_pylist())
    rng = np.random.default_rng(0)
    wanted: dict[int, list[str]] = {}
    for user in range(0, dataset.n_users, 2):
        bought = [items[item] for item in dataset.history(user)[:3]]
        fresh = [items[item] for item in rng.permutation(dataset.n_items)[:8]]
        wanted[user] = [*rng.permutation([*bought, "gone", *fresh, fresh[0]]).tolist(), "gone too"]
    rows = [(users[user], item, rank) for user, of in wanted.items() for rank, item in enumerate(of, start=1)]
    rows = [rows[place] for place in rng.permutation(len(rows))]  # the table need not be sorted
    folder = lists(tmp_path / "recommendations", [*rows, ("nobody", items[0], 1), (users[1], "gone", 1)])
    changes = {"student_top": 3, "recommendations": folder, "positions_per_user": 2, "max_rows": 500}
    config = tiny.score.model_copy(update=changes)
    out = tmp_path / "soft_labels"
    labels = score(dataset, finished.teacher, config, out, runtime=RUNTIME)
    table = labels.table.to_pylist()
    without = tiny.score.model_copy(update={"positions_per_user": 2, "max_rows": 500})
    plain = score(dataset, finished.teacher, without, tmp_path / "plain", runtime=RUNTIME).table.to_pylist()
    met = skipped = 0
    for row, other in zip(table, plain, strict=True):
        seen = {items[item] for item in dataset.history(row["user_idx"], row["position"])}
        of = wanted.get(row["user_idx"], []) if row["position"] == dataset.split.train_end[row["user_idx"]] else []
        new = list(dict.fromkeys(item for item in of if item in items and item not in seen))[:3]
        top, random = other["candidate"][: config.top], other["candidate"][config.top :]
        expected = [*top, *(items.index(item) for item in new), *random]
        assert row["candidate"] == list(dict.fromkeys(expected))  # each once, where it stood first
        assert len(row["teacher_logit"]) == len(row["candidate"])
        met += bool(new)
        skipped += new != of[:3] and bool(new)
    assert met > 50
    assert skipped > 20
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "recommendations")
    there = config.model_copy(update={"recommendations": moved})
    assert score(dataset, finished.teacher, there, out, runtime=RUNTIME).path == labels.path  # the same lists
    pq.write_table(pq.read_table(moved / "recommendations.parquet").slice(1), moved / "recommendations.parquet")
    changed = score(dataset, finished.teacher, there, out, runtime=RUNTIME)
    assert changed.fingerprint != labels.fingerprint


def test_lists_that_cannot_be_used_are_refused(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="go together"):
        ScoreConfig(student_top=3)
    config = tiny.score.model_copy(update={"student_top": 3, "recommendations": tmp_path / "nowhere"})
    with pytest.raises(InputError, match="there are no lists"):
        score(finished.dataset, finished.teacher, config, tmp_path / "soft_labels", runtime=RUNTIME)
    file = tmp_path / "lists.parquet"
    config = config.model_copy(update={"recommendations": file})
    good: dict[str, list[Any]] = {"user_id": ["a"], "item_id": ["b"], "rank": [1]}
    pq.write_table(pa.table(good), file)
    RowScorer(finished.dataset, [finished.teacher], config, RUNTIME)
    for wrong, said in (
        ({"user_id": ["a"]}, "no column item_id, rank"),
        (good | {"rank": ["first"]}, "'first'"),
        (good | {"rank": pa.array([None], pa.int32())}, "'rank' with null values"),
        (good | {"item_id": [["b"]]}, "cannot be used"),
    ):
        pq.write_table(pa.table(wrong), file)
        with pytest.raises(InputError, match=said):
            score(finished.dataset, finished.teacher, config, tmp_path / "soft_labels", runtime=RUNTIME)
    file.write_text("user_id,item_id,rank")
    with pytest.raises(InputError, match=r"lists\.parquet cannot be used"):
        score(finished.dataset, finished.teacher, config, tmp_path / "soft_labels", runtime=RUNTIME)


def test_soft_labels_are_about_items_not_seen(finished: Run, tiny: PipelineConfig) -> None:
    dataset = finished.dataset
    user, position, candidate, logit = finished.soft_labels.padded()
    assert len(user) == finished.soft_labels.counts["rows"] > 0
    assert (position > 0).all()
    assert (position <= dataset.split.train_end[user]).all()
    assert np.isfinite(logit).all()
    for row in range(len(user)):
        asked = candidate[row][candidate[row] >= 0]
        assert len(set(asked)) == len(asked) >= tiny.score.top
        assert not set(asked) & set(dataset.history(int(user[row]), int(position[row])))


def test_an_ensemble_s_labels_are_the_mean_of_standardised_logits(
    finished: Run, tiny: PipelineConfig, tmp_path: Path
) -> None:
    dataset, one = finished.dataset, finished.teacher
    runtime = tiny.runtime(progress=False)
    behaviour = tiny.teach.behaviour.model_copy(update={"epochs": 1})
    config = tiny.teach.model_copy(update={"behaviour": behaviour})
    other = teach(dataset, config, tmp_path / "other" / "teacher", runtime=runtime)
    both = score(dataset, [one, other], tiny.score, tmp_path / "both", runtime=runtime)
    again = score(dataset, [one, one], tiny.score, tmp_path / "twice", runtime=runtime)
    user, position, candidate, logit = both.padded()
    there = candidate >= 0
    histories = dataset.histories(user, position)
    own = own_sequences(dataset, user)
    expected = np.zeros(logit.shape)
    for teacher in (one, other):
        found = teacher.score(histories, np.maximum(candidate, 0), own=own, runtime=runtime)
        for row in range(len(user)):
            z = found[row][there[row]]
            expected[row, there[row]] += (z - z.mean()) / z.std() / 2
    np.testing.assert_allclose(logit[there], expected[there], atol=0.05)  # bf16 where the machine has it
    plain = finished.soft_labels.padded()[3]
    order = np.argsort(np.where(there, again.padded()[3], np.inf), axis=1)
    np.testing.assert_array_equal(order, np.argsort(np.where(there, plain, np.inf), axis=1))


def test_more_positions_than_were_held_out_are_refused(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    config = tiny.score.model_copy(update={"positions_per_user": 3})
    with pytest.raises(InputError, match=r"teach\.behaviour\.held_out = 1"):
        score(finished.dataset, finished.teacher, config, tmp_path / "soft_labels")
    two = tiny.score.model_copy(update={"positions_per_user": 2})
    labels = score(finished.dataset, finished.teacher, two, tmp_path / "soft_labels", runtime=tiny.runtime())
    user, position, _, logit = labels.padded()
    before = position < finished.dataset.split.train_end[user]
    assert before.any()
    assert (~before).any()
    assert np.isfinite(logit).all()
    drawn = [set(row[two.top :]) for row in labels.table["candidate"].to_pylist()]
    pairs = [(one, other) for one, other, same in zip(drawn, drawn[1:], user[1:] == user[:-1], strict=False) if same]
    assert len(pairs) > 20
    assert sum(one == other for one, other in pairs) < 3  # each position has its own


def test_a_killed_scoring_keeps_its_shards(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    options = {"seed": 1, "threads": 1, "progress": False}
    arguments = (finished.dataset, finished.teacher, tiny.score, tmp_path / "soft_labels")
    with pytest.raises(KeyboardInterrupt):
        score(*arguments, runtime=Interrupted(**options, at="score pairs", after=2))
    (shards,) = (tmp_path / "work").glob("soft_labels-*/scratch")
    written = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert len(written) == 2
    with pytest.raises(KeyboardInterrupt):
        score(*arguments, runtime=Interrupted(**options, at="score pairs", after=3))
    assert {name: (shards / name).stat().st_mtime_ns for name in written} == written
    resumed = score(*arguments, runtime=Interrupted(**options, at="nowhere"))
    assert resumed.table.equals(finished.soft_labels.table)


def test_who_scores_does_not_change_what_is_scored(
    labels: SoftLabels, finished: Run, tiny: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)  # as if it were not installed
    config = tiny.score.model_copy(update={"engine": "spark"})
    out = labels.path.parent.parent / "s"
    assert score(finished.dataset, finished.teacher, config, out, runtime=RUNTIME).path == labels.path
    with pytest.raises(MissingExtraError, match=r"recsys\[spark\]"):
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
    monkeypatch.chdir(tmp_path)  # where relative paths start
    by_spark = score(finished.dataset, finished.teacher, config, Path("soft_labels"), runtime=RUNTIME)
    assert by_spark.fingerprint == labels.fingerprint
    assert_same(labels, by_spark)
