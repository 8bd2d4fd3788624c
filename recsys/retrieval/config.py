"""Config of the index stage."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

IndexType = Literal["flat", "hnsw", "ivf_pq"]


class IndexConfig(BaseModel):
    """Which index is built, and how good it has to be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["auto"] | IndexType = Field(
        "auto",
        description='"flat" is exact; "ivf_pq" (clusters, compressed vectors, exact refinement) and "hnsw" (a graph, '
        'built on one thread) are approximate; "auto" takes flat up to `flat_up_to` items, ivf_pq above',
    )
    flat_up_to: int = Field(100_000, ge=0, description="up to so many eligible items every search is exact")
    target_recall: float = Field(
        0.98, gt=0, le=1, description="share of the exact top `recall_at` that an approximate index has to find"
    )
    recall_at: int = Field(100, ge=1, description="length of the list that recall is measured on")
    tuning_queries: int = Field(1000, ge=1, description="how many user vectors recall is measured with")
