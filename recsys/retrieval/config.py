"""Config of the index stage."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field

IndexType = Literal["flat", "hnsw", "ivf_pq", "ivf_sq", "ivf_rabitq"]
Refine = Literal["fp32", "fp16", "sq8"]


class IndexConfig(BaseModel):
    """Which index is built, how good it has to be, and what it may hold in memory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["auto"] | IndexType = Field(
        "auto",
        description='"flat" is exact; approximate are "hnsw" (a graph over vectors of 8 bits a number, built on one '
        'thread), and clusters of vectors with 4 bits for two numbers ("ivf_pq"), 8 for one ("ivf_sq") or 1 for one '
        '("ivf_rabitq"); "auto" takes flat up to `flat_up_to` items, above the first of ivf_pq, ivf_sq and flat that '
        "memory_limit has room for and that reaches the target",
    )
    refine: Literal["auto"] | Refine = Field(
        "auto",
        description="by which vectors ivf_pq and ivf_rabitq choose among what their short codes find: the exact ones "
        '("fp32") or ones of 16 or 8 bits a number; "auto" takes the finest that memory_limit has room for',
    )
    memory_limit: ByteSize | None = Field(
        None,
        description='most bytes of what every search reads, as "2GB": codes, graph, clusters and the vectors of '
        "`refine`; no limit by default",
    )
    flat_up_to: int = Field(100_000, ge=0, description="up to so many eligible items every search is exact")
    target_recall: float = Field(
        0.98,
        gt=0,
        le=1,
        description="share of the exact top `recall_at` that an approximate index has to find; of the first ten it may "
        "miss a twentieth of what this leaves: with 0.98 it finds 0.999 of them",
    )
    recall_at: int = Field(100, ge=1, description="length of the list that recall is measured on")
    tuning_queries: int = Field(1000, ge=1, description="how many user vectors recall is measured with")
    shard_items: int = Field(
        1_000_000,
        ge=1,
        description="larger catalogues are indexed in shards of so many items, which a killed build keeps, "
        "and which are merged in the end (not hnsw)",
    )
    rebuild_after: float = Field(
        0.2, gt=0, description="a rebuild is due when more than this share of the items were added or removed since"
    )


class SourcesConfig(BaseModel):
    """Where a user's candidates come from, and how many of each at most. 0 leaves a source out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    student: int = Field(100, ge=1, description="items of the largest student score")
    cooccurrence: int = Field(50, ge=0, description="items that others took soon after what this user took last")
    text: int = Field(10, ge=0, description="items without an event in training, by the likeness of their texts")
    popular: int = Field(10, ge=0, description="items with the most events, for each of `windows`")
    category: int = Field(10, ge=0, description="items with the most recent events in the user's own categories")
    again: int = Field(10, ge=0, description="items of the user's own history, the latest first")
    windows: tuple[int, ...] = Field((7, 30), min_length=1, description="days before the moment that is asked about")
    neighbours: int = Field(100, ge=1, description="items kept for each item as the most alike, of each kind")
    history: int = Field(20, ge=1, description="most recent events that neighbours are looked up for")

    @property
    def besides_student(self) -> int:
        """Candidates of a user that do not come from the student, at most."""
        return self.cooccurrence + self.text + self.popular * len(self.windows) + self.category + self.again
