"""The event log: the file as it is, and its rows under the contract's names and types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import ibis

from recsys import schema
from recsys.errors import InputError
from recsys.ingest.columns import as_id, as_micros, as_text, find_columns, is_time, require_column, time_unit
from recsys.ingest.config import IngestConfig
from recsys.ingest.engine import count, open_parquet, reading

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend

ROW: Final = "file_row_number"  # the name under which DuckDB numbers a file's rows
DROPPED: Final = -1  # the code of an event type that the config drops
NOT_POSITIVE: Final = "not_positive_"


class Log:
    """A log, opened and looked at, but not yet read.

    Attributes:
        path: the file.
        rows: the file's own columns, and the row's number (`ROW`).
        columns: names of the file's own columns.
        n_rows: number of rows.
        events: the same rows, none left out, as `row` int64, `user_id` and `item_id` text (null where empty),
            `event_type` int8 (a code, `DROPPED`, or null where empty), `has_timestamp` bool, `timestamp` int64
            (microseconds since 1970, UTC; null where it cannot be read), a bool `not_positive_<column>` for each of
            the config's `positive`, and where the log has them `session_id` text and `position` int64.
        timestamp_unit: the unit in which times that are numbers are read.
    """

    def __init__(self, connection: Backend, path: Path, config: IngestConfig) -> None:
        """Open the log, and look at its columns, event types and unit of time.

        Raises:
            InputError: the file cannot be read or is empty, lacks a column, or has event types that nobody mapped.
        """
        self.path = path
        self.rows = open_parquet(connection, path, file_row_number=True)
        self.columns = [name for name in self.rows.columns if name != ROW]
        names = find_columns(path, self.columns, config.columns, "columns", schema.REQUIRED_EVENT_COLUMNS)
        for name in config.positive:
            require_column(path, self.columns, name, "positive")
        time = self.rows[names[schema.TIMESTAMP]]
        if not is_time(time):
            raise InputError(
                f"{path}: the column {names[schema.TIMESTAMP]!r} is of type {time.type()}",
                expected="a timestamp, a date, ISO 8601 text or a number",
                do="map timestamp to another column in [ingest.columns], or convert this one",
            )
        event_type = as_text(self.rows[names[schema.EVENT_TYPE]])
        with reading(path):
            self.n_rows = count(self.rows)
            if not self.n_rows:
                raise InputError(f"{path} has no rows", expected="one row per event", do="check what wrote the file")
            self.timestamp_unit = time_unit(time, config.timestamp_unit)
            codes = event_type_codes(config)
            _check_event_types(event_type, codes, path)
        flags = {f"{NOT_POSITIVE}{name}": _is_not_positive(self.rows[name]) for name in config.positive}
        optional = {}
        if schema.SESSION_ID in names:
            optional[schema.SESSION_ID] = as_id(self.rows[names[schema.SESSION_ID]])
        if schema.POSITION in names:
            optional[schema.POSITION] = self.rows[names[schema.POSITION]].try_cast("int64")
        self.events = self.rows.select(
            row=self.rows[ROW],
            user_id=as_id(self.rows[names[schema.USER_ID]]),
            item_id=as_id(self.rows[names[schema.ITEM_ID]]),
            event_type=event_type.cases(*codes.items()).cast("int8"),
            has_timestamp=time.notnull(),
            timestamp=as_micros(time, self.timestamp_unit),
            **flags,
            **optional,
        )


def event_types(config: IngestConfig) -> tuple[str, ...]:
    """The dataset's event types; an event's code is a place in this tuple."""
    kept = (name for name, rule in config.event_types.items() if rule == "keep" and name not in schema.EVENT_TYPES)
    return (*schema.EVENT_TYPES, *kept)


def event_type_codes(config: IngestConfig) -> dict[str, int]:
    """Code of each event type that the log may have; `DROPPED` for those that the config drops."""
    names = event_types(config)
    codes = {name: names.index(name) for name in schema.EVENT_TYPES}
    for name, rule in config.event_types.items():
        codes[name] = DROPPED if rule == "drop" else names.index(name if rule == "keep" else rule)
    return codes


def _check_event_types(event_type: ibis.Value, codes: dict[str, int], path: Path, most: int = 10) -> None:
    counts = event_type.name("name").as_table().group_by("name").aggregate(n=lambda t: t.count())
    unknown = counts.filter(counts.name.notin(list(codes))).order_by(ibis.desc("n"), "name")
    found = unknown.limit(most + 1).to_pyarrow().to_pylist()
    if found:
        listed = ", ".join(f"{each['name']!r} ({each['n']:,} rows)" for each in found[:most])
        lines = [f'{json.dumps(each["name"], ensure_ascii=False)} = "keep"' for each in found[:most]]
        raise InputError(
            f"{path} has event types that the config does not know: {listed}{', …' if len(found) > most else ''}",
            expected=", ".join(codes),
            do="\n".join(
                ['say what each is: "view", "cart", "purchase", "keep" or "drop"\n[ingest.event_types]', *lines]
            ),
        )


def _is_not_positive(column: ibis.Value) -> ibis.Value:
    number = column.try_cast("float64")
    return ~((number > 0) & ~number.isnan()).fill_null(False)
