"""Pairs: of two candidates, the student puts first what the teacher puts first."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from recsys.student.losses.listwise_kl import standardize


def pairwise_ranking(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Σ w_ij · log(1 + exp(−(s_i − s_j) / T)) / Σ w_ij over pairs with t_i > t_j, w_ij = z_i − z_j of the teacher.

    RankNet (Burges et al., ICML 2005) on the teacher's order; a pair counts as much as the teacher tells it apart, z
    its logits standardised per row. Memory is n · C² · 4 bytes a few times.

    Args:
        student: [n, C] float32 logits.
        teacher: [n, C] float32 logits, constant.
        mask: [n, C] bool, False for padding.
        temperature: T > 0, of the student's differences.

    Returns:
        [n] float32, ≥ 0; 0 for a row of one candidate.
    """
    z = standardize(teacher, mask)
    weight = (z[:, :, None] - z[:, None, :]).clamp(min=0) * (mask[:, :, None] & mask[:, None, :])
    wrong = softplus(-(student[:, :, None] - student[:, None, :]) / temperature)
    loss: torch.Tensor = (weight * wrong).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-9)
    return loss
