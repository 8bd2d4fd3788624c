"""Contrast: the candidates that the teacher puts first against all others of the row."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

POSITIVES = 5  # candidates of a row; fewer where it has fewer than twice as many


def contrastive(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """Mean over the teacher's first P of −log(e^{s_p / T} / (e^{s_p / T} + Σ_{j beyond P} e^{s_j / T})).

    InfoNCE (van den Oord et al., 2018) with several positives, each against the negatives alone, as the supervised
    contrastive loss takes them (Khosla et al., NeurIPS 2020, "out"), the teacher in the place of labels.

    Args:
        student: [n, C] float32 logits.
        teacher: [n, C] float32 logits, constant.
        mask: [n, C] bool, False for padding.
        temperature: T > 0, of the student's softmax.

    Returns:
        [n] float32, ≥ 0; 0 for a row of one candidate.
    """
    count = mask.sum(1, keepdim=True)
    rank = teacher.masked_fill(~mask, float("-inf")).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    positive = mask & (rank < (count // 2).clamp(max=POSITIVES))
    scores = student / temperature
    negatives = scores.masked_fill(~(mask & ~positive), -1e9).logsumexp(1, keepdim=True)
    loss: torch.Tensor = (softplus(negatives - scores) * positive).sum(1) / positive.sum(1).clamp(min=1)
    return loss
