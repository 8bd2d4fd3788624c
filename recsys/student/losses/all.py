"""The losses by the names that a config gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch

from recsys.student.losses.contrastive import contrastive
from recsys.student.losses.hard_targets import hard_targets
from recsys.student.losses.listwise_kl import listwise_kl
from recsys.student.losses.margin_mse import margin_mse
from recsys.student.losses.pairwise_ranking import pairwise_ranking
from recsys.student.losses.pointwise_mse import pointwise_mse

# Each takes student and teacher logits [n, C], a mask and a temperature, and gives [n].
LOSSES: Final[Mapping[str, Callable[..., torch.Tensor]]] = {
    loss.__name__: loss
    for loss in (listwise_kl, hard_targets, margin_mse, pointwise_mse, pairwise_ranking, contrastive)
}
