"""Config of the recommend stage: how many items, and a shop's rules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from recsys.ingest.config import Moment
from recsys.retrieval.config import SourcesConfig
from recsys.spark import SparkConfig

Category = Annotated[
    str, Field(min_length=1, description='a path of the catalogue; all below it is meant, too ("Hair")')
]


RankModelName = Literal["linear", "boosted", "lambdamart"]


class RankConfig(BaseModel):
    """How the ranker learns to order candidates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: SourcesConfig = Field(default_factory=SourcesConfig, description="where candidates come from")
    models: tuple[RankModelName, ...] = Field(
        ("linear", "boosted"),
        description="what is tried; the best on validation is kept, the student's own order if none is better: "
        '"linear" (a listwise softmax), "boosted" (trees), "lambdamart" (LightGBM\'s, an extra)',
    )
    users: int = Field(10_000, ge=1, description="users of the validation part that it learns on, at most")
    held_out: float = Field(
        0.3, gt=0, lt=1, description="share of them that models are compared on and probabilities are calibrated on"
    )


class Again(BaseModel):
    """What may be shown again some time after it was seen or bought, such as what is used up."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after_days: float = Field(gt=0, description="an event that is at least so old hides its item no longer")
    event_types: tuple[str, ...] = Field((), description="of which events this is true; all by default")
    category: Category | None = Field(None, description="of which items; all by default")


class Boost(BaseModel):
    """Items that a shop wants to be seen more, or less."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    factor: float = Field(
        gt=0,
        description="what an item's odds are multiplied by; its score, a logit, rises by the logarithm. "
        "Above 1: more, below 1: less",
    )
    items: tuple[str, ...] = Field((), description="item_ids")
    brands: tuple[str, ...] = Field((), description="as the catalogue writes them")
    categories: tuple[Category, ...] = Field((), description="paths of the catalogue, with all below them")
    until: Moment | None = Field(None, description="lists for this moment and later ones do not know it any more")


class RecommendConfig(BaseModel):
    """What is written for whom, and which items may not be in it.

    Rules that forbid an item always hold. Whoever has fewer than k items that no rule forbids gets all of these, and
    nobody else gets fewer than k: caps by brand and category give way before a list is left short.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int = Field(10, ge=1, description="items per user")
    exclude_seen: Literal["all", "none"] | tuple[str, ...] = Field(
        "all",
        description='items of the user\'s own history to leave out: "all", "none", or those with an event of the '
        'listed types, e.g. ["purchase"]',
    )
    again: tuple[Again, ...] = Field((), description="which of these may be shown again after some time")
    in_stock_only: bool = Field(True, description="leave out items whose in_stock is false; one without the mark stays")
    as_of: Moment | None = Field(
        None,
        description="the moment that the lists are for: an item whose available_from is later is left out, and "
        "generated_at is this moment; by default the time of the log's last event",
    )
    users: tuple[str, ...] | None = Field(None, description="user_ids to recommend for; everyone where it is not given")

    blocked_items: tuple[str, ...] = Field((), description="item_ids that nobody is shown")
    blocked_brands: tuple[str, ...] = Field((), description="brands that nobody is shown")
    blocked_categories: tuple[Category, ...] = Field((), description="categories that nobody is shown")
    min_price: float | None = Field(None, ge=0, description="cheaper items are left out; one without a price stays")
    max_price: float | None = Field(None, ge=0, description="dearer items are left out; one without a price stays")
    one_of_variants: bool = Field(False, description="of items of one brand that share a title only the best is shown")

    order_by: Literal["score", "revenue"] = Field(
        "score",
        description='"revenue": by purchase probability × price, for which the ranker is needed; items without a price '
        "come last",
    )
    max_per_brand: int | None = Field(None, ge=1, description="items of one brand in a list, at most")
    max_per_category: int | None = Field(None, ge=1, description="items of one category in a list, at most")
    category_levels: int | None = Field(
        None, ge=1, description="how many levels of the path make a category for max_per_category; all by default"
    )
    boosts: tuple[Boost, ...] = Field((), description="items to be shown more, or less, for a while")
    diversity: float = Field(
        0.0,
        ge=0,
        le=1,
        description="how much an item's likeness to those above it in the list counts against it, beside its score "
        "(maximal marginal relevance)",
    )
    explore: float = Field(
        0.0, ge=0, lt=1, description="share of the list, at its end, that is drawn from the candidates at random"
    )
    pool: int = Field(
        100, ge=1, description="candidates of a user among which caps, variants, diversity and exploration choose"
    )

    partitions: int = Field(
        1, ge=1, description="Parquet files that the table is cut into, whole users each; above 1 they lie in a folder"
    )
    formats: tuple[Literal["csv", "jsonl"], ...] = Field(
        (), description='in what else the table is written, beside Parquet: "csv", "jsonl" (a JSON object per line)'
    )
    shard_users: int = Field(
        4096, ge=1, description="users whose lists are made at a time; a killed run resumes at the next shard"
    )
    engine: Literal["local", "spark"] = Field("local", description="who makes the lists: this machine, or Spark's")
    spark: SparkConfig = Field(default_factory=SparkConfig, description='where Spark runs, for engine = "spark"')
