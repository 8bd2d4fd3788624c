"""Configs of the evaluate stage and of the baselines' tuning."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MetricName = Literal["recall", "ndcg", "hit_rate", "mrr", "precision", "map"]


class EvaluateConfig(BaseModel):
    """What is measured, on whom, against what, and how sure the intervals are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ks: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(
        (5, 10, 20, 50, 100), description="list lengths at which every metric is taken, ascending", min_length=1
    )
    primary_metric: MetricName = Field("ndcg", description="metric of the report's verdict")
    primary_k: int = Field(10, description="list length of the report's verdict; one of ks", ge=1)
    primary_seen_filtered: bool = Field(
        True, description="whether the verdict is about lists without items that the user has already seen"
    )
    targets: Literal["all", "next"] = Field(
        "all",
        description="what a user is asked about: all items that follow in the test part, or only the next one (the "
        "item of the first event); with leave-one-out there is only one",
    )
    repurchases: bool = Field(
        False,
        description="where seen items are filtered, keep those that the user has bought before, in the lists and among "
        "the targets: for shops whose goods are bought again",
    )
    max_users: int = Field(100_000, description="a larger test part is measured on so many users, drawn by seed", ge=1)

    teacher_users: int = Field(
        1000,
        description="the teacher is costly: measured on so many of the users, drawn by seed; 0 leaves it out",
        ge=0,
    )
    teacher_candidates: int = Field(
        100, description="unseen items that the teacher reranks per user, from student and ordered item-kNN", ge=1
    )

    baselines: tuple[str, ...] = Field(
        (),
        description="which baselines stand beside the models; empty: all that can run here. They take the parameters "
        "that `recsys baselines` chose, where it was run",
    )

    user_segments: tuple[int, int, int] = Field(
        (1, 5, 20),
        description="with how many training events a user counts as light, regular and heavy; with fewer as new. "
        "Five is what public 5-core data start at, twenty the least of MovieLens",
    )
    head_share: float = Field(
        0.5,
        description="targets by popularity: the head are the most popular items that hold this share of the training "
        "events, the tail the others with an event; an item without one is cold",
        gt=0,
        lt=1,
    )
    top_categories: int = Field(10, description="top-level categories of the targets with figures of their own", ge=1)
    examples: int = Field(10, description="users whose histories and lists stand in the report, drawn by seed", ge=0)

    n_bootstrap: int = Field(1000, description="bootstrap resamples of the users behind every interval", ge=100)
    n_permutations: int = Field(
        9_999, description="random signs of the test behind the p-values of the verdict's comparisons", ge=99
    )
    confidence: float = Field(0.95, description="confidence of the intervals", gt=0.5, lt=1)

    @model_validator(mode="after")
    def _check_user_segments(self) -> Self:
        light, regular, heavy = self.user_segments
        if not 1 <= light < regular < heavy:
            raise ValueError(f"user_segments = {list(self.user_segments)} must ascend without repetition, from 1 on")
        return self

    @model_validator(mode="after")
    def _check_ks(self) -> Self:
        if list(self.ks) != sorted(set(self.ks)):
            raise ValueError(f"ks = {list(self.ks)} must ascend without repetition")
        if self.primary_k not in self.ks:
            raise ValueError(f"primary_k = {self.primary_k} must be one of ks = {list(self.ks)}")
        return self


class TuningConfig(BaseModel):
    """What is searched for the baselines' best parameters, and for how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    baselines: tuple[str, ...] = Field((), description="which baselines; empty: all that can run here")
    budget_seconds: float = Field(
        600, description="time for all trials together; none begins that would exceed it", gt=0
    )
    max_trials: int = Field(30, description="most trials of one baseline", ge=1)
    max_users: int = Field(
        10_000, description="a larger validation part is asked on so many users, drawn by seed", ge=1
    )
    seen_filtered: bool = Field(True, description="whether items of the history are dropped from lists and targets")
