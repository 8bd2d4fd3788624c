from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from recsys import schema
from recsys.artifacts import Recipe, write_json
from recsys.errors import InputError
from recsys.evaluation.compare import ComparedRow, compare
from recsys.evaluation.report import METRICS_FILE, USERS_FILE, MetricRow, Report
from recsys.ingest.dataset import Dataset
from tests.evaluation.conftest import build_dataset

N_USERS = 600


class _Settings(BaseModel):
    note: str
    targets: str = "all"


def write_report(
    run: Path,
    values: dict[str, np.ndarray],
    *,
    users: Sequence[int] | None = None,
    dataset: str = "d",
    protocol: str = "leave_one_out",
    targets: str = "all",
    model: str = "student",
) -> Path:
    """What a run's folder has to hold to be compared; the unfiltered values are worth nothing."""
    n = len(next(iter(values.values())))
    users = range(n) if users is None else users
    recipe = Recipe(Report.kind, _Settings(note=str(run), targets=targets), {"dataset": dataset}, 0, ())
    row = MetricRow(model, protocol, True, "ndcg", 10, 0.0, 0.0, 0.0, n, "all")
    with recipe.build(run / "report") as draft:
        table = {
            "model": pa.array([model] * 2 * n).dictionary_encode(),
            "seen_filtered": [True] * n + [False] * n,
            "user_idx": pa.array([*users, *users], pa.int32()),
        }
        table |= {name: np.concatenate([column, column * 0]) for name, column in values.items()}
        pq.write_table(pa.table(table), draft.path / USERS_FILE)
        write_json(draft.path / METRICS_FILE, {"rows": [row.__dict__], "differences": [], "coverage": []})
        draft.info |= {"protocol": protocol}
    return run


@pytest.fixture
def base() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.where(rng.random(N_USERS) < 0.3, rng.choice([0.3, 0.5, 1.0], N_USERS), 0.0)


@pytest.fixture
def better(base: np.ndarray) -> np.ndarray:
    return np.maximum(base, (np.random.default_rng(1).random(N_USERS) < 0.06) * 0.5)


def second(rows: list[ComparedRow], metric: str = "ndcg") -> ComparedRow:
    (row,) = [row for row in rows if row.difference is not None and row.metric == metric]
    return row


def test_a_planted_winner_wins_whichever_run_comes_first(tmp_path: Path, base: np.ndarray, better: np.ndarray) -> None:
    old = write_report(tmp_path / "old", {"ndcg_at_10": base, "recall_at_10": base})
    # The users stand in another order: rows are paired by user, not by place.
    order = np.random.default_rng(2).permutation(N_USERS)
    new = write_report(
        tmp_path / "new", {"ndcg_at_10": better[order], "recall_at_10": base[order]}, users=order.tolist()
    )
    found, turned = compare([old, new]), compare([new, old])
    up, down = second(found.rows), second(turned.rows)
    assert (up.verdict, down.verdict) == ("better", "worse")
    assert up.difference == pytest.approx((better - base).mean())
    assert down.difference == pytest.approx(-(better - base).mean())
    assert up.difference_low is not None
    assert down.difference_high is not None
    assert up.difference_low > 0 > down.difference_high
    assert up.p_holm == pytest.approx(2 / 10_001)  # two differences in the table
    even = second(found.rows, "recall")
    assert (even.difference, even.difference_low, even.difference_high, even.p_value) == (0, 0, 0, 1)
    assert even.verdict == "undecided"
    first = found.rows[0]
    assert (first.run, first.value, first.difference) == (str(old), pytest.approx(base.mean()), None)
    assert first.low < first.value < first.high
    assert found.notes == []


def test_the_rule_for_seen_items_and_the_order_of_rows(tmp_path: Path, base: np.ndarray, better: np.ndarray) -> None:
    runs = [
        write_report(tmp_path / name, {"ndcg_at_10": values, "mrr_at_10": values})
        for name, values in [("a", base), ("b", better), ("c", base)]
    ]
    rows = compare(runs, metrics=["mrr", "ndcg", "mrr"], n_resamples=200).rows
    assert [(row.metric, Path(row.run).name) for row in rows] == [(m, r) for m in ("mrr", "ndcg") for r in "abc"]
    unfiltered = compare(runs, metrics=["mrr"], seen_filtered=False, n_resamples=200).rows
    assert {row.value for row in unfiltered} == {0.0}
    assert not any(row.seen_filtered for row in unfiltered)


def test_only_users_of_all_runs_are_compared(tmp_path: Path, base: np.ndarray, better: np.ndarray) -> None:
    one = write_report(tmp_path / "one", {"ndcg_at_10": base[:500]}, users=range(500))
    two = write_report(tmp_path / "two", {"ndcg_at_10": better[100:]}, users=range(100, N_USERS))
    found = compare([one, two], metrics=["ndcg"])
    row = second(found.rows)
    assert row.n_users == found.rows[0].n_users == 400
    assert row.difference == pytest.approx((better - base)[100:500].mean())
    assert found.rows[0].value == pytest.approx(base[100:500].mean())
    assert found.notes == ["400 users are compared; a run asked up to 500"]
    apart = write_report(tmp_path / "apart", {"ndcg_at_10": base[:3]}, users=range(1000, 1003))
    with pytest.raises(InputError, match="no user has the same question"):
        compare([one, apart], metrics=["ndcg"])


def test_text_and_json_say_the_same_and_a_seed_decides(tmp_path: Path, base: np.ndarray, better: np.ndarray) -> None:
    runs = [
        write_report(tmp_path / name, {"ndcg_at_10": values}) for name, values in [("a", base), ("longer_name", better)]
    ]
    found = compare(runs, metrics=["ndcg"], n_resamples=500)
    lines = found.to_text().splitlines()
    assert lines[0].split() == ["metric", "run", "value", "−", "first", "run", "p", "Holm"]
    row = second(found.rows)
    assert f"{row.difference:+.4f}" in lines[2]
    assert lines[2].endswith("better")
    assert "600 users" in lines[4]
    assert "95 %" in lines[4]
    plain = json.loads(json.dumps(found.to_rows()))
    assert plain[1]["difference"] == row.difference
    assert plain[0]["p_value"] is None
    assert compare(runs, metrics=["ndcg"], n_resamples=500) == found
    other = compare(runs, metrics=["ndcg"], n_resamples=500, seed=1)
    assert second(other.rows).difference == row.difference
    assert second(other.rows).difference_low != row.difference_low


# Users and their items; the last is the target of the test part.
HISTORIES = [[1, 2, 3], [4, 5, 6], [7, 8, 8], [1, 5, 9]]


def shop(run: Path, histories: list[list[int]], ids: list[str] | None = None, n_items: int = 12) -> Dataset:
    ends = [len(row) - 1 for row in histories]
    dataset = build_dataset(run / "dataset", histories, ends, ends, n_items=n_items)
    if ids is not None:
        table = pa.table({"user_idx": range(len(ids)), "user_id": ids}, schema.USERS)
        file = dataset.path / "users.parquet"
        pq.write_table(table, file)
        manifest = json.loads((dataset.path / "manifest.json").read_text())
        manifest["files"]["users.parquet"] = file.stat().st_size
        write_json(dataset.path / "manifest.json", manifest)
    return Dataset.open(run / "dataset")


def test_runs_on_other_datasets_are_paired_by_user_id_where_targets_agree(tmp_path: Path) -> None:
    one = shop(tmp_path / "one", HISTORIES)
    # Turned around and without u0; u3 has another target, and u2 had not seen its target before.
    ids = ["u3", "stranger", "u2", "u1"]
    two = shop(tmp_path / "two", [[1, 5, 2], [1, 2, 3], [7, 9, 8], [4, 5, 6]], ids, n_items=13)
    a, b = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.9, 0.8, 0.7, 0.6])
    runs = [
        write_report(tmp_path / "one", {"ndcg_at_10": a}, dataset=one.fingerprint),
        write_report(tmp_path / "two", {"ndcg_at_10": b}, dataset=two.fingerprint),
    ]
    found = compare(runs, metrics=["ndcg"], n_resamples=200)
    row = second(found.rows)
    assert row.n_users == 1
    assert (found.rows[0].value, row.value) == (0.2, 0.6)  # u1 in both
    notes = "\n".join(found.notes)
    assert "paired by user_id" in notes
    assert "2 of 3 users" in notes
    assert "12 items" in notes
    assert "1 users are compared; a run asked up to 4" in notes


def test_the_same_log_ingested_twice_is_compared_whole(tmp_path: Path) -> None:
    runs = []
    for name, values in [("one", [0.0, 0.5, 0.0, 1.0]), ("two", [0.5, 0.5, 0.0, 0.0])]:
        dataset = shop(tmp_path / name, HISTORIES)
        runs.append(write_report(tmp_path / name, {"ndcg_at_10": np.array(values)}, dataset=dataset.fingerprint))
    row = second(compare(runs, metrics=["ndcg"], n_resamples=200).rows)
    assert row.n_users == 4
    assert row.difference == pytest.approx(-0.125)


def test_a_dataset_that_is_newer_than_its_report_is_refused(tmp_path: Path) -> None:
    runs = [
        write_report(tmp_path / name, {"ndcg_at_10": np.zeros(4)}, dataset=f"before {name}") for name in ("one", "two")
    ]
    for run in runs:
        shop(run, HISTORIES)
    with pytest.raises(InputError, match="another dataset than the one that its report is about"):
        compare(runs, metrics=["ndcg"])


@pytest.mark.parametrize(
    ("other", "options", "words"),
    [
        ({"protocol": "temporal"}, {}, "protocol: 'leave_one_out' and 'temporal'"),
        ({"targets": "next"}, {}, "targets: 'all' and 'next'"),
        ({"model": "teacher"}, {}, "no users of 'student'"),
        ({}, {"metrics": ["mrr"]}, "has no mrr_at_10"),
        ({}, {"k": 7}, "has no ndcg_at_7"),
        ({}, {"metrics": []}, "no metric"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, base: np.ndarray, other: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    one = write_report(tmp_path / "one", {"ndcg_at_10": base})
    two = write_report(tmp_path / "two", {"ndcg_at_10": base}, **other)
    with pytest.raises(InputError, match=words):
        compare([one, two], **({"metrics": ["ndcg"]} | options))


@pytest.mark.parametrize("missing", [lambda run: [run, run.parent / "nothing"], lambda run: [run], lambda run: []])
def test_runs_that_are_not_there(tmp_path: Path, base: np.ndarray, missing: Callable[[Path], list[Path]]) -> None:
    run = write_report(tmp_path / "one", {"ndcg_at_10": base})
    with pytest.raises(InputError, match=r"no report at|1 run was given|no run was given"):
        compare(missing(run), metrics=["ndcg"])
