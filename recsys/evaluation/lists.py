"""Measure anybody's recommendation lists: those of another library, of a service, or of last year's batch.

**No hint may flatter.** Whoever writes a list decides things that a metric cannot see, so each is settled against the
list: items with equal scores (or equal ranks) are ordered with the targets last; an item that stands in a list again
counts once, where it first stands, and its copies keep their ranks as misses; an item that the catalogue does not know
keeps its rank as a miss; a user with targets but without a list counts 0. Ranks are read as an order: those that are
left out close up, and it does not matter whether they begin at 0 or 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.errors import InputError
from recsys.evaluation.asked import next_only, seen_keys, unseen_targets
from recsys.evaluation.metrics import METRICS, Bools, Metric, Values, metrics_at
from recsys.ingest.dataset import Dataset, Part, Ragged, places

Items = npt.NDArray[np.integer[Any]]
Order = npt.NDArray[np.integer[Any] | np.floating[Any]]

# Comparisons of listed items with targets at a time (1 byte each, and 4 for the lists that they are read from): more
# leave the processor's cache and take longer.
BLOCK_CELLS: Final = 1 << 20
# Rows of the table that are looked up at a time.
BLOCK_ROWS: Final = 1 << 20


@dataclass(frozen=True)
class ListScores:
    """What lists are worth.

    Attributes:
        metrics: the columns of the values.
        user_idx: [n] int32 ascending, the users with at least one target.
        values: [n, n_metrics] float64, one row for each of them; 0 for those without a list.
        counts: what was met: see `score_lists`.
    """

    metrics: list[Metric]
    user_idx: npt.NDArray[np.int32]
    values: Values
    counts: dict[str, int]

    @property
    def means(self) -> dict[str, float]:
        """The mean over users by the metric's column, such as `ndcg_at_10`; NaN without users."""
        means = self.values.mean(axis=0) if len(self.values) else np.full(len(self.metrics), np.nan)
        return {metric.column: float(mean) for metric, mean in zip(self.metrics, means, strict=True)}

    @property
    def per_user(self) -> pa.Table:
        """Column user_idx and one per metric, float64."""
        names = [schema.USER_IDX, *(metric.column for metric in self.metrics)]
        return pa.table([pa.array(self.user_idx), *(pa.array(column) for column in self.values.T)], names=names)


def score_lists(
    recommendations: pa.Table,
    dataset: Dataset,
    *,
    part: Part = "test",
    ks: Iterable[int] = (10, 20, 100),
    metrics: Sequence[str] | None = None,
    seen_filtered: bool = True,
    only_next: bool = False,
    repurchases: bool = False,
) -> ListScores:
    """Measure recommendations given by the shop's own ids; see this module on what is settled how.

    Args:
        recommendations: columns user_id, item_id and `rank` (the lowest is best) or, without it, `score` (the highest
            is best); further columns are ignored, rows stand in any order.
        dataset: whose users, items and targets are meant.
        part: of which part the events are the targets.
        ks: list lengths.
        metrics: names such as "ndcg"; all by default.
        seen_filtered: drop items of the user's history from the lists (what follows moves up) and from the targets.
            Users who have no target left are not asked.
        only_next: ask only for the item of the next event.
        repurchases: what a user has bought before is not dropped; see `recsys.evaluation.asked.not_again`.

    Returns:
        Per-user values, and these counts: `rows`; `unknown_user_rows` and `unknown_users`, ignored; `unasked_rows`, of
        users without a target, ignored; `unknown_item_rows` and `unknown_items`; `seen_rows`, dropped as seen;
        `duplicate_rows`; `users`, who were asked; `users_without_list`, those of them who had no row.

    Raises:
        InputError: a column is missing, an id or an order is null or NaN, a metric is unknown, or a k is below 1.
    """
    by = "rank" if "rank" in recommendations.column_names else "score"
    _check_table(recommendations, by)
    chosen = _chosen(ks, metrics)
    user_id, item_id = (pc.cast(recommendations[name], pa.string()) for name in (schema.USER_ID, schema.ITEM_ID))
    user, item = places(user_id, dataset.users[schema.USER_ID]), places(item_id, dataset.items[schema.ITEM_ID])
    order = recommendations[by].to_numpy()
    order = order if by == "rank" else -order.astype(np.float64)

    cases = next_only(dataset.cases(part)) if only_next else dataset.cases(part)
    targets = unseen_targets(dataset, cases, repurchases=repurchases) if seen_filtered else cases.targets
    asked = targets.lengths > 0

    unknown = user < 0
    case = np.full(dataset.n_users, -1, dtype=np.int32)  # the row of the targets, by user_idx
    case[cases.user_idx[asked]] = np.arange(asked.sum())
    targets = targets.select(np.flatnonzero(asked))
    position = np.where(unknown, np.int32(-1), case[user])
    kept = position >= 0
    counts = {
        "rows": len(user),
        "unknown_user_rows": int(unknown.sum()),
        "unknown_users": _distinct(user_id, unknown),
        "unasked_rows": int((~kept & ~unknown).sum()),
        "unknown_item_rows": int((kept & (item < 0)).sum()),
        "unknown_items": _distinct(item_id, kept & (item < 0)),
        "users": int(asked.sum()),
        "users_without_list": int(asked.sum()) - len(np.unique(position[kept])),
    }
    if seen_filtered:
        histories = dataset.histories(cases.user_idx[asked], cases.history_end[asked])
        key = position[kept] * np.int64(dataset.n_items) + item[kept]
        seen = np.zeros(len(user), dtype=np.bool_)
        seen[kept] = _among(key, seen_keys(histories, dataset.n_items, repurchases=repurchases)) & (item[kept] >= 0)
        kept &= ~seen
        counts["seen_rows"] = int(seen.sum())
    else:
        counts["seen_rows"] = 0
    values, duplicates = evaluate_lists(position[kept], item[kept], order[kept], targets, chosen)
    counts["duplicate_rows"] = duplicates
    return ListScores(chosen, cases.user_idx[asked], values, counts)


def evaluate_lists(
    user: Items, item: Items, order: Order, targets: Ragged, metrics: Sequence[Metric]
) -> tuple[Values, int]:
    """Metrics of lists that are given as numbers, in blocks of users.

    Rows that are sorted by user are read where they lie, and memory grows with the block (and with the longest list).
    Others are sorted first, which takes most of the time and 8 bytes a row.

    Args:
        user: [n] each row's user, a row of `targets`.
        item: [n] the item; negative for one that cannot be a target.
        order: [n] the lowest comes first; equal values are a tie, in which targets come last. Scores are given negated.
        targets: each user's distinct items.
        metrics: what is measured.

    Returns:
        [n_users, n_metrics] float64, NaN for users without a target; and how many rows repeat an item of their list.

    Raises:
        InputError: the arrays differ in length, a user is not a row of the targets, or an order is NaN.
    """
    n_users = len(targets)
    if not len(user) == len(item) == len(order):
        raise InputError(f"{len(user)} users, {len(item)} items and {len(order)} places do not belong together")
    if len(user) and not (user.min() >= 0 and user.max() < n_users):
        raise InputError(f"users {user.min()} … {user.max()}", expected=f"rows of the targets, 0 … {n_users - 1}")
    user = user.astype(np.int32, copy=False)
    if not _ascends(user):
        by_user = np.argsort(user, kind="stable")
        user, item, order = user[by_user], item[by_user], order[by_user]
    # Looked for in the users' own type, because any other would be a copy of all rows.
    offsets = np.append(np.searchsorted(user, np.arange(n_users, dtype=user.dtype)), len(user))
    values = np.full((n_users, len(metrics)), np.nan)
    most = max((metric.k for metric in metrics), default=1)
    duplicates = 0
    for first, last in _blocks(np.diff(offsets), targets.lengths, 0, n_users):
        rows = slice(offsets[first], offsets[last])
        begin, end = targets.offsets[first], targets.offsets[last]
        wanted = Ragged(targets.offsets[first : last + 1] - begin, targets.values[begin:end])
        hits, copies = _hits(item[rows], order[rows], np.diff(offsets[first : last + 1]), wanted)
        duplicates += copies
        hits = hits[:, :most]
        for column, metric in enumerate(metrics):
            values[first:last, column] = metric(hits, wanted.lengths)
    return values, duplicates


def hits_of(items: Items, targets: Ragged) -> Bools:
    """Whether the item at each rank is one of the row's targets, [n, k] bool.

    Args:
        items: [n, k], distinct within a row; negative where there is none.
        targets: n rows of distinct items.
    """
    hits = np.zeros(items.shape, dtype=np.bool_)
    if not items.shape[1] or not len(targets.values):
        return hits
    if len(items) == 1:  # alone in its block because both may be long
        return np.isin(items, targets.values)
    row = np.repeat(np.arange(len(items)), targets.lengths)
    match = items[row] == targets.values[:, None]
    place = match.argmax(axis=1)
    found = match[np.arange(len(place)), place]
    hits[row[found], place[found]] = True
    return hits


def _hits(item: Items, order: Order, lengths: npt.NDArray[np.int64], targets: Ragged) -> tuple[Bools, int]:
    """[n_users, longest list] bool of users whose lists lie end to end, and the number of repeated items."""
    width = int(lengths.max(initial=0))
    if np.isnan(order).any():
        raise InputError("an order is NaN, which has no place in a ranking", expected="numbers", do="leave the row out")
    full = bool(np.all(lengths == width))
    listed = np.arange(width) < lengths[:, None]
    if full:
        items, places = item.reshape(listed.shape), order.reshape(listed.shape)
    else:
        items = np.full(listed.shape, -1, dtype=item.dtype)
        places = np.zeros(listed.shape, dtype=order.dtype)
        items[listed], places[listed] = item, order
    later, earlier = places[:, 1:], places[:, :-1]
    unsorted = np.flatnonzero(((later < earlier) & listed[:, 1:]).any(axis=1))
    if len(unsorted):
        items, places = items.copy(), places.copy()
        sort = np.lexsort((places[unsorted], ~listed[unsorted]), axis=1)
        items[unsorted] = np.take_along_axis(items[unsorted], sort, axis=1)
        places[unsorted] = np.take_along_axis(places[unsorted], sort, axis=1)
    items, duplicates = _without_copies(items)
    hits = hits_of(items, targets)
    tied = (places[:, 1:] == places[:, :-1]) & listed[:, 1:]
    moved = np.flatnonzero((tied & (hits[:, 1:] != hits[:, :-1])).any(axis=1))
    if len(moved):
        run = np.zeros((len(moved), width), dtype=np.int64)
        np.cumsum(~tied[moved], axis=1, out=run[:, 1:])
        hits[moved] = np.sort(2 * run + hits[moved], axis=1) & 1
    return hits, duplicates


def _without_copies(items: Items) -> tuple[Items, int]:
    """The same lists with −1 in place of an item that stood further left, and how many those are."""
    ordered = np.sort(items, axis=1)
    repeating = np.flatnonzero(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1))
    if not len(repeating):
        return items, 0
    rows = items[repeating]
    first_to_last = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, first_to_last, axis=1)
    copy = np.zeros(rows.shape, dtype=np.bool_)
    again = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    np.put_along_axis(copy, first_to_last[:, 1:], again, axis=1)
    items = items.copy()
    items[repeating] = np.where(copy, rows.dtype.type(-1), rows)
    return items, int(copy.sum())


def _blocks(
    lengths: npt.NDArray[np.int64], n_targets: npt.NDArray[np.int64], first: int, last: int
) -> Iterator[tuple[int, int]]:
    """Cut users `first` … `last` − 1 in half until a block's lists, as wide as its longest, fit BLOCK_CELLS."""
    width = int(lengths[first:last].max(initial=0))
    cells = (last - first + int(n_targets[first:last].sum())) * width
    if last - first > 1 and cells > BLOCK_CELLS:
        middle = (first + last) // 2
        yield from _blocks(lengths, n_targets, first, middle)
        yield from _blocks(lengths, n_targets, middle, last)
    elif last > first:
        yield first, last


def _ascends(values: Items) -> bool:
    """Whether no value is below the one before it, looked at in blocks."""
    later, earlier = values[1:], values[:-1]
    starts = range(0, len(later), BLOCK_ROWS)
    blocks = (slice(start, start + BLOCK_ROWS) for start in starts)
    return all(bool(np.all(later[block] >= earlier[block])) for block in blocks)


def _among(keys: npt.NDArray[np.int64], ascending: npt.NDArray[np.int64]) -> Bools:
    """[n] bool, whether each key is among the ascending ones."""
    found = np.zeros(len(keys), dtype=np.bool_)
    if len(ascending):
        for start in range(0, len(keys), BLOCK_ROWS):
            part = keys[start : start + BLOCK_ROWS]
            place = np.minimum(np.searchsorted(ascending, part), len(ascending) - 1)
            found[start : start + BLOCK_ROWS] = ascending[place] == part
    return found


def _check_table(table: pa.Table, by: str) -> None:
    needed = [schema.USER_ID, schema.ITEM_ID, by]
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise InputError(
            f"the recommendations have the columns {table.column_names}",
            expected="user_id, item_id, and rank or score",
            do=f"name the columns so; missing: {', '.join(missing)}",
        )
    kind = table.schema.field(by).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise InputError(f"the column {by} holds {kind}", expected="numbers", do="cast it")
    for name in needed:
        nulls = table[name].null_count
        if nulls:
            raise InputError(f"{nulls} rows have no {name}", expected="a value in every row", do="leave the rows out")
    if pa.types.is_floating(kind) and pc.any(pc.is_nan(table[by])).as_py():
        raise InputError(f"a {by} is NaN, which has no place in a ranking", expected="numbers", do="leave the row out")


def _chosen(ks: Iterable[int], names: Sequence[str] | None) -> list[Metric]:
    known = [metric.name for metric in METRICS]
    names = known if names is None else names
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"unknown metrics {unknown}", expected=f"some of {known}", do="correct the names")
    ks = list(ks)
    if not ks or min(ks) < 1:
        raise InputError(f"ks = {ks}", expected="at least one list length, from 1 on")
    return [metric for metric in metrics_at(ks) if metric.name in names]


def _distinct(ids: pa.ChunkedArray, where: Bools) -> int:
    return int(pc.count_distinct(ids.filter(pa.array(where))).as_py())
