"""Config of the distill stage."""

from __future__ import annotations

from pydantic import Field

from recsys.sequence.config import TowersConfig


class DistillConfig(TowersConfig):
    """How the student is built and trained."""

    soft_weight: float = Field(0.5, ge=0, description="weight of the teacher's soft labels beside the hard labels")
    temperature: float = Field(1.0, gt=0, description="temperature of the soft labels' softmax")
