"""Point by point: each candidate's score, seen from its row's mean."""

from __future__ import annotations

import torch

from recsys.student.losses.listwise_kl import standardize


def pointwise_mse(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Mean over a row of (z_s − z_t / T)², z the logits standardised per row.

    Regression on logits (Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014), standardised as in Sun
    et al. (CVPR 2024), so that the scale is left to the hard labels.

    Args:
        student: [n, C] float32 logits.
        teacher: [n, C] float32 logits, constant.
        mask: [n, C] bool, False for padding.
        temperature: T > 0; larger asks for a flatter row.

    Returns:
        [n] float32, ≥ 0; 0 for a row of one candidate.
    """
    error = standardize(student, mask) - standardize(teacher, mask) / temperature
    loss: torch.Tensor = (error.square() * mask).sum(1) / mask.sum(1).clamp(min=1)
    return loss
