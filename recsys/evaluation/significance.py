"""How far a mean over users can be trusted: the bootstrap over users.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), percentile interval; for paired comparison of
rankings see Sakai, "Evaluating Evaluation Metrics based on the Bootstrap" (SIGIR 2006).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

# Drawn users held at a time: 32 MB of indices and as much of counts.
_DRAWS = 1 << 22


def resampled_means(values: Values, *, n_resamples: int, rng: np.random.Generator) -> Values:
    """Means of every column over resamples of the rows with replacement.

    All columns of one resample are taken over the same drawn users, so the difference of two columns of the result is
    the resampled mean of their paired difference: put the models to compare side by side in one call.

    Args:
        values: [n_users, n_columns], without NaN; n_users ≥ 1.
        n_resamples: how many times n_users users are drawn.
        rng: the source of the draws.

    Returns:
        [n_resamples, n_columns] float64.
    """
    n_users = len(values)
    means = np.empty((n_resamples, values.shape[1]))
    block = max(1, _DRAWS // n_users)
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        drawn = rng.integers(n_users, size=(size, n_users)) + np.arange(size)[:, None] * n_users
        times = np.bincount(drawn.ravel(), minlength=size * n_users).reshape(size, n_users)
        means[start : start + size] = times.astype(np.float64) @ values / n_users
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
