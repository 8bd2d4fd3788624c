"""Config of the recommend stage."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from recsys.ingest.config import Moment


class RecommendConfig(BaseModel):
    """What is written for whom, and which items may not be in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int = Field(10, ge=1, description="items per user")
    exclude_seen: Literal["all", "none"] | tuple[str, ...] = Field(
        "all",
        description='items of the user\'s own history to leave out: "all", "none", or those with an event of the '
        'listed types, e.g. ["purchase"]',
    )
    in_stock_only: bool = Field(True, description="leave out items whose in_stock is false; one without the mark stays")
    as_of: Moment | None = Field(
        None,
        description="the moment that the lists are for: an item whose available_from is later is left out, and "
        "generated_at is this moment; by default the time of the log's last event",
    )
    users: tuple[str, ...] | None = Field(None, description="user_ids to recommend for; everyone where it is not given")
