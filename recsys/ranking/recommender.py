"""From histories to ordered lists with reasons: what the batch stage and the Python API have in common."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.errors import InputError
from recsys.hashing import mix, seeded_keys
from recsys.ingest.dataset import Dataset, Sequences
from recsys.ranking.config import RecommendConfig
from recsys.ranking.rules import DAY, Rules
from recsys.ranking.select import select
from recsys.retrieval.index import ItemIndex, VectorModel
from recsys.runtime import Runtime

# What `Recommender.recommend_for` returns: `row` is the place of the history in the call.
LISTS: Final = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field(schema.ITEM_IDX, pa.int32(), nullable=False),
        *(schema.RECOMMENDATIONS.field(name) for name in (schema.ITEM_ID, "rank", "score", "reason")),
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
REASON_DRAWN: Final = "something else to try"

# Entries of one table of candidates, 12 bytes each.
CANDIDATES = 1 << 22
STREAM: Final = 11  # of what is drawn, among the uses of a run's seed

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Recommender:
    """Recommends for any histories of one shop, under one set of rules.

    What is the same for all users is prepared once: which items may be shown, titles and norms of the item vectors.

    Args:
        dataset: the catalogue, and the moment that the lists are for if the config does not name it.
        student: gives users their vectors.
        index: of the same student.
        config: length of the lists and rules.
        runtime: where to compute.

    Raises:
        InputError: student, index and dataset do not belong together, or an event type in `exclude_seen` is unknown.
    """

    def __init__(
        self,
        dataset: Dataset,
        student: VectorModel,
        index: ItemIndex,
        config: RecommendConfig,
        *,
        runtime: Runtime = Runtime(),
    ) -> None:
        self._vectors = student.item_vectors
        if index.manifest["inputs"].get("student") != student.fingerprint or len(self._vectors) != dataset.n_items:
            raise InputError(
                f"the index at {index.path}, the student and the dataset come from different runs",
                expected=f"vectors of {dataset.n_items} items, indexed from this student",
                do="bring them up to date: `recsys run`",
            )
        self.student, self.index, self.config, self.runtime = student, index, config, runtime
        self.as_of = config.as_of or _EPOCH + timedelta(microseconds=int(dataset.sequences.timestamp.max(initial=0)))
        self._n_event_types = len(dataset.event_types)
        as_of_us = (self.as_of - _EPOCH) // timedelta(microseconds=1)
        self.rules = Rules.of(dataset.items, dataset.event_types, config, self.as_of, as_of_us=as_of_us)
        self._n_drawn = max(round(config.k * config.explore), 1) if config.explore else 0
        self._item_ids = dataset.items[schema.ITEM_ID].combine_chunks()
        self._titles = dataset.items["title"].combine_chunks()
        norms = np.sqrt(np.einsum("id,id->i", self._vectors, self._vectors))
        self._norms = np.maximum(norms, np.finfo(np.float32).tiny)
        phrases = [REASONS.get(name, REASON_OTHER_EVENT) for name in dataset.event_types]
        before, after = zip(*phrases, REASON_WHOLE_HISTORY, REASON_NO_HISTORY, strict=True)
        self._before, self._after = pa.array(before, pa.string()), pa.array(after, pa.string())

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
            Columns of `LISTS`, ordered by row and rank, which runs from 1. A score is the student's dot product and
            what boosts add to it; it does not rise down a list, unless diversity, exploration or a cap had a say.

        Raises:
            InputError: a history holds an item or an event type that the dataset does not have.
        """
        self._check(histories)
        vectors = self.student.user_vectors(histories, runtime=self.runtime)
        items, scores = self._best(vectors, histories)
        row, place = np.nonzero(items >= 0)
        listed = items[row, place]
        reasons = self._reasons(histories, row, self._explaining_events(histories, items)[row, place])
        drawn = pa.array(place >= self.config.k - self._n_drawn)
        return pa.table(
            [
                pa.array(row, pa.int32()),
                pa.array(listed, pa.int32()),
                self._item_ids.take(pa.array(listed)),
                pa.array(place + 1, pa.int32()),
                pa.array(scores[row, place], pa.float32()),
                pc.if_else(drawn, REASON_DRAWN, reasons),
            ],
            schema=LISTS,
        )

    def _best(
        self, vectors: npt.NDArray[np.float32], histories: Sequences
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Each user's list: the k items of the largest score, or what the rules make of more candidates.

        A re-ranking model belongs here, between the candidates that the index finds and the cut to k.

        Returns:
            item_idx [n, k], −1 behind the end of a shorter list, and scores [n, k].
        """
        n, k, config, rules = len(histories), self.config.k, self.config, self.rules
        hidden = rules.hidden(histories)
        if not (rules.caps or rules.lift is not None or config.diversity or self._n_drawn):
            return self._candidates(vectors, np.arange(n), hidden, k, rules.allowed)
        items, scores = np.full((n, k), -1, np.int64), np.zeros((n, k), np.float32)
        # Whose list is short with so many candidates is asked about more, and at last about the whole catalogue.
        left, depth = np.arange(n), min(max(config.pool, k), len(self._vectors))
        while left.size:
            width = depth * (1 + (self._vectors.shape[1] if config.diversity else 0))
            parts = np.array_split(left, -(-len(left) * width // CANDIDATES))
            short = [self._fill(part, vectors, histories, hidden, depth, items, scores) for part in parts]
            left, depth = np.concatenate(short), min(8 * depth, len(self._vectors))
        return items, scores

    def _fill(
        self,
        rows: npt.NDArray[np.int64],
        vectors: npt.NDArray[np.float32],
        histories: Sequences,
        hidden: npt.NDArray[np.int64],
        depth: int,
        items: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.int64]:
        """Write the lists of some rows into `items` and `scores`; returns the rows for which more may be found."""
        k, config, caps = self.config.k, self.config, self.rules.caps
        found, found_scores = self._lifted(vectors, rows, hidden, depth)
        all_there_is = (found[:, -1] < 0) | (depth == len(self._vectors))
        options: dict[str, Any] = {"n_drawn": self._n_drawn, "diversity": config.diversity}
        if config.diversity:
            listed = np.maximum(found, 0)
            options["directions"] = self._vectors[listed] / self._norms[listed][:, :, None]
        if self._n_drawn:
            options["draws"] = self._draws(histories, rows, found)
        chosen = select(found, found_scores, k, caps, **options)
        enough = (chosen >= 0).sum(axis=1) >= self._reachable
        firm = [cap for cap in caps if not cap.gives_way]
        if len(firm) < len(caps):
            chosen = select(found, found_scores, k, firm, **options, taken=chosen)
        done = all_there_is | (enough & (chosen[:, -1] >= 0))
        row, place = np.nonzero(done[:, None] & (chosen >= 0))
        column = chosen[row, place]
        items[rows[row], place], scores[rows[row], place] = found[row, column], found_scores[row, column]
        missing: npt.NDArray[np.int64] = rows[~done]
        return missing

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
                keep = ~_is_in(rows[part][:, None] * n_items + found, hidden)
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

    def _explaining_events(self, histories: Sequences, items: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """For each listed item, the recent event whose item is most similar to it (cosine of the item vectors).

        Args:
            histories: n rows.
            items: [n, k], −1 for none.

        Returns:
            [n, k], the event's place among all events of the histories, the most recent of equally similar ones; −1
            where none is similar (`REASON_COSINE`).
        """
        recent = histories.offsets[1:, None] - 1 - np.arange(REASON_EVENTS)
        is_event = recent >= histories.offsets[:-1, None]
        if not is_event.any():
            return np.full(items.shape, -1)
        recent = np.where(is_event, recent, 0)
        recent_items = histories.item_idx[recent]
        directions = self._vectors[recent_items] / self._norms[recent_items][:, :, None]
        listed = np.maximum(items, 0)
        similarity = np.matmul(self._vectors[listed], directions.transpose(0, 2, 1))  # cosine × norm of the listed item
        similarity = np.where(is_event[:, None, :], similarity, -np.inf)
        best = similarity.argmax(axis=2)
        is_similar = similarity.max(axis=2) >= REASON_COSINE * self._norms[listed]
        return np.where(is_similar, np.take_along_axis(recent, best, 1), -1)

    def _reasons(
        self, histories: Sequences, row: npt.NDArray[np.int64], event: npt.NDArray[np.int64]
    ) -> pa.StringArray:
        """The reasons in words: row[j] is the history of the j-th listed item, event[j] the event that explains it."""
        explained = event >= 0
        n_event_types = self._n_event_types
        phrase = np.where(histories.lengths[row] > 0, n_event_types, n_event_types + 1)
        phrase[explained] = histories.event_type[event[explained]]
        item = np.zeros(len(event), np.int64)
        item[explained] = histories.item_idx[event[explained]]
        title = self._titles.take(pa.array(item, mask=~explained)).fill_null("")
        return pc.binary_join_element_wise(
            self._before.take(pa.array(phrase)), title, self._after.take(pa.array(phrase)), ""
        )

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


def _is_in(values: npt.NDArray[np.int64], ordered: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which values stand among the ordered ones; np.isin sorts both every time."""
    if not len(ordered):
        return np.zeros(values.shape, np.bool_)
    place = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.equal(ordered[place], values)
