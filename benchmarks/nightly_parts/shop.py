"""A small shop whose log grows by a file a day, and nights of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.api import Run, open_run
from recsys.config import PipelineConfig, load_config
from recsys.nightly import night as nights
from recsys.nightly.night import Night
from recsys.nightly.run import nightly
from recsys.sample.config import SampleConfig
from recsys.sample.sample import write_sample

DAY: Final = timedelta(days=1)
# The moment of the first night; three weeks of log lie after it.
FIRST: Final = datetime(2026, 4, 10, tzinfo=UTC)

# Sizes of the sample shop, and settings under which a night of it takes seconds.
SIZES: Final = {"n_items": 200, "n_users": 300, "n_events": 9000}
SETTINGS: Final = """
seed = 1
threads = 1
use_teacher = false

[ingest]
events = "log"

[teach]
joint_layers = 1
max_tokens = 8
history = 4
item_dim = 8
pool = 10
candidates = 4
examples = 16
evaluations = 1
valid_users = 10
behaviour = { dim = 8, layers = 1, epochs = 1, valid_users = 10, use_text = false }

[score]
top = 8
random = 4
max_rows = 400

[distill]
dim = 32
layers = 1
epochs = 3
batch_positions = 256
lr = 0.003
valid_users = 50
use_text = false

[evaluate]
n_bootstrap = 100
n_permutations = 99

[nightly]
retry_seconds = 0

[nightly.gate]  # so small a shop hardly has a model
baselines = ["most_popular"]
tolerance = 0.3
segments = ["new"]
segment_tolerance = 0.9
coverage_tolerance = 0.5
"""


@dataclass(frozen=True)
class Shop:
    """A shop in a folder: `all/` is its future, `shop/` what it has written so far, `run/` its nights."""

    folder: Path

    @classmethod
    def open(
        cls, folder: Path, settings: str = SETTINGS, *, sizes: Mapping[str, int] = SIZES, first: datetime = FIRST
    ) -> Shop:
        """Invent it, with the log of all days before the first night.

        Args:
            folder: a new one.
            settings: the config as TOML, without its folders.
            sizes: of `SampleConfig`.
            first: the moment of the first night.
        """
        write_sample(folder / "all", SampleConfig.model_validate(sizes), seed=1)
        (folder / "shop" / "log").mkdir(parents=True)
        shop = cls(folder)
        shop._write_config(settings)
        shop.write_log(first, since=first - 100 * DAY)
        return shop

    def copy(self, folder: Path) -> Shop:
        """The same shop, to be written to."""
        shutil.copytree(self.folder, folder, symlinks=True)
        copy = Shop(folder)
        copy._write_config(self.config_file.read_text().split("\n", 2)[2])
        return copy

    def _write_config(self, settings: str) -> None:
        folders = f'data = "{self.folder}/shop"\nrun_dir = "{self.folder}/run"\n'
        self.config_file.write_text(folders + settings)

    @property
    def config_file(self) -> Path:
        """Its config's file."""
        return self.folder / "shop.toml"

    @property
    def run_dir(self) -> Path:
        """Where its nights are."""
        return self.folder / "run"

    @property
    def live(self) -> str | None:
        """The live night's name."""
        return nights.live_name(self.run_dir)

    def config(self, *overrides: str) -> PipelineConfig:
        """Its config."""
        return load_config(self.config_file, overrides, env={})

    def file(self, until: datetime) -> Path:
        """The log's file that ends then."""
        return self.folder / "shop" / "log" / f"{until:%Y-%m-%d}.parquet"

    def write_log(self, until: datetime, *, since: datetime | None = None) -> None:
        """Write the file of a day (or of more), and the catalogue as it is then."""
        events = pq.read_table(self.folder / "all" / "events.parquet")
        bounds = [pa.scalar(each, events["timestamp"].type) for each in (since or until - DAY, until)]
        inside = pc.and_(
            pc.greater_equal(events["timestamp"], bounds[0]),
            pc.less(events["timestamp"], bounds[1]),
        )
        pq.write_table(events.filter(pc.fill_null(inside, False)), self.file(until))
        items = pq.read_table(self.folder / "all" / "items.parquet")
        there = pc.less(items["available_from"], pa.scalar(until, items["available_from"].type))
        pq.write_table(items.filter(pc.fill_null(there, True)), self.folder / "shop" / "items.parquet")

    def night(self, as_of: datetime, *overrides: str, **options: Any) -> Night:
        """Do a night."""
        said: list[str] = []
        options = {"say": said.append, "progress": False, "pause": lambda seconds: None} | options
        return nightly(self.config(*overrides), as_of=as_of, **options)

    def record(self, as_of: datetime) -> Night:
        """A night's record."""
        name = nights.name_of(as_of)
        return next(night for night in nights.load_nights(self.run_dir) if night.name == name)


def check_served(run_dir: Path) -> str:
    """Open what is live as a reader does and check that all of it is whole and of one run; returns the night."""
    run = open_run(run_dir)
    assert_of_one_run(run)
    return run.path.relative_to((run_dir / nights.NIGHTS).resolve()).parts[0]


def assert_of_one_run(run: Run) -> None:
    """Lists, index, student and dataset belong together, and the lists are whole."""
    dataset, student = run.dataset.fingerprint, run.student.fingerprint
    assert run.student.manifest["inputs"]["dataset"] == dataset
    assert run.index.manifest["inputs"]["student"] == student
    index, ranker = run.index.fingerprint, run.ranker.fingerprint
    made_of = {name: run.ranker.manifest["inputs"][name] for name in ("dataset", "student", "index")}
    assert made_of == {"dataset": dataset, "student": student, "index": index}
    made_of = run.recommendations.manifest["inputs"]
    assert made_of == {"dataset": dataset, "student": student, "index": index, "ranker": ranker}
    lists = run.recommendations.table
    assert set(lists["run_id"].to_pylist()) == {run.recommendations.fingerprint}
    assert lists.num_rows == run.recommendations.counts["rows"]
    assert len(run.student.item_vectors) == run.dataset.n_items
