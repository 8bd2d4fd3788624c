"""Config of the distill stage."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from recsys.sequence.config import TowersConfig
from recsys.spark import SparkConfig

LossName = Literal[
    "listwise_kl",
    "hard_targets",
    "margin_mse",
    "pointwise_mse",
    "pairwise_ranking",
    "contrastive",
    "feature_matching",
]


class LossConfig(BaseModel):
    """How much one of the losses on the teacher's soft labels counts."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weight: float = Field(0.5, ge=0, description="beside the loss on the log, which counts 1")
    final_weight: float | None = Field(
        None,
        ge=0,
        description="weight at the end of training, reached in a straight line; by default it does not change",
    )
    temperature: float = Field(1.0, gt=0, description="what logits are divided by; see the loss")

    def at(self, progress: float) -> float:
        """The weight when a share of training is done."""
        end = self.weight if self.final_weight is None else self.final_weight
        return self.weight + (end - self.weight) * progress


def _default_losses() -> dict[LossName, LossConfig]:
    return {"listwise_kl": LossConfig()}


class DistillConfig(TowersConfig):
    """How the student is built and trained."""

    losses: dict[LossName, LossConfig] = Field(
        default_factory=_default_losses,
        description="losses on the soft labels, added up; those that are named take the default's place; "
        "none: the log alone",
    )
    earlier_soft_labels: tuple[Path, ...] = Field(
        (), description="folders of soft labels of earlier nights, the latest first; a newer word on a position counts"
    )
    warm_start: Path | None = Field(
        None,
        description="folder of an earlier student, such as yesterday's runs/x/student, whose weights are the start",
    )
    confidence: bool = Field(
        False, description="whether a row of soft labels counts the more, the surer the teacher is of it"
    )
    by_segment: bool = Field(
        False,
        description="whether soft labels count the more where the teacher is measured to know more than the student: "
        "on the validation part after each epoch, by the user's number of events and the first choice's popularity",
    )
    engine: Literal["local", "spark"] = Field("local", description="who trains: this machine, or Spark's")
    processes: int = Field(2, ge=1, description='how many train together, for engine = "spark"')
    spark: SparkConfig = Field(default_factory=SparkConfig, description='where Spark runs, for engine = "spark"')
