"""Models of the ranker: what they find in data whose truth is known, and what may not change a score."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from recsys.errors import InputError, MissingExtraError
from recsys.ranking.models.boosted import Boosted
from recsys.ranking.models.fit import MODELS, Contender, Fitted, fit_models
from recsys.ranking.models.judged import Judged, ndcg
from recsys.ranking.models.lambdamart import LambdaMart
from recsys.ranking.models.linear import Linear
from recsys.ranking.models.model import RankModel, StudentOrder

NAMES = ("student", "price", "age", "noise")
TRUTH = np.array([1.0, -0.7, 0.4, 0.0])
# The scale of a column is nobody's business but the model's.
SCALE, SHIFT = np.array([2.0, 100.0, 0.01, 1.0]), np.array([0.0, 1e4, 5.0, -3.0])


def judged(
    n: int,
    *,
    seed: int,
    weights: np.ndarray = TRUTH,
    interaction: float = 0.0,
    n_candidates: int = 30,
    noise: float = 1,
) -> Judged:
    """Each user takes the item of the largest utility; its noise is Gumbel's, so that a softmax is the true model."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, n_candidates, len(NAMES)))
    utility = x @ weights + interaction * x[:, :, 1] * x[:, :, 2] + noise * rng.gumbel(size=x.shape[:2])
    gain = np.zeros(x.shape[:2], np.float32)
    gain[np.arange(n), utility.argmax(axis=1)] = 1
    features = (x * SCALE + SHIFT).astype(np.float32)
    return Judged(features, np.ones(gain.shape, bool), gain, np.ones(n, np.int64), NAMES)


def padded(data: Judged, places: int, fill: float) -> Judged:
    """The same lists with padding behind them, whose gain and features are rubbish."""
    wide = [(0, 0), (0, places)]
    return Judged(
        np.pad(data.features, [*wide, (0, 0)], constant_values=fill),
        np.pad(data.there, wide),
        np.pad(data.gain, wide, constant_values=np.nan),
        data.n_targets,
        data.names,
    )


def some(data: Judged, rows: np.ndarray) -> Judged:
    return Judged(data.features[rows], data.there[rows], data.gain[rows], data.n_targets[rows], data.names)


@pytest.fixture(scope="module")
def train() -> Judged:
    return judged(600, seed=1, interaction=1.5)


@pytest.fixture(scope="module")
def valid() -> Judged:
    return judged(600, seed=2, interaction=1.5)


def installed() -> list[str]:
    try:
        import lightgbm  # noqa: F401
    except ImportError:
        return ["linear", "boosted"]
    return ["linear", "boosted", "lambdamart"]


@pytest.fixture(scope="module")
def fitted(train: Judged, valid: Judged) -> Fitted:
    return fit_models(train, valid, installed(), seed=3, threads=1, max_trees=40)


@pytest.fixture(params=[*MODELS])
def model(request: pytest.FixtureRequest, fitted: Fitted) -> RankModel:
    if request.param not in fitted.models:
        pytest.skip("lightgbm is not installed")
    return fitted.models[request.param]


def test_scores_depend_on_nothing_but_the_pair(model: RankModel, valid: Judged) -> None:
    x = valid.features[:50]
    scores = model.scores(x)
    assert scores.shape == (50, 30) and scores.dtype == np.float32
    rng = np.random.default_rng(0)
    columns = rng.permuted(np.tile(np.arange(30), (50, 1)), axis=1)
    rows = rng.permutation(50)
    moved = np.take_along_axis(x, columns[:, :, None], axis=1)
    np.testing.assert_array_equal(model.scores(moved), np.take_along_axis(scores, columns, axis=1))
    np.testing.assert_array_equal(model.scores(x[rows]), scores[rows])
    np.testing.assert_array_equal(model.scores(x[7:8, 3:4]), scores[7:8, 3:4])
    np.testing.assert_array_equal(model.scores(padded(some(valid, np.arange(50)), 3, 1e9).features)[:, :30], scores)
    assert model.scores(x[:0]).shape == (0, 30)


def test_many_rows_score_as_few(model: RankModel, valid: Judged) -> None:
    """Enough of them that every model works in several blocks."""
    many = np.tile(valid.features, (30, 1, 1))
    np.testing.assert_array_equal(model.scores(many), np.tile(model.scores(valid.features), (30, 1)))


def test_a_loaded_model_scores_the_same_to_the_bit(model: RankModel, valid: Judged, tmp_path: Path) -> None:
    model.save(tmp_path)
    again = MODELS[model.name].load(tmp_path)
    assert again.names == NAMES
    np.testing.assert_array_equal(again.scores(valid.features), model.scores(valid.features))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_no_number_is_refused_by_name(model: RankModel, valid: Judged, value: float) -> None:
    x = valid.features[:5].copy()
    x[3, 7, 1] = value
    with pytest.raises(InputError, match="not finite: 'price'"):
        model.scores(x)
    with pytest.raises(InputError, match=r"\[rows, candidates, 4\]"):
        model.scores(x[:, :, :3])


def test_seed_alone_decides(train: Judged, valid: Judged) -> None:
    few = some(train, np.arange(60))
    linear = Linear.fit(few)
    np.testing.assert_array_equal(Linear.fit(few).weights, linear.weights)
    kinds = [Boosted, LambdaMart] if "lambdamart" in installed() else [Boosted]
    for kind in kinds:
        one, same, other = (
            kind.fit(few, linear, seed=seed, threads=1, max_trees=3).scores(valid.features) for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(one, same)
        assert (one != other).any()


@pytest.mark.parametrize("fill", [0.0, 1e6])
def test_padding_teaches_nothing(train: Judged, valid: Judged, fill: float) -> None:
    wide = padded(train, 4, fill)
    linear = Linear.fit(train)
    np.testing.assert_allclose(Linear.fit(wide).weights, linear.weights, rtol=1e-6)
    # With all negatives nothing is drawn among the candidates, so that the trees have to be the same.
    options: dict[str, Any] = {"seed": 1, "threads": 1, "max_trees": 5}
    trees = [Boosted.fit(data, linear, negatives=99, **options) for data in (train, wide)]
    np.testing.assert_array_equal(trees[0].scores(valid.features), trees[1].scores(valid.features))
    if "lambdamart" in installed():
        boosters = [LambdaMart.fit(data, linear, **options) for data in (train, wide)]
        np.testing.assert_array_equal(boosters[0].scores(valid.features), boosters[1].scores(valid.features))
    np.testing.assert_array_equal(ndcg(linear.scores(wide.features), wide), ndcg(linear.scores(train.features), train))


@pytest.mark.parametrize("gain", [0, 1])
def test_rows_in_which_nothing_or_everything_was_taken_teach_nothing(train: Judged, valid: Judged, gain: float) -> None:
    empty = judged(50, seed=9)
    empty = dataclasses.replace(empty, gain=np.full_like(empty.gain, gain), n_targets=np.full(50, 30))
    both = Judged(
        *(
            np.concatenate([getattr(train, field), getattr(empty, field)])
            for field in ("features", "there", "gain", "n_targets")
        ),
        NAMES,
    )
    linear = Linear.fit(both)
    np.testing.assert_array_equal(linear.weights, Linear.fit(train).weights)
    one, other = (Boosted.fit(data, linear, seed=1, threads=1, max_trees=5) for data in (train, both))
    np.testing.assert_array_equal(one.scores(valid.features), other.scores(valid.features))


class TestLinear:
    def test_recovers_the_weights(self) -> None:
        weights = Linear.fit(judged(4000, seed=1)).weights
        np.testing.assert_allclose(weights, TRUTH, atol=0.06)  # of standardised features, as the truth is

    def test_with_two_candidates_it_is_logistic_regression_on_their_difference(self) -> None:
        data = judged(300, seed=1, n_candidates=2)
        model = Linear.fit(data, l2=0.01)
        z = (data.features.astype(float) - model.mean) / model.std
        difference, first = z[:, 0] - z[:, 1], data.gain[:, 0] > 0
        # scikit-learn weighs the sum of losses by C against |w|²/2.
        oracle = LogisticRegression(fit_intercept=False, C=1 / (0.01 * len(data)), tol=1e-10).fit(difference, first)
        np.testing.assert_allclose(model.weights, oracle.coef_[0], rtol=1e-4)

    def test_gains_are_the_target(self) -> None:
        """Where all rows are alike and a feature tells each candidate, the softmax reproduces the gains' shares."""
        # Where all three are taken a row does not tell what was left; a fourth candidate that nobody takes does.
        features, gain = np.eye(4, 3, dtype=np.float32), np.array([6, 3, 1, 0], np.float32)
        there, n_targets = np.ones((20, 4), bool), np.full(20, 3)
        data = Judged(np.tile(features, (20, 1, 1)), there, np.tile(gain, (20, 1)), n_targets, ("student", "b", "c"))
        scores = Linear.fit(data, l2=1e-9).scores(data.features)[0].astype(float)
        share = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(share, [0.6, 0.3, 0.1, 0], atol=1e-3)

    def test_a_constant_feature_says_nothing_even_when_it_moves_later(self) -> None:
        data = judged(100, seed=1)
        data.features[:, :, 2] = np.float32(0.1)  # no float64: its mean is not exactly itself
        model = Linear.fit(data)
        assert model.weights[2] == 0 and model.weights[0] > 0.5  # the others still tell
        moved = data.features.copy()
        moved[:, :, 2] = 1e6
        np.testing.assert_array_equal(model.scores(moved), model.scores(data.features))


class TestBoosted:
    def test_it_finds_an_interaction_that_a_sum_cannot(self, fitted: Fitted) -> None:
        figures = {each.name: each for each in fitted.contenders}
        assert list(figures) == ["student", *installed()]
        assert figures["boosted"].ndcg > figures["linear"].ndcg + 0.05 > figures["student"].ndcg + 0.05
        assert fitted.model is fitted.models[max(figures, key=lambda name: figures[name].ndcg)]

    @settings(max_examples=25, deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        n_trees=st.integers(1, 12),
        n_leaves=st.integers(2, 31),
        values=st.integers(1, 400),
        n=st.integers(30, 600),
    )
    def test_scores_are_those_of_scikit_learn(
        self, seed: int, n_trees: int, n_leaves: int, values: int, n: int
    ) -> None:
        rng = np.random.default_rng(seed)
        # Few values and the very thresholds, so that x = threshold happens.
        x = (rng.integers(0, values, (n, 3)) / np.float32(7)).astype(np.float32)
        linear = Linear(("student", "a", "b"), np.array([1.0, 0.5, 0]), np.zeros(3), np.ones(3))
        wide, y = linear.append_to(x), rng.random(n) < 0.3
        y[:2] = True, False
        oracle = HistGradientBoostingClassifier(
            max_iter=n_trees, max_leaf_nodes=n_leaves, min_samples_leaf=1, early_stopping=False
        ).fit(wide, y)
        model = Boosted.of(oracle, linear)
        assert model.n_trees == n_trees
        asked = np.concatenate([x, rng.normal(size=(50, 3)).astype(np.float32) * 30, (x[:5] + np.float32(1 / 14))])
        expected = oracle.decision_function(linear.append_to(asked))
        np.testing.assert_allclose(model.scores(asked[:, None])[:, 0], expected, rtol=1e-5, atol=1e-5)

    def test_negatives_are_bounded_and_drawn_from_what_is_there(
        self, train: Judged, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[str, Any] = {}
        fit = HistGradientBoostingClassifier.fit

        def watched(self: Any, x: Any, y: Any, **options: Any) -> Any:
            seen.update(w=np.concatenate([options["sample_weight"], options["sample_weight_val"]]))
            seen.update(x=np.concatenate([x, options["X_val"]]), y=np.concatenate([y, options["y_val"]]), **options)
            return fit(self, x, y, **options)

        monkeypatch.setattr(HistGradientBoostingClassifier, "fit", watched)
        dear = dataclasses.replace(train, gain=train.gain * np.where(np.arange(600) < 300, 6, 2)[:, None])
        Boosted.fit(padded(dear, 5, 1e9), Linear.fit(train), seed=1, threads=1, negatives=3, max_trees=2)
        assert seen["y"].sum() == 600 and len(seen["y"]) == 4 * 600
        assert seen["x"].max() < 1e8  # no padding among them
        weights = seen["w"]
        assert set(weights[~seen["y"]]) == {1} and sorted(weights[seen["y"]]) == [0.5] * 300 + [1.5] * 300
        assert len(seen["y_val"]) == 4 * 60 and seen["y_val"].sum() == 60  # whole lists


def test_lambdamart_takes_gains_of_any_size(train: Judged, valid: Judged) -> None:
    pytest.importorskip("lightgbm")
    rng = np.random.default_rng(0)
    spread = dataclasses.replace(train, gain=train.gain * rng.lognormal(size=train.gain.shape).astype(np.float32))
    linear = Linear.fit(spread)
    model = LambdaMart.fit(spread, linear, seed=1, threads=1, max_trees=40)
    grades = re.search(r"\[label_gain: (.*)\]", model.booster.model_to_string())
    assert grades and len(grades[1].split(",")) == 32  # a file does not grow with the prices of a shop
    assert ndcg(model.scores(valid.features), valid).mean() > ndcg(linear.scores(valid.features), valid).mean() + 0.05


def test_without_lightgbm_the_extra_is_named(
    train: Judged, valid: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(MissingExtraError, match=r"recsys\[lambdamart\]"):
        fit_models(train, valid, ["lambdamart"], seed=1)
    Linear.fit(train).save(tmp_path)
    with pytest.raises(MissingExtraError, match=r"recsys\[lambdamart\]"):
        LambdaMart.load(tmp_path)


class TestChoice:
    def test_where_nothing_but_the_student_tells_its_order_stays(self) -> None:
        only = np.array([1.0, 0, 0, 0])
        for seed in range(3):
            train, valid = (judged(300, seed=10 * seed + part, weights=only) for part in (1, 2))
            fitted = fit_models(train, valid, ["linear", "boosted"], seed=seed, threads=1, max_trees=20)
            assert fitted.model.name == "student"
            np.testing.assert_array_equal(fitted.model.scores(valid.features), valid.features[:, :, 0])

    def test_figures_are_means_over_users_with_targets(self, train: Judged, valid: Judged) -> None:
        n_targets = valid.n_targets.copy()
        n_targets[:100], valid_gain = 3, valid.gain.copy()
        valid_gain[100:200] = 0  # taken, but not found
        valid_gain[200:300] = 0
        n_targets[200:300] = 0  # nothing taken at all: tells nothing, about no model
        fitted = fit_models(train, dataclasses.replace(valid, gain=valid_gain, n_targets=n_targets), ["linear"], seed=0)
        kept = np.r_[0:200, 300:600]
        expected = {}
        for name, model in fitted.models.items():
            ranks = (-model.scores(valid.features)).argsort(axis=1, kind="stable").argsort(axis=1)
            rank = ranks[valid.gain > 0]
            values = np.where(rank < 10, 1 / np.log2(rank + 2), 0)
            values[:100] /= 1 + 1 / np.log2(3) + 1 / 2
            values[100:200] = 0
            expected[name] = values[kept]
        difference = expected["linear"] - expected["student"]
        student, linear = fitted.contenders
        assert student.ndcg == pytest.approx(expected["student"].mean())
        assert linear.ndcg == pytest.approx(expected["linear"].mean())
        assert linear.gain == pytest.approx(difference.mean())
        assert linear.error == pytest.approx(difference.std(ddof=1) / np.sqrt(500))
        assert (student.gain, student.error) == (0, 0) and not student.is_better

    def test_within_two_errors_is_not_better(self) -> None:
        assert Contender("linear", 0.2, 0.021, 0.01).is_better
        assert not Contender("linear", 0.2, 0.019, 0.01).is_better

    def test_what_cannot_be_fitted_is_said(self, train: Judged, valid: Judged) -> None:
        for names in (["lambda"], ["student"]):
            with pytest.raises(InputError, match="unknown models"):
                fit_models(train, valid, names, seed=0)
        other = dataclasses.replace(valid, names=("student", "age", "price", "noise"))
        with pytest.raises(InputError, match="those of training"):
            fit_models(train, other, seed=0)
        with pytest.raises(InputError, match="the student's score"):
            StudentOrder(("price", "age"))
        with pytest.raises(InputError, match="9 of 9 rows hold"):
            fit_models(some(train, np.arange(9)), valid, seed=0)
        nobody = dataclasses.replace(valid, gain=np.zeros_like(valid.gain), n_targets=np.zeros_like(valid.n_targets))
        with pytest.raises(InputError, match="no validation row"):
            fit_models(train, nobody, seed=0)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_candidates=st.integers(1, 25), k=st.integers(1, 12))
def test_ndcg_is_that_of_the_report(seed: int, n_candidates: int, k: int) -> None:
    from recsys.evaluation.metrics import NDCG

    rng = np.random.default_rng(seed)
    there = rng.random((8, n_candidates)) < 0.8
    gain = rng.integers(0, 3, (8, n_candidates)).astype(np.float32)
    taken = there & (gain > 0)
    n_targets = taken.sum(axis=1) + rng.integers(0, 3, 8)
    data = Judged(rng.random((8, n_candidates, 1), np.float32), there, gain, n_targets, ("student",))
    scores = rng.integers(0, 5, (8, n_candidates)).astype(np.float32)
    hits = np.zeros((8, n_candidates), bool)
    for row in range(8):
        order = sorted(np.flatnonzero(there[row]), key=lambda place: (-scores[row, place], place))
        hits[row, : len(order)] = taken[row, order]
    np.testing.assert_allclose(ndcg(scores, data, k=k), NDCG(k)(hits, n_targets))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gain": -1.0}, "negative"),
        ({"gain": np.nan}, "not finite"),
        ({"features": np.nan}, "not finite: 'student', 'price', 'age', 'noise'"),
        ({"features": np.inf}, "not finite"),
        ({"n_targets": 0}, "more candidates with a gain than targets"),
    ],
)
def test_what_no_judgement_is_is_refused(change: dict[str, float], said: str) -> None:
    data = judged(3, seed=0)
    ((field, value),) = change.items()
    with pytest.raises(InputError, match=said):
        dataclasses.replace(data, **{field: np.full_like(getattr(data, field), value)})


def test_shapes_have_to_fit() -> None:
    data = judged(3, seed=0)
    with pytest.raises(InputError, match="one column for each of"):
        dataclasses.replace(data, names=("student", "price"))
    with pytest.raises(InputError, match="one column for each of"):
        dataclasses.replace(data, names=("student", "price", "price", "noise"))
    with pytest.raises(InputError, match=r"there \(3, 29\)"):
        dataclasses.replace(data, there=data.there[:, 1:])
