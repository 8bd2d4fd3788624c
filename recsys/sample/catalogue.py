"""The sample shop's catalogue: the traits of its items, shown and hidden, and what leads from one to another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys.sample.config import SampleConfig
from recsys.sample.shelf import Bools, Floats, Ints, Shelf
from recsys.sample.vocabulary import BRANDS, STYLES, TREE

DAY = 86_400_000  # the shop's clock counts milliseconds from the first day's midnight, UTC
WEEK = 7 * DAY
NEVER = np.iinfo(np.int64).max

N_SUCCESSORS = 6

TYPES = tuple(kind for sections in TREE.values() for kinds in sections.values() for kind in kinds)
SECTIONS = tuple((department, name) for department, sections in TREE.items() for name in sections)
MATERIALS = tuple(sorted({material for kind in TYPES for material in kind.materials}))

SECTION_OF_TYPE = np.repeat(np.arange(len(SECTIONS)), [len(TREE[department][name]) for department, name in SECTIONS])
DEPARTMENT_OF_SECTION = np.array([list(TREE).index(department) for department, _ in SECTIONS])


@dataclass(frozen=True)
class Catalogue:
    """Every item's traits; times are milliseconds of the shop's clock."""

    kind: Ints  # [n_items], product type, a place in TYPES
    section: Ints  # [n_items], the category level above, a place in SECTIONS
    style: Ints  # [n_items], a place in STYLES
    material: Ints  # [n_items], a place in MATERIALS
    brand: Ints  # [n_items], a place in BRANDS
    price: Floats  # [n_items]
    dearness: Floats  # [n_items], log of the price over what its type usually costs
    restock: Ints  # [n_items], how long it lasts a buyer, 0 for what is bought once
    launched: Ints  # [n_items], no event before
    out_from: Ints  # [n_items], not bought from then …
    out_until: Ints  # [n_items], … until then; both NEVER for an item without a stock-out
    popularity: Floats  # [n_weeks, n_items], 0 before the launch
    successors: Ints  # [n_items, N_SUCCESSORS], the items that it leads to, likeliest first

    def __len__(self) -> int:
        return len(self.kind)

    def in_stock(self, item: Ints, time: Ints) -> Bools:
        """Whether `item` can be bought at `time` (arrays that broadcast)."""
        return (time < self.out_from[item]) | (time >= self.out_until[item])


def build_catalogue(rng: np.random.Generator, config: SampleConfig) -> Catalogue:
    """Invent the items."""
    share = np.exp(rng.normal(0, 0.4, len(TYPES)))
    kind = rng.choice(len(TYPES), config.n_items, p=share / share.sum())
    section = SECTION_OF_TYPE[kind]
    brand = _brands(rng, section)
    style = _styles(rng, brand)
    material = draw_option(rng, [[MATERIALS.index(name) for name in t.materials] for t in TYPES], kind)
    tier = np.log(rng.choice([0.65, 1.0, 1.7], len(BRANDS), p=[0.3, 0.5, 0.2]))  # budget, middle, premium
    dearness = tier[brand] + rng.normal(0, 0.25, config.n_items)
    launched = _launches(rng, config)
    out_from, out_until = _stockouts(rng, config, launched)
    popularity = _popularity(rng, config, dearness, launched)
    return Catalogue(
        kind=kind,
        section=section,
        style=style,
        material=material,
        brand=brand,
        price=_price_tag(np.array([t.price for t in TYPES])[kind] * np.exp(dearness)),
        dearness=dearness,
        restock=np.array([t.restock_days for t in TYPES])[kind] * DAY,
        launched=launched,
        out_from=out_from,
        out_until=out_until,
        popularity=popularity,
        successors=_successors(rng, kind, style, brand, popularity),
    )


def draw_option(rng: np.random.Generator, options: list[list[int]], row: Ints) -> Ints:
    """For each r of `row` one of `options[r]`, all equally likely."""
    sizes = np.array([len(choices) for choices in options])
    flat = np.array([choice for choices in options for choice in choices])
    drawn: Ints = flat[(np.cumsum(sizes) - sizes)[row] + rng.integers(0, sizes[row])]
    return drawn


def _brands(rng: np.random.Generator, section: Ints) -> Ints:
    """A brand keeps to two departments at most, and every department has several."""
    homes = [{b % len(TREE), int(rng.integers(len(TREE)))} for b in range(len(BRANDS))]
    in_department = [[b for b, home in enumerate(homes) if d in home] for d in range(len(TREE))]
    return draw_option(rng, in_department, DEPARTMENT_OF_SECTION[section])


def _styles(rng: np.random.Generator, brand: Ints) -> Ints:
    """Half of a brand's items come in its house style, the others in any."""
    house_style = rng.integers(len(STYLES), size=len(BRANDS))
    any_style = rng.integers(len(STYLES), size=len(brand))
    return np.where(rng.random(len(brand)) < 0.5, house_style[brand], any_style)


def _price_tag(amount: Floats) -> Floats:
    """The shop price next to an amount: 12.99 below a hundred, 349.00 above."""
    return np.where(amount < 100, np.floor(amount) + 0.99, np.round(amount / 10) * 10 - 1)


def _launches(rng: np.random.Generator, config: SampleConfig) -> Ints:
    """When each item came, at eight in the morning: most long ago, some in the period, some in its last week."""
    n, last_week = config.n_items, config.days - 7
    n_late = round(n * config.launched_last_week_share)
    n_recent = round(n * config.launched_share)
    day = rng.integers(-700, 0, n)
    day[:n_late] = rng.integers(last_week, config.days - 1, n_late)
    day[n_late : n_late + n_recent] = rng.integers(1, last_week, n_recent)
    return rng.permutation(day) * DAY + DAY // 3


def _stockouts(rng: np.random.Generator, config: SampleConfig, launched: Ints) -> tuple[Ints, Ints]:
    """At most one stock-out for each item, of 2 to 14 days; some have not ended when the log does."""
    n = config.n_items
    hit = rng.random(n) < config.stockout_share
    begin = np.maximum(rng.integers(0, config.days * DAY, n), launched + DAY // 2)
    end = begin + rng.integers(2 * DAY, 14 * DAY, n)
    return np.where(hit, begin, NEVER), np.where(hit, end, NEVER)


def _popularity(rng: np.random.Generator, config: SampleConfig, dearness: Floats, launched: Ints) -> Floats:
    """Heavy-tailed, drifting from week to week, higher for cheap items and for what has just been launched."""
    week = np.arange(-(-config.days // 7))[:, None]
    start = rng.normal(0, 1.0, config.n_items) - 0.4 * dearness
    drift = np.cumsum(rng.normal(0, 0.3, (len(week), config.n_items)), axis=0)
    age = week - launched // WEEK
    novelty = np.where((age >= 0) & (age < 3), 0.9 - 0.3 * age, 0.0)
    return np.where(age >= 0, np.exp(start + drift + novelty), 0.0)


def _successors(rng: np.random.Generator, kind: Ints, style: Ints, brand: Ints, popularity: Floats) -> Ints:
    """For each item the few items that shoppers turn to after it.

    They are of the types that its own type leads to, more often than not of its style or brand, and otherwise the
    item's own: a relation that points one way, of which text shows a part and the log the rest.
    """
    place = {t.name: number for number, t in enumerate(TYPES)}
    leads_to = [[place[name] for name in t.leads_to] or [number] for number, t in enumerate(TYPES)]
    shelf = Shelf(kind, np.sqrt(popularity.max(axis=0, keepdims=True)), len(TYPES))
    width = 5 * N_SUCCESSORS
    target = draw_option(rng, leads_to, np.repeat(kind, width)).reshape(-1, width)
    drawn = np.sort(shelf.draw(rng, np.zeros_like(target), target), axis=1)
    fit = 1.5 * (style[drawn] == style[:, None]) + 0.7 * (brand[drawn] == brand[:, None])
    fit += rng.gumbel(size=fit.shape)
    fit[:, 1:][drawn[:, 1:] == drawn[:, :-1]] -= 100  # a repeat stands behind all others
    best = np.argsort(-fit, axis=1, kind="stable")[:, :N_SUCCESSORS]
    return np.take_along_axis(drawn, best, axis=1)
