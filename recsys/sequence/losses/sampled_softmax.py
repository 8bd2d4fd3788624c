"""Cross-entropy of the next item against a uniform sample of the catalogue, for catalogues too large for all of it."""

from __future__ import annotations

import math

import torch
from torch.utils.checkpoint import checkpoint


def sampled_softmax(
    queries: torch.Tensor,
    target_items: torch.Tensor,
    targets: torch.Tensor,
    sampled_items: torch.Tensor,
    sampled: torch.Tensor,
    *,
    n_items: int,
    weights: torch.Tensor | None = None,
    block: int = 256,
) -> torch.Tensor:
    """Weighted mean over positions of −log softmax over {target} ∪ sample, the sample standing for the whole catalogue.

    Each of S uniform draws stands for (n_items − 1)/S items, so log((n_items − 1)/S) is added to its logit (the logQ
    correction of Bengio & Senécal 2008 for a uniform proposal); a draw that is the target itself is left out.

    Args:
        queries: [n, d] float32.
        target_items: [n, d] float32, the vectors of the items that came next.
        targets: [n] int64, their item_idx.
        sampled_items: [S, d] float32, the vectors of the draws, shared by all positions.
        sampled: [S] int64, their item_idx.
        n_items: size of the catalogue that was drawn from.
        weights: [n] float32, how much each position counts; all alike by default.
        block: positions at a time; a block's logits are computed anew for its gradient, so that block × S × 4 bytes
            times a few is all that is held.

    Returns:
        A scalar.
    """
    if weights is None:
        weights = queries.new_ones(len(queries))

    def of_block(query: torch.Tensor, target_item: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        positive = (query * target_item).sum(1, keepdim=True)
        negative = query @ sampled_items.T + math.log(max(n_items - 1, 1) / len(sampled))
        negative = negative.masked_fill(target[:, None] == sampled[None, :], float("-inf"))
        return torch.cat([positive, negative], 1).logsumexp(1) - positive[:, 0]

    parts = [
        checkpoint(of_block, *rows, use_reentrant=False)
        for rows in zip(*(torch.split(each, block) for each in (queries, target_items, targets)), strict=True)
    ]
    return (torch.cat(parts) * weights).sum() / weights.sum().clamp(min=1e-12)
