"""Features: candidates whose texts are alike get vectors that are alike."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize


def feature_matching(items: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over pairs of a row's candidates of (cos(v_i, v_j) − cos(x_i, x_j))², v item vectors and x text vectors.

    Relations in the place of the vectors themselves, whose width and axes differ (Park et al., "Relational Knowledge
    Distillation", CVPR 2019). Matching features tends to hurt a ranking, so that no default config has it. The
    temperature and the teacher's logits play no part. Memory is n · C · w · 4 bytes and n · C² · 4 bytes a few times.

    Args:
        items: [n, C, d] float32, the student's vectors of the candidates.
        text: [n, C, w] float32, their sentence vectors, constant.
        mask: [n, C] bool, False for padding.

    Returns:
        [n] float32, ≥ 0; 0 for a row of one candidate.
    """
    ours, theirs = (normalize(each, dim=2) for each in (items, text))
    error = ours @ ours.transpose(1, 2) - theirs @ theirs.transpose(1, 2)
    pairs = (mask[:, :, None] & mask[:, None, :]) & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    loss: torch.Tensor = (error.square() * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)
    return loss
