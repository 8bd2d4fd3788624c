"""From a shop's columns to the contract's: finding them by name, and reading ids, texts and times of any type."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import ibis
from pydantic import BaseModel

from recsys import schema
from recsys.errors import InputError
from recsys.ingest.config import TimestampUnit

if TYPE_CHECKING:
    from recsys.ingest.engine import Engine

_PER_MICRO: Final = {"s": 1_000_000, "ms": 1_000, "us": 1}
_YEAR_1973, _YEAR_5138, _YEAR_9999 = 10**8, 10**11, 253_402_300_799  # seconds since 1970
_EPOCH: Final = "1970-01-01T00:00:00"


def find_columns(
    where: str, columns: Sequence[str], mapping: BaseModel, section: str, required: Collection[str]
) -> dict[str, str]:
    """Contract name → the file's own name, for all columns of the contract that the file has.

    Args:
        where: the file, for the message.
        columns: the file's columns.
        mapping: contract name = own name, one field each; an empty own name is never looked for.
        section: the config's section of the mapping, for the message.
        required: contract names without which there is no going on.

    Raises:
        InputError: a required column is missing, or one whose own name was given.
    """
    wanted = {name: str(own) for name, own in mapping}
    missing = {
        name: own for name, own in wanted.items() if own not in columns and (name in required or own not in ("", name))
    }
    if missing:
        listed = ", ".join(repr(own) if own == name else f"{own!r} (as {name})" for name, own in missing.items())
        lines = [f"{name} = {json.dumps(_nearest(own, columns), ensure_ascii=False)}" for name, own in missing.items()]
        raise InputError(
            f"{where} has no column {listed}; its columns are {', '.join(columns)}",
            expected=f"columns {', '.join(required)}, under these names or mapped to them",
            do="\n".join([f"name the file's own columns in the config:\n[ingest.{section}]", *lines]),
        )
    return {name: own for name, own in wanted.items() if own in columns}


def require_column(where: str, columns: Sequence[str], name: str, key: str) -> None:
    """Check that the file has the column which the config's `key` names.

    Raises:
        InputError: it has not.
    """
    if name not in columns:
        raise InputError(
            f"{where} has no column {name!r}, which ingest.{key} names; its columns are {', '.join(columns)}",
            expected="the file's own name of a column",
            do=f"correct ingest.{key}",
        )


def _nearest(name: str, columns: Sequence[str]) -> str:
    by_folded = {column.casefold(): column for column in columns}
    near = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return by_folded[near[0]] if near else "…"


def as_id(column: ibis.Value) -> ibis.Value:
    """An id as text, null where it is empty; floats as the integers that they were before pandas met a null."""
    if column.type().is_floating():
        whole = column.try_cast("int64")
        column = ibis.cases((whole.cast("float64") == column, whole))
    return column.cast("string").nullif("")


def as_text(column: ibis.Value) -> ibis.Value:
    """A text without surrounding blanks, null where it is empty; a list's elements as the levels of a category."""
    if column.type().is_array():
        column = column.map(lambda element: element.cast("string")).join(schema.CATEGORY_SEPARATOR)
    return column.cast("string").strip().nullif("")


def is_time(column: ibis.Value) -> bool:
    """Whether `as_micros` can read times of the column's type."""
    kind = column.type()
    return bool(kind.is_numeric() or kind.is_timestamp() or kind.is_date() or kind.is_string() or kind.is_null())


def unit_votes(column: ibis.Value) -> dict[str, ibis.Value]:
    """How many of a column's numbers (or texts that are numbers) are moments after 1973 in each unit.

    Each unit covers the years 1973 to 5138 without touching the next, so every row votes for one; a few rows of
    nonsense do not outvote the log.
    """
    number = column.try_cast("float64")
    return {
        name: ((number >= float(_YEAR_1973 * scale)) & (number < float(_YEAR_5138 * scale)))
        .cast("int64")
        .sum()
        .fill_null(0)
        for name, scale in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9))
    }


def votes(column: ibis.Value, unit: TimestampUnit) -> bool:
    """Whether the unit of a column's times has to be looked up in the data."""
    return unit == "auto" and bool(column.type().is_numeric() or column.type().is_string())


def elected(votes: Mapping[str, int]) -> TimestampUnit:
    """The unit with most votes; seconds where there is none."""
    units: tuple[TimestampUnit, ...] = ("s", "ms", "us", "ns")
    return max(units, key=lambda unit: votes.get(unit, 0))


# What both engines read alike: a date, maybe a time of day, maybe a zone.
_ISO_8601: Final = r"^\d{4}-\d{1,2}-\d{1,2}([T ]\d{1,2}:\d{2}(:\d{2}(\.\d{1,9})?)?)?( ?(Z|UTC|[+-]\d{2}(:?\d{2})?))?$"
_ZONE: Final = r"(Z|UTC|:\d{2}(\.\d{1,9})? ?[+-]\d{2}(:?\d{2})?)$"


def as_micros(
    engine: Engine, column: ibis.Value, unit: TimestampUnit, *, layout: str = "", zone: str = "UTC"
) -> ibis.Value:
    """A time as int64 microseconds since 1970 in UTC, null where it cannot be read or lies beyond the year 9999.

    Args:
        engine: what the column belongs to.
        column: numbers in `unit`, timestamps, dates, or text: in `layout` if one is given, else ISO 8601 or a number.
        unit: as `time_unit` gives it.
        layout: as in strptime.
        zone: time zone of timestamps and texts that name none.
    """
    kind = column.type()
    if kind.is_numeric():
        return _from_number(column, unit)
    if not kind.is_string():
        # A timestamp with a zone names a moment; one without, or a date, is the zone's local time.
        named = bool(kind.is_timestamp() and kind.timezone)
        moment = column.try_cast("timestamp").cast("timestamp")
        return _since_1970(moment if named or zone == "UTC" else engine.to_utc(moment, zone))
    text = column.strip()
    if layout:
        moment = engine.read_time(text, layout)
        return _since_1970(moment if zone == "UTC" else engine.to_utc(moment, zone))
    iso = ibis.cases((text.re_search(_ISO_8601), text))
    # Text may name a zone. Once in UTC, arithmetic without a zone is many times faster.
    moment = iso.try_cast("timestamp('UTC')").cast("timestamp")
    if zone != "UTC":
        moment = text.re_search(_ZONE).ifelse(moment, engine.to_utc(moment, zone))
    numbers = (_from_number(text.try_cast(kind), unit) for kind in ("int64", "float64"))
    return ibis.coalesce(_since_1970(moment), *numbers)


def _since_1970(moment: ibis.Value) -> ibis.Value:
    return moment.delta(ibis.timestamp(_EPOCH), unit="microsecond")


def _from_number(column: ibis.Value, unit: TimestampUnit) -> ibis.Value:
    kind = column.type()
    number = column if kind.is_floating() else column.try_cast("int64")
    if unit == "ns":
        limit = float(_YEAR_9999 * 10**9) if kind.is_floating() else 2**63 - 1
        # Remainder first: a division of the whole number would be in float64, which has too few digits for it.
        micros = (number - number % 1000) / 1000
    else:
        limit = _YEAR_9999 * 1_000_000 // _PER_MICRO[unit]
        micros = number * _PER_MICRO[unit]
    if micros.type().is_floating():
        micros = micros.round()
    # The bounds come first and the case guards the arithmetic, which would stop at an overflow.
    return ibis.cases(((number >= -limit) & (number <= limit), micros.cast("int64")))


def as_number(column: ibis.Value) -> ibis.Value:
    """A float64, null where it is none or not finite."""
    number = column.try_cast("float64")
    return ibis.cases((~(number.isnan() | number.isinf()), number))
