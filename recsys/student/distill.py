"""Dataset + soft labels → student."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from recsys.artifacts import Draft, Recipe
from recsys.errors import InputError, RecsysError
from recsys.ingest.dataset import Dataset, Sequences
from recsys.ingest.windows import Windows, sliding_windows
from recsys.runtime import Runtime
from recsys.soft_labels import SoftLabels
from recsys.student.config import DistillConfig
from recsys.student.losses.full_softmax import full_softmax
from recsys.student.losses.listwise_kl import listwise_kl
from recsys.student.losses.sampled_softmax import sampled_softmax
from recsys.student.model import Student, StudentModel, encode_users
from recsys.text import TextVectorsConfig, text_vectors
from recsys.training import adamw, load_checkpoint, ndcg_at_k, save_checkpoint, seed_everything, warmup_cosine


def distill(
    dataset: Dataset,
    soft_labels: SoftLabels | None,
    config: DistillConfig,
    out: Path,
    *,
    runtime: Runtime | None = None,
    force: bool = False,
) -> Student:
    """Train the two-tower student on the log's next items and on the teacher's soft labels.

    Every position of a sequence is trained in one pass. The epoch with the best validation NDCG@10 is kept. A killed
    run resumes at the last finished epoch and ends with the same weights.

    Args:
        dataset: what `ingest` wrote; only its training part is trained on, its validation part stops early.
        soft_labels: what `score` wrote, or None to train on the log alone.
        config: width, depth, losses and schedule.
        out: where the artifact goes, e.g. `runs/sample/student`.
        runtime: device, seed, precision.
        force: train again even when `out` is up to date.

    Raises:
        InputError: there is nothing to train on, or the soft labels are not usable.
        RecsysError: the loss became NaN or infinite.
    """
    runtime = runtime or Runtime()
    inputs = {"dataset": dataset.fingerprint}
    if soft_labels is not None:
        inputs["soft_labels"] = soft_labels.fingerprint
    recipe = Recipe(
        kind=Student.kind,
        config=config,
        inputs=inputs,
        seed=runtime.seed,
        modules=(
            "recsys.student",
            "recsys.student.losses",
            "recsys.training",
            "recsys.text",
            "recsys.soft_labels",
            "recsys.ingest.windows",
        ),
    )
    if force or not recipe.is_current(out):
        text = None
        if config.use_text:
            encoder = TextVectorsConfig(encoder=config.encoder)
            text = text_vectors(dataset, encoder, out.parent / "text_vectors", runtime=runtime).vectors
        with recipe.build(out) as draft:
            _train(dataset, soft_labels, text, config, draft, runtime)
    return Student.open(out)


@dataclass(frozen=True)
class _Soft:
    """Soft labels, sorted by the window that holds their position."""

    offsets: npt.NDArray[np.int64]  # [n_windows + 1]
    place: npt.NDArray[np.int64]  # [n] in the window's user vectors
    candidate: npt.NDArray[np.int32]  # [n, C], −1 for padding
    logit: npt.NDArray[np.float32]  # [n, C]


def _soft(soft_labels: SoftLabels, train: Sequences, windows: Windows) -> _Soft:
    user, position, candidate, logit = soft_labels.padded()
    usable = (user < len(train)) & (position <= train.lengths[np.minimum(user, len(train) - 1)])
    if not usable.all():
        raise InputError(
            f"{int((~usable).sum())} soft labels stand at users or positions that the training part does not have",
            expected="soft labels scored on this dataset",
            do="score again: `recsys run --from score`",
        )
    # The window is the last one of the user whose trained places begin at or before the position.
    start = windows.begin - train.offsets[windows.user] + windows.first
    span = int(train.lengths.max(initial=0)) + 1
    window = np.searchsorted(windows.user * span + start, user.astype(np.int64) * span + position, side="right") - 1
    order = np.argsort(window, kind="stable")
    window = window[order]
    offsets = np.searchsorted(window, np.arange(len(windows.user) + 1))
    place = position[order] - (windows.begin - train.offsets[windows.user])[window]
    return _Soft(offsets, place.astype(np.int64), candidate[order], logit[order])


def _batches(windows: Windows, positions: int, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """All windows in random batches of about `positions` events, alike in length within a batch."""
    order = rng.permutation(len(windows.count))
    pool = max(positions // 2, 1)  # windows sorted together: enough for even lengths, few enough to stay random
    order = np.concatenate(
        [
            chunk[np.argsort(windows.count[chunk], kind="stable")]
            for chunk in np.array_split(order, max(len(order) // pool, 1))
        ]
    )
    filled = np.cumsum(windows.count[order] + 1)
    cuts = np.flatnonzero(np.diff(filled // positions)) + 1
    batches = np.split(order, cuts)
    return [batches[i] for i in rng.permutation(len(batches))]


def _train(
    dataset: Dataset,
    soft_labels: SoftLabels | None,
    text: npt.NDArray[np.float32] | None,
    config: DistillConfig,
    draft: Draft,
    runtime: Runtime,
) -> None:
    train, n_types = dataset.train, len(dataset.event_types)
    if not len(train.item_idx):
        raise InputError(
            "the training part of the dataset is empty",
            expected="events before the validation window",
            do="use a longer log, or shorten ingest.valid_days and ingest.test_days",
        )
    device, dtype = runtime.torch_device(), runtime.compute_dtype()
    # On a CPU bf16 pays in the softmax over the catalogue; in towers this narrow it gained a tenth at most, while
    # memory grew with every new batch shape.
    tower_dtype = dtype if device.type == "cuda" else torch.float32
    windows = sliding_windows(train, config.max_history)
    soft = _soft(soft_labels, train, windows) if soft_labels is not None and config.soft_weight else None
    known = np.zeros(dataset.n_items, dtype=bool)
    known[train.item_idx] = True
    # Untrained items are no negatives: they would be pushed away from everybody before anyone could see them.
    catalogue = torch.from_numpy(np.flatnonzero(known)).to(device)
    place_in_catalogue = torch.from_numpy(np.cumsum(known) - 1).to(device)

    seed_everything(runtime.seed)
    # Sentence vectors share a strong common direction, which says nothing about an item: it is taken out.
    centred = None if text is None else torch.nn.functional.normalize(torch.from_numpy(text - text.mean(0)), dim=1)
    model = StudentModel(config, centred, torch.from_numpy(known), n_event_types=n_types).to(device)
    optimizer = adamw(model, lr=config.lr, weight_decay=config.weight_decay)
    steps_per_epoch = len(_batches(windows, config.batch_positions, np.random.default_rng(0)))
    total = steps_per_epoch * config.epochs
    validation = _Validation(dataset, config, runtime.seed)

    best, best_value, best_epoch, first_epoch = copy.deepcopy(model.state_dict()), -1.0, -1, 0
    history: list[dict[str, float]] = []
    resumed = load_checkpoint(draft.scratch, optimizer)
    if resumed is not None:
        tensors, progress = resumed
        model.load_state_dict({k.removeprefix("now."): v for k, v in tensors.items() if k.startswith("now.")})
        best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
        best_value, best_epoch = progress["best_value"], progress["best_epoch"]
        first_epoch, history = progress["epoch"] + 1, progress["history"]

    writer = SummaryWriter(str(draft.path / "tensorboard"))
    for row in history:
        _log(writer, row)
    for epoch in range(first_epoch, config.epochs):
        if epoch - best_epoch > config.patience:
            break
        rng = seed_everything(runtime.seed, epoch)
        model.train()
        sums = np.zeros(2)
        batches = _batches(windows, config.batch_positions, rng)
        label = f"distill, epoch {epoch + 1}/{config.epochs}"
        for step, batch in enumerate(runtime.track(batches, total=len(batches), label=label, unit="step")):
            factor = warmup_cosine(epoch * steps_per_epoch + step, total=total, warmup=min(200, total // 10 + 1))
            for group in optimizer.param_groups:
                group["lr"] = config.lr * factor
            items, types, targets, places, soft_rows = _collate(train, windows, soft, batch)
            with torch.autocast(device.type, tower_dtype, enabled=tower_dtype != torch.float32):
                vectors = model.items()
                users = model.user(vectors[items.to(device)], types.to(device)).flatten(0, 1)
            vectors = vectors.float()
            queries, target = users[places.to(device)], targets.to(device)
            if len(catalogue) <= config.softmax_items:
                hard = full_softmax(queries, vectors[catalogue], place_in_catalogue[target], dtype=dtype)
            else:
                drawn = catalogue[torch.randint(len(catalogue), (config.softmax_items,), device=device)]
                hard = sampled_softmax(queries, vectors[target], target, vectors[drawn], drawn, n_items=len(catalogue))
            loss, kl = hard, torch.zeros(())
            if soft is not None and len(soft_rows[0]):
                soft_place, candidate, logit = (tensor.to(device) for tensor in soft_rows)
                student_logit = torch.einsum("nd,ncd->nc", users[soft_place], vectors[candidate.clamp(min=0)])
                kl = listwise_kl(student_logit, logit, candidate >= 0, temperature=config.temperature)
                loss = hard + config.soft_weight * kl
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            sums += [float(hard.detach()), float(kl.detach())]
        if not np.isfinite(sums).all():
            raise RecsysError(
                f"the student's loss became NaN or infinite in epoch {epoch + 1}\n"
                '  to do:    lower distill.lr, or set precision = "fp32"'
            )
        value = validation(model)
        history.append(
            {
                "epoch": epoch + 1,
                "hard": sums[0] / len(batches),
                "soft": sums[1] / len(batches),
                "valid_ndcg_at_10": value,
            }
        )
        _log(writer, history[-1])
        if value > best_value or np.isnan(value):  # without validation users the last epoch is kept
            best, best_epoch = copy.deepcopy(model.state_dict()), epoch
            best_value = max(best_value, value)
        save_checkpoint(
            draft.scratch,
            tensors={f"now.{k}": v for k, v in model.state_dict().items()} | {f"best.{k}": v for k, v in best.items()},
            optimizer=optimizer,
            progress={"epoch": epoch, "best_value": best_value, "best_epoch": best_epoch, "history": history},
        )
    writer.close()

    model.load_state_dict(best)
    model.eval()
    with torch.inference_mode():
        np.save(draft.path / "item_vectors.npy", model.items().cpu().numpy())
    save_file(
        {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()},
        draft.path / "weights.safetensors",
    )
    draft.counts.update(
        items=dataset.n_items,
        items_trained=len(catalogue),
        positions=len(train.item_idx),
        soft_labels=0 if soft is None else len(soft.place),
        epochs=len(history),
        parameters=sum(p.numel() for p in model.parameters()),
    )
    draft.info.update(n_event_types=n_types, best_epoch=best_epoch + 1, valid_ndcg_at_10=best_value, history=history)


def _collate(
    train: Sequences, windows: Windows, soft: _Soft | None, batch: npt.NDArray[np.int64]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """One batch of windows.

    Returns:
        items [b, T] and event types [b, T] (0 for padding); targets [m] and their places [m] in the flattened user
        vectors [b · (T + 1)]; the soft labels' places [s], candidates [s, C] and logits [s, C].
    """
    count = windows.count[batch]
    width = int(count.max()) + 1
    column = np.arange(width)[None, :]
    place = windows.begin[batch][:, None] + column
    inside = column < count[:, None]
    items, types = np.zeros(place.shape, np.int64), np.zeros(place.shape, np.int64)
    items[inside], types[inside] = train.item_idx[place[inside]], train.event_type[place[inside]]
    # The vector at column p is asked for event p of the window; past the window, for the user's next event.
    end = train.offsets[windows.user[batch] + 1][:, None]
    asked = (column >= windows.first[batch][:, None]) & (column <= count[:, None]) & (place < end)
    targets = train.item_idx[place[asked]].astype(np.int64)
    if soft is None:
        chosen, window_row = np.empty(0, np.int64), np.empty(0, np.int64)
        candidate, logit = np.empty((0, 1), np.int32), np.empty((0, 1), np.float32)
    else:
        number = soft.offsets[batch + 1] - soft.offsets[batch]
        window_row = np.repeat(np.arange(len(batch)), number)
        rows = np.repeat(soft.offsets[batch] - np.cumsum(number) + number, number) + np.arange(number.sum())
        chosen, candidate, logit = soft.place[rows], soft.candidate[rows], soft.logit[rows]
    return (
        torch.from_numpy(items[:, : width - 1]),
        torch.from_numpy(types[:, : width - 1]),
        torch.from_numpy(targets),
        torch.from_numpy(np.flatnonzero(asked)),
        (
            torch.from_numpy(window_row * width + chosen),
            torch.from_numpy(candidate.astype(np.int64)),
            torch.from_numpy(logit),
        ),
    )


class _Validation:
    """NDCG@10 on the validation part, whole catalogue, seen items filtered, for a fixed sample of users."""

    def __init__(self, dataset: Dataset, config: DistillConfig, seed: int) -> None:
        cases = dataset.cases("valid")
        rng = np.random.default_rng([seed, 1])
        rows = np.sort(rng.permutation(len(cases))[: config.valid_users])
        self._users, self._end = cases.user_idx[rows], cases.history_end[rows]
        self._targets = cases.targets.select(rows)
        self._histories = dataset.histories(self._users, self._end, last=config.max_history)
        seen = dataset.histories(self._users, self._end)
        self._seen = np.repeat(np.arange(len(rows)), seen.lengths), seen.item_idx
        self._max_history, self._n_items = config.max_history, dataset.n_items

    @torch.inference_mode()
    def __call__(self, model: StudentModel) -> float:
        if not len(self._users):
            return float("nan")
        model.eval()
        items = model.items()
        users = encode_users(model.user, items, self._histories, max_history=self._max_history)
        row, seen = self._seen
        ranked = np.empty((len(users), min(10, self._n_items)), dtype=np.int64)
        for start in range(0, len(users), 1024):
            stop = min(start + 1024, len(users))
            scores = torch.from_numpy(users[start:stop]).to(items.device) @ items.T
            low, high = np.searchsorted(row, [start, stop])
            scores[
                torch.from_numpy(row[low:high] - start), torch.from_numpy(seen[low:high].astype(np.int64))
            ] = -torch.inf
            ranked[start:stop] = scores.topk(ranked.shape[1]).indices.cpu().numpy()
        return float(ndcg_at_k(ranked, self._targets, n_items=self._n_items).mean())


def _log(writer: SummaryWriter, row: dict[str, float]) -> None:
    for name, value in row.items():
        if name != "epoch":
            writer.add_scalar(f"distill/{name}", value, int(row["epoch"]))
