"""The event log: the files as they are, and their rows under the contract's names and types."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final, Protocol

import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from recsys import schema
from recsys.errors import InputError
from recsys.ingest.columns import (
    as_id,
    as_micros,
    as_number,
    as_text,
    elected,
    find_columns,
    is_time,
    require_column,
    unit_votes,
    votes,
)
from recsys.ingest.config import EventSource, IngestConfig, ItemColumns, TimestampUnit
from recsys.ingest.engine import FILE, Engine, count_by, reading
from recsys.ingest.files import DataFile, find_files
from recsys.ingest.histories import CONTENT, MONEY, SESSION_KEY
from recsys.ingest.landing import LINE, ROW, land
from recsys.ingest.split import to_micros
from recsys.runtime import Runtime

# Codes of event types that never become an event of the dataset.
DROPPED: Final = -1
CANCELLATION: Final = -2

MISSING_EVENT_TYPE: Final = "missing_event_type"
QUANTITY: Final = "quantity"
FOR_CATALOGUE: Final = "of_item_"  # prefix of the columns that a catalogue is made of where there is none

_OWN_PREFIX: Final = "recsys_"
_MONEY_LIMIT: Final = 9e14  # in money, so that its ten-thousandths fit an int64


class AnyFile(Protocol):
    """A file of the log, opened now or known from an earlier run."""

    @property
    def number(self) -> int:
        """Its place in the log."""

    @property
    def file(self) -> DataFile:
        """The file as the shop has it."""

    @property
    def n_rows(self) -> int:
        """Number of rows, those that could not be read included."""

    @property
    def rejected(self) -> pa.Table:
        """The rows that could not be read: `row`, `raw`, `reason`."""


@dataclass(frozen=True)
class LogFile:
    """One file of the log, readable by every engine.

    Attributes:
        number: its place in the log.
        file: the file as the shop has it.
        source: the config of its kind.
        path: Parquet: the file itself, or what it was turned into.
        schema: of that Parquet file.
        n_rows: number of rows, those that could not be read included.
        rejected: the rows that could not be read: `row`, `raw`, `reason`.
    """

    number: int
    file: DataFile
    source: EventSource
    path: Path
    schema: pa.Schema
    n_rows: int
    rejected: pa.Table

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the file's own columns, the levels of its folders included."""
        own = (name for name in self.schema.names if name not in (ROW, LINE))
        return (*own, *(name for name in self.file.partition if name not in self.schema.names))


def find_log(config: IngestConfig, data: Path) -> list[tuple[DataFile, EventSource]]:
    """All files of the log, in their order, each with the config of its kind.

    Raises:
        InputError: a source has no file.
    """
    key = "ingest.sources" if config.sources else "ingest.events"
    found = [
        (file, source)
        for source in config.event_sources()
        for file in find_files(data, source.events, source.text, key=key)
    ]
    seen = {file.path for file, _ in found}
    if len(seen) != len(found):
        raise InputError(
            "some files of the log belong to several of its sources",
            expected="each file in one of [[ingest.sources]]",
            do="give the sources narrower names or globs",
        )
    return found


def open_log(config: IngestConfig, data: Path, folder: Path, runtime: Runtime) -> list[LogFile]:
    """Open all files of the log; text is turned into Parquet in `folder` first.

    Raises:
        InputError: one cannot be read.
    """
    files = runtime.track(find_log(config, data), label="open the log's files", unit="file")
    return [open_file(number, file, source, folder) for number, (file, source) in enumerate(files)]


def open_file(number: int, file: DataFile, source: EventSource, folder: Path) -> LogFile:
    """Open one file; text is turned into Parquet in `folder` first.

    Raises:
        InputError: it cannot be read.
    """
    if file.format == "parquet":
        with reading(file.name), pq.ParquetFile(file.path) as parquet:
            columns, n_rows = parquet.schema_arrow, parquet.metadata.num_rows
        own = [name for name in columns.names if name.casefold().startswith(_OWN_PREFIX)]
        if own:
            raise InputError(
                f"{file.name} has a column that cannot be used: {', '.join(own)}",
                expected=f"no column whose name begins with {_OWN_PREFIX}: ingestion adds such columns itself",
                do="rename the column",
            )
        opened = LogFile(number, file, source, file.path, columns, n_rows, NOTHING_REJECTED)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        landed = land(file, source.text, folder / f"{number}.parquet")
        columns = pq.read_schema(landed.path)
        opened = LogFile(number, file, source, landed.path, columns, landed.n_rows, landed.rejected)
    folded = Counter(name.casefold() for name in opened.columns)
    alike = [name for name in opened.columns if folded[name.casefold()] > 1]
    if alike:
        raise InputError(
            f"{file.name} has columns whose names differ in nothing but case: {', '.join(alike)}",
            expected="names that every engine can tell apart",
            do="rename one of them",
        )
    return opened


NOTHING_REJECTED: Final = pa.table(
    {"row": pa.array([], pa.int64()), "raw": pa.array([], pa.string()), "reason": pa.array([], pa.string())}
)


@dataclass(frozen=True)
class Log:
    """A log, looked at and ready to be read.

    Attributes:
        name: how it is called towards the user.
        files: its files.
        units: for each kind of file, the unit in which times that are numbers are read.
        rows: all rows that could be read, with the reason why one cannot be used, as far as the row itself tells:
            `file` int32 (a place in `files`), `row` int64, `user_id` and `item_id` text (null where empty),
            `event_type` int8 (a code, `DROPPED`, `CANCELLATION`, or null), `timestamp` int64 (microseconds since
            1970, UTC; null where it cannot be read), `content` int64, `reason` text or null; and where a file has
            them, `session_key` int64, `position` int64, `money` int64, `quantity` float64, and `of_item_…` text.
    """

    name: str
    files: Sequence[AnyFile]
    units: dict[EventSource, TimestampUnit]
    rows: ibis.Table

    @property
    def n_rows(self) -> int:
        """Number of rows, those that could not be read included."""
        return sum(file.n_rows for file in self.files)


def read_log(engine: Engine, config: IngestConfig, files: Sequence[LogFile]) -> Log:
    """Look at the log's columns, event types and units of time.

    Raises:
        InputError: the log is empty, lacks a column, or has event types that nobody mapped.
    """
    name = log_name(files)
    groups = [FileGroup(engine, config, group) for group in alike(files)]
    units = choose_units(config, [(group.source, group.unit_votes()) for group in groups])
    check_event_types([group.event_types() for group in groups], config, name)
    tables = [group.rows(units[group.source]) for group in groups]
    optional = {name: kind for table in tables for name, kind in table.schema().items() if name not in ALWAYS}
    return Log(name, files, units, reduce(lambda one, other: one.union(other), [uniform(t, optional) for t in tables]))


def log_name(files: Sequence[AnyFile]) -> str:
    """How the log is called towards the user.

    Raises:
        InputError: it has no row.
    """
    name = files[0].file.name if len(files) == 1 else f"the log ({len(files):,} files)"
    if not any(file.n_rows for file in files):
        raise InputError(f"{name} has no rows", expected="one row per event", do="check what wrote the file")
    return name


def choose_units(
    config: IngestConfig, votes: Sequence[tuple[EventSource, dict[str, int]]]
) -> dict[EventSource, TimestampUnit]:
    """The unit of times that are numbers, for each kind of file; `votes` as `FileGroup.unit_votes` counts them."""
    units: dict[EventSource, TimestampUnit] = {}
    for source in config.event_sources():
        counted: Counter[str] = Counter()
        for of_source, found in votes:
            if of_source == source:
                counted.update(found)
        units[source] = elected(counted) if source.timestamp_unit == "auto" else source.timestamp_unit
    return units


def uniform(table: ibis.Table, optional: Mapping[str, Any]) -> ibis.Table:
    """The table with all of the `optional` columns (name → type), null where it has none, in one order."""
    missing = {name: ibis.null(kind) for name, kind in optional.items() if name not in table.columns}
    return table.mutate(**missing).select([*ALWAYS, *optional])


ALWAYS: Final = (
    "file",
    "row",
    schema.USER_ID,
    schema.ITEM_ID,
    schema.EVENT_TYPE,
    schema.TIMESTAMP,
    CONTENT,
    "reason",
)


def alike(files: Sequence[LogFile]) -> list[list[LogFile]]:
    """The files in groups that can be read as one table: of one kind, with the same columns of the same types."""
    groups: dict[tuple[EventSource, str, tuple[str, ...]], list[LogFile]] = {}
    for file in files:
        kind = (file.source, file.schema.remove_metadata().to_string(), tuple(file.file.partition))
        groups.setdefault(kind, []).append(file)
    return list(groups.values())


class FileGroup:
    """Files of one kind and schema, as one table."""

    def __init__(self, engine: Engine, config: IngestConfig, files: Sequence[LogFile]) -> None:
        self._engine, self._config, self._files = engine, config, files
        self.source = files[0].source
        self._where = files[0].file.name if len(files) == 1 else f"{files[0].file.name} and {len(files) - 1} more"
        self.columns = files[0].columns
        mapping = self.source.columns
        said = {schema.EVENT_TYPE} if self.source.event_type else set()
        required = [name for name in schema.REQUIRED_EVENT_COLUMNS if name not in said]
        if said and mapping.event_type == schema.EVENT_TYPE:
            mapping = mapping.model_copy(update={schema.EVENT_TYPE: ""})
        self._names = find_columns(self._where, self.columns, mapping, "columns", required)
        for name in config.positive:
            require_column(self._where, self.columns, name, "positive")
        for name in config.bounds:
            require_column(self._where, self.columns, name, "bounds")
        if config.cancelled:
            require_column(self._where, self.columns, config.cancelled.column, "cancelled")
        with reading(self._where):
            self._table = self._read()
        if not is_time(self._time):
            raise InputError(
                f"{self._where}: the column {self._names[schema.TIMESTAMP]!r} is of type {self._time.type()}",
                expected="a timestamp, a date, ISO 8601 text or a number",
                do="map timestamp to another column in [ingest.columns], or convert this one",
            )

    def _read(self) -> ibis.Table:
        table = self._engine.read([file.path for file in self._files])
        place = {name: [file.file.partition[name] for file in self._files] for name in self._files[0].file.partition}
        places = pa.table(
            {
                "recsys_place": pa.array(range(len(self._files)), pa.int32()),
                "recsys_number": pa.array([file.number for file in self._files], pa.int32()),
                **{name: pa.array(values, pa.string()) for name, values in place.items() if name not in table.columns},
            }
        )
        if len(self._files) == 1:  # no need to join what is the same in all rows
            constants = {name: places[name][0].as_py() for name in places.column_names[1:]}
            return table.mutate(**{name: _literal(value) for name, value in constants.items()})
        known = self._engine.take(f"files_{self._files[0].number}", places)
        return table.inner_join(known, table[FILE] == known.recsys_place).drop("recsys_place")

    def _column(self, name: str) -> ibis.Value:
        return self._table[self._names[name]]

    @property
    def _time(self) -> ibis.Value:
        return self._column(schema.TIMESTAMP)

    def unit_votes(self) -> dict[str, int]:
        """How many rows are moments after 1973 in each unit; nothing where the unit is known."""
        if not votes(self._time, self.source.timestamp_unit) or self.source.timestamp_format:
            return {}
        with reading(self._where):
            found: dict[str, int] = self._table.aggregate(**unit_votes(self._time)).to_pyarrow().to_pylist()[0]
        return found

    def event_types(self) -> dict[str, int]:
        """The log's own names of event types, each with its number of rows."""
        if schema.EVENT_TYPE not in self._names:
            return {self.source.event_type: 1}
        with reading(self._where):
            named = self._table.select(name=as_text(self._column(schema.EVENT_TYPE)))
            return count_by(named.filter(named.name.notnull()), "name")

    def rows(self, unit: TimestampUnit) -> ibis.Table:
        """The files' rows, columns as in `Log.rows`."""
        table, config, names = self._table, self._config, self._names
        time = self._time
        codes = event_type_codes(config)
        if schema.EVENT_TYPE in names:
            event_type = as_text(self._column(schema.EVENT_TYPE)).cases(*codes.items()).cast("int8")
        else:
            event_type = ibis.literal(codes[self.source.event_type], "int8")
        if config.cancelled:
            marked = table[config.cancelled.column].cast("string").re_search(config.cancelled.pattern)
            event_type = marked.fill_null(False).ifelse(ibis.literal(CANCELLATION, "int8"), event_type)
        read = table.mutate(
            recsys_user=as_id(self._column(schema.USER_ID)),
            recsys_item=as_id(self._column(schema.ITEM_ID)),
            recsys_type=event_type,
            recsys_time=as_micros(
                self._engine, time, unit, layout=self.source.timestamp_format, zone=self.source.timezone
            ),
        )
        return read.select(
            file=read.recsys_number,
            row=read[ROW],
            user_id=read.recsys_user,
            item_id=read.recsys_item,
            event_type=read.recsys_type,
            timestamp=read.recsys_time,
            content=self._engine.content(ibis.struct({name: read[name] for name in self.columns})),
            reason=ibis.cases(*((condition, reason) for reason, condition in self._rules(read))),
            **self._optional(read),
        )

    def optional_columns(self) -> dict[str, str]:
        """The columns beside `ALWAYS` that rows of any file of this config may have, with their types."""
        named = [SESSION_KEY, schema.POSITION, MONEY, QUANTITY]
        kinds = {name: "float64" if name == QUANTITY else "int64" for name in named}
        if self._config.items_from_events:
            own = [name for name in ItemColumns.model_fields if name != schema.ITEM_ID]
            kinds |= {f"{FOR_CATALOGUE}{name}": "string" for name in own}
        return kinds

    def _rules(self, read: ibis.Table) -> list[tuple[str, ibis.Value]]:
        """Reasons that a row gives by itself, the first that applies counts."""
        config = self._config
        time = read[self._names[schema.TIMESTAMP]]
        no_time = time.isnull() | (time == "") if time.type().is_string() else time.isnull()
        # What leaves a purchase untouched by rules on numbers: a cancellation has a negative quantity by nature.
        is_event = read.recsys_type.fill_null(0) != CANCELLATION
        first = 0 if config.not_before is None else to_micros(config.not_before)
        rules = [
            ("missing_user_id", read.recsys_user.isnull()),
            ("missing_item_id", read.recsys_item.isnull()),
            (MISSING_EVENT_TYPE, read.recsys_type.isnull()),
            ("missing_timestamp", no_time),
            ("invalid_timestamp", read.recsys_time.isnull() | (read.recsys_time <= 0)),
            ("dropped_event_type", read.recsys_type == DROPPED),
        ]
        if first:
            rules.append(("too_early", read.recsys_time < first))
        rules += [("non_merchandise", read.recsys_item.re_search(pattern)) for pattern in config.non_merchandise]
        rules += [
            (f"not_positive_{name}", is_event & ~(as_number(read[name]) > 0).fill_null(False))
            for name in config.positive
        ]
        for name, bounds in config.bounds.items():
            number = as_number(read[name])
            inside = number.notnull()
            if bounds.min is not None:
                inside &= number >= bounds.min
            if bounds.max is not None:
                inside &= number <= bounds.max
            rules.append((f"out_of_bounds_{name}", is_event & ~inside.fill_null(False)))
        return rules

    def _optional(self, read: ibis.Table) -> dict[str, ibis.Value]:
        names, config = self._names, self._config
        optional: dict[str, ibis.Value] = {}
        if schema.SESSION_ID in names:
            optional[SESSION_KEY] = self._engine.number_of(as_id(read[names[schema.SESSION_ID]]))
        if schema.POSITION in names:
            optional[schema.POSITION] = as_number(read[names[schema.POSITION]]).try_cast("int64")
        number = {name: as_number(read[names[name]]) for name in ("value", "price", QUANTITY) if name in names}
        value = number.get("value")
        if "price" in number and QUANTITY in number:
            product = number["price"] * number[QUANTITY]
            value = product if value is None else ibis.coalesce(value, product)
        if value is not None:
            sound = (value > -_MONEY_LIMIT) & (value < _MONEY_LIMIT)
            optional[MONEY] = ibis.cases((sound, (value * 10_000).round().cast("int64")))
        if QUANTITY in number:
            optional[QUANTITY] = number[QUANTITY]
        if config.items_from_events:
            for name, own in config.item_columns:
                if own in self.columns and name != schema.ITEM_ID:
                    optional[f"{FOR_CATALOGUE}{name}"] = as_text(read[own])
        return optional


def _literal(value: int | str) -> ibis.Value:
    return ibis.literal(value, "int32" if isinstance(value, int) else "string")


def event_types(config: IngestConfig) -> tuple[str, ...]:
    """The dataset's event types; an event's code is a place in this tuple."""
    kept = (name for name, rule in config.event_types.items() if rule == "keep" and name not in schema.EVENT_TYPES)
    return (*schema.EVENT_TYPES, *kept)


def event_type_codes(config: IngestConfig) -> dict[str, int]:
    """Code of each event type that the log may have, `DROPPED` and `CANCELLATION` included."""
    names = event_types(config)
    codes = {name: names.index(name) for name in schema.EVENT_TYPES}
    for name, rule in config.event_types.items():
        if rule in ("drop", "cancel"):
            codes[name] = DROPPED if rule == "drop" else CANCELLATION
        else:
            codes[name] = names.index(name if rule == "keep" else rule)
    return codes


def check_event_types(found: Sequence[dict[str, int]], config: IngestConfig, where: str, most: int = 10) -> None:
    """Check that the config knows all event types, so that none is lost by mistake.

    Args:
        found: number of rows by name, for each part of the log.
        config: what knows them.
        where: the log, for the message.
        most: how many names the message lists.

    Raises:
        InputError: it does not.
    """
    codes = event_type_codes(config)
    unknown: dict[str, int] = {}
    for counts in found:
        for name, n in counts.items():
            if name not in codes:
                unknown[name] = unknown.get(name, 0) + n
    if unknown:
        names = sorted(unknown, key=lambda name: (-unknown[name], name))
        listed = ", ".join(f"{name!r} ({unknown[name]:,} rows)" for name in names[:most])
        lines = [f'{json.dumps(name, ensure_ascii=False)} = "keep"' for name in names[:most]]
        raise InputError(
            f"{where} has event types that the config does not know: {listed}{', …' if len(names) > most else ''}",
            expected=", ".join(codes),
            do="\n".join(
                [
                    'say what each is: "view", "cart", "purchase", "keep", "drop" or "cancel"\n[ingest.event_types]',
                    *lines,
                ]
            ),
        )
