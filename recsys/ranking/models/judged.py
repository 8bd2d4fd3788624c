"""Lists of candidates of which it is known what the user took: what a model learns from and is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys.errors import InputError

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

MIN_ROWS: Final = 10  # that tell something about order: fewer teach no model anything
_BLOCK: Final = 1 << 21  # features that are looked at together, so that temporaries stay small


@dataclass(frozen=True, eq=False)
class Judged:
    """Rows of candidates, one row per user, C candidates at most.

    Attributes:
        features: [n, C, F] float32, finite. Padding holds any finite numbers.
        there: [n, C] bool, False for padding.
        gain: [n, C] float32, finite and ≥ 0; 0 for what the user did not take. Nothing is read where there is padding.
        n_targets: [n] int, how many items the user took, whether they are among the candidates or not.
        names: of the F features, distinct.

    Raises:
        InputError: shapes do not fit, a feature or a gain is not finite, a gain is negative, or a row has more
            candidates with a gain than targets.
    """

    features: Floats
    there: Bools
    gain: Floats
    n_targets: npt.NDArray[np.int64]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        check_features(self.features, self.names)
        shape = self.features.shape[:2]
        if self.there.shape != shape or self.gain.shape != shape or self.n_targets.shape != shape[:1]:
            raise InputError(
                f"there {self.there.shape}, gain {self.gain.shape} and n_targets {self.n_targets.shape}",
                expected=f"{shape}, {shape} and {shape[:1]}, as the features have {self.features.shape}",
            )
        gain = self.gain[self.there]
        if not np.isfinite(gain).all() or (gain < 0).any():
            raise InputError(
                "a gain is negative or not finite", expected="numbers of at least 0; 0 for what was not taken"
            )
        if (self.taken.sum(axis=1) > self.n_targets).any():
            raise InputError(
                "a row has more candidates with a gain than targets",
                expected="n_targets counts all that the user took, found among the candidates or not",
            )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.features)

    @property
    def taken(self) -> Bools:
        """[n, C], the candidates that the user took."""
        return self.there & (self.gain > 0)

    def telling_rows(self) -> npt.NDArray[np.int64]:
        """The rows in which something was taken and something was not; the others say nothing about order.

        Raises:
            InputError: there are fewer than `MIN_ROWS`.
        """
        rows = np.flatnonzero(self.taken.any(axis=1) & (self.there & ~self.taken).any(axis=1))
        if len(rows) < MIN_ROWS:
            raise InputError(
                f"{len(rows)} of {len(self)} rows hold candidates that their user took and others",
                expected=f"at least {MIN_ROWS}",
                do="give more users, more candidates for each, or leave the order to the student",
            )
        return rows


def check_features(features: Floats, names: Sequence[str]) -> None:
    """Refuse features that are not [n, C, F] with these F names, or not finite.

    Raises:
        InputError: as said.
    """
    if features.ndim != 3 or features.shape[2] != len(names) or len(set(names)) < len(names):
        raise InputError(
            f"features of shape {features.shape}",
            expected=f"[rows, candidates, {len(names)}], one column for each of {', '.join(names)}",
        )
    # A sum would overflow, and np.isfinite would take a quarter of the features' memory: extremes pass NaN on.
    flat = features.reshape(-1, features.shape[2])
    if flat.size and not (np.isfinite(flat.min()) and np.isfinite(flat.max())):
        strange = [name for name, column in zip(names, flat.T, strict=True) if not np.isfinite(column).all()]
        raise InputError(
            f"not finite: {', '.join(map(repr, strange))}",
            expected="finite numbers, padding included",
            do="give what is missing a number, and say in a further feature that it is missing",
        )


def blocks(n_rows: int, row_size: int) -> list[slice]:
    """Consecutive rows, few enough that temporaries of `row_size` numbers per row stay small."""
    step = max(_BLOCK // max(row_size, 1), 1)
    return [slice(begin, begin + step) for begin in range(0, n_rows, step)]


def ndcg(scores: Floats, judged: Judged, *, k: int = 10) -> npt.NDArray[np.float64]:
    """Binary NDCG@k of each row, the ideal list taken over min(k, n_targets), as in `recsys.evaluation.metrics`.

    Of equal scores the earlier candidate stands first.

    Returns:
        [n] in [0, 1]; 0 where nothing that was taken is among the candidates, NaN where the user has no target.
    """
    keys = np.where(judged.there, -scores.astype(np.float64), np.inf)
    order = np.argsort(keys, axis=1, kind="stable")[:, :k]
    hits = np.take_along_axis(judged.taken, order, axis=1)
    discount = 1 / np.log2(np.arange(k) + 2)
    ideal = np.cumsum(discount)[np.clip(judged.n_targets, 1, k) - 1]
    return np.where(judged.n_targets > 0, hits @ discount[: hits.shape[1]] / ideal, np.nan)
