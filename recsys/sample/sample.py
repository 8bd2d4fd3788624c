"""Write the sample shop: its event log, its catalogue, and the truth about both."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from recsys.artifacts import write_json
from recsys.errors import InputError
from recsys.sample.browse import browse
from recsys.sample.catalogue import build_catalogue
from recsys.sample.config import SampleConfig
from recsys.sample.log import events_table, soil
from recsys.sample.shoppers import build_shoppers, plan_visits
from recsys.sample.titles import items_table

EVENTS_FILE, ITEMS_FILE, TRUTH_FILE = "events.parquet", "items.parquet", "truth.json"


@dataclass(frozen=True)
class SampleShop:
    """What was written.

    Attributes:
        path: the folder.
        n_items: rows of items.parquet.
        n_users: shoppers, of whom each has at least one event before the dirt.
        n_events: rows of events.parquet, dirty ones included.
        events: sound events by type, before the dirt.
        dirty: planted rows by kind.
    """

    path: Path
    n_items: int
    n_users: int
    n_events: int
    events: dict[str, int]
    dirty: dict[str, int]


def write_sample(out: Path, config: SampleConfig | None = None, *, seed: int = 0) -> SampleShop:
    """Invent a shop and write `events.parquet`, `items.parquet` and `truth.json` into the folder `out`.

    The same config and seed give the same bytes. The folder appears whole; an earlier sample shop in it is replaced.

    Raises:
        InputError: `out` holds something else.
    """
    config = config or SampleConfig()
    folder = out.resolve()
    _check_replaceable(folder)
    # Each part has randomness of its own, so that a change in one does not reshuffle the others.
    random = iter(np.random.default_rng(seed).spawn(7))
    catalogue = build_catalogue(next(random), config)
    items = items_table(next(random), config, catalogue)
    shoppers = build_shoppers(next(random), config, catalogue)
    visits = plan_visits(next(random), config, shoppers)
    views = browse(next(random), config, catalogue, shoppers, visits)
    sound = events_table(next(random), config, catalogue, items["item_id"].combine_chunks(), visits, views)
    events, dirty = soil(next(random), config, sound)
    shop = SampleShop(
        path=out,
        n_items=items.num_rows,
        n_users=config.n_users,
        n_events=events.num_rows,
        events={row["values"]: row["counts"] for row in sound["event_type"].value_counts().to_pylist()},
        dirty=dirty,
    )
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)  # of a killed run
    aside.mkdir(parents=True)
    try:
        pq.write_table(events, aside / EVENTS_FILE)
        pq.write_table(items, aside / ITEMS_FILE)
        truth = {name: value for name, value in asdict(shop).items() if name != "path"}
        write_json(aside / TRUTH_FILE, truth | {"seed": seed, "config": config.model_dump(mode="json")})
        _replace(folder, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return shop


def _check_replaceable(folder: Path) -> None:
    """Raise unless there is nothing, an empty folder or an earlier sample shop."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"a file"}
    if names and names != {EVENTS_FILE, ITEMS_FILE, TRUTH_FILE}:
        raise InputError(
            f"{folder} holds something that `recsys sample` did not write",
            expected="a new or empty folder, or an earlier sample shop, which is replaced",
            do="name another folder",
        )


def _replace(folder: Path, aside: Path) -> None:
    """Put `aside` in the place of `folder`. A rename needs a free target, so the old shop steps aside first."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
