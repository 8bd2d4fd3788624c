"""What a stage takes of time and memory, and a stop where that is more than it may."""

from __future__ import annotations

import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from recsys.errors import RecsysError
from recsys.nightly.config import StageBudget

LOOK_EVERY: Final = 0.25  # seconds
_PROC: Final = Path("/proc/self")
_PAGE: Final = resource.getpagesize()
_UNITS: Final = {"K": 10, "M": 20, "G": 30, "T": 40}


class BudgetError(RecsysError):
    """A stage took more time or memory than its budget."""


@dataclass
class Usage:
    """What a stage took.

    Attributes:
        seconds: by the clock on the wall.
        peak_bytes: the most memory that the process held during it. Where the system cannot tell (it is not Linux),
            the most that the process has ever held.
    """

    seconds: float = 0.0
    peak_bytes: int = 0


@contextmanager
def within(budget: StageBudget, stage: str) -> Iterator[Usage]:
    """Measure the block, and stop it where it takes more than its budget.

    It is stopped between two steps of Python: a single long call into a library is waited for. Outside of a process's
    main thread nothing can be stopped; there the block ends and is then refused.

    Args:
        budget: what it may take.
        stage: its name, for the message.

    Yields:
        The usage, filled in when the block ends, in whatever way.

    Raises:
        BudgetError: it took more.
    """
    usage, started = Usage(), time.monotonic()
    most = None if budget.memory is None else to_bytes(budget.memory)

    def look() -> None:
        minutes = (time.monotonic() - started) / 60
        if budget.minutes is not None and minutes > budget.minutes:
            raise BudgetError(
                f"{stage} has taken {minutes:.1f} minutes, and may take {budget.minutes:g}\n"
                f"  to do:    raise nightly.budgets.{stage}.minutes, or make the stage smaller"
            )
        if most is not None and (held := _held()) > most:
            raise BudgetError(
                f"{stage} holds {held / 2**30:.2f} GiB of memory, and may hold {budget.memory}\n"
                f"  to do:    raise nightly.budgets.{stage}.memory, or make the stage smaller"
            )

    watched = budget.minutes is not None or most is not None
    _reset_peak()
    with _every(LOOK_EVERY, look) if watched and threading.current_thread() is threading.main_thread() else _never():
        try:
            yield usage
        finally:
            usage.seconds, usage.peak_bytes = time.monotonic() - started, _peak()
    if watched:
        look()


def to_bytes(text: str) -> int:
    """A size such as "2GB" or "512 MiB"; both count by 1024, as `memory_limit` does where it is enforced."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])i?B", text)
    assert found, text
    return round(float(found[1]) * (1 << _UNITS[found[2]]))


@contextmanager
def _every(seconds: float, look: object) -> Iterator[None]:
    def handler(signum: int, frame: FrameType | None) -> None:
        assert callable(look)
        look()

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _never() -> Iterator[None]:
    yield


def _held() -> int:
    """Bytes of memory that the process holds now."""
    try:
        return int((_PROC / "statm").read_text().split()[1]) * _PAGE
    except OSError:
        return _peak()


def _reset_peak() -> None:
    """Let the peak count from now on, where Linux allows it."""
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int:
    try:
        status = (_PROC / "status").read_text()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0
