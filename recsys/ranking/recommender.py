"""From histories to ordered lists with reasons: what the batch stage and the Python API have in common."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.errors import InputError
from recsys.evidence import Cooccurrence
from recsys.hashing import mix, seeded_keys
from recsys.ingest.dataset import Dataset, Sequences, take
from recsys.ranking.config import RecommendConfig
from recsys.ranking.ranker import Pairs, Ranker
from recsys.ranking.rules import DAY, Rules
from recsys.ranking.select import select
from recsys.retrieval.index import ItemIndex, VectorModel
from recsys.retrieval.neighbours import is_in
from recsys.retrieval.snapshot import Snapshot
from recsys.retrieval.sources import SOURCES
from recsys.runtime import Runtime

# What `Recommender.recommend_for` returns: `row` is the place of the history in the call.
LISTS: Final = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field(schema.ITEM_IDX, pa.int32(), nullable=False),
        *(
            schema.RECOMMENDATIONS.field(name)
            for name in (schema.ITEM_ID, "rank", "score", "probability", "source", "reason")
        ),
    ]
)

# A reason is sought among so many of the most recent events, and has to be at least so similar.
REASON_EVENTS = 20
REASON_COSINE = 0.05
REASONS: Final = {
    "view": ("because you viewed ", ""),
    "cart": ("because you added ", " to your cart"),
    "purchase": ("because you bought ", ""),
}
REASON_OTHER_EVENT: Final = ("because of ", "")
REASON_WHOLE_HISTORY: Final = ("based on your recent activity", "")
REASON_NO_HISTORY: Final = ("chosen for new visitors", "")
REASONS_AGAIN: Final = {
    "view": "you viewed it before",
    "cart": "you added it to your cart before",
    "purchase": "you bought it before",
}
REASON_AGAIN: Final = "you have met it before"
REASON_POPULAR: Final = "popular these days"
REASON_POPULAR_IN: Final = "popular in "
REASON_DRAWN: Final = "something else to try"
DRAWN: Final = "explore"  # the source of what exploration drew

NOTHING: Final = -50.0  # the logarithm of a revenue of 0
SEPARATOR: Final = re.escape(schema.CATEGORY_SEPARATOR)

# Entries of one table of candidates, 12 bytes each.
CANDIDATES = 1 << 22
STREAM: Final = 11  # of what is drawn, among the uses of a run's seed

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Pool:
    """Items of some users, the best first.

    Attributes:
        items: [n, C] item_idx, −1 for none.
        scores: [n, C] float32.
        source: [n, C] int8, place in `SOURCES`.
        probability: [n, C] float32, that the user buys it; 0 where that is not known.
    """

    items: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    source: npt.NDArray[np.int8]
    probability: npt.NDArray[np.float32]

    @classmethod
    def of_student(cls, items: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]) -> Pool:
        """What the student found."""
        source = np.full(items.shape, SOURCES.index("student"), np.int8)
        return cls(items, scores, source, np.zeros(items.shape, np.float32))

    def put(
        self,
        rows: npt.NDArray[np.int64],
        places: npt.NDArray[np.int64],
        other: Pool,
        of: npt.NDArray[np.int64],
        columns: npt.NDArray[np.int64],
    ) -> None:
        """Write the items in `columns` of the rows `of` of another pool into places of these rows."""
        for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True):
            mine[rows, places] = theirs[of, columns]


class Recommender:
    """Recommends for any histories of one shop, under one set of rules.

    What is the same for all users is prepared once: which items may be shown, titles and norms of the item vectors.

    Args:
        dataset: the catalogue, and the moment that the lists are for if the config does not name it.
        student: gives users their vectors.
        index: of the same student.
        config: length of the lists and rules.
        ranker: of the same student: candidates come from its sources, too, and stand in its order. Without it they
            are the student's, in the student's order.
        runtime: where to compute.

    Raises:
        InputError: student, index, ranker and dataset do not belong together, an event type in `exclude_seen` is
            unknown, or lists are to be ordered by revenue without a calibrated ranker.
    """

    def __init__(
        self,
        dataset: Dataset,
        student: VectorModel,
        index: ItemIndex,
        config: RecommendConfig,
        *,
        ranker: Ranker | None = None,
        runtime: Runtime = Runtime(),
    ) -> None:
        self._vectors = student.item_vectors
        if index.manifest["inputs"].get("student") != student.fingerprint or len(self._vectors) != dataset.n_items:
            raise InputError(
                f"the index at {index.path}, the student and the dataset come from different runs",
                expected=f"vectors of {dataset.n_items} items, indexed from this student",
                do="bring them up to date: `recsys run`",
            )
        if ranker is not None and ranker.manifest["inputs"].get("student") != student.fingerprint:
            raise InputError(
                f"the ranker at {ranker.path} and the student come from different runs",
                expected="a ranker that was trained with this student",
                do="bring them up to date: `recsys run`",
            )
        if config.order_by == "revenue" and (ranker is None or ranker.calibration is None):
            raise InputError(
                'recommend.order_by = "revenue" without purchase probabilities',
                expected="a ranker that was calibrated on purchases",
                do='set use_ranker = true, bring purchases, or set recommend.order_by = "score"',
            )
        self.student, self.index, self.config, self.runtime = student, index, config, runtime
        self.ranker = ranker
        self.as_of = config.as_of or _EPOCH + timedelta(microseconds=int(dataset.sequences.timestamp.max(initial=0)))
        self._n_event_types = len(dataset.event_types)
        as_of_us = (self.as_of - _EPOCH) // timedelta(microseconds=1)
        self.rules = Rules.of(dataset.items, dataset.event_types, config, self.as_of, as_of_us=as_of_us)
        self._pairs: Pairs | None = None
        if ranker is not None:
            # What happened at the very moment is known, too.
            windows = ranker.config.sources.windows
            snapshot = Snapshot.of(dataset.sequences, dataset.n_items, windows, now=as_of_us + 1)
            self._pairs = ranker.over(dataset, student, snapshot, self.rules.allowed)
            self._price = np.nan_to_num(dataset.items["price"].to_numpy().astype(np.float64))
        self._n_drawn = max(round(config.k * config.explore), 1) if config.explore else 0
        self._item_ids = dataset.items[schema.ITEM_ID].combine_chunks()
        self._titles = dataset.items["title"].combine_chunks()
        norms = np.sqrt(np.einsum("id,id->i", self._vectors, self._vectors))
        self._norms = np.maximum(norms, np.finfo(np.float32).tiny)
        phrases = [REASONS.get(name, REASON_OTHER_EVENT) for name in dataset.event_types]
        before, after = zip(*phrases, REASON_WHOLE_HISTORY, REASON_NO_HISTORY, strict=True)
        self._before, self._after = pa.array(before, pa.string()), pa.array(after, pa.string())
        again = [REASONS_AGAIN.get(name, REASON_AGAIN) for name in dataset.event_types]
        self._again = pa.array([*again, REASON_AGAIN], pa.string())
        self._categories = dataset.items["category"].combine_chunks()

    @property
    def allowed(self) -> npt.NDArray[np.bool_]:
        """[n_items], the items that may be shown to somebody: in stock and available."""
        return self.rules.allowed

    def recommend_for(self, histories: Sequences) -> pa.Table:
        """The best items for each history.

        Everybody gets k items (config), or all that are left of the allowed ones where these are fewer.

        Args:
            histories: one row per user, oldest event first, complete as far as seen items shall be left out.

        Returns:
            Columns of `LISTS`, ordered by row and rank, which runs from 1. A score is the ranker's, or the student's
            dot product without a ranker, and what boosts add to it (by revenue: the logarithm of probability × price
            × boosts); it does not rise down a list, unless diversity, exploration or a cap had a say.

        Raises:
            InputError: a history holds an item or an event type that the dataset does not have.
        """
        self._check(histories)
        vectors = self.student.user_vectors(histories, runtime=self.runtime)
        lists = self._best(vectors, histories)
        row, place = np.nonzero(lists.items >= 0)
        items, source = lists.items[row, place], lists.source[row, place]
        event = self._explaining_events(histories, lists)[row, place]
        drawn = pa.array(place >= self.config.k - self._n_drawn)
        without = self.ranker is None or self.ranker.calibration is None
        return pa.table(
            [
                pa.array(row, pa.int32()),
                pa.array(items, pa.int32()),
                self._item_ids.take(pa.array(items)),
                pa.array(place + 1, pa.int32()),
                pa.array(lists.scores[row, place], pa.float32()),
                pa.nulls(len(row), pa.float32()) if without else pa.array(lists.probability[row, place]),
                pc.if_else(drawn, DRAWN, pa.array(SOURCES).take(pa.array(source))),
                pc.if_else(drawn, REASON_DRAWN, self._reasons(histories, row, items, source, event)),
            ],
            schema=LISTS,
        )

    def _best(self, vectors: npt.NDArray[np.float32], histories: Sequences) -> Pool:
        """Each user's list: the k items of the largest score, or what the rules make of more candidates.

        Returns:
            [n, k] each, behind the end of a shorter list −1.
        """
        n, k, config, rules = len(histories), self.config.k, self.config, self.rules
        hidden = rules.hidden(histories)
        if self._pairs is None and not (rules.caps or rules.lift is not None or config.diversity or self._n_drawn):
            return Pool.of_student(*self._candidates(vectors, np.arange(n), hidden, k, rules.allowed))
        lists = Pool.of_student(np.full((n, k), -1, np.int64), np.zeros((n, k), np.float32))
        # Whose list is short with so many candidates is asked about more, and at last about the whole catalogue.
        quota = 0 if self._pairs is None else self._pairs.sources.config.student
        left, depth = np.arange(n), min(max(config.pool, quota, k), len(self._vectors))
        while left.size:
            features = 0 if self._pairs is None else len(self._pairs.names)
            width = depth * (1 + (self._vectors.shape[1] if config.diversity else 0) + features)
            parts = np.array_split(left, -(-len(left) * width // CANDIDATES))
            short = [self._fill(part, vectors, histories, hidden, depth, lists) for part in parts]
            left, depth = np.concatenate(short), min(8 * depth, len(self._vectors))
        return lists

    def _fill(
        self,
        rows: npt.NDArray[np.int64],
        vectors: npt.NDArray[np.float32],
        histories: Sequences,
        hidden: npt.NDArray[np.int64],
        depth: int,
        lists: Pool,
    ) -> npt.NDArray[np.int64]:
        """Write the lists of some rows; returns the rows for which more may be found."""
        k, config, caps = self.config.k, self.config, self.rules.caps
        pool, all_there_is = self._pool(vectors, rows, histories, hidden, depth)
        found = pool.items
        options: dict[str, Any] = {"n_drawn": self._n_drawn, "diversity": config.diversity}
        if config.diversity:
            listed = np.maximum(found, 0)
            options["directions"] = self._vectors[listed] / self._norms[listed][:, :, None]
        if self._n_drawn:
            options["draws"] = self._draws(histories, rows, found)
        chosen = select(found, pool.scores, k, caps, **options)
        enough = (chosen >= 0).sum(axis=1) >= self._reachable
        firm = [cap for cap in caps if not cap.gives_way]
        if len(firm) < len(caps):
            chosen = select(found, pool.scores, k, firm, **options, taken=chosen)
        done = all_there_is | (enough & (chosen[:, -1] >= 0))
        row, place = np.nonzero(done[:, None] & (chosen >= 0))
        lists.put(rows[row], place, pool, row, chosen[row, place])
        missing: npt.NDArray[np.int64] = rows[~done]
        return missing

    def _pool(
        self,
        vectors: npt.NDArray[np.float32],
        rows: npt.NDArray[np.int64],
        histories: Sequences,
        hidden: npt.NDArray[np.int64],
        depth: int,
    ) -> tuple[Pool, npt.NDArray[np.bool_]]:
        """The candidates of some rows, the best first, and for which rows they are all that may be shown."""
        items, scores = self._lifted(vectors, rows, hidden, depth)
        all_there_is = (items[:, -1] < 0) | (depth == len(self._vectors))
        if self._pairs is None or self.ranker is None:
            return Pool.of_student(items, scores), all_there_is
        n_items = np.int64(len(self._vectors))
        some = take(histories, histories.offsets[rows], histories.lengths[rows])
        begin, end = np.searchsorted(hidden, [rows * n_items, (rows + 1) * n_items])
        row = np.repeat(np.arange(len(rows)), end - begin)
        place = np.repeat(begin - np.cumsum(end - begin) + (end - begin), end - begin) + np.arange(len(row))
        of_rows = row * n_items + hidden[place] % n_items
        ordered = self._pairs.ordered(self.ranker.model, some, vectors[rows], items, of_rows)
        there, listed = ordered.items >= 0, np.maximum(ordered.items, 0)
        scores, probability = ordered.scores, np.zeros(listed.shape, np.float32)
        if self.ranker.calibration is not None:
            probability = self.ranker.calibration.probability(scores, there)
        if self.config.order_by == "revenue":
            with np.errstate(divide="ignore"):
                scores = np.maximum(np.log(probability * self._price[listed]), NOTHING).astype(np.float32)
        if self.rules.lift is not None:
            scores = scores + self.rules.lift[listed]
        order = np.lexsort((ordered.items, np.where(there, -scores, np.inf)), axis=1)
        arrays = (ordered.items, scores, ordered.source, probability)
        return Pool(*(np.take_along_axis(each, order, 1) for each in arrays)), all_there_is

    @cached_property
    def _reachable(self) -> int:
        """How long a list can be under all caps, as far as the allowed items tell: k, or less."""
        longest = self.config.k
        for cap in self.rules.caps:
            codes = cap.code[self.rules.allowed]
            in_groups = np.minimum(np.bincount(codes[codes >= 0]), cap.most).sum() + (codes < 0).sum()
            longest = min(longest, int(in_groups))
        return longest

    def _lifted(
        self, vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], hidden: npt.NDArray[np.int64], depth: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The `depth` candidates of the largest score, boosts included, as `_candidates`.

        Items of one boost keep their order among themselves, so that the first of each boost are candidates enough.
        """
        lift, allowed = self.rules.lift, self.rules.allowed
        if lift is None:
            return self._candidates(vectors, rows, hidden, depth, allowed)
        parts = []
        for value in np.unique(lift[allowed]):
            items, scores = self._candidates(vectors, rows, hidden, depth, allowed & (lift == value))
            parts.append((items, np.where(items >= 0, scores + value, -np.inf)))
        if not parts:
            return np.full((len(rows), depth), -1, np.int64), np.zeros((len(rows), depth), np.float32)
        items, scores = (np.hstack(each) for each in zip(*parts, strict=True))
        order = np.lexsort((items, -scores), axis=1)[:, :depth]
        items, scores = np.take_along_axis(items, order, 1), np.take_along_axis(scores, order, 1)
        return items, np.where(items >= 0, scores, 0).astype(np.float32)

    def _candidates(
        self,
        vectors: npt.NDArray[np.float32],
        rows: npt.NDArray[np.int64],
        hidden: npt.NDArray[np.int64],
        wanted: int,
        allowed: npt.NDArray[np.bool_],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The items of largest score that are allowed and not hidden from the row, in the student's order.

        Returns:
            item_idx [n, wanted], −1 where a row has no more, and scores [n, wanted].
        """
        n_items = len(self._vectors)
        items, scores = np.full((len(rows), wanted), -1, np.int64), np.zeros((len(rows), wanted), np.float32)
        # Of so many candidates enough are left, whatever the user has seen. Users are searched together with those who
        # need about as many, so that one long history does not make the search deep for all; the depth is a power of
        # two and not the deepest one needed, so that it does not depend on who else is there.
        begin, end = np.searchsorted(hidden, [rows * n_items, (rows + 1) * n_items])
        exponent = np.ceil(np.log2(wanted + end - begin)).astype(int)
        for each in np.unique(exponent):
            places, depth = np.flatnonzero(exponent == each), min(2 ** int(each), n_items)
            for part in np.array_split(places, -(-len(places) * depth // CANDIDATES)):
                found_scores, found = self.index.search(vectors[rows[part]], depth, allowed=allowed)
                keep = ~is_in(rows[part][:, None] * n_items + found, hidden)
                rank = np.cumsum(keep, axis=1)
                at, column = np.nonzero(keep & (rank <= wanted))
                place = part[at], rank[at, column] - 1
                items[place], scores[place] = found[at, column], found_scores[at, column]
        return items, scores

    def _draws(
        self, histories: Sequences, rows: npt.NDArray[np.int64], items: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.uint32]:
        """Random numbers [n, C] for candidates, which depend on the user's history, the item, the day and the seed."""
        day = self.rules.as_of // DAY
        mixed = seeded_keys(histories.item_idx, self.runtime.seed, STREAM).astype(np.uint64)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed)])
        of_row = (sums[histories.offsets[rows + 1]] - sums[histories.offsets[rows]]).astype(np.uint32)
        of_item = seeded_keys(items, self.runtime.seed, STREAM, day % 2**32)
        return mix(mix(of_row)[:, None] ^ of_item)

    def _explaining_events(self, histories: Sequences, lists: Pool) -> npt.NDArray[np.int64]:
        """For each listed item, the recent event that explains it best.

        That is the event of the most similar item (cosine of the item vectors); for what co-occurrence brought, of the
        item with which it co-occurs most, later events more; for what the user had before, that event itself.

        Args:
            histories: n rows.
            lists: [n, k], −1 for none.

        Returns:
            [n, k], the event's place among all events of the histories, the most recent of equally similar ones; −1
            where none is similar (`REASON_COSINE`).
        """
        recent = histories.offsets[1:, None] - 1 - np.arange(REASON_EVENTS)
        is_event = recent >= histories.offsets[:-1, None]
        items = lists.items
        if not is_event.any():
            return np.full(items.shape, -1)
        recent = np.where(is_event, recent, 0)
        recent_items = histories.item_idx[recent]
        directions = self._vectors[recent_items] / self._norms[recent_items][:, :, None]
        listed = np.maximum(items, 0)
        similarity = np.matmul(self._vectors[listed], directions.transpose(0, 2, 1))  # cosine × norm of the listed item
        similarity = np.where(is_event[:, None, :], similarity, -np.inf)
        best = similarity.argmax(axis=2)
        explains = similarity.max(axis=2) >= REASON_COSINE * self._norms[listed]
        if self._pairs is not None:
            row, place = np.nonzero((items >= 0) & (lists.source == SOURCES.index("cooccurrence")))
            together = self._pairs.sources.cooccurrence[
                recent_items[row].ravel(), np.repeat(items[row, place], REASON_EVENTS)
            ]
            weight = Cooccurrence.DECAY ** np.arange(REASON_EVENTS) * is_event[row]
            together = np.asarray(together).reshape(-1, REASON_EVENTS) * weight
            known = together.max(axis=1, initial=0) > 0
            best[row[known], place[known]] = together[known].argmax(axis=1)
            explains[row[known], place[known]] = True
            row, place = np.nonzero((items >= 0) & (lists.source == SOURCES.index("again")))
            own = (recent_items[row] == items[row, place][:, None]) & is_event[row]
            best[row, place], explains[row, place] = own.argmax(axis=1), own.any(axis=1)
        return np.where(explains, np.take_along_axis(recent, best, 1), -1)

    def _reasons(
        self,
        histories: Sequences,
        row: npt.NDArray[np.int64],
        items: npt.NDArray[np.int64],
        source: npt.NDArray[np.int8],
        event: npt.NDArray[np.int64],
    ) -> pa.Array:
        """The reasons in words.

        Args:
            histories: n rows.
            row: [m], whose list.
            items: [m], what is listed.
            source: [m], places in `SOURCES`.
            event: [m], the events that explain it, −1 for none.
        """
        explained = event >= 0
        n_event_types = self._n_event_types
        phrase = np.where(histories.lengths[row] > 0, n_event_types, n_event_types + 1)
        phrase[explained] = histories.event_type[event[explained]]
        item = np.zeros(len(event), np.int64)
        item[explained] = histories.item_idx[event[explained]]
        title = self._titles.take(pa.array(item, mask=~explained)).fill_null("")
        reason = pc.binary_join_element_wise(
            self._before.take(pa.array(phrase)), title, self._after.take(pa.array(phrase)), ""
        )
        if self._pairs is None:
            return reason
        types = np.full(len(event), n_event_types)
        types[explained] = histories.event_type[event[explained]]
        last_level = pc.replace_substring_regex(self._categories.take(pa.array(items)), f"^.*{SEPARATOR}", "")
        popular_in = pc.fill_null(pc.binary_join_element_wise(REASON_POPULAR_IN, last_level, ""), REASON_POPULAR)
        for name, words in (
            ("again", self._again.take(pa.array(types))),
            ("popular", REASON_POPULAR),
            ("category", popular_in),
        ):
            reason = pc.if_else(pa.array(source == SOURCES.index(name)), words, reason)
        return reason

    def _check(self, histories: Sequences) -> None:
        for name, values, limit in (
            (schema.ITEM_IDX, histories.item_idx, len(self._vectors)),
            (schema.EVENT_TYPE, histories.event_type, self._n_event_types),
        ):
            if len(values) and not 0 <= values.min() <= values.max() < limit:
                raise InputError(
                    f"histories hold a {name} from {values.min()} to {values.max()}",
                    expected=f"0 to {limit - 1}",
                    do="leave out the events whose item or type the dataset does not know",
                )
