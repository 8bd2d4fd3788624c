"""Quality on Amazon 2014 Beauty: baselines, single models and their sum, and the whole pipeline.

    RECSYS_DATA=… python benchmarks/quality_beauty.py                     # a table
    RECSYS_DATA=… python benchmarks/quality_beauty.py --json              # one line per figure
    RECSYS_DATA=… python benchmarks/quality_beauty.py --only untrained    # minutes; also: trained, tuned, pipeline

Ingests by `pipelines/beauty.toml` and prints recall and NDCG at 10 over the whole catalogue: leave-one-out in the order
of `position`, all 22,363 users, with and without seen items filtered, fitted on the training part alone. Where the
figure was first measured with other code, with seen items filtered, it has to lie near that: within .0005 for what
needs no training, within .003 for what does.

* `untrained`: the baselines with their default parameters. `most_popular.favoured` resolves ties towards the targets,
  which is how its reference was measured; `most_popular` itself orders them by the seed, as every report does.
  `ordered_item_knn_text.title` reads titles alone, like its reference; without `.title` the text is what the pipeline
  gives its models: title, brand and category. ALS and BPR are there where `implicit` is installed.
* `trained`: the student without soft labels, by ids alone (`sasrec`) and with titles (`student.title`), and
  `log_linear`, the sum of the latter's log-softmax and the logarithms of ordered item-kNN, title similarity and
  popularity; its weights are the best of ten on the validation items.
* `tuned`: the baselines with the parameters that `--seconds` of search on the validation items found.
* `pipeline`: the whole of `pipelines/beauty.toml`, whose report is printed. `difference` is the distilled student minus
  another model on the same users; `low` and `high` are the ends of its 95 % paired bootstrap interval.

All of it takes an hour and a half on two cores the first time; what is up to date is not done again. Needs 3 GB. The
data is for research and is not part of the repository.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from _common import Figure, arguments, at_least, at_most, report

from recsys import pipeline
from recsys.config import PipelineConfig, load_config
from recsys.errors import RecsysError
from recsys.evaluation.baselines import OrderedItemKNN, OrderedItemKNNWithText
from recsys.evaluation.metrics import NDCG, Recall
from recsys.evaluation.ranking import Scorer, Scores, item_mask, rank
from recsys.evaluation.scorers import StudentScorer
from recsys.evaluation.tuning import fit_baselines, settings, tune
from recsys.evidence import Cooccurrence
from recsys.ingest.dataset import Cases, Dataset, Sequences
from recsys.ingest.ingest import ingest
from recsys.runtime import Runtime
from recsys.student.distill import distill
from recsys.text import TextVectorsConfig, text_vectors

METRICS: Final = Recall(10), NDCG(10)
# Recall and NDCG at 10 with seen items filtered, and how near a figure has to lie.
REFERENCE: Final = {
    "most_popular.favoured": (0.0120, 0.0056, 0.0005),
    "item_knn": (0.0596, 0.0340, 0.0005),
    "ease": (0.0694, 0.0374, 0.0005),
    "ordered_item_knn": (0.0826, 0.0520, 0.0005),
    "ordered_item_knn_text.title": (0.0874, 0.0524, 0.0005),
    "sasrec": (0.0953, 0.0571, 0.003),
    "student.title": (0.0990, 0.0588, 0.003),
    "log_linear": (0.1059, 0.0637, 0.003),
}
# Of ordered item-kNN, title similarity and popularity, beside 1 for the student.
WEIGHTINGS: Final = (
    (0.5, 0.5, 0.0),
    (0.5, 0.5, 0.3),
    (1.0, 0.5, 0.0),
    (1.0, 0.5, 0.3),
    (0.5, 1.0, 0.0),
    (0.5, 1.0, 0.3),
    (1.0, 1.0, 0.0),
    (1.0, 1.0, 0.3),
    (1.0, 1.0, 0.6),
    (2.0, 1.0, 0.3),
)
PIPELINE_TARGETS: Final = {"recall": 0.095, "ndcg": 0.056}
PIPELINE_MINUTES: Final = 60
PARTS: Final = ("untrained", "trained", "tuned", "pipeline")


class TitlesOnly(Dataset):
    """The dataset as an encoder sees it that is given titles and nothing else."""

    @cached_property
    def items(self) -> pa.Table:
        """The items without brand and category."""
        items = super().items
        for name in ("brand", "category"):
            items = items.set_column(items.schema.get_field_index(name), name, pa.nulls(len(items), pa.string()))
        return items

    @property
    def fingerprint(self) -> str:
        """Another one than the dataset's, so that its text vectors are others."""
        return super().fingerprint + "-titles"


@dataclass(frozen=True)
class LogLinear:
    """log softmax(student) + a·log(ordered item-kNN + .01) + b·log(title similarity + .05) + c·log(1 + events)."""

    student: StudentScorer
    ordered: OrderedItemKNN
    text: OrderedItemKNN
    weights: tuple[float, float, float]
    name: str = "log_linear"

    def score(self, histories: Sequences) -> Scores:
        """The sum, for every item."""
        of_student = torch.from_numpy(self.student.score(histories)).log_softmax(dim=1).numpy()
        # Below 0 the baselines order the items of which they say nothing.
        ordered, text = (np.maximum(scorer.score(histories), 0) for scorer in (self.ordered, self.text))
        a, b, c = self.weights
        evidence = a * np.log(ordered + 0.01) + b * np.log(text + 0.05) + c * np.log1p(self.ordered.counts)
        return (of_student + evidence).astype(np.float32)


def main() -> int:
    """Fit, rank and judge."""
    parser = arguments(__doc__)
    parser.add_argument("-c", "--config", default="pipelines/beauty.toml", help="the run's TOML")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `recsys run`")
    parser.add_argument("--only", action="append", choices=PARTS, help="one part; may be repeated")
    parser.add_argument("--seconds", type=float, default=600, help="budget of `tuned`")
    options = parser.parse_args()
    figures: list[Figure] = []
    try:
        config = load_config(options.config, options.set)
        beauty = Beauty(config)
        for part in options.only or PARTS:
            figures += {
                "untrained": beauty.untrained,
                "trained": beauty.trained,
                "tuned": lambda: beauty.tuned(options.seconds),
                "pipeline": lambda: whole_pipeline(config),
            }[part]()
    except RecsysError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return report(figures, as_json=options.json)


class Beauty:
    """The dataset, its text vectors, and what is measured on them."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config, self.runtime = config, Runtime(seed=config.seed, threads=config.threads)
        self.runtime.torch_device()  # sets the threads
        self.folder = Path(config.run_dir)
        self.dataset = ingest(config.ingest, self.folder / "dataset", data=config.data, runtime=self.runtime)
        self.titles = TitlesOnly(self.dataset.path, self.dataset.manifest)

    @cached_property
    def vectors(self) -> npt.NDArray[np.float32]:
        """Of title, brand and category."""
        return text_vectors(
            self.dataset, TextVectorsConfig(), self.folder / "text_vectors", runtime=self.runtime
        ).vectors

    @cached_property
    def title_vectors(self) -> npt.NDArray[np.float32]:
        """Of titles alone."""
        folder = self.folder / "titles" / "text_vectors"
        return text_vectors(self.titles, TextVectorsConfig(), folder, runtime=self.runtime).vectors

    @cached_property
    def pairs(self) -> Cooccurrence:
        """Ordered pairs of the training part."""
        return Cooccurrence.fit(self.dataset.train, self.dataset.n_items)

    def untrained(self) -> list[Figure]:
        """The baselines as they come."""
        figures = favoured(self.dataset)
        figures += self.measured(OrderedItemKNNWithText(self.pairs, self.title_vectors), "ordered_item_knn_text.title")
        chosen = settings(self.dataset, has_text=True)
        return figures + self.all_of(fit_baselines(self.dataset, chosen, vectors=self.vectors, seed=self.runtime.seed))

    def tuned(self, seconds: float) -> list[Figure]:
        """The baselines at their best."""
        search = self.config.baselines.model_copy(update={"max_trials": 1000})
        trials = tune(self.dataset, search, budget_seconds=seconds, runtime=self.runtime, vectors=self.vectors)
        for trial in trials:
            said = f"{trial.ndcg_at_10:.4f} {trial.seconds:6.1f} s {trial.baseline} {trial.parameters}"
            print(said, file=sys.stderr)
        chosen = settings(self.dataset, trials, has_text=True)
        scorers = fit_baselines(self.dataset, chosen, vectors=self.vectors, seed=self.runtime.seed)
        return self.all_of(scorers, suffix=".tuned")

    def trained(self) -> list[Figure]:
        """The student on hard labels, by ids and with titles, and what it adds up to with the evidence."""
        by_ids = self.config.distill.model_copy(update={"use_text": False, "item_features": (), "time_gaps": False})
        sasrec = distill(self.dataset, None, by_ids, self.folder / "sasrec" / "student", runtime=self.runtime)
        student = distill(
            self.titles, None, self.config.distill, self.folder / "titles" / "student", runtime=self.runtime
        )
        figures = self.measured(StudentScorer(sasrec, self.runtime), "sasrec")
        of_student = StudentScorer(student, self.runtime)
        figures += self.measured(of_student, "student.title")
        nothing = replace(self.pairs, weights=np.zeros_like(self.pairs.weights))
        ordered, text = OrderedItemKNN(self.pairs), OrderedItemKNNWithText(nothing, self.title_vectors)
        sums = [LogLinear(of_student, ordered, text, weights) for weights in WEIGHTINGS]
        cases = self.dataset.cases("valid")
        on_validation = [self.means(each, cases)[True][1] for each in sums]
        for weights, value in zip(WEIGHTINGS, on_validation, strict=True):
            print(f"log_linear {weights}: validation NDCG@10 {value:.4f}", file=sys.stderr)
        figures += self.measured(sums[int(np.argmax(on_validation))], "log_linear")
        for name, model in (("sasrec", sasrec), ("student.title", student)):
            figures.append(Figure(f"{name}.train", float(model.manifest["seconds"]), "s"))
        return figures

    def all_of(self, scorers: Iterable[Scorer], suffix: str = "") -> list[Figure]:
        """The figures of every scorer, and how long it took to fit."""
        figures: list[Figure] = []
        started = time.perf_counter()
        for scorer in scorers:
            seconds = time.perf_counter() - started
            figures += self.measured(scorer, scorer.name + suffix)
            figures.append(Figure(f"{scorer.name}{suffix}.fit", seconds, "s"))
            del scorer  # EASE is large
            started = time.perf_counter()
        return figures

    def measured(self, scorer: Scorer, name: str) -> list[Figure]:
        """Both metrics on the test items under both rules for seen items."""
        means = self.means(scorer, self.dataset.cases("test"))
        return judged(name, means[True]) + [
            Figure(f"{name}.{metric.column}.unfiltered", value)
            for metric, value in zip(METRICS, means[False], strict=True)
        ]

    def means(self, scorer: Scorer, cases: Cases) -> dict[bool, list[float]]:
        """By rule for seen items, the mean of both metrics over users."""
        values: dict[bool, list[npt.NDArray[np.float64]]] = {True: [], False: []}
        for block in rank(scorer, self.dataset, cases, k=10, runtime=self.runtime):
            found = [metric(block.hits, block.n_targets) for metric in METRICS]
            values[block.seen_filtered].append(np.column_stack(found))
        return {rule: np.nanmean(np.concatenate(of), axis=0).tolist() for rule, of in values.items()}


def judged(name: str, values: Iterable[float]) -> list[Figure]:
    """Figures with seen items filtered, against the reference where there is one."""
    figures = []
    for place, (metric, value) in enumerate(zip(METRICS, values, strict=True)):
        full_name = f"{name}.{metric.column}.filtered"
        if name in REFERENCE:
            reference, within = REFERENCE[name][place], REFERENCE[name][2]
            near = bool(abs(value - reference) <= within)
            figures.append(Figure(full_name, float(value), "", f"{reference:.4f} ± {within}", near))
        else:
            figures.append(Figure(full_name, float(value)))
    return figures


def favoured(dataset: Dataset) -> list[Figure]:
    """Most popular, with each target before all items that are as popular; one target per user, none seen before."""
    counts = np.bincount(dataset.train.item_idx, minlength=dataset.n_items)
    ascending = np.sort(counts)
    cases = dataset.cases("test")
    target = cases.targets.values
    before = dataset.n_items - np.searchsorted(ascending, counts[target], side="right")
    seen = np.zeros(len(cases), dtype=np.int64)
    for start in range(0, len(cases), 500):
        rows = slice(start, start + 500)
        part = dataset.histories(cases.user_idx[rows], cases.history_end[rows])
        seen[rows] = (item_mask(part, dataset.n_items) & (counts > counts[target[rows], None])).sum(axis=1)
    assert len(target) == len(cases), "leave-one-out has one target per user"
    place = before - seen  # 0 for the first
    gain = np.where(place < 10, 1 / np.log2(place + 2), 0)
    return judged("most_popular.favoured", [float(np.mean(place < 10)), float(np.mean(gain))])


def whole_pipeline(config: PipelineConfig) -> list[Figure]:
    """Run all stages and judge their report."""
    run = pipeline.run(config, say=lambda line: print(line, file=sys.stderr))
    figures = []
    for row in run.report.rows:
        if row.k != METRICS[0].k or row.metric not in PIPELINE_TARGETS:
            continue
        shown = "filtered" if row.seen_filtered else "unfiltered"
        name = f"pipeline.{row.model}.{row.metric}_at_{row.k}.{shown}"
        name += ".teacher_users" if row.users == "sample" else ""
        if row.model == "student" and row.seen_filtered and row.users == "all":
            figures.append(at_least(name, row.value, PIPELINE_TARGETS[row.metric]))
        else:
            figures.append(Figure(name, row.value))
    for difference in run.report.differences:
        if (difference.metric, difference.k, difference.seen_filtered) == ("ndcg", METRICS[1].k, True):
            name = f"pipeline.difference.ndcg_at_{difference.k}.student-{difference.other}"
            name += ".teacher_users" if difference.users == "sample" else ""
            figures += [Figure(f"{name}.{part}", getattr(difference, part)) for part in ("difference", "low", "high")]
    artifacts = (run.dataset, run.teacher, run.soft_labels, run.student, run.index, run.recommendations, run.report)
    seconds = sum(float(artifact.manifest["seconds"]) for artifact in artifacts)
    figures.append(at_most("pipeline.run", seconds / 60, PIPELINE_MINUTES, "min"))
    return figures


if __name__ == "__main__":
    raise SystemExit(main())
