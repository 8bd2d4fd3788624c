"""Cross-entropy of the next item against the whole catalogue, without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch


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
            grad_items += low_error.T @ low_queries
        ctx.save_for_backward(grad_queries, grad_items)
        ctx.weight = max(float(weights.sum()), 1e-12)
        mean: torch.Tensor = total / ctx.weight
        return mean

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_queries, grad_items = ctx.saved_tensors
        scale = grad_outputs[0] / ctx.weight
        return grad_queries * scale, grad_items * scale, None, None, None, None


def full_softmax(
    queries: torch.Tensor,
    items: torch.Tensor,
    targets: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    block: int = 256,
) -> torch.Tensor:
    """Weighted mean over positions of −log softmax(q · vᵀ)[target].

    Args:
        queries: [n, d] float32, the user tower's output at each position.
        items: [n_items, d] float32, all item vectors.
        targets: [n] int64, the item that came next.
        weights: [n] float32, how much each position counts; all alike by default.
        dtype: in what the products are computed; sums and exponentials stay in float32.
        block: positions at a time; memory is block × n_items × (4 + width of `dtype`) bytes, besides the gradients.

    Returns:
        A scalar; without weights `torch.nn.functional.cross_entropy(queries @ items.T, targets)` up to rounding.
    """
    if weights is None:
        weights = queries.new_ones(len(queries))
    loss: torch.Tensor = _FullSoftmax.apply(queries, items, targets, weights, block, dtype)  # type: ignore[no-untyped-call]
    return loss
