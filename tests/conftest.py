"""A small sample shop and one run of the whole pipeline on it, for every test that needs real artifacts."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys import pipeline
from recsys.api import Run
from recsys.config import PipelineConfig, load_config
from recsys.sample.config import SampleConfig
from recsys.sample.sample import write_sample

# Everything is real and everything is small: one joint layer, a few dozen examples, two epochs.
TINY = """
seed = 1
threads = 1  # results are compared between processes, and sums depend on the number of threads

[ingest]
as_of = 2026-05-01T00:00:00Z  # the sample shop's last midnight

[teach]
joint_layers = 1
max_tokens = 8
history = 4
item_dim = 16
pool = 20
candidates = 8
examples = 64
evaluations = 1
valid_users = 30
behaviour = { dim = 16, layers = 1, epochs = 2, valid_users = 50 }

[score]
top = 8
random = 4
positions_per_user = 1
max_rows = 200
shard_rows = 64

[distill]
dim = 32
layers = 1
epochs = 3
valid_users = 50

[evaluate]
n_bootstrap = 100
teacher_users = 20
teacher_candidates = 20
"""


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `recsys sample` writes it: 300 items, 400 users, about 8,000 events."""
    folder = tmp_path_factory.mktemp("data") / "shop"
    write_sample(folder, SampleConfig(n_items=300, n_users=400, n_events=8000), seed=1)
    return folder


@pytest.fixture(scope="session")
def tiny_toml(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config file of a run on it that takes seconds; its run folder is that of `finished`."""
    folder = tmp_path_factory.mktemp("tiny")
    path = folder / "tiny.toml"
    path.write_text(f'data = "{shop}"\nrun_dir = "{folder / "run"}"\n{TINY}')
    return path


@pytest.fixture(scope="session")
def tiny(tiny_toml: Path) -> PipelineConfig:
    """The same config, loaded."""
    return load_config(tiny_toml, env={})


@pytest.fixture(scope="session")
def said() -> list[str]:
    """The lines that `finished` said."""
    return []


@pytest.fixture(scope="session")
def finished(tiny: PipelineConfig, said: list[str]) -> Iterator[Run]:
    """The run of all stages. Tests read it and never write to it: those that write take a copy."""
    yield pipeline.run(tiny, progress=False, say=said.append)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=400m", "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
