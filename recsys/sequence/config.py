"""Config of the towers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TowersConfig(BaseModel):
    """How the towers are built, and how they are trained on the log."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: str = Field(
        "minilm-l6", description="encoder of the frozen item texts: the bundled one, a name or a folder"
    )
    use_text: bool = Field(True, description="false: items are not known by their text")
    item_features: tuple[Literal["brand", "category", "price"], ...] = Field(
        ("brand", "category", "price"),
        description="what else an item is known by; without these and text this is a plain SASRec",
    )
    time_gaps: bool = Field(
        True, description="whether the user tower knows how long after the last event each one came"
    )
    event_weights: dict[str, float] = Field(
        default_factory=dict,
        description="by event type, how much a next event counts that is foreseen; 1 by default, 0 to leave it out",
    )
    id_rows: int = Field(
        0,
        ge=0,
        description="rows of the id embedding; 0: one for each item, else every item is the sum of two rows by hash",
    )
    dim: int = Field(128, ge=8, description="width of user and item vectors")
    layers: int = Field(2, ge=1, description="transformer layers of the user tower")
    heads: int = Field(2, ge=1, description="attention heads of the user tower")
    max_history: int = Field(50, ge=2, description="most recent events that the user tower reads")
    dropout: float = Field(0.3, ge=0, lt=1, description="dropout in the user tower")
    id_dropout: float = Field(0.1, ge=0, lt=1, description="share of items whose id embedding is hidden in a step")

    epochs: int = Field(20, ge=1, description="passes over the training sequences, at most")
    patience: int = Field(4, ge=1, description="epochs without a better validation NDCG@10 before training stops")
    batch_positions: int = Field(2048, ge=16, description="trained positions in a step, about")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay of matrices")
    softmax_items: int = Field(
        100_000,
        ge=2,
        description="catalogues up to this size train on the full softmax, larger ones on so many negatives",
    )
    valid_users: int = Field(2000, ge=1, description="users of the validation part that early stopping looks at")
