"""How far tonight's student, events and lists have moved from those that are live. It is told, and decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from scipy.linalg import orthogonal_procrustes

from recsys import schema
from recsys.api import Run
from recsys.ingest.dataset import Dataset, places
from recsys.ingest.histories import hash_ids
from recsys.ingest.profile import TOP_CATEGORIES
from recsys.ingest.report.drift import stability_index
from recsys.nightly.events import count_events
from recsys.retrieval.exact import exact_search

Ints = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]

# What is looked at: a random sample where there is more.
ITEMS: Final = 20_000
QUERIES: Final = 500
USERS: Final = 20_000
NEIGHBOURS: Final = 10
TOP: Final = 10
# Groups of items with as many events each.
GROUPS: Final = 10


def drift(before: Run, now: Run, *, seed: int = 0) -> dict[str, float]:
    """Compare tonight's artifacts with the live ones.

    Args:
        before: the live run.
        now: tonight's, with its lists.
        seed: of the samples.

    Returns:
        Those of `item_drift`, `event_drift` and `list_drift`, by name.
    """
    ids = [run.dataset.items[schema.ITEM_ID].combine_chunks() for run in (before, now)]
    figures = item_drift(ids[0], before.student.item_vectors, ids[1], now.student.item_vectors, seed=seed)
    figures |= event_drift(before.dataset, now.dataset)
    return figures | list_drift(before.recommendations.file, now.recommendations.file, n_users=now.dataset.n_users)


def item_drift(
    ids_before: pa.Array, before: Vectors, ids_now: pa.Array, now: Vectors, *, seed: int = 0
) -> dict[str, float]:
    """How far the vectors of the same items have moved.

    Two students' spaces may be rotated against each other without a difference in any score, so vectors are compared
    after the best rotation: of all orthogonal R the one that minimises ‖A R − B‖, A and B the unit vectors of the same
    items before and now (Schönemann, A Generalized Solution of the Orthogonal Procrustes Problem, 1966). It is found
    from one half of the sample and used on the other, or few items of many dimensions would always fit. Neighbours need
    no rotation.

    Args:
        ids_before: item_ids, [n_before].
        before: the live student's vectors, [n_before, dim], finite.
        ids_now: item_ids, [n_now].
        now: tonight's, [n_now, dim], finite.
        seed: of the sample: at most 20,000 items, of which 500 are asked for their neighbours.

    Returns:
        `items_known`, the share of tonight's items that were there before; `item_cosine`, the mean cosine of the same
        item's vectors after the rotation (left out where the dimensions differ, or where half of the sample has fewer
        items than dimensions); `item_neighbours`, the mean share of an item's ten nearest items by cosine, among the
        sample, that are the same (left out where the sample has not eleven).
    """
    place = pc.index_in(ids_now, value_set=ids_before)
    shared = np.flatnonzero(np.asarray(pc.is_valid(place)))
    figures = {"items_known": len(shared) / max(len(ids_now), 1)}
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(shared)[:ITEMS]
    theirs = place.take(pa.array(chosen)).to_numpy(zero_copy_only=False).astype(np.int64)
    a, b = _unit(before[theirs]), _unit(now[chosen])
    half, dim = len(chosen) // 2, a.shape[1]
    if dim == b.shape[1] and half >= dim:
        rotation, _ = orthogonal_procrustes(a[:half], b[:half])
        figures["item_cosine"] = float(((a[half:] @ rotation) * b[half:]).sum(axis=1).mean())
    if len(chosen) > NEIGHBOURS:
        nearest = [_nearest(each) for each in (a, b)]
        same = [np.isin(ours, others).sum() for ours, others in zip(*nearest, strict=True)]
        figures["item_neighbours"] = float(np.mean(same)) / NEIGHBOURS
    return figures


def _unit(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


def _nearest(vectors: Vectors) -> Ints:
    """The nearest others of the first items, [n_queries, NEIGHBOURS]."""
    queries = vectors[:QUERIES]
    _, found = exact_search(queries, vectors, NEIGHBOURS + 1)
    # An item's twin may come before it; where even it itself does not come, the last one goes.
    others = found != np.arange(len(queries))[:, None]
    others[others.all(axis=1), -1] = False
    nearest: Ints = found[others].reshape(-1, NEIGHBOURS)
    return nearest


def event_drift(before: Dataset, now: Dataset) -> dict[str, float]:
    """How far the events of the fresh windows (the test parts) differ in what they are about.

    Args:
        before: the live night's, split at a moment.
        now: tonight's, likewise. The windows may overlap, and then what both have in common is the same.

    Returns:
        Population stability indices (see `stability_index`): `psi.popularity`, over ten groups of items that had as
        many training events each before, the most popular first, and those without any; `psi.category`, over the 20
        top-level categories with most events before, all others, and none; `psi.price`, over ten groups by price with
        as many events each before, and items without a price. Empty if a window has no event.
    """
    events = [count_events(each, since=_window(each), until=1 << 62).by_item for each in (before, now)]
    if not all(counts.any() for counts in events):
        return {}
    trained = before.item_statistics("train")["popularity"].to_numpy()
    popularity = np.zeros(before.n_items)
    popularity[: len(trained)] = trained  # items that came later stand behind
    known = places(now.items[schema.ITEM_ID], before.items[schema.ITEM_ID])
    groups = np.append(_by_popularity(popularity), GROUPS)  # −1, the last: a new item had no training event either
    prices = [each.items["price"].to_numpy() for each in (before, now)]
    edges = _edges(prices[0], events[0])
    parts: dict[str, tuple[Sequence[Ints], int]] = {
        "psi.popularity": ((groups[:-1], groups[known]), GROUPS + 1),
        "psi.price": ([_by_price(price, edges) for price in prices], GROUPS + 1),
        "psi.category": (_by_category([before.items, now.items], events[0]), TOP_CATEGORIES + 2),
    }
    return {
        name: stability_index(*(np.bincount(of, counts, n) for of, counts in zip(both, events, strict=True)))
        for name, (both, n) in parts.items()
    }


def _window(dataset: Dataset) -> int:
    return int(dataset.manifest["info"]["valid_until"]) - 1


def _by_popularity(popularity: npt.NDArray[np.float64]) -> Ints:
    """Groups 0 … 9 of equal popularity, the most popular items first; 10 for items without any."""
    groups = np.full(len(popularity), GROUPS)
    order = np.argsort(-popularity, kind="stable")
    order = order[popularity[order] > 0]
    before_it = np.cumsum(popularity[order]) - popularity[order]
    groups[order] = np.minimum(GROUPS * before_it / max(popularity.sum(), 1e-9), GROUPS - 1).astype(np.int64)
    return groups


def _edges(price: npt.NDArray[np.float64], events: Ints) -> npt.NDArray[np.float64]:
    """Prices that cut the events into ten groups of equal size; none if no price is known."""
    known = np.isfinite(price)
    order = np.flatnonzero(known)[np.argsort(price[known], kind="stable")]
    cumulated = np.cumsum(events[order])
    if not len(order) or not cumulated[-1]:
        return np.zeros(0)
    edges: npt.NDArray[np.float64] = price[
        order[np.searchsorted(cumulated, cumulated[-1] * np.arange(1, GROUPS) / GROUPS)]
    ]
    return edges


def _by_price(price: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]) -> Ints:
    return np.where(np.isfinite(price), np.searchsorted(edges, price), GROUPS)


def _by_category(items: list[pa.Table], events: Ints) -> list[Ints]:
    """The place among the top-level categories with most events before; then all others, then none."""
    tops = [
        pc.list_element(pc.split_pattern(each["category"], schema.CATEGORY_SEPARATOR, max_splits=1), 0)
        for each in items
    ]
    names = pc.unique(tops[0].drop_null()).sort()
    code = pc.fill_null(pc.index_in(tops[0], value_set=names), len(names)).to_numpy()
    counts = np.bincount(code, events, len(names) + 1)[:-1]
    largest = names.take(pa.array(np.argsort(-counts, kind="stable")[:TOP_CATEGORIES]))
    places = [pc.fill_null(pc.index_in(top, value_set=largest), TOP_CATEGORIES).to_numpy() for top in tops]
    return [np.where(top.is_null().to_numpy(), TOP_CATEGORIES + 1, of) for top, of in zip(tops, places, strict=True)]


def list_drift(before: Path, now: Path, *, n_users: int) -> dict[str, float]:
    """How much of the lists stays.

    Args:
        before: the live lists, columns of `schema.RECOMMENDATIONS`: a Parquet file or a folder of them.
        now: tonight's.
        n_users: how many lists there are, of which about 20,000 are looked at, chosen by the hash of the user_id.

    Returns:
        `top_10_kept`: of the items in the first ten places before, the share that still is in the first ten, over users
        who have both lists. Empty if nobody has.
    """
    old, new = (_top(path, min(USERS / max(n_users, 1), 1.0)) for path in (before, now))
    old = old.filter(pc.is_in(old[schema.USER_ID], value_set=new[schema.USER_ID].combine_chunks()))
    if not len(old):
        return {}
    return {"top_10_kept": len(old.join(new, [schema.USER_ID, schema.ITEM_ID], join_type="inner")) / len(old)}


def _top(path: Path, share: float) -> pa.Table:
    """The first places of some users' lists, read as a stream."""
    columns = [schema.USER_ID, schema.ITEM_ID]
    found = [pa.schema([schema.RECOMMENDATIONS.field(name) for name in columns]).empty_table()]
    for batch in ds.dataset(path).to_batches(columns=columns, filter=ds.field("rank") <= TOP):
        chosen = hash_ids(batch[schema.USER_ID]) < share * 2.0**64
        found.append(pa.Table.from_batches([batch]).filter(pa.array(chosen)))
    return pa.concat_tables(found).combine_chunks()
