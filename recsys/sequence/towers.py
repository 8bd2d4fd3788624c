"""Two towers over items and histories: SASRec (Kang and McAuley, ICDM 2018) with what is known of items and times."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from recsys.hashing import seeded_keys
from recsys.ingest.dataset import Sequences, take
from recsys.sequence.config import TowersConfig
from recsys.sequence.features import ItemFeatures

GAPS: Final = 32


class ItemTower(nn.Module):
    """Item vector = projection of the frozen text vector + embeddings of its groups + id embedding.

    An item without a training event has no id embedding of its own (it is kept at zero), so that it has a vector from
    the moment it has a title; id dropout trains the rest to stand alone. Where ids share rows by hash, an item is the
    sum of two rows, each with a sign (Weinberger et al., "Feature Hashing", ICML 2009): two items are alike only if
    both of their rows are.
    """

    def __init__(self, features: ItemFeatures, known: torch.Tensor, config: TowersConfig) -> None:
        super().__init__()
        dim, text = config.dim, features.text
        self.text = None if text is None else nn.Buffer(torch.from_numpy(np.array(text)), persistent=False)
        self.known = nn.Buffer(known, persistent=False)  # [n_items] bool: has a training event
        self.id_rows = config.id_rows
        self.ids = nn.Embedding(config.id_rows or len(known), dim)
        self.id_dropout = config.id_dropout
        codes = np.array([*features.groups.values()], dtype=np.int64).reshape(-1, len(known))
        self.codes = nn.Buffer(torch.from_numpy(codes), persistent=False)  # [n_groups, n_items]
        if config.id_rows:
            items = np.arange(len(known))
            keys = np.stack([seeded_keys(items, 0, salt) for salt in (1, 2)]).astype(np.int64)
            self.rows = nn.Buffer(torch.from_numpy(keys // 2 % config.id_rows), persistent=False)  # [2, n_items]
            self.signs = nn.Buffer(torch.from_numpy(1.0 - keys % 2 * 2).float(), persistent=False)  # [2, n_items]
        self.groups = nn.ModuleList(
            nn.Embedding(int(codes.max(initial=0)) + 1, dim, padding_idx=0) for codes in features.groups.values()
        )
        if text is not None:
            self.project = nn.Linear(text.shape[1], dim)
            nn.init.normal_(self.project.weight, std=0.05)
            nn.init.zeros_(self.project.bias)
        nn.init.normal_(self.ids.weight, std=0.02)
        for group in self.groups:  # a group of which nothing was learned says nothing
            nn.init.zeros_(group.get_parameter("weight"))

    def forward(self, items: torch.Tensor | None = None) -> torch.Tensor:
        """Vectors of `items` ([m] int64; all items by default): [m, dim] float32."""
        keep, codes = (self.known, self.codes) if items is None else (self.known[items], self.codes[:, items])
        if self.training and self.id_dropout:
            keep = keep & (torch.rand(len(keep), device=keep.device) >= self.id_dropout)
        vectors = self._ids(items) * keep[:, None]
        for group, code in zip(self.groups, codes, strict=True):
            vectors = vectors + group(code)
        if self.text is not None:
            vectors = self.project(self.text if items is None else self.text[items]) + vectors
        return vectors

    def _ids(self, items: torch.Tensor | None) -> torch.Tensor:
        if not self.id_rows:
            vectors: torch.Tensor = self.ids.weight if items is None else self.ids(items)
            return vectors
        rows, signs = (self.rows, self.signs) if items is None else (self.rows[:, items], self.signs[:, items])
        total: torch.Tensor = (self.ids(rows) * signs[:, :, None]).sum(0)
        return total


class UserTower(nn.Module):
    """A causal transformer over [start, event 1, …, event n]: its output at place p knows the first p events."""

    def __init__(self, config: TowersConfig, n_event_types: int) -> None:
        super().__init__()
        dim, dropout = config.dim, config.dropout
        self.start = nn.Parameter(torch.zeros(dim))
        self.place = nn.Embedding(config.max_history + 1, dim)
        # The last place that training asked about: what stands behind it is read as that place, not as chance has it.
        self.longest = nn.Buffer(torch.tensor(config.max_history))
        self.event_type = nn.Embedding(n_event_types, dim)
        self.gap = nn.Embedding(GAPS, dim) if config.time_gaps else None
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        block = nn.TransformerEncoderLayer(
            dim, config.heads, 4 * dim, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        # Dropout on the residual branches only: inside attention and feed-forward, drawing its masks took a third of an
        # epoch on a CPU.
        block.dropout.p = block.self_attn.dropout = 0.0
        self.blocks = nn.TransformerEncoder(block, config.layers, enable_nested_tensor=False)
        for embedding in (self.place, self.event_type):
            nn.init.normal_(embedding.weight, std=0.02)
        if self.gap is not None:
            nn.init.zeros_(self.gap.weight)

    def forward(self, events: torch.Tensor, event_types: torch.Tensor, gaps: torch.Tensor) -> torch.Tensor:
        """User vectors after every prefix.

        Args:
            events: [n, T, dim] item vectors of the history, oldest first, padded on the right.
            event_types: [n, T] int64 codes.
            gaps: [n, T] int64, of `gap_codes`.

        Returns:
            [n, T + 1, dim]: place p holds the vector after p events (padding cannot reach it: attention is causal).
        """
        start = self.start.expand(len(events), 1, -1)
        marked = events + self.event_type(event_types)
        if self.gap is not None:
            marked = marked + self.gap(gaps)
        place = torch.arange(events.shape[1] + 1, device=events.device).minimum(self.longest)
        states = torch.cat([start, marked], 1) + self.place(place)
        length = states.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=states.device).triu(1)
        output: torch.Tensor = self.norm_out(
            self.blocks(self.dropout(self.norm_in(states)), mask=causal, is_causal=True)
        )
        return output.float()


class Towers(nn.Module):
    """Both towers; a pair's score is the dot product of their vectors.

    Args:
        config: width and depth.
        features: of the items.
        known: [n_items] bool, the items with a training event.
        n_event_types: how many there are.
    """

    def __init__(
        self, config: TowersConfig, features: ItemFeatures, known: torch.Tensor, *, n_event_types: int
    ) -> None:
        super().__init__()
        self.items = ItemTower(features, known, config)
        self.user = UserTower(config, n_event_types)


def gap_codes(timestamp: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How long after the event before it each event came: 0 for the first, else 1 + ⌊log₂(1 + minutes)⌋.

    Args:
        timestamp: [n, T] microseconds, in order.

    Returns:
        [n, T], below `GAPS`.
    """
    minutes = np.maximum(np.diff(timestamp, axis=1), 0) // 60_000_000
    codes = np.zeros(timestamp.shape, dtype=np.int64)
    codes[:, 1:] = np.minimum(1 + np.floor(np.log2(1.0 + minutes)), GAPS - 1)
    return codes


def pad_right(
    rows: Sequences, *, last: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The `last` events of each row as rectangles.

    Returns:
        item_idx, event_type and gaps (`gap_codes`), each [n, T] with 0 for padding, and length [n]; T is the longest
        length.
    """
    length = np.minimum(rows.lengths, last)
    mask = np.arange(max(int(length.max(initial=0)), 1))[None, :] < length[:, None]
    place = (rows.offsets[1:] - length)[:, None] + np.arange(mask.shape[1])[None, :]
    columns: tuple[npt.NDArray[np.integer], ...] = (rows.item_idx, rows.event_type, rows.timestamp)
    rectangles = [np.zeros(mask.shape, np.int64) for _ in columns]
    for rectangle, flat in zip(rectangles, columns, strict=True):
        rectangle[mask] = flat[place[mask]]
    items, types, times = rectangles
    return items, types, gap_codes(times) * mask, length


@torch.inference_mode()
def encode_users(
    tower: UserTower, item_vectors: torch.Tensor, histories: Sequences, *, max_history: int, batch: int = 512
) -> npt.NDArray[np.float32]:
    """Vectors of users from their histories, [n, dim] float32; rows in the order given, batched by length."""
    vectors = np.empty((len(histories), item_vectors.shape[1]), dtype=np.float32)
    order = np.argsort(histories.lengths, kind="stable")
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        *padded, length = pad_right(select(histories, rows), last=max_history)
        device = item_vectors.device
        items, types, gaps = (torch.from_numpy(part).to(device) for part in padded)
        states = tower(item_vectors[items], types, gaps)
        vectors[rows] = (
            states[torch.arange(len(rows), device=device), torch.from_numpy(length).to(device)].cpu().numpy()
        )
    return vectors


def select(histories: Sequences, rows: npt.NDArray[np.int64]) -> Sequences:
    """The given rows, in the given order."""
    return take(histories, histories.offsets[rows], histories.lengths[rows])
