"""How far a mean over users can be trusted: bootstrap intervals, randomization tests, corrections for many comparisons.

The bootstrap says how large a mean or a difference may be: Efron and Tibshirani, "An Introduction to the Bootstrap"
(1993), percentile interval; on rankings see Sakai, "Evaluating Evaluation Metrics based on the Bootstrap" (SIGIR
2006). The randomization test is a second opinion on whether there is a difference at all. It supposes nothing about
how the values are distributed: Smucker, Allan and Carterette, "A Comparison of Statistical Significance Tests for
Information Retrieval Evaluation" (CIKM 2007). Whoever looks at many comparisons finds a "significant" one by chance;
`holm` and `benjamini_hochberg` make up for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

# Weights of users held at a time: 32 MB of float64.
_DRAWS = 1 << 22
# Statistics this near to each other, relative to the sum of all absolute differences, count as equal: the same numbers
# added in another order differ in the last digits.
_ROUNDING: Final = 1e-10


def resampled_means(values: Values, *, n_resamples: int, rng: np.random.Generator) -> Values:
    """Means of every column over resamples of the rows with replacement.

    All columns of one resample are taken over the same drawn users, so the difference of two columns of the result is
    the resampled mean of their paired difference: put the models to compare side by side in one call.

    Rows of zeros add nothing to any mean, and rankings have many of them. Only how many draws fall on the m other rows
    matters, which is Binomial(n_users, m / n_users); these are then spread over the m rows.

    Args:
        values: [n_users, n_columns], without NaN; n_users ≥ 1.
        n_resamples: how many times n_users users are drawn.
        rng: the source of the draws.

    Returns:
        [n_resamples, n_columns] float64.
    """
    n_users = len(values)
    values = values[values.any(axis=1)]
    means = np.zeros((n_resamples, values.shape[1]))
    if not len(values):
        return means
    block = max(1, _DRAWS // len(values))
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        times = np.empty((size, len(values)))
        for row in times:  # one resample's counts stay in the cache, all of them at once would not
            n_drawn = rng.binomial(n_users, len(values) / n_users)
            row[:] = np.bincount(rng.integers(len(values), size=n_drawn), minlength=len(values))
        means[start : start + size] = times @ values / n_users
    return means


def percentile_interval(samples: Values, confidence: float) -> tuple[Values, Values]:
    """The middle `confidence` of the resampled values.

    Args:
        samples: [n_resamples, …].
        confidence: e.g. 0.95.

    Returns:
        Lower and upper end, […] each.
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
    return low, high


def randomization_p_values(differences: Values, *, n_permutations: int, rng: np.random.Generator) -> Values:
    """Two-sided p-values of the paired randomization test, one per column.

    If it makes no difference which of two models answered a user, the user's difference d_u could as well have been
    −d_u. With T = Σ d_u and T_b = Σ s_bu · d_u for B draws of random signs s_bu = ±1,

        p = (1 + |{b : |T_b| ≥ |T|}|) / (B + 1).

    The test is that of Smucker, Allan and Carterette (CIKM 2007). The + 1 counts the signs that were seen, without
    which p could be 0 and the test would reject too often: Phipson and Smyth, "Permutation P-values Should Never Be
    Zero" (2010). So no p is below 1 / (B + 1). A permutation gives a user the same sign in every column.

    Args:
        differences: [n_users, n_columns], one model's values minus another's, without NaN.
        n_permutations: B.
        rng: the source of the signs.

    Returns:
        [n_columns] float64 in (0, 1]; 1 where no user differs.
    """
    differences = differences[differences.any(axis=1)]  # 0 has no sign
    n_users, n_columns = differences.shape
    total = differences.sum(axis=0)
    needed = np.abs(total) - _ROUNDING * np.abs(differences).sum(axis=0)
    as_far = np.zeros(n_columns, dtype=np.int64)
    words = -(-n_users // 64)  # whole words, so that blocks of any size use the same random bits
    block = max(1, _DRAWS // max(1, n_users))
    for start in range(0, n_permutations, block):
        size = min(block, n_permutations - start)
        drawn = np.frombuffer(rng.bytes(size * words * 8), dtype=np.uint8).reshape(size, -1)
        kept = np.unpackbits(drawn, axis=1, count=n_users).astype(np.float64)
        # With bits instead of signs: Σ s·d = 2 Σ over the kept − Σ d.
        as_far += (np.abs(2 * (kept @ differences) - total) >= needed).sum(axis=0)
    return (1 + as_far) / (n_permutations + 1)


def holm(p_values: Values) -> Values:
    """Adjusted p-values that bound the chance of even one false alarm: p_adj ≤ α holds it to α, however they depend.

    In ascending order p_(1) ≤ … ≤ p_(m): p_adj(i) = max over j ≤ i of min(1, (m − j + 1) · p_(j)). Holm, "A Simple
    Sequentially Rejective Multiple Test Procedure" (Scandinavian Journal of Statistics, 1979).

    Args:
        p_values: [m], of all comparisons that are looked at together.

    Returns:
        [m], in the order of `p_values`.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty_like(p_values)
    scaled = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted


def benjamini_hochberg(p_values: Values) -> Values:
    """Adjusted p-values that bound the expected share of false alarms among all alarms: p_adj ≤ α holds it to α.

    In ascending order p_(1) ≤ … ≤ p_(m): p_adj(i) = min over j ≥ i of min(1, p_(j) · m / j). It finds more than
    `holm` and promises less; it supposes tests that are independent or positively dependent. Benjamini and Hochberg,
    "Controlling the False Discovery Rate" (Journal of the Royal Statistical Society B, 1995).

    Args:
        p_values: [m], of all comparisons that are looked at together.

    Returns:
        [m], in the order of `p_values`.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty_like(p_values)
    scaled = p_values[order] * len(order) / np.arange(1, len(order) + 1)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return adjusted


@dataclass(frozen=True)
class PairedComparison:
    """What is known of the differences of pairs of models; every array is [n_columns], one place per pair.

    Attributes:
        difference: mean of ours minus theirs over the users; positive: ours is better.
        low: lower end of its bootstrap interval.
        high: upper end. The intervals hold one by one; they are not widened for many comparisons.
        p_value: of the paired randomization test, two-sided.
        p_adjusted: the same, corrected for all columns.
    """

    difference: Values
    low: Values
    high: Values
    p_value: Values
    p_adjusted: Values


def compare_paired(
    ours: Values,
    theirs: Values,
    *,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    n_permutations: int = 10_000,
    rng: np.random.Generator,
    adjust: Callable[[Values], Values] = holm,
) -> PairedComparison:
    """Compare models on the same users: how large each difference is, and how likely it is chance.

    Args:
        ours: [n_users, n_columns] per-user values, without NaN; n_users ≥ 1.
        theirs: the same users' values of what each column is compared with.
        confidence: of the intervals.
        n_resamples: bootstrap resamples behind the intervals.
        n_permutations: random signs behind the p-values.
        rng: the source of both.
        adjust: the correction over all columns, `holm` or `benjamini_hochberg`.

    Returns:
        Ours minus theirs, column by column.

    Raises:
        ValueError: the shapes differ, there is no user, or a value is NaN.
    """
    if ours.shape != theirs.shape or not len(ours):
        raise ValueError(f"cannot pair values of shapes {ours.shape} and {theirs.shape}")
    differences = ours - theirs
    if np.isnan(differences).any():
        raise ValueError("a value is NaN: leave out users whom one of the models was not asked about")
    low, high = percentile_interval(resampled_means(differences, n_resamples=n_resamples, rng=rng), confidence)
    p_values = randomization_p_values(differences, n_permutations=n_permutations, rng=rng)
    return PairedComparison(differences.mean(axis=0), low, high, p_values, adjust(p_values))
