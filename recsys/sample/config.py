"""What the sample shop is made of."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SampleConfig(BaseModel):
    """Size and period of the sample shop."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_items: int = Field(2_000, description="items in the catalogue", ge=50)
    n_users: int = Field(5_000, description="shoppers; each has at least one event", ge=20)
    n_events: int = Field(150_000, description="events to aim at; what is written differs by a few per cent", ge=20)
    first_day: date = Field(date(2026, 3, 2), description="first day of the log (UTC)")
    days: int = Field(60, description="length of the log in days", ge=14)
    one_event_share: float = Field(0.04, description="share of shoppers who come once and look at one item", ge=0, le=1)
    launched_share: float = Field(
        0.10, description="share of items launched in the period, before its last week", ge=0, le=0.4
    )
    launched_last_week_share: float = Field(0.05, description="share of items launched in the last week", ge=0, le=0.4)
    stockout_share: float = Field(0.10, description="share of items that run out of stock for a while", ge=0, le=1)
    dirty_share: float = Field(0.01, description="dirty rows as a share of the events, over all kinds", ge=0, le=0.3)

    @property
    def end(self) -> date:
        """The day after the last one: every sound event lies before its midnight (UTC)."""
        return self.first_day + timedelta(days=self.days)

    @model_validator(mode="after")
    def _enough_events(self) -> Self:
        if self.n_events < self.n_users:
            raise ValueError("n_events must be n_users or more: every shopper has an event (30 each are plausible)")
        return self
