"""A run, opened: its artifacts by type, and recommendations for anyone as a DataFrame."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from recsys.config import CONFIG_FILE, STAGES, PipelineConfig, load_config
from recsys.errors import InputError

if TYPE_CHECKING:
    from recsys.evaluation.report import Report
    from recsys.ingest.dataset import Dataset
    from recsys.ranking.recommend import Recommendations
    from recsys.retrieval.index import ItemIndex
    from recsys.soft_labels import SoftLabels
    from recsys.student.model import Student
    from recsys.teacher.model import Teacher


def open_run(path: str | Path) -> Run:
    """Open a run folder, such as `runs/sample`.

    Raises:
        InputError: no run was written there.
    """
    folder = Path(path)
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(
            f"no run at {path}",
            expected=f"a folder that `recsys run` wrote, with {CONFIG_FILE} and the artifacts in it",
            do="run `recsys run -c …` first, or correct the path",
        )
    return Run(folder)


class Run:
    """The artifacts of one run folder, each opened when it is first asked for and kept as it was then.

    Example:
        >>> run = open_run("runs/sample")  # doctest: +SKIP
        >>> run.recommend(users=["u00042"], k=5)  # doctest: +SKIP
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def config(self) -> PipelineConfig:
        """The config as it was resolved for this run, whatever the environment says now."""
        return load_config(self.path / CONFIG_FILE, env={})

    @cached_property
    def dataset(self) -> Dataset:
        """Users, items, sequences and their split."""
        from recsys.ingest.dataset import Dataset

        return Dataset.open(self._folder("ingest"))

    @cached_property
    def teacher(self) -> Teacher:
        """The fine-tuned cross-encoder."""
        from recsys.teacher.model import Teacher

        return Teacher.open(self._folder("teach"))

    @cached_property
    def soft_labels(self) -> SoftLabels:
        """What the teacher told the student."""
        from recsys.soft_labels import SoftLabels

        return SoftLabels.open(self._folder("score"))

    @cached_property
    def student(self) -> Student:
        """The two-tower model."""
        from recsys.student.model import Student

        return Student.open(self._folder("distill"))

    @cached_property
    def index(self) -> ItemIndex:
        """The item index."""
        from recsys.retrieval.index import ItemIndex

        return ItemIndex.open(self._folder("index"))

    @cached_property
    def recommendations(self) -> Recommendations:
        """The lists that were written for all users."""
        from recsys.ranking.recommend import Recommendations

        return Recommendations.open(self._folder("recommend"))

    @cached_property
    def report(self) -> Report:
        """The metrics of student, teacher and baselines, and the HTML page."""
        from recsys.evaluation.report import Report

        return Report.open(self._folder("evaluate"))

    def _folder(self, stage: str) -> Path:
        return self.path / STAGES[stage]
