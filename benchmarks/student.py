"""The student on Amazon 2014 Beauty: what distillation brings, what it costs, and how fast it trains.

    RECSYS_DATA=… python benchmarks/student.py                          # a table; hours the first time
    RECSYS_DATA=… python benchmarks/student.py --json                   # one line per figure
    RECSYS_DATA=… python benchmarks/student.py --only quality --seeds 0 1 2
    RECSYS_DATA=… python benchmarks/student.py --only speed --recbole ENV/bin/python --rectools ENV/bin/python
    python benchmarks/student.py --only memory                          # needs no data

* `quality`: leave-one-out in the order of `position`, whole catalogue, all test users, seen items filtered and not. For
  each seed the same student on the log alone (`undistilled`) and with soft labels by the run's config (`distilled`),
  all with the soft labels of one teacher. The teacher reranks 200 candidates of `--users` of the users;
  `.teacher_users` are the student's figures on the same ones. `cold`: users whose targets have no training event.
  `light`: users with at most three training events. `difference` is distilled minus undistilled on the same users,
  with its 95 % paired bootstrap interval.
* `losses`: the first seed with each loss on soft labels alone, of several weights the best by validation NDCG@10.
* `temporal`: `quality` for the first seed, trained before one moment and asked after another (60 days to validate on,
  60 to test); and `first_days`, of the distilled student there. Items without a training event: all users are ranked
  for each by its vector; `auc` is the share of pairs of a later buyer and somebody else that stand in the right order,
  and `buyers_in_top_1_percent` the share of buyers among the users that stand first, for the student, for chance, and
  for the users with the most events. Users without a training event: after their first event, recall and NDCG at 10
  of what they take next, for the student and most popular.
* `cost`: core-seconds per thousand users, one thread: student, all items of the catalogue by its vectors; teacher, the
  same pairs (timed on a few users), and its 200 candidates.
* `memory`: of the losses on the log, forward and backward, at a million items, above what queries and items take.
* `speed`: positions per second of training and NDCG@10 afterwards, of this project's towers reading item ids alone (a
  SASRec), RecTools' and RecBole's SASRec: the same sequences, width, layers, heads, length, learning rate, dropout and
  positions in a batch, softmax over the whole catalogue, one thread, each in a process of its own, in turn, on the
  sequences of `--speed-users` users. Counted are positions with an event before them; the peers' ways and pins stand in
  `benchmarks/student_peers`. Five epochs are too few for any of them, and ours lets its learning rate fall over them;
  `recsys.longer` is ours with three times as many.

Teacher and soft labels are made first; `--teacher` and `--soft-labels` take some that were made before. The data is for
research and is not part of the repository.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from _asked import BLOCK, CANDIDATES, METRICS, Asked, Values, best_ten, difference
from _common import Figure, arguments, at_least, at_most, peak_mb, report

from recsys.config import PipelineConfig, load_config
from recsys.errors import RecsysError
from recsys.evaluation.baselines import MostPopular
from recsys.evaluation.ranking import Scorer, rank
from recsys.evaluation.scorers import StudentScorer
from recsys.ingest.dataset import Cases, Dataset, Ragged, take
from recsys.ingest.ingest import ingest
from recsys.runtime import Runtime
from recsys.sequence.losses.full_softmax import full_softmax
from recsys.sequence.losses.sampled_softmax import sampled_softmax
from recsys.soft_labels import SoftLabels
from recsys.student.config import DistillConfig, LossConfig, LossName
from recsys.student.distill import distill
from recsys.student.model import Student
from recsys.teacher.model import Teacher
from recsys.teacher.score import score
from recsys.teacher.teach import teach

PARTS: Final = ("quality", "losses", "temporal", "cost", "memory", "speed")
TEMPORAL: Final = ("ingest.protocol=temporal", "ingest.valid_days=60", "ingest.test_days=60")
TARGETS: Final = {"recall_at_10": 0.107, "ndcg_at_10": 0.064}
GAIN, OF_TEACHER, CHEAPER, LOSS_MB = 0.05, 0.95, 1000.0, 1024.0
LIGHT: Final = 3
WEIGHTS: Final[dict[LossName, tuple[float, ...]]] = {
    "listwise_kl": (4.0,),
    "hard_targets": (1.0,),
    "margin_mse": (0.1,),
    "pointwise_mse": (0.1,),
    "pairwise_ranking": (1.0,),
    "contrastive": (1.0,),
    "feature_matching": (0.3,),
}
COST_USERS: Final = 2000
LOSS_ITEMS, LOSS_POSITIONS, LOSS_DIM, LOSS_NEGATIVES = 1_000_000, 2048, 128, 100_000
PEERS: Final = ("recbole", "rectools")
RATIOS: Final = {"recbole": 5.0, "rectools": 2.0}
LONGER: Final = 3
SASREC: Final[dict[str, float]] = {
    "epochs": 5, "dim": 64, "layers": 2, "heads": 2, "length": 50, "positions": 256, "dropout": 0.2, "lr": 1e-3,
}  # fmt: skip


def main() -> int:
    """Train, rank and judge."""
    options = _options()
    figures: list[Figure] = []
    try:
        config = load_config(options.config, options.set)
        if options.measure is not None:
            print(json.dumps(loss_memory(options.measure)))
            return 0
        beauty = Shop.open(config, options.teacher, options.soft_labels)
        for part in options.only or PARTS:
            if part == "quality":
                figures += quality(beauty, options.seeds, options.users)
            elif part == "losses":
                figures += losses(beauty, options.seeds[0], options.epochs)
            elif part == "temporal":
                later = load_config(options.config, [*options.set, *TEMPORAL])
                later = later.model_copy(update={"run_dir": Path(config.run_dir) / "temporal"})
                shop = Shop.open(later, options.temporal_teacher, options.temporal_soft_labels)
                figures += quality(shop, options.seeds[:1], options.users, prefix="temporal.")
                figures += first_days(shop, shop.student("distilled", options.seeds[0]))
            elif part == "cost":
                figures += cost(beauty, beauty.student("distilled", options.seeds[0]))
            elif part == "memory":
                figures += memory()
            else:
                given = {name: getattr(options, name) for name in PEERS}
                figures += speed(beauty, options, {name: path for name, path in given.items() if path is not None})
    except RecsysError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return report(figures, as_json=options.json)


def _options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("-c", "--config", default="pipelines/beauty.toml", help="the run's TOML")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `recsys run`")
    parser.add_argument("--only", action="append", choices=PARTS, help="one part; may be repeated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="students of `quality`")
    parser.add_argument("--users", type=int, default=8000, help="test users that the teacher is asked about")
    parser.add_argument("--epochs", type=int, help="of `losses`; the config's by default")
    for name in ("teacher", "soft-labels", "temporal-teacher", "temporal-soft-labels"):
        parser.add_argument(f"--{name}", type=Path, help="folder of what was made before; taken as it is")
    for name in PEERS:
        parser.add_argument(f"--{name}", help=f"a Python that has {name}, for `speed`")
    parser.add_argument("--rounds", type=int, default=1, help="of the timings of `speed`")
    parser.add_argument("--speed-users", type=int, default=5000, help="of `speed`, drawn by seed")
    parser.add_argument("--measure", choices=("full", "sampled"), help="one process of `memory`; prints JSON")
    return parser.parse_args()


@dataclass
class Shop:
    """A dataset, its teacher and soft labels, and students of it."""

    config: PipelineConfig
    dataset: Dataset
    runtime: Runtime
    given_teacher: Path | None
    given_soft_labels: Path | None

    @classmethod
    def open(cls, config: PipelineConfig, teacher: Path | None, soft_labels: Path | None) -> Shop:
        """Ingest; what was made before is opened when it is needed."""
        runtime = Runtime(seed=config.seed, threads=config.threads)
        runtime.torch_device()  # sets the threads
        dataset = ingest(config.ingest, Path(config.run_dir) / "dataset", data=config.data, runtime=runtime)
        return cls(config, dataset, runtime, teacher, soft_labels)

    @property
    def folder(self) -> Path:
        """Where artifacts go."""
        return Path(self.config.run_dir)

    def teacher(self) -> Teacher:
        """The given one, or the config's; where `benchmarks/teacher.py` has it."""
        if self.given_teacher is not None:
            return Teacher.open(self.given_teacher)
        out = self.folder / f"teacher_{self.config.seed}" / "teacher"
        return teach(self.dataset, self.config.teach, out, runtime=self.runtime)

    def soft_labels(self) -> SoftLabels:
        """The given ones, or what the teacher says."""
        if self.given_soft_labels is not None:
            return SoftLabels.open(self.given_soft_labels)
        return score(self.dataset, self.teacher(), self.config.score, self.folder / "soft_labels", runtime=self.runtime)

    def student(self, name: str, seed: int, changes: dict[str, object] | None = None) -> Student:
        """Trained on the log alone if it is called `undistilled`."""
        config = DistillConfig.model_validate({**self.config.distill.model_dump(), **(changes or {})})
        soft = None if name == "undistilled" else self.soft_labels()
        runtime = replace(self.runtime, seed=seed)
        student = distill(self.dataset, soft, config, self.folder / "students" / f"{name}_{seed}", runtime=runtime)
        info = student.manifest["info"]
        print(f"{name}, seed {seed}: {info['valid_ndcg_at_10']:.4f} in epoch {info['best_epoch']}", file=sys.stderr)
        return student


def quality(shop: Shop, seeds: list[int], n_users: int, prefix: str = "") -> list[Figure]:
    """Every seed's student without and with the teacher's word."""
    dataset, figures = shop.dataset, []
    asked = Asked.draw(dataset, n_users)
    for seed in seeds:  # before the teacher is asked, which takes as long as some of them
        for each in ("undistilled", "distilled"):
            shop.student(each, seed)
    teacher = asked_teacher(shop, asked)
    groups = groups_of(dataset, dataset.cases("test"))
    figures += means(f"{prefix}teacher", teacher[asked.sampled])
    figures.append(Figure(f"{prefix}teacher.users", float(asked.sampled.sum())))
    if asked.cold.any():
        figures.append(Figure(f"{prefix}teacher.cold.recall_at_10", float(teacher[asked.cold, 0].mean())))
    figures += [Figure(f"{prefix}{group}.users", float(members.sum())) for group, members in groups.items()]
    baseline = by_user(MostPopular(dataset.train, dataset.n_items), dataset, shop.runtime)
    figures += means(f"{prefix}most_popular", baseline[True])
    for seed in seeds:
        name = f"{prefix}seed{seed}"
        students = {each: shop.student(each, seed) for each in ("undistilled", "distilled")}
        found = {
            each: by_user(StudentScorer(one, shop.runtime), dataset, shop.runtime) for each, one in students.items()
        }
        for each, values in found.items():
            targets = TARGETS if each == "distilled" and not prefix else {}
            figures.append(Figure(f"{name}.{each}.train", float(students[each].manifest["seconds"]) / 60, "min"))
            figures.append(Figure(f"{name}.{each}.valid", float(students[each].manifest["info"]["valid_ndcg_at_10"])))
            figures += means(f"{name}.{each}", values[True], targets)
            figures += means(f"{name}.{each}.unfiltered", values[False])
            figures += means(f"{name}.{each}.teacher_users", values[True][asked.rows[asked.sampled]])
            for group, members in groups.items():
                if members.any():
                    figures += means(f"{name}.{each}.{group}", values[True][members])
        one, other = found["distilled"], found["undistilled"]
        figures += difference(f"{name}.difference.ndcg_at_10", one[True], other[True], above=0.0)
        figures += difference(f"{name}.difference.ndcg_at_10.unfiltered", one[False], other[False])
        for group, members in groups.items():
            if members.any():
                figures += difference(f"{name}.difference.ndcg_at_10.{group}", one[True][members], other[True][members])
        gain = float(np.nanmean(one[True][:, 1]) / np.nanmean(other[True][:, 1])) - 1
        figures.append(at_least(f"{name}.gain.ndcg_at_10", gain, GAIN))
        same = one[True][asked.rows[asked.sampled], 1]
        share = float(np.nanmean(same) / teacher[asked.sampled, 1].mean())
        figures.append(at_least(f"{name}.of_teacher.ndcg_at_10", share, OF_TEACHER))
    return figures


def losses(shop: Shop, seed: int, epochs: int | None) -> list[Figure]:
    """Each loss on the soft labels alone, beside none and the config's."""
    shorter: dict[str, object] = {} if epochs is None else {"epochs": epochs}
    figures: list[Figure] = []
    plain = shop.student("undistilled", seed, shorter)
    without = by_user(StudentScorer(plain, shop.runtime), shop.dataset, shop.runtime)[True]
    figures += means("losses.none", without)
    figures.append(Figure("losses.none.valid", float(plain.manifest["info"]["valid_ndcg_at_10"])))
    for name, weights in WEIGHTS.items():
        students = [
            shop.student(f"{name}_{weight:g}", seed, {**shorter, "losses": {name: LossConfig(weight=weight)}})
            for weight in weights
        ]
        valid = [float(each.manifest["info"]["valid_ndcg_at_10"]) for each in students]
        best = int(np.argmax(valid))
        values = by_user(StudentScorer(students[best], shop.runtime), shop.dataset, shop.runtime)[True]
        figures.append(Figure(f"losses.{name}.weight", weights[best]))
        figures.append(Figure(f"losses.{name}.valid", valid[best]))
        figures += means(f"losses.{name}", values)
        figures += difference(f"losses.difference.ndcg_at_10.{name}-none", values, without)
    return figures


def asked_teacher(shop: Shop, asked: Asked) -> Values:
    """Recall and NDCG at 10 of the teacher's reranked candidates, [n_asked, ≥ 2]."""
    teacher, parts = shop.teacher(), []
    packer = teacher.packer()
    blocks = range(0, len(asked.rows), BLOCK)
    for start in shop.runtime.track(blocks, total=len(blocks), label="ask the teacher", unit="block"):
        _, histories, seen, judge = asked.block(shop.dataset, start, packer.history)
        pool = packer.retrieve(histories, seen, CANDIDATES)
        parts.append(judge(best_ten(teacher, histories, pool, shop.runtime)))
    return np.concatenate(parts)


def by_user(scorer: Scorer, dataset: Dataset, runtime: Runtime, cases: Cases | None = None) -> dict[bool, Values]:
    """By whether seen items are filtered, recall and NDCG at 10 of every case, [n_cases, 2]."""
    found: dict[bool, list[Values]] = {True: [], False: []}
    for block in rank(scorer, dataset, dataset.cases("test") if cases is None else cases, k=10, runtime=runtime):
        values = [metric(block.hits, block.n_targets) for metric in METRICS]
        found[block.seen_filtered].append(np.column_stack(values))
    return {rule: np.concatenate(parts) for rule, parts in found.items()}


def groups_of(dataset: Dataset, cases: Cases) -> dict[str, npt.NDArray[np.bool_]]:
    """Which cases are of light users, and which have only cold targets."""
    events = np.bincount(dataset.train.item_idx, minlength=dataset.n_items)
    warm = np.add.reduceat((events[cases.targets.values] > 0).astype(np.int64), cases.targets.offsets[:-1])
    return {"light": dataset.split.train_end[cases.user_idx] <= LIGHT, "cold": warm == 0}


def means(name: str, values: Values, targets: dict[str, float] | None = None) -> list[Figure]:
    """Both metrics over users."""
    figures = []
    for place, metric in enumerate(METRICS):
        full, value, target = f"{name}.{metric.column}", float(np.nanmean(values[:, place])), None
        target = (targets or {}).get(metric.column)
        figures.append(Figure(full, value) if target is None else at_least(full, value, target))
    return figures


def first_days(shop: Shop, student: Student) -> list[Figure]:
    """Who buys what nobody had, and what takes who had nothing."""
    return new_items(shop, student) + new_users(shop, student)


def new_items(shop: Shop, student: Student) -> list[Figure]:
    """Buyers of items without a training event, in the test part, found among all its users."""
    dataset = shop.dataset
    cases = dataset.cases("test")
    known = np.bincount(dataset.train.item_idx, minlength=dataset.n_items) > 0
    row = np.repeat(np.arange(len(cases)), cases.targets.lengths)
    new = ~known[cases.targets.values]
    items, column = np.unique(cases.targets.values[new], return_inverse=True)
    buys = np.zeros((len(cases), len(items)), dtype=bool)
    buys[row[new], column] = True
    histories = dataset.histories(cases.user_idx, cases.history_end, last=student.config.max_history)
    users = student.user_vectors(histories, runtime=shop.runtime)
    active = dataset.histories(cases.user_idx, cases.history_end).lengths.astype(np.float32)
    # The score is the buyer's likelihood of this item against others, so each user's mean is taken away.
    catalogue = np.asarray(student.item_vectors)
    of_student = users @ (catalogue[items] - catalogue.mean(axis=0)).T
    rng = np.random.default_rng(0)
    contenders = {
        "student": of_student,
        "most_events": np.repeat(active[:, None], len(items), axis=1),
        "chance": rng.random(buys.shape),
    }
    figures = [
        Figure("first_days.items", float(len(items))),
        Figure("first_days.items.buyers", float(buys.sum())),
    ]
    aucs = {}
    for name, scores in contenders.items():
        aucs[name], first = buyers_found(scores + 1e-9 * rng.random(buys.shape), buys)
        figures.append(Figure(f"first_days.items.{name}.auc", float(aucs[name].mean())))
        figures.append(Figure(f"first_days.items.{name}.buyers_in_top_1_percent", float(first.mean())))
    for name in ("most_events", "chance"):
        about = f"first_days.items.difference.auc.student-{name}"
        figures += difference(about, aucs["student"][:, None], aucs[name][:, None], place=0, above=0.0)
    return figures


def buyers_found(
    scores: npt.NDArray[np.floating[Any]], buys: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """For each item [m], of users' scores [n, m]: the AUC of its buyers, and the share of them in the first 1 %."""
    order = np.argsort(scores, axis=0)
    rank_from_below = np.empty(order.shape, dtype=np.int64)
    np.put_along_axis(rank_from_below, order, np.arange(len(scores))[:, None], axis=0)
    n = buys.sum(axis=0)
    above = (rank_from_below * buys).sum(axis=0) - n * (n - 1) / 2  # of others; Mann and Whitney (1947)
    first = (buys & (rank_from_below >= len(scores) - max(len(scores) // 100, 1))).sum(axis=0)
    return above / (n * (len(scores) - n)), first / n


def new_users(shop: Shop, student: Student) -> list[Figure]:
    """Users without a training event: what they take after their first event."""
    dataset, sequences = shop.dataset, shop.dataset.sequences
    users = np.flatnonzero((dataset.split.train_end == 0) & (sequences.lengths >= 2)).astype(np.int32)
    second = sequences.item_idx[sequences.offsets[users] + 1]
    one = np.ones(len(users), dtype=np.int32)
    cases = Cases(users, one, Ragged(np.arange(len(users) + 1), second))
    figures = [Figure("first_days.users", float(len(users)))]
    found: dict[str, Values] = {}
    scorers: tuple[Scorer, ...] = (StudentScorer(student, shop.runtime), MostPopular(dataset.train, dataset.n_items))
    for scorer in scorers:
        values = by_user(scorer, dataset, shop.runtime, cases)[True]
        found[scorer.name] = values[~np.isnan(values[:, 0])]
        figures += means(f"first_days.users.{scorer.name}", found[scorer.name])
    figures.append(Figure("first_days.users.chance.recall_at_10", 10 / dataset.n_items))
    about = "first_days.users.difference.ndcg_at_10.student-most_popular"
    return figures + difference(about, *found.values(), above=0.0)


def cost(shop: Shop, student: Student) -> list[Figure]:
    """What a thousand users take, on one thread."""
    torch.set_num_threads(1)
    dataset, runtime, teacher = shop.dataset, shop.runtime, shop.teacher()
    rows = np.random.default_rng(0).permutation(len(dataset.cases("test")))[:COST_USERS]
    cases = dataset.cases("test")
    users, end = cases.user_idx[rows], cases.history_end[rows]
    histories = dataset.histories(users, end, last=student.config.max_history)
    items = torch.from_numpy(np.array(student.item_vectors))
    student.user_vectors(histories, runtime=runtime)
    started = time.process_time()
    vectors = torch.from_numpy(student.user_vectors(histories, runtime=runtime))
    for start in range(0, len(vectors), 1000):
        (vectors[start : start + 1000] @ items.T).topk(100)
    of_student = (time.process_time() - started) / len(rows) * 1000
    packer, few = teacher.packer(), 4
    asked = dataset.histories(users[:few], end[:few], last=packer.history)
    every = np.broadcast_to(np.arange(dataset.n_items, dtype=np.int32), (few, dataset.n_items))
    teacher.score(asked, every[:, :256], runtime=runtime)
    started = time.process_time()
    for start in range(0, dataset.n_items, 1024):
        teacher.score(asked, every[:, start : start + 1024], runtime=runtime)
    of_teacher = (time.process_time() - started) / few * 1000
    more = dataset.histories(users[:64], end[:64], last=packer.history)
    candidates = np.random.default_rng(0).integers(0, dataset.n_items, (64, CANDIDATES)).astype(np.int32)
    started = time.process_time()
    teacher.score(more, candidates, runtime=runtime)
    reranking = (time.process_time() - started) / 64 * 1000
    return [
        Figure("cost.student", of_student, "core-s per 1,000 users"),
        Figure("cost.teacher", of_teacher, "core-s per 1,000 users"),
        Figure(f"cost.teacher.{CANDIDATES}_candidates", reranking, "core-s per 1,000 users"),
        at_least("cost.teacher/student", of_teacher / of_student, CHEAPER),
        Figure(f"cost.teacher.{CANDIDATES}_candidates/student", reranking / of_student),
    ]


def memory() -> list[Figure]:
    """Each loss in a process of its own."""
    figures = []
    for name in ("full", "sampled"):
        found = _process("--measure", name)
        figures.append(at_most(f"memory.{name}_softmax.{LOSS_ITEMS}_items", found["mb"], LOSS_MB, "MB"))
        figures.append(Figure(f"memory.{name}_softmax.{LOSS_ITEMS}_items.seconds", found["seconds"], "s"))
    return figures


def loss_memory(name: str) -> dict[str, float]:
    """Peak memory of a loss and its gradients, above what its arguments take, and the seconds of one step.

    The sampled softmax gets vectors of the items that it is about and no others, as `recsys.sequence.train` gives it.
    """
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(LOSS_POSITIONS, LOSS_DIM, generator=generator, requires_grad=True)
    # Drawn in place: what is freed before the peak is read would hide as much of the loss's own.
    items = torch.empty(LOSS_ITEMS, LOSS_DIM).normal_(0, 0.1, generator=generator).requires_grad_()
    targets = torch.randint(LOSS_ITEMS, (LOSS_POSITIONS,), generator=generator)
    drawn = torch.randint(LOSS_ITEMS, (LOSS_NEGATIVES,), generator=generator)
    wanted, negatives = (items.detach()[each].requires_grad_() for each in (targets, drawn))
    before = peak_mb()
    torch.set_num_threads(1)
    started = time.perf_counter()
    if name == "full":
        loss = full_softmax(queries, items, targets)
    else:
        loss = sampled_softmax(queries, wanted, targets, negatives, drawn, n_items=LOSS_ITEMS)
    torch.autograd.backward([loss])
    seconds = time.perf_counter() - started
    return {"mb": peak_mb() - before, "seconds": seconds}


def speed(shop: Shop, options: argparse.Namespace, peers: dict[str, str]) -> list[Figure]:
    """Positions per second and NDCG@10 of ours and of the peers that are installed."""
    dataset = shop.dataset
    users = np.sort(np.random.default_rng(0).permutation(dataset.cases("test").user_idx)[: options.speed_users])
    cases = dataset.cases("test")
    chosen = np.flatnonzero(np.isin(cases.user_idx, users))
    train = take(dataset.train, dataset.train.offsets[users], dataset.train.lengths[users])
    histories = dataset.histories(users, cases.history_end[chosen])
    target = cases.targets.values[cases.targets.offsets[chosen]]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("recsys", "recsys.longer", *peers)}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(
            Path(folder) / "data.npz",
            train_offsets=train.offsets,
            train_items=train.item_idx,
            test_offsets=histories.offsets,
            test_items=histories.item_idx,
            n_items=dataset.n_items,
        )
        for _ in range(options.rounds):
            for name, of in found.items():
                python, out = peers.get(name, sys.executable), Path(folder) / f"{name}.npy"
                script = Path(__file__).parent / "student_peers" / f"{name.split('.')[0]}_sasrec.py"
                settings: dict[str, object] = {
                    **SASREC,
                    "seed": shop.config.seed,
                    "threads": 1,
                    "data": f"{folder}/data.npz",
                    "out": out,
                }
                if name == "recsys.longer":
                    settings["epochs"] = round(LONGER * SASREC["epochs"])
                answer = _run([python, str(script), *(f"--{key}={value}" for key, value in settings.items())])
                hits = np.load(out) == target[:, None]
                answer["ndcg"] = float(METRICS[1](hits, np.ones(len(hits), dtype=np.int64)).mean())
                of.append(answer)
                print(f"{name}: {answer}", file=sys.stderr)
    figures = [Figure("speed.users", float(len(users)))]
    rate = {name: [each["positions"] / each["seconds"] for each in of] for name, of in found.items()}
    for name, of in found.items():
        figures.append(Figure(f"speed.{name}", statistics.median(rate[name]), "positions/s"))
        figures.append(Figure(f"speed.{name}.seconds", statistics.median(each["seconds"] for each in of), "s"))
        figures.append(Figure(f"speed.{name}.ndcg_at_10", statistics.median(each["ndcg"] for each in of)))
        figures.append(Figure(f"speed.{name}.memory", max(each["peak_mb"] for each in of), "MB"))
    for name in peers:
        ratios = [ours / theirs for ours, theirs in zip(rate["recsys"], rate[name], strict=True)]
        figures.append(at_least(f"speed.recsys/{name}", statistics.median(ratios), RATIOS[name]))
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(found[name], found["recsys.longer"], strict=True)]
        figures.append(Figure(f"speed.seconds.{name}/recsys.longer", statistics.median(ratios)))
    return figures


def _process(*given: str) -> dict[str, float]:
    return _run([sys.executable, __file__, *given])


def _run(command: list[str]) -> dict[str, float]:
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
    found: dict[str, float] = json.loads(answer.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    raise SystemExit(main())
