"""What shoppers look at, put into the cart and buy: a discrete choice at every step.

A shopper at an item considers two dozen others: what that item leads to, more of its kind, the product type that the
shopper is looking for, what else his interests and styles offer, a bestseller. Each has a utility (taste, price,
stock, and a head start for how it came up) plus Gumbel noise, and the best is looked at: a conditional logit. Besides,
a shopper goes back to what he has seen, restocks what has run out, and now and then clicks on just anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys.sample.catalogue import DAY, N_SUCCESSORS, NEVER, SECTIONS, TYPES, WEEK, Catalogue
from recsys.sample.config import SampleConfig
from recsys.sample.shelf import Bools, Floats, Ints, Shelf
from recsys.sample.shoppers import Shoppers, Visits
from recsys.sample.vocabulary import STYLES

# Each source of candidates: how many it offers, and their head start. Successors come likeliest first.
N_OF_KIND, N_WANTED, N_OF_INTEREST, N_OF_STYLE, N_BESTSELLERS = 3, 6, 3, 4, 1
SUCCESSOR: Floats = 1.8 - 0.5 * np.arange(N_SUCCESSORS, dtype=np.float64)
SAME_KIND, WANTED, OF_INTEREST, OF_STYLE, BESTSELLER, SPARE = 0.8, 1.2, 0.3, -0.5, 0.0, -20.0

STYLE_PULL, MATERIAL_PULL, BRAND_PULL, PRICE_PULL = 3.2, 1.0, 1.0, 0.8
OUT_OF_STOCK, SAME_AGAIN = -1.5, -3.0
BACKGROUND_STYLE = 0.4  # pull of a shopper's third style; the first hands its 1.0 over to the second
STYLE_CHANGE_SPAN = 0.06  # how long that takes, as a share of the period
INTEREST_SPAN = 0.13  # standard deviation of an interest's rise and fall, as a share of the period
INTEREST_FLOOR = 0.08  # what of it is always there

KEEP_LOOKING = 0.5  # chance that a visit is for what the last one was for
RETURN, RETURN_FIRST = 0.08, 0.22  # chance of a look at something seen before; the same for a visit's first look
RESTOCK = 0.75  # chance that a visit begins with what has run out
CART, CART_RETURNED, CART_RESTOCK = 0.06, 0.16, 0.9
BUY, BUY_RESTOCK = 0.45, 0.9  # of what is in the cart
DELIGHT = 0.3  # carting grows with exp(DELIGHT × taste)


@dataclass(frozen=True)
class Views:
    """What was looked at, and what came of it. Rows as in `Visits.dwell`; times in ms of the shop's clock."""

    item: Ints  # [n_views]
    time: Ints  # [n_views]
    carted: Bools  # [n_views]
    bought: Bools  # [n_views], of those carted


def browse(
    rng: np.random.Generator, config: SampleConfig, catalogue: Catalogue, shoppers: Shoppers, visits: Visits
) -> Views:
    """Let everybody browse.

    The n-th look of all shoppers is decided at once, so the loop is as long as the busiest shopper's log.
    """
    choice, memory = _Choice(config, catalogue, shoppers), _Memory(config.n_users)
    time, opening = visits.view_times(), visits.opening()
    views_of_user = np.bincount(visits.user, weights=visits.n_views, minlength=config.n_users).astype(np.int64)
    first_of_user = np.cumsum(views_of_user) - views_of_user
    busiest_first = np.argsort(-views_of_user, kind="stable")
    views = Views(
        item=np.zeros(len(time), dtype=np.int64),
        time=time,
        carted=np.zeros(len(time), dtype=bool),
        bought=np.zeros(len(time), dtype=bool),
    )
    for n in range(views_of_user.max()):
        user = busiest_first[: np.count_nonzero(views_of_user > n)]
        view = first_of_user[user] + n
        now, opens = time[view], opening[view]

        renewed = opens & (rng.random(len(user)) >= KEEP_LOOKING) if n else opens
        memory.wanted[user[renewed]] = choice.draw_wanted(rng, user[renewed], now[renewed])
        origin = memory.origin(user, views.item[view - 1], opens) if n else None
        item = choice.draw(rng, user, now, memory.wanted[user], origin)
        returns = rng.random(len(user)) < np.where(opens, RETURN_FIRST, RETURN) * (n > 0)
        seen = np.maximum(view - rng.geometric(0.3, len(user)) - ~opens, first_of_user[user])
        item = np.where(returns, views.item[seen], item)
        restocks, pantry_item = memory.restock(rng, user, now, opens)
        item = np.where(restocks, pantry_item, item)

        delight = np.exp(DELIGHT * choice.taste(user, now, item[:, None])[:, 0])
        to_cart = np.where(restocks, CART_RESTOCK, np.where(returns, CART_RETURNED, CART) * delight)
        to_cart *= catalogue.in_stock(item, now) & ~shoppers.once[user]
        carted = rng.random(len(user)) < to_cart
        bought = carted & (rng.random(len(user)) < np.where(restocks, BUY_RESTOCK, BUY))
        views.item[view], views.carted[view], views.bought[view] = item, carted, bought
        memory.buy(rng, catalogue, user[bought], item[bought], now[bought])
    return views


class _Memory:
    """What shoppers keep in mind from one look to the next."""

    slots = 4  # things to restock that a shopper keeps in mind

    def __init__(self, n_users: int) -> None:
        self.wanted = np.zeros(n_users, dtype=np.int64)  # the product type that each is looking for
        self.last_bought = np.full(n_users, -1)  # in the last visit, -1 for nothing
        self.pantry = np.zeros((n_users, self.slots), dtype=np.int64)
        self.due = np.full((n_users, self.slots), NEVER)  # when the pantry's items run out

    def origin(self, user: Ints, last_seen: Ints, opens: Bools) -> Ints:
        """The item that each comes from, [n]: what was bought leads on to what goes with it, even days later."""
        bought = self.last_bought[user]
        self.last_bought[user[opens]] = -1
        return np.where(opens & (bought >= 0), bought, last_seen)

    def restock(self, rng: np.random.Generator, user: Ints, now: Ints, opens: Bools) -> tuple[Bools, Ints]:
        """Who begins the visit with what has run out, and what that is, both [n]."""
        slot = np.argmin(self.due[user], axis=1)
        restocks = opens & (self.due[user, slot] <= now) & (rng.random(len(user)) < RESTOCK)
        self.due[user[restocks], slot[restocks]] = NEVER
        return restocks, self.pantry[user, slot]

    def buy(self, rng: np.random.Generator, catalogue: Catalogue, user: Ints, item: Ints, now: Ints) -> None:
        """Remember purchases."""
        self.last_bought[user] = item
        lasts = catalogue.restock[item] * rng.lognormal(0, 0.12, len(item))
        used_up = lasts > 0
        user, slot = user[used_up], catalogue.kind[item[used_up]] % self.slots
        self.pantry[user, slot] = item[used_up]
        self.due[user, slot] = now[used_up] + lasts[used_up].astype(np.int64)


class _Choice:
    """Where the next look goes."""

    def __init__(self, config: SampleConfig, catalogue: Catalogue, shoppers: Shoppers) -> None:
        self.catalogue, self.shoppers = catalogue, shoppers
        self.period = config.days * DAY
        together = np.zeros(len(catalogue), dtype=np.int64)
        self.by_kind = Shelf(catalogue.kind, catalogue.popularity, len(TYPES))
        self.by_section = Shelf(catalogue.section, catalogue.popularity, len(SECTIONS))
        self.by_style = Shelf(catalogue.style, catalogue.popularity, len(STYLES))
        self.bestsellers = Shelf(together, catalogue.popularity**1.25, 1)
        self.always_there = Shelf(together, (catalogue.launched < 0)[None].astype(np.float64), 1)

    def draw(self, rng: np.random.Generator, user: Ints, now: Ints, wanted: Ints, origin: Ints | None) -> Ints:
        """What each of `user` looks at at `now`.

        Args:
            rng: source of all draws.
            user: shoppers, [n].
            now: ms of the shop's clock, [n].
            wanted: the product type that each is looking for, [n].
            origin: the item that each comes from, [n]; None before the first look of all.
        """
        week, none = now // WEEK, np.zeros_like(now)
        offers: list[tuple[Ints, float | Floats]] = [
            (_draw(rng, self.by_kind, week, wanted, N_WANTED), WANTED),
            (_draw(rng, self.by_section, week, self.draw_interest(rng, user, now), N_OF_INTEREST), OF_INTEREST),
            (_draw(rng, self.by_style, week, self.draw_style(rng, user, now), N_OF_STYLE), OF_STYLE),
            (_draw(rng, self.bestsellers, week, none, N_BESTSELLERS), BESTSELLER),
            # For the rare shopper to whom nothing else can be offered yet.
            (_draw(rng, self.always_there, none, none, 1), SPARE),
        ]
        if origin is not None:
            offers.append((self.catalogue.successors[origin], SUCCESSOR))
            offers.append((_draw(rng, self.by_kind, week, self.catalogue.kind[origin], N_OF_KIND), SAME_KIND))
        candidates = np.concatenate([offered for offered, _ in offers], axis=1)
        utility = np.concatenate([np.broadcast_to(start, offered.shape) for offered, start in offers], axis=1)
        utility = utility + self.taste(user, now, candidates) + rng.gumbel(size=candidates.shape)
        utility += OUT_OF_STOCK * ~self.catalogue.in_stock(candidates, now[:, None])
        if origin is not None:
            utility += SAME_AGAIN * (candidates == origin[:, None])
        utility[self.catalogue.launched[candidates] > now[:, None]] = -np.inf
        chosen = _at(candidates, np.argmax(utility, axis=1))

        anything = rng.integers(0, len(self.catalogue), len(user))
        aimless = (rng.random(len(user)) < self.shoppers.aimless[user]) & (self.catalogue.launched[anything] <= now)
        return np.where(aimless, anything, chosen)

    def taste(self, user: Ints, now: Ints, candidates: Ints) -> Floats:
        """How much each of `user` likes each of their `candidates`, both [n, k]."""
        items, people = self.catalogue, self.shoppers
        liking = -PRICE_PULL * (items.dearness[candidates] - people.budget[user, None]) ** 2
        for styles, weight in zip(people.style[user].T, self.style_weights(user, now).T, strict=True):
            liking += STYLE_PULL * weight[:, None] * (items.style[candidates] == styles[:, None])
        for materials in people.material[user].T:
            liking += MATERIAL_PULL * (items.material[candidates] == materials[:, None])
        for brands in people.brand[user].T:
            liking += BRAND_PULL * (items.brand[candidates] == brands[:, None])
        return liking

    def style_weights(self, user: Ints, now: Ints) -> Floats:
        """How strong each of a shopper's styles is by now, [n, 3]."""
        changed = 1 / (1 + np.exp((self.shoppers.style_change[user] - now / self.period) / STYLE_CHANGE_SPAN))
        return np.stack([1 - changed, changed, np.full(len(user), BACKGROUND_STYLE)], axis=1)

    def draw_style(self, rng: np.random.Generator, user: Ints, now: Ints) -> Ints:
        """One of each shopper's styles, [n]."""
        return _at(self.shoppers.style[user], _draw_column(rng, self.style_weights(user, now)))

    def draw_interest(self, rng: np.random.Generator, user: Ints, now: Ints) -> Ints:
        """A section that interests each shopper now, [n]; interests come and go."""
        distance = (now / self.period)[:, None] - self.shoppers.interest_peak[user]
        strength = INTEREST_FLOOR + np.exp(-0.5 * (distance / INTEREST_SPAN) ** 2)
        return _at(self.shoppers.interest[user], _draw_column(rng, strength))

    def draw_wanted(self, rng: np.random.Generator, user: Ints, now: Ints) -> Ints:
        """A product type to look for, within an interest, [n]."""
        return self.catalogue.kind[self.by_section.draw(rng, now // WEEK, self.draw_interest(rng, user, now))]


def _draw(rng: np.random.Generator, shelf: Shelf, week: Ints, group: Ints, k: int) -> Ints:
    """`k` draws for each week and group, [n, k]."""
    return shelf.draw(rng, np.repeat(week[:, None], k, axis=1), np.repeat(group[:, None], k, axis=1))


def _draw_column(rng: np.random.Generator, weight: Floats) -> Ints:
    """For each row of `weight` a column in proportion to it, [n]."""
    running = np.cumsum(weight, axis=1)
    column: Ints = np.argmax(running > rng.random((len(weight), 1)) * running[:, -1:], axis=1)
    return column


def _at(table: Ints, column: Ints) -> Ints:
    """`table[r, column[r]]` for each row r."""
    found: Ints = table[np.arange(len(table)), column]
    return found
