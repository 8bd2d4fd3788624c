"""The job: what a night does, what it takes over, and that whatever happens what is live stays whole."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from benchmarks.nightly_parts.shop import DAY, FIRST, Shop, check_served
from recsys.api import Run, open_run
from recsys.artifacts import MANIFEST
from recsys.cli import app
from recsys.errors import AlreadyRunningError, InputError, RecsysError
from recsys.nightly import night as nights
from recsys.nightly.budget import BudgetError
from recsys.nightly.faults import is_transient
from recsys.nightly.run import nightly

SECOND, THIRD = FIRST + DAY, FIRST + 2 * DAY


def run_of(shop: Shop, as_of: datetime) -> Run:
    return Run(nights.folder_of(shop.run_dir, nights.name_of(as_of)))


def test_the_first_night_has_nobody_to_compare_with_and_must_beat_the_baselines(first_night: Shop) -> None:
    night = first_night.record(FIRST)
    assert (night.state, night.champion, night.exit_code) == ("promoted", None, 0)
    assert {reason.check for reason in night.reasons} == {
        "users", "baseline most_popular", "empty lists", "full lists", "scores",
    }  # fmt: skip
    assert (first_night.run_dir / "live").readlink() == Path("nights") / night.name
    assert check_served(first_night.run_dir) == night.name
    assert [stage.stage for stage in night.stages] == [
        "ingest", "check", "distill", "index", "rank", "recommend", "evaluate", "gate",
    ]  # fmt: skip
    assert all(stage.seconds >= 0 and stage.peak_mb > 50 for stage in night.stages)
    users = open_run(first_night.run_dir / "live").dataset.users["user_id"]
    assert len(open_run(first_night.run_dir).recommend(users=users[0].as_py(), k=3)) == 3


def test_the_second_night_goes_on_from_the_first(two_nights: Shop) -> None:
    night, before = two_nights.record(SECOND), run_of(two_nights, FIRST)
    run = run_of(two_nights, SECOND)
    assert night.champion == nights.name_of(FIRST) and check_served(two_nights.run_dir) == night.name
    assert run.student.manifest["inputs"]["warm_start"] == before.student.fingerprint
    assert run.dataset.counts["kept"] > before.dataset.counts["kept"]
    # The champion answers the same users, about a window that it has not seen.
    assert set(night.metrics) == {"student", "ranker", "champion", "most_popular"}
    assert night.metrics["champion"] == pytest.approx(run.report.value("champion", "ndcg", 10))
    assert before.dataset.manifest["info"]["train_until"] < run.dataset.manifest["info"]["valid_until"]
    assert {"primary metric", "segment new", "coverage", "size"} <= {reason.check for reason in night.reasons}
    # Lists are for the moment of the night, and of events up to it.
    assert set(run.recommendations.table["generated_at"].to_pylist()) == {SECOND}
    assert run.dataset.sequences.timestamp.max() < SECOND.timestamp() * 1e6
    # Each file of the log was read once.
    staged = two_nights.run_dir / "nights" / "staged" / "dataset"
    assert len(list(staged.glob("*/look.json"))) == 2


def test_a_window_that_is_unlike_those_before_judges_nobody(shop: Shop) -> None:
    """The champion's figures of recent nights are those of the gate; of a night that was held there are none."""
    for number, figure in enumerate((0.9, 0.8, 0.9), start=3):
        as_of = FIRST - number * DAY
        night = shop.record(SECOND).model_copy(update={"name": nights.name_of(as_of), "as_of": as_of})
        night.metrics = {"champion": figure}
        nights.save(shop.run_dir, night)
    night = shop.night(THIRD)
    assert night.state == "kept_out"
    assert [reason.check for reason in night.reasons if reason.passed is False] == ["fresh window"], night.against
    assert "0.8500 is usual" in night.against[0]


def test_warm_starts_have_a_schedule_of_their_own(shop: Shop) -> None:
    assert shop.night(THIRD, "nightly.warm_epochs=1", "nightly.warm_lr=1e-4").state == "promoted"
    config = run_of(shop, THIRD).student.config
    assert (config.epochs, config.lr) == (1, 1e-4)
    assert shop.config().distill.epochs > 1


def test_a_night_that_is_done_is_not_done_again(two_nights: Shop) -> None:
    before = two_nights.record(SECOND)
    assert two_nights.night(SECOND) == before == two_nights.record(SECOND)


def test_a_poisoned_night_is_kept_out(shop: Shop) -> None:
    """A broken join has given all that is trained on any item of the catalogue: as many rows of as many users."""
    cut = (THIRD - 14 * DAY).timestamp() * 1e6
    rng = np.random.default_rng(0)
    for file in (shop.file(FIRST), shop.file(SECOND)):
        events = pq.read_table(file)
        items = np.array(events["item_id"].to_pylist(), dtype=object)
        rows = np.flatnonzero(np.asarray(events["timestamp"].cast(pa.int64()).fill_null(0)) < cut)
        items[rows] = rng.choice(pq.read_table(shop.folder / "shop" / "items.parquet")["item_id"], len(rows))
        place = events.column_names.index("item_id")
        pq.write_table(events.set_column(place, "item_id", pa.array(items, pa.string())), file)
    night = shop.night(THIRD, "distill.lr=0.02")  # far enough from where it starts
    assert (night.state, night.exit_code) == ("kept_out", 3), night.metrics
    assert any("primary metric" in why for why in night.against)
    assert shop.live == nights.name_of(SECOND) == check_served(shop.run_dir)


def test_a_clock_that_runs_ahead_holds_the_night(shop: Shop) -> None:
    night = shop.night(THIRD + 300 * DAY)
    assert (night.state, night.exit_code) == ("held", 4)
    assert any("is the clock right" in why for why in night.against)
    assert [stage.stage for stage in night.stages] == ["ingest", "check"]
    assert check_served(shop.run_dir) == nights.name_of(SECOND)
    assert shop.night(THIRD).state == "promoted"  # when the clock is right again


def test_a_clock_that_has_gone_back_is_refused(shop: Shop) -> None:
    with pytest.raises(RecsysError, match=r"for 2026-04-10T12.*\n.*\n.*set the clock right"):
        shop.night(FIRST + timedelta(hours=12))
    assert len(nights.load_nights(shop.run_dir)) == 2
    assert check_served(shop.run_dir) == nights.name_of(SECOND)


def test_a_week_off_is_said_and_made_up_for(shop: Shop) -> None:
    later = SECOND + 8 * DAY
    shop.write_log(later, since=THIRD)
    night = shop.night(later)
    assert night.state == "promoted", night.against
    assert night.notes == ["the night that is live is 8.0 days old"]
    assert check_served(shop.run_dir) == nights.name_of(later)


def test_kill_9_at_random_moments_leaves_what_is_live_and_the_next_start_ends_the_night(shop: Shop) -> None:
    command = [sys.executable, "-m", "recsys", "nightly", "-c", str(shop.folder / "shop.toml")]
    command += ["--as-of", THIRD.isoformat()]
    kept = {night.name: night for night in nights.load_nights(shop.run_dir)}
    killed = 0
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(1.0, 5.0))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        served = check_served(shop.run_dir)
        assert served in (nights.name_of(SECOND), nights.name_of(THIRD))
        for name in kept:
            nights.check_whole(nights.folder_of(shop.run_dir, name))
    assert killed
    night = shop.night(THIRD)
    assert night.state == "promoted", night.against
    assert check_served(shop.run_dir) == night.name
    after = {each.name: each for each in nights.load_nights(shop.run_dir)}
    assert {name: after[name] for name in kept} == kept
    assert not list((nights.folder_of(shop.run_dir, night.name) / "work").glob("*-*"))


def test_a_night_that_was_killed_right_after_its_promotion_counts_as_promoted(shop: Shop) -> None:
    night = shop.record(SECOND)
    night.state, night.ended = "running", None
    nights.save(shop.run_dir, night)
    assert shop.night(SECOND).state == "promoted"
    assert shop.record(SECOND).notes == ["killed just after its lists went live"]


def test_by_default_a_night_is_for_now_and_a_young_one_that_was_not_finished_is_taken_up(shop: Shop) -> None:
    def fall(line: str) -> None:
        if line.startswith("distill"):
            raise KeyboardInterrupt

    def night(moment: datetime, say: Callable[[str], None]) -> nights.Night:
        return nightly(shop.config(), progress=False, say=say, now=lambda: moment)

    with pytest.raises(KeyboardInterrupt):
        night(THIRD, fall)
    assert shop.record(THIRD).state == "failed"
    lines: list[str] = []
    resumed = night(THIRD + timedelta(hours=2), lines.append)
    assert (resumed.name, resumed.starts, resumed.state) == (nights.name_of(THIRD), 2, "promoted")
    assert lines[0].endswith("start 2") and any(re.match("distill +up to date", line) for line in lines)
    killed = shop.record(THIRD).model_copy(update={"name": nights.name_of(THIRD + DAY), "as_of": THIRD + DAY})
    killed.state, killed.started = "running", THIRD + DAY
    nights.save(shop.run_dir, killed)
    with pytest.raises(KeyboardInterrupt):
        night(THIRD + 2 * DAY, lambda line: fall("distill"))
    assert shop.record(THIRD + DAY).state == "abandoned"
    assert nights.load_nights(shop.run_dir)[-1].name == nights.name_of(THIRD + 2 * DAY)


def test_only_one_job_of_a_shop_runs(shop: Shop) -> None:
    with nights.lock(shop.run_dir, THIRD), pytest.raises(AlreadyRunningError, match=rf"process {os.getpid()} on") as no:
        shop.night(THIRD)
    assert no.value.exit_code == 5
    assert len(nights.load_nights(shop.run_dir)) == 2


def test_in_parts_a_night_stays_open_and_no_part_is_left_out(shop: Shop) -> None:
    def fall(line: str) -> None:
        if line.startswith("distill"):
            raise KeyboardInterrupt

    with pytest.raises(InputError, match=r"not come as far as 'check'\n.*'ingest' would be next"):
        shop.night(THIRD, since="check")
    assert shop.night(THIRD, until="recommend").state == "running"
    with pytest.raises(InputError, match=r"not come as far as 'promote'\n.*'drift' would be next"):
        shop.night(THIRD, since="promote")
    assert shop.night(THIRD, since="drift", until="gate").state == "running"
    assert shop.live == nights.name_of(SECOND) and shop.record(THIRD).reasons
    # A student that is made again has not been judged, nor one that was about to be.
    with pytest.raises(KeyboardInterrupt):
        shop.night(THIRD, since="distill", say=fall)
    with pytest.raises(InputError, match="'distill' would be next"):
        shop.night(THIRD, since="promote")
    night = shop.night(THIRD, since="distill", until="distill")
    assert (night.state, night.starts, night.reasons) == ("running", 2, [])
    with pytest.raises(InputError, match="'index' would be next"):
        shop.night(THIRD, since="promote")
    assert shop.live == nights.name_of(SECOND) == check_served(shop.run_dir)
    assert shop.night(THIRD).state == "promoted"  # one call takes up what is open
    assert shop.night(THIRD, since="promote").starts == 3


def test_between_two_parts_a_rollback_is_respected(shop: Shop) -> None:
    assert shop.night(THIRD, until="distill").champion == nights.name_of(SECOND)
    nights.rollback(shop.run_dir)
    assert shop.night(THIRD, since="index", until="gate").champion == nights.name_of(SECOND)
    night = shop.night(THIRD, since="promote")
    assert night.state == "kept_out" and "made live meanwhile" in night.against[0]
    assert shop.live == nights.name_of(FIRST)


def test_a_held_night_goes_on_in_parts_from_its_checks(shop: Shop) -> None:
    later = THIRD + 300 * DAY
    assert shop.night(later, until="check").state == "held"
    with pytest.raises(InputError, match="'check' would be next"):
        shop.night(later, since="distill", accept_data=True)
    assert shop.night(later, since="check", until="check", accept_data=True).state == "held"  # nothing to judge on


def test_a_corrupt_file_fails_the_night_and_a_mended_one_ends_it(shop: Shop) -> None:
    good = shop.file(THIRD).read_bytes()
    shop.file(THIRD).write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError, match=r"2026-04-12\.parquet"):
        shop.night(THIRD)
    assert shop.record(THIRD).state == "failed" and "2026-04-12" in str(shop.record(THIRD).error)
    assert check_served(shop.run_dir) == nights.name_of(SECOND)
    shop.file(THIRD).write_bytes(good)
    assert shop.night(THIRD).state == "promoted"


def truncate(artifact: Path) -> None:
    file = next(file for file in sorted(artifact.resolve().iterdir()) if file.name != MANIFEST and file.is_file())
    os.truncate(file, file.stat().st_size // 2)


def test_what_a_power_cut_left_of_tonight_is_made_again(shop: Shop) -> None:
    """The student and the files of the log that were kept are cut short; the first attempt died after the index."""

    def fall(line: str) -> None:
        if line.startswith("index"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shop.night(THIRD, say=fall)
    folder = nights.folder_of(shop.run_dir, nights.name_of(THIRD))
    truncate(folder / "student")
    truncate(folder / "dataset")
    rows = next((shop.run_dir / "nights" / "staged" / "dataset").glob("*/rows_*.parquet"))
    os.truncate(rows, rows.stat().st_size // 2)
    lines: list[str] = []
    assert shop.night(THIRD, say=lines.append).state == "promoted"
    assert sum("it is made again" in line for line in lines) == 2
    assert any("the file is read again" in line for line in lines)
    assert check_served(shop.run_dir) == nights.name_of(THIRD)


def test_a_truncated_live_model_is_named_and_rolled_back(shop: Shop) -> None:
    truncate(nights.folder_of(shop.run_dir, nights.name_of(SECOND)) / "student")
    with pytest.raises(RecsysError, match=r"not whole: .*student.*\n.*recsys rollback"):
        shop.night(THIRD)
    assert shop.live == nights.name_of(SECOND)
    assert nights.rollback(shop.run_dir).name == nights.name_of(FIRST) == check_served(shop.run_dir)
    with pytest.raises(InputError, match="truncated"):
        nights.rollback(shop.run_dir, nights.name_of(SECOND))
    night = shop.night(THIRD)
    assert (night.state, night.champion) == ("promoted", nights.name_of(FIRST)), night.against


def test_a_fault_of_the_disk_is_tried_again_and_a_rollback_meanwhile_is_respected(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recsys.retrieval import index

    faults = [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle")]
    fit, waits = index.fit, list[float]()

    def flaky(*args: Any, **options: Any) -> Any:
        if faults:
            raise faults.pop()
        return fit(*args, **options)

    monkeypatch.setattr(index, "fit", flaky)

    def meanwhile(line: str) -> None:
        if line.startswith("evaluate"):
            nights.rollback(shop.run_dir)

    night = shop.night(THIRD, "nightly.retry_seconds=30", pause=waits.append, say=meanwhile)
    assert waits == [30, 60]
    assert next(stage.tries for stage in night.stages if stage.stage == "index") == 3
    assert night.state == "kept_out" and "made live meanwhile" in night.against[0]
    assert shop.live == nights.name_of(FIRST)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "x"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (RuntimeError("duckdb: Stale file handle"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (InputError("a column is missing"), False),
        (MemoryError(), False),
    ],
)
def test_what_is_worth_another_try(error: Exception, expected: bool) -> None:
    assert is_transient(error) is expected
    outer = ValueError("around it")
    outer.__cause__ = error
    assert is_transient(outer) is expected


def test_a_stage_that_takes_too_long_fails_the_night(shop: Shop) -> None:
    with pytest.raises(BudgetError, match=r"distill has taken .* may take 0\.001"):
        shop.night(THIRD, "nightly.budgets.distill.minutes=0.001", "distill.epochs=1000")
    night = shop.record(THIRD)
    assert night.state == "failed" and night.stages[-1].stage == "distill" and night.stages[-1].seconds < 3
    assert check_served(shop.run_dir) == nights.name_of(SECOND)


def test_a_full_disk_fails_the_night_and_with_room_it_goes_on(two_nights: Shop, disk: Path) -> None:
    shop = two_nights.copy(disk / "shop")
    with (disk / "ballast").open("wb") as file:
        file.write(bytes(shutil.disk_usage(disk).free - (1 << 19)))
    with pytest.raises(Exception, match=r"(?i)no space left|disk"):
        shop.night(THIRD)
    assert check_served(shop.run_dir) == nights.name_of(SECOND)
    (disk / "ballast").unlink()
    assert shop.night(THIRD).state == "promoted"


def test_configs_without_nights_are_refused(shop: Shop) -> None:
    for override, words in {
        "ingest.protocol=leave_one_out": "a split that does not move",
        "ingest.as_of=2026-04-01": "a split that does not move",
        "nightly.budgets.train.minutes=3": r"\[nightly.budgets.train\] is no stage",
        'nightly.gate.baselines=["nobody"]': "names 'nobody'",
        'score.ensemble=["runs/other/teacher"]': "score.ensemble",
        "nightly.alerts.webhook_env=NO_SUCH_HOOK": "NO_SUCH_HOOK cannot be sent to",
    }.items():
        with pytest.raises(InputError, match=words):
            shop.night(THIRD, override)
    assert len(nights.load_nights(shop.run_dir)) == 2


def test_the_command_says_what_happened_and_exits_with_it(shop: Shop) -> None:
    def recsys(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "-c", str(shop.folder / "shop.toml")])

    ahead = recsys("nightly", "--as-of", "2027-01-01")
    assert ahead.exit_code == 4 and "is the clock right" in ahead.stderr
    back = recsys("rollback")
    assert back.exit_code == 0 and f"live: night {nights.name_of(FIRST)}" in back.stderr
    listed = recsys("nights")
    assert [line.split()[:2] for line in listed.stdout.splitlines()] == [
        ["night", "state"],
        ["2027-01-01T000000Z", "held"],
        [nights.name_of(SECOND), "promoted"],
        [nights.name_of(FIRST), "live"],
    ]
    rows = [json.loads(line) for line in recsys("nights", "--json").stdout.splitlines()]
    assert [row["state"] for row in rows] == ["held", "promoted", "promoted"]
    with pytest.raises(InputError, match="no night before"):
        raise_from(recsys("rollback"))
    with pytest.raises(InputError, match="ISO 8601"):
        raise_from(recsys("nightly", "--as-of", "tonight"))
    command = [sys.executable, "-m", "recsys", "nightly", "-c", str(shop.folder / "shop.toml")]
    with nights.lock(shop.run_dir, datetime.now(UTC)):
        busy = subprocess.run(command, capture_output=True, text=True, check=False)
    assert busy.returncode == 5 and "is running" in busy.stderr and "Traceback" not in busy.stderr


def raise_from(result: Result) -> None:
    assert result.exception is not None
    raise result.exception
