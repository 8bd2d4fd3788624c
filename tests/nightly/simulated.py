"""Nights of a shop as they come: weekly rhythm, growth, seasons and noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

NIGHT = 1_772_330_400  # 2026-03-01T02:00:00Z
RHYTHM = np.array([1.05, 0.95, 0.9, 0.95, 1.1, 1.25, 1.3])
MIX = {"view": 0.85, "cart": 0.11, "purchase": 0.04}


Figures = dict[str, float]


@dataclass(frozen=True)
class Shop:
    """What is usual in a shop, and how far its nights are off."""

    events: float = 20_000
    growth: float = 0.8  # in a year, as a share
    rhythm: float = 1.0  # how strong the week is
    season: float = 0.3  # height of the yearly wave, on the logarithm
    noise: float = 0.08  # of the volume, a standard deviation on the logarithm
    memory: float = 0.4  # of the noise from night to night
    tails: float = 5.0  # degrees of freedom of the noise
    mix_noise: float = 0.06  # of the odds of a type


def simulate(shop: Shop, nights: int, seed: int) -> list[Figures]:
    """Figures as `profile` gives them, of consecutive nights on which nothing is wrong."""
    rng = np.random.default_rng(seed)
    scale = math.sqrt((1 - shop.memory**2) * (shop.tails - 2) / shop.tails)
    hours = rng.uniform(1, 4)
    faulty, copies, new = rng.uniform(0, 0.02), rng.uniform(0, 0.03), rng.uniform(0.005, 0.04)
    nulls = {"title": 0.0, "category": rng.uniform(0, 0.1), "price": rng.uniform(0, 0.3), "description": 0.4}
    drifting, found = 0.0, []
    for night in range(nights):
        drifting = shop.memory * drifting + scale * shop.noise * rng.standard_t(shop.tails)
        level = shop.events * (1 + shop.growth) ** (night / 365) * math.exp(drifting)
        level *= math.exp(shop.season * math.sin(2 * math.pi * night / 365)) * RHYTHM[night % 7] ** shop.rhythm
        n = max(int(rng.poisson(level)), 1)
        weekend = 0.15 * shop.rhythm * (night % 7 >= 5)
        odds = np.log([*MIX.values()]) + [0, -weekend, -2 * weekend] + shop.mix_noise * rng.normal(size=3)
        counts = rng.multinomial(n, np.exp(odds) / np.exp(odds).sum())
        items = max(int(0.1 * n), 1)
        rows = int(n / (1 - faulty - copies))
        users = max(int(rng.poisson(n / 6 * math.exp(0.02 * rng.normal()))), 1)
        nulls = {name: min(max(share + 0.002 * rng.normal(), 0), 1) if share else 0 for name, share in nulls.items()}
        found.append(
            {
                "moment": float(NIGHT + night * 86_400),
                "days": 1.0,
                "events": float(n),
                "events_per_day": float(n),
                "users_per_day": float(users),
                "hours_since_last_event": hours * math.exp(0.4 * rng.normal()),
                "items": float(items),
                "users": float(users),
                "rows": float(rows),
                "catalogue": 20_000.0,
                "repeated_share": rng.binomial(n, 0.002) / n,
                "new_user_share": rng.binomial(users, 0.3 * math.exp(0.1 * rng.normal())) / users,
                "new_item_share": rng.binomial(items, min(new * math.exp(0.5 * rng.normal()), 1)) / items,
                "merged_share": rng.binomial(rows, min(copies * math.exp(0.3 * rng.normal()), 1)) / rows,
                "quarantined_share": rng.binomial(rows, min(faulty * math.exp(0.5 * rng.normal()), 1)) / rows,
            }
            | {f"event_share.{name}": k / n for name, k in zip(MIX, counts.tolist(), strict=True)}
            | {f"null_share.{name}": share for name, share in nulls.items()}
        )
    return found
