"""The nightly job under Dagster: the schedule ticks, checks block, and a transient fault is tried again."""

from __future__ import annotations

import errno
import runpy
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.nightly_parts.shop import DAY, FIRST, Shop, check_served
from recsys.nightly import night as nights

dg = pytest.importorskip("dagster", reason="the extra `dagster` is not installed")

SECOND, THIRD = FIRST + DAY, FIRST + 2 * DAY
DAYS = [f"{moment:%Y-%m-%d}" for moment in (FIRST, SECOND, THIRD)]
MIDNIGHT = "nightly.schedule.cron=0 0 * * *"  # the shop's nights are for midnight
PARTS = ["log", "data", "student", "lists", "verdict", "live"]


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Dagster of its own, which tells nobody."""
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with dg.DagsterInstance.get() as instance:
        assert not instance.telemetry_enabled
        yield instance


def defs_of(shop: Shop, *overrides: str) -> Any:
    from recsys.nightly.dagster import definitions

    return definitions(shop.config(MIDNIGHT, "nightly.schedule.retry_minutes=0.001", *overrides))


def launch(defs: Any, instance: Any, day: str, **options: Any) -> Any:
    job = defs.resolve_job_def("nightly")
    return job.execute_in_process(instance=instance, partition_key=day, raise_on_error=False, **options)


def made(result: Any) -> list[str]:
    return [event.asset_key.path[-1] for event in result.get_asset_materialization_events()]


@pytest.mark.filterwarnings("ignore:.*run_request_for_partition:DeprecationWarning")  # Dagster's own call
def test_the_schedule_ticks_and_asks_for_the_night_that_begins(shop: Shop, instance: Any) -> None:
    from recsys.nightly.dagster import definitions

    defs = definitions(shop.config())
    schedule = defs.resolve_schedule_def("nightly_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 2 * * *", "UTC")
    tick = datetime(2026, 11, 26, 2, tzinfo=UTC)
    context = dg.build_schedule_context(instance, scheduled_execution_time=tick)
    (request,) = schedule.evaluate_tick(context).run_requests
    assert (request.partition_key, request.run_key) == ("2026-11-26", "2026-11-26")
    (key, *_) = defs.resolve_all_asset_keys()
    partitions = defs.resolve_assets_def(key).partitions_def
    assert partitions.time_window_for_partition_key(request.partition_key).start == tick


def test_a_night_in_six_assets_is_the_night_of_one_call(shop: Shop, tmp_path: Path, instance: Any) -> None:
    whole = shop.copy(tmp_path / "whole")
    expected = whole.night(THIRD)
    result = launch(defs_of(shop), instance, DAYS[2])
    night = shop.record(THIRD)
    assert result.success and made(result) == PARTS
    assert night.state == "promoted" and check_served(shop.run_dir) == night.name
    assert (night.starts, night.champion, night.metrics) == (1, expected.champion, expected.metrics)
    assert [stage.stage for stage in night.stages] == [stage.stage for stage in expected.stages]
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert set(checks) == {"data_checks", "gate"} and all(check.passed for check in checks.values())
    assert set(checks["gate"].metadata) == {reason.check for reason in night.reasons}


def test_data_that_is_held_stops_the_run_until_somebody_accepts_it(shop: Shop, instance: Any) -> None:
    defs = defs_of(shop, "nightly.checks.least_events=1000000")
    result = launch(defs, instance, DAYS[2])
    assert not result.success and made(result) == ["log", "data"]
    (check,) = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed, check.severity.value) == ("data_checks", False, "ERROR")
    assert shop.record(THIRD).state == "held"
    assert "events are new" in check.description and check.metadata["volume"].value == check.description
    assert shop.live == nights.name_of(SECOND) == check_served(shop.run_dir)

    accept = {"ops": {"shop__data": {"config": {"accept_data": True}}}}
    rest = [dg.AssetKey(["shop", part]) for part in PARTS[1:]]
    result = launch(defs, instance, DAYS[2], run_config=accept, asset_selection=rest)
    assert result.success and made(result) == PARTS[1:]
    night = shop.record(THIRD)
    assert (night.state, shop.live) == ("promoted", night.name)
    assert [note for note in night.notes if note.startswith("accepted: volume")]


def test_a_night_that_the_gate_keeps_out_is_not_made_live(shop: Shop, instance: Any) -> None:
    result = launch(defs_of(shop, "nightly.gate.min_users=100000"), instance, DAYS[2])
    assert not result.success and made(result) == PARTS[:-1]
    gate = next(check for check in result.get_asset_check_evaluations() if check.check_name == "gate")
    assert not gate.passed and gate.severity.value == "ERROR" and "100,000 are needed" in gate.description
    assert [event.step_key for event in result.all_events if event.is_step_start][-1].endswith("verdict")
    assert shop.record(THIRD).state == "kept_out"
    assert shop.live == nights.name_of(SECOND) == check_served(shop.run_dir)


def test_a_transient_fault_is_tried_again_with_longer_pauses(
    shop: Shop, instance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recsys.retrieval import index

    faults, fit = [OSError(errno.EIO, "Input/output error")] * 2, index.fit

    def flaky(*args: Any, **options: Any) -> Any:
        if faults:
            raise faults.pop()
        return fit(*args, **options)

    monkeypatch.setattr(index, "fit", flaky)
    result = launch(defs_of(shop, "nightly.retries=0"), instance, DAYS[2])
    assert result.success and made(result) == PARTS and not faults
    retries = [event for event in result.all_events if event.is_step_up_for_retry]
    assert [event.step_key for event in retries] == ["shop__lists"] * 2
    assert [event.step_retry_data.seconds_to_wait for event in retries] == pytest.approx([0.06, 0.18])
    night = shop.record(THIRD)
    assert (night.state, night.starts) == ("promoted", 3)
    assert [stage.did for stage in night.stages if stage.stage == "distill"] == ["done"]  # not trained again
    assert check_served(shop.run_dir) == night.name


def test_any_other_fault_is_not_tried_again(shop: Shop, instance: Any) -> None:
    good = shop.file(THIRD).read_bytes()
    shop.file(THIRD).write_bytes(good[: len(good) // 2])
    result = launch(defs_of(shop), instance, DAYS[2])
    assert not result.success and made(result) == []
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "2026-04-12.parquet" in str(failure.step_failure_data.user_failure_data)
    assert shop.record(THIRD).state == "failed" and shop.live == nights.name_of(SECOND)
    shop.file(THIRD).write_bytes(good)
    assert launch(defs_of(shop), instance, DAYS[2]).success
    assert shop.live == nights.name_of(THIRD)


def test_the_file_that_dagster_loads(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(__file__).parents[2] / "pipelines" / "dagster_nightly.py"
    monkeypatch.setenv("NIGHTLY_CONFIG", str(shop.folder / "shop.toml"))
    monkeypatch.setenv("RECSYS_NIGHTLY__SCHEDULE__CRON", "30 3 * * *")
    defs = runpy.run_path(str(file))["defs"]
    dg.Definitions.validate_loadable(defs)
    assert defs.resolve_schedule_def("nightly_schedule").cron_schedule == "30 3 * * *"
