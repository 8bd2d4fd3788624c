"""What the log says of every item at one moment: how much it is taken, when last, when first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys.ingest.dataset import Dataset, Part, Sequences

DAY: Final = 86_400_000_000  # microseconds
NEVER: Final = np.iinfo(np.int64).min

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Snapshot:
    """Events before one moment, by item.

    Attributes:
        now: the moment, microseconds since 1970, UTC.
        events: [n_items], all of them.
        recent: [n_windows, n_items], those of the last so many days.
        last: [n_items], time of the latest, `NEVER` without one.
        first: [n_items], time of the earliest, `NEVER` without one.
    """

    now: int
    events: Counts
    recent: Counts
    last: Counts
    first: Counts

    @classmethod
    def of(cls, events: Sequences, n_items: int, windows: Sequence[int], *, now: int | None = None) -> Snapshot:
        """Count.

        Args:
            events: any histories; events at `now` and later are left out.
            n_items: size of the catalogue.
            windows: days.
            now: the moment; by default the one after the last event.
        """
        item, time = events.item_idx, events.timestamp
        now = int(time.max(initial=-1)) + 1 if now is None else now
        past = time < now
        item, time = item[past], time[past]
        last, first = np.full(n_items, NEVER), np.full(n_items, np.iinfo(np.int64).max)
        np.maximum.at(last, item, time)
        np.minimum.at(first, item, time)
        recent = [np.bincount(item[time >= now - days * DAY], minlength=n_items) for days in windows]
        return cls(
            now,
            np.bincount(item, minlength=n_items),
            np.stack(recent),
            last,
            np.where(last == NEVER, NEVER, first),
        )

    @classmethod
    def before(cls, dataset: Dataset, part: Part, windows: Sequence[int]) -> Snapshot:
        """At the moment when a part of the split begins.

        With the temporal protocol that is all that came before it. With leave-one-out there is no such moment: the
        training part is all that is known, and its end the moment.
        """
        until = dataset.manifest["info"].get("train_until" if part == "valid" else "valid_until")
        if until is None:
            return cls.of(dataset.train, dataset.n_items, windows)
        return cls.of(dataset.sequences, dataset.n_items, windows, now=until)

    def renumbered(self, place: npt.NDArray[np.int32]) -> Snapshot:
        """The same moment over another catalogue.

        Args:
            place: [n_items of that catalogue], what each item is numbered here; −1 has no event.
        """
        there = place >= 0
        return Snapshot(
            self.now,
            np.where(there, self.events[place], 0),
            np.where(there, self.recent[:, place], 0),
            np.where(there, self.last[place], NEVER),
            np.where(there, self.first[place], NEVER),
        )
