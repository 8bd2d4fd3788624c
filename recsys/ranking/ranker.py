"""From histories to ordered lists with reasons: what the batch stage and the Python API have in common."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset, Sequences
from recsys.ranking.config import RecommendConfig
from recsys.retrieval.index import ItemIndex, VectorModel
from recsys.runtime import Runtime

# What `Ranker.recommend_for` returns: `row` is the place of the history in the call.
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

# Entries of one table of candidates, 12 bytes each.
CANDIDATES = 1 << 22

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Ranker:
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
        self._hides_seen = _event_types_that_hide(config, dataset.event_types)
        self._allowed = _allowed(dataset.items, config, self.as_of)
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
        return self._allowed

    def recommend_for(self, histories: Sequences) -> pa.Table:
        """The best items for each history.

        Everybody gets k items (config), or all that are left of the allowed ones where these are fewer.

        Args:
            histories: one row per user, oldest event first, complete as far as seen items shall be left out.

        Returns:
            Columns of `LISTS`, ordered by row and rank: ranks run from 1, scores do not rise.

        Raises:
            InputError: a history holds an item or an event type that the dataset does not have.
        """
        self._check(histories)
        vectors = self.student.user_vectors(histories, runtime=self.runtime)
        items, scores = self._best(vectors, histories)
        row, place = np.nonzero(items >= 0)
        listed = items[row, place]
        return pa.table(
            [
                pa.array(row, pa.int32()),
                pa.array(listed, pa.int32()),
                self._item_ids.take(pa.array(listed)),
                pa.array(place + 1, pa.int32()),
                pa.array(scores[row, place], pa.float32()),
                self._reasons(histories, row, self._explaining_events(histories, items)[row, place]),
            ],
            schema=LISTS,
        )

    def _best(
        self, vectors: npt.NDArray[np.float32], histories: Sequences
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The k items of largest score that are allowed and not to be left out, in the student's order.

        A re-ranking model belongs here, between the candidates that the index finds and the cut to k.

        Returns:
            item_idx [n, k], −1 behind the end of a shorter list, and scores [n, k].
        """
        n, k, n_items = len(histories), self.config.k, len(self._vectors)
        items, scores = np.full((n, k), -1, np.int64), np.zeros((n, k), np.float32)
        seen = self._seen(histories)
        # Of so many candidates k are left, whatever the user has seen. Users are searched together with those who need
        # about as many, so that one long history does not make the search deep for all; the depth is a power of two
        # and not the deepest one needed, so that it does not depend on who else is there.
        needed = k + np.bincount(seen // n_items, minlength=n)
        exponent = np.ceil(np.log2(needed)).astype(int)
        for each in np.unique(exponent):
            rows, depth = np.flatnonzero(exponent == each), min(2 ** int(each), n_items)
            for part in np.array_split(rows, -(-len(rows) * depth // CANDIDATES)):
                found_scores, found = self.index.search(vectors[part], depth, allowed=self._allowed)
                keep = ~_is_in(part[:, None] * n_items + found, seen)
                rank = np.cumsum(keep, axis=1)
                at, column = np.nonzero(keep & (rank <= k))
                place = part[at], rank[at, column] - 1
                items[place], scores[place] = found[at, column], found_scores[at, column]
        return items, scores

    def _seen(self, histories: Sequences) -> npt.NDArray[np.int64]:
        """What each row must not be shown because of its history: row · n_items + item, sorted, each once."""
        n_items = len(self._vectors)
        row = np.repeat(np.arange(len(histories)), histories.lengths)
        hides = self._hides_seen[histories.event_type] & self._allowed[histories.item_idx]
        return np.unique(row[hides] * n_items + histories.item_idx[hides])

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
        n_event_types = len(self._hides_seen)
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
            (schema.EVENT_TYPE, histories.event_type, len(self._hides_seen)),
        ):
            if len(values) and not 0 <= values.min() <= values.max() < limit:
                raise InputError(
                    f"histories hold a {name} from {values.min()} to {values.max()}",
                    expected=f"0 to {limit - 1}",
                    do="leave out the events whose item or type the dataset does not know",
                )


def _allowed(items: pa.Table, config: RecommendConfig, as_of: datetime) -> npt.NDArray[np.bool_]:
    """[n_items], which items may be shown; a field that the catalogue does not fill forbids nothing."""
    is_available = pc.fill_null(
        pc.less_equal(items["available_from"], pa.scalar(as_of, pa.timestamp("us", "UTC"))), True
    )
    if config.in_stock_only:
        is_available = pc.and_(is_available, pc.fill_null(items["in_stock"], True))
    return np.asarray(is_available.to_numpy(), dtype=np.bool_)


def _event_types_that_hide(config: RecommendConfig, event_types: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    """[n_event_types], whether an item with such an event is left out."""
    if isinstance(config.exclude_seen, str):
        return np.full(len(event_types), config.exclude_seen == "all")
    if unknown := sorted(set(config.exclude_seen) - set(event_types)):
        raise InputError(
            f"recommend.exclude_seen names {', '.join(map(repr, unknown))}",
            expected=f'"all", "none", or some of {", ".join(map(repr, event_types))}',
            do="correct the name",
        )
    return np.isin(event_types, config.exclude_seen)


def _is_in(values: npt.NDArray[np.int64], ordered: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which values stand among the ordered ones; np.isin sorts both every time."""
    if not len(ordered):
        return np.zeros(values.shape, np.bool_)
    place = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.equal(ordered[place], values)
