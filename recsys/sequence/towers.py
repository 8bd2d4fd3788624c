"""Two towers over items and histories: SASRec (Kang and McAuley, ICDM 2018) with text beside the item's id."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from recsys.ingest.dataset import Sequences, take
from recsys.sequence.config import TowersConfig


class ItemTower(nn.Module):
    """Item vector = projection of the frozen text vector (where there is one) + id embedding.

    An item without a training event has no id embedding of its own (it is kept at zero), so that it has a vector from
    the moment it has a title; id dropout trains the projection to stand alone.
    """

    def __init__(self, text: torch.Tensor | None, known: torch.Tensor, *, dim: int, id_dropout: float) -> None:
        super().__init__()
        self.text = None if text is None else nn.Buffer(text, persistent=False)  # [n_items, width] float32
        self.known = nn.Buffer(known, persistent=False)  # [n_items] bool: has a training event
        self.ids = nn.Embedding(len(known), dim)
        self.id_dropout = id_dropout
        if text is not None:
            self.project = nn.Linear(text.shape[1], dim)
            nn.init.normal_(self.project.weight, std=0.05)
            nn.init.zeros_(self.project.bias)
        nn.init.normal_(self.ids.weight, std=0.02)

    def forward(self, items: torch.Tensor | None = None) -> torch.Tensor:
        """Vectors of `items` ([m] int64; all items by default): [m, dim] float32."""
        ids, keep = (self.ids.weight, self.known) if items is None else (self.ids(items), self.known[items])
        if self.training and self.id_dropout:
            keep = keep & (torch.rand(len(keep), device=keep.device) >= self.id_dropout)
        vectors: torch.Tensor = ids * keep[:, None]
        if self.text is not None:
            vectors = self.project(self.text if items is None else self.text[items]) + vectors
        return vectors


class UserTower(nn.Module):
    """A causal transformer over [start, event 1, …, event n]: its output at place p knows the first p events."""

    def __init__(
        self, *, dim: int, layers: int, heads: int, max_history: int, n_event_types: int, dropout: float
    ) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(dim))
        self.place = nn.Embedding(max_history + 1, dim)
        self.event_type = nn.Embedding(n_event_types, dim)
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        block = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        # Dropout on the residual branches only: inside attention and feed-forward, drawing its masks took a third of an
        # epoch on a CPU.
        block.dropout.p = block.self_attn.dropout = 0.0
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        for embedding in (self.place, self.event_type):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, events: torch.Tensor, event_types: torch.Tensor) -> torch.Tensor:
        """User vectors after every prefix.

        Args:
            events: [n, T, dim] item vectors of the history, oldest first, padded on the right.
            event_types: [n, T] int64 codes.

        Returns:
            [n, T + 1, dim]: place p holds the vector after p events (padding cannot reach it: attention is causal).
        """
        start = self.start.expand(len(events), 1, -1)
        states = torch.cat([start, events + self.event_type(event_types)], 1) + self.place.weight[: events.shape[1] + 1]
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
        text: [n_items, width] float32, or None.
        known: [n_items] bool, the items with a training event.
        n_event_types: how many there are.
    """

    def __init__(
        self, config: TowersConfig, text: torch.Tensor | None, known: torch.Tensor, *, n_event_types: int
    ) -> None:
        super().__init__()
        self.items = ItemTower(text, known, dim=config.dim, id_dropout=config.id_dropout)
        self.user = user_tower(config, n_event_types)


def user_tower(config: TowersConfig, n_event_types: int) -> UserTower:
    """Build the user tower that `config` describes, with fresh weights."""
    return UserTower(
        dim=config.dim,
        layers=config.layers,
        heads=config.heads,
        max_history=config.max_history,
        n_event_types=n_event_types,
        dropout=config.dropout,
    )


def pad_right(
    rows: Sequences, *, last: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The `last` events of each row as rectangles.

    Returns:
        item_idx [n, T] (0 for padding), event_type [n, T] (0 for padding), length [n]; T is the longest length.
    """
    length = np.minimum(rows.lengths, last)
    mask = np.arange(max(int(length.max(initial=0)), 1))[None, :] < length[:, None]
    place = (rows.offsets[1:] - length)[:, None] + np.arange(mask.shape[1])[None, :]
    items, types = np.zeros(mask.shape, np.int64), np.zeros(mask.shape, np.int64)
    items[mask] = rows.item_idx[place[mask]]
    types[mask] = rows.event_type[place[mask]]
    return items, types, length


@torch.inference_mode()
def encode_users(
    tower: UserTower, item_vectors: torch.Tensor, histories: Sequences, *, max_history: int, batch: int = 512
) -> npt.NDArray[np.float32]:
    """Vectors of users from their histories, [n, dim] float32; rows in the order given, batched by length."""
    vectors = np.empty((len(histories), item_vectors.shape[1]), dtype=np.float32)
    order = np.argsort(histories.lengths, kind="stable")
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        items, types, length = pad_right(select(histories, rows), last=max_history)
        device = item_vectors.device
        states = tower(item_vectors[torch.from_numpy(items).to(device)], torch.from_numpy(types).to(device))
        vectors[rows] = (
            states[torch.arange(len(rows), device=device), torch.from_numpy(length).to(device)].cpu().numpy()
        )
    return vectors


def select(histories: Sequences, rows: npt.NDArray[np.int64]) -> Sequences:
    """The given rows, in the given order."""
    return take(histories, histories.offsets[rows], histories.lengths[rows])
