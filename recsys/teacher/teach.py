"""Dataset → teacher."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from recsys.artifacts import Draft, Recipe
from recsys.errors import InputError, RecsysError
from recsys.evidence import Cooccurrence
from recsys.ingest.dataset import Dataset, Sequences, take
from recsys.runtime import Runtime
from recsys.teacher.behaviour import train_behaviour
from recsys.teacher.config import TeachConfig
from recsys.teacher.model import (
    BEFORE_FILE,
    BEHAVIOUR_FILE,
    FEATURES,
    PRIOR,
    Evidence,
    ItemStates,
    Packer,
    Teacher,
    TeacherModel,
    score_packed,
    split_encoder,
)
from recsys.teacher.wide import WideEvidence
from recsys.text import TextVectorsConfig, load_encoder, text_vectors
from recsys.training import load_checkpoint, ndcg_at_k, save_checkpoint, seed_everything, warmup_cosine

# Examples that the evidence is fitted on at most, candidates of each (100 MB at most), and passes over them.
FITTED: Final = 20_000
FITTED_AGAINST: Final = 100
FITTED_EPOCHS: Final = 6


def teach(
    dataset: Dataset,
    config: TeachConfig,
    out: Path,
    *,
    runtime: Runtime | None = None,
    force: bool = False,
) -> Teacher:
    """Fine-tune a BERT cross-encoder to pick the item that a user took next.

    Each example asks about one of a user's last training events: a softmax over the item that was chosen and others
    from the same pool of candidates, so that picking by the evidence that made the pool is not what is learned. The
    evidence has not seen what is asked: counts are read without the user's own transitions, and the towers were
    trained without these events (see `recsys.teacher.behaviour`). First the evidence alone is weighed, then the encoder
    learns where it knows better. The weights with the best validation NDCG@10 are kept, those before the encoder
    learned included. A killed run resumes at the last finished epoch of the towers or the last evaluation.

    Args:
        dataset: what `ingest` wrote; only its training part is trained on, its validation part picks the weights.
        config: backbone, layout and schedule.
        out: where the artifact goes, e.g. `runs/sample/teacher`.
        runtime: device, seed, precision.
        force: train again even when `out` is up to date.

    Raises:
        InputError: there is nothing to train on, or the encoder cannot be used.
        RecsysError: the loss became NaN or infinite.
    """
    runtime = runtime or Runtime()
    recipe = Recipe(
        kind=Teacher.kind,
        config=config,
        inputs={"dataset": dataset.fingerprint},
        seed=runtime.seed,
        modules=(
            "recsys.teacher.behaviour",
            "recsys.teacher.model",
            "recsys.teacher.packing",
            "recsys.teacher.teach",
            "recsys.teacher.wide",
            "recsys.sequence",
            "recsys.sequence.losses",
            "recsys.evidence",
            "recsys.ingest.windows",
            "recsys.text",
            "recsys.training",
        ),
    )
    if force or not recipe.is_current(out):
        text = text_vectors(
            dataset, TextVectorsConfig(encoder=config.encoder), out.parent / "text_vectors", runtime=runtime
        )
        with recipe.build(out) as draft:
            _train(dataset, text.vectors, config, draft, runtime)
    return Teacher.open(out)


def history_rows(
    dataset: Dataset, users: npt.NDArray[np.int32], position: npt.NDArray[np.int32], *, last: int
) -> tuple[Sequences, tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]]:
    """Each user's `last` events before `position`, and all (row, item) pairs seen before it."""
    return dataset.histories(users, position, last=last), seen_before(dataset, users, position)


def seen_before(
    dataset: Dataset, users: npt.NDArray[np.int32], position: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """All (row, item) pairs of the users' events before `position`."""
    whole = dataset.histories(users, position)
    return np.repeat(np.arange(len(users)), whole.lengths), whole.item_idx


def own_sequences(dataset: Dataset, users: npt.NDArray[np.int32]) -> Sequences:
    """The users' whole training sequences, one row each."""
    return take(dataset.train, dataset.train.offsets[users], dataset.train.lengths[users])


@dataclass(frozen=True)
class _Examples:
    """Training positions with the pool that evidence retrieves there."""

    user: npt.NDArray[np.int32]
    position: npt.NDArray[np.int32]
    target: npt.NDArray[np.int32]
    pool: npt.NDArray[np.int32]  # [n, pool], −1 for padding
    inside: npt.NDArray[np.bool_]  # the target is in the pool


def _examples(dataset: Dataset, packer: Packer, config: TeachConfig, runtime: Runtime) -> _Examples:
    train = dataset.train
    user = np.repeat(np.arange(len(train), dtype=np.int32), train.lengths)
    position = (np.arange(len(user)) - train.offsets[user]).astype(np.int32)
    # A target seen before is answered by the history itself; a position without history asks about nobody.
    _, first = np.unique(user * np.int64(dataset.n_items) + train.item_idx, return_index=True)
    asked = (position > 0) & (position >= train.lengths[user] - config.held_out)
    usable = np.intersect1d(first, np.flatnonzero(asked))
    if not len(usable):
        raise InputError(
            "no user took a second item in the training part",
            expected="histories to learn from",
            do="use a longer log, or shorten ingest.valid_days and ingest.test_days",
        )
    order = np.random.default_rng([runtime.seed, 2]).permutation(usable)
    want_inside = round(config.examples * (1 - config.outside_share))
    parts: list[_Examples] = []
    found, block = 0, 256
    bar = runtime.track(range(0, len(order), block), label="retrieve candidate pools", unit="block")
    for start in bar:
        rows = order[start : start + block]
        users, places, target = user[rows], position[rows], train.item_idx[rows]
        histories, seen = history_rows(dataset, users, places, last=packer.history)
        pool = packer.retrieve(histories, seen, config.pool, own_sequences(dataset, users))
        inside = (pool == target[:, None]).any(1)
        parts.append(_Examples(users, places, target, pool, inside))
        found += int(inside.sum())
        if found >= want_inside:
            break
    every = _Examples(*(np.concatenate([getattr(part, name) for part in parts]) for name in _Examples.__annotations__))
    chosen = np.concatenate(
        [
            np.flatnonzero(every.inside)[:want_inside],
            np.flatnonzero(~every.inside)[: config.examples - want_inside],
        ]
    )
    return _Examples(*(getattr(every, name)[chosen] for name in _Examples.__annotations__))


def _candidates(
    examples: _Examples, rows: npt.NDArray[np.int64], count: int, n_items: int, rng: np.random.Generator
) -> npt.NDArray[np.int32]:
    """[n, count]: the target first, then others of its kind: of the pool if it is in the pool, else random items."""
    pool, target = examples.pool[rows], examples.target[rows, None]
    others = np.where((pool >= 0) & (pool != target), rng.random(pool.shape), 2.0)
    place = np.argsort(others, axis=1)[:, : count - 1]
    from_pool = np.take_along_axis(np.where(others > 1, -1, pool), place, axis=1)
    random = rng.integers(0, n_items, from_pool.shape, dtype=np.int32)
    negatives = np.where(examples.inside[rows, None] & (from_pool >= 0), from_pool, random)
    return np.concatenate([target, negatives], axis=1).astype(np.int32)


def _fit_evidence(evidence: Evidence, dataset: Dataset, examples: _Examples, packer: Packer, runtime: Runtime) -> None:
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
        candidates = _candidates(examples, block, FITTED_AGAINST, dataset.n_items, rng)
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


def _item_vectors(counts: Cooccurrence, dim: int, seed: int) -> torch.Tensor:
    """Collaborative embeddings [n_items, dim]: a truncated SVD of the symmetrised similarities, rows of unit length."""
    seed_everything(seed, 3)
    n = counts.n_items
    source = np.repeat(np.arange(n), np.diff(counts.offsets))
    values = torch.from_numpy(np.log1p(10 * counts.similarities()))
    index = torch.from_numpy(np.stack([source, counts.columns.astype(np.int64)]))
    matrix = torch.sparse_coo_tensor(index, values, (n, n), check_invariants=True).coalesce()
    rank = min(dim, n)
    left, singular, right = torch.svd_lowrank(matrix, q=rank, niter=4)
    vectors = torch.zeros(n, dim)
    vectors[:, :rank] = (left + right) * singular.sqrt()
    return torch.nn.functional.normalize(vectors, dim=1)


def _train(
    dataset: Dataset, text: npt.NDArray[np.float32], config: TeachConfig, draft: Draft, runtime: Runtime
) -> None:
    device, dtype = runtime.torch_device(), runtime.compute_dtype()
    wide = WideEvidence.fit(dataset.train, dataset.items, text)
    wide.save(draft.path / "evidence.safetensors")
    behaviour, before = train_behaviour(
        dataset,
        text if config.behaviour.use_text else None,
        config.behaviour,
        seeds=config.behaviour_seeds,
        held_out=config.held_out,
        scratch=draft.scratch,
        tensorboard=draft.path / "tensorboard",
        runtime=runtime,
    )
    behaviour.save(draft.path / BEHAVIOUR_FILE)
    before.save(draft.path / BEFORE_FILE)
    items = ItemStates.compute(dataset, config, draft.path, runtime)
    packer, today = (Packer(items, wide, each.to(device), config) for each in (before, behaviour))
    examples = _examples(dataset, packer, config, runtime)
    validation = _Validation(dataset, today, config, runtime)

    _, encoder = split_encoder(load_encoder(config.encoder)[1], config.joint_layers)
    item_vectors = _item_vectors(wide.cooccurrence, config.item_dim, runtime.seed)
    seed_everything(runtime.seed)
    model = TeacherModel(encoder, item_vectors, config, n_event_types=len(dataset.event_types))
    by_prior = validation(model.to(device), device, dtype)
    _fit_evidence(model.evidence.cpu(), dataset, examples, packer, runtime)
    model.to(device)
    encoder_parameters = list(model.encoder.parameters())
    others = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    optimizer = torch.optim.AdamW(
        [{"params": encoder_parameters, "peak": config.lr}, {"params": others, "peak": config.head_lr}],
        weight_decay=config.weight_decay,
        fused=True,
    )
    n = len(examples.user)
    order = np.random.default_rng([runtime.seed, 4]).permutation(n)
    batches = np.array_split(order, max(round(n / config.batch), 1))
    segments = np.array_split(np.arange(len(batches)), min(config.evaluations, len(batches)))

    history: list[dict[str, float]] = []
    resumed = load_checkpoint(draft.scratch, optimizer)
    if resumed is None:
        best, best_value, first = copy.deepcopy(model.state_dict()), validation(model, device, dtype), 0
        history.append({"examples": 0, "loss": float("nan"), "valid_ndcg_at_10": best_value})
    else:
        tensors, progress = resumed
        model.load_state_dict({k.removeprefix("now."): v for k, v in tensors.items() if k.startswith("now.")})
        best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
        best_value, first, history = progress["best_value"], progress["segment"] + 1, progress["history"]

    writer = SummaryWriter(str(draft.path / "tensorboard"))
    for segment in range(first, len(segments)):
        model.train()
        total, label = 0.0, f"teach, part {segment + 1}/{len(segments)}"
        for step in runtime.track(segments[segment], total=len(segments[segment]), label=label, unit="step"):
            rng = seed_everything(runtime.seed, 5, int(step))
            factor = warmup_cosine(int(step), total=len(batches), warmup=max(len(batches) // 20, 1))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            rows = batches[step]
            users = examples.user[rows]
            candidates = _candidates(examples, rows, config.candidates, dataset.n_items, rng)
            packed = packer.pack(
                dataset.histories(users, examples.position[rows], last=packer.history),
                candidates,
                own=own_sequences(dataset, users),
                device=device,
            )
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = model(packed).float()
            # A random draw may be the target again: it must not compete with itself.
            again = torch.from_numpy(candidates[:, 1:] == candidates[:, :1]).to(device)
            logits = torch.cat([logits[:, :1], logits[:, 1:].masked_fill(again, float("-inf"))], 1)
            loss = (logits.logsumexp(1) - logits[:, 0]).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += float(loss.detach())
        if not np.isfinite(total):
            raise RecsysError(
                f"the teacher's loss became NaN or infinite in part {segment + 1}\n"
                '  to do:    lower teach.lr and teach.head_lr, or set precision = "fp32"'
            )
        value = validation(model, device, dtype)
        seen = int(sum(len(batches[step]) for part in segments[: segment + 1] for step in part))
        history.append({"examples": seen, "loss": total / len(segments[segment]), "valid_ndcg_at_10": value})
        writer.add_scalar("teach/loss", history[-1]["loss"], seen)
        writer.add_scalar("teach/valid_ndcg_at_10", value, seen)
        if value > best_value or np.isnan(value):  # without validation users the last weights are kept
            best = copy.deepcopy(model.state_dict())
            best_value = max(best_value, value)
        save_checkpoint(
            draft.scratch,
            tensors={f"now.{k}": v for k, v in model.state_dict().items()} | {f"best.{k}": v for k, v in best.items()},
            optimizer=optimizer,
            progress={"segment": segment, "best_value": best_value, "history": history},
        )
    writer.close()
    save_file({name: tensor.contiguous().cpu() for name, tensor in best.items()}, draft.path / "weights.safetensors")
    draft.counts.update(
        examples=n,
        examples_inside_pool=int(examples.inside.sum()),
        pairs_of_items=len(wide.cooccurrence.columns),
        parameters_trained=sum(p.numel() for p in model.parameters()),
    )
    draft.info.update(
        valid_ndcg_at_10=best_value,
        history=history[1:],
        valid_ndcg_at_10_of_evidence=history[0]["valid_ndcg_at_10"],
        valid_ndcg_at_10_of_untrained_evidence=by_prior,
        evidence=dict(zip(FEATURES, best["evidence.linear.weight"][0].tolist(), strict=True)),
    )


class _Validation:
    """NDCG@10 of the reranked pool on the validation part, seen items filtered, for a fixed sample of users."""

    def __init__(self, dataset: Dataset, packer: Packer, config: TeachConfig, runtime: Runtime) -> None:
        cases = dataset.cases("valid")
        rows = np.sort(np.random.default_rng([runtime.seed, 1]).permutation(len(cases))[: config.valid_users])
        users, end = cases.user_idx[rows], cases.history_end[rows]
        self._packer = packer
        self._histories, seen = history_rows(dataset, users, end, last=packer.history)
        self._pool = np.empty((len(rows), config.pool), dtype=np.int32)
        for start in range(0, len(rows), 256):
            stop = min(start + 256, len(rows))
            low, high = np.searchsorted(seen[0], [start, stop])
            part = dataset.histories(users[start:stop], end[start:stop], last=packer.history)
            self._pool[start:stop] = packer.retrieve(part, (seen[0][low:high] - start, seen[1][low:high]), config.pool)
        self._targets, self._n_items = cases.targets.select(rows), dataset.n_items

    def __call__(self, model: TeacherModel, device: torch.device, dtype: torch.dtype) -> float:
        if not len(self._pool):
            return float("nan")
        candidates = np.maximum(self._pool, 0)
        logits = score_packed(model, self._packer, self._histories, candidates, device=device, dtype=dtype)
        logits[self._pool < 0] = -np.inf
        best = np.argsort(-logits, axis=1, kind="stable")[:, :10]
        ranked = np.take_along_axis(self._pool, best, axis=1)
        return float(ndcg_at_k(ranked, self._targets, n_items=self._n_items).mean())
