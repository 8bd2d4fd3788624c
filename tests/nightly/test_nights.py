"""Nights on disk: one is live, readers see it whole, old ones go, and one job writes."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.nightly_parts.shop import DAY, FIRST, Shop, assert_of_one_run
from recsys import open_run
from recsys.config import LIVE
from recsys.errors import AlreadyRunningError, InputError, RecsysError
from recsys.nightly import night as nights
from recsys.nightly.night import Night, State

START = datetime(2026, 1, 1, 2, tzinfo=UTC)


def write(run_dir: Path, number: int, state: State = "promoted") -> str:
    """A night of a day, with an artifact's file."""
    as_of = START + number * DAY
    night = Night(name=nights.name_of(as_of), as_of=as_of, state=state, started=as_of)
    nights.save(run_dir, night)
    folder = nights.folder_of(run_dir, night.name)
    (folder / "versions" / "student-1").mkdir(parents=True)
    (folder / "versions" / "student-1" / "weights").write_text("weights")
    (folder / "student").symlink_to(Path("versions") / "student-1")
    return night.name


def has_artifacts(run_dir: Path, name: str) -> bool:
    return (nights.folder_of(run_dir, name) / "student" / "weights").exists()


def test_names_are_in_the_order_of_time() -> None:
    moments = [START + timedelta(seconds=n) for n in (0, 1, 59, 3600, 86_400, 40_000_000)]
    names = [nights.name_of(moment) for moment in moments]
    assert names == sorted(names) and names[0] == "2026-01-01T020000Z"
    assert nights.name_of(moments[0].astimezone()) == names[0]


def test_a_record_comes_back_as_it_was(tmp_path: Path, two_nights: Shop) -> None:
    night = two_nights.record(FIRST + DAY)
    nights.save(tmp_path, night)
    assert nights.load_nights(tmp_path) == [night]
    # One that cannot be read is passed over, and nothing else is lost by it.
    write(tmp_path, 900)
    (nights.folder_of(tmp_path, night.name) / nights.NIGHT_FILE).write_text('{"name": "x"')
    assert [each.name for each in nights.load_nights(tmp_path)] == [nights.name_of(START + 900 * DAY)]
    (nights.folder_of(tmp_path, night.name) / "versions").mkdir()
    assert nights.promote(tmp_path, nights.folder_of(tmp_path, night.name), instead_of=None)
    with pytest.raises(RecsysError, match=r"night that is live cannot be read.*\n.*recsys rollback"):
        nights.live_night(tmp_path)


def test_the_lock_falls_with_its_process_and_says_who_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from datetime import datetime; from pathlib import Path\n"
        "from recsys.nightly.night import lock\n"
        "with lock(Path(sys.argv[1]), datetime(2026, 1, 1)):\n    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    said = f"process {process.pid} on "
    with pytest.raises(AlreadyRunningError, match=said), nights.lock(tmp_path, START):
        pass
    process.kill()
    process.wait()
    with nights.lock(tmp_path, START) as killed:
        assert killed is not None and killed.startswith(said) and killed.endswith("since 2026-01-01T00:00:00")
    with nights.lock(tmp_path, START) as killed:
        assert killed is None


def test_promotion_is_refused_where_another_night_is_live_than_was_thought(tmp_path: Path) -> None:
    one, two, three = (write(tmp_path, number) for number in range(3))
    folders = [nights.folder_of(tmp_path, name) for name in (one, two, three)]
    assert nights.live_night(tmp_path) is None
    assert nights.promote(tmp_path, folders[0], instead_of=None)
    assert not nights.promote(tmp_path, folders[1], instead_of=None)
    assert nights.promote(tmp_path, folders[1], instead_of=one)
    assert not nights.promote(tmp_path, folders[2], instead_of=one)
    assert nights.live_name(tmp_path) == two
    assert sorted(path.name for path in tmp_path.iterdir()) == [".live.lock", "live", "nights"]


def test_rollback_goes_to_kept_models_only(first_night: Shop, tmp_path: Path) -> None:
    run_dir = first_night.copy(tmp_path / "shop").run_dir
    first = nights.name_of(FIRST)
    for state in ("kept_out", "held", "failed"):
        write(run_dir, len(state), state)
    gone = write(run_dir, 90)
    night = next(night for night in nights.load_nights(run_dir) if night.name == gone)
    night.kept = False
    nights.save(run_dir, night)
    with pytest.raises(InputError, match=f"no night before {first} is kept\n  expected: one of {first}\n"):
        nights.rollback(run_dir)
    with pytest.raises(InputError, match="no model of the night 2026-04-01T020000Z is kept"):
        nights.rollback(run_dir, gone)
    assert nights.rollback(run_dir, first).name == nights.live_name(run_dir) == first
    # What is not whole is not made live, whoever asks for it.
    broken = write(run_dir, 120)
    with pytest.raises(InputError, match=r"config\.toml"):
        nights.rollback(run_dir, broken)
    assert nights.live_name(run_dir) == first


def test_a_reader_sees_one_run_or_the_other_during_200_promotions(two_nights: Shop, tmp_path: Path) -> None:
    run_dir = two_nights.copy(tmp_path / "shop").run_dir
    names = [night.name for night in nights.load_nights(run_dir)]
    code = (
        "import sys; from pathlib import Path; from recsys.nightly.night import folder_of, promote, rollback\n"
        "run_dir, names = Path(sys.argv[1]), sys.argv[2:]\n"
        "for n in range(100):\n"
        "    rollback(run_dir)\n"
        "    assert promote(run_dir, folder_of(run_dir, names[1]), instead_of=names[0])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(run_dir), *names])
    seen, deadline = dict.fromkeys(names, 0), time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        run = open_run(run_dir)
        assert_of_one_run(run)
        seen[run.path.name] += 1
    assert process.wait() == 0
    assert min(seen.values()) > 0, seen


states = st.lists(st.sampled_from(["promoted", "kept_out", "held", "failed", "abandoned", "running"]), max_size=12)


@settings(max_examples=40, deadline=None)
@given(states, st.data(), st.integers(2, 4), st.none() | st.integers(1, 12), st.integers(0, 2))
def test_retention_keeps_what_is_live_and_what_can_be_returned_to(
    states: list[State], data: st.DataObject, keep: int, keep_days: int | None, keep_others: int
) -> None:
    with TemporaryDirectory() as folder:
        run_dir = Path(folder)
        names = [write(run_dir, number, state) for number, state in enumerate(states)]
        promoted = [name for name, state in zip(names, states, strict=True) if state == "promoted"]
        live = data.draw(st.sampled_from(promoted)) if promoted else None
        if live is not None:
            assert nights.promote(run_dir, nights.folder_of(run_dir, live), instead_of=None)
        now = START + len(names) * DAY

        def remove() -> list[str]:
            return nights.remove_old(run_dir, keep=keep, keep_days=keep_days, keep_others=keep_others, now=now)

        removed = remove()
        kept = [name for name in names if has_artifacts(run_dir, name)]
        records = nights.load_nights(run_dir)
        assert [night.name for night in records] == names  # every record stays
        assert [night.name for night in records if night.kept] == kept == [n for n in names if n not in removed]
        assert not list(run_dir.glob("nights/*/versions")) or kept
        before_live = [name for name in promoted if live is not None and name < live]
        must = {live, *before_live[-1:]} - {None}
        assert must <= set(kept)
        assert {name for name, state in zip(names, states, strict=True) if state == "running"} <= set(kept)
        others = {name for name, state in zip(names, states, strict=True) if state not in ("promoted", "running")}
        assert len(others & set(kept)) <= keep_others
        old = {name for number, name in enumerate(names) if keep_days is not None and len(names) - number > keep_days}
        assert set(promoted) & set(kept) - must <= set(promoted[-keep:]) - old
        assert remove() == []


def test_a_removal_that_was_killed_is_finished_by_the_next(tmp_path: Path) -> None:
    names = [write(tmp_path, number) for number in range(5)]
    assert nights.promote(tmp_path, nights.folder_of(tmp_path, names[-1]), instead_of=None)
    night = nights.load_nights(tmp_path)[0]
    night.kept = False
    nights.save(tmp_path, night)  # said, and then the kill came
    nights.remove_old(tmp_path, keep=4, keep_days=None, keep_others=0, now=START)
    assert [has_artifacts(tmp_path, name) for name in names] == [False, True, True, True, True]


def test_an_artifact_that_is_taken_over_shares_its_files_and_outlives_the_other(
    first_night: Shop, tmp_path: Path
) -> None:
    run_dir = first_night.copy(tmp_path / "shop").run_dir
    source = nights.folder_of(run_dir, nights.name_of(FIRST)) / "student"
    target = run_dir / "nights" / "other" / "student"
    for _ in range(2):  # the second time over what is there
        nights.take_over(source, target)
        there, here = (sorted(folder.resolve().rglob("*")) for folder in (source, target))
        assert [path.name for path in there] == [path.name for path in here]
        files = [(one, two) for one, two in zip(there, here, strict=True) if one.is_file()]
        assert files and all(one.samefile(two) for one, two in files)
    (run_dir / LIVE).unlink()
    night = nights.load_nights(run_dir)[0]
    night.state = "failed"
    nights.save(run_dir, night)
    assert nights.remove_old(run_dir, keep=2, keep_days=None, keep_others=0, now=FIRST) == [night.name]
    assert (target / "weights.safetensors").stat().st_size > 0
