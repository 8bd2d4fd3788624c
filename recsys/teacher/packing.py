"""Many candidates in one pass: the history is encoded once, each candidate sees it and itself, never another one.

A packed row is [history | candidate 1 | … | candidate C]. Everything in a transformer but attention treats tokens one
by one, so packing needs only an attention function that knows the layout. `transformers` lets one be registered by
name, and every encoder that uses its attention interface then works unchanged. Against a dense block mask it computes
C·K·(P + K) attention weights instead of (P + C·K)².
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface

NAME = "recsys_packed"


class Layout(NamedTuple):
    """Where the parts of a packed row are: `history` tokens, then `candidates` × `width` tokens.

    Without candidates it is a plain row, in which every token reads every other.
    """

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
    block_mask: BlockMask | None = None,
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
        block_mask: of `block_mask`, for FlexAttention.
        scaling: factor of the logits; 1/√d by default.
        dropout: of the attention weights.

    Returns:
        [b, S, heads, d], and no weights.
    """
    batch, heads, dim = query.shape[0], query.shape[1], query.shape[3]
    past, count, width = layout
    scaling = dim**-0.5 if scaling is None else scaling
    if block_mask is not None and not dropout:
        attend = _compiled() if query.device.type == "cuda" else flex_attention
        output = attend(query, key, value, block_mask=block_mask, scale=scaling)
        return cast(torch.Tensor, output).transpose(1, 2), None
    if query.device.type == "cpu" and past and count and not torch.is_grad_enabled():
        return _in_blocks(query, key, value, attention_mask, layout, scaling), None
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
    if not count:
        return from_history.transpose(1, 2), None
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


def block_mask(valid: torch.Tensor, layout: Layout) -> BlockMask:
    """The same layout for FlexAttention (Dong et al., 2024), which on a GPU skips the blocks that are hidden.

    Args:
        valid: [b, S] bool, False for padding.
        layout: where the parts are.
    """
    past, _, width = layout

    def allowed(b: torch.Tensor, _h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        own = (q >= past) & (k >= past) & ((q - past) // width == (k - past) // width)
        # Padding may read itself, so that no row is empty; nobody reads the result.
        return (valid[b, k] & ((k < past) | own)) | (q == k)

    batch, length = valid.shape
    return create_block_mask(allowed, batch, None, length, length, device=str(valid.device))


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


def _in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    layout: Layout,
    scaling: float,
) -> torch.Tensor:
    """The same without a gradient, and without weights in memory: they took three quarters of a layer on a CPU.

    Attention over two sets of keys is the mean of the attention over each, weighted by the sums of their exponentials
    (Dao et al., "FlashAttention", 2022, section 3.1): all queries ask the history, each candidate asks itself, and both
    answers are merged.
    """
    batch, heads, _, dim = query.shape
    past, count, width = layout
    valid = attention_mask[:, :, :, :past]
    known = valid.any(-1)  # [b, 1, 1]; a row without history attends to its padding, and nobody reads the result
    on_history, history_sum = _flash(query, key[:, :, :past], value[:, :, :past], valid | ~known[..., None], scaling)

    def own(part: torch.Tensor) -> torch.Tensor:
        blocks = part[:, :, past:].reshape(batch, heads, count, width, dim)
        return blocks.transpose(1, 2).reshape(batch * count, heads, width, dim)

    own_valid = attention_mask[:, 0, 0, past:].reshape(batch * count, 1, 1, width)
    on_own, own_sum = _flash(own(query), own(key), own(value), own_valid, scaling)
    on_own = on_own.view(batch, count, heads, width, dim).transpose(1, 2).reshape(batch, heads, count * width, dim)
    own_sum = own_sum.view(batch, count, heads, width).transpose(1, 2).reshape(batch, heads, count * width)
    history_sum = history_sum[:, :, past:].masked_fill(~known, float("-inf"))
    share = torch.sigmoid(history_sum - own_sum)[..., None].to(query.dtype)
    merged = torch.lerp(on_own, on_history[:, :, past:], share)
    return torch.cat([on_history[:, :, :past], merged], 2).transpose(1, 2)


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [n, heads, S, d], and the logarithm of each query's sum of exponentials [n, heads, S]."""
    mask = torch.zeros(valid.shape, dtype=query.dtype).masked_fill_(~valid, float("-inf"))
    # What `scaled_dot_product_attention` calls on a CPU; only here it tells the sums.
    output, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=mask, scale=scaling
    )
    return output, sums


AttentionInterface.register(NAME, packed_attention)
