"""The nightly job under Dagster: six assets, a partition for each night, a schedule, retries, and checks that block."""

# Annotations are not put off in this module: Dagster looks at that of `context`.
from collections.abc import Callable, Iterator
from typing import Any, Final

import dagster as dg

from recsys.config import PipelineConfig
from recsys.nightly.faults import is_transient
from recsys.nightly.night import Night
from recsys.nightly.run import STEPS, nightly

# Each asset, the last of `STEPS` that it does, and what it is. It begins where the one before it ends.
ASSETS: Final = {
    "log": ("ingest", "The log's new files, cleaned, and the dataset split at this night's moment."),
    "data": ("check", "The dataset, compared with those of the nights before."),
    "student": ("distill", "The student, which goes on from the live one; the teacher and its labels before it."),
    "lists": ("recommend", "The index, the ranker, and a list for every user."),
    "verdict": ("renew", "Challenger, champion and baselines on the same users of the fresh window."),
    "live": ("promote", "`<run_dir>/live` leads to this night."),
}
CHECKS: Final = {"data": "data_checks", "verdict": "gate"}


def definitions(config: PipelineConfig) -> dg.Definitions:
    """The assets of one shop, the job `nightly` that makes them, and its schedule.

    Each asset does its part of `recsys.nightly.run.nightly`, which decides; Dagster calls for one part after the other,
    shows what was found, and makes nothing that lies behind a failed check. A partition is the night that begins on
    its day when `nightly.schedule.cron` ticks, and it is for that moment. A part is tried again, after longer and
    longer pauses, where a fault of disk or network stopped it, and nowhere else.

    Args:
        config: of the shop; `nightly.schedule` is read here.
    """
    schedule = config.nightly.schedule
    partitions = dg.TimeWindowPartitionsDefinition(
        start=schedule.since.isoformat(),
        fmt="%Y-%m-%d",
        cron_schedule=schedule.cron,
        timezone=schedule.timezone,
        end_offset=1,  # a partition is there when its night begins, not a day later
    )
    retry = dg.RetryPolicy(
        max_retries=schedule.retries, delay=60 * schedule.retry_minutes, backoff=dg.Backoff.EXPONENTIAL
    )
    assets, since, before = [], STEPS[0], list[dg.AssetKey]()
    for name, (until, description) in ASSETS.items():
        key = dg.AssetKey([config.name, name])
        asset = dg.asset(
            key=key,
            deps=before,
            description=description,
            partitions_def=partitions,
            retry_policy=retry,
            config_schema={"accept_data": dg.Field(bool, default_value=False)} if name == "data" else None,
            check_specs=[dg.AssetCheckSpec(CHECKS[name], asset=key, blocking=True)] if name in CHECKS else None,
        )
        assets.append(asset(_part(config, name, since, until)))
        if until != STEPS[-1]:
            since = STEPS[STEPS.index(until) + 1]
        before = [key]
    job = dg.define_asset_job("nightly", assets)
    return dg.Definitions(assets=assets, jobs=[job], schedules=[dg.build_schedule_from_partitioned_job(job)])


def _part(config: PipelineConfig, name: str, since: str, until: str) -> Callable[..., Any]:
    """What makes an asset: the steps of its night from `since` to `until`."""

    def make(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        try:
            night = nightly(
                config,
                as_of=context.partition_time_window.start,
                accept_data=name == "data" and context.op_execution_context.op_config["accept_data"],
                since=since,
                until=until,
                progress=False,
                say=context.log.info,
            )
        except Exception as error:
            if is_transient(error):
                raise
            raise dg.Failure(str(error) or type(error).__name__, allow_retries=False) from error
        if until == STEPS[-1] and night.state != "promoted":
            raise dg.Failure("; ".join(night.against), allow_retries=False)
        steps = STEPS[STEPS.index(since) : STEPS.index(until) + 1]
        did = [stage for stage in night.stages if stage.stage in steps]
        metadata: dict[str, Any] = {"night": night.name, "state": night.state}
        metadata |= {f"{stage.stage} (s)": stage.seconds for stage in did}
        metadata |= night.metrics if name == "verdict" else {}
        checks = [_check_result(CHECKS[name], night)] if name in CHECKS else []
        yield dg.MaterializeResult(metadata=metadata, check_results=checks)

    return make


def _check_result(check: str, night: Night) -> dg.AssetCheckResult:
    """The data checks' findings or the gate's reasons, as the night's record has them."""
    if check == "gate":
        failed = [reason.message for reason in night.reasons if reason.passed is False]
        looked_at = {reason.check: reason.message for reason in night.reasons}
        severity = dg.AssetCheckSeverity.ERROR
    else:
        failed = [str(finding["message"]) for finding in night.findings]
        looked_at = {str(finding["check"]): str(finding["message"]) for finding in night.findings}
        held = any(finding["level"] == "hold" for finding in night.findings)
        severity = dg.AssetCheckSeverity.ERROR if held else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        check_name=check,
        passed=not failed,
        severity=severity,
        description="; ".join(failed) or None,
        metadata=looked_at,
    )
