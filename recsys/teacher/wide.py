"""Wide evidence: what counts and frozen text vectors say of a pair, and the candidates that they retrieve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors.numpy import load_file, save_file

from recsys.evidence import Cooccurrence, Floats, Ints, OwnPart
from recsys.ingest.dataset import Sequences
from recsys.items import category_codes, centred_vectors, group_codes, group_shares, log_prices, price_distance

_ARRAYS: Final = ("text", "neighbours", "kernel", "groups", "log_price")


@dataclass(frozen=True)
class WideEvidence:
    """Features of pairs, and the retrieval that they make.

    A pair's features are logarithms, so that a weighted sum of them is a product of evidence:

    * `cooccurrence`: log(.01 + Σ .6^age · sim(history item → candidate)), see `Cooccurrence`;
    * `last`: the same of the last history item alone;
    * `next`: log(.01 + sim) of the last history item by what came right after it, and nothing else;
    * `text`: log(.05 + Σ .7^age · exp(12 · (cos − 1))), cosines of centred sentence vectors;
    * `nearest`: the largest of these cosines;
    * `popularity`: log(1 + events);
    * `brand`, `category`, `department`: the share of the history, weighted by .7^age, that has the candidate's brand,
      its category, and its category's first two levels;
    * `price`: −|log price − the mean log price of the history, weighted likewise|; 0 where either is unknown.
    """

    FEATURES: ClassVar[tuple[str, ...]] = (
        "cooccurrence",
        "last",
        "next",
        "text",
        "nearest",
        "popularity",
        "brand",
        "category",
        "department",
        "price",
    )
    # Weights of the retrieval, and where those of the teacher start.
    PRIOR: ClassVar[tuple[float, ...]] = (1.0, 0.0, 0.0, 1.0, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0)
    TEXT_DECAY: ClassVar[float] = 0.7
    HISTORY: ClassVar[int] = 20  # most recent events looked at
    NEIGHBOURS: ClassVar[int] = 100  # most similar texts that an item retrieves
    NEW: ClassVar[float] = 0.1  # share of what is retrieved that is kept for items without an event

    cooccurrence: Cooccurrence
    similarities: Floats  # [n_pairs], Cooccurrence.similarities()
    text: Floats  # [n_items, width], centred, unit length
    neighbours: Ints  # [n_items, NEIGHBOURS or fewer], the items of the most similar texts
    kernel: Floats  # as `neighbours`: exp(12 · (cos − 1))
    successors: Cooccurrence  # of neighbours in time alone, and forward
    groups: Ints  # [n_items, 3], which brand, category and department; −1 for none
    log_price: Floats  # [n_items], NaN where there is none

    @classmethod
    def fit(cls, train: Sequences, items: pa.Table, text: Floats) -> WideEvidence:
        """Count what followed what, and join it with the catalogue.

        Args:
            train: the sequences.
            items: the catalogue, as `schema.ITEMS`.
            text: [n_items, width] float32, sentence vectors (centred here: they share a strong common direction).
        """
        cooccurrence = Cooccurrence.fit(train, len(items))
        successors = Cooccurrence.fit(train, len(items), window=1, backward=0.0)
        codes = [group_codes(items["brand"]), *(category_codes(items["category"], levels=n) for n in (None, 2))]
        groups = np.stack(codes, axis=1)
        text = centred_vectors(text)
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
            successors,
            groups,
            log_prices(items),
        )

    def save(self, path: Path) -> None:
        """Write everything to one safetensors file."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        for name in ("cooccurrence", "successors"):
            counts: Cooccurrence = getattr(self, name)
            arrays |= {f"{name}.{part}": getattr(counts, part) for part in ("offsets", "columns", "weights", "counts")}
            arrays |= {f"{name}.window": np.array([counts.window]), f"{name}.backward": np.array([counts.backward])}
        save_file(arrays, path)

    @classmethod
    def load(cls, path: Path) -> WideEvidence:
        """Read what `save` wrote."""
        arrays = load_file(path)
        counts = {
            name: Cooccurrence(
                offsets=arrays[f"{name}.offsets"],
                columns=arrays[f"{name}.columns"],
                weights=arrays[f"{name}.weights"],
                counts=arrays[f"{name}.counts"],
                window=int(arrays[f"{name}.window"][0]),
                backward=float(arrays[f"{name}.backward"][0]),
            )
            for name in ("cooccurrence", "successors")
        }
        cooccurrence, successors = counts["cooccurrence"], counts["successors"]
        text, neighbours, kernel, groups, log_price = (arrays[name] for name in _ARRAYS)
        similarities = cooccurrence.similarities()
        return cls(cooccurrence, similarities, text, neighbours, kernel, successors, groups, log_price)

    def features(self, history: Ints, candidates: Ints, own: Sequences | None = None) -> Floats:
        """Evidence of pairs.

        Args:
            history: [n, H] items, oldest first, −1 for padding on the left.
            candidates: [n, C] items.
            own: n rows, each user's whole training sequence, where that user's own part has to be taken out of the
                counts, because one of the candidates may be what the user really chose next.

        Returns:
            [n, C, 10] float32, in the order of `FEATURES`.
        """
        there = history >= 0
        source = np.where(there, history, 0)
        similarity, target_count = _similarities(self.cooccurrence, history, candidates, own)
        following, _ = _similarities(self.successors, history[:, -1:], candidates, own)
        cosine = self.text[source] @ self.text[candidates].transpose(0, 2, 1)
        age = np.arange(history.shape[1])[::-1]
        kernel = np.exp(12 * (cosine - 1)) * there[:, :, None]
        weight = self.TEXT_DECAY**age * there
        return np.stack(
            [
                np.log(0.01 + np.einsum("h,nhc->nc", Cooccurrence.DECAY**age, similarity)),
                np.log(0.01 + similarity[:, -1]),
                np.log(0.01 + following[:, 0]),
                np.log(0.05 + np.einsum("h,nhc->nc", self.TEXT_DECAY**age, kernel)),
                np.where(there[:, :, None], cosine, -1.0).max(axis=1),
                np.log1p(target_count),
                *np.moveaxis(group_shares(self.groups, source, weight, candidates), -1, 0),
                -price_distance(self.log_price, source, weight, candidates),
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

        What has no weight there is not asked. A `NEW` share of them is kept for items without an event, the most
        similar texts first: whatever counts say speaks against these, and the teacher could never choose one.

        Args:
            history: [n, H] as in `features`.
            seen: (row, item) pairs to leave out.
            k: how many.
            own: as in `features`.
            more: [n, n_items] what is added to the sum, such as `Behaviour.log_probabilities`.

        Returns:
            [n, k] int32, best first, and then new ones; −1 where fewer than k unseen items exist.
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
        prior = dict(zip(self.FEATURES, self.PRIOR, strict=True))
        affinity = cooccurrence.reshape(n, n_items) / np.maximum(popularity, 1) ** counts.TARGET_EXPONENT
        score = (
            torch.from_numpy(affinity).float().add_(0.01).log_().mul_(prior["cooccurrence"])
            + torch.from_numpy(text).float().view(n, n_items).add_(0.05).log_().mul_(prior["text"])
            + torch.from_numpy(np.log1p(popularity)).float().mul_(prior["popularity"])
        )
        if more is not None:
            score += torch.from_numpy(more)
        score[seen] = -np.inf
        is_new = torch.from_numpy(popularity == 0)
        kept = min(int(k * self.NEW), n_items) if is_new.any() else 0
        values, best = score.topk(min(k, n_items) - kept, dim=1)
        if kept:
            similar = torch.from_numpy(text).float().view(n, n_items)
            new = (similar > 0) & (score > -np.inf) & is_new
            # Above all others; where there are too few of them, the next best follow.
            score = torch.where(new, similar.log().add(1e3), score).scatter_(1, best, -np.inf)
            more_values, more_best = score.topk(kept, dim=1)
            values, best = torch.cat([values, more_values], 1), torch.cat([best, more_best], 1)
        found = np.full((n, k), -1, dtype=np.int32)
        found[:, : best.shape[1]] = np.where(np.isfinite(values.numpy()), best.numpy(), -1)
        return found


def _similarities(
    counts: Cooccurrence, history: Ints, candidates: Ints, own: Sequences | None
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """sim(history item → candidate) [n, H, C], and the candidates' counts [n, C]; without the users' own part."""
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
    return similarity, target_count
