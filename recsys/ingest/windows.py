"""Long histories cut into sliding windows, so that none of their events is thrown away. Needs only numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.ingest.dataset import Sequences


@dataclass(frozen=True)
class Windows:
    """Pieces of sequences that fit a model which reads only so many events.

    Window w holds `count[w]` events from place `begin[w]` of the flat arrays on. Of its places 0 … `count[w]` (place p
    stands after p events and is asked for the next one), those from `first[w]` on are its own. The places before them
    belong to the window before, which it overlaps by half: a place of a long history is always asked with at least
    half a window of events before it.
    """

    user: npt.NDArray[np.int64]  # [n_windows], a row of the sequences
    begin: npt.NDArray[np.int64]  # [n_windows]
    count: npt.NDArray[np.int64]  # [n_windows]
    first: npt.NDArray[np.int64]  # [n_windows]


def sliding_windows(sequences: Sequences, length: int) -> Windows:
    """Cut sequences into windows of at most `length` events; every place of every sequence belongs to one of them."""
    stride = max(length // 2, 1)
    extra = np.maximum(np.ceil((sequences.lengths - length) / stride), 0).astype(np.int64)
    user = np.repeat(np.arange(len(sequences)), extra + 1)
    number = np.arange(len(user)) - np.repeat(np.cumsum(extra + 1) - extra - 1, extra + 1)
    begin = number * stride
    return Windows(
        user=user,
        begin=sequences.offsets[user] + begin,
        count=np.minimum(sequences.lengths[user] - begin, length),
        first=np.where(number > 0, length - stride + 1, 0),
    )
