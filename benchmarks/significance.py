"""Whether intervals and tests keep what they say: false alarms, power and time.

    python benchmarks/significance.py                  # about ten seconds; a table
    python benchmarks/significance.py --json           # one line per figure

Pairs of models are invented that answer like recommenders: most users get 0, the others 1 / log2(rank + 1), and the
two models agree on half of the users. A trial is one comparison of two models on `--users` users.

`aa`: both models are equally good. `rejected` is the share of trials in which the 95 % bootstrap interval leaves out
0, or the randomization test gives p ≤ 0.05; it has to be 4 to 6 %. `lowest` and `highest` are of the thousands of
trials: at a true 5 %, one thousand in eight falls outside 4 to 6 % by chance. `holm` is the share of families of 10
comparisons with a false alarm after Holm's correction.

`gain`: one model finds a fifth more. `theory` is the power of the paired t-test by its normal approximation, from the
exact mean and variance of the invented differences; `found` has to be within 3 points of it. `wrong_way` is the share
of trials that call the worse model better.

`time`: seconds for 100,000 users, 1,000 resamples and 100 columns, where 10 % of the values and 45 % of the rows are
not 0, as with several models and list lengths; and for 10,000 sign flips of one column.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from _common import Figure, arguments, at_most, report
from scipy import stats

from recsys.evaluation.significance import holm, percentile_interval, randomization_p_values, resampled_means

Values = npt.NDArray[np.float64]

LEVEL = 0.05
RESAMPLES = 1000
BATCH = 250  # trials that share their resamples
FAMILY = 10  # comparisons that Holm's correction takes together
GAIN, POWER = 0.2, 0.8


@dataclass(frozen=True)
class Shoppers:
    """Two invented models and the users that they answer.

    A user u is found with probability p_u = 0.8 · Beta(0.5, 4), about 9 % on average; the rank of what was found is
    uniform in 1 … 10. With probability `agree` the second model gives the first one's value, else a draw of its own,
    with probability (1 + gain) · p_u.
    """

    gain: float = 0.0
    agree: float = 0.5

    FOUND = 0.8
    BETA = (0.5, 4.0)
    DISCOUNT = 1 / np.log2(np.arange(2, 12))

    def differences(self, n_users: int, n_trials: int, rng: np.random.Generator) -> Values:
        """The second model's values minus the first one's, [n_users, n_trials]."""
        shape = n_users, n_trials
        found = self.FOUND * rng.beta(*self.BETA, size=shape)
        first = self._values(found, rng)
        own = self._values(found * (1 + self.gain), rng)
        return np.where(rng.random(shape) < self.agree, 0.0, own - first)

    def _values(self, found: Values, rng: np.random.Generator) -> Values:
        rank = rng.integers(len(self.DISCOUNT), size=found.shape)
        return np.where(rng.random(found.shape) < found, self.DISCOUNT[rank], 0.0)

    def moments(self) -> tuple[float, float]:
        """Exact mean and standard deviation of a user's difference."""
        a, b = self.BETA
        p = self.FOUND * a / (a + b)
        p_squared = self.FOUND**2 * a * (a + 1) / ((a + b) * (a + b + 1))
        v, v_squared = float(self.DISCOUNT.mean()), float((self.DISCOUNT**2).mean())
        apart = 1 - self.agree
        mean = apart * self.gain * p * v
        square = apart * ((2 + self.gain) * p * v_squared - 2 * (1 + self.gain) * p_squared * v**2)
        return mean, float(np.sqrt(square - mean**2))

    def power(self, n_users: int) -> float:
        """Chance that a two-sided paired t-test at `LEVEL` rejects, by the normal approximation."""
        mean, deviation = self.moments()
        shift, critical = mean / deviation * np.sqrt(n_users), stats.norm.isf(LEVEL / 2)
        return float(stats.norm.sf(critical - shift) + stats.norm.cdf(-critical - shift))

    def users_for(self, power: float) -> int:
        """How many users it takes to find the gain with the given power."""
        mean, deviation = self.moments()
        return round(((stats.norm.isf(LEVEL / 2) + stats.norm.ppf(power)) * deviation / mean) ** 2)


@dataclass(frozen=True)
class Trials:
    """What both methods said in every trial, [n_trials]: −1 the second model is worse, 1 it is better, 0 undecided."""

    interval: npt.NDArray[np.int64]
    randomization: npt.NDArray[np.int64]
    p_values: Values


def trials(shoppers: Shoppers, *, n_users: int, n_trials: int, seed: int) -> Trials:
    """Compare the two models so many times, each time on new users."""
    said = []
    for batch, start in enumerate(range(0, n_trials, BATCH)):
        rng = np.random.default_rng([seed, batch])
        differences = shoppers.differences(n_users, min(BATCH, n_trials - start), rng)
        low, high = percentile_interval(resampled_means(differences, n_resamples=RESAMPLES, rng=rng), 1 - LEVEL)
        p_values = randomization_p_values(differences, n_permutations=RESAMPLES - 1, rng=rng)
        sign = np.sign(differences.sum(axis=0))
        said.append(((low > 0) * 1 - (high < 0) * 1, np.where(p_values <= LEVEL, sign, 0), p_values))
    return Trials(*(np.concatenate(parts) for parts in zip(*said, strict=True)))


def main() -> int:
    """Run the trials and judge their figures."""
    parser = arguments(__doc__)
    parser.add_argument("--users", type=int, default=2000, help="users of a trial with equal models")
    parser.add_argument("--trials", type=int, default=10_000, help="trials with equal models, a multiple of 1000")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    figures = [
        *false_alarms(options.users, options.trials, options.seed),
        *power(max(1000, options.trials // 5), options.seed),
        *seconds(options.seed),
    ]
    return report(figures, as_json=options.json)


def false_alarms(n_users: int, n_trials: int, seed: int) -> list[Figure]:
    """Figures of trials in which there is nothing to find."""
    said = trials(Shoppers(), n_users=n_users, n_trials=n_trials, seed=seed)
    figures = []
    for name, verdict in (("interval", said.interval), ("randomization", said.randomization)):
        by_thousand = (verdict != 0).reshape(-1, 1000).mean(axis=1)
        rate = float(by_thousand.mean())
        figures += [
            Figure(f"aa.{name}.rejected", rate, "", "4 to 6 %", 0.04 <= rate <= 0.06),
            Figure(f"aa.{name}.first_thousand", float(by_thousand[0]), "", "4 to 6 %", 0.04 <= by_thousand[0] <= 0.06),
            Figure(f"aa.{name}.lowest", float(by_thousand.min())),
            Figure(f"aa.{name}.highest", float(by_thousand.max())),
        ]
    families = said.p_values.reshape(-1, FAMILY)
    alarms = np.mean([holm(family).min() <= LEVEL for family in families])
    raw = np.mean(families.min(axis=1) <= LEVEL)
    return [*figures, Figure("aa.families.uncorrected", float(raw)), at_most("aa.families.holm", float(alarms), 0.06)]


def power(n_trials: int, seed: int) -> list[Figure]:
    """Figures of trials in which one model is better."""
    shoppers = Shoppers(gain=GAIN)
    n_users = shoppers.users_for(POWER)
    theory = shoppers.power(n_users)
    said = trials(shoppers, n_users=n_users, n_trials=n_trials, seed=seed + 1)
    figures = [Figure("gain.users", n_users), Figure("gain.theory", theory)]
    for name, verdict in (("interval", said.interval), ("randomization", said.randomization)):
        found = float((verdict > 0).mean())
        figures += [
            Figure(f"gain.{name}.found", found, "", f"{theory:.2f} ± 0.03", abs(found - theory) <= 0.03),
            at_most(f"gain.{name}.wrong_way", float((verdict < 0).mean()), 0.001),
        ]
    return figures


def seconds(seed: int) -> list[Figure]:
    """How long a large test part takes."""
    rng = np.random.default_rng(seed)
    n_users, n_columns = 100_000, 100
    reached = rng.random(n_users) < 0.45
    values = rng.random((n_users, n_columns)) * (rng.random((n_users, n_columns)) < 0.1 / 0.45) * reached[:, None]
    started = time.perf_counter()
    resampled_means(values, n_resamples=1000, rng=rng)
    bootstrap = time.perf_counter() - started
    difference = values[:, :1] - values[:, 1:2]
    started = time.perf_counter()
    randomization_p_values(difference, n_permutations=10_000, rng=rng)
    return [
        Figure("time.bootstrap", bootstrap, "s"),
        Figure("time.randomization", time.perf_counter() - started, "s"),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
