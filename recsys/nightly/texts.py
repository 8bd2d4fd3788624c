"""Item texts from night to night: only those that nobody has encoded yet are encoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys.artifacts import Recipe, create_npy
from recsys.ingest.dataset import Dataset, places
from recsys.runtime import Runtime
from recsys.text import TextVectors, TextVectorsConfig, item_texts, text_vectors

# Rows that are copied at a time.
_BLOCK = 1 << 16


class _Some(Dataset):
    """A part of a catalogue, for `text_vectors`."""

    def __init__(self, whole: Dataset, rows: np.ndarray) -> None:
        super().__init__(whole.path, whole.manifest | {"fingerprint": f"{whole.fingerprint} in part"})
        self.__dict__["items"] = whole.items.take(pa.array(rows))


def carry_text_vectors(
    dataset: Dataset,
    before: tuple[Dataset, TextVectors] | None,
    config: TextVectorsConfig,
    out: Path,
    *,
    runtime: Runtime | None = None,
) -> tuple[TextVectors, int]:
    """What `text_vectors` would write, up to rounding: a vector is taken over where a text stayed as it was.

    Args:
        dataset: tonight's.
        before: an earlier night's dataset and its vectors; nothing is taken over from another encoder's.
        config: encoder and length.
        out: where the artifact goes.
        runtime: where to compute.

    Returns:
        The vectors, and how many texts were encoded.
    """
    runtime = runtime or Runtime()
    recipe = Recipe(
        kind=TextVectors.kind,
        config=config,
        inputs={"dataset": dataset.fingerprint},
        seed=0,
        modules=("recsys.text",),
    )
    if recipe.is_current(out):
        return TextVectors.open(out), 0
    if before is None or not _same_encoder(before[1], recipe):
        return text_vectors(dataset, config, out, runtime=runtime), dataset.n_items
    earlier = before[1].vectors
    place = places(pa.array(item_texts(dataset)), pa.array(item_texts(before[0])))
    new, kept = np.flatnonzero(place < 0), np.flatnonzero(place >= 0)
    with recipe.build(out) as draft:
        shape = (dataset.n_items, earlier.shape[1])
        vectors = create_npy(draft.path / "vectors.npy", shape=shape, dtype=np.float32)
        for start in range(0, len(kept), _BLOCK):
            rows = kept[start : start + _BLOCK]
            vectors[rows] = earlier[place[rows]]
        if len(new):
            some = text_vectors(_Some(dataset, new), config, draft.scratch / "new", runtime=runtime)
            vectors[new] = some.vectors
        vectors.flush()
        draft.counts.update(items=dataset.n_items, width=shape[1], encoded=len(new))
    return TextVectors.open(out), len(new)


def _same_encoder(earlier: TextVectors, recipe: Recipe) -> bool:
    same = earlier.manifest["config"] == recipe.config.model_dump(mode="json")
    # Written by other code they may be other vectors.
    return same and bool(earlier.manifest["code"] == recipe.code)
