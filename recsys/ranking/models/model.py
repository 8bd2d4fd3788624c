"""What a model of the ranker can do, and the simplest one: the student's own order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Final, Protocol, Self

import numpy as np

from recsys.artifacts import write_json
from recsys.errors import InputError
from recsys.ranking.models.judged import Floats, check_features

STUDENT: Final = "student"  # the feature that holds the student's score


class RankModel(Protocol):
    """Scores candidates by their features.

    Attributes:
        name: how configs, manifests and `recsys.ranking.models.fit.MODELS` call it.
        names: of the features, in their order.
    """

    name: ClassVar[str]
    names: tuple[str, ...]

    def scores(self, features: Floats) -> Floats:
        """Score pairs; a larger score stands higher.

        A pair's score depends on its own features alone, to the bit: not on its row, its place or what else is asked.

        Args:
            features: [n, C, F] float32, finite; padding holds any finite numbers, and its scores mean nothing.

        Returns:
            [n, C] float32, to be compared within a row only.

        Raises:
            InputError: the shape does not fit, or a feature is not finite.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the model into a folder that exists."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; it scores the same to the bit."""
        ...


class StudentOrder:
    """The order that the candidates have by the student's score.

    Raises:
        InputError: there is no feature "student".
    """

    name: ClassVar[str] = STUDENT

    def __init__(self, names: tuple[str, ...]) -> None:
        if STUDENT not in names:
            raise InputError(
                f"features {', '.join(names)}", expected=f"one of the name {STUDENT!r}: the student's score"
            )
        self.names = names

    def scores(self, features: Floats) -> Floats:
        """See `RankModel.scores`."""
        check_features(features, self.names)
        return np.ascontiguousarray(features[:, :, self.names.index(STUDENT)])

    def save(self, folder: Path) -> None:
        """Write `student.json`."""
        write_json(folder / "student.json", {"names": self.names})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        return cls(tuple(json.loads((folder / "student.json").read_text())["names"]))
