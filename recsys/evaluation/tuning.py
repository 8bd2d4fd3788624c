"""Baselines at their best: their parameters, chosen on the validation part within a budget of time.

A model that beats untuned baselines has shown little (Ferrari Dacrema et al., "Are We Really Making Much Progress?",
RecSys 2019; Rendle et al., "Neural Collaborative Filtering vs. Matrix Factorization Revisited", RecSys 2020).

Every baseline has a small grid. Its first trial is its defaults, so tuning never makes it worse on the validation part.
After that, half of the trials are drawn from the whole grid and half move one parameter of the best trial so far by
one step. The next trial goes to the baseline that has had the least time, so costly ones do not starve the others.
Baselines are fitted on the training part and asked about the validation part; the test part is never read.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt

from recsys.artifacts import Artifact, Recipe, write_json
from recsys.errors import InputError
from recsys.evaluation.baselines import (
    ALS,
    BPR,
    EASE,
    ItemKNN,
    MostPopular,
    OrderedItemKNN,
    OrderedItemKNNWithText,
    TextSimilarity,
)
from recsys.evaluation.config import TuningConfig
from recsys.evaluation.metrics import NDCG, Recall
from recsys.evaluation.ranking import Scorer, rank
from recsys.evidence import Cooccurrence
from recsys.ingest.dataset import Cases, Dataset
from recsys.runtime import Runtime
from recsys.text import TextVectors

Parameters = Mapping[str, Any]
Floats = npt.NDArray[np.float32]

K: Final = 10
TRIALS_FILE: Final = "trials.json"


@dataclass(frozen=True)
class Trial:
    """One baseline with one choice of parameters, measured on the validation part.

    Attributes:
        baseline: its name.
        parameters: its parameters, all of them.
        fit_seconds: time to fit.
        rank_seconds: time to rank.
        recall_at_10: see `recsys.evaluation.metrics.Recall`.
        ndcg_at_10: see `recsys.evaluation.metrics.NDCG`; what the best is chosen by.
        n_users: users behind the metrics.
        seen_filtered: under which rule for seen items.
    """

    baseline: str
    parameters: dict[str, Any]
    fit_seconds: float
    rank_seconds: float
    recall_at_10: float
    ndcg_at_10: float
    n_users: int
    seen_filtered: bool

    @property
    def seconds(self) -> float:
        """Fit and ranking together."""
        return self.fit_seconds + self.rank_seconds


@dataclass
class Material:
    """What baselines are made of; counts of pairs are shared between those that ask for the same.

    Attributes:
        dataset: only its training part is used.
        vectors: [n_items, d] float32, the items' text vectors, or None.
        seed: of the baselines that draw.
    """

    dataset: Dataset
    vectors: Floats | None = None
    seed: int = 0
    _pairs: dict[tuple[int, float], Cooccurrence] = field(default_factory=dict)

    def cooccurrence(self, window: int, backward: float) -> Cooccurrence:
        """The ordered pairs of the training part."""
        if (window, backward) not in self._pairs:
            self._pairs.clear()  # one at a time: they are large
            pairs = Cooccurrence.fit(self.dataset.train, self.dataset.n_items, window=window, backward=backward)
            self._pairs[window, backward] = pairs
        return self._pairs[window, backward]

    def text(self) -> Floats:
        """The text vectors."""
        if self.vectors is None:
            raise InputError("no text vectors were given to a baseline that reads titles", do="give text vectors")
        return self.vectors


@dataclass(frozen=True)
class Baseline:
    """A baseline that can be tuned.

    Attributes:
        make: fits it with parameters.
        grid: each parameter's values, in their natural order.
        defaults: each parameter's value without tuning, one of the grid's.
        needs: what must be at hand: text vectors, the package `implicit`, or a temporal split.
    """

    make: Callable[[Material, Parameters], Scorer]
    grid: Mapping[str, Sequence[Any]]
    defaults: Parameters
    needs: Literal["text", "implicit", "temporal"] | None = None


def _ordered(material: Material, parameters: Parameters) -> Scorer:
    rest = dict(parameters)
    return OrderedItemKNN(material.cooccurrence(rest.pop("window"), rest.pop("backward")), **rest)


def _ordered_with_text(material: Material, parameters: Parameters) -> Scorer:
    rest = dict(parameters)
    pairs = material.cooccurrence(rest.pop("window"), rest.pop("backward"))
    return OrderedItemKNNWithText(pairs, material.text(), **rest)


_ORDERED_GRID: Final[Mapping[str, Sequence[Any]]] = {
    "window": (5, 10, 20, 50),
    "backward": (0.0, 0.3, 0.6, 1.0),
    "source_exponent": (0.0, 0.25, 0.5, 0.75, 1.0),
    "target_exponent": (0.0, 0.15, 0.3, 0.5, 0.7),
    "decay": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
}

BASELINES: Final[Mapping[str, Baseline]] = {
    "most_popular": Baseline(lambda m, p: MostPopular(m.dataset.train, m.dataset.n_items), {}, {}),
    "recently_popular": Baseline(
        lambda m, p: MostPopular(m.dataset.train, m.dataset.n_items, **p),
        {"days": (1, 3, 7, 14, 30, 90)},
        {"days": 7},
        # Under leave-one-out the last days of train lie after the questions to most users.
        needs="temporal",
    ),
    "item_knn": Baseline(
        lambda m, p: ItemKNN(m.dataset.train, m.dataset.n_items, **p),
        {"neighbours": (20, 50, 100, 200, 500, 1000), "shrinkage": (0.0, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)},
        {"neighbours": 1000, "shrinkage": 1.0},
    ),
    "ordered_item_knn": Baseline(
        _ordered,
        _ORDERED_GRID,
        {"window": 20, "backward": 0.6, "source_exponent": 0.5, "target_exponent": 0.3, "decay": 0.6},
    ),
    "ease": Baseline(
        lambda m, p: EASE(m.dataset.train, m.dataset.n_items, **p),
        {"regularisation": (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)},
        {"regularisation": 100.0},
    ),
    "als": Baseline(
        lambda m, p: ALS(m.dataset.train, m.dataset.n_items, seed=m.seed, **p),
        {
            "factors": (32, 64, 128, 256),
            "regularisation": (0.01, 0.1, 1.0, 10.0, 100.0),
            "alpha": (2.0, 5.0, 10.0, 20.0, 40.0),
            "iterations": (5, 15, 30),
        },
        {"factors": 128, "regularisation": 1.0, "alpha": 10.0, "iterations": 15},
        needs="implicit",
    ),
    "bpr": Baseline(
        lambda m, p: BPR(m.dataset.train, m.dataset.n_items, seed=m.seed, **p),
        {
            "factors": (32, 64, 128, 256),
            "learning_rate": (0.01, 0.02, 0.05, 0.1, 0.2),
            "regularisation": (0.0001, 0.001, 0.01, 0.03),
            "iterations": (50, 100, 200),
        },
        {"factors": 128, "learning_rate": 0.05, "regularisation": 0.01, "iterations": 100},
        needs="implicit",
    ),
    "text_similarity": Baseline(
        lambda m, p: TextSimilarity(m.dataset.train, m.text(), m.dataset.n_items, **p),
        {"decay": (0.3, 0.5, 0.7, 0.9, 1.0), "centred": (False, True)},
        {"decay": 0.7, "centred": True},
        needs="text",
    ),
    "ordered_item_knn_text": Baseline(
        _ordered_with_text,
        {**_ORDERED_GRID, "weight": (0.1, 0.3, 1.0, 3.0), "sharpness": (6.0, 9.0, 12.0, 16.0, 24.0)},
        {
            "window": 20,
            "backward": 0.6,
            "source_exponent": 0.5,
            "target_exponent": 0.5,
            "decay": 0.7,
            "weight": 1.0,
            "sharpness": 12.0,
        },
        needs="text",
    ),
}


def available(dataset: Dataset, *, has_text: bool) -> tuple[list[str], dict[str, str]]:
    """Which baselines can run.

    Returns:
        Their names, and for every other baseline why it cannot.
    """
    missing = {}
    if not has_text:
        missing["text"] = "it needs text vectors, and none were given"
    if importlib.util.find_spec("implicit") is None:
        missing["implicit"] = "the package 'implicit' is not installed: pip install 'recsys[baselines]'"
    if dataset.protocol != "temporal":
        missing["temporal"] = "it needs a temporal split"
    left_out = {name: missing[each.needs] for name, each in BASELINES.items() if each.needs in missing}
    return [name for name in BASELINES if name not in left_out], left_out


def tune(
    dataset: Dataset,
    config: TuningConfig,
    *,
    budget_seconds: float | None = None,
    seed: int | None = None,
    runtime: Runtime | None = None,
    vectors: Floats | None = None,
) -> list[Trial]:
    """Try parameters of the baselines on the validation part until the budget is spent.

    A baseline's n-th trial depends on the seed and its own trials before alone; how many it gets depends on the
    machine's speed too. No trial begins that would, by the time of its baseline's longest so far, end too late.

    Args:
        dataset: baselines are fitted on its training part and asked about its validation part.
        config: what is searched.
        budget_seconds: time for all trials together; the config's by default.
        seed: of the draws, the users and the baselines; the runtime's by default.
        runtime: orders ties by its seed.
        vectors: [n_items, d] float32, the items' text vectors; without them baselines that read titles are left out.

    Returns:
        All trials in the order in which they were made; at least one.

    Raises:
        InputError: the config names a baseline that is unknown or cannot run, or there is nobody to ask.
    """
    runtime = runtime or Runtime()
    runtime.torch_device()  # sets the threads
    seed = runtime.seed if seed is None else seed
    budget = config.budget_seconds if budget_seconds is None else budget_seconds
    names = _chosen(dataset, config.baselines, has_text=vectors is not None)
    cases = _validation_cases(dataset, config, seed)
    material = Material(dataset, vectors, seed)
    rngs = {name: np.random.default_rng([seed, place]) for place, name in enumerate(BASELINES)}
    trials: dict[str, list[Trial]] = {name: [] for name in names}
    made: list[Trial] = []
    started = time.perf_counter()
    while True:
        left = budget - (time.perf_counter() - started)
        open_ = [
            name
            for name, own in trials.items()
            if len(own) < min(config.max_trials, prod(map(len, BASELINES[name].grid.values())))
            and left >= max((trial.seconds for trial in own), default=0.0)
        ]
        if made and (left <= 0 or not open_):
            return made
        name = min(open_ or names, key=lambda name: sum(trial.seconds for trial in trials[name]))
        parameters = _next(BASELINES[name], trials[name], rngs[name])
        trial = _try(name, parameters, material, cases, config, runtime)
        trials[name].append(trial)
        made.append(trial)


def best(trials: Iterable[Trial]) -> dict[str, Trial]:
    """The trial with the highest NDCG@10 of every baseline, the earlier one where two are equal."""
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.baseline not in found or trial.ndcg_at_10 > found[trial.baseline].ndcg_at_10:
            found[trial.baseline] = trial
    return found


@dataclass(frozen=True)
class Setting:
    """What a baseline is fitted with.

    Attributes:
        parameters: all of them.
        tuned: whether they were chosen on the validation part; else they are the defaults.
    """

    parameters: dict[str, Any]
    tuned: bool


def settings(
    dataset: Dataset, trials: Iterable[Trial] = (), *, baselines: Sequence[str] = (), has_text: bool
) -> dict[str, Setting]:
    """Which baselines to fit, and with what.

    Args:
        dataset: on what.
        trials: what `tune` gave; a baseline without a trial takes its defaults.
        baselines: which; by default all that can run here, in the order of `BASELINES`.
        has_text: whether there are text vectors.

    Raises:
        InputError: a baseline is unknown or cannot run.
    """
    chosen = best(trials)
    return {
        name: Setting(chosen[name].parameters, tuned=True)
        if name in chosen
        else Setting(dict(BASELINES[name].defaults), tuned=False)
        for name in _chosen(dataset, baselines, has_text=has_text)
    }


def fit_baselines(
    dataset: Dataset, chosen: Mapping[str, Setting], *, vectors: Floats | None = None, seed: int = 0
) -> Iterator[Scorer]:
    """Fit baselines on the training part, each when it is asked for.

    Args:
        dataset: its training part is fitted on.
        chosen: from `settings`.
        vectors: [n_items, d] float32, the items' text vectors.
        seed: of the baselines that draw; to get those that were measured, the one of `tune`.
    """
    material = Material(dataset, vectors, seed)
    for name, setting in chosen.items():
        yield BASELINES[name].make(material, setting.parameters)


class Tuning(Artifact):
    """What `recsys baselines` writes: `trials.json`, a list of all trials, and the best of each baseline."""

    kind: ClassVar[str] = "tuning"
    stage: ClassVar[str] = "baselines"

    @property
    def trials(self) -> list[Trial]:
        """All trials in the order in which they were made."""
        content = json.loads((self.path / TRIALS_FILE).read_text(encoding="utf-8"))
        return [Trial(**trial) for trial in content["trials"]]

    @property
    def left_out(self) -> dict[str, str]:
        """Baselines that could not run, and why."""
        return dict(self.manifest["info"]["left_out"])


def tune_baselines(
    dataset: Dataset,
    config: TuningConfig,
    out: Path,
    *,
    text: TextVectors | None = None,
    runtime: Runtime | None = None,
    force: bool = False,
) -> Tuning:
    """Run `tune` and keep all its trials as an artifact, for reports to come.

    Args:
        dataset: see `tune`.
        config: see `tune`.
        out: where the artifact goes, e.g. `runs/sample/tuning`.
        text: the items' text vectors.
        runtime: seed, threads.
        force: search again even when `out` is up to date.

    Raises:
        InputError: see `tune`.
    """
    runtime = runtime or Runtime()
    recipe = Recipe(
        kind=Tuning.kind,
        config=config,
        inputs={"dataset": dataset.fingerprint} | ({} if text is None else {"text": text.fingerprint}),
        seed=runtime.seed,
        modules=(
            "recsys.evaluation.baselines",
            "recsys.evaluation.metrics",
            "recsys.evaluation.ranking",
            "recsys.evaluation.tuning",
            "recsys.evidence",
            "recsys.ingest.dataset",
        ),
    )
    if force or not recipe.is_current(out):
        trials = tune(dataset, config, runtime=runtime, vectors=None if text is None else text.vectors)
        with recipe.build(out) as draft:
            chosen = best(trials)
            content = {
                "trials": [asdict(trial) for trial in trials],
                "best": {name: trial.parameters for name, trial in chosen.items()},
            }
            write_json(draft.path / TRIALS_FILE, content)
            draft.counts |= {"trials": len(trials)}
            draft.counts |= {f"{name}_ndcg_at_{K}": trial.ndcg_at_10 for name, trial in chosen.items()}
            draft.info |= {"left_out": available(dataset, has_text=text is not None)[1]}
    return Tuning.open(out)


def _chosen(dataset: Dataset, baselines: Sequence[str], *, has_text: bool) -> list[str]:
    names, left_out = available(dataset, has_text=has_text)
    for name in baselines:
        if name not in BASELINES:
            raise InputError(
                f"unknown baseline {name!r}",
                expected=f"some of {', '.join(BASELINES)}",
                do="correct `baselines`",
            )
        if name in left_out:
            raise InputError(
                f"the baseline {name!r} cannot run: {left_out[name]}",
                do="bring what it needs, or leave it out of `baselines`",
            )
    return [name for name in names if name in baselines] if baselines else names


def _validation_cases(dataset: Dataset, config: TuningConfig, seed: int) -> Cases:
    cases = dataset.cases("valid")
    if len(cases) > config.max_users:
        rows = np.sort(
            np.random.default_rng([seed, len(BASELINES)]).choice(len(cases), config.max_users, replace=False)
        )
        cases = Cases(cases.user_idx[rows], cases.history_end[rows], cases.targets.select(rows))
    if not len(cases):
        raise InputError(
            "no user has an event in the validation part, so there is nothing to tune on",
            expected="validation events in the dataset",
            do="end the training part earlier (the split's settings under [ingest]), or bring more events",
        )
    return cases


def _next(baseline: Baseline, own: Sequence[Trial], rng: np.random.Generator) -> dict[str, Any]:
    """Parameters that were not tried: the defaults, then in turn a draw and a step away from the best."""
    if not own:
        return dict(baseline.defaults)
    tried = [trial.parameters for trial in own]
    if len(own) % 2 == 0:
        top = max(own, key=lambda trial: trial.ndcg_at_10).parameters
        steps = [
            {**top, name: values[place]}
            for name, values in baseline.grid.items()
            for place in (values.index(top[name]) - 1, values.index(top[name]) + 1)
            if 0 <= place < len(values)
        ]
        steps = [step for step in steps if step not in tried]
        if steps:
            return steps[int(rng.integers(len(steps)))]
    while True:  # ends, because a baseline is only asked while some of its grid is left
        drawn = {name: values[int(rng.integers(len(values)))] for name, values in baseline.grid.items()}
        if drawn not in tried:
            return drawn


def _try(
    name: str, parameters: dict[str, Any], material: Material, cases: Cases, config: TuningConfig, runtime: Runtime
) -> Trial:
    started = time.perf_counter()
    scorer = BASELINES[name].make(material, parameters)
    fitted = time.perf_counter()
    metrics = Recall(K), NDCG(K)
    values = np.concatenate(
        [
            np.column_stack([metric(block.hits, block.n_targets) for metric in metrics])
            for block in rank(scorer, material.dataset, cases, k=K, runtime=runtime)
            if block.seen_filtered == config.seen_filtered
        ]
    )
    values = values[~np.isnan(values[:, 0])]
    if not len(values):
        raise InputError(
            "no user of the validation part has a target that was not in the history already",
            expected="validation events on items that are new to their user, where seen items are filtered",
            do="set seen_filtered = false, or bring more events",
        )
    recall, ndcg = values.mean(axis=0).tolist()
    return Trial(
        baseline=name,
        parameters=parameters,
        fit_seconds=round(fitted - started, 3),
        rank_seconds=round(time.perf_counter() - fitted, 3),
        recall_at_10=recall,
        ndcg_at_10=ndcg,
        n_users=len(values),
        seen_filtered=config.seen_filtered,
    )
