"""The sample shop's customers: what they like, what they can pay, when they come."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys.sample.catalogue import DAY, DEPARTMENT_OF_SECTION, MATERIALS, SECTIONS, Catalogue
from recsys.sample.config import SampleConfig
from recsys.sample.shelf import Bools, Floats, Ints
from recsys.sample.vocabulary import BRANDS, STYLES

N_INTERESTS = 4

VIEWS_PER_VISIT = 3.4
MAX_VIEWS = 40
EVENTS_PER_VIEW = 1.19  # carts and purchases included; measured
MAX_VISIT = 100 * 60_000  # ms
MIN_PAUSE = 3 * 3_600_000  # ms between the starts of two visits of one shopper

# How busy the shop is: each hour from midnight on, and each day from Monday on.
HOURS = np.array([2, 1, 0.5, 0.3, 0.3, 0.6, 1.5, 3, 4, 4.5, 5, 5.5, 6.5, 6, 5, 5, 5.5, 6.5, 7.5, 9, 10, 9.5, 7, 4])
WEEKDAYS = np.array([1.0, 0.95, 0.95, 1.0, 1.05, 1.2, 1.35])


@dataclass(frozen=True)
class Shoppers:
    """Every shopper's traits."""

    activity: Floats  # [n_users], expected share of the visits
    once: Bools  # [n_users], comes once and looks at one item
    window: Floats  # [n_users, 2], first and last moment of being a customer, as shares of the period
    late: Floats  # [n_users], hours by which the day begins later than others'
    interest: Ints  # [n_users, N_INTERESTS], sections
    interest_peak: Floats  # [n_users, N_INTERESTS], when it is strongest, as a share of the period
    style: Ints  # [n_users, 3]: the first gives way to the second, the third stays in the background
    style_change: Floats  # [n_users], when, as a share of the period
    material: Ints  # [n_users, 2]
    brand: Ints  # [n_users, 2]
    budget: Floats  # [n_users], comparable to Catalogue.dearness
    aimless: Floats  # [n_users], share of looks at whatever turns up


@dataclass(frozen=True)
class Visits:
    """Who came when and for how many looks. Rows are ordered by user, then by time."""

    user: Ints  # [n_visits]
    start: Ints  # [n_visits], ms of the shop's clock
    dwell: Ints  # [n_views], ms that each look takes, visits end to end
    n_views: Ints  # [n_visits]

    @property
    def first_view(self) -> Ints:
        """Row of each visit's first view, [n_visits]."""
        first: Ints = np.cumsum(self.n_views) - self.n_views
        return first

    def opening(self) -> Bools:
        """Whether a view is its visit's first, [n_views]."""
        opening = np.zeros(len(self.dwell), dtype=bool)
        opening[self.first_view] = True
        return opening

    def view_times(self) -> Ints:
        """When each view begins, [n_views], ms of the shop's clock."""
        before = np.cumsum(self.dwell) - self.dwell
        times: Ints = before + np.repeat(self.start - before[self.first_view], self.n_views)
        return times


def build_shoppers(rng: np.random.Generator, config: SampleConfig, catalogue: Catalogue) -> Shoppers:
    """Invent the customers."""
    n = config.n_users
    once = rng.random(n) < config.one_event_share
    joined = np.where(rng.random(n) < 0.6, 0.0, rng.random(n) * 0.97)
    left = np.where(rng.random(n) < 0.8, 1.0, joined + rng.random(n) * (1 - joined))
    activity = np.exp(rng.normal(0, 1.0, n)) * (left - joined)
    return Shoppers(
        activity=np.where(once, 0.0, activity),
        once=once,
        window=np.stack([joined, left], axis=1),
        late=rng.normal(0, 1.5, n),
        interest=_interests(rng, n, catalogue),
        interest_peak=rng.random((n, N_INTERESTS)),
        style=rng.integers(len(STYLES), size=(n, 3)),
        style_change=rng.uniform(0.2, 1.6, n),
        material=rng.integers(len(MATERIALS), size=(n, 2)),
        brand=rng.integers(len(BRANDS), size=(n, 2)),
        budget=rng.normal(0, 0.4, n),
        aimless=rng.beta(1.5, 8, n),
    )


def plan_visits(rng: np.random.Generator, config: SampleConfig, shoppers: Shoppers) -> Visits:
    """Decide who comes when, so that about `config.n_events` events come of it."""
    n_views = config.n_events / EVENTS_PER_VIEW
    n_visits = max(config.n_users, n_views / VIEWS_PER_VISIT)
    length = max(1.0, n_views / n_visits)
    trial = _draw_visits(rng, config, shoppers, round(n_visits), length)
    # Some visits are lost because a shopper cannot be there twice: the trial tells how many more to draw.
    n_visits *= max(1.0, n_views / len(trial.dwell))
    return _draw_visits(rng, config, shoppers, round(n_visits), length)


def _interests(rng: np.random.Generator, n_users: int, catalogue: Catalogue) -> Ints:
    """Sections of the catalogue: half of them in one department, the others anywhere."""
    size = np.bincount(catalogue.section, minlength=len(SECTIONS)).astype(np.float64)
    home = DEPARTMENT_OF_SECTION[_draw(rng, size, np.zeros(n_users), np.ones(n_users))]
    # Sections of one department stand side by side, so that it is a stretch of the running sum.
    running = np.concatenate([[0.0], np.cumsum(size)]) / size.sum()
    low = running[np.searchsorted(DEPARTMENT_OF_SECTION, home)][:, None]
    high = running[np.searchsorted(DEPARTMENT_OF_SECTION, home, side="right")][:, None]
    at_home = np.arange(N_INTERESTS) < N_INTERESTS // 2
    return _draw(rng, size, np.where(at_home, low, 0.0), np.where(at_home, high, 1.0))


def _draw_visits(
    rng: np.random.Generator, config: SampleConfig, shoppers: Shoppers, n_visits: int, length: float
) -> Visits:
    n_users = config.n_users
    # Everybody comes once; the further visits go to the active.
    n_more = n_visits - n_users if shoppers.activity.any() else 0
    more = _draw(rng, shoppers.activity, np.zeros(n_more), np.ones(n_more))
    user = np.concatenate([np.arange(n_users), more])
    start = _start_times(rng, config, shoppers, user)
    order = np.lexsort((start, user))
    user, start = user[order], start[order]
    kept = (np.diff(user, prepend=-1) > 0) | (np.diff(start, prepend=0) >= MIN_PAUSE)
    user, start = user[kept], start[kept]

    n_views = 1 + rng.poisson(rng.gamma(0.7, (length - 1) / 0.7, len(user)))
    n_views = np.where(shoppers.once[user], 1, np.minimum(n_views, MAX_VIEWS))
    dwell = np.clip(rng.lognormal(np.log(35_000), 1.0, n_views.sum()), 3_000, 20 * 60_000)
    duration = np.add.reduceat(dwell, np.cumsum(n_views) - n_views)
    dwell *= np.repeat(np.minimum(1.0, MAX_VISIT / duration), n_views)
    return Visits(user=user, start=start, dwell=dwell.astype(np.int64), n_views=n_views)


def _start_times(rng: np.random.Generator, config: SampleConfig, shoppers: Shoppers, user: Ints) -> Ints:
    """A moment for each visit: busy days and busy hours, within the user's time as a customer."""
    day_number = np.arange(config.days)
    weekday = (config.first_day.weekday() + day_number) % 7
    busy = WEEKDAYS[weekday] * (1 + 0.25 * day_number / config.days) * rng.lognormal(0, 0.08, config.days)
    day = _draw(rng, busy, *shoppers.window[user].T)
    hour = _draw(rng, HOURS, np.zeros(len(user)), np.ones(len(user))) + rng.random(len(user))
    hour += shoppers.late[user] + np.where(weekday[day] >= 5, 0.8, 0.0)
    start = day * DAY + (hour % 24 * (DAY / 24)).astype(np.int64)
    # A visit that could outlast the log is mirrored into the time before, so that all of it is inside.
    last = config.days * DAY - MAX_VISIT - 15 * 60_000
    return np.where(start > last, 2 * last - start, start)


def _draw(rng: np.random.Generator, weight: Floats, low: Floats, high: Floats) -> Ints:
    """Places in proportion to `weight`, each from its own stretch [low, high) of the normalised running sum."""
    running = np.cumsum(weight) / weight.sum() if len(weight) and weight.sum() else np.ones(len(weight))
    place = np.searchsorted(running, low + rng.random(low.shape) * (high - low), side="right")
    return np.minimum(place, len(weight) - 1)
