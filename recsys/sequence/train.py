"""Train the towers on a log's next items, every position of a sequence in one pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.tensorboard import SummaryWriter

from recsys import distributed
from recsys.errors import InputError, RecsysError
from recsys.ingest.dataset import Dataset, Sequences
from recsys.ingest.windows import Windows, sliding_windows
from recsys.runtime import Runtime
from recsys.sequence.config import TowersConfig
from recsys.sequence.features import ItemFeatures
from recsys.sequence.losses.full_softmax import full_softmax
from recsys.sequence.losses.sampled_softmax import sampled_softmax
from recsys.sequence.towers import Towers, encode_users, gap_codes
from recsys.training import (
    adamw,
    load_checkpoint,
    ndcg_at_k,
    release_memory_after,
    save_checkpoint,
    seed_everything,
    warmup_cosine,
)

# Whose code decides what is trained here: part of the recipe of everything that is made with it.
MODULES: Final = (
    "recsys.distributed",
    "recsys.hashing",
    "recsys.ingest.windows",
    "recsys.items",
    "recsys.sequence",
    "recsys.sequence.losses",
    "recsys.text",
    "recsys.training",
)


class ItemVectors(Protocol):
    """Item vectors by item_idx."""

    def __getitem__(self, items: torch.Tensor, /) -> torch.Tensor:
        """[…, d] float32 of int64 […]."""


class SomeItems:
    """The vectors of some items of a catalogue that is too large to compute all of them in every step."""

    def __init__(self, tower: torch.nn.Module, items: torch.Tensor) -> None:
        self.items = torch.unique(items)  # ascending
        self.vectors = tower(self.items).float()

    def __getitem__(self, items: torch.Tensor, /) -> torch.Tensor:
        """Of items that are among them."""
        found: torch.Tensor = self.vectors[torch.searchsorted(self.items, items.contiguous())]
        return found


class SoftLoss(Protocol):
    """What a stage adds to the loss on the log."""

    def __call__(
        self,
        windows: npt.NDArray[np.int64],
        users: torch.Tensor,
        items: ItemVectors,
        width: int,
        *,
        progress: float,
    ) -> tuple[torch.Tensor, float]:
        """The part of one step.

        Args:
            windows: [b] the windows in the batch.
            users: [b · width, d] float32, the vector after each prefix of each window.
            items: indexed by item_idx: all item vectors, or at least those of `candidates` and of item 0.
            width: vectors of a window.
            progress: the share of training that is done, from 0 to 1.

        Returns:
            What is added to the loss, a mean over rows of soft labels, and what is logged of it.
        """

    def rows(self, windows: npt.NDArray[np.int64]) -> int:
        """How many rows of soft labels these windows have."""

    def candidates(self, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """The items that will be asked for, −1 for none."""

    def measure(self, model: Towers) -> dict[str, float]:
        """What it wants to know of the towers after each epoch, by name; logged with the losses."""

    def follow(self, measured: dict[str, float]) -> None:
        """Go on by what was measured after the last epoch."""


@dataclass(frozen=True)
class Trained:
    """Towers with the weights of their best epoch.

    Attributes:
        model: the towers, ready to be asked.
        best_epoch: from 1.
        best_value: validation NDCG@10 of that epoch; NaN or −1 without validation users.
        history: by epoch, the losses and the validation NDCG@10.
        n_items_trained: items with a training event.
    """

    model: Towers
    best_epoch: int
    best_value: float
    history: list[dict[str, float]]
    n_items_trained: int


class Validation:
    """NDCG@10 on the validation part, whole catalogue, seen items filtered, for a fixed sample of users."""

    def __init__(self, dataset: Dataset, config: TowersConfig, seed: int) -> None:
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
    def __call__(self, model: Towers) -> float:
        """The mean over users; NaN without users."""
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


def train_towers(
    train: Sequences,
    features: ItemFeatures,
    config: TowersConfig,
    *,
    n_items: int,
    event_types: Sequence[str],
    validation: Validation | None,
    scratch: Path,
    tensorboard: Path,
    runtime: Runtime,
    label: str,
    soft_loss: SoftLoss | None = None,
    epochs: int | None = None,
    start: Callable[[Towers], None] | None = None,
) -> Trained:
    """Train on the next items of all positions; a killed run resumes at the last finished epoch, to the bit.

    Processes that work together (`recsys.distributed`) share out each step's windows; up to rounding, and but for what
    dropout draws, they take the steps of one process alone.

    Args:
        train: the sequences.
        features: of the items, of `item_features`.
        config: width, depth and schedule.
        n_items: size of the catalogue.
        event_types: their names, in the order of their codes.
        validation: picks the epoch that is kept and stops early; without it the last epoch is kept.
        scratch: where the checkpoint lies.
        tensorboard: where curves are written.
        runtime: device, seed, precision.
        label: of progress bars, curves and messages.
        soft_loss: what is added to the loss on the log.
        epochs: end after so many, in the schedule of all of `config.epochs`.
        start: changes the fresh weights.

    Raises:
        InputError: there is nothing to train on, or an event type that is weighted does not exist.
        RecsysError: the loss became NaN or infinite.
    """
    if not len(train.item_idx):
        raise InputError(
            "the training part of the dataset is empty",
            expected="events before the validation window",
            do="use a longer log, or shorten ingest.valid_days and ingest.test_days",
        )
    weights_of_types = _event_weights(config, event_types, label)
    device, dtype = runtime.torch_device(), runtime.compute_dtype()
    # On a CPU bf16 pays in the softmax over the catalogue; in towers this narrow it gained a tenth at most, while
    # memory grew with every new batch shape.
    tower_dtype = dtype if device.type == "cuda" else torch.float32
    windows = sliding_windows(train, config.max_history)
    known = np.zeros(n_items, dtype=bool)
    known[train.item_idx] = True
    # Untrained items are no negatives: they would be pushed away from everybody before anyone could see them.
    catalogue = torch.from_numpy(np.flatnonzero(known)).to(device)
    place_in_catalogue = torch.from_numpy(np.cumsum(known) - 1).to(device)

    sampled = len(catalogue) > config.softmax_items
    weight_of_type = torch.tensor(weights_of_types, device=device)

    seed_everything(runtime.seed)
    model = Towers(config, features, torch.from_numpy(known), n_event_types=len(event_types)).to(device)
    if start is not None:
        with torch.no_grad():
            start(model)
    # A sequence's own end is asked for nothing.
    at_end = windows.begin + windows.count == train.offsets[windows.user + 1]
    model.user.longest.fill_(max(int((windows.count - at_end).max()), 0))
    optimizer = adamw(model, lr=config.lr, weight_decay=config.weight_decay)
    steps_per_epoch = len(batches(windows, config.batch_positions, np.random.default_rng(0)))
    total = steps_per_epoch * config.epochs

    best, best_value, best_epoch, first_epoch = copy.deepcopy(model.state_dict()), -1.0, -1, 0
    history: list[dict[str, float]] = []
    resumed = load_checkpoint(scratch, optimizer)
    if resumed is not None:
        tensors, progress = resumed
        model.load_state_dict({k.removeprefix("now."): v for k, v in tensors.items() if k.startswith("now.")})
        best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
        best_value, best_epoch = progress["best_value"], progress["best_epoch"]
        first_epoch, history = progress["epoch"] + 1, progress["history"]
        if soft_loss is not None and history:
            soft_loss.follow(history[-1])

    distributed.broadcast_parameters(model)
    writer = SummaryWriter(str(tensorboard))
    for row in history:
        _log(writer, label, row)
    for epoch in range(first_epoch, min(epochs or config.epochs, config.epochs)):
        if epoch - best_epoch > config.patience:
            break
        rng = seed_everything(runtime.seed, epoch)
        if distributed.rank():  # the order of the batches is everybody's, what dropout draws is not
            torch.manual_seed(torch.initial_seed() + distributed.rank())
        model.train()
        sums = np.zeros(2)
        steps = batches(windows, config.batch_positions, rng)
        shown = f"{label}, epoch {epoch + 1}/{config.epochs}"
        for step, batch in enumerate(runtime.track(steps, total=len(steps), label=shown, unit="step")):
            factor = warmup_cosine(epoch * steps_per_epoch + step, total=total, warmup=min(200, total // 10 + 1))
            for group in optimizer.param_groups:
                group["lr"] = config.lr * factor
            mine = distributed.part_of(batch)
            asked = collate(train, windows, mine).to(device)
            weights = weight_of_type[asked.target_types]
            with torch.autocast(device.type, tower_dtype, enabled=tower_dtype != torch.float32):
                vectors: ItemVectors
                if sampled:
                    drawn = catalogue[torch.randint(len(catalogue), (config.softmax_items,), device=device)]
                    wanted = [asked.items.flatten(), asked.targets, drawn]
                    if soft_loss is not None:
                        candidates = torch.from_numpy(soft_loss.candidates(mine)).to(device)
                        wanted.append(candidates.long().clamp(min=0).flatten())
                    vectors = SomeItems(model.items, torch.cat(wanted))
                else:
                    vectors = whole = model.items().float()
                users = model.user(vectors[asked.items], asked.types, asked.gaps).flatten(0, 1)
            queries, target = users[asked.places], asked.targets
            if sampled:
                hard = sampled_softmax(
                    queries, vectors[target], target, vectors[drawn], drawn, n_items=len(catalogue), weights=weights
                )
            else:
                hard = full_softmax(queries, whole[catalogue], place_in_catalogue[target], weights=weights, dtype=dtype)
            more, soft, n_soft = users.new_zeros(()), 0.0, 0
            if soft_loss is not None:
                done = (epoch * steps_per_epoch + step) / total
                more, soft = soft_loss(mine, users, vectors, asked.items.shape[1] + 1, progress=done)
                n_soft = soft_loss.rows(mine)
            # Means over what this process has, weighted to be means over what all have.
            n_hard = float(weights.sum())
            n_hard_in_all, n_soft_in_all = distributed.total(n_hard, n_soft)
            of_hard, of_soft = n_hard / max(n_hard_in_all, 1e-12), n_soft / max(n_soft_in_all, 1)
            loss = hard * of_hard + more * of_soft
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            distributed.sum_gradients(model.parameters())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            sums += [float(hard.detach()) * of_hard, soft * of_soft]
            release_memory_after(step, device)
        sums = np.array(distributed.total(*sums))
        if not np.isfinite(sums).all():
            raise RecsysError(
                f"the loss of {label} became NaN or infinite in epoch {epoch + 1}\n"
                f'  to do:    lower {label}.lr, or set precision = "fp32"'
            )
        value = validation(model) if validation is not None and not distributed.rank() else float("nan")
        value = distributed.from_first(value)
        mean = sums / len(steps)
        history.append({"epoch": epoch + 1, "hard": mean[0], "soft": mean[1], "valid_ndcg_at_10": value})
        if soft_loss is not None:
            measured = soft_loss.measure(model)
            history[-1].update({name: distributed.from_first(found) for name, found in measured.items()})
            soft_loss.follow(history[-1])
        _log(writer, label, history[-1])
        # Of equal values the later one, which has seen more; without validation users the last epoch.
        if value >= best_value or np.isnan(value):
            best, best_epoch = copy.deepcopy(model.state_dict()), epoch
            best_value = max(best_value, value)
        save_checkpoint(
            scratch,
            tensors={f"now.{k}": v for k, v in model.state_dict().items()} | {f"best.{k}": v for k, v in best.items()},
            optimizer=optimizer,
            progress={"epoch": epoch, "best_value": best_value, "best_epoch": best_epoch, "history": history},
        )
    writer.close()
    model.load_state_dict(best)
    return Trained(model.eval(), best_epoch + 1, best_value, history, len(catalogue))


def batches(windows: Windows, positions: int, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
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
    parts = np.split(order, cuts)
    return [parts[i] for i in rng.permutation(len(parts))]


@dataclass(frozen=True)
class Step:
    """One batch of b windows, padded on the right to T events, in which m positions are asked for the next event.

    Attributes:
        items: [b, T] int64, 0 for padding.
        types: [b, T] int64 event types, 0 for padding.
        gaps: [b, T] int64, of `recsys.sequence.towers.gap_codes`.
        targets: [m] int64, the items that came next.
        target_types: [m] int64, as what.
        places: [m] int64, in the flattened user vectors [b · (T + 1)].
    """

    items: torch.Tensor
    types: torch.Tensor
    gaps: torch.Tensor
    targets: torch.Tensor
    target_types: torch.Tensor
    places: torch.Tensor

    def to(self, device: torch.device) -> Step:
        """The same, there."""
        return Step(*(getattr(self, each.name).to(device, non_blocking=True) for each in fields(self)))


def collate(train: Sequences, windows: Windows, batch: npt.NDArray[np.int64]) -> Step:
    """One batch of windows."""
    count = windows.count[batch]
    width = int(count.max(initial=0)) + 1  # none where more processes share the windows than there are windows
    column = np.arange(width)[None, :]
    place = windows.begin[batch][:, None] + column
    inside = column < count[:, None]
    columns: tuple[npt.NDArray[np.integer], ...] = (train.item_idx, train.event_type, train.timestamp)
    rectangles = [np.zeros(place.shape, np.int64) for _ in columns]
    for rectangle, flat in zip(rectangles, columns, strict=True):
        rectangle[inside] = flat[place[inside]]
    items, types, times = (rectangle[:, : width - 1] for rectangle in rectangles)
    # The vector at column p is asked for event p of the window; past the window, for the user's next event.
    end = train.offsets[windows.user[batch] + 1][:, None]
    asked = (column >= windows.first[batch][:, None]) & (column <= count[:, None]) & (place < end)
    return Step(
        torch.from_numpy(items),
        torch.from_numpy(types),
        torch.from_numpy(gap_codes(times) * inside[:, : width - 1]),
        torch.from_numpy(train.item_idx[place[asked]].astype(np.int64)),
        torch.from_numpy(train.event_type[place[asked]].astype(np.int64)),
        torch.from_numpy(np.flatnonzero(asked)),
    )


def _event_weights(config: TowersConfig, event_types: Sequence[str], label: str) -> list[float]:
    """By code, how much an event counts."""
    unknown = set(config.event_weights) - set(event_types)
    if unknown:
        raise InputError(
            f"{label}.event_weights names {', '.join(map(repr, sorted(unknown)))}",
            expected=f"event types of the log: {', '.join(event_types)}",
            do="correct the name",
        )
    return [config.event_weights.get(name, 1.0) for name in event_types]


def _log(writer: SummaryWriter, label: str, row: dict[str, float]) -> None:
    for name, value in row.items():
        if name != "epoch":
            writer.add_scalar(f"{label}/{name}", value, int(row["epoch"]))
