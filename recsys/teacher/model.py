"""The teacher: a cross-encoder over text and behaviour, and the artifact that holds a trained one."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from recsys.artifacts import Artifact, create_npy
from recsys.errors import InputError
from recsys.hashing import mix, seeded_keys
from recsys.ingest.dataset import Dataset, Sequences, pad_left, take
from recsys.runtime import Runtime
from recsys.teacher.behaviour import Behaviour, BehaviourTowers
from recsys.teacher.config import TeachConfig
from recsys.teacher.packing import NAME as PACKED
from recsys.teacher.packing import Layout, block_mask
from recsys.teacher.wide import WideEvidence
from recsys.text import item_texts, load_encoder

# Of a pair, and their weights before training: a product of all kinds of evidence.
FEATURES: Final = (*WideEvidence.FEATURES, "behaviour")
PRIOR: Final = (*WideEvidence.PRIOR, 1.0)


class PassThrough(nn.Module):
    """Stands where an encoder has its embeddings: hands on `inputs_embeds`, so that the encoder starts at any layer."""

    def forward(self, *positional: Any, **named: Any) -> torch.Tensor:
        """Return the one argument that holds vectors (encoders differ in how they hand it over)."""
        arguments = (*positional, *named.values())
        states: torch.Tensor = next(x for x in arguments if isinstance(x, torch.Tensor) and x.is_floating_point())
        return states


def split_encoder(model: Any, joint_layers: int) -> tuple[Any, Any]:
    """Cut an encoder in two: layers that read each item alone, and the top `joint_layers` that read a packed row.

    Raises:
        InputError: the encoder's layers cannot be found or number fewer than `joint_layers`.
    """
    total = model.config.num_hidden_layers
    stacks = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == total]
    if len(stacks) != 1 or not hasattr(model, "embeddings") or not 1 <= joint_layers <= total:
        raise InputError(
            f"the encoder {type(model).__name__} has {total} layers in {len(stacks)} stacks",
            expected=f"one stack of at least {joint_layers} layers (teach.joint_layers) behind `embeddings`",
            do="lower teach.joint_layers, or take an encoder built like BERT",
        )
    parent, _, leaf = stacks[0].rpartition(".")
    cut = total - joint_layers
    lower, upper = model, copy.deepcopy(model)
    for part, layers in ((lower, slice(0, cut)), (upper, slice(cut, total))):
        owner = part.get_submodule(parent)
        setattr(owner, leaf, getattr(owner, leaf)[layers])
        part.config.num_hidden_layers = len(getattr(owner, leaf))
        if getattr(part, "pooler", None) is not None:
            part.pooler = None
    upper.embeddings = PassThrough()
    for module in upper.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # a few thousand examples underfit; on a CPU, drawing its masks took a quarter of a step
    upper.set_attn_implementation(PACKED)
    return lower, upper


@dataclass(frozen=True)
class ItemStates:
    """Every item's tokens after the lower layers, which are frozen and see no other item: computed once."""

    states: npt.NDArray[np.float16]  # [n_items, K, width]
    length: npt.NDArray[np.int64]  # [n_items], tokens that are not padding, at least 1

    @classmethod
    def compute(cls, dataset: Dataset, config: TeachConfig, encoder: str, out: Path, runtime: Runtime) -> ItemStates:
        """Run all item texts through the lower layers, into `item_states.npy` and `item_lengths.npy` under `out`.

        `encoder` is `config.encoder`, or what was adapted from it.
        """
        tokenizer, model = load_encoder(encoder)
        lower, _ = split_encoder(model, config.joint_layers)
        device, dtype = runtime.torch_device(), runtime.compute_dtype()
        lower.eval().to(device)
        # The closing separator tells nothing that the next item's first token does not.
        tokens = [
            row[:-1] or row
            for row in tokenizer(item_texts(dataset), truncation=True, max_length=config.max_tokens + 1)["input_ids"]
        ]
        length = np.array([len(row) for row in tokens], dtype=np.int64)
        shape = (len(tokens), config.max_tokens, lower.config.hidden_size)
        states = create_npy(out / "item_states.npy", shape=shape, dtype=np.float16)
        order, batch = np.argsort(length, kind="stable"), 256
        steps = runtime.track(range(0, len(order), batch), label="read item texts", unit="batch")
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            for start in steps:
                rows = order[start : start + batch]
                padded = tokenizer.pad(
                    {"input_ids": [tokens[row] for row in rows]},
                    padding="max_length",
                    max_length=config.max_tokens,
                    return_tensors="pt",
                ).to(device)
                states[rows] = lower(**padded).last_hidden_state.to(torch.float16).cpu().numpy()
        states.flush()
        np.save(out / "item_lengths.npy", length)
        return cls.open(out)

    @classmethod
    def open(cls, folder: Path) -> ItemStates:
        """Map what `compute` wrote."""
        return cls(np.load(folder / "item_states.npy", mmap_mode="r"), np.load(folder / "item_lengths.npy"))


class Evidence(nn.Module):
    """Weighted evidence of a pair, and a small network for what no weights can say, such as one kind by another."""

    def __init__(self, n_features: int, dropout: float) -> None:
        super().__init__()
        self.mean, self.scale = nn.Buffer(torch.zeros(n_features)), nn.Buffer(torch.ones(n_features))
        self.linear = nn.Linear(n_features, 1, bias=False)
        self.network = nn.Sequential(
            nn.Linear(n_features, 32),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(32, 16),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(16, 1, bias=False),
        )
        nn.init.zeros_(self.network[-1].get_parameter("weight"))
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([PRIOR]))

    def standard(self, features: torch.Tensor) -> torch.Tensor:
        """Features of mean 0 and deviation 1 over the pairs that it was fitted on."""
        return (features - self.mean) / self.scale

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [n, C] of features [n, C, 11]."""
        logits: torch.Tensor = self.linear(features) + self.network(self.standard(features))
        return logits.squeeze(-1)


class TeacherModel(nn.Module):
    """Logit of a pair = `Evidence` + what the encoder reads in history and candidate together.

    The head's last layer starts at zero: before training the teacher is the evidence, and training can only say
    where the text and the behaviour together know better. The head sees the evidence too, so that it can weigh one by
    the other.
    """

    def __init__(self, encoder: Any, item_vectors: torch.Tensor, config: TeachConfig, *, n_event_types: int) -> None:
        super().__init__()
        width, n_features = encoder.config.hidden_size, len(FEATURES)
        self.config = config
        self.encoder = encoder
        self.item = nn.Embedding(*item_vectors.shape)
        self.item_token = nn.Linear(item_vectors.shape[1], width, bias=False)
        self.recency = nn.Embedding(config.history, width)
        self.event_type = nn.Embedding(n_event_types, width)
        self.candidate = nn.Parameter(torch.zeros(width))
        self.evidence = Evidence(n_features, config.dropout)
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width + n_features, 128)
        self.dropout = nn.Dropout(config.dropout)
        self.delta = nn.Linear(128, 1)
        with torch.no_grad():
            self.item.weight.copy_(item_vectors)
        for module in (self.recency, self.event_type, self.item_token):
            nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.delta.weight)
        nn.init.zeros_(self.delta.bias)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits [n, C] float32 of a packed batch."""
        n, past, width = batch.history_states.shape[:3]
        count, hidden = batch.candidates.shape[1], batch.history_states.shape[3]
        # An item's first token carries its collaborative embedding; all its tokens carry recency and event type.
        history = batch.history_states + (
            self.recency.weight[:past].flip(0)[None, :, None] + self.event_type(batch.event_types)[:, :, None]
        )
        candidates = batch.candidate_states + self.candidate
        if self.config.item_tokens:
            history = _add_to_first(history, self.item_token(self.item(batch.history)))
            candidates = _add_to_first(candidates, self.item_token(self.item(batch.candidates)))
        history, candidates = history.view(n, past * width, hidden), candidates.view(n, count * width, hidden)
        history_valid, candidate_valid = batch.history_valid.flatten(1), batch.candidate_valid.flatten(1)
        if not self.config.packed:  # a row for each candidate, and in it everything reads everything
            history, history_valid = (part.repeat_interleave(count, 0) for part in (history, history_valid))
            candidates, candidate_valid = candidates.view(n * count, width, hidden), candidate_valid.view(-1, width)
        packed = torch.cat([history, candidates], 1)
        valid = torch.cat([history_valid, candidate_valid], 1)
        layout = Layout(past * width, count, width) if self.config.packed else Layout((past + 1) * width, 0, width)
        states = self.encoder(
            inputs_embeds=packed,
            attention_mask=valid[:, None, None, :],
            position_ids=torch.arange(packed.shape[1], device=packed.device).remainder(width).expand(len(packed), -1),
            layout=layout,
            block_mask=block_mask(valid, layout) if packed.device.type == "cuda" else None,
        ).last_hidden_state
        first = states[:, past * width :: width].reshape(n, count, hidden)  # each candidate's first token
        first = self.norm(first.float())
        features = batch.features if self.config.evidence else torch.zeros_like(batch.features)
        standard = self.evidence.standard(features)
        read = self.dropout(functional.gelu(self.hidden(torch.cat([first, standard], -1))))
        logits: torch.Tensor = self.evidence(features).float() + self.delta(read).float().squeeze(-1)
        return logits


def _add_to_first(states: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    return torch.cat([states[:, :, :1] + first[:, :, None], states[:, :, 1:]], 2)


@dataclass(frozen=True)
class Batch:
    """A packed batch: n users, H history items, C candidates, K tokens an item, width d."""

    history: torch.Tensor  # [n, H] int64, 0 for padding
    event_types: torch.Tensor  # [n, H] int64
    history_states: torch.Tensor  # [n, H, K, d] float32
    history_valid: torch.Tensor  # [n, H, K] bool
    candidates: torch.Tensor  # [n, C] int64
    candidate_states: torch.Tensor  # [n, C, K, d] float32
    candidate_valid: torch.Tensor  # [n, C, K] bool
    features: torch.Tensor  # [n, C, 11] float32, in the order of FEATURES


@dataclass(frozen=True)
class Packer:
    """Makes packed batches of item states and evidence, and retrieves candidates by the same evidence."""

    items: ItemStates
    wide: WideEvidence
    behaviour: Behaviour
    config: TeachConfig

    @property
    def history(self) -> int:
        """Most recent events that anything here reads."""
        return max(WideEvidence.HISTORY, self.behaviour.max_history, self.config.history)

    def to(self, device: torch.device) -> Packer:
        """The same, with its towers there."""
        return replace(self, behaviour=self.behaviour.to(device))

    def retrieve(
        self,
        histories: Sequences,
        seen: tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]],
        k: int,
        own: Sequences | None = None,
    ) -> npt.NDArray[np.int32]:
        """The k unseen items that the evidence puts first, [n, k] int32; see `WideEvidence.retrieve`."""
        more = self.behaviour.log_probabilities(histories)
        return self.wide.retrieve(pad_left(histories, WideEvidence.HISTORY)[0], seen, k, own, more)

    def features(
        self, histories: Sequences, candidates: npt.NDArray[np.int32], own: Sequences | None = None
    ) -> npt.NDArray[np.float32]:
        """All evidence of pairs, [n, C, 11] in the order of `FEATURES`; `own` as in `WideEvidence.features`."""
        history, _ = pad_left(histories, WideEvidence.HISTORY)
        behaviour = self.behaviour.of_pairs(histories, candidates)
        return np.concatenate([self.wide.features(history, candidates, own), behaviour[:, :, None]], axis=2)

    def pack(
        self,
        histories: Sequences,
        candidates: npt.NDArray[np.int32],
        *,
        device: torch.device,
        own: Sequences | None = None,
    ) -> Batch:
        """Pack rows of histories with their candidates ([n, C]); `own` as in `WideEvidence.features`."""
        recent, types = pad_left(histories, self.config.history)
        longest = max(int((recent >= 0).sum(1).max(initial=1)), 1)
        recent, types = recent[:, -longest:], types[:, -longest:]
        there, items = recent >= 0, np.maximum(recent, 0)
        features = self.features(histories, candidates, own)

        def gather(rows: npt.NDArray[np.int32]) -> tuple[torch.Tensor, npt.NDArray[np.bool_]]:
            # Each distinct item is read from the memory map once a batch.
            distinct, inverse = np.unique(rows, return_inverse=True)
            states = torch.from_numpy(self.items.states[distinct]).to(device).float()
            valid = np.arange(self.items.states.shape[1]) < self.items.length[rows][..., None]
            return states[torch.from_numpy(inverse.reshape(rows.shape)).to(device)], valid

        history_states, history_valid = gather(items)
        candidate_states, candidate_valid = gather(candidates)
        return Batch(
            history=torch.from_numpy(items.astype(np.int64)).to(device),
            event_types=torch.from_numpy(types).to(device),
            history_states=history_states,
            history_valid=torch.from_numpy(history_valid & there[:, :, None]).to(device),
            candidates=torch.from_numpy(candidates.astype(np.int64)).to(device),
            candidate_states=candidate_states,
            candidate_valid=torch.from_numpy(candidate_valid).to(device),
            features=torch.from_numpy(features).to(device),
        )


def reranked(logits: npt.NDArray[np.float32], pool: npt.NDArray[np.int32], *, k: int = 10) -> npt.NDArray[np.int32]:
    """The k candidates of each row with the highest logits, [n, k], of logits and a pool (−1 for none), each [n, C].

    Equal logits stand in a pseudo-random order: left in the order of the pool, a model that knows nothing would look as
    good as what retrieved it.
    """
    order = mix(seeded_keys(np.arange(len(pool)), 0)[:, None] ^ pool.astype(np.uint32))
    best = np.lexsort((order, np.where(pool < 0, np.inf, -logits)), axis=1)[:, :k]
    return np.take_along_axis(pool, best, axis=1)


class Teacher(Artifact):
    """What `recsys teach` writes: weights of the joint layers and the head, item states, evidence, towers."""

    kind: ClassVar[str] = "teacher"
    stage: ClassVar[str] = "teach"

    @cached_property
    def config(self) -> TeachConfig:
        """The config that it was trained with."""
        return TeachConfig.model_validate(self.manifest["config"])

    @cached_property
    def wide(self) -> WideEvidence:
        """The evidence that it reads beside the text."""
        return WideEvidence.load(self.path / "evidence.safetensors")

    def packer(self, *, before: bool = False) -> Packer:
        """What makes its batches; `before`: with the towers that do not know the held-out events of training."""
        return self._packers[int(before)]

    @cached_property
    def _packers(self) -> tuple[Packer, Packer]:
        items = ItemStates.open(self.path)
        one, two = (
            Packer(items, self.wide, Behaviour.load(self.path / name, self.config.behaviour), self.config)
            for name in (BehaviourTowers.FILE, BehaviourTowers.BEFORE_FILE)
        )
        return one, two

    @cached_property
    def model(self) -> TeacherModel:
        """The network, for scoring."""
        _, encoder = split_encoder(load_encoder(self.config.encoder)[1], self.config.joint_layers)
        weights = load_file(self.path / "weights.safetensors")
        model = TeacherModel(
            encoder, weights["item.weight"], self.config, n_event_types=len(weights["event_type.weight"])
        )
        model.load_state_dict(weights)
        return model.eval().requires_grad_(False)

    def score(
        self,
        histories: Sequences,
        candidates: npt.NDArray[np.int32],
        *,
        own: Sequences | None = None,
        before: bool = False,
        runtime: Runtime | None = None,
    ) -> npt.NDArray[np.float32]:
        """Logits of (user, item) pairs.

        Args:
            histories: n rows, oldest event first.
            candidates: [n, C] item_idx.
            own: n rows, the users' training sequences, where the candidates may hold what a user chose in training,
                and the counts must be read without that user's own part.
            before: ask the towers that do not know the held-out events, for positions inside the training part.
            runtime: where to compute.

        Returns:
            [n, C] float32; the higher, the likelier is the item the user's next one.
        """
        runtime = runtime or Runtime()
        device, dtype = runtime.torch_device(), runtime.compute_dtype()
        model = self.model.to(device)
        packer = self.packer(before=before).to(device)
        return score_packed(model, packer, histories, candidates, own, device=device, dtype=dtype)


@torch.inference_mode()
def score_packed(
    model: TeacherModel,
    packer: Packer,
    histories: Sequences,
    candidates: npt.NDArray[np.int32],
    own: Sequences | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    tokens: int | None = None,
) -> npt.NDArray[np.float32]:
    """Logits [n, C], in batches of about `tokens` tokens of rows alike in length.

    By default as many as stay in a CPU's cache (a sixth faster than three times as many), or as fill a GPU.
    """
    tokens = tokens or (4_000 if device.type == "cpu" else 100_000)
    logits = np.empty(candidates.shape, dtype=np.float32)
    order = np.argsort(histories.lengths, kind="stable")
    past, count = packer.config.history, candidates.shape[1]
    items = past + count if packer.config.packed else (past + 1) * count  # that are read for a row
    batch = max(tokens // (items * packer.config.max_tokens), 1)
    model.eval()
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        packed = packer.pack(
            take(histories, histories.offsets[rows], histories.lengths[rows]),
            candidates[rows],
            own=None if own is None else take(own, own.offsets[rows], own.lengths[rows]),
            device=device,
        )
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits[rows] = model(packed).float().cpu().numpy()
    return logits
