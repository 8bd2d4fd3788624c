"""What training loops share."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from recsys.training import warmup_cosine

# Below the size that gets a mapping of its own, with something kept after each piece, as parameters are.
PIECES = """
from pathlib import Path
import torch
from recsys.training import release_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

pieces, kept = [], []
for _ in range(4000):
    pieces.append(torch.ones(20_000))
    kept.append(torch.ones(300))
del pieces
before = resident()
release_memory()
print(before, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed, and can be told not to")
def test_memory_between_kept_pieces_is_given_back() -> None:
    """In a process of its own: what others have allocated and freed decides what is left to give back."""
    answer = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True, check=True).stdout
    before, after = map(float, answer.split())
    assert after < before - 200  # megabytes, of 320


def test_the_rate_rises_to_its_peak_and_falls_to_the_floor() -> None:
    rates = [warmup_cosine(step, total=100, warmup=10, floor=0.1) for step in range(101)]
    assert rates[9] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.1)
