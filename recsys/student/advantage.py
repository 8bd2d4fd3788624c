"""Where the teacher knows more than the student: soft labels count more there, and less where it knows less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from recsys.evaluation.segments import HEAD, popularity_segments
from recsys.ingest.dataset import Dataset, Sequences
from recsys.sequence.towers import Towers, encode_users
from recsys.soft_labels import Rows
from recsys.student.config import DistillConfig

LIGHT: Final = 3  # events; a user with more has told who it is
HEAD_SHARE: Final = 0.5  # of all events, those on the items that are no tail
SEGMENTS: Final = ("light_tail", "light_head", "known_tail", "known_head")
SHRINK: Final = 50  # validation rows of the average segment that each one is believed to have beside its own


@dataclass(frozen=True)
class Advantage:
    """Soft labels whose true answer the validation part knows, to compare teacher and student on.

    Attributes:
        histories: n rows, what was known.
        candidate: [n, C] int32, −1 for padding.
        gain: [n, C], what the candidate would earn at the top: 1 for a target of the validation part, else 0.
        teacher: [n], NDCG@10 of the teacher's order of the candidates.
        segment: [n], which of `SEGMENTS`.
        max_history: events that the student reads.
    """

    histories: Sequences
    candidate: npt.NDArray[np.int32]
    gain: npt.NDArray[np.bool_]
    teacher: npt.NDArray[np.float64]
    segment: npt.NDArray[np.int64]
    max_history: int

    @classmethod
    def find(cls, rows: Rows, dataset: Dataset, config: DistillConfig, *, seed: int) -> Advantage:
        """The rows at the end of training of users who have a validation part, at most `config.valid_users` of them."""
        user, position, candidate, logit = rows
        cases = dataset.cases("valid")
        case_of_user = np.full(dataset.n_users, -1)
        case_of_user[cases.user_idx] = np.arange(len(cases))
        asked = np.flatnonzero((position == dataset.split.train_end[user]) & (case_of_user[user] >= 0) & (position > 0))
        asked = np.sort(np.random.default_rng([seed, 2]).permutation(asked)[: config.valid_users])
        user, position, candidate, logit = user[asked], position[asked], candidate[asked], logit[asked]
        targets = cases.targets.select(case_of_user[user])
        keys = np.repeat(np.arange(len(user)), targets.lengths) * np.int64(dataset.n_items) + targets.values
        gain = np.isin(np.arange(len(user))[:, None] * np.int64(dataset.n_items) + candidate, keys) & (candidate >= 0)
        return cls(
            dataset.histories(user, position, last=config.max_history),
            candidate,
            gain,
            _ndcg(np.where(candidate >= 0, logit, -np.inf), gain),
            segments(position, candidate, logit, dataset),
            config.max_history,
        )

    @torch.inference_mode()
    def __call__(self, model: Towers) -> dict[str, float]:
        """How much a segment's soft labels shall count: 2·T / (T + S), by segment.

        T and S are the teacher's and the student's mean NDCG@10 there: 1 where they know as much, 2 where the student
        knows nothing of what the teacher knows, 0 the other way round. Small segments lean on the whole's T and S.
        """
        model.eval()
        items = model.items()
        users = encode_users(model.user, items, self.histories, max_history=self.max_history)
        catalogue = items.cpu().numpy()
        scores = np.concatenate(
            [
                np.einsum("nd,ncd->nc", users[start : start + 256], catalogue[self.candidate[start : start + 256]])
                for start in range(0, len(users), 256)
            ]
            or [np.zeros(self.candidate.shape, dtype=np.float32)]
        )
        student = _ndcg(np.where(self.candidate >= 0, scores, -np.inf), self.gain)
        number = np.bincount(self.segment, minlength=len(SEGMENTS))
        of_teacher, of_student = (
            (np.bincount(self.segment, weights=each, minlength=len(SEGMENTS)) + SHRINK * each.mean())
            / (number + SHRINK)
            if len(each)
            else np.zeros(len(SEGMENTS))
            for each in (self.teacher, student)
        )
        both = of_teacher + of_student
        factor = np.where(both > 0, 2 * of_teacher / np.maximum(both, 1e-12), 1.0)
        return {f"soft_weight_{name}": float(value) for name, value in zip(SEGMENTS, factor, strict=True)}


def segments(
    position: npt.NDArray[np.int32],
    candidate: npt.NDArray[np.int32],
    logit: npt.NDArray[np.float32],
    dataset: Dataset,
) -> npt.NDArray[np.int64]:
    """By row, whether the user had few events then, and whether the teacher's first choice is a tail item.

    Returns:
        [n], which of `SEGMENTS`.
    """
    popularity = popularity_segments(np.bincount(dataset.train.item_idx, minlength=dataset.n_items), HEAD_SHARE)
    head = popularity.code == popularity.names.index(HEAD)
    best = np.where(candidate >= 0, logit, -np.inf).argmax(axis=1)
    first = candidate[np.arange(len(candidate)), best]
    found: npt.NDArray[np.int64] = (position > LIGHT) * np.int64(2) + head[first]
    return found


def _ndcg(scores: npt.NDArray[np.floating], gain: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """NDCG@10 of each row's candidates in the order of `scores`; of ideal lists, that of the gains that are there."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    discount = 1 / np.log2(np.arange(order.shape[1]) + 2)
    found = np.take_along_axis(gain, order, axis=1) @ discount
    ideal = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(gain.sum(axis=1), len(discount))]
    value: npt.NDArray[np.float64] = np.divide(found, ideal, out=np.zeros(len(found)), where=ideal > 0)
    return value
