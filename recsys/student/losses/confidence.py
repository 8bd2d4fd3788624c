"""How sure the teacher is of a row, as a weight of any loss on it."""

from __future__ import annotations

import torch
from torch.nn.functional import log_softmax


def confidence(teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """1 − H(softmax t) / log C of each row: 0 where it cannot tell the candidates apart, 1 where it sees only one.

    Any loss of a row is multiplied by it, after it was divided by its mean over a step's rows.

    Args:
        teacher: [n, C] float32 logits.
        mask: [n, C] bool, False for padding; C of a row is what it does not hide.

    Returns:
        [n] float32 in [0, 1]; 1 for a row of one candidate.
    """
    log_p = log_softmax(teacher.masked_fill(~mask, -1e9), 1)
    entropy = -(log_p.exp() * log_p).masked_fill(~mask, 0).sum(1)
    weight: torch.Tensor = (1 - entropy / mask.sum(1).clamp(min=2).log()).clamp(0, 1)
    return weight
