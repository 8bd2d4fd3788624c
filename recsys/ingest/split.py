"""Where training ends and where validation ends."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import ibis

from recsys.errors import InputError
from recsys.ingest.config import IngestConfig

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Cuts:
    """How sequences are split.

    Attributes:
        train_until: temporal: an event trains if it is earlier than this (microseconds since 1970, UTC).
        valid_until: temporal: an event that does not train validates if it is earlier than this; the rest tests.
            Both are None for leave-one-out: with three events or more, a user's last tests and the one before it
            validates.
    """

    train_until: int | None = None
    valid_until: int | None = None

    def trains(self, events: ibis.Table) -> ibis.Value:
        """Whether an event may be looked at when the training data is chosen."""
        return ibis.literal(True) if self.train_until is None else events.timestamp < self.train_until

    def ends(self, events: ibis.Table) -> dict[str, ibis.Value]:
        """Aggregates over one user's events: `train_end` and `valid_end`, as in `schema.SPLITS`."""
        if self.train_until is None:
            n = events.count()
            train_end, valid_end = ((n >= 3).ifelse(n - held_out, n) for held_out in (2, 1))
        else:
            train_end, valid_end = (
                (events.timestamp < until).cast("int64").sum() for until in (self.train_until, self.valid_until)
            )
        return {"train_end": train_end, "valid_end": valid_end}


def find_cuts(events: ibis.Table, config: IngestConfig) -> Cuts:
    """The cuts that the config asks for.

    Raises:
        InputError: they leave no event to train on.
    """
    if config.protocol == "leave_one_out":
        return Cuts()
    bounds = events.aggregate(first=events.timestamp.min(), last=events.timestamp.max()).to_pyarrow().to_pylist()[0]
    first, last = bounds["first"], bounds["last"]
    if config.train_until is not None and config.valid_until is not None:
        train_until, valid_until = to_micros(config.train_until), to_micros(config.valid_until)
    else:
        end = to_micros(config.as_of) if config.as_of else last
        valid_until = end - _days(config.test_days)
        train_until = valid_until - _days(config.valid_days)
    if first >= train_until:
        raise InputError(
            f"the temporal split leaves no event to train on: the log runs from {as_text(first)} to {as_text(last)}, "
            f"training ends at {as_text(train_until)}",
            expected="events before the validation and test windows",
            do="lower ingest.test_days and ingest.valid_days, or set ingest.train_until and ingest.valid_until",
        )
    return Cuts(train_until, valid_until)


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970, UTC."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def as_text(micros: int) -> str:
    """A moment in ISO 8601."""
    return (_EPOCH + timedelta(microseconds=micros)).isoformat()


def _days(days: float) -> int:
    return round(timedelta(days=days) / timedelta(microseconds=1))
