"""The models as scorers: the student by its dot product, ranker and teacher by ordering what others found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch

from recsys import schema
from recsys.evaluation.ranking import Items, Scorer, Scores, item_mask, tie_keys, top_k
from recsys.ingest.dataset import Dataset, Sequences, only, places
from recsys.ranking.ranker import NOTHING_HIDDEN, Ranker
from recsys.retrieval.snapshot import Snapshot
from recsys.runtime import Runtime


class Fitted(Protocol):
    """What the report says about any model."""

    @property
    def fingerprint(self) -> str:
        """Digest of all that made it."""

    @property
    def manifest(self) -> dict[str, Any]:
        """How it was made."""


class TwoTower(Fitted, Protocol):
    """A model whose score of a pair is a dot product, such as `recsys.student.model.Student`."""

    @property
    def item_vectors(self) -> npt.NDArray[np.float32]:
        """[n_items, d]."""

    def user_vectors(self, histories: Sequences, *, runtime: Runtime) -> npt.NDArray[np.float32]:
        """[n, d]."""


class PairScorer(Fitted, Protocol):
    """A model that reads a history and a candidate together, such as `recsys.teacher.model.Teacher`."""

    def score(self, histories: Sequences, candidates: Items, *, runtime: Runtime) -> npt.NDArray[np.float32]:
        """Scores of `candidates` [n, C]: [n, C]."""


class Reasons(Protocol):
    """What a pair's score was made of, such as `recsys.teacher.explain.Explanation`."""

    @property
    def history(self) -> list[tuple[int, float]]:
        """The user's last items, the most recent first, with what each added."""

    @property
    def words(self) -> list[tuple[str, float]]:
        """The words of the candidate's text, with what each added."""


class Explainer(Protocol):
    """Gives reasons for scores of a `PairScorer`."""

    def __call__(self, history: Sequences, candidates: Items) -> Sequence[Reasons]:
        """The reasons for each of `candidates` [C], for the one row of `history`."""


class StudentScorer:
    """The student over the whole catalogue, exactly (without an index)."""

    name: ClassVar[str] = "student"

    def __init__(self, student: TwoTower, runtime: Runtime) -> None:
        self.student, self.runtime = student, runtime
        self.items = student.item_vectors

    def score(self, histories: Sequences) -> Scores:
        """Dot products of user and item vectors."""
        return self.student.user_vectors(histories, runtime=self.runtime) @ self.items.T


class RankerScorer:
    """The student's and the other sources' candidates in the ranker's order; what is no candidate comes after them.

    Args:
        ranker: what `rank` wrote.
        dataset: that it was trained on.
        student: that it belongs to.
        runtime: where to compute.
        snapshot: what is counted in the log, by item of `dataset`; by default what was known when the test part began.
    """

    name: ClassVar[str] = "ranker"

    def __init__(
        self, ranker: Ranker, dataset: Dataset, student: TwoTower, runtime: Runtime, snapshot: Snapshot | None = None
    ) -> None:
        self.ranker, self.of_student = ranker, StudentScorer(student, runtime)
        snapshot = snapshot or Snapshot.before(dataset, "test", ranker.config.sources.windows)
        self.pairs = ranker.over(dataset, student, snapshot, np.ones(dataset.n_items, np.bool_))

    def score(self, histories: Sequences) -> Scores:
        """The ranker's scores of the candidates; all others below them, in the student's order."""
        users = self.of_student.student.user_vectors(histories, runtime=self.of_student.runtime)
        scores = users @ self.of_student.items.T
        most = min(self.ranker.config.sources.student, scores.shape[1])
        found = torch.topk(torch.from_numpy(scores), most, dim=1).indices.numpy()
        ordered = self.pairs.ordered(self.ranker.model, histories, users, found, NOTHING_HIDDEN)
        there = ordered.items >= 0
        lowest = np.where(there, ordered.scores, np.inf).min(axis=1, initial=np.finfo(np.float32).max)
        scores += (lowest - 1 - scores.max(axis=1))[:, None]
        row, column = np.nonzero(there)
        scores[row, ordered.items[row, column]] = ordered.scores[row, column]
        return scores


class Champion:
    """What an earlier run serves, on a later dataset: its student, in its ranker's order if it has one.

    Items and event types are matched by name. It reads of a history what it knows, and recommends what it knows: an
    item that has come since is never in its lists. What is counted in the log, such as popularity, is as fresh as it
    would be if its lists were made now.

    Args:
        student: of the earlier run.
        ranker: of the earlier run.
        then: the earlier run's dataset.
        now: the later one.
        runtime: where to compute.
    """

    name: ClassVar[str] = "champion"

    def __init__(self, student: TwoTower, ranker: Ranker | None, then: Dataset, now: Dataset, runtime: Runtime) -> None:
        self.model: Fitted = ranker or student
        ids, ids_then = now.items[schema.ITEM_ID], then.items[schema.ITEM_ID]
        self._then = places(ids, ids_then)  # [n_items], what each item was numbered; −1: new
        self._known = np.flatnonzero(self._then >= 0)
        codes = [then.event_types.index(name) if name in then.event_types else -1 for name in now.event_types]
        self._type_then = np.array(codes, dtype=np.int8)
        if ranker is None:
            self._scorer: Scorer = StudentScorer(student, runtime)
        else:
            snapshot = Snapshot.before(now, "test", ranker.config.sources.windows)
            known_now = snapshot.renumbered(places(ids_then, ids))
            self._scorer = RankerScorer(ranker, then, student, runtime, snapshot=known_now)

    def score(self, histories: Sequences) -> Scores:
        """The earlier run's scores, −inf for items that it does not know."""
        scores = np.full((len(histories), len(self._then)), -np.inf, dtype=np.float32)
        scores[:, self._known] = self._scorer.score(self._as_then(histories))[:, self._then[self._known]]
        return scores

    def _as_then(self, histories: Sequences) -> Sequences:
        items, types = self._then[histories.item_idx], self._type_then[histories.event_type]
        return only(replace(histories, item_idx=items, event_type=types), (items >= 0) & (types >= 0))


class TeacherScorer:
    """The teacher as a reranker: it reads only the candidates that the sources put forward.

    A user's candidates are met by walking down the sources' rankings of the whole catalogue in turn (first of one,
    first of the next, second of one, …) until `n_candidates` items that the user has not seen are met; seen items on
    the way are candidates too. So the filtered ranking orders exactly `n_candidates` items, and a target that is not
    among them counts as missed.
    """

    name: ClassVar[str] = "teacher"

    def __init__(
        self, teacher: PairScorer, sources: Sequence[Scorer], *, n_candidates: int, n_items: int, runtime: Runtime
    ) -> None:
        self.teacher, self.sources, self.runtime = teacher, sources, runtime
        self.n_candidates, self.n_items = n_candidates, n_items

    def score(self, histories: Sequences) -> Scores:
        """The teacher's scores of the candidates, −inf elsewhere."""
        candidates, valid = self.candidates(histories)
        given = self.teacher.score(histories, candidates, runtime=self.runtime)
        scores = np.full((len(histories), self.n_items), -np.inf, dtype=np.float32)
        row = np.nonzero(valid)[0]
        scores[row, candidates[valid]] = given[valid]
        return scores

    def candidates(self, histories: Sequences) -> tuple[Items, npt.NDArray[np.bool_]]:
        """Each user's candidates, [n, C] int32, and which of them count, [n, C] bool (the others fill the row)."""
        seen = item_mask(histories, self.n_items)
        depth = min(self.n_items, self.n_candidates + int(seen.sum(axis=1).max(initial=0)))
        keys = tie_keys(np.zeros(len(histories), dtype=np.int32), self.runtime.seed)
        rankings = [top_k(source.score(histories), depth, keys) for source in self.sources]
        met = np.stack(rankings, axis=2).reshape(len(histories), -1)
        new = (met >= 0) & _first_in_row(met)
        fresh = new & ~np.take_along_axis(seen, np.maximum(met, 0), axis=1)
        taken = new & (fresh.cumsum(axis=1) - fresh < self.n_candidates)
        width = int(taken.sum(axis=1).max(initial=1))
        order = np.argsort(~taken, axis=1, kind="stable")[:, :width]
        items, valid = np.take_along_axis(met, order, axis=1), np.take_along_axis(taken, order, axis=1)
        return np.where(valid, items, np.maximum(items[:, :1], 0)), valid


def _first_in_row(items: Items) -> npt.NDArray[np.bool_]:
    """[n, m] bool: whether the value has not stood further left in its row."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    repeated = np.zeros(items.shape, dtype=np.bool_)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return ~repeated
