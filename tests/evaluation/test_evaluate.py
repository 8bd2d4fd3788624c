from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.artifacts import Recipe
from recsys.errors import InputError, MissingExtraError
from recsys.evaluation.config import EvaluateConfig, TuningConfig
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.plots import write_pngs
from recsys.evaluation.ranking import tie_keys, top_k
from recsys.evaluation.report import DifferenceRow, MetricRow, Report
from recsys.evaluation.scorers import StudentScorer, TeacherScorer
from recsys.evaluation.tuning import BASELINES as DEFAULTS
from recsys.evaluation.tuning import best, tune_baselines
from recsys.ingest.dataset import Dataset, Sequences
from recsys.runtime import Runtime
from recsys.text import TextVectors, TextVectorsConfig

N_USERS, N_ITEMS = 400, 60
# What a shop without text vectors and a temporal split can have.
BASELINES = {"most_popular", "item_knn", "ordered_item_knn", "ease", "als", "bpr"}
QUIET = Runtime(progress=False)
CONFIG = EvaluateConfig(ks=(5, 10, 20), n_bootstrap=200, teacher_users=150, teacher_candidates=15)
WriteDataset = Callable[..., Dataset]


@dataclass
class Towers:
    """A two-tower model given by its item vectors and one vector per last item of the history."""

    items: np.ndarray
    after: np.ndarray
    fingerprint: str = "towers"
    manifest: dict[str, Any] = field(default_factory=lambda: {"fingerprint": "towers", "config": {"dim": 8}})

    @property
    def item_vectors(self) -> np.ndarray:
        return self.items

    def user_vectors(self, histories: Sequences, *, runtime: Runtime) -> np.ndarray:
        last = np.where(histories.lengths > 0, histories.item_idx[np.maximum(histories.offsets[1:] - 1, 0)], 0)
        return self.after[last]


@dataclass
class Pairs:
    """A cross-encoder: the same dot product, but only of the pairs that it is shown; it remembers how many."""

    towers: Towers
    shown: list[int] = field(default_factory=list)
    fingerprint: str = "pairs"
    manifest: dict[str, Any] = field(default_factory=lambda: {"fingerprint": "pairs", "config": {"layers": 2}})

    def score(self, histories: Sequences, candidates: np.ndarray, *, runtime: Runtime) -> np.ndarray:
        assert candidates.dtype == np.int32
        assert ((candidates >= 0) & (candidates < N_ITEMS)).all()
        self.shown += [len(set(row)) for row in candidates.tolist()]
        users = self.towers.user_vectors(histories, runtime=runtime)
        return np.einsum("nd,ncd->nc", users, self.towers.items[candidates])


@pytest.fixture
def successor() -> np.ndarray:
    return np.random.default_rng(7).permutation(N_ITEMS)


@pytest.fixture
def shop(write_dataset: WriteDataset, successor: np.ndarray) -> Dataset:
    """Users who follow an item by its successor four times in ten, else by anything; repeats do happen."""
    rng = np.random.default_rng(0)
    histories = []
    for _ in range(N_USERS):
        row = [int(rng.integers(N_ITEMS))]
        for _ in range(int(rng.integers(3, 9))):
            row.append(int(successor[row[-1]]) if rng.random() < 0.4 else int(rng.integers(N_ITEMS)))
        histories.append(row)
    lengths = [len(row) for row in histories]
    return write_dataset(
        histories,
        [n - 3 for n in lengths],
        [n - 2 for n in lengths],
        n_items=N_ITEMS,
        counts={"rows_in": 2000, "quarantined": {"<b>unknown item</b>": 12}},
    )


@pytest.fixture
def good(successor: np.ndarray) -> Towers:
    """Knows the successor of every item; the rest is noise."""
    rng = np.random.default_rng(1)
    after = rng.standard_normal((N_ITEMS, N_ITEMS)).astype(np.float32) * 0.05
    after[np.arange(N_ITEMS), successor] += 1
    return Towers(np.eye(N_ITEMS, dtype=np.float32), after)


@pytest.fixture
def bad() -> Towers:
    rng = np.random.default_rng(2)
    return Towers(*rng.standard_normal((2, N_ITEMS, 8)).astype(np.float32))


@pytest.fixture
def report(shop: Dataset, good: Towers, tmp_path: Path) -> Report:
    return evaluate(shop, good, Pairs(good), CONFIG, tmp_path / "run" / "report", runtime=QUIET)


def row_of(rows: list[MetricRow], model: str, users: str = "all", seen_filtered: bool = True) -> MetricRow:
    (row,) = [
        row
        for row in rows
        if (row.model, row.users, row.metric, row.k, row.seen_filtered) == (model, users, "ndcg", 10, seen_filtered)
    ]
    return row


def gain_over(rows: list[DifferenceRow], other: str, users: str = "all") -> DifferenceRow:
    (row,) = [
        row
        for row in rows
        if (row.other, row.users, row.metric, row.k, row.seen_filtered) == (other, users, "ndcg", 10, True)
    ]
    return row


def test_rows_are_the_means_of_the_per_user_values(report: Report, shop: Dataset) -> None:
    table = report.per_user.to_pandas()
    assert set(table.model) == {"student", "teacher"} | BASELINES
    for row in report.rows:
        mine = table[(table.model == row.model) & (table.seen_filtered == row.seen_filtered)]
        if row.users == "sample":
            teacher = table[(table.model == "teacher") & (table.seen_filtered == row.seen_filtered)]
            mine = mine[mine.user_idx.isin(teacher.user_idx)]
        assert len(mine) == row.n_users
        assert row.value == pytest.approx(mine[f"{row.metric}_at_{row.k}"].mean(), abs=1e-12)
        assert row.low <= row.value <= row.high
        assert row.protocol == "leave_one_out"
    everybody = row_of(report.rows, "student", seen_filtered=False)
    assert everybody.n_users == len(shop.cases("test"))
    assert row_of(report.rows, "student").n_users < everybody.n_users  # some had seen all of their targets before


def test_differences_are_paired_on_the_same_users(report: Report) -> None:
    for row in report.differences:
        ours, theirs = (
            next(
                r
                for r in report.rows
                if (r.model, r.metric, r.k, r.seen_filtered, r.users)
                == (model, row.metric, row.k, row.seen_filtered, row.users)
            )
            for model in (row.model, row.other)
        )
        assert row.n_users == ours.n_users == theirs.n_users
        assert row.difference == pytest.approx(ours.value - theirs.value, abs=1e-12)
        assert row.low <= row.difference + 1e-12
        assert row.high >= row.difference - 1e-12
    assert {row.other for row in report.differences if row.users == "all"} == BASELINES


def test_a_planted_winner_wins_and_a_planted_loser_loses(
    report: Report, shop: Dataset, bad: Towers, tmp_path: Path
) -> None:
    assert gain_over(report.differences, "most_popular").low > 0
    page = report.html.read_text()
    assert "better than most popular" in page
    loser = evaluate(shop, bad, None, CONFIG, tmp_path / "bad" / "report", runtime=QUIET)
    assert gain_over(loser.differences, "ordered_item_knn").high < 0
    page = loser.html.read_text()
    assert re.search(r"it loses to \d of them", page)
    assert "worse than ordered item-kNN" in page
    assert "The teacher" not in page
    assert {row.users for row in loser.rows} == {"all"}


def test_the_teacher_is_reported_only_where_it_was_measured(report: Report) -> None:
    sample = [row for row in report.rows if row.users == "sample"]
    assert {row.model for row in sample} == {"student", "teacher"} | BASELINES
    assert all(row.n_users <= 150 for row in sample)
    assert row_of(sample, "teacher", "sample", seen_filtered=False).n_users == 150
    assert not any(row.model == "teacher" and row.users == "all" for row in report.rows)
    assert report.value("teacher", "ndcg", 10) == row_of(sample, "teacher", "sample").value


def test_the_teacher_can_reorder_only_what_was_put_forward(shop: Dataset, good: Towers, bad: Towers) -> None:
    """Reranking one source by that source's own scores gives its ranking again, cut at the candidates."""
    cases = shop.cases("test")
    histories = shop.histories(cases.user_idx, cases.history_end)
    source, teacher = StudentScorer(good, QUIET), Pairs(good)
    reranker = TeacherScorer(teacher, [source], n_candidates=15, n_items=N_ITEMS, runtime=QUIET)
    keys = tie_keys(cases.user_idx, 0)
    ours, theirs = source.score(histories), reranker.score(histories)
    seen = np.repeat(np.arange(len(cases)), histories.lengths), histories.item_idx
    ours[seen] = theirs[seen] = -np.inf
    np.testing.assert_array_equal(top_k(theirs, 15, keys), top_k(ours, 15, keys))
    assert (top_k(theirs, 16, keys)[:, 15] == -1).all()  # not one unseen candidate more

    both = TeacherScorer(teacher, [source, StudentScorer(bad, QUIET)], n_candidates=16, n_items=N_ITEMS, runtime=QUIET)
    candidates, valid = both.candidates(histories)
    lists = []
    for towers in (good, bad):
        scores = StudentScorer(towers, QUIET).score(histories)
        lists.append(np.argsort(-scores, axis=1, kind="stable"))
    for row in range(len(cases)):
        before = set(histories.item_idx[histories.offsets[row] : histories.offsets[row + 1]].tolist())
        expected: list[int] = []
        for item in np.stack([each[row] for each in lists], axis=1).ravel().tolist():
            if len(set(expected) - before) == 16:
                break
            if item not in expected:
                expected.append(item)
        assert candidates[row][valid[row]].tolist() == expected


def test_a_teacher_measured_on_everybody_stands_beside_the_others(
    shop: Dataset, good: Towers, bad: Towers, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"teacher_users": N_USERS})
    report = evaluate(shop, bad, Pairs(good), config, tmp_path / "report", runtime=QUIET)
    assert {row.users for row in report.rows} == {"all"}
    assert gain_over(report.differences, "teacher").high < 0
    assert "worse than the teacher" in report.html.read_text()


def test_the_teacher_can_be_left_out(shop: Dataset, good: Towers, tmp_path: Path) -> None:
    teacher = Pairs(good)
    config = CONFIG.model_copy(update={"teacher_users": 0})
    report = evaluate(shop, good, teacher, config, tmp_path / "report", runtime=QUIET)
    assert not teacher.shown
    assert "teacher" not in {row.model for row in report.rows}


def test_same_input_and_seed_same_bytes_and_another_seed_other_intervals(
    report: Report, shop: Dataset, good: Towers, tmp_path: Path
) -> None:
    again = evaluate(shop, good, Pairs(good), CONFIG, tmp_path / "again" / "report", runtime=QUIET)
    for name in ("metrics.json", "per_user.parquet", "examples.json"):
        assert (report.path / name).read_bytes() == (again.path / name).read_bytes()
    one, two = (
        re.sub(r'<section id="cost">.*?</section>', "", r.html.read_text(), flags=re.S) for r in (report, again)
    )
    assert one == two  # all but the seconds
    other = evaluate(shop, good, None, CONFIG, tmp_path / "other" / "report", runtime=Runtime(seed=1, progress=False))
    first, second = (row_of(each.rows, "student") for each in (report, other))
    assert first.value == second.value
    assert (first.low, first.high) != (second.low, second.high)


def test_up_to_date_is_not_done_again(report: Report, shop: Dataset, good: Towers, tmp_path: Path) -> None:
    out = tmp_path / "run" / "report"
    teacher = Pairs(good)
    assert evaluate(shop, good, teacher, CONFIG, out, runtime=QUIET).path == report.path
    assert not teacher.shown
    forced = evaluate(shop, good, teacher, CONFIG, out, runtime=QUIET, force=True)
    assert forced.path != report.path
    assert len(teacher.shown) == 150
    changed = CONFIG.model_copy(update={"n_bootstrap": 300})
    assert evaluate(shop, good, None, changed, out, runtime=QUIET).fingerprint != forced.fingerprint


def test_a_large_test_part_is_sampled(shop: Dataset, good: Towers, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"max_users": 90})
    report = evaluate(shop, good, None, config, tmp_path / "report", runtime=QUIET)
    assert row_of(report.rows, "student", seen_filtered=False).n_users == 90
    assert report.counts["users"] <= 90


def test_a_temporal_split_has_the_recently_popular_too(
    write_dataset: WriteDataset, good: Towers, tmp_path: Path
) -> None:
    day = 86_400_000_000
    histories = [[1, 2, 3], [4, 5, 3], [1, 6, 3]] * 5
    times = [[0, 20 * day, 30 * day]] * len(histories)
    dataset = write_dataset(
        histories,
        [2] * 15,
        [2] * 15,
        n_items=N_ITEMS,
        protocol="temporal",
        timestamps=times,
        info={"train_until": 25 * day, "valid_until": 25 * day},
    )
    report = evaluate(dataset, good, None, CONFIG, tmp_path / "report", runtime=QUIET)
    assert report.value("recently_popular", "recall", 20) >= 0
    assert {row.protocol for row in report.rows} == {"temporal"}
    page = report.html.read_text()
    assert "Recently popular" in page
    assert "training ends 1970-01-26 00:00 UTC" in page


@pytest.fixture
def text(shop: Dataset, tmp_path: Path, successor: np.ndarray) -> TextVectors:
    """Titles that read like those of the items around them in the order of successors."""
    place = np.empty(N_ITEMS)
    place[_chain(successor)] = np.arange(N_ITEMS) * 2 * np.pi / N_ITEMS
    recipe = Recipe("text_vectors", TextVectorsConfig(), {"dataset": shop.fingerprint}, 0, ())
    with recipe.build(tmp_path / "text_vectors") as draft:
        vectors = np.column_stack([np.cos(place), np.sin(place), np.full(N_ITEMS, 3.0)])
        np.save(draft.path / "vectors.npy", vectors.astype(np.float32))
    return TextVectors.open(tmp_path / "text_vectors")


def _chain(successor: np.ndarray) -> list[int]:
    """All items, each cycle of successors one after the other."""
    chain: dict[int, None] = {}
    for item in range(N_ITEMS):
        while item not in chain:
            chain[item] = None
            item = int(successor[item])
    return list(chain)


def test_with_text_and_tuning_every_baseline_is_there_and_at_its_best(
    shop: Dataset, good: Towers, text: TextVectors, report: Report, tmp_path: Path
) -> None:
    search = TuningConfig(baselines=("ordered_item_knn", "text_similarity"), max_trials=12)
    tuning = tune_baselines(shop, search, tmp_path / "tuning", text=text, runtime=QUIET)
    tuned = evaluate(shop, good, None, CONFIG, tmp_path / "report", text=text, tuning=tuning, runtime=QUIET)
    assert {row.model for row in tuned.rows} == {"student", "text_similarity", "ordered_item_knn_text"} | BASELINES
    chosen = best(tuning.trials)
    for name, setting in tuned.baselines.items():
        assert setting.tuned == (name in chosen)
        assert setting.parameters == (chosen[name].parameters if name in chosen else DEFAULTS[name].defaults)
    assert {row.measure for row in tuned.beyond} - {row.measure for row in report.beyond} == {"text_diversity"}
    page = tuned.html.read_text()
    assert "tuned on validation" in page
    assert "Ordered item-kNN with text" in page
    # What was not tuned is as it was.
    assert tuned.value("ease", "ndcg", 10) == report.value("ease", "ndcg", 10)
    assert tuned.fingerprint != report.fingerprint


def test_the_config_says_which_baselines_stand_in_the_report(shop: Dataset, good: Towers, tmp_path: Path) -> None:
    few = CONFIG.model_copy(update={"baselines": ("most_popular", "ease")})
    report = evaluate(shop, good, Pairs(good), few, tmp_path / "report", runtime=QUIET)
    assert {row.model for row in report.rows} == {"student", "teacher", "most_popular", "ease"}
    unknown = CONFIG.model_copy(update={"baselines": ("eaze",)})
    with pytest.raises(InputError, match="unknown baseline 'eaze'"):
        evaluate(shop, good, None, unknown, tmp_path / "other", runtime=QUIET)


def test_the_manifest_keeps_counts_and_timings_and_json_is_plain(report: Report, shop: Dataset) -> None:
    assert report.counts["users"] == row_of(report.rows, "student").n_users
    assert report.counts["student_ndcg_at_10"] == report.value("student", "ndcg", 10)
    assert set(report.manifest["info"]["timings"]) == {row.model for row in report.rows}
    content = json.loads((report.path / "metrics.json").read_text())
    assert set(content) == {"rows", "differences", "coverage", "beyond", "segments", "segment_gains"}
    assert list(content["rows"][0])[:8] == [
        "model",
        "protocol",
        "seen_filtered",
        "metric",
        "k",
        "value",
        "low",
        "high",
    ]
    shown = {(row.model, row.seen_filtered): row.value for row in report.coverage}
    counts = np.bincount(shop.train.item_idx, minlength=N_ITEMS)
    # Of items that tie for the tenth place, every one stands in somebody's ten.
    assert shown["most_popular", False] == pytest.approx((counts >= np.sort(counts)[-10]).mean())
    assert shown["student", True] > shown["most_popular", True]


def test_nobody_to_ask(write_dataset: WriteDataset, good: Towers, tmp_path: Path) -> None:
    dataset = write_dataset([[1, 2], [3]], [2, 1], [2, 1], n_items=N_ITEMS)
    with pytest.raises(InputError, match="no user has an event in the test part"):
        evaluate(dataset, good, None, CONFIG, tmp_path / "report", runtime=QUIET)
    assert not (tmp_path / "report").exists()


def test_only_repurchases_need_the_other_rule(write_dataset: WriteDataset, good: Towers, tmp_path: Path) -> None:
    dataset = write_dataset([[1, 2, 1], [3, 3]], [2, 1], [2, 1], n_items=N_ITEMS)
    with pytest.raises(InputError, match="not in the history already"):
        evaluate(dataset, good, None, CONFIG, tmp_path / "report", runtime=QUIET)
    config = CONFIG.model_copy(update={"primary_seen_filtered": False})
    report = evaluate(dataset, good, None, config, tmp_path / "report", runtime=QUIET)
    assert {row.seen_filtered for row in report.rows} == {False}


def test_a_figure_that_was_not_measured_is_named(report: Report) -> None:
    with pytest.raises(InputError, match="no ndcg@7 of 'student'"):
        report.value("student", "ndcg", 7)
    with pytest.raises(InputError, match="users='all'"):
        report.value("teacher", "ndcg", 10, users="all")


def test_the_verdicts_comparisons_have_p_values_and_no_others(report: Report) -> None:
    for row in report.differences:
        if (row.metric, row.k) == ("ndcg", 10):
            assert row.p_value is not None
            assert row.p_holm is not None
            assert 0 < row.p_value <= row.p_holm <= 1
        else:
            assert row.p_value is row.p_holm is None
    assert gain_over(report.differences, "most_popular").p_holm == pytest.approx(
        1e-4 * len(BASELINES)
    )  # the least there can be


def test_what_lists_are_like_apart_from_hits(report: Report, shop: Dataset) -> None:
    found = {(row.model, row.seen_filtered, row.measure): row.value for row in report.beyond}
    counts = np.bincount(shop.train.item_idx, minlength=N_ITEMS)
    best = np.sort(counts)[::-1][:10]
    assert found["most_popular", False, "novelty"] == pytest.approx(-np.log2(best / counts.sum()).mean())
    assert found["most_popular", False, "cold_share"] == (0.0 if best[-1] else pytest.approx((best == 0).mean()))
    assert found["most_popular", False, "gini"] > found["student", False, "gini"]
    assert found["most_popular", False, "popularity_lift"] > found["student", False, "popularity_lift"]
    assert not any(
        "value_recall" in key or "category_diversity" in key for key in found
    )  # neither prices nor categories


def test_segments_stand_in_the_report_beside_the_best_baseline(report: Report) -> None:
    for rule in (True, False):
        best = max(
            sorted(BASELINES),
            key=lambda model: report.value(model, "ndcg", 10, seen_filtered=rule),
        )
        gains = [row for row in report.segment_gains if row.seen_filtered == rule]
        assert {row.other for row in gains} == {best}
        for gain in gains:
            ours, theirs = (
                next(
                    row
                    for row in report.segments
                    if (row.kind, row.segment, row.model, row.metric, row.seen_filtered)
                    == (gain.kind, gain.segment, model, gain.metric, rule)
                )
                for model in ("student", best)
            )
            assert gain.difference == pytest.approx(ours.value - theirs.value, abs=1e-12)
            assert gain.low <= gain.difference + 1e-12
            assert gain.high >= gain.difference - 1e-12
            assert gain.n_users == ours.n_users == theirs.n_users
        # Users stand in one segment by history each, so these average to the whole.
        history = [
            row for row in report.segments if (row.kind, row.model, row.metric) == ("history", "student", "ndcg")
        ]
        history = [row for row in history if row.seen_filtered == rule]
        whole = row_of(report.rows, "student", seen_filtered=rule)
        assert sum(row.n_users for row in history) == whole.n_users
        mean = sum(row.value * row.n_users for row in history) / whole.n_users
        assert mean == pytest.approx(whole.value, abs=1e-12)
    assert not any(row.model == "teacher" for row in report.segments)  # only on a sample


def test_examples_are_users_as_they_are(report: Report, shop: Dataset) -> None:
    cases = shop.cases("test")
    assert len(report.examples) == 10
    assert len({example.user_id for example in report.examples}) == 10
    for example in report.examples:
        user = int(example.user_id[1:])
        case = int(np.flatnonzero(cases.user_idx == user)[0])
        before = shop.history(user, int(cases.history_end[case])).tolist()
        assert example.n_history == len(before) >= 3
        assert [item.item_id for item in example.history] == [f"i{item}" for item in before[-8:]]
        targets = {f"i{item}" for item in cases.targets[case].tolist()} - {f"i{item}" for item in before}
        assert {item.item_id for item in example.targets} == targets != set()
        assert {"student", "teacher", "ordered_item_knn"} <= set(example.lists)
        for items in example.lists.values():
            assert len(items) == 10
            assert all(item.hit == (item.item_id in targets) for item in items)
            assert not {item.item_id for item in items} & {f"i{item}" for item in before}
    per_user = report.per_user.to_pandas()
    hit = per_user[(per_user.model == "student") & per_user.seen_filtered].set_index("user_idx").hit_rate_at_10
    for example in report.examples:
        assert hit[int(example.user_id[1:])] == any(item.hit for item in example.lists["student"])


@dataclass(frozen=True)
class Told:
    """Reasons as an explainer gives them."""

    history: list[tuple[int, float]]
    words: list[tuple[str, float]]


def test_the_teacher_s_first_item_is_explained(shop: Dataset, good: Towers, tmp_path: Path) -> None:
    asked = []

    def explain(history: Sequences, candidates: np.ndarray) -> list[Told]:
        asked.append((history.item_idx.tolist(), candidates.tolist()))
        last = int(history.item_idx[-1])
        return [
            Told([(last, 0.5), (last, -0.25)], [("<b>odd</b>", 1.0), ("word", -2.0), ("nothing", 0.001)])
            for _ in candidates
        ]

    report = evaluate(shop, good, Pairs(good), CONFIG, tmp_path / "report", explain=explain, runtime=QUIET)
    for example, (history, candidates) in zip(report.examples, asked, strict=True):
        assert example.why is not None
        assert example.why.item.item_id == example.lists["teacher"][0].item_id
        assert [f"i{item}" for item in history][-8:] == [item.item_id for item in example.history]
        assert [f"i{item}" for item in candidates] == [example.why.item.item_id]
        assert example.why.history[0] == (example.history[-1], 0.5)
        assert example.why.words[1] == ("word", -2.0)
    page = report.html.read_text()
    assert "−1.00</span> &lt;b&gt;odd&lt;/b&gt;" in page  # escaped, and what the score would lose
    assert "<b>odd</b>" not in page
    assert "+2.00</span> word" in page
    assert "</span> nothing" not in page


def test_the_next_item_alone_can_be_asked(write_dataset: WriteDataset, good: Towers, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    histories = [rng.permutation(N_ITEMS)[:8].tolist() for _ in range(50)]
    dataset = write_dataset(histories, [4] * 50, [5] * 50, n_items=N_ITEMS, protocol="temporal")
    config = CONFIG.model_copy(update={"targets": "next"})
    report = evaluate(dataset, good, None, config, tmp_path / "next" / "report", runtime=QUIET)
    assert {row.protocol for row in report.rows} == {"temporal_next"}
    assert report.value("student", "recall", 10) == report.value("student", "hit_rate", 10)
    for example in report.examples:
        assert [item.item_id for item in example.targets] == [f"i{histories[int(example.user_id[1:])][5]}"]
    every = evaluate(dataset, good, None, CONFIG, tmp_path / "all" / "report", runtime=QUIET)
    assert {row.protocol for row in every.rows} == {"temporal"}
    assert {len(example.targets) for example in every.examples} == {3}


def test_what_was_bought_may_be_bought_again(write_dataset: WriteDataset, tmp_path: Path) -> None:
    """Item 1 was bought, item 2 only viewed; both follow again. The model puts them first, then all others."""
    view, purchase = 0, 2
    towers = Towers(np.eye(N_ITEMS, dtype=np.float32), np.zeros((N_ITEMS, N_ITEMS), np.float32))
    towers.after[:] = -np.arange(N_ITEMS)
    towers.after[:, [1, 2]] = [2, 1]
    dataset = write_dataset(
        [[1, 2, 3, 1, 2, 5]] * 30,
        [3] * 30,
        [3] * 30,
        n_items=N_ITEMS,
        protocol="temporal",
        event_types=[[purchase, view, view, purchase, view, view]] * 30,
    )
    config = CONFIG.model_copy(update={"repurchases": True, "ks": (1, 5, 10)})
    report = evaluate(dataset, towers, None, config, tmp_path / "again" / "report", runtime=QUIET)
    again = report.examples[0]
    assert [item.item_id for item in again.targets] == ["i1", "i5"]
    assert [item.item_id for item in again.lists["student"]][:4] == ["i1", "i0", "i4", "i5"]
    assert report.value("student", "precision", 1) == 1
    assert report.value("student", "recall", 5) == 1
    assert report.value("student", "recall", 1, seen_filtered=False) == pytest.approx(1 / 3)  # 1 of 1, 2 and 5
    never = evaluate(dataset, towers, None, CONFIG, tmp_path / "never" / "report", runtime=QUIET)
    assert [item.item_id for item in never.examples[0].targets] == ["i5"]
    assert [item.item_id for item in never.examples[0].lists["student"]][:3] == ["i0", "i4", "i5"]


def test_plots_are_written_for_slides(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = write_pngs(report, tmp_path / "slides")
    assert [path.name for path in paths] == ["recall_curves.png", "differences.png", "segments.png"]
    for path in paths:
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(content[16:20], "big") == 1600  # pixels wide


def test_plots_say_what_they_need(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        write_pngs(report, tmp_path / "slides")
    assert not (tmp_path / "slides").exists()


def test_config_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="user_segments"):
        EvaluateConfig(user_segments=(5, 5, 20))
    with pytest.raises(ValueError, match="must ascend"):
        EvaluateConfig(ks=(10, 5))
    with pytest.raises(ValueError, match="primary_k = 10 must be one of ks"):
        EvaluateConfig(ks=(5, 20))
