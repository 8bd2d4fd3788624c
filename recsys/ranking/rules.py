"""A shop's rules, as arrays over the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.errors import InputError
from recsys.ingest.dataset import Sequences
from recsys.items import category_codes, group_codes
from recsys.ranking.config import RecommendConfig

Bools = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int32]
DAY: int = 86_400_000_000  # microseconds


@dataclass(frozen=True)
class Cap:
    """At most so many items of one group in a list.

    Attributes:
        code: [n_items] int32, the group; −1 for an item of none, which no cap counts.
        most: ≥ 1.
        gives_way: whether a list that would be left short may have more.
    """

    code: Codes
    most: int
    gives_way: bool


@dataclass(frozen=True)
class Rules:
    """What may be shown to whom.

    Attributes:
        allowed: [n_items], the items that may be shown to somebody.
        lift: [n_items] float32, what boosts add to a score; None without boosts.
        caps: per list.
        hides: [n_event_types], whether an event hides its item from the user.
        again: rows of (microseconds, [n_event_types], [n_items] or None for all): an event of such a type on such an
            item hides no longer when it is so old.
        as_of: microseconds since 1970, the moment that the lists are for.
        unmatched: what the rules name and the catalogue does not have.
    """

    allowed: Bools
    lift: npt.NDArray[np.float32] | None
    caps: tuple[Cap, ...]
    hides: Bools
    again: tuple[tuple[int, Bools, Bools | None], ...]
    as_of: int
    unmatched: tuple[str, ...]

    @classmethod
    def of(
        cls, items: pa.Table, event_types: tuple[str, ...], config: RecommendConfig, as_of: datetime, *, as_of_us: int
    ) -> Rules:
        """The rules of a config over a catalogue (`Dataset.items`).

        Raises:
            InputError: a rule names an event type that the log does not have.
        """
        unmatched: list[str] = []
        blocked = (
            _named(items, schema.ITEM_ID, config.blocked_items, unmatched, "blocked_items")
            | _named(items, "brand", config.blocked_brands, unmatched, "blocked_brands")
            | _below(items, config.blocked_categories, unmatched, "blocked_categories")
        )
        again = tuple(
            (
                round(rule.after_days * DAY),
                _types(rule.event_types, event_types, "again.event_types", nothing=True),
                None if rule.category is None else _below(items, (rule.category,), unmatched, "again.category"),
            )
            for rule in config.again
        )
        return cls(
            _available(items, config, as_of) & ~blocked,
            _lift(items, config, as_of, unmatched),
            _caps(items, config),
            _event_types_that_hide(config, event_types),
            again,
            as_of_us,
            tuple(unmatched),
        )

    def hidden(self, histories: Sequences) -> npt.NDArray[np.int64]:
        """What each row must not be shown because of its history: row · n_items + item, sorted, each once."""
        row = np.repeat(np.arange(len(histories)), histories.lengths)
        hides = self.hides[histories.event_type] & self.allowed[histories.item_idx]
        age = self.as_of - histories.timestamp
        for after, types, of_items in self.again:
            past = (age >= after) & types[histories.event_type]
            if of_items is not None:
                past &= of_items[histories.item_idx]
            hides &= ~past
        return np.unique(row[hides] * np.int64(len(self.allowed)) + histories.item_idx[hides])


def _available(items: pa.Table, config: RecommendConfig, as_of: datetime) -> Bools:
    """[n_items], which items may be shown; a field that the catalogue does not fill forbids nothing."""
    now = pa.scalar(as_of, pa.timestamp("us", "UTC"))
    may = pc.fill_null(pc.less_equal(items["available_from"], now), True)
    if config.in_stock_only:
        may = pc.and_(may, pc.fill_null(items["in_stock"], True))
    if config.min_price is not None:
        may = pc.and_(may, pc.fill_null(pc.greater_equal(items["price"], config.min_price), True))
    if config.max_price is not None:
        may = pc.and_(may, pc.fill_null(pc.less_equal(items["price"], config.max_price), True))
    return np.asarray(may.to_numpy(), dtype=np.bool_)


def _lift(
    items: pa.Table, config: RecommendConfig, as_of: datetime, unmatched: list[str]
) -> npt.NDArray[np.float32] | None:
    valid = [boost for boost in config.boosts if boost.until is None or as_of < boost.until]
    if not valid:
        return None
    lift = np.zeros(len(items), dtype=np.float32)
    for boost in valid:
        meant = (
            _named(items, schema.ITEM_ID, boost.items, unmatched, "boosts.items")
            | _named(items, "brand", boost.brands, unmatched, "boosts.brands")
            | _below(items, boost.categories, unmatched, "boosts.categories")
        )
        lift[meant] += np.float32(np.log(boost.factor))
    return lift


def _caps(items: pa.Table, config: RecommendConfig) -> tuple[Cap, ...]:
    caps = []
    if config.one_of_variants:
        names = pc.binary_join_element_wise(
            pc.utf8_lower(items["title"]), pc.fill_null(items["brand"], ""), "\x1f", null_handling="skip"
        )
        caps.append(Cap(group_codes(names), 1, gives_way=False))
    if config.max_per_brand is not None:
        caps.append(Cap(group_codes(items["brand"]), config.max_per_brand, gives_way=True))
    if config.max_per_category is not None:
        codes = category_codes(items["category"], levels=config.category_levels)
        caps.append(Cap(codes, config.max_per_category, gives_way=True))
    return tuple(caps)


def _named(items: pa.Table, column: str, names: Sequence[str], unmatched: list[str], rule: str) -> Bools:
    """[n_items], whose value is one of the names."""
    if not names:
        return np.zeros(len(items), dtype=np.bool_)
    values = items[column].cast(pa.string())
    there = pc.is_in(pa.array(names, pa.string()), value_set=values.combine_chunks())
    unmatched += [f"{rule}: {name}" for name in pa.array(names).filter(pc.invert(there)).to_pylist()]
    found = pc.is_in(values, value_set=pa.array(names, pa.string()))
    return np.asarray(found.to_numpy(), dtype=np.bool_)


def _below(items: pa.Table, paths: Sequence[str], unmatched: list[str], rule: str) -> Bools:
    """[n_items], whose category is one of the paths or below it."""
    found = np.zeros(len(items), dtype=np.bool_)
    values = pc.fill_null(items["category"].cast(pa.string()), "")
    for path in paths:
        inside = pc.or_(pc.equal(values, path), pc.starts_with(values, path + schema.CATEGORY_SEPARATOR))
        mask = np.asarray(inside.to_numpy(), dtype=np.bool_)
        if not mask.any():
            unmatched.append(f"{rule}: {path}")
        found |= mask
    return found


def _event_types_that_hide(config: RecommendConfig, event_types: tuple[str, ...]) -> Bools:
    """[n_event_types], whether an item with such an event is left out."""
    if isinstance(config.exclude_seen, str):
        return np.full(len(event_types), config.exclude_seen == "all")
    return _types(config.exclude_seen, event_types, "exclude_seen", nothing=False)


def _types(names: tuple[str, ...], event_types: tuple[str, ...], rule: str, *, nothing: bool) -> Bools:
    """[n_event_types], whether a type is named; `nothing` is said of each where none is."""
    if unknown := sorted(set(names) - set(event_types)):
        also = '"all", "none", or ' if rule == "exclude_seen" else ""
        raise InputError(
            f"recommend.{rule} names {', '.join(map(repr, unknown))}",
            expected=f"{also}some of {', '.join(map(repr, event_types))}",
            do="correct the name",
        )
    return np.isin(event_types, names) if names else np.full(len(event_types), nothing)
