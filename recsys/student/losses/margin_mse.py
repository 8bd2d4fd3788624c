"""Margins: how far the teacher's best candidate stands above each other one."""

from __future__ import annotations

import torch


def margin_mse(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Mean over j of ((s_b − s_j) − (t_b − t_j) / T)², b the candidate that the teacher puts first.

    Margin-MSE of Hofstätter et al., "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
    Distillation" (2020), with all candidates of a row as negatives of its best. The student takes the teacher's scale.

    Args:
        student: [n, C] float32 logits.
        teacher: [n, C] float32 logits, constant.
        mask: [n, C] bool, False for padding.
        temperature: T > 0; larger asks for smaller margins.

    Returns:
        [n] float32, ≥ 0; 0 for a row of one candidate.
    """
    best = teacher.masked_fill(~mask, float("-inf")).argmax(1, keepdim=True)
    others = mask.scatter(1, best, False)
    error = (student.gather(1, best) - student) - (teacher.gather(1, best) - teacher) / temperature
    loss: torch.Tensor = (error.square() * others).sum(1) / others.sum(1).clamp(min=1)
    return loss
