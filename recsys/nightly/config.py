"""Config of the nightly job."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from recsys.nightly.alerts import AlertsConfig
from recsys.nightly.checks import ChecksConfig

GuardedSegment = Literal["new", "light", "regular", "heavy", "head", "tail", "cold"]


class GateConfig(BaseModel):
    """What a challenger must show before it goes live.

    A small loss can hide in an interval that is wide because the window has few users, night after night. So two things
    are asked of a difference: its interval must not lie below zero, and its mean must not be below `tolerance`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the paired bootstrap intervals")
    n_bootstrap: int = Field(2000, ge=100, description="bootstrap resamples of the users")
    min_users: int = Field(
        30, ge=1, description="users of the fresh window without whom nobody is judged, and the challenger stays out"
    )
    tolerance: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="share of the champion's primary metric that may be lost where the interval leaves open whether it "
        "is a loss at all",
    )
    segments: tuple[GuardedSegment, ...] = Field(
        ("new", "cold"),
        description="segments of users (new, light, regular, heavy) and of targets (head, tail, cold) that may not "
        "lose",
    )
    segment_tolerance: float = Field(0.2, ge=0, lt=1, description="as `tolerance`, in each guarded segment")
    min_segment_users: int = Field(
        30, ge=1, description="a segment with fewer users of the window is not judged, which the verdict says"
    )
    coverage_tolerance: float = Field(
        0.2, ge=0, lt=1, description="share of the champion's catalogue coverage that may be lost"
    )
    most_drop: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of what is usual for the champion, or for the best baseline, that its primary metric may "
        "lose; where it loses more, the fresh window or the log before it is broken, and nobody can be judged",
    )
    baselines: tuple[str, ...] = Field(
        ("most_popular", "recently_popular", "item_knn"),
        description="simple baselines that the challenger's primary metric must be above, unless the champion's is not "
        "above them either; at night no others are fitted",
    )
    min_full_lists: float = Field(
        0.99, ge=0, le=1, description="share of the users whose list must have all its items; nobody's may be empty"
    )
    max_spread: float = Field(
        10.0,
        gt=1,
        description="how many times wider or narrower than the champion's the scores in the lists may spread",
    )
    max_size: float = Field(3.0, gt=1, description="how many times larger than the champion's index and lists may be")
    max_time: float = Field(
        10.0, gt=1, description="how many times longer than the champion's the lists of a user may take"
    )


class StageBudget(BaseModel):
    """What a stage of the night may take; it is stopped there, and the night has failed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    minutes: float | None = Field(None, gt=0, description="time")
    memory: str | None = Field(
        None, pattern=r"^\d+(\.\d+)? ?([KMGT]i?B)$", description='memory of the process, e.g. "6GB"'
    )


class ScheduleConfig(BaseModel):
    """When nights begin under Dagster; cron and systemd have it in files of their own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cron: str = Field(
        "0 2 * * *",
        pattern=r"^\d+ \d+ \S+ \S+ \S+$",
        description="when a night begins, and the moment that it is for: a minute and an hour, and on which days",
    )
    timezone: str = Field("UTC", description="of `cron` and of the days that name the partitions")
    since: date = Field(date(2026, 1, 1), description="day of the first partition")
    retries: int = Field(3, ge=0, description="how often a part of the night is tried again after a transient fault")
    retry_minutes: float = Field(
        15, ge=0, description="pause before the first of these; those after it are 3, 7, 15, … times as long"
    )


class NightlyConfig(BaseModel):
    """How nights follow each other. The fresh window is the test part of [ingest]: its `test_days` before the night."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    teach_days: float = Field(
        7, gt=0, description="days after which the teacher is taught anew; between them only what changed is scored"
    )
    warm_epochs: int | None = Field(
        None, ge=1, description="epochs of a student that starts from the live one's weights; distill.epochs by default"
    )
    warm_lr: float | None = Field(
        None, gt=0, description="its peak learning rate, which may be lower; distill.lr by default"
    )
    resume_hours: float = Field(
        12, ge=0, description="a night that was killed or failed is taken up, if it is not older; else a new one begins"
    )
    keep: int = Field(7, ge=2, description="promoted nights to keep, the live one and the one before it among them")
    keep_days: float | None = Field(
        None, gt=0, description="older ones go even so, but for the live one and the one before it; never by default"
    )
    keep_others: int = Field(
        1, ge=0, description="nights that were kept out, held or failed whose artifacts stay, to be looked at"
    )
    renew: bool = Field(
        True,
        description="after a night that the gate kept out, let the live model write lists from tonight's histories; "
        "not where the fresh window or the log are unlike those of recent nights, or too few nights tell",
    )
    retries: int = Field(2, ge=0, description="how often a stage is tried again after a fault of disk or network")
    retry_seconds: float = Field(
        30, ge=0, description="pause before the first of these; each next one is twice as long"
    )
    budgets: dict[str, StageBudget] = Field(
        default_factory=dict,
        description='what a stage may take: [nightly.budgets.distill] minutes = 60, memory = "6GB"',
    )
    gate: GateConfig = Field(default_factory=GateConfig, description="what a challenger must show")
    checks: ChecksConfig = Field(
        default_factory=ChecksConfig, description="what holds a night before anything is trained"
    )
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="when nights begin under Dagster")
    alerts: AlertsConfig = Field(default_factory=AlertsConfig, description="who is told, and how")

    def warm(self) -> dict[str, int | float]:
        """What of [distill] is otherwise for a student that starts from the live one's weights."""
        changed = {"epochs": self.warm_epochs, "lr": self.warm_lr}
        return {name: value for name, value in changed.items() if value is not None}
