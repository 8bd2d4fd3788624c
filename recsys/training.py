"""What every training loop here needs: a schedule, stateless randomness and checkpoints that resume to the bit."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recsys import distributed
from recsys.ingest.dataset import Ragged


def seed_everything(*parts: int) -> np.random.Generator:
    """Seed torch from `parts` (such as seed, epoch and step) and return a numpy generator seeded likewise.

    Randomness that depends on the step alone needs no saved state: a resumed run draws what an undisturbed one draws.
    """
    sequence = np.random.SeedSequence(parts)
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    return np.random.default_rng(sequence)


RELEASE_EVERY: Final = 50  # steps


def release_memory_after(step: int, device: torch.device) -> None:
    """Call `release_memory` now and then, where the memory is a CPU's."""
    if device.type == "cpu" and step % RELEASE_EVERY == RELEASE_EVERY - 1:
        release_memory()


def release_memory() -> None:
    """Give what was freed back to the system, where the C library can (glibc's malloc_trim; else nothing happens).

    Batches differ in shape from step to step, and glibc keeps the pieces between them: training on 12 thousand items
    grew to 9 GB in an hour, where a tenth of it was in use. Giving it back takes a twentieth of a second.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def warmup_cosine(step: int, *, total: int, warmup: int, floor: float = 0.1) -> float:
    """Factor of the learning rate: linear from 0 over `warmup` steps, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(model: torch.nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW; biases, norms and other vectors are not decayed."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def save_checkpoint(
    folder: Path,
    *,
    tensors: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    progress: Mapping[str, Any],
) -> None:
    """Write weights, optimizer moments and JSON-able progress as one file, replaced in one step.

    Of processes that train together the first one writes: they all have the same.
    """
    if distributed.rank():
        return
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"weights/{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            state[f"optimizer/{index}/{name}"] = torch.as_tensor(value).cpu().contiguous()
    temporary = folder / f".{os.getpid()}.tmp"
    save_file(state, temporary, metadata={"progress": json.dumps(progress)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(folder / "checkpoint.safetensors")


def load_checkpoint(
    folder: Path, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Read a checkpoint back: moments into `optimizer`; returns (tensors, progress), or None if there is none."""
    file = folder / "checkpoint.safetensors"
    if not file.is_file():
        return None
    state = load_file(file)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        part, rest = name.split("/", 1)
        if part == "weights":
            weights[rest] = tensor
        else:
            index, moment = rest.split("/", 1)
            moments.setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    with safe_open(file, framework="pt") as opened:
        progress = json.loads(opened.metadata()["progress"])
    return weights, progress


def ndcg_at_k(ranked: npt.NDArray[np.integer[Any]], targets: Ragged, *, n_items: int) -> npt.NDArray[np.float64]:
    """Binary NDCG of each row's ranked items, the ideal list taken over min(k, |targets|).

    A quick measure for early stopping; reports use `recsys.evaluation`.

    Args:
        ranked: [n, k] item_idx, best first, −1 where there is none.
        targets: n rows of distinct item_idx.
        n_items: size of the catalogue.
    """
    rows = np.repeat(np.arange(len(targets)), targets.lengths) * np.int64(n_items)
    keys = np.arange(len(ranked))[:, None] * np.int64(n_items) + ranked
    hits = np.isin(keys, rows + targets.values) & (ranked >= 0)
    discount = 1 / np.log2(np.arange(ranked.shape[1]) + 2)
    ideal = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(targets.lengths, ranked.shape[1])]
    gain: npt.NDArray[np.float64] = hits @ discount
    return np.where(ideal > 0, gain / np.maximum(ideal, 1.0), 0.0)
