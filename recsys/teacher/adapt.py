"""Make an encoder read a shop's own words: it goes on as a masked language model on the catalogue's text."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from recsys import distributed
from recsys.artifacts import Artifact, Draft, Recipe
from recsys.ingest.dataset import Dataset
from recsys.runtime import Runtime
from recsys.text import encoder_path, item_texts, load_tokenizer
from recsys.training import adamw, load_checkpoint, save_checkpoint, seed_everything, warmup_cosine

MASKED: Final = 0.15  # share of the tokens, as in Devlin et al., "BERT", NAACL 2019
TOKENS: Final = 48
BATCH: Final = 64
LR: Final = 1e-4
JUDGED: Final = 0.05  # share of the texts that are never trained on


class AdaptConfig(BaseModel):
    """Which encoder is adapted, and for how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: str
    epochs: int


class AdaptedEncoder(Artifact):
    """An encoder as a Hugging Face folder; `info` holds its masked-word loss on unseen texts, before and after."""

    kind: ClassVar[str] = "adapted_encoder"
    stage: ClassVar[str] = "teach"

    @property
    def encoder(self) -> str:
        """What to name it in a config, as any other encoder."""
        return str(self.path / "encoder")


def adapt_encoder(
    dataset: Dataset, encoder: str, epochs: int, out: Path, *, runtime: Runtime | None = None
) -> AdaptedEncoder:
    """Train on the texts of all items (Gururangan et al., "Don't Stop Pretraining", ACL 2020).

    No event is looked at, so that texts of items that are new may be read. A killed run resumes at the last finished
    pass. One process does it for all.

    Args:
        dataset: its catalogue.
        encoder: the bundled one, a name or a folder.
        epochs: passes over all texts.
        out: where the artifact goes, e.g. `runs/sample/adapted_encoder`.
        runtime: device, seed, precision.
    """
    runtime = runtime or Runtime()
    config = AdaptConfig(encoder=encoder, epochs=epochs)
    recipe = Recipe(
        kind=AdaptedEncoder.kind,
        config=config,
        inputs={"dataset": dataset.fingerprint},
        seed=runtime.seed,
        modules=("recsys.teacher.adapt", "recsys.text", "recsys.training"),
    )
    with distributed.first_alone():
        if not recipe.is_current(out):
            with recipe.build(out) as draft:
                _train(item_texts(dataset), config, draft, runtime)
    return AdaptedEncoder.open(out)


def _train(texts: list[str], config: AdaptConfig, draft: Draft, runtime: Runtime) -> None:
    from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling

    device, dtype = runtime.torch_device(), runtime.compute_dtype()
    seed_everything(runtime.seed, 10)  # sentence encoders come without the head that guesses words
    tokenizer = load_tokenizer(config.encoder)
    model = AutoModelForMaskedLM.from_pretrained(encoder_path(config.encoder), dtype="float32").to(device)
    mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED)
    tokens = tokenizer(texts, truncation=True, max_length=TOKENS)["input_ids"]
    length = np.array([len(row) for row in tokens])
    judged, trained = np.split(
        np.random.default_rng([runtime.seed, 11]).permutation(len(tokens)), [int(len(tokens) * JUDGED)]
    )

    def loss_of(rows: np.ndarray) -> torch.Tensor:
        batch = mask([{"input_ids": tokens[row]} for row in rows]).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss: torch.Tensor = model(**batch).loss
        return loss

    @torch.inference_mode()
    def judge() -> float:
        seed_everything(runtime.seed, 12)  # the same words are hidden each time
        model.eval()
        losses = [float(loss_of(judged[start : start + BATCH])) for start in range(0, len(judged), BATCH)]
        return float(np.mean(losses)) if losses else float("nan")

    optimizer = adamw(model, lr=LR, weight_decay=0.01)
    steps = -(-len(trained) // BATCH)
    history, first = [judge()], 0
    resumed = load_checkpoint(draft.scratch, optimizer)
    if resumed is not None:
        weights, progress = resumed
        model.load_state_dict(weights)
        model.tie_weights()
        history, first = progress["history"], progress["epoch"] + 1
    for epoch in range(first, config.epochs):
        rng = seed_everything(runtime.seed, 13, epoch)
        model.train()
        # Alike in length within a batch, so that little of it is padding; the noise makes every pass another one.
        order = np.argsort(length[trained] * rng.uniform(1.0, 1.2, len(trained)), kind="stable")
        batches = [trained[rows] for rows in np.array_split(order, steps)]
        batches = [batches[number] for number in rng.permutation(steps)]
        label = f"adapt the encoder, pass {epoch + 1}/{config.epochs}"
        for step, rows in enumerate(runtime.track(batches, total=steps, label=label, unit="step"), start=epoch * steps):
            factor = warmup_cosine(step, total=steps * config.epochs, warmup=max(steps // 10, 1))
            for group in optimizer.param_groups:
                group["lr"] = LR * factor
            optimizer.zero_grad(set_to_none=True)
            loss_of(rows).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        history.append(judge())
        save_checkpoint(
            draft.scratch,
            tensors={name: tensor.clone() for name, tensor in model.state_dict().items()},
            optimizer=optimizer,
            progress={"epoch": epoch, "history": history},
        )
    model.base_model.save_pretrained(draft.path / "encoder")
    tokenizer.save_pretrained(draft.path / "encoder")
    draft.counts.update(texts=len(texts), epochs=config.epochs)
    draft.info.update(masked_word_loss=history)
