"""Pseudo-random numbers that depend on what they are for alone, not on what was drawn before."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint32]


def mix(x: Keys) -> Keys:
    """MurmurHash3's finaliser (Appleby, public domain): a bijection of 32-bit numbers in which every bit stirs all."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x85EBCA6B)
    x = x ^ (x >> np.uint32(13))
    x = x * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def seeded_keys(numbers: npt.NDArray[np.integer], seed: int, *stream: int) -> Keys:
    """A key of 32 bits for each number, the same wherever it is asked for.

    Args:
        numbers: of any shape, such as user_idx.
        seed: the run's.
        stream: what the keys are for, so that two uses of one seed do not go together.
    """
    start = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint32)
    return mix(numbers.astype(np.uint32) ^ start)
