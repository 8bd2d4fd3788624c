"""Dataset + soft labels → student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from recsys import distributed
from recsys.artifacts import Draft, Recipe
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset, Sequences
from recsys.ingest.windows import Windows, sliding_windows
from recsys.runtime import Runtime
from recsys.sequence.features import ItemFeatures, item_features, towers_texts
from recsys.sequence.towers import Towers
from recsys.sequence.train import MODULES, ItemVectors, Validation, train_towers
from recsys.soft_labels import Rows, SoftLabels, joined
from recsys.student.advantage import SEGMENTS, Advantage, segments
from recsys.student.config import DistillConfig
from recsys.student.losses.all import LOSSES
from recsys.student.losses.confidence import confidence
from recsys.student.losses.feature_matching import feature_matching
from recsys.student.losses.listwise_kl import standardize
from recsys.student.model import Student
from recsys.student.warm_start import save_items, warm_start


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
        MissingExtraError: the engine is Spark, and pyspark is not installed.
    """
    runtime = runtime or Runtime()
    inputs = {"dataset": dataset.fingerprint}
    if soft_labels is not None:
        inputs["soft_labels"] = soft_labels.fingerprint
    tables = [] if soft_labels is None else [soft_labels, *map(SoftLabels.open, config.earlier_soft_labels)]
    inputs |= {f"soft_labels_{number}": each.fingerprint for number, each in enumerate(tables[1:], start=2)}
    earlier = None if config.warm_start is None else Student.open(config.warm_start)
    if earlier is not None:
        inputs["warm_start"] = earlier.fingerprint
    recipe = Recipe(
        kind=Student.kind,
        config=_what_counts(config),
        inputs=inputs,
        seed=runtime.seed,
        modules=(
            *MODULES,
            "recsys.soft_labels",
            "recsys.student",
            "recsys.student.losses",
            "recsys.evaluation.segments",
        ),
    )
    if config.engine == "spark" and (force or not recipe.is_current(out)):
        from recsys.student.spark import distill_on_spark

        distill_on_spark(dataset, soft_labels, config, out, out.parent / "work" / "spark", runtime, force=force)
        return Student.open(out)
    if force or not distributed.from_first(recipe.is_current(out)):
        text = towers_texts(dataset, config, out, runtime=runtime)
        with recipe.build(out) as draft:
            _train(dataset, tables, text, earlier, config, draft, runtime)
    return Student.open(out)


@dataclass
class Soft:
    """Soft labels, sorted by the window that holds their position.

    Attributes:
        offsets: [n_windows + 1], where each window's begin.
        place: [n] which of the window's user vectors is asked.
        candidate: [n, C] int32, −1 for padding.
        logit: [n, C] float32.
        config: which losses.
        text: [n_items, width] float32, sentence vectors, for the loss that compares texts.
        segment: [n], which of `recsys.student.advantage.SEGMENTS`.
        advantage: measures how much each segment shall count.
        factor: [n_segments] float32, how much it counts now.
    """

    offsets: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]
    candidate: npt.NDArray[np.int32]
    logit: npt.NDArray[np.float32]
    config: DistillConfig
    text: npt.NDArray[np.float32] | None = None
    segment: npt.NDArray[np.int64] | None = None
    advantage: Advantage | None = None
    factor: npt.NDArray[np.float32] = field(default_factory=lambda: np.ones(len(SEGMENTS), dtype=np.float32))

    @classmethod
    def find(
        cls,
        rows: Rows,
        train: Sequences,
        windows: Windows,
        config: DistillConfig,
        text: npt.NDArray[np.float32] | None = None,
        dataset: Dataset | None = None,
        seed: int = 0,
    ) -> Soft:
        """Sort them. Rows of one candidate, or of candidates that the teacher does not tell apart, teach nothing.

        Args:
            rows: of `SoftLabels.padded`.
            train: the sequences that they are about.
            windows: of these sequences.
            config: which losses.
            text: [n_items, width] float32, sentence vectors.
            dataset: whose validation part tells how much each segment counts, for `config.by_segment`.
            seed: decides whom of it.

        Raises:
            InputError: they stand at positions that the training part does not have, no row tells two candidates
                apart, or nothing but one candidate would be left of a row at a loss's temperature.
        """
        if "feature_matching" in config.losses and text is None:
            raise InputError(
                "distill.losses.feature_matching compares texts, and distill.use_text is false",
                expected="use_text = true",
                do="leave the loss out, or let the student read texts",
            )
        user, position, candidate, logit = rows
        usable = (user < len(train)) & (position <= train.lengths[np.minimum(user, len(train) - 1)])
        if not usable.all():
            raise InputError(
                f"{int((~usable).sum())} soft labels stand at users or positions that the training part does not have",
                expected="soft labels scored on this dataset",
                do="score again: `recsys run --from score`",
            )
        telling = _telling(candidate, logit, config)
        user, position, candidate, logit = user[telling], position[telling], candidate[telling], logit[telling]
        segment = advantage = None
        if config.by_segment and dataset is not None:
            segment = segments(position, candidate, logit, dataset)
            advantage = Advantage.find((user, position, candidate, logit), dataset, config, seed=seed)
        # The window is the last one of the user whose trained places begin at or before the position.
        start = windows.begin - train.offsets[windows.user] + windows.first
        span = int(train.lengths.max(initial=0)) + 1
        keys = user.astype(np.int64) * span + position
        window = np.searchsorted(windows.user * span + start, keys, side="right") - 1
        order = np.argsort(window, kind="stable")
        window = window[order]
        offsets = np.searchsorted(window, np.arange(len(windows.user) + 1))
        place = position[order] - (windows.begin - train.offsets[windows.user])[window]
        segment = None if segment is None else segment[order]
        return cls(offsets, place.astype(np.int64), candidate[order], logit[order], config, text, segment, advantage)

    def of(
        self, windows: npt.NDArray[np.int64], width: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Their places [s] in the flattened user vectors of some windows, candidates [s, C] and logits [s, C]."""
        row, chosen = self._chosen(windows)
        return row * width + self.place[chosen], self.candidate[chosen], self.logit[chosen]

    def _chosen(self, windows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """[s] which of `windows` each of their soft labels stands in, and which one it is."""
        number = self.offsets[windows + 1] - self.offsets[windows]
        row = np.repeat(np.arange(len(windows)), number)
        return row, np.repeat(self.offsets[windows] - np.cumsum(number) + number, number) + np.arange(number.sum())

    def measure(self, model: Towers) -> dict[str, float]:
        """How much each segment shall count, if that is followed."""
        return {} if self.advantage is None else self.advantage(model)

    def follow(self, measured: dict[str, float]) -> None:
        """Let the segments count so much."""
        self.factor = np.array([measured.get(f"soft_weight_{name}", 1.0) for name in SEGMENTS], dtype=np.float32)

    def rows(self, windows: npt.NDArray[np.int64]) -> int:
        """How many rows of soft labels these windows have."""
        return int((self.offsets[windows + 1] - self.offsets[windows]).sum())

    def candidates(self, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """The items that these windows' soft labels are about, −1 for none."""
        return self.of(windows, 0)[1]

    def __call__(
        self,
        windows: npt.NDArray[np.int64],
        users: torch.Tensor,
        items: ItemVectors,
        width: int,
        *,
        progress: float,
    ) -> tuple[torch.Tensor, float]:
        """The weighted sum of the losses on a step's rows; see `recsys.sequence.train.SoftLoss`."""
        place, candidate, logit = (torch.from_numpy(part).to(users.device) for part in self.of(windows, width))
        mask, sure = candidate >= 0, torch.ones(len(place), device=users.device)
        if self.config.confidence:
            sure = confidence(logit, mask)
            # Mean 1 over the step's rows, in whichever process they are; one that has none is waited for, too.
            sum_of_all, rows_of_all = distributed.total(float(sure.sum()), len(sure))
            sure = sure / max(sum_of_all / max(rows_of_all, 1), 1e-6)
        if self.segment is not None:
            counts = self.factor[self.segment[self._chosen(windows)[1]]]
            sure = sure * torch.from_numpy(counts).to(users.device)
        if not len(place):
            return users.new_zeros(()), 0.0
        vectors = items[candidate.long().clamp(min=0)]
        scores = torch.einsum("nd,ncd->nc", users[place], vectors)
        rows = scores.new_zeros(len(place))
        for name, loss in self.config.losses.items():
            if name == "feature_matching":
                assert self.text is not None
                text = torch.from_numpy(self.text[np.maximum(candidate.cpu().numpy(), 0)]).to(users.device)
                value = feature_matching(vectors, text, mask)
            else:
                value = LOSSES[name](scores, logit, mask, temperature=loss.temperature)
            rows = rows + loss.at(progress) * value
        total = (rows * sure).mean()
        return total, float(total.detach())


def _telling(
    candidate: npt.NDArray[np.int32], logit: npt.NDArray[np.float32], config: DistillConfig
) -> npt.NDArray[np.bool_]:
    """[n] whether a row tells candidates apart."""
    there = torch.from_numpy(candidate >= 0)
    z = standardize(torch.from_numpy(logit), there)
    telling = z.abs().amax(1) > 0.5 if len(z) else torch.zeros(0, dtype=torch.bool)
    if len(z) and not telling.any():
        raise InputError(
            f"in all {len(z):,} rows of soft labels the teacher gives every candidate the same logit",
            expected="logits that tell candidates apart",
            do="teach again with a lower teach.lr, or score more candidates, then `recsys run --from score`",
        )
    z, there = z[telling], there[telling]
    if (loss := config.losses.get("listwise_kl")) and len(z):
        largest = (z / loss.temperature).masked_fill(~there, -1e9).softmax(1).amax(1)
        alone = float((largest > 1 - 1e-6).double().mean())
        if alone > 0.99:
            raise InputError(
                f"at distill.losses.listwise_kl.temperature = {loss.temperature:g} the others of a row underflow: "
                f"in {alone:.1%} of the rows one candidate has all weight",
                expected="soft targets",
                do="raise the temperature, or take the loss hard_targets, which means just that",
            )
    return telling.numpy()


def _train(
    dataset: Dataset,
    soft_labels: Sequence[SoftLabels],
    text: npt.NDArray[np.float32] | None,
    earlier: Student | None,
    config: DistillConfig,
    draft: Draft,
    runtime: Runtime,
) -> None:
    train = dataset.train
    soft = None
    if soft_labels and config.losses and len(train.item_idx):
        windows = sliding_windows(train, config.max_history)
        rows = joined(soft_labels, dataset)
        soft = Soft.find(rows, train, windows, config, text, dataset, runtime.seed)
    features = item_features(dataset.items, text, config)
    save_items(dataset, features, draft.path)
    trained = train_towers(
        train,
        features,
        config,
        n_items=dataset.n_items,
        event_types=dataset.event_types,
        validation=Validation(dataset, config, runtime.seed),
        scratch=draft.scratch,
        tensorboard=draft.path / "tensorboard",
        runtime=runtime,
        label="distill",
        soft_loss=soft,
        start=None if earlier is None else lambda model: _start(model, features, dataset, earlier, draft),
    )
    with torch.inference_mode():
        np.save(draft.path / "item_vectors.npy", trained.model.items().cpu().numpy())
    weights = trained.model.state_dict()
    save_file({name: tensor.contiguous().cpu() for name, tensor in weights.items()}, draft.path / "weights.safetensors")
    draft.counts.update(
        items=dataset.n_items,
        items_trained=trained.n_items_trained,
        positions=len(train.item_idx),
        soft_labels=0 if soft is None else len(soft.place),
        epochs=len(trained.history),
        parameters=sum(p.numel() for p in trained.model.parameters()),
    )
    draft.info.update(
        n_event_types=len(dataset.event_types),
        processes=distributed.world_size(),
        best_epoch=trained.best_epoch,
        valid_ndcg_at_10=trained.best_value,
        history=trained.history,
    )


def _what_counts(config: DistillConfig) -> DistillConfig:
    """The config without what decides only who trains."""
    defaults = DistillConfig()
    return config.model_copy(update={name: getattr(defaults, name) for name in ("engine", "processes", "spark")})


def _start(model: Towers, features: ItemFeatures, dataset: Dataset, earlier: Student, draft: Draft) -> None:
    draft.counts["items_known_before"] = warm_start(model, features, dataset, earlier)
