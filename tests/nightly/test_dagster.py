"""The nightly job under Dagster: the schedule ticks, checks block, and a transient fault is tried again."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from recsys.errors import InputError
from recsys.nightly import night as nights
from tests.nightly.night_shop import DAY, FIRST, Shop, check_served

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


def test_it(shop: Shop, instance: Any) -> None:
    result = launch(defs_of(shop), instance, DAYS[2])
    assert result.success
    print(made(result), shop.record(THIRD))
