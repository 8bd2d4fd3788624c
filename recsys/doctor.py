"""What this machine offers to recsys, for `recsys doctor` and for bug reports."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from recsys import __version__
from recsys.errors import InputError
from recsys.runtime import Runtime

_PACKAGES = ("torch", "transformers", "ibis-framework", "duckdb", "pyarrow", "faiss-cpu", "numpy", "pandas", "pydantic")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        value: what was found, in words.
        ok: whether recsys can work with it.
    """

    name: str
    value: str
    ok: bool = True


def examine(folder: Path = Path()) -> Iterator[Finding]:
    """Look at versions, processor, memory, accelerator, precision, free disk and the bundled encoder.

    Args:
        folder: where runs are going to be written.
    """
    yield Finding("recsys", __version__)
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in _PACKAGES:
        yield _installed(package)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("threads", str(threads))
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield Finding("memory", f"{memory / 2**30:.1f} GiB", ok=memory >= 4 * 2**30)
    free = shutil.disk_usage(folder).free
    yield Finding("free disk", f"{free / 2**30:.1f} GiB in {folder.resolve()}", ok=free >= 2**30)
    yield from _accelerator()
    yield _encoder()


def _installed(package: str) -> Finding:
    try:
        return Finding(package, version(package))
    except PackageNotFoundError:
        return Finding(package, "not installed", ok=False)


def _accelerator() -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        return  # said above
    device = Runtime().torch_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no CUDA device: models train on the CPU"
    yield Finding("device", f"{device} ({name})")
    in_hardware = Runtime().compute_dtype() is torch.bfloat16
    yield Finding("precision", "bf16, in hardware" if in_hardware else "fp32 (no bf16 in hardware)")


def _encoder() -> Finding:
    from recsys.text import BUNDLED, encoder_path

    try:
        weights = Path(encoder_path(BUNDLED)) / "model.safetensors"
    except InputError as error:
        return Finding("encoder", error.came, ok=False)
    return Finding("encoder", f"{BUNDLED}, {weights.stat().st_size / 2**20:.0f} MiB of weights in {weights.parent}")
