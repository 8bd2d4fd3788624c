"""Artifacts: whole or not at all, whatever interrupts a build."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from recsys.artifacts import MANIFEST, Artifact, Recipe, code_version, hash_file
from recsys.errors import InputError, RecsysError


class ThingConfig(BaseModel):
    size: int = 3
    name: str = "a"


class Thing(Artifact):
    kind: ClassVar[str] = "thing"
    stage: ClassVar[str] = "make-thing"


class Other(Artifact):
    kind: ClassVar[str] = "other"
    stage: ClassVar[str] = "make-other"


RECIPE = Recipe(kind="thing", config=ThingConfig(), inputs={"log": "1f"}, seed=0, modules=("recsys.errors",))


def build(recipe: Recipe, out: Path, content: str) -> Thing:
    with recipe.build(out) as draft:
        (draft.path / "part").mkdir()
        (draft.path / "part" / "data.txt").write_text(content)
        draft.counts["characters"] = len(content)
    return Thing.open(out)


def content(out: Path) -> str:
    return (Thing.open(out).path / "part" / "data.txt").read_text()


def test_a_built_artifact_opens_with_its_files_and_counts(tmp_path: Path) -> None:
    thing = build(RECIPE, tmp_path / "thing", "hello")
    assert (thing.path / "part" / "data.txt").read_text() == "hello"
    assert thing.counts == {"characters": 5}
    assert thing.fingerprint == RECIPE.fingerprint
    assert thing.manifest["files"] == {"part/data.txt": 5}
    assert RECIPE.is_current(tmp_path / "thing")


def test_an_error_leaves_the_old_artifact_and_keeps_the_scratch_for_resuming(tmp_path: Path) -> None:
    out = tmp_path / "thing"
    build(RECIPE, out, "old")
    newer = replace(RECIPE, seed=1)
    with pytest.raises(ZeroDivisionError), newer.build(out) as draft:
        (draft.path / "data.txt").write_text("half")
        draft.scratch.mkdir()
        (draft.scratch / "checkpoint").write_text("epoch 3")
        raise ZeroDivisionError
    assert content(out) == "old"
    assert RECIPE.is_current(out)
    assert not newer.is_current(out)
    with newer.build(out) as draft:
        assert [path.name for path in draft.path.iterdir()] == ["scratch"]
        assert (draft.scratch / "checkpoint").read_text() == "epoch 3"
        (draft.path / "part").mkdir()
        (draft.path / "part" / "data.txt").write_text("new")
    assert content(out) == "new"
    assert not (out.resolve() / "scratch").exists()


def test_the_version_before_stays_for_its_readers_and_older_ones_go(tmp_path: Path) -> None:
    out = tmp_path / "thing"
    (tmp_path / "versions" / "thing-orphan").mkdir(parents=True)  # of a kill between the rename and the swap
    other = build(RECIPE, tmp_path / "other", "another artifact")
    made = [build(replace(RECIPE, seed=seed), out, f"number {seed}") for seed in range(3)]
    assert set((tmp_path / "versions").iterdir()) == {other.path, made[1].path, made[2].path}
    assert content(made[1].path) == "number 1"
    assert content(out) == "number 2"


def test_a_forced_rebuild_of_the_same_recipe_is_published_too(tmp_path: Path) -> None:
    out = tmp_path / "thing"
    first = build(RECIPE, out, "first")
    again = build(RECIPE, out, "again")
    assert content(out) == "again"
    assert first.path != again.path
    assert content(first.path) == "first"


KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
from pydantic import BaseModel
import recsys.artifacts as artifacts

class Config(BaseModel):
    pass

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

out, moment = Path(sys.argv[1]), sys.argv[2]
recipe = artifacts.Recipe(kind="thing", config=Config(), inputs={}, seed=0, modules=())
with recipe.build(out) as draft:
    (draft.path / "part").mkdir()
    (draft.path / "part" / "data.txt").write_text("half of the n")
    if moment == "inside":
        die()
    setattr(artifacts, moment, die)
"""


@pytest.mark.parametrize("moment", ["inside", "write_json", "_sync_tree", "_publish"])
def test_kill_9_at_any_moment_of_a_build_leaves_the_old_artifact(tmp_path: Path, moment: str) -> None:
    out = tmp_path / "thing"
    build(RECIPE, out, "old")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BUILD, str(out), moment],
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert content(out) == "old"
    # The kernel let go of the lock, so the next build is not held up; it starts from a clean folder.
    build(replace(RECIPE, seed=1), out, "new")
    assert content(out) == "new"
    assert not list((tmp_path / "work").glob("thing-*"))


def test_two_builds_of_one_artifact_do_not_run_at_once(tmp_path: Path) -> None:
    out = tmp_path / "thing"
    with RECIPE.build(out) as draft:
        (draft.path / "data.txt").write_text("mine")
        with pytest.raises(RecsysError, match="another process is writing"), replace(RECIPE, seed=1).build(out):
            pytest.fail("the lock was given twice")
    assert Thing.open(out).fingerprint == RECIPE.fingerprint


def test_a_folder_that_recsys_did_not_write_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "thing"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="did not write"):
        build(RECIPE, out, "new")
    assert (out / "thesis.txt").read_text() == "years of work"


VARIANTS = {
    "kind": replace(RECIPE, kind="other"),
    "config": replace(RECIPE, config=ThingConfig(size=4)),
    "input": replace(RECIPE, inputs={"log": "2f"}),
    "input's name": replace(RECIPE, inputs={"catalogue": "1f"}),
    "seed": replace(RECIPE, seed=1),
    "code": replace(RECIPE, modules=("recsys.errors", "recsys.runtime")),
}


@pytest.mark.parametrize("changed", VARIANTS)
def test_the_fingerprint_changes_with_everything_that_decides_the_content(changed: str) -> None:
    assert VARIANTS[changed].fingerprint != RECIPE.fingerprint


@given(st.dictionaries(st.text(), st.text(), min_size=2, max_size=5))
def test_the_fingerprint_does_not_depend_on_the_order_of_inputs(inputs: dict[str, str]) -> None:
    backwards = dict(reversed(inputs.items()))
    assert replace(RECIPE, inputs=backwards).fingerprint == replace(RECIPE, inputs=inputs).fingerprint


def test_the_code_version_follows_the_source_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "stage_under_test.py"
    module.write_text("raise RuntimeError('imported')\n")
    before = code_version("stage_under_test")
    code_version.cache_clear()
    assert code_version("stage_under_test") == before
    module.write_text("raise RuntimeError('imported, and changed')\n")
    code_version.cache_clear()
    assert code_version("stage_under_test") != before


def test_open_says_what_is_wrong(tmp_path: Path) -> None:
    out = tmp_path / "thing"
    with pytest.raises(InputError, match=r"no thing at .*\n.*recsys make-thing"):
        Thing.open(out)
    thing = build(RECIPE, out, "hello")
    with pytest.raises(InputError, match="holds a 'thing' artifact"):
        Other.open(out)
    manifest = json.loads((thing.path / MANIFEST).read_text())
    (thing.path / MANIFEST).write_text(json.dumps(manifest | {"format": 1, "recsys": "0.0.9"}))
    with pytest.raises(InputError, match=r"was written in format 1, by recsys 0\.0\.9\n  expected: format \d+, which"):
        Thing.open(out)
    (thing.path / MANIFEST).write_text(json.dumps(manifest))
    with (thing.path / "part" / "data.txt").open("r+") as file:
        file.truncate(3)
    with pytest.raises(InputError, match=r"part/data\.txt is missing or truncated\n  expected: 5 bytes"):
        Thing.open(out)
    (thing.path / "part" / "data.txt").unlink()
    with pytest.raises(InputError, match="missing or truncated"):
        Thing.open(out)
    (thing.path / MANIFEST).write_text('{"kind": "thi')
    with pytest.raises(InputError, match="is not JSON"):
        Thing.open(out)
    assert not RECIPE.is_current(out)


def test_the_link_is_there_at_every_moment_of_a_swap(tmp_path: Path) -> None:
    out, stop = tmp_path / "thing", tmp_path / "stop"
    build(RECIPE, out, "first")
    watch = """
import os, sys
seen = {os.readlink(sys.argv[1])}
print("ready", flush=True)
while not os.path.exists(sys.argv[2]):
    seen.add(os.readlink(sys.argv[1]))
print(len(seen))
"""
    watcher = subprocess.Popen([sys.executable, "-c", watch, out, stop], stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    watcher.stdout.readline()
    for seed in range(30):
        build(replace(RECIPE, seed=seed), out, "next")
    stop.touch()
    assert int(watcher.communicate(timeout=10)[0]) > 1
    assert watcher.returncode == 0


def test_hash_file_sees_one_changed_byte_and_nothing_but_the_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    data = bytearray(os.urandom(5 << 20))  # more than one block
    one.write_bytes(data)
    two.write_bytes(data)
    assert hash_file(one) == hash_file(two)
    data[-1] ^= 1
    two.write_bytes(data)
    assert hash_file(one) != hash_file(two)


def test_the_manifest_is_json_that_a_person_can_read(tmp_path: Path) -> None:
    thing = build(RECIPE, tmp_path / "thing", "hello")
    manifest = json.loads((thing.path / MANIFEST).read_text())
    assert manifest["config"] == {"size": 3, "name": "a"}
    assert manifest["inputs"] == {"log": "1f"}
    assert manifest["seconds"] >= 0
