"""Several processes that do one piece of work together, as `torchrun` starts them; one process alone needs none of it.

`torchrun --nproc-per-node 2 -m recsys teach -c shop.toml` runs the same program in every process. All read the same
folder; the first one writes. A step's batch is shared out, and the gradients are summed before the weights move, which
is data parallelism as in Li et al., "PyTorch Distributed", VLDB 2020, without overlap: these models are small.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch


_alone = False  # inside of `first_alone`


def world_size() -> int:
    """How many processes work together."""
    return 1 if _alone else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return 0 if _alone else int(os.environ.get("RANK", "0"))


def barrier() -> None:
    """Wait for all."""
    if world_size() > 1:
        _join()
        from torch import distributed

        distributed.barrier()


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process goes through the block alone; then the others do, and find what it made.

    Inside, each is by itself: whatever the block builds waits for nobody.
    """
    global _alone
    within, first = _alone, not rank()
    if not first:
        barrier()
    _alone = True
    try:
        yield
    finally:
        _alone = within
    if first:
        barrier()


def from_first(value: float) -> float:
    """What the first process says, so that all decide alike."""
    return _reduced([float(value) if rank() == 0 else 0.0])[0]


def total(*values: float) -> list[float]:
    """Sums over all processes."""
    return _reduced(values)


def part_of(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """This process's share of some rows."""
    return rows[rank() :: world_size()]


def broadcast_parameters(model: torch.nn.Module) -> None:
    """Take the first process's weights and buffers."""
    if world_size() > 1:
        _join()
        from torch import distributed

        for tensor in model.state_dict().values():
            distributed.broadcast(tensor, src=0)


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its sum over all processes; one that a process does not have counts as zero."""
    if world_size() > 1:
        _join()
        import torch
        from torch import distributed

        for parameter in parameters:
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                distributed.all_reduce(parameter.grad)


def _reduced(values: Iterable[float]) -> list[float]:
    if world_size() == 1:
        return list(values)
    _join()
    import torch
    from torch import distributed

    tensor = torch.tensor(list(values), dtype=torch.float64)
    distributed.all_reduce(tensor)
    return tensor.tolist()


def _join() -> None:
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group()  # gloo between CPUs and NCCL between GPUs, where the build has them
        # Threads that still listen when the interpreter ends abort the process now and then.
        atexit.register(distributed.destroy_process_group)
