"""Adapting the encoder: it learns the shop's words, resumes, and is an encoder as any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recsys.api import Run
from recsys.artifacts import hash_file
from recsys.teacher.adapt import adapt_encoder
from recsys.text import load_encoder
from tests.interrupt import Interrupted


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bundled encoder's words in an encoder of two narrow layers."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer, _ = load_encoder("minilm-l6")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_hidden_words_are_guessed_better_and_a_killed_run_ends_alike(finished: Run, small: str, tmp_path: Path) -> None:
    options = {"seed": 1, "threads": 1, "progress": False}
    dataset = finished.dataset
    whole = adapt_encoder(dataset, small, 3, tmp_path / "whole", runtime=Interrupted(**options, at="nowhere"))
    losses = whole.manifest["info"]["masked_word_loss"]
    assert len(losses) == 4
    assert losses[-1] < losses[0]  # on texts that it was not trained on
    with pytest.raises(KeyboardInterrupt):
        adapt_encoder(dataset, small, 3, tmp_path / "adapted", runtime=Interrupted(**options, at="pass 3"))
    again = adapt_encoder(dataset, small, 3, tmp_path / "adapted", runtime=Interrupted(**options, at="pass 1"))
    weights = [Path(each.encoder) / "model.safetensors" for each in (whole, again)]
    assert hash_file(weights[0]) == hash_file(weights[1])
    before, after = (load_encoder(encoder)[1].state_dict() for encoder in (small, again.encoder))
    assert before.keys() >= {name for name in after if "pooler" not in name}
    assert any(not torch.equal(before[name], after[name]) for name in after if "pooler" not in name)
