"""Many candidates in one pass: the history is encoded once, each candidate sees it and itself, never another one.

A packed row is [history | candidate 1 | … | candidate C]. Everything in a transformer but attention treats tokens one
by one, so packing needs only an attention function that knows the layout. `transformers` lets one be registered by
name, and every encoder that uses its attention interface then works unchanged. Against a dense block mask it computes
C·K·(P + K) attention weights instead of (P + C·K)².
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import AttentionInterface

NAME = "recsys_packed"


class Layout(NamedTuple):
    """Where the parts of a packed row are: `history` tokens, then `candidates` × `width` tokens."""

    history: int
    candidates: int
    width: int


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within the history, and from each candidate to the history and to itself.

    Args:
        module: the attention module that asks (unused; part of the interface).
        query: [b, heads, S, d] with S = history + candidates · width; `key` and `value` likewise.
        key: as `query`.
        value: as `query`.
        attention_mask: [b, 1, 1, S] bool, False for padding.
        layout: where the parts are.
        scaling: factor of the logits; 1/√d by default.
        dropout: of the attention weights.

    Returns:
        [b, S, heads, d], and no weights.
    """
    batch, heads, dim = query.shape[0], query.shape[1], query.shape[3]
    past, count, width = layout
    scaling = dim**-0.5 if scaling is None else scaling
    valid = attention_mask[:, :, :, :past]
    # Rows without history have only padding to attend to: let them, nobody reads the result.
    from_history = functional.scaled_dot_product_attention(
        query[:, :, :past],
        key[:, :, :past],
        value[:, :, :past],
        attn_mask=valid | ~valid.any(-1, keepdim=True),
        dropout_p=dropout,
        scale=scaling,
    )
    shape = (batch, heads, count, width, dim)
    own_query, own_key, own_value = (part[:, :, past:].reshape(shape) for part in (query, key, value))
    to_history = query[:, :, past:] @ key[:, :, :past].transpose(-1, -2)  # [b, heads, C·K, P]
    to_history = to_history.masked_fill(~valid, float("-inf")).view(batch, heads, count, width, past)
    to_own = own_query @ own_key.transpose(-1, -2)  # [b, heads, C, K, K]
    own_valid = attention_mask[:, :, 0, past:].view(batch, 1, count, 1, width)
    to_own = to_own.masked_fill(~own_valid, float("-inf"))
    # A candidate's first token is never padding, so that no row of the softmax is empty.
    weights = (torch.cat([to_history, to_own], -1).float() * scaling).softmax(-1).to(value.dtype)
    weights = functional.dropout(weights, dropout)
    on_history = weights[..., :past].reshape(batch, heads, count * width, past) @ value[:, :, :past]
    on_own = (weights[..., past:] @ own_value).reshape(batch, heads, count * width, dim)
    return torch.cat([from_history, on_history + on_own], 2).transpose(1, 2), None


AttentionInterface.register(NAME, packed_attention)
