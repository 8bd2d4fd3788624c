"""Wide evidence: what counts and frozen text vectors say of a pair, and the candidates that they retrieve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file

from recsys.evidence import Cooccurrence, Floats, Ints, OwnPart
from recsys.ingest.dataset import Sequences

_AS_THEY_ARE = ("text", "neighbours", "kernel", "log_price")


@dataclass(frozen=True)
class WideEvidence:
    """Features of pairs, and the retrieval that they make.

    A pair's features are logarithms, so that a weighted sum of them is a product of evidence:

    * `cooccurrence`: log(.01 + Σ .6^age · sim(history item → candidate)), see `Cooccurrence`;
    * `last`: the same of the last history item alone;
    * `text`: log(.05 + Σ .7^age · exp(12 · (cos − 1))), cosines of centred sentence vectors;
    * `popularity`: log(1 + events);
    * `price`: −|log price − the mean log price of the history, weighted by .7^age|; 0 where either is unknown.
    """

    FEATURES: ClassVar[tuple[str, ...]] = ("cooccurrence", "last", "text", "popularity", "price")
    PRIOR: ClassVar[tuple[float, ...]] = (1.0, 0.0, 1.0, 0.3, 0.0)  # weights of the retrieval, and the head's start
    TEXT_DECAY: ClassVar[float] = 0.7
    HISTORY: ClassVar[int] = 20  # most recent events looked at
    NEIGHBOURS: ClassVar[int] = 100  # most similar texts that an item retrieves

    cooccurrence: Cooccurrence
    similarities: Floats  # [n_pairs], Cooccurrence.similarities()
    text: Floats  # [n_items, width], centred, unit length
    neighbours: Ints  # [n_items, NEIGHBOURS or fewer], the items of the most similar texts
    kernel: Floats  # as `neighbours`: exp(12 · (cos − 1))
    log_price: Floats  # [n_items], NaN where there is none

    @classmethod
    def fit(cls, cooccurrence: Cooccurrence, text: Floats, price: npt.NDArray[np.float64]) -> WideEvidence:
        """Join counts with sentence vectors (centred here: they share a strong common direction) and prices.

        Args:
            cooccurrence: the counts.
            text: [n_items, width].
            price: [n_items], NaN where there is none.
        """
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
            np.log(np.where(price > 0, price, np.nan)).astype(np.float32),
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
                "log_price": self.log_price,
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
        return cls(counts, counts.similarities(), *(arrays[name] for name in _AS_THEY_ARE))

    def features(self, history: Ints, candidates: Ints, own: Sequences | None = None) -> Floats:
        """Evidence of pairs.

        Args:
            history: [n, H] items, oldest first, −1 for padding on the left.
            candidates: [n, C] items.
            own: n rows, each user's whole training sequence, where that user's own part has to be taken out of the
                counts, because one of the candidates may be what the user really chose next.

        Returns:
            [n, C, 5] float32, in the order of `FEATURES`.
        """
        counts = self.cooccurrence
        there = history >= 0
        source = np.where(there, history, 0)
        pairs = counts.lookup(source[:, :, None], candidates[:, None, :]) * there[:, :, None]
        source_count = counts.counts[source].astype(np.float32)
        target_count = counts.counts[candidates].astype(np.float32)
        if own is not None:
            part = OwnPart.fit(history, own, counts)
            pairs = np.maximum(pairs - part.pairs(source, candidates) * there[:, :, None], 0)
            source_count = source_count - part.counts(source)
            target_count = target_count - part.counts(candidates)
            pairs[pairs < 1e-5] = 0  # what float32 leaves of an exact difference
        similarity = pairs / (
            np.maximum(source_count, 1)[:, :, None] ** counts.SOURCE_EXPONENT
            * np.maximum(target_count, 1)[:, None, :] ** counts.TARGET_EXPONENT
        )
        cosine = self.text[source] @ self.text[candidates].transpose(0, 2, 1)
        age = np.arange(history.shape[1])[::-1]
        kernel = np.exp(12 * (cosine - 1)) * there[:, :, None]
        weight = self.TEXT_DECAY**age * (there & ~np.isnan(self.log_price[source]))
        usual = (weight * np.nan_to_num(self.log_price[source])).sum(1) / np.maximum(weight.sum(1), 1e-9)
        distance = np.abs(self.log_price[candidates] - usual[:, None])
        return np.stack(
            [
                np.log(0.01 + np.einsum("h,nhc->nc", counts.DECAY**age, similarity)),
                np.log(0.01 + similarity[:, -1]),
                np.log(0.05 + np.einsum("h,nhc->nc", self.TEXT_DECAY**age, kernel)),
                np.log1p(target_count),
                -np.where((weight.sum(1) > 0)[:, None], np.nan_to_num(distance), 0.0),
            ],
            axis=-1,
        ).astype(np.float32)

    def retrieve(
        self,
        history: Ints,
        seen: tuple[npt.NDArray[np.int64], Ints],
        k: int,
        own: Sequences | None = None,
        more: Floats | None = None,
    ) -> Ints:
        """The k items that the evidence, weighted by `PRIOR`, puts first among those not seen.

        The price is not asked: its weight there is 0.

        Args:
            history: [n, H] as in `features`.
            seen: (row, item) pairs to leave out.
            k: how many.
            own: as in `features`.
            more: [n, n_items] what is added to the sum, such as `Behaviour.log_probabilities`.

        Returns:
            [n, k] int32, best first; −1 where fewer than k unseen items exist.
        """
        counts, n, n_items = self.cooccurrence, len(history), self.cooccurrence.n_items
        rows, column = np.nonzero(history >= 0)
        age, items = history.shape[1] - 1 - column, history[rows, column]
        source_count, target_count = counts.counts[items], counts.counts
        part = None if own is None else OwnPart.fit(history, own, counts)
        if part is not None:
            source_count = source_count - part.counts(np.where(history >= 0, history, 0))[rows, column]
        source = counts.DECAY**age / np.maximum(source_count, 1) ** counts.SOURCE_EXPONENT
        # Both kinds of evidence are sparse: the rows of the history items, weighted by age, summed per user.
        length = counts.offsets[items + 1] - counts.offsets[items]
        place = np.repeat(counts.offsets[items] - np.cumsum(length) + length, length) + np.arange(length.sum())
        cooccurrence = np.bincount(
            np.repeat(rows, length) * n_items + counts.columns[place],
            weights=counts.weights[place] * np.repeat(source, length),
            minlength=n * n_items,
        )
        text = np.bincount(
            (rows[:, None] * n_items + self.neighbours[items]).ravel(),
            weights=(self.kernel[items] * (self.TEXT_DECAY**age)[:, None]).ravel(),
            minlength=n * n_items,
        )
        popularity = np.broadcast_to(target_count, (n, n_items))
        if part is not None:
            # The own pairs of an item that the history holds twice were summed twice above, too.
            weight = np.bincount(rows * n_items + items, weights=source, minlength=n * n_items)
            from_item, target = np.divmod(part.pair_keys, n_items)
            key = from_item // n_items * n_items + target
            cooccurrence -= np.bincount(key, weights=part.pair_weights * weight[from_item], minlength=n * n_items)
            cooccurrence[cooccurrence < 1e-6] = 0  # what float32 counts leave of an exact difference
            popularity = popularity.copy()
            popularity.ravel()[part.item_keys] -= part.item_counts
        affinity = cooccurrence.reshape(n, n_items) / np.maximum(popularity, 1) ** counts.TARGET_EXPONENT
        score = (
            torch.from_numpy(affinity).float().add_(0.01).log_().mul_(self.PRIOR[0])
            + torch.from_numpy(text).float().view(n, n_items).add_(0.05).log_().mul_(self.PRIOR[2])
            + torch.from_numpy(np.log1p(popularity)).float().mul_(self.PRIOR[3])
        )
        if more is not None:
            score += torch.from_numpy(more)
        score[seen] = -np.inf
        values, best = score.topk(min(k, n_items), dim=1)
        found = np.full((n, k), -1, dtype=np.int32)
        found[:, : best.shape[1]] = np.where(np.isfinite(values.numpy()), best.numpy(), -1)
        return found
