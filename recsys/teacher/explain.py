"""Why the teacher gave a score: what it would have given without an item of the history, or without a word."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from recsys.ingest.dataset import Dataset, Sequences, take
from recsys.runtime import Runtime
from recsys.teacher.model import Teacher
from recsys.text import item_texts, load_tokenizer


@dataclass(frozen=True)
class Explanation:
    """Why one candidate was scored as it was, for one user.

    Attributes:
        logit: the score.
        history: the user's last items, the most recent first, with what each added to the logit: the logit with all of
            the history minus the logit without this event. It covers every kind of evidence.
        words: those of the candidate's text that were read, with what each added likewise (of a word that the encoder
            reads in pieces, the sum). It covers what the encoder read; the similarity of whole texts is part of the
            evidence and stands under `history`.
    """

    logit: float
    history: list[tuple[int, float]]
    words: list[tuple[str, float]]


def explain(
    teacher: Teacher,
    dataset: Dataset,
    history: Sequences,
    candidates: npt.NDArray[np.int32],
    *,
    last: int = 8,
    runtime: Runtime | None = None,
) -> list[Explanation]:
    """Explain scores by leaving things out (occlusion: Zeiler and Fergus, ECCV 2014; Li et al., 2016, for words).

    What is left out together is not told apart: two items that say the same can each be missed without a change.

    Args:
        teacher: whose scores.
        dataset: what it was taught on, for the texts.
        history: one row.
        candidates: [C] items.
        last: most recent events that are left out in turn.
        runtime: where to compute.

    Returns:
        One for each candidate.
    """
    runtime = runtime or Runtime()
    n = len(history.item_idx)
    left_out = np.arange(n - 1, max(n - last, 0) - 1, -1)
    without = [np.delete(np.arange(n), place) for place in left_out]
    rows = np.concatenate([np.arange(n), *without])
    lengths = np.array([n, *map(len, without)])
    variants = Sequences(
        np.append(0, np.cumsum(lengths)),
        history.item_idx[rows],
        history.event_type[rows],
        history.timestamp[rows],
        history.session[rows],
    )
    logits = teacher.score(variants, np.tile(candidates, (len(variants), 1)), runtime=runtime)
    words = _words(teacher, dataset, take(variants, variants.offsets[:1], variants.lengths[:1]), candidates, runtime)
    items = history.item_idx[left_out].tolist()
    return [
        Explanation(
            float(logits[0, place]),
            [(item, float(logits[0, place] - logits[row, place])) for row, item in enumerate(items, start=1)],
            words[place],
        )
        for place in range(len(candidates))
    ]


@torch.inference_mode()
def _words(
    teacher: Teacher,
    dataset: Dataset,
    history: Sequences,
    candidates: npt.NDArray[np.int32],
    runtime: Runtime,
) -> list[list[tuple[str, float]]]:
    """Each candidate's words, and what each added to its logit."""
    device, dtype = runtime.torch_device(), runtime.compute_dtype()
    tokenizer = load_tokenizer(teacher.config.encoder)
    model = teacher.model.to(device)
    packer = teacher.packer().to(device)
    batch = packer.pack(history, candidates[None], device=device)

    def logits(valid: torch.Tensor) -> npt.NDArray[np.float32]:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            found: npt.NDArray[np.float32] = model(replace(batch, candidate_valid=valid))[0].float().cpu().numpy()
        return found

    whole = logits(batch.candidate_valid)
    added = np.zeros((len(candidates), batch.candidate_valid.shape[2]), dtype=np.float32)
    for token in range(1, added.shape[1]):  # the first stands for the item itself
        valid = batch.candidate_valid.clone()
        valid[:, :, token] = False
        added[:, token] = whole - logits(valid)
    found = []
    for place, text in enumerate(item_texts(dataset, candidates)):
        read = tokenizer(text, truncation=True, max_length=added.shape[1] + 1)
        words: dict[int, float] = {}
        for token, word in enumerate(read.word_ids()[:-1]):
            if word is not None:
                words[word] = words.get(word, 0.0) + float(added[place, token])
        spans = [read.word_to_chars(word) for word in words]
        found.append([(text[a:b], value) for (a, b), value in zip(spans, words.values(), strict=True)])
    return found
