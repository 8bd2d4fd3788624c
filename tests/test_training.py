"""What training loops share."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from recsys.training import release_memory, warmup_cosine


def resident() -> float:
    """Megabytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed, and can be told not to")
def test_memory_between_kept_pieces_is_given_back() -> None:
    # Below the size that gets a mapping of its own, with something kept after each piece, as parameters are.
    pieces, kept = [], []
    for _ in range(4000):
        pieces.append(torch.ones(20_000))
        kept.append(torch.ones(300))
    del pieces
    before = resident()
    release_memory()
    assert resident() < before - 100  # of 320, some of which other tests may have given back or taken
    assert len(kept) == 4000


def test_the_rate_rises_to_its_peak_and_falls_to_the_floor() -> None:
    rates = [warmup_cosine(step, total=100, warmup=10, floor=0.1) for step in range(101)]
    assert rates[9] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.1)
