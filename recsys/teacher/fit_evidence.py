"""How far to trust each kind of evidence, learned before anything is read."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from recsys.ingest.dataset import Dataset
from recsys.runtime import Runtime
from recsys.teacher.examples import Examples, draw_candidates, own_sequences
from recsys.teacher.model import PRIOR, Evidence, Packer
from recsys.training import seed_everything, warmup_cosine

# Examples that the evidence is fitted on at most, candidates of each (100 MB at most), and passes over them.
FITTED: Final = 20_000
FITTED_AGAINST: Final = 100
FITTED_EPOCHS: Final = 6


def fit_evidence(evidence: Evidence, dataset: Dataset, examples: Examples, packer: Packer, runtime: Runtime) -> None:
    """Learn to choose among each example's pool by the evidence alone, before anything is read.

    A listwise softmax (Cao et al., "Learning to Rank", ICML 2007, for lists of one relevant item): first the weights
    by L-BFGS, which is convex, then the network by AdamW. Beside the encoder's steps both would be found slowly; on
    evidence that is computed once they take a minute.
    """
    rng = np.random.default_rng([runtime.seed, 8])
    rows = np.sort(rng.permutation(np.flatnonzero(examples.inside))[:FITTED])
    if not len(rows):
        return
    parts = []
    starts = range(0, len(rows), 256)
    for start in runtime.track(starts, total=len(starts), label="weigh the evidence", unit="block"):
        block = rows[start : start + 256]
        users = examples.user[block]
        candidates = draw_candidates(examples, block, FITTED_AGAINST, dataset.n_items, rng)
        histories = dataset.histories(users, examples.position[block], last=packer.history)
        parts.append(packer.features(histories, candidates, own_sequences(dataset, users)))
    features = torch.from_numpy(np.concatenate(parts))

    def loss_of(logits: torch.Tensor) -> torch.Tensor:
        return (logits.logsumexp(1) - logits[:, 0]).mean()

    mean, scale = features.mean((0, 1)), features.std((0, 1))
    scale = torch.where(scale > 1e-6, scale, 1.0)  # what never differs, such as the prices of a shop without any
    standard = ((features - mean) / scale).double()
    weights = (torch.tensor(PRIOR) * scale).double().requires_grad_()
    by_lbfgs = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        by_lbfgs.zero_grad()
        value = loss_of(standard @ weights) + 1e-4 * weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return value

    by_lbfgs.step(closure)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    with torch.no_grad():
        evidence.mean.copy_(mean)
        evidence.scale.copy_(scale)
        evidence.linear.weight.copy_((weights / scale)[None])
    seed_everything(runtime.seed, 9)
    optimizer = torch.optim.AdamW(evidence.parameters(), lr=2e-3, weight_decay=0.01)
    batches = [
        batch
        for _ in range(FITTED_EPOCHS)
        for batch in np.array_split(rng.permutation(len(rows)), len(rows) // 128 + 1)
    ]
    evidence.train()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * warmup_cosine(step, total=len(batches), warmup=1, floor=0.0)
        loss = loss_of(evidence(features[torch.from_numpy(batch)]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    evidence.eval()
