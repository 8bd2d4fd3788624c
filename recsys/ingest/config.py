"""Config of the ingest stage."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from recsys.spark import SparkConfig

TimestampUnit = Literal["auto", "s", "ms", "us", "ns"]
EventTypeRule = Literal["view", "cart", "purchase", "keep", "drop", "cancel"]


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError("there is no such time zone; a name such as UTC or Europe/London is expected") from None
    return name


def _sound_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"it is no regular expression: {error}") from None
    return pattern


Moment = Annotated[datetime, AfterValidator(_in_utc)]
Zone = Annotated[str, AfterValidator(_known_zone)]
# Plain syntax that Python, RE2 and Java read alike: no look-around, no back-references.
Pattern = Annotated[str, Field(min_length=1), AfterValidator(_sound_pattern)]


class TextFormat(BaseModel):
    """How files of text are written. Parquet files need none of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["auto", "csv", "jsonl", "parquet"] = Field(
        "auto",
        description='"auto" goes by the ending of the name: .csv, .tsv, .txt, .dat, .jsonl, .ndjson, .json, .parquet, '
        ".pq, with .gz, .zst, .bz2 or .xz after it where it is compressed",
    )
    delimiter: str = Field("", max_length=1, description="CSV: what splits the fields; found in the file if empty")
    encoding: str = Field("utf-8", description='encoding of the text, e.g. "latin-1"')
    header: tuple[str, ...] = Field((), description="CSV: names of the columns where the file itself has none")
    explode: str = Field(
        "",
        description="JSON lines: key of a list of events in each line; each makes a row with the line's other keys",
    )


class EventColumns(BaseModel):
    """What the log calls its columns: contract name = the log's own name.

    `session_id`, `value`, `price` and `quantity` are taken where the log has a column of that name; set `session_id` to
    "" to cut sessions by the gap all the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    user_id: str = Field("user_id", min_length=1, description="who acted; any type, read as text")
    item_id: str = Field("item_id", min_length=1, description="on which item; any type, read as text")
    event_type: str = Field("event_type", description="what was done; see [ingest.event_types] and ingest.event_type")
    timestamp: str = Field(
        "timestamp", min_length=1, description="when: a timestamp, a date, ISO 8601 text or a number"
    )
    session_id: str = Field("session_id", description="the log's own sessions, if it has any")
    position: str = Field("", description="an integer that orders events of equal time; none by default")
    value: str = Field("value", description="money that the event is worth; price × quantity where there is none")
    price: str = Field("price", description="price of one piece")
    quantity: str = Field("quantity", description="pieces; also what a cancellation takes back")


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


class EventSource(BaseModel):
    """One kind of file of the log. What a source does not say is as in [ingest]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    events: Path = Field(
        Path("events.parquet"),
        description="the log, one row per event: a file, a glob such as clicks/*.csv.gz, or a folder, whose files are "
        "taken from all levels and whose levels like dt=2026-11-20 become columns",
    )
    text: TextFormat = Field(default_factory=TextFormat, description="how the log's files of text are written")
    columns: EventColumns = Field(default_factory=EventColumns, description="the log's column names")
    event_type: str = Field("", description="the type of all rows, where no column says it")
    timestamp_unit: TimestampUnit = Field(
        "auto", description='unit of times that are numbers; "auto" takes the one that puts most rows after 1973'
    )
    timestamp_format: str = Field(
        "", description='how times are written that are not ISO 8601, e.g. "%d/%m/%Y %H:%M"; as in Python\'s strptime'
    )
    timezone: Zone = Field("UTC", description="time zone of times that name none")


class Bounds(BaseModel):
    """What a number may be, bounds included."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: float | None = Field(None, description="the least")
    max: float | None = Field(None, description="the most")


class CancellationMark(BaseModel):
    """How a cancellation is told where its event type does not tell it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str = Field(min_length=1, description="a column of the log (its own name)")
    pattern: Pattern = Field(description='a regular expression that it contains, e.g. "^C"')


class IngestConfig(EventSource):
    """How a shop's log and catalogue become a dataset. Relative paths start at the pipeline's `data` folder."""

    sources: tuple[EventSource, ...] = Field(
        (), description="several kinds of files that make up the log together, in place of `events`"
    )
    items: Path = Field(
        Path("items.parquet"), description="the catalogue, one row per item: a file, a glob or a folder"
    )
    items_text: TextFormat = Field(
        default_factory=TextFormat, description="how the catalogue's files of text are written"
    )
    items_from_events: bool = Field(
        False,
        description="there is no catalogue: make one of what the log itself says of its items; item_columns then name "
        "columns of the log",
    )
    item_columns: ItemColumns = Field(default_factory=ItemColumns, description="the catalogue's column names")
    category_separator: str = Field(" > ", min_length=1, description="what splits a category's levels in the catalogue")
    event_types: dict[str, EventTypeRule] = Field(
        default_factory=dict,
        description='the log\'s event types: "view", "cart" or "purchase", "keep" (under its own name), "drop", or '
        '"cancel" (takes back an earlier purchase); view, cart and purchase stand for themselves',
    )
    as_of: Moment | None = Field(
        None,
        description="when the log was closed: later events are rejected, and test_days count back from here; "
        "by default nothing after the moment of the run is taken, and days count back from the last event",
    )

    not_before: Moment | None = Field(None, description="no event can be earlier, such as the shop's opening")
    merchandise: str | None = Field(
        None,
        description="column of the catalogue (its own name) that is false for what is no merchandise, such as postage: "
        "it leaves the catalogue, and its events are rejected",
    )
    non_merchandise: tuple[Pattern, ...] = Field(
        (), description='regular expressions; an item_id that one of them contains is no merchandise, e.g. "^POST$"'
    )
    positive: tuple[str, ...] = Field(
        (), description="columns of the log (its own names) that must be above zero, such as quantity and price"
    )
    bounds: dict[str, Bounds] = Field(
        default_factory=dict, description="columns of the log (its own names) that must be numbers within bounds"
    )
    cancelled: CancellationMark | None = Field(
        None, description="rows that are cancellations: each takes back the user's last purchase of the item before it"
    )
    bot_events_per_hour: int = Field(0, ge=0, description="a user with more rows in a clock hour is a bot; 0: no limit")
    bot_events_per_day: int = Field(0, ge=0, description="a user with more rows in a day (UTC) is a bot; 0: no limit")
    max_bad_share: float = Field(
        1.0, ge=0, le=1, description="share of faulty rows (not those that the config drops) that stops the run"
    )

    session_gap_minutes: float = Field(30, gt=0, description="a longer pause starts a new session")
    min_user_events: int = Field(1, ge=1, description="k-core: events that a user needs; 1 keeps all")
    min_item_events: int = Field(1, ge=1, description="k-core: events that an item needs; 1 keeps all")
    event_weights: dict[str, float] = Field(
        default_factory=dict, description="what an event of a type counts in an item's popularity; 1 where not given"
    )
    popularity_days: tuple[float, ...] = Field(
        (1, 7, 30), min_length=1, description="lengths of the windows in which items' popularity is counted"
    )

    protocol: Literal["temporal", "leave_one_out"] = Field(
        "temporal",
        description='"temporal" trains before one moment and tests after another, for all users; "leave_one_out" tests '
        "on each user's last event, to compare with papers",
    )
    test_days: float = Field(7, gt=0, description="temporal: length of the test window, at the log's end")
    valid_days: float = Field(7, gt=0, description="temporal: length of the validation window, before the test window")
    train_until: Moment | None = Field(None, description="temporal: end of training, instead of days")
    valid_until: Moment | None = Field(None, description="temporal: end of validation, instead of days")

    engine: Literal["duckdb", "spark"] = Field("duckdb", description="what computes; the rows are the same")
    spark: SparkConfig = Field(default_factory=SparkConfig, description='where Spark runs, for engine = "spark"')
    incremental: bool = Field(
        False,
        description="keep each file's checked rows beside the run, so that the next run reads only files that are new "
        "or have changed; the result is that of a full run",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.train_until is None) != (self.valid_until is None):
            raise ValueError("train_until and valid_until must be given together")
        if self.train_until and self.valid_until and self.train_until >= self.valid_until:
            raise ValueError("train_until must be before valid_until")
        return self

    def event_sources(self) -> tuple[EventSource, ...]:
        """The kinds of files that make up the log, each with all that it needs said."""
        own = {name: getattr(self, name) for name in EventSource.model_fields}
        if not self.sources:
            return (EventSource(**own),)
        return tuple(
            EventSource(**(own | {name: getattr(source, name) for name in source.model_fields_set}))
            for source in self.sources
        )
