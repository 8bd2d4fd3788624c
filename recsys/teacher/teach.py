"""Dataset → teacher."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from recsys import distributed
from recsys.artifacts import Draft, Recipe
from recsys.errors import RecsysError
from recsys.evidence import Cooccurrence
from recsys.ingest.dataset import Dataset
from recsys.runtime import Runtime
from recsys.sequence.train import MODULES
from recsys.teacher.adapt import adapt_encoder
from recsys.teacher.behaviour import BehaviourTowers, train_behaviour
from recsys.teacher.config import TeachConfig
from recsys.teacher.examples import Examples, choose_examples, draw_candidates, history_rows, own_sequences
from recsys.teacher.fit_evidence import fit_evidence
from recsys.teacher.model import (
    FEATURES,
    ItemStates,
    Packer,
    Teacher,
    TeacherModel,
    reranked,
    score_packed,
    split_encoder,
)
from recsys.teacher.wide import WideEvidence
from recsys.text import TextVectorsConfig, load_encoder, text_vectors
from recsys.training import (
    load_checkpoint,
    ndcg_at_k,
    release_memory_after,
    save_checkpoint,
    seed_everything,
    warmup_cosine,
)


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
    learned included. A killed run resumes at the last finished epoch of the towers or the last evaluation. Processes
    that work together (`recsys.distributed`) share out each step's examples.

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
            *MODULES,
            "recsys.evidence",
            "recsys.hashing",
            "recsys.teacher.adapt",
            "recsys.teacher.behaviour",
            "recsys.teacher.examples",
            "recsys.teacher.fit_evidence",
            "recsys.teacher.model",
            "recsys.teacher.packing",
            "recsys.teacher.teach",
            "recsys.teacher.wide",
        ),
    )
    if force or not distributed.from_first(recipe.is_current(out)):
        encoder = TextVectorsConfig(encoder=config.behaviour.encoder)
        text = text_vectors(dataset, encoder, out.parent / "text_vectors", runtime=runtime)
        towers = train_behaviour(dataset, config.behaviour, out.parent / "behaviour", runtime=runtime)
        backbone = config.encoder
        if config.adapt_epochs:
            adapted = out.parent / "adapted_encoder"
            backbone = adapt_encoder(dataset, backbone, config.adapt_epochs, adapted, runtime=runtime).encoder
        with recipe.build(out) as draft:
            _train(dataset, text.vectors, towers, backbone, config, draft, runtime)
    return Teacher.open(out)


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
    dataset: Dataset,
    text: npt.NDArray[np.float32],
    towers: BehaviourTowers,
    backbone: str,
    config: TeachConfig,
    draft: Draft,
    runtime: Runtime,
) -> None:
    device, dtype = runtime.torch_device(), runtime.compute_dtype()
    wide = WideEvidence.fit(dataset.train, dataset.items, text)
    wide.save(draft.path / "evidence.safetensors")
    for file in (BehaviourTowers.FILE, BehaviourTowers.BEFORE_FILE):  # a teacher is whole without its neighbours
        shutil.copyfile(towers.path / file, draft.path / file)
    items = ItemStates.compute(dataset, config, backbone, draft.path, runtime)
    packer, today = (Packer(items, wide, each.to(device), config) for each in (towers.before, towers.all))
    examples = choose_examples(dataset, packer, config, runtime)
    validation = _Validation(dataset, today, config, runtime)

    _, encoder = split_encoder(load_encoder(backbone)[1], config.joint_layers)
    item_vectors = _item_vectors(wide.cooccurrence, config.item_dim, runtime.seed)
    seed_everything(runtime.seed)
    model = TeacherModel(encoder, item_vectors, config, n_event_types=len(dataset.event_types))
    by_prior = validation(model.to(device), device, dtype)
    if config.evidence:
        fit_evidence(model.evidence.cpu(), dataset, examples, packer, runtime)
    distributed.broadcast_parameters(model.to(device))
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
            candidates = draw_candidates(examples, rows, config.candidates, dataset.n_items, rng)
            optimizer.zero_grad(set_to_none=True)
            mine = distributed.part_of(np.arange(len(rows)))
            for some in np.array_split(mine, min(config.accumulate, max(len(mine), 1))):
                loss = _loss(model, packer, dataset, examples, rows[some], candidates[some], device, dtype) / len(rows)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                total += float(loss.detach())
            distributed.sum_gradients(model.parameters())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            release_memory_after(int(step), device)
        total = distributed.total(total)[0]
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


def _loss(
    model: TeacherModel,
    packer: Packer,
    dataset: Dataset,
    examples: Examples,
    rows: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.int32],
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Sum over some examples of −log softmax of the first candidate, the one that was chosen, among its row."""
    if not len(rows):
        return torch.zeros((), device=device, requires_grad=True)
    users = examples.user[rows]
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
    return (logits.logsumexp(1) - logits[:, 0]).sum()


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
        return distributed.from_first(float("nan") if distributed.rank() else self._measure(model, device, dtype))

    def _measure(self, model: TeacherModel, device: torch.device, dtype: torch.dtype) -> float:
        if not len(self._pool):
            return float("nan")
        candidates = np.maximum(self._pool, 0)
        logits = score_packed(model, self._packer, self._histories, candidates, device=device, dtype=dtype)
        return float(ndcg_at_k(reranked(logits, self._pool), self._targets, n_items=self._n_items).mean())
