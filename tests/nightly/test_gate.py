"""The gate: what keeps a challenger out, and what does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recsys.nightly.config import GateConfig
from recsys.nightly.gate import LEAST_BYTES, LEAST_SECONDS, ListFigures, Measured, Verdict, judge

CONFIG = GateConfig(baselines=("most_popular",), n_bootstrap=200)
LISTS = ListFigures(users=1000, empty=0, full=1000, spread=1.0, bytes=100 << 20, seconds=600.0)


def drawn(mean: float, n: int = 400, seed: int = 0) -> npt.NDArray[np.float64]:
    """Values of a metric with this mean: most users are not hit at all."""
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(n) < 0.3, rng.random(n), 0.0)
    return values * mean / values.mean()


CHAMPION = Measured(drawn(0.1), 0.5, {"new": drawn(0.05, 100, 1), "cold": drawn(0.02, 100, 2)}, LISTS)
POPULAR = {"most_popular": drawn(0.05, seed=3)}


def against(verdict: Verdict) -> list[str]:
    assert verdict.promoted == (not verdict.against)
    return [reason.check for reason in verdict.against]


def test_who_is_as_good_as_the_champion_passes_all_there_is_to_pass() -> None:
    verdict = judge(CHAMPION, CHAMPION, POPULAR, CONFIG)
    assert verdict.promoted and all(reason.passed for reason in verdict.reasons)
    assert {reason.check for reason in verdict.reasons} == {
        "users", "primary metric", "segment new", "segment cold", "coverage", "baseline most_popular",
        "empty lists", "full lists", "scores", "spread", "size", "time",
    }  # fmt: skip


CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "surely worse, by less than the tolerance": ({"values": CHAMPION.values - 0.002}, ["primary metric"]),
    "worse by more than the tolerance, in a wide interval": (
        {"values": np.roll(CHAMPION.values, 7) * 0.94},
        ["primary metric"],
    ),
    "worse by less than the tolerance, in a wide interval": ({"values": np.roll(CHAMPION.values, 7) * 0.97}, []),
    "better": ({"values": CHAMPION.values + 0.002}, []),
    "worse for new users": (
        {"segments": dict(CHAMPION.segments) | {"new": CHAMPION.segments["new"] * 0.5}},
        ["segment new"],
    ),
    "worse on cold items": (
        {"segments": dict(CHAMPION.segments) | {"cold": CHAMPION.segments["cold"] * 0.5}},
        ["segment cold"],
    ),
    "fewer items": ({"coverage": 0.39}, ["coverage"]),
    "somewhat fewer items": ({"coverage": 0.41}, []),
    "a value that is not a number": (
        {"values": np.where(np.arange(400) == 5, np.nan, CHAMPION.values)},
        ["users", "primary metric", "baseline most_popular"],
    ),
    "an empty list": ({"lists": replace(LISTS, empty=1)}, ["empty lists"]),
    "short lists": ({"lists": replace(LISTS, full=980)}, ["full lists"]),
    "one short list": ({"lists": replace(LISTS, full=999)}, []),
    "one score for all": ({"lists": replace(LISTS, spread=0.0)}, ["scores", "spread"]),
    "scores that are not numbers": ({"lists": replace(LISTS, spread=float("nan"))}, ["scores", "spread"]),
    "scores gone wild": ({"lists": replace(LISTS, spread=50.0)}, ["spread"]),
    "too large": ({"lists": replace(LISTS, bytes=4 * LISTS.bytes)}, ["size"]),
    "too slow": ({"lists": replace(LISTS, seconds=11 * LISTS.seconds)}, ["time"]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_keeps_a_challenger_out(case: str) -> None:
    change, expected = CASES[case]
    assert against(judge(replace(CHAMPION, **change), CHAMPION, POPULAR, CONFIG)) == expected


def test_the_first_one_is_asked_about_baselines_and_lists_alone() -> None:
    first = judge(CHAMPION, None, POPULAR, CONFIG)
    assert first.promoted and not {"primary metric", "coverage", "size"} & {reason.check for reason in first.reasons}
    assert against(judge(CHAMPION, None, {"most_popular": CHAMPION.values}, CONFIG)) == ["baseline most_popular"]
    assert against(judge(CHAMPION, None, {}, CONFIG)) == ["baseline most_popular"]
    assert against(judge(replace(CHAMPION, lists=replace(LISTS, empty=3)), None, POPULAR, CONFIG)) == ["empty lists"]


def test_few_users_are_not_judged_and_say_so() -> None:
    few = Measured(drawn(0.1, 20), 0.5, {}, LISTS)
    verdict = judge(few, few, {"most_popular": few.values / 2}, CONFIG)
    assert against(verdict) == ["users"]
    unjudged = {reason.check for reason in verdict.reasons if reason.passed is None}
    assert unjudged == {"segment new", "segment cold"}
    nobody = Measured(np.zeros(0), 0.0, {}, LISTS)
    assert "users" in against(judge(nobody, nobody, {"most_popular": np.zeros(0)}, CONFIG))


def test_a_window_on_which_the_champion_itself_fails_judges_nobody() -> None:
    """As on a night whose log was joined wrongly: all models are equally lost, and chance must not promote one."""
    lost = replace(CHAMPION, values=CHAMPION.values / 20, segments={})

    def judged(usual: list[float], *, drop: float = 0.5) -> Verdict:
        config = CONFIG.model_copy(update={"most_drop": drop})
        return judge(lost, lost, {"most_popular": lost.values / 2}, config, usual={"champion": usual})

    verdict = judged([0.1, 0.11, 0.09])
    assert against(verdict) == ["fresh window"]
    assert verdict.against[0].message == "fresh window: champion has 0.0050, and 0.1000 is usual"
    assert judged([0.1, 0.11, 0.09], drop=0.96).promoted
    # One such night before does not hide it, and a change that stays is what is usual after some nights.
    assert against(judged([0.1, 0.005, 0.1, 0.1])) == ["fresh window"]
    assert judged([0.1, 0.1, 0.1, 0.005, 0.005, 0.005, 0.005]).promoted
    # Two nights say nothing yet, and a champion without a hit was never better.
    assert judged([0.1, 0.1]).promoted and judged([0.0, 0.0, 0.0]).promoted


def test_a_log_from_which_the_best_baseline_learns_nothing_lets_nobody_in() -> None:
    """As after a broken backfill: who went on from the champion's weights looks well for a night."""
    usual = {"most_popular": [0.05] * 3, "item_knn": [0.08] * 3, "champion": [0.1] * 3, "student": [0.9] * 3}

    def judged(item_knn: float, most_popular: float = 0.05) -> Verdict:
        baselines = {"most_popular": drawn(most_popular), "item_knn": drawn(item_knn)}
        return judge(CHAMPION, CHAMPION, baselines, CONFIG, usual=usual)

    verdict = judged(0.03)
    assert against(verdict) == ["log"] and verdict.against[0].message == "log: item_knn has 0.0300, and 0.0800 is usual"
    assert judged(0.041).promoted
    # Another one than the best may do as it likes: what is popular changes with the weekday.
    assert judged(0.08, most_popular=0.001).promoted


def test_a_baseline_that_the_champion_does_not_beat_either_keeps_nobody_out() -> None:
    """The choice is between challenger and champion, and the champion would be no better."""
    above, between = {"most_popular": CHAMPION.values * 1.02}, {"most_popular": CHAMPION.values * 0.99}
    verdict = judge(CHAMPION, CHAMPION, above, CONFIG)
    assert verdict.promoted
    reason = next(reason for reason in verdict.reasons if reason.check == "baseline most_popular")
    assert reason.passed is None and "is not above it either" in reason.message
    # One that the champion beats has to be beaten; and so has every one where there is no champion.
    below = replace(CHAMPION, values=CHAMPION.values * 0.98)
    assert "baseline most_popular" in against(judge(below, CHAMPION, between, CONFIG))
    assert against(judge(CHAMPION, None, above, CONFIG)) == ["baseline most_popular"]


def test_small_shops_are_not_kept_out_by_their_size_or_speed() -> None:
    small = replace(LISTS, bytes=1000, seconds=0.1)
    larger = replace(small, bytes=LEAST_BYTES, seconds=LEAST_SECONDS)
    challenger, champion = replace(CHAMPION, lists=larger), replace(CHAMPION, lists=small)
    assert judge(challenger, champion, POPULAR, CONFIG).promoted
    challenger = replace(challenger, lists=replace(larger, bytes=LEAST_BYTES + 1, seconds=LEAST_SECONDS + 1))
    assert against(judge(challenger, champion, POPULAR, CONFIG)) == ["size", "time"]


def test_values_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="primary metric: 400 and 399"):
        judge(CHAMPION, replace(CHAMPION, values=CHAMPION.values[1:]), POPULAR, CONFIG)
    with pytest.raises(ValueError, match="baseline most_popular: 400 and 10"):
        judge(CHAMPION, None, {"most_popular": np.zeros(10)}, CONFIG)


values = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1))


@settings(deadline=None)
@given(values, values, st.floats(0, 0.5), st.integers(0, 5))
def test_whoever_is_promoted_is_above_the_tolerance_and_not_surely_below(
    theirs: npt.NDArray[np.float64], noise: npt.NDArray[np.float64], tolerance: float, seed: int
) -> None:
    """Whatever the values are: the verdict keeps its word, is the same again, and a dominated challenger stays out."""
    config = GateConfig(baselines=(), segments=(), min_users=1, tolerance=tolerance, n_bootstrap=100)
    ours = np.clip(theirs + np.resize(noise, len(theirs)) - 0.5, 0, 1)
    verdict = judge(Measured(ours, 0), Measured(theirs, 0), {}, config, seed=seed)
    assert verdict == judge(Measured(ours, 0), Measured(theirs, 0), {}, config, seed=seed)
    if verdict.promoted:
        assert ours.mean() - theirs.mean() >= -tolerance * theirs.mean() - 1e-12
    if (ours >= theirs).all():
        assert verdict.promoted
    if (ours < theirs).all():
        assert not verdict.promoted
