"""Stage `rank`: learn to order candidates from what users took after training ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from recsys import schema
from recsys.artifacts import Artifact, Draft, Recipe
from recsys.ingest.dataset import Cases, Dataset, Sequences, take
from recsys.ranking.calibration import Calibration
from recsys.ranking.config import RankConfig
from recsys.ranking.features import Catalogue, feature_names, features
from recsys.ranking.models.fit import MODELS, Contender, fit_models
from recsys.ranking.models.judged import MIN_ROWS, Judged
from recsys.ranking.models.model import RankModel, StudentOrder
from recsys.retrieval.index import ItemIndex, VectorModel, use_threads
from recsys.retrieval.neighbours import Spread
from recsys.retrieval.snapshot import Snapshot
from recsys.retrieval.sources import Candidates, Sources
from recsys.runtime import Runtime
from recsys.text import TextVectors

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Numbers of a block's features, 4 bytes each, and a few times as many while they are made.
BLOCK: Final = 1 << 21
USERS: Final = 4096  # whose vectors are computed together
NOTHING_HIDDEN: Final = np.empty(0, np.int64)
STREAM: Final = 12  # of what is drawn, among the uses of a run's seed


def train_ranker(
    dataset: Dataset,
    student: VectorModel,
    index: ItemIndex,
    config: RankConfig,
    out: Path,
    *,
    text: TextVectors | None = None,
    runtime: Runtime = Runtime(),
    force: bool = False,
) -> Ranker:
    """Learn to order what several sources put forward.

    Sources and evidence are of the training part; what is learned from are the validation part's users, of whom they
    have not seen what is asked. Nothing is hidden from these users, so that the ranker learns by itself when something
    is taken again. Where too few of them tell anything, the student's order is kept.

    Args:
        dataset: what `ingest` wrote.
        student: what `distill` wrote.
        index: of the same student.
        config: sources and models.
        out: where the artifact goes.
        text: the items' text vectors; without them there is no source and no evidence of texts.
        runtime: seed, threads.
        force: learn again even if `out` is up to date.

    Raises:
        MissingExtraError: "lambdamart" is named, and `lightgbm` is not installed.
    """
    inputs = {"dataset": dataset.fingerprint, "student": student.fingerprint, "index": index.fingerprint}
    recipe = Recipe(
        kind=Ranker.kind,
        config=config,
        inputs=inputs | ({} if text is None else {"text_vectors": text.fingerprint}),
        seed=runtime.seed,
        modules=(
            "recsys.evidence",
            "recsys.items",
            "recsys.ranking.calibration",
            "recsys.ranking.features",
            "recsys.ranking.models",
            "recsys.ranking.ranker",
            "recsys.ranking.repurchase",
            "recsys.retrieval.neighbours",
            "recsys.retrieval.snapshot",
            "recsys.retrieval.sources",
        ),
    )
    if force or not recipe.is_current(out):
        with recipe.build(out) as draft:
            use_threads(runtime)
            sources = Sources.fit(dataset.train, dataset.items, None if text is None else text.vectors, config.sources)
            sources.save(draft.path)
            snapshot = Snapshot.before(dataset, "valid", config.sources.windows)
            everything = np.ones(dataset.n_items, np.bool_)
            pairs = Pairs(sources, Catalogue.of(dataset, config.sources.history), student, snapshot, everything)
            _learn(dataset, index, pairs, config, draft, runtime)
    return Ranker.open(out)


class Ranker(Artifact):
    """What `recsys rank` writes: the sources' tables, the model that was kept, and the calibration of its scores."""

    kind: ClassVar[str] = "ranker"
    stage: ClassVar[str] = "rank"

    @cached_property
    def config(self) -> RankConfig:
        """How it was trained."""
        return RankConfig.model_validate(self.manifest["config"])

    @cached_property
    def sources(self) -> Sources:
        """Where candidates come from."""
        return Sources.load(self.path, self.config.sources)

    @cached_property
    def model(self) -> RankModel:
        """What orders them."""
        return MODELS[self.manifest["info"]["model"]].load(self.path)

    @cached_property
    def calibration(self) -> Calibration | None:
        """From scores to purchase probabilities; None if nobody bought any candidate."""
        return Calibration.load(self.path) if self.manifest["info"]["calibrated"] else None

    def over(self, dataset: Dataset, student: VectorModel, snapshot: Snapshot, allowed: Bools) -> Pairs:
        """Its sources and features at one moment, over the items that may be shown."""
        catalogue = Catalogue.of(dataset, self.config.sources.history)
        return Pairs(self.sources, catalogue, student, snapshot, allowed)


@dataclass(frozen=True)
class Ordered:
    """Candidates of some users with what the ranker says of them.

    Attributes:
        items: [n, C] item_idx, −1 behind the end of a row; each once.
        source: [n, C] int8, place in `SOURCES`.
        scores: [n, C] float32.
    """

    items: Ints
    source: npt.NDArray[np.int8]
    scores: Floats


class Pairs:
    """Candidates and their features, over one catalogue at one moment.

    Args:
        sources: where candidates come from.
        catalogue: what features take from it.
        student: the model that the ranker belongs to.
        snapshot: the log at the moment.
        allowed: [n_items], which items may be shown.
    """

    def __init__(
        self, sources: Sources, catalogue: Catalogue, student: VectorModel, snapshot: Snapshot, allowed: Bools
    ) -> None:
        self.sources, self.catalogue, self.snapshot, self.allowed = sources, catalogue, snapshot, allowed
        self.names = tuple(feature_names(catalogue.event_types, sources.config.windows))
        self.student, self._vectors = student, student.item_vectors
        self._popular = sources.popular(snapshot, allowed)

    def blocks(
        self, histories: Sequences, users: Floats, of_student: Ints, hidden: Ints
    ) -> Iterator[tuple[slice, Candidates, Floats]]:
        """Candidates and features, some rows at a time.

        Args:
            histories: n rows, complete.
            users: [n, d] the student's user vectors.
            of_student: [n, Q] what the student found, the best first, −1 for none.
            hidden: row · n_items + item that may not be shown to a row, ascending.

        Yields:
            Which rows; their candidates; their features [rows, C, F].
        """
        n_items = np.int64(len(self.allowed))
        width = of_student.shape[1] + self.sources.config.besides_student
        step = max(BLOCK // (width * len(self.names)), 1)
        for start in range(0, len(histories), step):
            rows = slice(start, min(start + step, len(histories)))
            some = take(histories, histories.offsets[:-1][rows], histories.lengths[rows])
            low, high = np.searchsorted(hidden, [rows.start * n_items, rows.stop * n_items])
            candidates = self.sources.candidates(
                some,
                of_student[rows],
                self._popular,
                allowed=self.allowed,
                hidden=hidden[low:high] - rows.start * n_items,
            )
            listed = np.maximum(candidates.items, 0)
            # Summed pair by pair, so that a score does not depend on what stands beside it.
            student = np.einsum("nd,ncd->nc", users[rows], self._vectors[listed])
            last = Spread.of(some, self.sources.cooccurrence, decay=1.0, last=1)
            yield rows, candidates, features(some, candidates, last, student, self.snapshot, self.catalogue)

    def ordered(self, model: RankModel, histories: Sequences, users: Floats, of_student: Ints, hidden: Ints) -> Ordered:
        """Every row's candidates with the model's scores; arguments as `blocks`."""
        shape = len(histories), of_student.shape[1] + self.sources.config.besides_student
        items, source, scores = np.full(shape, -1, np.int64), np.zeros(shape, np.int8), np.zeros(shape, np.float32)
        for rows, candidates, given in self.blocks(histories, users, of_student, hidden):
            place = rows, slice(candidates.items.shape[1])
            items[place], source[place], scores[place] = candidates.items, candidates.source, model.scores(given)
        return Ordered(items, source, scores)


def _learn(
    dataset: Dataset, index: ItemIndex, pairs: Pairs, config: RankConfig, draft: Draft, runtime: Runtime
) -> None:
    """Write the model and its calibration, and say in the manifest how they came about."""
    cases = dataset.cases("valid")
    chosen = np.sort(np.random.default_rng([runtime.seed, STREAM]).permutation(len(cases))[: config.users])
    judged, bought = _judged(dataset, cases, chosen, index, pairs, runtime)
    held_out = np.random.default_rng([runtime.seed, STREAM, 1]).random(len(chosen)) < config.held_out
    train, valid = _rows(judged, ~held_out), _rows(judged, held_out)
    model: RankModel = StudentOrder(pairs.names)
    contenders: tuple[Contender, ...] = ()
    if min(_n_telling(train), _n_telling(valid)) >= MIN_ROWS:
        fitted = fit_models(train, valid, config.models, seed=runtime.seed, threads=runtime.threads)
        model, contenders = fitted.model, fitted.contenders
    model.save(draft.path)
    calibrated = bool((bought[held_out] & valid.there).any()) and len(valid) > 1
    if calibrated:
        calibration = Calibration.fit(model.scores(valid.features), valid.there, bought[held_out], seed=runtime.seed)
        calibration.save(draft.path)
        draft.info["calibration_error"] = {"before": calibration.error_before, "after": calibration.error_after}
    found = judged.taken.sum(axis=1) / np.maximum(judged.n_targets, 1)
    draft.counts |= {
        "users": len(chosen),
        "candidates": int(judged.there.sum()),
        "recall_of_candidates": float(found.mean()) if len(found) else 0.0,
    }
    draft.info |= {
        "model": model.name,
        "calibrated": calibrated,
        "contenders": {each.name: {"ndcg_at_10": each.ndcg, "gain": each.gain} for each in contenders},
        "features": list(pairs.names),
    }


def _judged(
    dataset: Dataset, cases: Cases, chosen: Ints, index: ItemIndex, pairs: Pairs, runtime: Runtime
) -> tuple[Judged, Bools]:
    """Candidates and features of some cases, with what was taken, and [n, C] what was bought."""
    user_idx, end, n_items = cases.user_idx[chosen], cases.history_end[chosen], np.int64(dataset.n_items)
    sources, n = pairs.sources.config, len(chosen)
    width = sources.student + sources.besides_student
    given = np.zeros((n, width, len(pairs.names)), np.float32)
    there, bought = np.zeros((n, width), np.bool_), np.zeros((n, width), np.bool_)
    gain = np.zeros((n, width), np.float32)
    for start in runtime.track(range(0, n, USERS), label="candidates", unit="block"):
        users, ends = user_idx[start : start + USERS], end[start : start + USERS]
        histories = dataset.histories(users, ends)
        vectors = pairs.student.user_vectors(histories, runtime=runtime)
        of_student = index.search(vectors, sources.student)[1]
        after = (dataset.split.valid_end[users] - ends).astype(np.int64)
        taken = take(dataset.sequences, dataset.sequences.offsets[users] + ends, after)
        for rows, candidates, found in pairs.blocks(histories, vectors, of_student, NOTHING_HIDDEN):
            place = slice(start + rows.start, start + rows.stop), slice(candidates.items.shape[1])
            given[place], there[place] = found, candidates.items >= 0
            some = take(taken, taken.offsets[:-1][rows], taken.lengths[rows])
            gain[place], bought[place] = _taken(some, candidates.items, n_items, dataset.event_weights)
    return Judged(given, there, gain, cases.targets.select(chosen).lengths, pairs.names), bought


def _taken(taken: Sequences, items: Ints, n_items: np.int64, weights: npt.NDArray[np.float64]) -> tuple[Floats, Bools]:
    """What each candidate is worth, the weight of the event of largest weight, and whether it was bought: [n, C]."""
    row = np.repeat(np.arange(len(taken)), taken.lengths)
    keys, pair = np.unique(row * n_items + taken.item_idx, return_inverse=True)
    gain, bought = np.zeros(len(keys) + 1), np.zeros(len(keys) + 1, np.bool_)
    np.maximum.at(gain, pair, weights[taken.event_type])
    bought[pair[taken.event_type == schema.EVENT_TYPES.index("purchase")]] = True
    wanted = np.arange(len(items))[:, None] * n_items + items
    place = np.searchsorted(keys, wanted)
    place = np.where((np.append(keys, -1)[place] == wanted) & (items >= 0), place, len(keys))
    return gain[place].astype(np.float32), bought[place]


def _rows(judged: Judged, which: Bools) -> Judged:
    """Some of the rows."""
    there, gain, n_targets = judged.there[which], judged.gain[which], judged.n_targets[which]
    return Judged(judged.features[which], there, gain, n_targets, judged.names)


def _n_telling(judged: Judged) -> int:
    """How many rows hold something that was taken and something that was not."""
    return int((judged.taken.any(axis=1) & (judged.there & ~judged.taken).any(axis=1)).sum())
