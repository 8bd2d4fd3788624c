"""Hard targets from the teacher: what it puts first is the answer."""

from __future__ import annotations

import torch
from torch.nn.functional import log_softmax


def hard_targets(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """−log softmax(s / T)[argmax t]: cross-entropy with the teacher's choice among a row's candidates.

    The limit of soft targets at temperature 0 (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015).

    Args:
        student: [n, C] float32 logits.
        teacher: [n, C] float32 logits, constant.
        mask: [n, C] bool, False for padding.
        temperature: T > 0, of the student's softmax.

    Returns:
        [n] float32, ≥ 0; 0 for a row of one candidate.
    """
    best = teacher.masked_fill(~mask, float("-inf")).argmax(1, keepdim=True)
    output = log_softmax((student / temperature).masked_fill(~mask, -1e9), 1)
    loss: torch.Tensor = -output.gather(1, best).squeeze(1)
    return loss
