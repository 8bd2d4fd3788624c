"""Packed scoring is scoring one by one, for every kind of encoder."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PretrainedConfig,
    RobertaConfig,
)

from recsys.errors import InputError
from recsys.teacher.model import split_encoder
from recsys.teacher.packing import Layout, block_mask

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60}
ENCODERS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**SMALL),
    "roberta": RobertaConfig(**SMALL, max_position_embeddings=80),
    "electra": ElectraConfig(**SMALL, embedding_size=32),
    "distilbert": DistilBertConfig(dim=32, n_layers=3, n_heads=4, hidden_dim=48, vocab_size=60),
    "modernbert": ModernBertConfig(
        **SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    ),
}


def encoder(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return AutoModel.from_config(copy.deepcopy(ENCODERS[name]), **options).eval()


@pytest.fixture(params=ENCODERS)
def upper(request: pytest.FixtureRequest) -> Any:
    return split_encoder(encoder(request.param), 2)[1]


def run(
    upper: Any,
    states: torch.Tensor,
    valid: torch.Tensor,
    layout: Layout,
    *,
    learning: bool = False,
    mask: BlockMask | None = None,
) -> torch.Tensor:
    items = states.shape[1] // layout.width
    position = torch.arange(layout.width).repeat(items).expand(len(states), -1)
    with torch.inference_mode(not learning):
        return upper(
            inputs_embeds=states,
            attention_mask=valid[:, None, None, :],
            position_ids=position,
            layout=layout,
            block_mask=mask,
        ).last_hidden_state


def test_many_candidates_at_once_are_each_alone(upper: Any) -> None:
    torch.manual_seed(1)
    width, past, count = 5, 3 * 5, 4
    states = torch.randn(2, past + count * width, 32)
    valid = torch.rand(2, past + count * width) > 0.3
    valid[:, ::width] = True
    together = run(upper, states, valid, Layout(past, count, width))[:, past:]
    for c in range(count):
        place = torch.cat([torch.arange(past), past + c * width + torch.arange(width)])
        alone = run(upper, states[:, place], valid[:, place], Layout(past, 1, width))[:, past:]
        first = c * width  # the score is read at a candidate's first token
        torch.testing.assert_close(together[:, first], alone[:, 0], rtol=1e-4, atol=1e-5)


def test_a_user_without_history_is_scored_too(upper: Any) -> None:
    states, valid = torch.randn(1, 10 + 10, 32), torch.ones(1, 20, dtype=torch.bool)
    valid[:, :10] = False
    assert run(upper, states, valid, Layout(10, 2, 5))[:, 10:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scoring_is_what_was_learned(upper: Any, dtype: torch.dtype) -> None:
    """Without a gradient attention is computed in another way."""
    torch.manual_seed(3)
    states, valid = torch.randn(3, 12 + 20, 32), torch.rand(3, 32) > 0.3
    valid[:, 12::4] = True
    valid[0, :12] = False  # no history
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found, learned = (run(upper, states, valid, Layout(12, 5, 4), learning=on) for on in (False, True))
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    seen = valid & (torch.arange(32) >= 12)
    torch.testing.assert_close(found[seen].float(), learned[seen].detach().float(), **close)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_gpu_s_attention_is_the_same(upper: Any) -> None:
    """FlexAttention, which runs on a CPU too, if slowly."""
    torch.manual_seed(4)
    layout = Layout(12, 5, 4)
    states, valid = torch.randn(3, 32, 32), torch.rand(3, 32) > 0.3
    valid[:, 12::4] = True
    valid[0, :12] = False  # no history
    plain = run(upper, states, valid, layout)
    flexible = run(upper, states, valid, layout, mask=block_mask(valid, layout))
    seen = valid & (torch.arange(32) >= 12)
    torch.testing.assert_close(flexible[seen], plain[seen], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("learning", [False, True])
def test_a_row_without_candidates_reads_everything(learning: bool) -> None:
    """As the uncut encoder does."""
    _, upper = split_encoder(encoder("bert"), 2)
    torch.manual_seed(5)
    states, valid = torch.randn(2, 12, 32), torch.rand(2, 12) > 0.2
    valid[:, 0] = True
    rows = run(upper, states, valid, Layout(12, 0, 4), learning=learning)
    upper.set_attn_implementation("eager")
    hidden = torch.zeros(2, 1, 1, 12).masked_fill(~valid[:, None, None, :], float("-inf")).expand(2, 1, 12, 12)
    position = torch.arange(4).repeat(3).expand(2, -1)
    with torch.inference_mode():
        plain = upper(inputs_embeds=states, attention_mask=hidden, position_ids=position).last_hidden_state
    torch.testing.assert_close(rows[valid].detach(), plain[valid], rtol=1e-4, atol=1e-5)


def test_packing_equals_a_dense_block_mask() -> None:
    """The plain reference: the same encoder's own attention under a ready 4-D mask."""
    _, upper = split_encoder(encoder("bert"), 2)
    torch.manual_seed(2)
    width, past, count = 4, 8, 3
    total = past + count * width
    states, valid = torch.randn(2, total, 32), torch.rand(2, total) > 0.2
    valid[:, ::width] = True
    part = torch.cat([torch.zeros(past), 1 + torch.arange(count).repeat_interleave(width)])
    allowed = (part[None, :] == 0) | (part[:, None] == part[None, :])
    packed = run(upper, states, valid, Layout(past, count, width))
    upper.set_attn_implementation("eager")
    dense = torch.zeros(2, 1, total, total).masked_fill(~(allowed & valid[:, None, None, :]), float("-inf"))
    with torch.inference_mode():
        plain = upper(inputs_embeds=states, attention_mask=dense).last_hidden_state
    torch.testing.assert_close(packed[valid], plain[valid], rtol=1e-4, atol=1e-5)


def test_the_two_halves_are_the_whole() -> None:
    """One item alone, through the lower and then the upper layers, is what the uncut encoder makes of it."""
    ids = torch.tensor([[2, 7, 9, 11, 3]])
    whole = encoder("bert", attn_implementation="eager")
    with torch.inference_mode():
        expected = whole(input_ids=ids).last_hidden_state
    lower, upper = split_encoder(encoder("bert"), 2)
    with torch.inference_mode():
        states = lower(input_ids=ids).last_hidden_state
    got = run(upper, states, torch.ones(1, 5, dtype=torch.bool), Layout(0, 1, 5))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_more_joint_layers_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match=r"joint_layers"):
        split_encoder(encoder("bert"), 4)
