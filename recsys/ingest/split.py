"""Where training ends and where validation ends."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import ibis
import numpy as np
import numpy.typing as npt

from recsys.errors import InputError
from recsys.ingest.config import IngestConfig

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Cuts:
    """How histories are split into the parts 0 (training), 1 (validation) and 2 (test).

    Attributes:
        train_until: temporal: an event trains if it is earlier than this (microseconds since 1970, UTC).
        valid_until: temporal: an event that does not train validates if it is earlier than this; the rest tests.
            Both are None for leave-one-out: with three events or more, a user's last tests and the one before it
            validates.
        last: time of the last event.
    """

    train_until: int | None
    valid_until: int | None
    last: int

    def part(self, timestamp: ibis.Value) -> ibis.Value:
        """The part of an event. Leave-one-out has no moment that parts the log: all of it is part 0."""
        if self.train_until is None:
            return ibis.literal(0, "int8")
        return ibis.cases((timestamp < self.train_until, 0), (timestamp < self.valid_until, 1), else_=2).cast("int8")

    def ends(
        self, timestamp: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """How many of each user's events come before the end of training, and before the end of validation.

        Args:
            timestamp: of all events, the users' one after the other, each oldest first, [n_events].
            offsets: where each user's begin, and the end, [n_users + 1].
        """
        n_events = np.diff(offsets)
        if self.train_until is None or self.valid_until is None:
            train_end, valid_end = (np.where(n_events >= 3, n_events - held_out, n_events) for held_out in (2, 1))
        else:
            train_end, valid_end = (
                np.add.reduceat((timestamp < until).astype(np.int32), offsets[:-1])
                for until in (self.train_until, self.valid_until)
            )
        return train_end.astype(np.int32), valid_end.astype(np.int32)

    @property
    def moments(self) -> tuple[int, int, int]:
        """Up to when each part is known, exclusive; for leave-one-out all of them up to the log's end."""
        end = self.last + 1
        if self.train_until is None or self.valid_until is None:
            return end, end, end
        return self.train_until, self.valid_until, max(end, self.valid_until)


def find_cuts(events: ibis.Table, config: IngestConfig) -> Cuts:
    """The cuts that the config asks for.

    Raises:
        InputError: they leave no event to train on.
    """
    bounds = events.aggregate(first=events.timestamp.min(), last=events.timestamp.max()).to_pyarrow().to_pylist()[0]
    first, last = bounds["first"], bounds["last"]
    if config.protocol == "leave_one_out":
        return Cuts(None, None, last)
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
    return Cuts(train_until, valid_until, last)


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970, UTC."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def as_text(micros: int) -> str:
    """A moment in ISO 8601."""
    return (_EPOCH + timedelta(microseconds=micros)).isoformat()


def _days(days: float) -> int:
    return round(timedelta(days=days) / timedelta(microseconds=1))
