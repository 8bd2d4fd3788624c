"""Two processes train what one does: the same losses, the same weights, one artifact."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from recsys import distributed, pipeline
from recsys.api import Run
from recsys.config import load_config
from recsys.ranking.config import RecommendConfig
from recsys.ranking.recommend import recommend

# What dropout draws depends on the process; sums in bf16 depend on how they are shared out.
ALIKE = [
    'precision="fp32"',
    "teach.dropout=0.0",
    "teach.behaviour.dropout=0.0",
    "teach.behaviour.id_dropout=0.0",
    "teach.evaluations=2",
    "distill.dropout=0.0",
    "distill.id_dropout=0.0",
]


def torchrun(processes: int, *command: str) -> subprocess.CompletedProcess[str]:
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *start, *command], env=environment, capture_output=True, text=True, check=False, timeout=400
    )


@pytest.fixture(scope="module")
def runs(tiny_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The stages up to the index, by one process and by two, from nothing but the log."""
    folder = tmp_path_factory.mktemp("together")
    found = []
    for processes in (1, 2):
        run_dir = folder / str(processes)
        overrides = [f'run_dir="{run_dir}"', *ALIKE]
        if processes == 1:
            pipeline.run(load_config(tiny_toml, overrides, env={}), until="index", progress=False, say=lambda _: None)
        else:
            settings = [word for override in overrides for word in ("--set", override)]
            done = torchrun(2, "-m", "recsys", "run", "-c", str(tiny_toml), "--until", "index", *settings)
            assert done.returncode == 0, done.stderr
            stages = {"ingest", "teach", "score", "distill", "index"}
            said = [line.split()[0] for line in done.stderr.splitlines() if line and line.split()[0] in stages]
            assert said == ["ingest", "teach", "score", "distill", "index"]  # once, not once for each process
        found.append(Run(run_dir))
    return found[0], found[1]


def test_two_processes_have_the_losses_of_one(runs: tuple[Run, Run]) -> None:
    for of in (lambda run: run.teacher, lambda run: run.student):
        one, two = (of(run).manifest["info"]["history"] for run in runs)
        assert len(one) == len(two) >= 2
        for name in {"loss", "hard", "soft"} & set(one[0]):
            np.testing.assert_allclose([row[name] for row in two], [row[name] for row in one], rtol=2e-3)


@pytest.mark.parametrize("artifact", ["teacher", "student"])
def test_two_processes_have_the_weights_of_one(runs: tuple[Run, Run], artifact: str) -> None:
    one, two = (load_file(run.path / artifact / "weights.safetensors") for run in runs)
    assert one.keys() == two.keys()
    for name in one:
        # Adam divides by what may be rounding alone, so that single weights may differ by a step.
        assert np.abs(one[name] - two[name]).mean() < 2e-4, name


def test_two_processes_score_the_same_rows(runs: tuple[Run, Run]) -> None:
    one, two = (run.soft_labels.padded() for run in runs)
    for mine, theirs in zip(one[:3], two[:3], strict=True):
        assert (mine == theirs).mean() > 0.99  # a candidate at the end of a list may differ by rounding
    same = (one[2] == two[2]) & (one[2] >= 0)
    np.testing.assert_allclose(two[3][same], one[3][same], atol=0.02)


def test_one_process_is_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.world_size() == 1
    assert distributed.from_first(0.25) == 0.25
    assert distributed.total(1.0, 2.0) == [1.0, 2.0]
    assert distributed.part_of(np.arange(3)).tolist() == [0, 1, 2]


WORK = """
import numpy as np, torch
from recsys import distributed
rank = distributed.rank()
assert distributed.world_size() == 3
assert distributed.from_first(10.0 + rank) == 10.0
assert distributed.total(1.0, rank) == [3.0, 3.0]
parts = distributed.part_of(np.arange(2))  # fewer rows than processes
assert parts.tolist() == ([rank] if rank < 2 else [])
layer = torch.nn.Linear(2, 1)
distributed.broadcast_parameters(layer)
if rank < 2:  # one process has no gradient at all
    layer(torch.full((1, 2), float(rank + 1))).sum().backward()
distributed.sum_gradients(layer.parameters())
assert layer.weight.grad.tolist() == [[3.0, 3.0]] and layer.bias.grad.tolist() == [2.0]
weights = [distributed.total(float(w) if rank == r else 0.0)[0] for r in range(3) for w in layer.weight.flatten()]
assert weights[:2] == weights[2:4] == weights[4:]
with distributed.first_alone():
    import pathlib, sys
    made = pathlib.Path(sys.argv[1])
    assert made.exists() == (rank > 0)
    made.write_text("made")
"""


def test_what_processes_say_to_each_other(tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(WORK)
    done = torchrun(3, str(script), str(tmp_path / "made"))
    assert done.returncode == 0, done.stderr


def test_two_processes_make_the_lists_of_one(runs: tuple[Run, Run], tiny_toml: Path, tmp_path: Path) -> None:
    one = runs[0]
    settings = [f'run_dir="{one.path}"', *ALIKE, "recommend.shard_users=50", "recommend.k=7", "use_ranker=false"]
    alone = recommend(
        one.dataset,
        one.student,
        one.index,
        RecommendConfig(shard_users=50, k=7),
        tmp_path / "recommendations",
        runtime=load_config(tiny_toml, settings, env={}).runtime(),
    )
    words = [word for setting in settings for word in ("--set", setting)]
    done = torchrun(2, "-m", "recsys", "recommend", "-c", str(tiny_toml), *words)
    assert done.returncode == 0, done.stderr
    together = Run(one.path).recommendations
    assert together.fingerprint == alone.fingerprint
    same = [name for name in alone.table.column_names if name not in ("score", "reason")]
    assert together.table.select(same).equals(alone.table.select(same))
    assert alone.counts["users"] > 100
