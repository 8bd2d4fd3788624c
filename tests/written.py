"""Sequences, on disk and in memory, for tests that make them by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recsys.ingest.dataset import Sequences
from recsys.ingest.histories import Histories
from recsys.ingest.sequences import write_parts

Rows = Sequence[Sequence[int]]


def write_sequences(
    folder: Path,
    items: Rows,
    times: Rows,
    train_end: Sequence[int],
    valid_end: Sequence[int],
    event_types: Rows | None = None,
) -> None:
    """Write the parts of a dataset: one row per user, oldest event first; all events are views by default."""
    lengths = [len(row) for row in items]
    flat = [event for row in items for event in row]
    types = [event for row in event_types for event in row] if event_types else [0] * len(flat)
    write_parts(
        folder,
        [
            Histories(
                user_idx=np.arange(len(lengths), dtype=np.int32),
                offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
                item_idx=np.array(flat, dtype=np.int32),
                event_type=np.array(types, dtype=np.int8),
                timestamp=np.array([time for row in times for time in row], dtype=np.int64),
                session=np.zeros(len(flat), dtype=np.int32),
                money=None,
                train_end=np.array(train_end, dtype=np.int32),
                valid_end=np.array(valid_end, dtype=np.int32),
            )
        ],
    )


def numbered(lengths: list[int]) -> Sequences:
    """Users whose events are numbered through: item_idx says which event it is."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(offsets[-1])
    return Sequences(
        offsets, np.arange(n, dtype=np.int32), np.zeros(n, np.int8), np.zeros(n, np.int64), np.zeros(n, np.int32)
    )
