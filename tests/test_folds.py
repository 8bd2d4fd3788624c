"""Several test windows: where they lie, what each fold knows, and what is said over all of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from recsys import pipeline, schema
from recsys.api import Run
from recsys.artifacts import Recipe, write_json
from recsys.config import PipelineConfig, load_config
from recsys.errors import InputError
from recsys.evaluation.report import METRICS_FILE, USERS_FILE, DifferenceRow, MetricRow, Report, UserSet
from recsys.evaluation.significance import PairedComparison
from recsys.folds import FOLDS, FOLDS_FILE, Fold, Folds, pool, run_folds
from recsys.ingest.dataset import Dataset

DAY = timedelta(days=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True)
class Shop:
    """Three folds of the sample shop, the second call's lines, and the plain run."""

    folds: Folds
    interrupted: list[str]
    resumed: list[str]
    plain: Run


@pytest.fixture(scope="module")
def three(tiny_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The first call dies after the second fold's student; the second call takes it up."""
    config = load_config(
        tiny_toml,
        [
            f"run_dir={tmp_path_factory.mktemp('folds') / 'run'}",
            "use_teacher=false",
            "distill.epochs=1",
            "evaluate.n_permutations=99",
            'evaluate.baselines=["most_popular", "item_knn"]',
            'baselines.baselines=["most_popular"]',
            # Far fewer than the events after the earlier folds' ends.
            "ingest.max_bad_share=0.05",
        ],
        env={},
    )
    interrupted: list[str] = []

    def fall(line: str) -> None:
        interrupted.append(line)
        if sum(each.startswith("distill") for each in interrupted) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_folds(config, 3, progress=False, say=fall)
    assert not (config.run_dir / FOLDS / FOLDS_FILE).exists()
    resumed: list[str] = []
    folds = run_folds(config, 3, progress=False, say=resumed.append)
    return Shop(folds, interrupted, resumed, pipeline.run(config, progress=False, say=lambda _: None))


def stages(lines: list[str]) -> list[tuple[str, bool]]:
    """Of the lines about stages, which one and whether it was up to date."""
    return [(line.split()[0], "up to date" in line) for line in lines if not line.startswith("fold ")]


def test_windows_follow_each_other_and_no_fold_knows_what_comes_after_its_end(three: Shop) -> None:
    folds, plain = three.folds.folds, three.plain.dataset
    assert [fold.end for fold in folds] == [datetime(2026, 5, 1, tzinfo=UTC) - 7 * f * DAY for f in range(3)]
    assert [fold.name for fold in folds] == ["2026-05-01", "2026-04-24", "2026-04-17"]
    assert all(later.start == earlier.end for later, earlier in pairwise(folds))
    log = plain.sequences.timestamp
    for fold in folds:
        known = fold.dataset.sequences.timestamp
        start, end = micros(fold.start), micros(fold.end)
        np.testing.assert_array_equal(np.sort(known), np.sort(log[log < end]))
        assert fold.dataset.counts["test"] == ((log >= start) & (log < end)).sum() > 0
        assert fold.dataset.counts["valid"] == ((log >= start - micros(EPOCH + 7 * DAY)) & (log < start)).sum() > 0
        assert fold.dataset.counts["rows_in"] == plain.counts["rows_in"]
        assert fold.dataset.counts["quarantined"]["future_timestamp"] >= (log >= end).sum()


def test_the_first_fold_is_the_plain_run(three: Shop) -> None:
    fold = three.folds.folds[0]
    assert fold.report.fingerprint == three.plain.report.fingerprint
    assert fold.report.rows == three.plain.report.rows
    row = next(row for row in three.folds.rows() if (row.model, row.metric) == ("student", "ndcg"))
    assert row.values[0] == three.plain.report.value("student", "ndcg", 10)


def test_a_killed_call_is_taken_up_and_a_finished_one_is_not_done_again(three: Shop) -> None:
    rest = ["distill", "index", "rank", "recommend", "evaluate"]
    assert stages(three.interrupted)[:3] == [("ingest", False)] * 3  # a log too short shows before any training
    done = [stage for stage, up_to_date in stages(three.resumed) if not up_to_date]
    assert done == [*rest[1:], *rest]
    lines: list[str] = []
    again = run_folds(three.folds.config, 3, progress=False, say=lines.append)
    assert stages(lines) == [("ingest", True)] * 3 + [(stage, True) for stage in ["ingest", *rest]] * 3
    assert [fold.report.path for fold in again.folds] == [fold.report.path for fold in three.folds.folds]
    assert again.to_rows() == three.folds.to_rows()


def test_rows_hold_every_model_and_the_fold_reports_figures(three: Shop) -> None:
    rows = three.folds.rows()
    models = {row.model for row in three.plain.report.rows}
    assert {(row.model, row.metric) for row in rows} == {(m, metric) for m in models for metric in ("ndcg", "recall")}
    for row in rows:
        reports = [fold.report for fold in three.folds.folds]
        assert list(row.values) == [report.value(row.model, row.metric, 10) for report in reports]
        assert (row.smallest, row.largest) == (min(row.values), max(row.values))
        assert row.mean == pytest.approx(np.mean(row.values))
    assert {gain.other for gain in three.folds.differences()} == models - {"student"}


def test_every_fold_is_a_run_of_its_own(three: Shop) -> None:
    for fold in three.folds.folds:
        run = Run(three.folds.config.run_dir / FOLDS / fold.name)
        lines: list[str] = []
        pipeline.run(run.config, progress=False, say=lines.append)
        assert all(up_to_date for _, up_to_date in stages(lines))
        assert run.report.fingerprint == fold.report.fingerprint


def test_baselines_are_tuned_in_every_fold_and_not_once_for_all(three: Shop, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(three.folds.config.run_dir, tmp_path / "run", symlinks=True))
    config = three.folds.config.model_copy(update={"run_dir": run_dir})
    pipeline.tune_baselines(config, progress=False)
    assert "tuned in 0 of 2 folds" in run_folds(config, 2, progress=False, say=lambda _: None).to_text()
    tuned = run_folds(config, 2, tune=True, progress=False, say=lambda _: None)
    assert "tuned in 2 of 2 folds" in tuned.to_text()
    of = [Run(run_dir / FOLDS / fold.name).tuning for fold in tuned.folds]
    datasets = [fold.dataset.fingerprint for fold in tuned.folds]
    assert [tuning and tuning.manifest["inputs"]["dataset"] for tuning in of] == datasets
    before, after = three.folds.rows(), tuned.rows()
    assert [row.values for row in after if row.model == "student"] == [
        row.values[:2] for row in before if row.model == "student"
    ]


def test_the_file_and_the_text_say_the_same(three: Shop) -> None:
    written = json.loads((three.folds.config.run_dir / FOLDS / FOLDS_FILE).read_text())
    assert written["rows"] == json.loads(json.dumps(three.folds.to_rows()))
    assert written["seed"] == 1
    text = three.folds.to_text()
    for row in three.folds.rows():
        assert any(
            line.split() == [f"{row.metric}@10", row.model, *(f"{x:.4f}" for x in (*row.values, row.mean, *extremes))]
            for line in text.splitlines()
            for extremes in [(row.smallest, row.largest)]
        )
    for gain in three.folds.differences():
        (line,) = [line for line in text.splitlines() if line.startswith(f"student − {gain.other} ")]
        assert f"{gain.difference:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" in line
        assert line.endswith(f"{gain.n_agree} of 3")


def test_a_log_too_short_says_so_before_training_and_events_at_an_end_belong_to_the_later_window(
    tmp_path: Path,
) -> None:
    n_days, n_users, first = 40, 6, datetime(2024, 1, 1, tzinfo=UTC)
    day, user = np.divmod(np.arange(n_days * n_users), n_users)
    events = {
        "user_id": [f"u{u}" for u in user],
        "item_id": [f"i{i}" for i in (user + day) % 5],
        "event_type": ["view"] * len(user),
        "timestamp": pa.array([first + int(d) * DAY for d in day], pa.timestamp("us", "UTC")),  # at midnight, all
    }
    pq.write_table(pa.table(events), tmp_path / "events.parquet")
    pq.write_table(
        pa.table({"item_id": [f"i{i}" for i in range(5)], "title": list("abcde")}), tmp_path / "items.parquet"
    )
    # No `as_of`: the end is the last event, found by an ingest of the config itself.
    config = PipelineConfig(name="short", data=tmp_path, run_dir=tmp_path / "run", threads=1)
    lines: list[str] = []
    with pytest.raises(InputError, match=r"no event to train on: .* training ends at 2023-12-29T00:00:00"):
        run_folds(config, 5, progress=False, say=lines.append)
    assert {stage for stage, _ in stages(lines)} == {"the", "ingest"}
    assert (config.run_dir / "dataset").exists()
    names = ["2024-02-09", "2024-02-02", "2024-01-26", "2024-01-19"]
    datasets = [Run(config.run_dir / FOLDS / name).dataset for name in names]
    # The plain run's window takes in the log's last event; the others end right before the next one's first.
    assert [dataset.counts["test"] for dataset in datasets] == [8 * n_users, *[7 * n_users] * 3]
    assert [dataset.counts["valid"] for dataset in datasets] == [7 * n_users] * 4
    for name, dataset in zip(names[1:], datasets[1:], strict=True):
        assert dataset.sequences.timestamp.max() == micros(datetime.fromisoformat(name).replace(tzinfo=UTC) - DAY)


@pytest.mark.parametrize(
    ("change", "n_folds", "message"),
    [
        ({}, 1, r"1 folds were asked for\n  expected: two or more"),
        ({"protocol": "leave_one_out"}, 2, r'"leave_one_out" has no test window'),
        (
            {"train_until": datetime(2026, 4, 1, tzinfo=UTC), "valid_until": datetime(2026, 4, 8, tzinfo=UTC)},
            2,
            r"train_until and ingest.valid_until set one split",
        ),
    ],
)
def test_what_cannot_be_folded(
    tiny: PipelineConfig, tmp_path: Path, change: dict[str, Any], n_folds: int, message: str
) -> None:
    ingest = tiny.ingest.model_copy(update=change)
    config = tiny.model_copy(update={"run_dir": tmp_path / "run", "ingest": ingest})
    with pytest.raises(InputError, match=message):
        run_folds(config, n_folds, progress=False)
    assert not config.run_dir.exists()


# --- what is said over all folds, on made-up values


class _Settings(BaseModel):
    note: str


@dataclass
class MadeUp:
    """Folds of which only the per-user values of NDCG@10 are known; the sample is whom the teacher answered."""

    folder: Path
    folds: list[Fold] = field(default_factory=list)

    def add(self, values: Mapping[str, Mapping[str, float]]) -> None:
        """One fold: per model, each user's value. Users are numbered anew, in any order."""
        place = len(self.folds)
        order = np.random.default_rng(place).permutation(sorted(values["student"])).tolist()
        number = {user: u for u, user in enumerate(order)}
        rows, differences = [], []
        for model, of in values.items():
            users: UserSet = "all" if len(of) == len(order) else "sample"
            mean = float(np.mean(list(of.values())))
            rows.append(MetricRow(model, "temporal", True, "ndcg", 10, mean, 0, 0, len(of), users))
            rows.append(MetricRow(model, "temporal", True, "recall", 10, mean / 2, 0, 0, len(of), users))
            if model != "student":
                gain = float(np.mean([values["student"][user] for user in of])) - mean
                about = ("student", model, "temporal", True, "ndcg", 10)
                differences.append(DifferenceRow(*about, gain, gain - 0.1, gain + 0.1, len(of), users))
        table = [(m, number[user], x) for m, of in values.items() for user, x in of.items()]
        models, users_idx, of_metric = zip(*table, strict=True)
        recipe = Recipe(Report.kind, _Settings(note=str(place)), {}, 0, ())
        with recipe.build(self.folder / str(place) / Report.kind) as draft:
            columns = {
                "model": pa.array([*models, *models]).dictionary_encode(),
                "seen_filtered": [True] * len(table) + [False] * len(table),
                schema.USER_IDX: pa.array([*users_idx, *users_idx], pa.int32()),
                "ndcg_at_10": [*of_metric, *[0.0] * len(table)],
            }
            pq.write_table(pa.table(columns), draft.path / USERS_FILE)
            write_json(
                draft.path / METRICS_FILE,
                {"rows": [asdict(row) for row in rows], "differences": [asdict(row) for row in differences]},
            )
            draft.counts |= {"users": len(order)}
        dataset = cast(Dataset, SimpleNamespace(users=pa.table({schema.USER_ID: order}), protocol="temporal"))
        end = datetime(2026, 5, 1, tzinfo=UTC) - 7 * place * DAY
        report = Report.open(self.folder / str(place) / Report.kind)
        self.folds.append(Fold(f"{end:%Y-%m-%d}", end - 7 * DAY, end, dataset, report))

    def put_together(self) -> Folds:
        return Folds(PipelineConfig(name="made up", data=self.folder, run_dir=self.folder), tuple(self.folds))


def test_a_planted_winner_wins_over_all_folds_and_users_are_matched_by_their_ids(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made_up = MadeUp(tmp_path)
    expected, told = [], []
    for first in (0, 100, 200):  # users of a fold and the one after it overlap by half or so
        users = [f"u{u}" for u in range(first, first + 220)]
        base = rng.random(220) * (rng.random(220) < 0.3)
        student = base + 0.02 + 0.01 * rng.standard_normal(220)
        asked = rng.permutation(220)[:50]
        made_up.add(
            {
                "student": dict(zip(users, student.tolist(), strict=True)),
                "popular": dict(zip(users, base.tolist(), strict=True)),
                "teacher": {users[u]: float(student[u]) + 0.1 for u in asked},
            }
        )
        expected.append(student - base)
        told += [users[u] for u in asked]
    folds = made_up.put_together()
    popular, teacher = folds.differences()
    assert (popular.other, popular.users, teacher.other, teacher.users) == ("popular", "all", "teacher", "sample")
    assert popular.difference == pytest.approx(np.concatenate(expected).mean())
    assert 0 < popular.low < popular.difference < popular.high
    assert (popular.n_questions, popular.n_users, popular.n_agree) == (660, 420, 3)
    assert popular.p_holm == popular.p_value == pytest.approx(1 / 10_000)
    assert [row.n_users for row in popular.by_fold] == [220] * 3
    assert teacher.difference == pytest.approx(-0.1)
    assert teacher.high == pytest.approx(-0.1)
    assert (teacher.n_questions, teacher.n_users, teacher.n_agree) == (150, len(set(told)), 3)
    assert [row.users for row in folds.rows()] == ["all", "all", "sample"] * 2
    assert "teacher*" in folds.to_text() and "* on a sample" in folds.to_text()


def test_a_fold_that_says_otherwise_does_not_agree(tmp_path: Path) -> None:
    made_up = MadeUp(tmp_path)
    users = [f"u{u}" for u in range(40)]
    for gain in (0.3, -0.1, 0.0):
        made_up.add({"student": dict.fromkeys(users, 0.5 + gain), "popular": dict.fromkeys(users, 0.5)})
    (row,) = made_up.put_together().differences()
    assert row.difference == pytest.approx(0.2 / 3)
    assert row.n_agree == 1


def test_a_model_that_a_fold_did_not_measure_is_left_out(tmp_path: Path) -> None:
    made_up = MadeUp(tmp_path)
    made_up.add({"student": {"a": 0.5, "b": 0.1}, "popular": {"a": 0.4, "b": 0.2}, "new": {"a": 1.0, "b": 1.0}})
    made_up.add({"student": {"c": 0.5, "b": 0.1}, "popular": {"c": 0.4, "b": 0.2}})
    folds = made_up.put_together()
    assert [row.other for row in folds.differences()] == ["popular"]
    assert {row.model for row in folds.rows()} == {"student", "popular"}


def pooled(users: np.ndarray, differences: np.ndarray, *, n_resamples: int = 1000) -> PairedComparison:
    return pool(
        users,
        differences,
        confidence=0.95,
        n_resamples=n_resamples,
        n_permutations=999,
        rng=np.random.default_rng(0),
    )


def test_the_same_answers_once_more_are_no_more_evidence() -> None:
    rng = np.random.default_rng(1)
    differences = rng.standard_normal((80, 2)) + 0.2
    once = pooled(np.arange(80), differences)
    twice = pooled(np.tile(np.arange(80), 2), np.tile(differences, (2, 1)))
    as_if_new = pooled(np.arange(160), np.tile(differences, (2, 1)))
    for name in ("difference", "low", "high", "p_value", "p_adjusted"):
        np.testing.assert_allclose(getattr(twice, name), getattr(once, name), rtol=1e-12)
    width = twice.high - twice.low
    np.testing.assert_allclose((as_if_new.high - as_if_new.low) / width, np.sqrt(0.5), rtol=0.1)


def test_the_interval_is_that_of_a_bootstrap_written_out() -> None:
    rng = np.random.default_rng(2)
    users = rng.integers(30, size=90)  # some once, some six times
    of_user = rng.standard_normal(30)
    differences = of_user[users] + 0.3 * rng.standard_normal(90)
    answers = [differences[users == user] for user in np.unique(users)]
    means = []
    for _ in range(4000):
        drawn = rng.integers(len(answers), size=len(answers))
        means.append(np.concatenate([answers[user] for user in drawn]).mean())
    found = pooled(users, differences[:, None], n_resamples=4000)
    width = np.quantile(means, 0.975) - np.quantile(means, 0.025)
    assert found.low[0] == pytest.approx(np.quantile(means, 0.025), abs=0.05 * width)
    assert found.high[0] == pytest.approx(np.quantile(means, 0.975), abs=0.05 * width)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-1, 1, allow_subnormal=False)), min_size=1, max_size=30))
def test_pooling_is_a_mean_that_turns_with_the_models_and_knows_users_only_as_the_same_or_not(
    questions: list[tuple[int, float]],
) -> None:
    users = np.array([user for user, _ in questions])
    differences = np.array([[value] for _, value in questions])
    found, turned = pooled(users, differences, n_resamples=100), pooled(users, -differences, n_resamples=100)
    renamed = pooled(users * 1000 - 7, differences, n_resamples=100)
    assert found.difference[0] == pytest.approx(differences.mean(), abs=1e-12)
    assert renamed.low[0] == found.low[0] and renamed.p_value[0] == found.p_value[0]
    assert turned.low[0] == pytest.approx(-found.high[0], abs=1e-12)
    assert turned.p_value[0] == found.p_value[0]
    assert found.low[0] <= found.high[0]
    assert 0 < found.p_value[0] <= 1
