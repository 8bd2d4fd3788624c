"""From each user's candidates to a list: the best first, under caps, with regard to what stands above."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from recsys.ranking.rules import Cap

Items = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


def select(
    items: Items,
    scores: Scores,
    k: int,
    caps: Sequence[Cap] = (),
    *,
    diversity: float = 0.0,
    directions: npt.NDArray[np.float32] | None = None,
    draws: npt.NDArray[np.uint32] | None = None,
    n_drawn: int = 0,
    taken: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """Choose k of each row's candidates, one after the other, all rows at once.

    With `diversity` d the next item is the one of largest (1 − d)·relevance − d·likeness, where relevance is the score
    between the row's lowest (0) and highest (1), and likeness the largest cosine with an item that is in the list
    (maximal marginal relevance: Carbonell & Goldstein, SIGIR 1998).

    Args:
        items: [n, C] item_idx, −1 for none, each once in a row.
        scores: [n, C]; of equal ones the candidate further left is the better.
        k: length of a list.
        caps: how many of a group a list may hold.
        diversity: from 0 to 1.
        directions: [n, C, d] float32 of unit length, for the cosines; needed where `diversity` is above 0.
        draws: [n, C] random numbers; where `n_drawn` is above 0 the last so many places of a list are the candidates
            with the largest ones.
        n_drawn: places that are drawn.
        taken: [n, k] what is chosen already, as is returned; lists go on behind it.

    Returns:
        [n, k] columns of `items`, −1 behind the end of a list that no more candidates may join.
    """
    n, width = items.shape
    chosen = np.full((n, k), -1, dtype=np.int64)
    if not width:
        return chosen
    open_ = items >= 0
    value = _from_0_to_1(scores, open_) if diversity else scores
    likeness = np.full((n, width), -1.0, dtype=np.float32)
    groups = [np.where(open_, cap.code[np.maximum(items, 0)], -1) for cap in caps]
    counts = [np.zeros((n, width), dtype=np.int32) for _ in caps]
    every = np.arange(n)
    for place in range(k):
        if place >= k - n_drawn and draws is not None:
            worth = np.where(open_, draws.astype(np.float64), -1.0)
        elif diversity and place:
            worth = np.where(open_, (1 - diversity) * value - diversity * likeness, -np.inf)
        else:
            worth = np.where(open_, value, -np.inf)
        best = worth.argmax(axis=1)
        may = open_[every, best]
        if taken is not None:
            given = taken[:, place]
            best, may = np.where(given >= 0, given, best), (given >= 0) | may
        row, column = every[may], best[may]
        if not len(row):
            break
        chosen[row, place] = column
        open_[row, column] = False
        for cap, group, count in zip(caps, groups, counts, strict=True):
            own = group[row, column]
            count[row] += (group[row] == own[:, None]) & (own >= 0)[:, None]
            open_[row] &= count[row] < cap.most
        if diversity:
            assert directions is not None
            cosine = np.einsum("ncd,nd->nc", directions[row], directions[row, column])
            likeness[row] = np.maximum(likeness[row], cosine)
    return chosen


def _from_0_to_1(scores: Scores, there: npt.NDArray[np.bool_]) -> Scores:
    """Each row's scores, its lowest at 0 and its highest at 1; 0 where all are equal and where there is none."""
    low = np.where(there, scores, np.inf).min(axis=1, keepdims=True)
    high = np.where(there, scores, -np.inf).max(axis=1, keepdims=True)
    scaled: Scores = np.where(there & (high > low), (scores - low) / np.where(high > low, high - low, 1), 0)
    return scaled.astype(np.float32)
