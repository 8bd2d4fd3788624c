"""The gate: whether a challenger may take the champion's place, and every reason for or against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import numpy.typing as npt

from recsys.evaluation.significance import percentile_interval, resampled_means
from recsys.nightly.config import GateConfig

Values = npt.NDArray[np.float64]

# What is smaller or faster than this is never too large or too slow: on small shops these figures are noise.
LEAST_BYTES = 16 << 20
LEAST_SECONDS = 60.0
# Nights that it takes to say what is usual.
LEAST_NIGHTS = 3
# The checks of what all models are asked about, and of what they learn from.
WINDOW, LOG = "fresh window", "log"


@dataclass(frozen=True)
class ListFigures:
    """What the lists are like that were written for all users.

    Attributes:
        users: who should have one.
        empty: how many have none.
        full: how many have all k items.
        spread: standard deviation of all scores in them; NaN if a score is not finite.
        bytes: size of the lists and of the index.
        seconds: how long making the lists took.
    """

    users: int
    empty: int
    full: int
    spread: float
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """What the fresh window says of a model.

    Attributes:
        values: [n_users] the primary metric; every model's in the same order of users.
        coverage: share of the catalogue that its lists show.
        segments: by name, the same metric of the segment's users, [n_in_segment].
        lists: what is or was served; None if that is not known.
    """

    values: Values
    coverage: float
    segments: Mapping[str, Values] = field(default_factory=dict)
    lists: ListFigures | None = None


@dataclass(frozen=True)
class Reason:
    """One thing that was looked at.

    Attributes:
        check: what it is called.
        passed: whether the challenger passed; None if it could not be judged, which keeps nobody out.
        message: a sentence.
        value: a difference, a ratio or a count.
        low: lower end of its interval.
        high: upper end.
    """

    check: str
    passed: bool | None
    message: str
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger goes live, and why."""

    promoted: bool
    reasons: tuple[Reason, ...]

    @property
    def against(self) -> tuple[Reason, ...]:
        """The reasons that keep it out."""
        return tuple(reason for reason in self.reasons if reason.passed is False)


def judge(
    challenger: Measured,
    champion: Measured | None,
    baselines: Mapping[str, Values],
    config: GateConfig,
    *,
    usual: Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
) -> Verdict:
    """Compare a challenger with the champion and the baselines on the same users. It looks at nothing else.

    The challenger stays out if on the primary metric, or in a guarded segment, its paired bootstrap interval lies below
    the champion's or its mean falls short by more than the tolerance; if it shows much less of the catalogue; if the
    champion or the best baseline is far below what it usually does, so that the fresh window or the log must be
    doubted; if its mean is not above that of a simple baseline, unless the champion's is not either; or if its lists
    are not sane. Without a champion only the baselines and the lists are asked.

    Args:
        challenger: the new model.
        champion: the one that is live; None on the first night.
        baselines: [n_users] the primary metric of each, by name, in the same order of users.
        config: what is asked.
        usual: what the primary metric was on recent nights, of "champion" and of baselines, by name; few nights say
            nothing. The median moves in some nights to where a metric has gone, so that a change that is real keeps
            nobody out for long.
        seed: of the bootstrap.

    Raises:
        ValueError: values that should be paired differ in number.
    """
    reasons = [_enough(challenger, config)]
    if champion is not None:
        pairs = {"primary metric": (challenger.values, champion.values, config.tolerance, 1)} | {
            f"segment {name}": (
                challenger.segments.get(name, np.zeros(0)),
                champion.segments.get(name, np.zeros(0)),
                config.segment_tolerance,
                config.min_segment_users,
            )
            for name in config.segments
        }
        for stream, (check, (ours, theirs, tolerance, least)) in enumerate(pairs.items()):
            rng = np.random.default_rng([seed, stream])
            reasons.append(_not_worse(check, ours, theirs, tolerance, least, config, rng))
        reasons.append(_coverage(challenger.coverage, champion.coverage, config))
        reasons += _as_usual(champion.values, baselines, usual or {}, config)
    live = None if champion is None else champion.values
    reasons += [_beats(challenger.values, live, name, baselines.get(name)) for name in config.baselines]
    if challenger.lists is not None:
        reasons += check_lists(challenger.lists, None if champion is None else champion.lists, config)
    return Verdict(all(reason.passed is not False for reason in reasons), tuple(reasons))


def _enough(challenger: Measured, config: GateConfig) -> Reason:
    n, finite = len(challenger.values), bool(np.isfinite(challenger.values).all())
    said = f"{n:,} users of the fresh window were asked, at least {config.min_users:,} are needed"
    return Reason("users", finite and n >= config.min_users, said if finite else "a value is not a number", n)


def _not_worse(
    check: str,
    ours: Values,
    theirs: Values,
    tolerance: float,
    least: int,
    config: GateConfig,
    rng: np.random.Generator,
) -> Reason:
    if len(ours) != len(theirs):
        raise ValueError(f"{check}: {len(ours)} and {len(theirs)} values cannot be paired")
    if len(ours) < least:
        return Reason(check, None, f"{check}: {len(ours):,} users are too few to judge", float(len(ours)))
    differences = ours - theirs
    if not np.isfinite(differences).all():
        return Reason(check, False, f"{check}: a value is not a number")
    means = resampled_means(differences[:, None], n_resamples=config.n_bootstrap, rng=rng)
    low, high = (float(end[0]) for end in percentile_interval(means, config.confidence))
    mean, allowed = float(differences.mean()), tolerance * float(theirs.mean())
    said = f"{check}: {ours.mean():.4f} against the champion's {theirs.mean():.4f}"
    said = f"{said}, {mean:+.4f} ({low:+.4f} to {high:+.4f})"
    if high < 0:
        return Reason(check, False, f"{said}: surely worse", mean, low, high)
    if mean < -allowed:
        return Reason(check, False, f"{said}: more than {tolerance:.0%} are lost", mean, low, high)
    return Reason(check, True, said, mean, low, high)


def _coverage(ours: float, theirs: float, config: GateConfig) -> Reason:
    passed = ours >= (1 - config.coverage_tolerance) * theirs
    return Reason("coverage", bool(passed), f"coverage: {ours:.1%} of the catalogue, the champion {theirs:.1%}", ours)


def _as_usual(
    theirs: Values, baselines: Mapping[str, Values], usual: Mapping[str, Sequence[float]], config: GateConfig
) -> list[Reason]:
    """Whether window and log can be trusted.

    The champion has learned before, so that it fails where the window is broken. A baseline learns tonight: it fails
    where the log is.
    """
    medians = {name: median(values) for name, values in usual.items() if len(values) >= LEAST_NIGHTS}
    best = max((name for name in baselines if name in medians), key=medians.__getitem__, default=None)
    asked = {WINDOW: ("champion", theirs)} | ({} if best is None else {LOG: (best, baselines[best])})
    reasons = []
    for check, (name, values) in asked.items():
        if name in medians:
            mean, before = float(values.mean()) if len(values) else 0.0, medians[name]
            said = f"{check}: {name} has {mean:.4f}, and {before:.4f} is usual"
            passed = mean >= (1 - config.most_drop) * before
            reasons.append(Reason(check, passed, said, mean / before if before > 0 else None))
    return reasons


def _beats(ours: Values, champion: Values | None, name: str, theirs: Values | None) -> Reason:
    check = f"baseline {name}"
    if theirs is None:
        return Reason(check, False, f"{check}: it was not measured")
    if len(ours) != len(theirs):
        raise ValueError(f"{check}: {len(ours)} and {len(theirs)} values cannot be paired")
    if not len(ours):
        return Reason(check, False, f"{check}: nobody was asked")
    difference = float(ours.mean() - theirs.mean())
    said = f"{check}: {ours.mean():.4f} against {theirs.mean():.4f}"
    if difference <= 0 and champion is not None and champion.mean() <= theirs.mean():
        # To keep the champion would not help: the choice is between these two.
        return Reason(
            check, None, f"{said}, and the champion's {champion.mean():.4f} is not above it either", difference
        )
    return Reason(check, difference > 0, said, difference)


def data_are_as_usual(reasons: Sequence[Reason]) -> bool:
    """Whether a verdict doubts neither window nor log, so that what kept the challenger out lies in itself.

    Nights that are too few to say what is usual do not count as usual.
    """
    passed = {reason.check: reason.passed for reason in reasons}
    return passed.get(WINDOW) is True and passed.get(LOG) is not False


def check_lists(lists: ListFigures, before: ListFigures | None, config: GateConfig) -> list[Reason]:
    """Whether lists are fit to be served.

    Args:
        lists: what was written.
        before: what is served; None if nothing is.
        config: how far they may differ.
    """
    reasons = [
        Reason("empty lists", lists.empty == 0, f"{lists.empty:,} of {lists.users:,} users have no list", lists.empty),
        Reason(
            "full lists",
            lists.full >= config.min_full_lists * lists.users,
            f"{lists.full:,} of {lists.users:,} lists have all their items",
            lists.full / max(lists.users, 1),
        ),
        Reason("scores", lists.spread > 0, f"scores spread by {lists.spread:.3g}", lists.spread),
    ]
    if before is None:
        return reasons
    spread = lists.spread / before.spread if before.spread > 0 else float("nan")
    within = 1 / config.max_spread <= spread <= config.max_spread
    reasons.append(
        Reason(
            "spread",
            # If the champion's do not spread there is nothing to compare with.
            within if before.spread > 0 else None,
            f"scores spread {spread:.3g} times as wide as the champion's",
            spread if np.isfinite(spread) else None,
        )
    )
    size = lists.bytes / max(before.bytes, 1)
    reasons.append(
        Reason(
            "size",
            lists.bytes <= max(config.max_size * before.bytes, LEAST_BYTES),
            f"lists and index are {size:.3g} times as large as the champion's",
            size,
        )
    )
    ours, theirs = (each.seconds / max(each.users, 1) for each in (lists, before))
    reasons.append(
        Reason(
            "time",
            lists.seconds <= max(config.max_time * theirs * lists.users, LEAST_SECONDS),
            f"a user's list took {1000 * ours:.3g} ms, the champion's {1000 * theirs:.3g} ms",
            ours / theirs if theirs > 0 else None,
        )
    )
    return reasons
