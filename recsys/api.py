"""A run, opened: its artifacts by type, and recommendations for anyone as a DataFrame."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from recsys.config import CONFIG_FILE, LIVE, STAGES, PipelineConfig, load_config, validated
from recsys.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import pyarrow as pa

    from recsys.artifacts import Artifact
    from recsys.evaluation.report import Report
    from recsys.evaluation.tuning import Tuning
    from recsys.ingest.dataset import Dataset, Sequences
    from recsys.ranking.ranker import Ranker
    from recsys.ranking.recommend import Recommendations
    from recsys.ranking.recommender import Recommender
    from recsys.retrieval.index import ItemIndex
    from recsys.soft_labels import SoftLabels
    from recsys.student.model import Student
    from recsys.teacher.model import Teacher
    from recsys.text import TextVectors

A = TypeVar("A", bound="Artifact")


def open_run(path: str | Path) -> Run:
    """Open a run folder, such as `runs/sample`.

    Where `recsys nightly` writes, this is the night that is live: the link is followed once, so that all artifacts are
    of one night, whatever is promoted while they are read.

    Raises:
        InputError: no run was written there.
    """
    folder = Path(path)
    if folder.name == LIVE or (folder / LIVE).is_symlink():
        folder = (folder if folder.name == LIVE else folder / LIVE).resolve()
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
        >>> run.recommend(users=["U03292"], k=5)  # doctest: +SKIP
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._recommenders: dict[tuple[int, bool | None], Recommender] = {}

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

        return Dataset.open(self.folder("ingest"))

    @cached_property
    def teacher(self) -> Teacher:
        """The fine-tuned cross-encoder."""
        from recsys.teacher.model import Teacher

        return Teacher.open(self.folder("teach"))

    @cached_property
    def soft_labels(self) -> SoftLabels:
        """What the teacher told the student."""
        from recsys.soft_labels import SoftLabels

        return SoftLabels.open(self.folder("score"))

    @cached_property
    def student(self) -> Student:
        """The two-tower model."""
        from recsys.student.model import Student

        return Student.open(self.folder("distill"))

    @cached_property
    def index(self) -> ItemIndex:
        """The item index."""
        from recsys.retrieval.index import ItemIndex

        return ItemIndex.open(self.folder("index"))

    @cached_property
    def ranker(self) -> Ranker:
        """What orders candidates."""
        from recsys.ranking.ranker import Ranker

        return Ranker.open(self.folder("rank"))

    @cached_property
    def recommendations(self) -> Recommendations:
        """The lists that were written for all users."""
        from recsys.ranking.recommend import Recommendations

        return Recommendations.open(self.folder("recommend"))

    @cached_property
    def report(self) -> Report:
        """The metrics of student, teacher and baselines, and the HTML page."""
        from recsys.evaluation.report import Report

        return Report.open(self.folder("evaluate"))

    @property
    def text_vectors(self) -> TextVectors | None:
        """The items' text vectors, which teacher and student share; None before either was trained on this dataset."""
        from recsys.text import TextVectors

        return self._of_this_dataset(TextVectors, "text_vectors")

    @property
    def tuning(self) -> Tuning | None:
        """What `recsys baselines` found; None if it was not run on this dataset."""
        from recsys.evaluation.tuning import Tuning

        return self._of_this_dataset(Tuning, "tuning")

    def _of_this_dataset(self, kind: type[A], name: str) -> A | None:
        """An artifact that a run may have or not, unless it was made of a dataset that has been replaced."""
        if not (self.path / name).exists():
            return None
        artifact = kind.open(self.path / name)
        return artifact if artifact.manifest["inputs"].get("dataset") == self.dataset.fingerprint else None

    def recommend(
        self,
        users: Iterable[str] | str | None = None,
        *,
        history: Iterable[str] | None = None,
        event_type: str | None = None,
        k: int = 10,
        exclude_seen: bool | None = None,
    ) -> pd.DataFrame:
        """Recommend for users of the log, or for somebody of whom only a history is known.

        The rules are those of the run's config: what is out of stock or not yet available is not shown.

        Args:
            users: user_ids of the log; each is answered from the whole history.
            history: item_ids, oldest first, of anybody, in the log or not; empty for a new visitor.
            event_type: what was done with the items of `history`; by default what the log holds most of.
            k: items for each.
            exclude_seen: whether items of the history are left out; by default as the config has it.

        Returns:
            One row per recommended item, in the order of `users` and then by rank: `user_id` (with `users` only),
            `item_id`, `title`, `rank` from 1, `score` (the ranker's, or without one the student's dot product, and what
            boosts add), `source`, `reason`.

        Raises:
            InputError: both or neither of `users` and `history` are given, or an id is unknown.
        """
        import pyarrow as pa

        if (users is None) == (history is None):
            raise InputError(
                f"recommend was given {'neither' if users is None else 'both'} of users and history",
                expected="users=[user_id, …] for people in the log, or history=[item_id, …] for anybody",
                do="give one of them",
            )
        columns = ["item_id", "title", "rank", "score", "source", "reason"]
        if users is not None:
            user_ids = _strings([users] if isinstance(users, str) else users)
            who = _positions(
                user_ids,
                self.dataset.users["user_id"],
                what="users",
                do="correct the ids; for people who are not in the log give history=[item_id, …]",
            )
            lists = self._recommender(k, exclude_seen).recommend_for(self.dataset.histories(who))
            lists = lists.append_column("user_id", user_ids.take(lists["row"]))
            columns = ["user_id", *columns]
        else:
            assert history is not None
            recommender = self._recommender(k, exclude_seen)
            lists = recommender.recommend_for(self._history(_strings(history), event_type, recommender.rules.as_of))
        titles = self.dataset.items["title"].take(lists["item_idx"])
        frame: pd.DataFrame = lists.append_column(pa.field("title", pa.string()), titles).select(columns).to_pandas()
        return frame

    def _history(self, item_ids: pa.StringArray, event_type: str | None, now: int) -> Sequences:
        """A history of one row, all of it at the moment that the lists are for (microseconds since 1970)."""
        import numpy as np

        from recsys.ingest.dataset import Sequences

        log, names = self.dataset.sequences, self.dataset.event_types
        if event_type is not None and event_type not in names:
            raise InputError(
                f"unknown event type {event_type!r}", expected=f"one of {', '.join(names)}", do="correct event_type"
            )
        code = names.index(event_type) if event_type else int(np.bincount(log.event_type, minlength=1).argmax())
        items = _positions(
            item_ids,
            self.dataset.items["item_id"],
            what="items",
            do="leave them out, or bring them into the catalogue and run `recsys run` again",
        )
        return Sequences(
            offsets=np.array([0, len(items)]),
            item_idx=items,
            event_type=np.full(len(items), code, np.int8),
            timestamp=np.full(len(items), now),
            session=np.zeros(len(items), np.int32),
        )

    def _recommender(self, k: int, exclude_seen: bool | None) -> Recommender:
        from recsys.ranking.config import RecommendConfig
        from recsys.ranking.recommender import Recommender

        if (k, exclude_seen) not in self._recommenders:
            rules = self.config.recommend.model_dump() | {"k": k}
            if exclude_seen is not None:
                rules["exclude_seen"] = "all" if exclude_seen else "none"
            config = validated(RecommendConfig, rules, source="Run.recommend")
            runtime = self.config.runtime(progress=False)
            self._recommenders[k, exclude_seen] = Recommender(
                self.dataset,
                self.student,
                self.index,
                config,
                ranker=self.ranker if self.config.use_ranker else None,
                runtime=runtime,
            )
        return self._recommenders[k, exclude_seen]

    def folder(self, stage: str) -> Path:
        """Where a stage's artifact lies: a link to its present version."""
        return self.path / STAGES[stage]


def _strings(ids: Iterable[str]) -> pa.StringArray:
    import pyarrow as pa

    return pa.array([str(each) for each in ids], pa.string())


def _positions(wanted: pa.StringArray, known: pa.ChunkedArray, *, what: str, do: str) -> npt.NDArray[np.int32]:
    """Where each wanted id stands among the known ones, [n]."""
    import numpy as np
    import pyarrow.compute as pc

    found = pc.index_in(wanted, value_set=known)
    if found.null_count:
        unknown = wanted.filter(pc.is_null(found)).to_pylist()
        raise InputError(
            f"{len(unknown)} unknown {what}: {', '.join(map(repr, unknown[:5]))}{', …' if len(unknown) > 5 else ''}",
            expected=f"ids of the run's {what}, such as {known[0].as_py()!r}",
            do=do,
        )
    return np.asarray(found, dtype=np.int32)
