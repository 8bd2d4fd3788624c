"""Listwise distillation: the student's order over a user's candidates is drawn to the teacher's."""

from __future__ import annotations

import torch
from torch.nn.functional import log_softmax


def standardize(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Shift and scale each row to mean 0 and standard deviation 1 over its unmasked places (masked ones: 0)."""
    count = mask.sum(1, keepdim=True).clamp(min=1)
    centred = (logits - (logits * mask).sum(1, keepdim=True) / count) * mask
    return centred / (centred.square().sum(1, keepdim=True) / count + 1e-6).sqrt()


def listwise_kl(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)), z the logits standardised per row.

    Standardising both sides (Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024) asks the
    student for the teacher's order and spacing, not for its scale, which the hard labels decide. T² keeps the
    gradient's size independent of the temperature (Hinton et al. 2015).

    Args:
        student: [n, C] float32 logits.
        teacher: [n, C] float32 logits, constant.
        mask: [n, C] bool, False for padding.
        temperature: T > 0; larger spreads the teacher's weight over more candidates.

    Returns:
        [n] float32, ≥ 0; 0 for a row of one candidate.
    """
    hidden = ~mask
    target = log_softmax((standardize(teacher, mask) / temperature).masked_fill(hidden, -1e9), 1)
    output = log_softmax((standardize(student, mask) / temperature).masked_fill(hidden, -1e9), 1)
    divergence = (target.exp() * (target - output)).masked_fill(hidden, 0).sum(1)
    return temperature**2 * divergence
