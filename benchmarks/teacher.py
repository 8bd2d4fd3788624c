"""The teacher on Amazon 2014 Beauty, beside every kind of evidence that it is made of; and its speed.

    RECSYS_DATA=… python benchmarks/teacher.py                       # a table
    RECSYS_DATA=… python benchmarks/teacher.py --json                # one line per figure
    RECSYS_DATA=… python benchmarks/teacher.py --seeds 0 1 2         # three teachers
    python benchmarks/teacher.py --only speed                        # minutes; needs no data

* `quality`: leave-one-out in the order of `position`, seen items filtered. The teacher reranks the 200 unseen items
  that its evidence puts first; each kind of evidence ranks the whole catalogue alone, and so does their untrained sum.
  All on the same `--users` users of the test part, drawn by seed. `difference` is the teacher minus another on the
  same users, with its 95 % paired bootstrap interval. `cold` is recall at 10 on the users whose target has no training
  event.
* `speed`: pairs per second of the packed cross-encoder and of `sentence_transformers.CrossEncoder.predict`, each in a
  process of its own, in turn; medians of rounds, and peak memory. Both have the same backbone (MiniLM-L6), read the
  same titles of eight history items and 64 candidates for each of the same users, and compute in the same precision.
  `packed` is the teacher with all six layers reading history and candidate together, wide evidence and towers included;
  `packed.cached` has the two joint layers that are its default, on item states that were computed once (by all users'
  requests together, so that is not timed).

A teacher takes about half an hour on two cores; what is up to date is not done again. The data is for research and is
not part of the repository.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from _common import Figure, arguments, at_least, report

from recsys.config import PipelineConfig, load_config
from recsys.errors import RecsysError
from recsys.evaluation.baselines import MostPopular, OrderedItemKNN, OrderedItemKNNWithText
from recsys.evaluation.metrics import NDCG, Recall
from recsys.evaluation.ranking import Scorer, Scores, tie_keys, top_k
from recsys.evaluation.significance import percentile_interval, resampled_means
from recsys.ingest.config import IngestConfig
from recsys.ingest.dataset import Dataset, Sequences
from recsys.ingest.ingest import ingest
from recsys.runtime import Runtime
from recsys.sample.config import SampleConfig
from recsys.sample.sample import write_sample
from recsys.sequence.towers import Towers
from recsys.teacher.behaviour import Behaviour
from recsys.teacher.config import TeachConfig
from recsys.teacher.model import ItemStates, Packer, Teacher, TeacherModel, score_packed, split_encoder
from recsys.teacher.teach import history_rows, teach
from recsys.teacher.wide import WideEvidence
from recsys.text import (
    BUNDLED,
    TextVectors,
    TextVectorsConfig,
    encoder_path,
    item_texts,
    load_encoder,
    text_vectors,
)

METRICS: Final = Recall(10), NDCG(10)
CANDIDATES: Final = 200
TARGETS: Final = {"recall_at_10": 0.112, "ndcg_at_10": 0.068}
BLOCK: Final = 128
SPEED_TARGET: Final = 6.0
SPEED_ITEMS, SPEED_USERS, SPEED_HISTORY, SPEED_CANDIDATES, SPEED_TOKENS = 500, 16, 8, 64, 16
CONTENDERS: Final = ("cross_encoder", "packed", "packed.cached")
PARTS: Final = ("quality", "speed")

Values = npt.NDArray[np.float64]


def main() -> int:
    """Teach, rank and judge."""
    parser = arguments(__doc__)
    parser.add_argument("-c", "--config", default="pipelines/beauty.toml", help="the run's TOML")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `recsys run`")
    parser.add_argument("--only", action="append", choices=PARTS, help="one part; may be repeated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one teacher for each")
    parser.add_argument("--users", type=int, default=5000, help="test users that are asked")
    parser.add_argument("--contender", choices=CONTENDERS, help="one process of `speed`; prints JSON")
    parser.add_argument("--rounds", type=int, default=3, help="of the timings")
    options = parser.parse_args()
    figures: list[Figure] = []
    try:
        config = load_config(options.config, options.set)
        if options.contender:
            contend(options.contender, config.threads)
            return 0
        for part in options.only or PARTS:
            if part == "quality":
                figures += quality(config, options.seeds, options.users)
            else:
                figures += speed(options.rounds, config.threads)
    except RecsysError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return report(figures, as_json=options.json)


def quality(config: PipelineConfig, seeds: list[int], n_users: int) -> list[Figure]:
    """Every seed's teacher beside its evidence."""
    folder = Path(config.run_dir)
    dataset = ingest(config.ingest, folder / "dataset", data=config.data, runtime=config.runtime())
    figures: list[Figure] = []
    for seed in seeds:
        runtime = Runtime(seed=seed, threads=config.threads)
        runtime.torch_device()
        teacher = teach(dataset, config.teach, folder / f"teacher_{seed}" / "teacher", runtime=runtime)
        figures.append(Figure(f"seed{seed}.teach", float(teacher.manifest["seconds"]) / 60, "min"))
        for step in teacher.manifest["info"]["history"]:
            print(f"seed {seed}: {step}", file=sys.stderr)
        text = TextVectors.open(folder / f"teacher_{seed}" / "text_vectors").vectors
        found, cold = answers(dataset, teacher, text, n_users, runtime)
        figures += judged(found, cold, f"seed{seed}")
    return figures


def answers(
    dataset: Dataset, teacher: Teacher, text: npt.NDArray[np.float32], n_users: int, runtime: Runtime
) -> tuple[dict[str, Values], npt.NDArray[np.bool_]]:
    """By model, recall and NDCG at 10 of each user, [n, 2]; and whose target is cold."""
    cases = dataset.cases("test")
    rows = np.sort(np.random.default_rng(0).permutation(len(cases))[:n_users])
    packer = teacher.packer()
    single = alone(dataset, packer, text)
    counts = np.bincount(dataset.train.item_idx, minlength=dataset.n_items)
    parts: dict[str, list[Values]] = {}
    for start in runtime.track(range(0, len(rows), BLOCK), total=-(-len(rows) // BLOCK), label="ask", unit="block"):
        chosen = rows[start : start + BLOCK]
        users, end = cases.user_idx[chosen], cases.history_end[chosen]
        histories, seen = history_rows(dataset, users, end, last=packer.history)
        targets = cases.targets.values[cases.targets.offsets[chosen]]
        pool = packer.retrieve(histories, seen, CANDIDATES)
        lists = {"evidence": pool[:, :10]}
        keys = tie_keys(users, runtime.seed)
        for name, scorer in single.items():
            scores = scorer.score(histories)
            scores[seen] = -np.inf
            lists[name] = top_k(scores, 10, keys)
        logits = teacher.score(histories, np.maximum(pool, 0), runtime=runtime)
        logits[pool < 0] = -np.inf
        best = np.argsort(-logits, axis=1, kind="stable")[:, :10]
        lists["teacher"] = np.take_along_axis(pool, best, axis=1)
        lists["candidates"] = pool
        for name, items in lists.items():
            hits = items == targets[:, None]
            if name == "candidates":  # what the teacher can find at all
                hits = hits.any(axis=1)[:, None]
            found = [metric(hits, np.ones(len(hits), dtype=np.int64)) for metric in METRICS]
            parts.setdefault(name, []).append(np.column_stack(found))
    cold = counts[cases.targets.values[cases.targets.offsets[rows]]] == 0
    return {name: np.concatenate(values) for name, values in parts.items()}, cold


def alone(dataset: Dataset, packer: Packer, text: npt.NDArray[np.float32]) -> dict[str, Scorer]:
    """Every kind of evidence as a ranker of the whole catalogue."""
    pairs = packer.wide.cooccurrence
    no_pairs = replace(pairs, weights=np.zeros_like(pairs.weights))
    return {
        "popularity": MostPopular(dataset.train, dataset.n_items),
        "cooccurrence": OrderedItemKNN(pairs),
        "text": OrderedItemKNNWithText(no_pairs, text),
        "behaviour": Behaving(packer.behaviour),
    }


@dataclass(frozen=True)
class Behaving:
    """The towers inside the teacher."""

    behaviour: Behaviour
    name: str = "behaviour"

    def score(self, histories: Sequences) -> Scores:
        """Log-probabilities of the whole catalogue."""
        return self.behaviour.log_probabilities(histories)


def judged(found: dict[str, Values], cold: npt.NDArray[np.bool_], seed: str) -> list[Figure]:
    """Means, and the teacher minus every other on the same users."""
    figures = []
    for name, values in found.items():
        if name == "candidates":
            figures.append(Figure(f"{seed}.candidates.recall_at_{CANDIDATES}", float(values[:, 0].mean())))
            continue
        for place, metric in enumerate(METRICS):
            full, value = f"{seed}.{name}.{metric.column}", float(values[:, place].mean())
            figures.append(at_least(full, value, TARGETS[metric.column]) if name == "teacher" else Figure(full, value))
        if cold.any():
            figures.append(Figure(f"{seed}.{name}.cold.recall_at_10", float(values[cold, 0].mean())))
    figures.append(Figure(f"{seed}.cold.users", float(cold.sum())))
    for name, values in found.items():
        if name in ("teacher", "candidates"):
            continue
        gain = found["teacher"][:, 1] - values[:, 1]
        means = resampled_means(gain[:, None], n_resamples=2000, rng=np.random.default_rng(0))
        low, high = percentile_interval(means, 0.95)
        about = f"{seed}.difference.ndcg_at_10.teacher-{name}"
        figures += [
            Figure(f"{about}.difference", float(gain.mean())),
            at_least(f"{about}.low", float(low[0]), 0.0),
            Figure(f"{about}.high", float(high[0])),
        ]
    return figures


def speed(rounds: int, threads: int) -> list[Figure]:
    """Pairs per second and peak memory of each contender, in turn."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, of in found.items():
            command = [sys.executable, __file__, "--contender", name, "--set", f"threads={threads}"]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
            of.append(json.loads(answer))
            print(f"{name}: {of[-1]}", file=sys.stderr)
    figures = []
    for name, of in found.items():
        figures.append(Figure(f"speed.{name}", statistics.median(each["pairs_per_second"] for each in of), "pairs/s"))
        figures.append(Figure(f"speed.{name}.memory", max(each["peak_mb"] for each in of), "MB"))
    for name in ("packed", "packed.cached"):
        ratios = [
            ours["pairs_per_second"] / theirs["pairs_per_second"]
            for ours, theirs in zip(found[name], found["cross_encoder"], strict=True)
        ]
        figures.append(at_least(f"speed.{name}/cross_encoder", statistics.median(ratios), SPEED_TARGET))
        figures.append(Figure(f"speed.{name}/cross_encoder.least", min(ratios)))
        figures.append(Figure(f"speed.{name}/cross_encoder.most", max(ratios)))
    return figures


def contend(name: str, threads: int) -> None:
    """Score the pairs by one contender and print what it took, as JSON."""
    runtime = Runtime(threads=threads, progress=False)
    runtime.torch_device()
    with tempfile.TemporaryDirectory() as folder:
        sizes = SampleConfig(n_items=SPEED_ITEMS, n_users=300, n_events=8000)
        shop = write_sample(Path(folder) / "shop", sizes, seed=0)
        dataset = ingest(IngestConfig(), Path(folder) / "dataset", data=shop.path, runtime=runtime)
        users = np.flatnonzero(dataset.split.train_end >= SPEED_HISTORY)[:SPEED_USERS].astype(np.int32)
        histories = dataset.histories(users, last=SPEED_HISTORY)
        rng = np.random.default_rng(0)
        candidates = rng.integers(0, SPEED_ITEMS, (len(users), SPEED_CANDIDATES)).astype(np.int32)
        if name == "cross_encoder":
            seconds = by_cross_encoder(dataset, histories, candidates, runtime)
        else:
            seconds = by_packing(dataset, histories, candidates, Path(folder), runtime, 6 if name == "packed" else 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"pairs_per_second": candidates.size / seconds, "peak_mb": peak}))


def by_cross_encoder(
    dataset: Dataset, histories: Sequences, candidates: npt.NDArray[np.int32], runtime: Runtime
) -> float:
    """Seconds of the usual way: every pair is a text of its own."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(
        encoder_path(BUNDLED),
        num_labels=1,
        max_length=(SPEED_HISTORY + 1) * SPEED_TOKENS,
        device="cpu",
        model_kwargs={"torch_dtype": runtime.compute_dtype()},
    )
    titles = item_texts(dataset)
    pairs = [
        (". ".join(titles[item] for item in history), titles[candidate])
        for history, row in zip(np.split(histories.item_idx, histories.offsets[1:-1]), candidates, strict=True)
        for candidate in row
    ]
    model.predict(pairs[:64], batch_size=64, show_progress_bar=False)
    started = time.perf_counter()
    model.predict(pairs, batch_size=64, show_progress_bar=False)
    return time.perf_counter() - started


def by_packing(
    dataset: Dataset,
    histories: Sequences,
    candidates: npt.NDArray[np.int32],
    folder: Path,
    runtime: Runtime,
    layers: int,
) -> float:
    """Seconds of the teacher: every history is read once."""
    config = TeachConfig(joint_layers=layers, history=SPEED_HISTORY, max_tokens=SPEED_TOKENS)
    text = text_vectors(dataset, TextVectorsConfig(), folder / "text_vectors", runtime=runtime).vectors
    wide = WideEvidence.fit(dataset.train, dataset.items, text)
    towers = Towers(
        config.behaviour,
        torch.from_numpy(np.array(text)),
        torch.ones(dataset.n_items, dtype=torch.bool),
        n_event_types=3,
    ).eval()
    with torch.inference_mode():
        behaviour = Behaviour([towers.user], [towers.items()], config.behaviour.max_history)
    packer = Packer(ItemStates.compute(dataset, config, folder, runtime), wide, behaviour, config)
    _, encoder = split_encoder(load_encoder(config.encoder)[1], layers)
    model = TeacherModel(encoder, torch.zeros(dataset.n_items, config.item_dim), config, n_event_types=3).eval()
    device, dtype = runtime.torch_device(), runtime.compute_dtype()
    score_packed(model, packer, histories, candidates, device=device, dtype=dtype)
    started = time.perf_counter()
    score_packed(model, packer, histories, candidates, device=device, dtype=dtype)
    return time.perf_counter() - started


if __name__ == "__main__":
    raise SystemExit(main())
