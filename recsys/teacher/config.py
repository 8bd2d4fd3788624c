"""Configs of the teach and score stages."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from recsys.sequence.config import TowersConfig
from recsys.spark import SparkConfig


class BehaviourConfig(TowersConfig):
    """How the towers inside the teacher are built and trained."""

    seeds: int = Field(1, ge=1, description="how many of them are averaged")
    held_out: int = Field(
        1,
        ge=1,
        description="last training events of each user that the teacher learns on, and a second training of the towers "
        "leaves out: they must not have seen what they are judged on",
    )


class TeachConfig(BaseModel):
    """How the teacher is built and fine-tuned."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: str = Field("minilm-l6", description="the cross-encoder's backbone: the bundled one, a name or a folder")
    joint_layers: int = Field(
        2,
        ge=1,
        description="top layers that read history and candidate together; those below read each item once, frozen",
    )
    max_tokens: int = Field(12, ge=3, description="tokens read of an item's text, the first stands for the item itself")
    history: int = Field(8, ge=1, description="most recent events that the encoder reads")
    item_dim: int = Field(64, ge=1, description="width of the collaborative item embedding")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout at the score head")

    behaviour: BehaviourConfig = Field(
        default_factory=BehaviourConfig,
        description="towers over sequences, whose word is one of the kinds of evidence that the teacher weighs",
    )
    evidence: bool = Field(True, description="false: the score is what the encoder reads, and nothing beside it")
    item_tokens: bool = Field(True, description="false: an item is its text, without an embedding of its own")
    packed: bool = Field(
        True,
        description="false: each candidate is read with a history that reads it too, as cross-encoders usually do; "
        "several times slower",
    )
    adapt_epochs: int = Field(
        0, ge=0, description="passes over the catalogue's text that adapt the encoder first, as a masked language model"
    )

    pool: int = Field(
        100, ge=2, description="candidates retrieved by evidence, among which the teacher learns to choose"
    )
    candidates: int = Field(16, ge=2, description="candidates of a training example, the true next item included")
    outside_share: float = Field(
        0.25,
        ge=0,
        le=1,
        description="share of examples whose next item is outside the pool, asked against random items",
    )
    examples: int = Field(12_000, ge=1, description="training examples (a user at a position) in all")
    batch: int = Field(16, ge=1, description="examples in a step")
    accumulate: int = Field(1, ge=1, description="parts that a step's examples are computed in, where memory is short")
    lr: float = Field(5e-5, gt=0, description="peak learning rate of the encoder")
    head_lr: float = Field(3e-4, gt=0, description="peak learning rate of the head, the marks and the item token")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay of matrices")
    evaluations: int = Field(
        3, ge=1, description="times that validation NDCG@10 is measured; the best weights are kept"
    )
    valid_users: int = Field(500, ge=1, description="users of the validation part that it is measured on")


class ScoreConfig(BaseModel):
    """Which pairs the teacher scores for the student."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ensemble: tuple[Path, ...] = Field(
        (), description="folders of further teachers of this dataset, such as another seed's runs/x/teacher; averaged"
    )
    top: int = Field(24, ge=1, description="candidates of a row that evidence retrieves (the teacher's likely top)")
    student_top: int = Field(
        0, ge=0, description="candidates of a user's last row: the first in `recommendations` that are new to the user"
    )
    recommendations: Path | None = Field(
        None, description="what `recsys recommend` wrote the night before, e.g. runs/x/recommendations"
    )
    random: int = Field(8, ge=0, description="candidates of a row drawn uniformly from the rest of the catalogue")
    positions_per_user: int = Field(
        1, ge=1, description="positions scored per user: the end of training and those before"
    )
    max_rows: int = Field(40_000, ge=1, description="rows in all; a seeded choice where there are more")
    shard_rows: int = Field(2048, ge=1, description="rows scored at a time; a killed run resumes at the next shard")
    engine: Literal["local", "spark"] = Field("local", description="who scores: this machine, or Spark's")
    spark: SparkConfig = Field(default_factory=SparkConfig, description='where Spark runs, for engine = "spark"')

    @model_validator(mode="after")
    def _student_top_needs_lists(self) -> Self:
        if (self.student_top > 0) != (self.recommendations is not None):
            raise ValueError("student_top and recommendations go together: how many items, and of which lists")
        return self
