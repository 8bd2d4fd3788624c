"""Wide evidence: what counts and frozen text vectors say of a pair, and the candidates that they retrieve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file

from recsys.evidence import Cooccurrence, Floats, Ints, own_part


@dataclass(frozen=True)
class WideEvidence:
    """Features of pairs, and the retrieval that they make.

    A pair's features are logarithms, so that a weighted sum of them is a product of evidence:

    * `cooccurrence`: log(.01 + Σ .6^age · sim(history item → candidate)), see `Cooccurrence`;
    * `last`: the same of the last history item alone;
    * `text`: log(.05 + Σ .7^age · exp(12 · (cos − 1))), cosines of centred sentence vectors;
    * `popularity`: log(1 + events).
    """

    FEATURES: ClassVar[tuple[str, ...]] = ("cooccurrence", "last", "text", "popularity")
    PRIOR: ClassVar[tuple[float, ...]] = (1.0, 0.0, 1.0, 0.3)  # weights of the retrieval, and the head's start
    TEXT_DECAY: ClassVar[float] = 0.7
    HISTORY: ClassVar[int] = 20  # most recent events looked at
    NEIGHBOURS: ClassVar[int] = 100  # most similar texts that an item retrieves

    cooccurrence: Cooccurrence
    similarities: Floats  # [n_pairs], Cooccurrence.similarities()
    text: Floats  # [n_items, width], centred, unit length
    neighbours: Ints  # [n_items, NEIGHBOURS or fewer], the items of the most similar texts
    kernel: Floats  # as `neighbours`: exp(12 · (cos − 1))

    @classmethod
    def fit(cls, cooccurrence: Cooccurrence, text: Floats) -> WideEvidence:
        """Join counts with sentence vectors (centred here: they share a strong common direction)."""
        centred = text - text.mean(0)
        text = (centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)).astype(np.float32)
        catalogue = torch.from_numpy(text)
        blocks = [
            (block @ catalogue.T).topk(min(cls.NEIGHBOURS, len(text)), dim=1) for block in torch.split(catalogue, 1024)
        ]
        return cls(
            cooccurrence,
            cooccurrence.similarities(),
            text,
            torch.cat([block.indices for block in blocks]).numpy().astype(np.int32),
            torch.cat([block.values for block in blocks]).sub_(1).mul_(12).exp_().numpy(),
        )

    def save(self, path: Path) -> None:
        """Write everything to one safetensors file."""
        counts = self.cooccurrence
        save_file(
            {
                "offsets": counts.offsets,
                "columns": counts.columns,
                "weights": counts.weights,
                "counts": counts.counts,
                "window": np.array([counts.window]),
                "backward": np.array([counts.backward]),
                "text": self.text,
                "neighbours": self.neighbours,
                "kernel": self.kernel,
            },
            path,
        )

    @classmethod
    def load(cls, path: Path) -> WideEvidence:
        """Read what `save` wrote."""
        arrays = load_file(path)
        counts = Cooccurrence(
            offsets=arrays["offsets"],
            columns=arrays["columns"],
            weights=arrays["weights"],
            counts=arrays["counts"],
            window=int(arrays["window"][0]),
            backward=float(arrays["backward"][0]),
        )
        return cls(counts, counts.similarities(), arrays["text"], arrays["neighbours"], arrays["kernel"])

    def features(self, history: Ints, candidates: Ints, own: Ints | None = None) -> Floats:
        """Evidence of pairs.

        Args:
            history: [n, H] items, oldest first, −1 for padding on the left.
            candidates: [n, C] items.
            own: [n, L] each user's whole training sequence (−1: padding) where that user's own transitions have to
                be taken out of the counts, because one of the candidates is what the user really chose next.

        Returns:
            [n, C, 4] float32, in the order of `FEATURES`.
        """
        counts = self.cooccurrence
        there = history >= 0
        source = np.where(there, history, 0)
        pairs = counts.lookup(source[:, :, None], candidates[:, None, :]) * there[:, :, None]
        source_count = counts.counts[source].astype(np.float32)
        target_count = counts.counts[candidates].astype(np.float32)
        if own is not None:
            own_pairs, own_source, own_target = own_part(history, candidates, own, counts)
            pairs = np.maximum(pairs - own_pairs, 0)
            source_count, target_count = source_count - own_source, target_count - own_target
            pairs[pairs < 1e-5] = 0  # what float32 leaves of an exact difference
        similarity = pairs / (
            np.maximum(source_count, 1)[:, :, None] ** counts.SOURCE_EXPONENT
            * np.maximum(target_count, 1)[:, None, :] ** counts.TARGET_EXPONENT
        )
        cosine = self.text[source] @ self.text[candidates].transpose(0, 2, 1)
        age = np.arange(history.shape[1])[::-1]
        kernel = np.exp(12 * (cosine - 1)) * there[:, :, None]
        return np.stack(
            [
                np.log(0.01 + np.einsum("h,nhc->nc", counts.DECAY**age, similarity)),
                np.log(0.01 + similarity[:, -1]),
                np.log(0.05 + np.einsum("h,nhc->nc", self.TEXT_DECAY**age, kernel)),
                np.log1p(target_count),
            ],
            axis=-1,
        ).astype(np.float32)

    def retrieve(
        self, history: Ints, seen: tuple[npt.NDArray[np.int64], Ints], k: int, own: Ints | None = None
    ) -> Ints:
        """The k items that the evidence, weighted by `PRIOR`, puts first among those not seen.

        Args:
            history: [n, H] as in `features`.
            seen: (row, item) pairs to leave out.
            k: how many.
            own: as in `features`.

        Returns:
            [n, k] int32, best first; −1 where fewer than k unseen items exist.
        """
        n, n_items = len(history), self.cooccurrence.n_items
        counts, rows = self.cooccurrence, np.repeat(np.arange(n), history.shape[1])
        age = np.tile(np.arange(history.shape[1])[::-1], n)
        there = history.ravel() >= 0
        rows, age, items = rows[there], age[there], history.ravel()[there]
        # Both kinds of evidence are sparse: the rows of the history items, weighted by age, summed per user.
        length = counts.offsets[items + 1] - counts.offsets[items]
        place = np.repeat(counts.offsets[items] - np.cumsum(length) + length, length) + np.arange(length.sum())
        cooccurrence = np.bincount(
            np.repeat(rows, length) * n_items + counts.columns[place],
            weights=self.similarities[place] * np.repeat(counts.DECAY**age, length),
            minlength=n * n_items,
        )
        text = np.bincount(
            (rows[:, None] * n_items + self.neighbours[items]).ravel(),
            weights=(self.kernel[items] * (self.TEXT_DECAY**age)[:, None]).ravel(),
            minlength=n * n_items,
        )
        score = (
            torch.from_numpy(cooccurrence).float().add_(0.01).log_().mul_(self.PRIOR[0])
            + torch.from_numpy(text).float().add_(0.05).log_().mul_(self.PRIOR[2])
        ).view(n, n_items) + torch.from_numpy(self.PRIOR[3] * np.log1p(counts.counts)).float()
        if own is not None:
            mask = own >= 0
            exact = self.features(history, np.where(mask, own, 0).astype(np.int32), own) @ np.array(
                self.PRIOR, np.float32
            )
            score[np.nonzero(mask)[0], own[mask]] = torch.from_numpy(exact[mask])
        score[seen] = -np.inf
        values, best = score.topk(min(k, n_items), dim=1)
        found = np.full((n, k), -1, dtype=np.int32)
        found[:, : best.shape[1]] = np.where(np.isfinite(values.numpy()), best.numpy(), -1)
        return found
