"""Faults of the machine: which may pass by themselves, and what they leave broken."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

# Faults of disk and network that may be gone in a minute. A full disk is none, nor is what cannot be read.
_TRANSIENT: Final = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.EIO,
        errno.ENETUNREACH,
        errno.ENOLCK,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)


def damaged(staged: Path) -> Iterator[Path]:
    """The folders of kept files that a power cut or a full disk left broken."""
    for folder in sorted(staged.iterdir()) if staged.is_dir() else []:
        if folder.is_dir() and not folder.name.startswith("."):
            try:
                json.loads((folder / "look.json").read_text())
                for file in folder.glob("*.parquet"):
                    pq.read_metadata(file)
            except Exception:  # whatever a broken file makes of its reader
                yield folder


def is_transient(error: BaseException | None) -> bool:
    """Whether a fault of disk or network is behind an error that may be gone when it is tried again."""
    words = tuple(os.strerror(code) for code in _TRANSIENT)
    while error is not None:
        if getattr(error, "errno", None) in _TRANSIENT or isinstance(error, ConnectionError | TimeoutError):
            return True
        if not isinstance(error, MemoryError) and any(word in str(error) for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False
