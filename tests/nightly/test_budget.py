"""What a stage takes, and that it is stopped."""

from __future__ import annotations

import signal
import sys
import threading
import time

import pytest

from recsys.nightly.budget import BudgetError, to_bytes, within
from recsys.nightly.config import StageBudget


def busy(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_time_and_memory_are_measured() -> None:
    with within(StageBudget(), "small") as small:
        busy(0.05)
    with within(StageBudget(), "large") as large:
        block = bytearray(200 << 20)
        del block
    assert 0.05 <= small.seconds < 2
    if sys.platform == "linux":  # elsewhere the peak is that of the whole process
        assert 150 << 20 < large.peak_bytes - small.peak_bytes < 250 << 20
        with within(StageBudget(), "after") as after:
            pass
        assert after.peak_bytes < large.peak_bytes - (100 << 20)


def test_what_takes_too_long_is_stopped_and_the_clock_goes_on_as_before() -> None:
    before, started = signal.getsignal(signal.SIGALRM), time.monotonic()
    too_long = pytest.raises(BudgetError, match=r"slow has taken .*\n.*nightly\.budgets\.slow\.minutes")
    with too_long, within(StageBudget(minutes=0.001), "slow") as usage:
        busy(30)
    assert time.monotonic() - started < 5 and 0.05 < usage.seconds < 5
    assert signal.getsignal(signal.SIGALRM) == before and signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_what_holds_too_much_is_stopped() -> None:
    too_much = pytest.raises(BudgetError, match=r"large holds .* GiB of memory, and may hold 50MB")
    with too_much, within(StageBudget(memory="50MB"), "large"):
        block = bytearray(100 << 20)
        busy(30)
        del block


def test_what_stays_within_its_budget_is_let_be() -> None:
    with within(StageBudget(minutes=1, memory="1TB"), "small") as usage:
        busy(0.6)
    assert usage.seconds >= 0.6 and usage.peak_bytes > 0


def test_outside_of_the_main_thread_it_is_refused_at_its_end() -> None:
    """There no signal arrives."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            with within(StageBudget(minutes=0.001), "slow"):
                busy(0.2)
        except BudgetError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(raised) == 1


def test_an_error_inside_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="its own"), within(StageBudget(minutes=0.0001), "wrong"):
        raise ValueError("its own")


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 << 30), ("512 MiB", 512 << 20), ("1.5KB", 1536), ("1TB", 1 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert to_bytes(text) == size
