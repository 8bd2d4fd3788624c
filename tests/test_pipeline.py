"""The stages together: in order, not twice, and the same after any kill."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recsys import pipeline
from recsys.api import Run, open_run
from recsys.artifacts import MANIFEST, hash_file
from recsys.config import STAGES, PipelineConfig, load_config
from recsys.errors import InputError
from recsys.evaluation.report import PAGE_FILE


def copy_of(finished: Run, folder: Path) -> Path:
    """A run folder that a test may write to."""
    return Path(shutil.copytree(finished.path, folder, symlinks=True))


def content(run_dir: Path) -> dict[str, object]:
    """Every file of every artifact by content, without what tells the time: two runs share everything but that."""
    found: dict[str, object] = {}
    for name in STAGES.values():
        folder = (run_dir / name).resolve()
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            place = f"{name}/{file.relative_to(folder)}"
            if file.name == MANIFEST:
                found[place] = timeless(json.loads(file.read_text()))
            elif file.name == PAGE_FILE:  # it tells how long each model took
                cost = re.compile(r'<section id="cost">.*?</section>', re.DOTALL)
                text, n_sections = cost.subn("", file.read_text())
                assert n_sections == 1
                found[place] = text
            elif "tensorboard" not in file.parts:  # its files are named after the time
                found[place] = hash_file(file)
    return found


def timeless(manifest: object) -> object:
    if isinstance(manifest, dict):
        times = ("seconds", "created_at", "timings", "files")
        return {key: timeless(value) for key, value in manifest.items() if key not in times}
    return manifest


def versions(run_dir: Path) -> dict[str, Path]:
    return {stage: (run_dir / name).resolve() for stage, name in STAGES.items()}


def test_a_run_writes_every_artifact_and_says_a_line_for_each(finished: Run, said: list[str]) -> None:
    assert [line.split()[0] for line in said] == list(STAGES)
    assert all(" s " in line and "up to date" not in line for line in said)
    opened = open_run(finished.path)
    assert opened.dataset.n_items == 300
    assert opened.student.item_vectors.shape == (300, 32)
    assert opened.soft_labels.table.num_rows == 200
    users = opened.recommendations.table["user_id"]
    assert set(users.to_pylist()) == set(opened.dataset.users["user_id"].to_pylist())
    assert {row.model for row in opened.report.rows} >= {"student", "teacher", "most_popular"}
    assert opened.index.counts["items"] == 300
    assert opened.teacher.fingerprint in json.dumps(opened.soft_labels.manifest["inputs"])


def test_the_resolved_config_stands_beside_the_run(finished: Run, tiny: PipelineConfig) -> None:
    assert finished.config == tiny
    assert finished.config.distill.epochs == 3


def test_a_second_run_repeats_nothing(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    run_dir = copy_of(finished, tmp_path / "run")
    before = versions(run_dir)
    lines: list[str] = []
    started = time.perf_counter()
    pipeline.run(tiny.model_copy(update={"run_dir": run_dir}), progress=False, say=lines.append)
    assert time.perf_counter() - started < 5
    assert ["up to date" in line for line in lines] == [True] * len(STAGES)
    assert versions(run_dir) == before


def test_from_does_a_stage_and_all_after_it_again(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    run_dir = copy_of(finished, tmp_path / "run")
    before, old = versions(run_dir), content(run_dir)
    lines: list[str] = []
    pipeline.run(tiny.model_copy(update={"run_dir": run_dir}), from_stage="index", progress=False, say=lines.append)
    assert ["up to date" in line for line in lines] == [True] * 4 + [False] * 4
    after = versions(run_dir)
    assert [stage for stage in STAGES if before[stage] != after[stage]] == ["index", "rank", "recommend", "evaluate"]
    assert content(run_dir) == old


def test_a_changed_config_repeats_only_what_depends_on_it(finished: Run, tiny_toml: Path, tmp_path: Path) -> None:
    run_dir = copy_of(finished, tmp_path / "run")
    before = versions(run_dir)
    pipeline.run(load_config(tiny_toml, [f"run_dir={run_dir}", "recommend.k=3"]), progress=False, say=lambda _: None)
    after = versions(run_dir)
    assert [stage for stage in STAGES if before[stage] != after[stage]] == ["recommend"]
    assert max(Run(run_dir).recommendations.table["rank"].to_pylist()) == 3


def test_a_moved_shop_is_the_same_shop(finished: Run, tiny: PipelineConfig, shop: Path, tmp_path: Path) -> None:
    run_dir = copy_of(finished, tmp_path / "run")
    elsewhere = shutil.copytree(shop, tmp_path / "elsewhere")
    lines: list[str] = []
    pipeline.run(tiny.model_copy(update={"run_dir": run_dir, "data": elsewhere}), progress=False, say=lines.append)
    assert ["up to date" in line for line in lines] == [True] * len(STAGES)


def test_without_a_teacher_the_student_learns_from_the_log(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    run_dir = copy_of(finished, tmp_path / "run")
    for name in ("teacher", "soft_labels"):
        (run_dir / name).unlink()
    config = tiny.model_copy(update={"run_dir": run_dir, "use_teacher": False})
    lines: list[str] = []
    run = pipeline.run(config, progress=False, say=lines.append)
    assert [line.split()[0] for line in lines] == ["ingest", "distill", "index", "rank", "recommend", "evaluate"]
    assert run.student.fingerprint != finished.student.fingerprint
    assert "teacher" not in {row.model for row in run.report.rows}
    with pytest.raises(InputError, match=r"no stage 'score' in this run\n.*\n.*use_teacher"):
        pipeline.run(config, from_stage="score")


def test_until_stops_after_a_stage(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    config = tiny.model_copy(update={"run_dir": tmp_path / "run"})
    pipeline.run(config, until="ingest", progress=False, say=lambda _: None)
    beside = {"config.toml", "data_report.html", "data_report.json"}
    assert {path.name for path in config.run_dir.iterdir()} == {"dataset", "versions", "work"} | beside
    with pytest.raises(InputError, match="comes after --until ingest"):
        pipeline.run(config, from_stage="teach", until="ingest")
    with pytest.raises(InputError, match=r"no stage 'train' in this run\n  expected: one of ingest, teach"):
        pipeline.run(config, until="train")


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "ingest"])
def test_a_stage_without_its_input_says_what_to_run(tiny: PipelineConfig, tmp_path: Path, stage: str) -> None:
    config = tiny.model_copy(update={"run_dir": tmp_path / "run"})
    with pytest.raises(InputError, match=r"(?s)no \w+ at .*run `recsys \w+`"):
        pipeline.run_stage(stage, config, progress=False)
    assert not config.run_dir.exists()


@pytest.mark.parametrize("stage", STAGES)
def test_kill_9_during_a_stage_and_the_same_command_give_what_an_undisturbed_run_gives(
    finished: Run, tiny_toml: Path, tmp_path: Path, stage: str
) -> None:
    run_dir = copy_of(finished, tmp_path / "run")
    seconds = float(json.loads((run_dir / STAGES[stage] / MANIFEST).read_text())["seconds"])
    for name in list(STAGES.values())[list(STAGES).index(stage) :]:
        shutil.rmtree((run_dir / name).resolve())
        (run_dir / name).unlink()
    command = [sys.executable, "-m", "recsys", "run", "-c", str(tiny_toml), "--set", f"run_dir={run_dir}"]
    delay = random.uniform(0, seconds)
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not list((run_dir / "work").glob(f"{STAGES[stage]}-*")) and process.poll() is None:
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        if process.wait() == -signal.SIGKILL and not (run_dir / STAGES[stage]).exists():
            break
        # It was done before the blow fell: once more, and sooner.
        delay /= 4
        shutil.rmtree((run_dir / STAGES[stage]).resolve())
        (run_dir / STAGES[stage]).unlink()
    lines: list[str] = []
    pipeline.run(load_config(tiny_toml, [f"run_dir={run_dir}"]), progress=False, say=lines.append)
    assert content(run_dir) == content(finished.path)
    assert not list((run_dir / "work").glob("*-*"))
