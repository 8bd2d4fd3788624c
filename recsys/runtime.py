"""How a stage runs, as opposed to what it computes: one frozen object that every stage takes."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from recsys import distributed

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Runtime:
    """Options of a run that are not part of any one stage.

    Attributes:
        seed: decides every random choice; part of each artifact's fingerprint.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1"; does not change what is computed.
        precision: "auto" (bf16 where the hardware has it), "bf16" or "fp32".
        threads: CPU threads for torch, DuckDB and FAISS; 0 takes all.
        memory_limit: how much DuckDB may hold before it spills to disk, e.g. "2GB".
        progress: whether long work draws a progress bar (only on a terminal).
    """

    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0
    memory_limit: str = "2GB"
    progress: bool = True

    def track(
        self, work: Iterable[T], *, total: int | None = None, label: str, unit: str = "it", initial: int = 0
    ) -> Iterator[T]:
        """Iterate over `work` under a progress bar on stderr (none when stderr is no terminal)."""
        from tqdm import tqdm

        disable = None if self.progress and not distributed.rank() else True
        yield from tqdm(work, total=total, desc=label, unit=unit, initial=initial, disable=disable, leave=False)

    def torch_device(self) -> torch.device:
        """The device to compute on; sets torch's thread count as a side effect."""
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)
        if self.device == "auto":
            # Processes that work together have a GPU each.
            own = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
            return torch.device(own if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def compute_dtype(self) -> torch.dtype:
        """bfloat16 where the device multiplies it in hardware, else float32."""
        import torch

        if self.precision == "fp32":
            return torch.float32
        if self.precision == "bf16":
            return torch.bfloat16
        if self.torch_device().type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        return torch.bfloat16 if has_bf16 else torch.float32


def ahead(work: Iterable[T], *, depth: int = 2) -> Iterator[T]:
    """Iterate over `work` while a thread beside computes up to `depth` of its next results.

    It pays where both sides spend their time outside of Python: in numpy, Arrow or a data engine.
    """
    results: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(entry: tuple[bool, Any]) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                results.put(entry, timeout=0.1)
                return

    def compute() -> None:
        try:
            for result in work:
                put((True, result))
                if stopped.is_set():
                    return
            put((False, None))
        except BaseException as error:  # raised again where the results are wanted
            put((False, error))

    thread = threading.Thread(target=compute, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, result = results.get()
            if more:
                yield result
            elif result is None:
                return
            else:
                raise result
    finally:
        stopped.set()
        thread.join()
