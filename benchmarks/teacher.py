"""The teacher on Amazon 2014 Beauty, beside every kind of evidence that it is made of; its parts; and its speed.

    RECSYS_DATA=… python benchmarks/teacher.py                       # a table
    RECSYS_DATA=… python benchmarks/teacher.py --json                # one line per figure
    RECSYS_DATA=… python benchmarks/teacher.py --seeds 0 1 2         # three teachers
    RECSYS_DATA=… python benchmarks/teacher.py --only temporal       # trained before a moment, asked after it
    RECSYS_DATA=… python benchmarks/teacher.py --only ablations
    python benchmarks/teacher.py --only speed                        # minutes; needs no data

* `quality`: leave-one-out in the order of `position`, seen items filtered. The teacher reranks the 200 unseen items
  that its evidence puts first; each kind of evidence ranks the whole catalogue alone, and so does their untrained sum.
  All on the same `--users` users of the test part, drawn by seed. `difference` is the teacher minus another on the
  same users, with its 95 % paired bootstrap interval. `cold` is recall at 10 on all users whose target has no training
  event.
* `temporal`: the same, trained before one moment and asked after another (60 days to validate on, 60 to test).
* `ablations`: teachers that read less, and one that reads every candidate with a history of its own, beside the whole
  teacher: the same towers, examples, schedule (`--examples`, fewer than a good teacher's) and candidates. `evidence` is
  the weighed evidence before anything is read; `adapted` reads with an encoder that went once through the
  catalogue's text first.
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
from _asked import BLOCK, CANDIDATES, METRICS, WITHIN_CANDIDATES, Asked, Values, best_ten, difference
from _common import Figure, arguments, at_least, peak_mb, report

from recsys.config import PipelineConfig, load_config
from recsys.errors import RecsysError
from recsys.evaluation.baselines import MostPopular, OrderedItemKNN, OrderedItemKNNWithText
from recsys.evaluation.ranking import Scorer, Scores, tie_keys, top_k
from recsys.ingest.config import IngestConfig
from recsys.ingest.dataset import Dataset, Sequences
from recsys.ingest.ingest import ingest
from recsys.runtime import Runtime
from recsys.sample.config import SampleConfig
from recsys.sample.sample import write_sample
from recsys.sequence.features import item_features
from recsys.sequence.towers import Towers
from recsys.teacher.behaviour import Behaviour
from recsys.teacher.config import TeachConfig
from recsys.teacher.model import ItemStates, Packer, Teacher, TeacherModel, score_packed, split_encoder
from recsys.teacher.teach import teach
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

TARGETS: Final = {"recall_at_10": 0.112, "ndcg_at_10": 0.068}
SPEED_TARGET: Final = 6.0
SPEED_ITEMS, SPEED_USERS, SPEED_HISTORY, SPEED_CANDIDATES, SPEED_TOKENS = 500, 16, 8, 64, 16
CONTENDERS: Final = ("cross_encoder", "packed", "packed.cached")
PARTS: Final = ("quality", "temporal", "ablations", "speed")
TEMPORAL: Final = ("ingest.protocol=temporal", "ingest.valid_days=60", "ingest.test_days=60")
ABLATIONS: Final[dict[str, dict[str, object]]] = {
    "whole": {},
    "evidence": {"lr": 1e-12, "head_lr": 1e-12},
    "text": {"evidence": False, "item_tokens": False},
    "text_and_item_tokens": {"evidence": False},
    "without_item_tokens": {"item_tokens": False},
    "adapted": {"adapt_epochs": 1},
    "not_packed": {"packed": False},
}
ABLATION_CANDIDATES: Final = 100


def main() -> int:
    """Teach, rank and judge."""
    parser = arguments(__doc__)
    parser.add_argument("-c", "--config", default="pipelines/beauty.toml", help="the run's TOML")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `recsys run`")
    parser.add_argument("--only", action="append", choices=PARTS, help="one part; may be repeated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one teacher for each")
    parser.add_argument("--users", type=int, default=5000, help="test users that are asked")
    parser.add_argument("--examples", type=int, default=4000, help="that the teachers of `ablations` learn on")
    parser.add_argument(
        "--ablation",
        action="append",
        choices=ABLATIONS,
        help="one teacher of `ablations` beside the whole; may be repeated",
    )
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
            elif part == "temporal":
                later = load_config(options.config, [*options.set, *TEMPORAL])
                later = later.model_copy(update={"run_dir": Path(config.run_dir) / "temporal"})
                figures += quality(later, options.seeds, options.users, prefix="temporal.")
            elif part == "ablations":
                figures += ablations(config, options.examples, options.users, options.ablation or list(ABLATIONS))
            else:
                figures += speed(options.rounds, config.threads)
    except RecsysError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return report(figures, as_json=options.json)


def quality(config: PipelineConfig, seeds: list[int], n_users: int, prefix: str = "") -> list[Figure]:
    """Every seed's teacher beside its evidence."""
    folder = Path(config.run_dir)
    dataset = ingest(config.ingest, folder / "dataset", data=config.data, runtime=config.runtime())
    figures: list[Figure] = []
    for seed in seeds:
        runtime = Runtime(seed=seed, threads=config.threads)
        runtime.torch_device()
        teacher = teach(dataset, config.teach, folder / f"teacher_{seed}" / "teacher", runtime=runtime)
        name = f"{prefix}seed{seed}"
        figures.append(Figure(f"{name}.teach", float(teacher.manifest["seconds"]) / 60, "min"))
        for step in teacher.manifest["info"]["history"]:
            print(f"seed {seed}: {step}", file=sys.stderr)
        text = TextVectors.open(folder / f"teacher_{seed}" / "text_vectors").vectors
        asked = Asked.draw(dataset, n_users)
        found = answers(dataset, teacher, text, asked, runtime)
        figures += judged(found, asked, name, targets={} if prefix else TARGETS)
    return figures


def ablations(config: PipelineConfig, examples: int, n_users: int, names: list[str]) -> list[Figure]:
    """Teachers that read less or otherwise, on the same candidates."""
    folder = Path(config.run_dir) / "ablations"
    dataset = ingest(config.ingest, Path(config.run_dir) / "dataset", data=config.data, runtime=config.runtime())
    runtime = Runtime(seed=config.seed, threads=config.threads)
    runtime.torch_device()
    schedule = {"examples": examples, "evaluations": 2, "valid_users": 500}
    asked = Asked.draw(dataset, n_users)
    asked = replace(asked, rows=asked.rows[asked.sampled], sampled=asked.sampled[asked.sampled])
    found: dict[str, Values] = {}
    figures: list[Figure] = []
    pools: list[npt.NDArray[np.int32]] = []
    for name in dict.fromkeys(["whole", *names]):
        changed = config.teach.model_copy(update={**schedule, **ABLATIONS[name]})
        teacher = teach(dataset, changed, folder / name, runtime=runtime)
        print(f"{name}: {teacher.manifest['info']['history']}", file=sys.stderr)
        figures.append(Figure(f"ablations.{name}.teach", float(teacher.manifest["seconds"]) / 60, "min"))
        packer = teacher.packer()
        parts = []
        blocks = range(0, len(asked.rows), BLOCK)
        for number, start in enumerate(runtime.track(blocks, total=len(blocks), label=f"ask {name}", unit="block")):
            _, histories, seen, judge = asked.block(dataset, start, packer.history)
            if number == len(pools):  # of the whole teacher, for all
                pools.append(packer.retrieve(histories, seen, ABLATION_CANDIDATES))
            parts.append(judge(best_ten(teacher, histories, pools[number], runtime)))
        found[name] = np.concatenate(parts)
        print(f"{name}: NDCG@10 {found[name][:, 1].mean():.4f}", file=sys.stderr)
    for name, values in found.items():
        figures += [
            Figure(f"ablations.{name}.{metric.column}", float(values[:, place].mean()))
            for place, metric in enumerate(METRICS)
        ]
    for name, values in found.items():
        if name != "whole":
            figures += difference(f"ablations.difference.ndcg_at_10.whole-{name}", found["whole"], values)
    return figures


def answers(
    dataset: Dataset, teacher: Teacher, text: npt.NDArray[np.float32], asked: Asked, runtime: Runtime
) -> dict[str, Values]:
    """By model, recall and NDCG at 10 of each user and recall of the whole list, [n, 3]."""
    packer = teacher.packer()
    single = alone(dataset, packer, text)
    parts: dict[str, list[Values]] = {}
    for start in runtime.track(range(0, len(asked.rows), BLOCK), label="ask", unit="block"):
        users, histories, seen, judge = asked.block(dataset, start, packer.history)
        pool = packer.retrieve(histories, seen, CANDIDATES)
        lists = {"evidence": pool}
        keys = tie_keys(users, runtime.seed)
        for name, scorer in single.items():
            scores = scorer.score(histories)
            scores[seen] = -np.inf
            lists[name] = top_k(scores, 10, keys)
        lists["teacher"] = best_ten(teacher, histories, pool, runtime)
        for name, items in lists.items():
            parts.setdefault(name, []).append(judge(items))
    return {name: np.concatenate(values) for name, values in parts.items()}


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


def judged(found: dict[str, Values], asked: Asked, seed: str, targets: dict[str, float]) -> list[Figure]:
    """Means over the sample, and the teacher minus every other on the same users; the same of the cold ones."""
    figures = []
    for name, values in found.items():
        for place, metric in enumerate(METRICS):
            full, value = f"{seed}.{name}.{metric.column}", float(values[asked.sampled, place].mean())
            wanted = targets.get(metric.column) if name == "teacher" else None
            figures.append(Figure(full, value) if wanted is None else at_least(full, value, wanted))
        if name == "evidence":  # its list is what the teacher can find at all
            full, value = f"{seed}.candidates.{WITHIN_CANDIDATES.column}", float(values[asked.sampled, 2].mean())
            figures.append(Figure(full, value))
        if asked.cold.any():
            figures.append(Figure(f"{seed}.{name}.cold.recall_at_10", float(values[asked.cold, 0].mean())))
    figures += [
        Figure(f"{seed}.users", float(asked.sampled.sum())),
        Figure(f"{seed}.cold.users", float(asked.cold.sum())),
    ]
    teacher = found["teacher"]
    for name, values in found.items():
        if name != "teacher":
            about = f"{seed}.difference.ndcg_at_10.teacher-{name}"
            figures += difference(about, teacher[asked.sampled], values[asked.sampled], above=0.0)
        if name in ("popularity", "text") and asked.cold.any():
            about = f"{seed}.difference.cold.recall_at_10.teacher-{name}"
            figures += difference(about, teacher[asked.cold], values[asked.cold], place=0)
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
    peak = peak_mb()
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
        item_features(dataset.items, text, config.behaviour),
        torch.ones(dataset.n_items, dtype=torch.bool),
        n_event_types=3,
    ).eval()
    with torch.inference_mode():
        behaviour = Behaviour([towers.user], [towers.items()], config.behaviour.max_history)
    states = ItemStates.compute(dataset, config, config.encoder, folder, runtime)
    packer = Packer(states, wide, behaviour, config)
    _, encoder = split_encoder(load_encoder(config.encoder)[1], layers)
    model = TeacherModel(encoder, torch.zeros(dataset.n_items, config.item_dim), config, n_event_types=3).eval()
    device, dtype = runtime.torch_device(), runtime.compute_dtype()
    score_packed(model, packer, histories, candidates, device=device, dtype=dtype)
    started = time.perf_counter()
    score_packed(model, packer, histories, candidates, device=device, dtype=dtype)
    return time.perf_counter() - started


if __name__ == "__main__":
    raise SystemExit(main())
