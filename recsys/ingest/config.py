"""Config of the ingest stage."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

TimestampUnit = Literal["auto", "s", "ms", "us", "ns"]
EventTypeRule = Literal["view", "cart", "purchase", "keep", "drop"]


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


Moment = Annotated[datetime, AfterValidator(_in_utc)]


class EventColumns(BaseModel):
    """What the log calls its columns: contract name = the log's own name.

    `session_id` is taken where the log has a column of that name; set it to "" to cut sessions by the gap all the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    user_id: str = Field("user_id", min_length=1, description="who acted; any type, read as text")
    item_id: str = Field("item_id", min_length=1, description="on which item; any type, read as text")
    event_type: str = Field("event_type", min_length=1, description="what was done; see [ingest.event_types]")
    timestamp: str = Field(
        "timestamp", min_length=1, description="when: a timestamp, a date, ISO 8601 text or a number"
    )
    session_id: str = Field("session_id", description="the log's own sessions, if it has any")
    position: str = Field("", description="an integer that orders events of equal time; none by default")


class ItemColumns(BaseModel):
    """What the catalogue calls its columns: contract name = the catalogue's own name.

    All but `item_id` and `title` are taken where the catalogue has a column of that name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    item_id: str = Field("item_id", min_length=1, description="the item; any type, read as text")
    title: str = Field("title", min_length=1, description="its name, as a customer reads it")
    category: str = Field("category", description="its category; levels are split by category_separator")
    brand: str = Field("brand", description="its brand")
    price: str = Field("price", description="its price")
    description: str = Field("description", description="a longer text")
    in_stock: str = Field("in_stock", description="whether it can be bought")
    available_from: str = Field("available_from", description="when it can be bought first")


class IngestConfig(BaseModel):
    """How a shop's log and catalogue become a dataset. Relative paths start at the pipeline's `data` folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    events: Path = Field(Path("events.parquet"), description="the log: a Parquet file, one row per event")
    items: Path = Field(Path("items.parquet"), description="the catalogue: a Parquet file, one row per item")
    columns: EventColumns = Field(default_factory=EventColumns, description="the log's column names")
    item_columns: ItemColumns = Field(default_factory=ItemColumns, description="the catalogue's column names")
    event_types: dict[str, EventTypeRule] = Field(
        default_factory=dict,
        description='the log\'s event types: "view", "cart" or "purchase", "keep" (under its own name) or "drop"; '
        "view, cart and purchase stand for themselves",
    )
    timestamp_unit: TimestampUnit = Field(
        "auto", description='unit of times that are numbers; "auto" takes the one that puts most rows after 1973'
    )
    as_of: Moment | None = Field(
        None,
        description="when the log was closed: later events are rejected, and test_days count back from here; "
        "by default nothing after the moment of the run is taken, and days count back from the last event",
    )

    merchandise: str | None = Field(
        None,
        description="column of the catalogue (its own name) that is false for what is no merchandise, such as postage: "
        "it leaves the catalogue, and its events are rejected",
    )
    category_separator: str = Field(" > ", min_length=1, description="what splits a category's levels in the catalogue")
    positive: tuple[str, ...] = Field(
        (), description="columns of the log (its own names) that must be above zero, such as quantity and price"
    )
    max_bad_share: float = Field(
        1.0, ge=0, le=1, description="share of faulty rows (not those that the config drops) that stops the run"
    )

    session_gap_minutes: float = Field(30, gt=0, description="a longer pause starts a new session")
    min_user_events: int = Field(1, ge=1, description="k-core: events that a user needs; 1 keeps all")
    min_item_events: int = Field(1, ge=1, description="k-core: events that an item needs; 1 keeps all")

    protocol: Literal["temporal", "leave_one_out"] = Field(
        "temporal",
        description='"temporal" trains before one moment and tests after another, for all users; "leave_one_out" tests '
        "on each user's last event, to compare with papers",
    )
    test_days: float = Field(7, gt=0, description="temporal: length of the test window, at the log's end")
    valid_days: float = Field(7, gt=0, description="temporal: length of the validation window, before the test window")
    train_until: Moment | None = Field(None, description="temporal: end of training, instead of days")
    valid_until: Moment | None = Field(None, description="temporal: end of validation, instead of days")

    events_per_bucket: int = Field(
        4_000_000,
        ge=1,
        description="events that are ordered in memory at once; users are cut into buckets of about so many",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.train_until is None) != (self.valid_until is None):
            raise ValueError("train_until and valid_until must be given together")
        if self.train_until and self.valid_until and self.train_until >= self.valid_until:
            raise ValueError("train_until must be before valid_until")
        return self
