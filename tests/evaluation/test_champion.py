"""What an earlier run serves, on a later dataset: the same scores under other numbers."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys.api import Run
from recsys.evaluation.scorers import Champion, RankerScorer, StudentScorer
from recsys.ingest.dataset import Dataset, Sequences
from recsys.runtime import Runtime

RUNTIME = Runtime(seed=1, threads=1, progress=False)


class Later(Dataset):
    """The dataset with its items in another order, three of them gone and one come; events of those gone are lost."""

    def __init__(self, earlier: Dataset, place: np.ndarray) -> None:
        super().__init__(earlier.path, earlier.manifest)
        self._items, self._place = earlier.items, place  # [n_items], what each item was; −1 for the new one

    @cached_property
    def items(self) -> pa.Table:
        items = self._items.take(pa.array(np.maximum(self._place, 0)))
        ids = items["item_id"].to_pylist()
        ids[int(np.flatnonzero(self._place < 0)[0])] = "come since"
        return items.set_column(items.column_names.index("item_id"), "item_id", pa.array(ids, pa.string()))

    @property
    def event_types(self) -> tuple[str, ...]:
        return (*super().event_types[::-1], "share")

    @cached_property
    def sequences(self) -> Sequences:
        return self.renumbered(super().sequences)

    @cached_property
    def train(self) -> Sequences:
        return self.renumbered(super().train)

    def renumbered(self, histories: Sequences) -> Sequences:
        now = np.full(len(self._items), -1, np.int32)
        now[self._place[self._place >= 0]] = np.flatnonzero(self._place >= 0)
        items = now[histories.item_idx]
        kept = items >= 0
        types = len(super().event_types) - 1 - histories.event_type
        offsets = np.append(0, np.cumsum(kept))[histories.offsets]
        return Sequences(offsets, items[kept], types[kept], histories.timestamp[kept], histories.session[kept])


@pytest.fixture(scope="module")
def place(finished: Run) -> np.ndarray:
    """Gone is what is seldom taken, so that it is popular nowhere: that would make room for other candidates."""
    rng = np.random.default_rng(0)
    gone = np.argsort(np.bincount(finished.dataset.sequences.item_idx, minlength=finished.dataset.n_items))[:3]
    return rng.permutation(np.append(np.setdiff1d(np.arange(finished.dataset.n_items), gone), -1))


def earlier_scorer(run: Run, with_ranker: bool) -> Any:
    if with_ranker:
        return RankerScorer(run.ranker, run.dataset, run.student, RUNTIME)
    return StudentScorer(run.student, RUNTIME)


@pytest.mark.parametrize("with_ranker", [False, True])
def test_on_its_own_dataset_it_scores_as_it_did(finished: Run, with_ranker: bool) -> None:
    dataset, ranker = finished.dataset, finished.ranker if with_ranker else None
    histories = dataset.histories(np.arange(40))
    champion = Champion(finished.student, ranker, dataset, dataset, RUNTIME)
    assert champion.model.fingerprint == (finished.ranker if with_ranker else finished.student).fingerprint
    np.testing.assert_array_equal(champion.score(histories), earlier_scorer(finished, with_ranker).score(histories))


@pytest.mark.parametrize("with_ranker", [False, True])
def test_items_and_event_types_are_matched_by_name(finished: Run, place: np.ndarray, with_ranker: bool) -> None:
    then = finished.dataset
    later = Later(then, place)
    histories = later.histories(np.arange(40))
    whole = then.histories(np.arange(40))
    known = np.isin(whole.item_idx, place)
    offsets = np.append(0, np.cumsum(known))[whole.offsets]
    left = Sequences(
        offsets, whole.item_idx[known], whole.event_type[known], whole.timestamp[known], whole.session[known]
    )
    expected = earlier_scorer(finished, with_ranker).score(left)
    champion = Champion(finished.student, finished.ranker if with_ranker else None, then, later, RUNTIME)
    scores = champion.score(histories)
    assert scores.shape == (40, len(place))
    assert np.isneginf(scores[:, place < 0]).all()
    np.testing.assert_allclose(scores[:, place >= 0], expected[:, place[place >= 0]], rtol=1e-5, atol=1e-5)
