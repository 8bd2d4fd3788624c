"""Cross-entropy of the next item against the whole catalogue, without ever holding all logits."""

from __future__ import annotations

from typing import Any, Final

import torch

BLOCK_BYTES: Final = 1 << 28  # of a block's logits


class _FullSoftmax(torch.autograd.Function):
    """Gradients are made in the forward pass, block by block, so that a block's logits are all that is held."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: torch.Tensor,
        items: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        block: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        total = queries.new_zeros(())
        low_items = items.to(dtype)
        grad_queries, grad_items = torch.empty_like(queries), torch.zeros_like(items)
        # Buffers are reused by all blocks: fresh ones of this size would cost more in page faults than in arithmetic.
        size = min(block, len(queries))
        low, wide = queries.new_empty(size, len(items), dtype=dtype), queries.new_empty(size, len(items))
        for start in range(0, len(queries), block):
            rows = slice(start, min(start + block, len(queries)))
            size = rows.stop - rows.start
            low_queries, target, weight = queries[rows].to(dtype), targets[rows, None], weights[rows, None]
            logits = torch.mm(low_queries, low_items.T, out=low[:size])
            error = wide[:size].copy_(logits)
            torch.softmax(error, 1, out=error)
            total -= (error.gather(1, target).clamp(min=torch.finfo(torch.float32).tiny).log() * weight).sum()
            error.scatter_add_(1, target, error.new_full((size, 1), -1.0)).mul_(weight)  # d loss / d logits
            low_error = logits.copy_(error)
            grad_queries[rows] = low_error @ low_items
            if dtype == grad_items.dtype:
                grad_items.addmm_(low_error.T, low_queries)
            else:
                grad_items += low_error.T @ low_queries
        ctx.save_for_backward(grad_queries, grad_items)
        ctx.weight = max(float(weights.sum()), 1e-12)
        mean: torch.Tensor = total / ctx.weight
        return mean

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_queries, grad_items = ctx.saved_tensors
        scale = grad_outputs[0] / ctx.weight
        # In place: of a large catalogue a second copy would be half of the loss's memory.
        return grad_queries.mul_(scale), grad_items.mul_(scale), None, None, None, None


def full_softmax(
    queries: torch.Tensor,
    items: torch.Tensor,
    targets: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    block: int | None = None,
) -> torch.Tensor:
    """Weighted mean over positions of −log softmax(q · vᵀ)[target].

    What it holds are a block's logits, in `dtype` and in float32, and the gradients, which go out as they are: at a
    million items of width 128 a quarter and half a gigabyte. The graph can be gone through once.

    Args:
        queries: [n, d] float32, the user tower's output at each position.
        items: [n_items, d] float32, all item vectors.
        targets: [n] int64, the item that came next.
        weights: [n] float32, how much each position counts; all alike by default.
        dtype: in what the products are computed; sums and exponentials stay in float32.
        block: positions at a time; by default 256, or as many as `BLOCK_BYTES` hold if that is less.

    Returns:
        A scalar; without weights `torch.nn.functional.cross_entropy(queries @ items.T, targets)` up to rounding.
    """
    if weights is None:
        weights = queries.new_ones(len(queries))
    if block is None:
        block = min(256, max(BLOCK_BYTES // (len(items) * (4 + dtype.itemsize)), 8))
    loss: torch.Tensor = _FullSoftmax.apply(queries, items, targets, weights, block, dtype)  # type: ignore[no-untyped-call]
    return loss
