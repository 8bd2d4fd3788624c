"""Which index for which catalogue: what memory has room for, tuned until its measured recall is good enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from recsys.errors import InputError
from recsys.retrieval.approximate import FEWEST_FOR_IVF, REFINED, Approximate, Plan, build
from recsys.retrieval.config import IndexConfig, IndexType, Refine
from recsys.retrieval.exact import Vectors, exact_search, rescored
from recsys.runtime import Runtime

# Where tuning starts. 8 bits a number are nearly exact: of twice as many as are wanted, the best are among them.
FIRST_PARAMS: Final = {"efSearch": 32, "nprobe": 4, "k_factor": 2}
# The first places of a list are what is shown: there a miss counts so many times.
TOP, TOP_WEIGHT = 10, 20
FINEST_FIRST: Final[tuple[Refine, ...]] = ("fp32", "fp16", "sq8")


@dataclass(frozen=True)
class Measured:
    """How much of what an exact search finds is found.

    Attributes:
        recall: of the exact top `recall_at`.
        top: of the exact first ten, in a search as deep.
    """

    recall: float
    top: float

    @property
    def worst(self) -> float:
        """What has to reach the target: the recall, or, if that is less, one minus twenty times what the top misses."""
        return min(self.recall, 1 - TOP_WEIGHT * (1 - self.top))


EXACT: Final = Measured(1.0, 1.0)


@dataclass(frozen=True)
class Fitted:
    """An index and how it came out.

    Attributes:
        index: `faiss.Index`; None where the vectors are all that is needed.
        plan: what it is.
        params: of the search.
        measured: with these.
        seconds: of building and of tuning.
        rejected: what was thought of before, with what it would take or what it reached.
    """

    index: Any
    plan: Plan
    params: Mapping[str, int]
    measured: Measured
    seconds: Mapping[str, float]
    rejected: Sequence[Mapping[str, Any]] = ()


def fit(
    vectors: Vectors,
    config: IndexConfig,
    scratch: Path,
    *,
    queries: Callable[[], Vectors],
    runtime: Runtime = Runtime(),
) -> Fitted:
    """Build the first index that memory has room for and that reaches the target.

    Args:
        vectors: [n_items, dim], contiguous; they may be memory-mapped.
        config: which index, how good, in how much memory.
        scratch: folder for shards.
        queries: gives the vectors that an approximate index is tuned with, [n, dim].
        runtime: seed, progress.

    Raises:
        InputError: nothing that the config allows fits in `memory_limit`, or reaches the target.
    """
    rejected: list[dict[str, Any]] = []
    for plans in _choices(config, *vectors.shape):
        fits = [plan for plan in plans if config.memory_limit is None or plan.memory <= config.memory_limit]
        rejected += [_in_words(plan, memory=plan.memory) for plan in plans[: plans.index(fits[0]) if fits else None]]
        if fits:
            fitted = _fit(fits[0], vectors, config, scratch, queries, runtime)
            if fitted.measured.worst >= config.target_recall:
                return replace(fitted, rejected=rejected)
            measured = fitted.measured
            words = _in_words(fits[0], params=dict(fitted.params), recall=measured.recall, top_recall=measured.top)
            rejected.append(words)
    raise _out_of_reach(rejected, config, *vectors.shape)


def tune(
    index: Approximate,
    limits: Mapping[str, int],
    params: Mapping[str, int],
    queries: Sequence[Vectors],
    config: IndexConfig,
    *,
    allowed: npt.NDArray[np.bool_] | None = None,
) -> tuple[dict[str, int], Measured]:
    """The cheapest parameters found that reach the target, or the limits.

    The parameter that gains the most recall is doubled until the target is reached; then each, in turn, is lowered
    as far as the target allows, to an eighth.

    Args:
        index: what is searched.
        limits: of each parameter.
        params: where to begin.
        queries: groups of them, each [n, dim]; recall is that of the group where it is worst.
        config: the target.
        allowed: [n_items] bool, what may be found; all by default.

    Returns:
        params, and what was measured with them, rounded down to 5 decimals.
    """
    items = None if allowed is None else np.flatnonzero(allowed)
    n_items = len(index.vectors) if items is None else len(items)
    k = min(config.recall_at, n_items)

    top = min(TOP, k)

    def scores_to_reach(queries: Vectors) -> Vectors:
        exact = exact_search(queries, index.vectors, k, items)[1]
        # By the kernel that scores what is found, for another one rounds differently.
        return rescored(queries, index.vectors, exact, k)[0][:, [k - 1, top - 1]]

    groups = [(each, scores_to_reach(each)) for each in queries if len(each)]

    def measure(params: Mapping[str, int]) -> Measured:
        shares = []
        for each, least in groups:
            scores = index.search(each, k, params, allowed)[0]
            # An item as good as the k-th counts, whichever of the equal ones it is.
            shares.append([(scores >= least[:, :1]).mean(), (scores[:, :top] >= least[:, 1:]).mean()])
        return Measured(*(int(min(column) * 1e5) / 1e5 for column in zip(*shares, strict=True)))

    params = {name: min(value, limits[name]) for name, value in params.items()}
    before = {name: value // 2 for name, value in params.items()}
    reached = measure(params)
    while reached.worst < config.target_recall:
        steps = {name: min(2 * value, limits[name]) for name, value in params.items() if value < limits[name]}
        if not steps:
            return params, reached
        measured = {name: measure({**params, name: value}) for name, value in steps.items()}
        name = max(measured, key=lambda name: measured[name].worst)
        before[name], params[name], reached = params[name], steps[name], measured[name]
    for name in params:
        while params[name] - before[name] > max(1, params[name] // 8):
            middle = (params[name] + before[name]) // 2
            lower = measure({**params, name: middle})
            if lower.worst >= config.target_recall:
                params[name], reached = middle, lower
            else:
                before[name] = middle
    return params, reached


def limits_of(plan: Plan, n_items: int, k: int) -> dict[str, int]:
    """How deep a search may be: one that looks at more than a quarter of the items is no better than the exact one."""
    depth = n_items // (4 * k) if plan.refine else 2
    limits = {"efSearch": n_items // 4} if plan.type == "hnsw" else {"nprobe": plan.nlist // 4}
    return {name: max(1, limit) for name, limit in (limits | {"k_factor": depth}).items()}


def _choices(config: IndexConfig, n_items: int, dim: int) -> list[list[Plan]]:
    """Types in the order in which they are tried, each with its ways to refine, the finest first."""
    types: tuple[IndexType, ...] = ("ivf_pq", "ivf_sq", "flat")
    if config.type != "auto":
        types = (config.type,)
    elif n_items <= config.flat_up_to:
        types = ("flat", "ivf_pq", "ivf_sq")
    if n_items < FEWEST_FOR_IVF:
        if config.type.startswith("ivf"):
            raise InputError(
                f"index.type = {config.type!r} for {n_items} items",
                expected=f"at least {FEWEST_FOR_IVF}, which its clusters are trained on",
                do="set index.type = 'auto'",
            )
        types = tuple(kind for kind in types if not kind.startswith("ivf"))
    finest_first = FINEST_FIRST if config.refine == "auto" else (config.refine,)
    return [
        [Plan.of(kind, refine, n_items, dim) for refine in (finest_first if kind in REFINED else (None,))]
        for kind in types
    ]


def _fit(
    plan: Plan,
    vectors: Vectors,
    config: IndexConfig,
    scratch: Path,
    queries: Callable[[], Vectors],
    runtime: Runtime,
) -> Fitted:
    if plan.type == "flat":
        return Fitted(None, plan, {}, EXACT, {"build": 0.0, "tune": 0.0})
    started = time.perf_counter()
    index = build(plan, vectors, config, scratch, runtime=runtime)
    built = time.perf_counter()
    limits = limits_of(plan, len(vectors), min(config.recall_at, len(vectors)))
    first = {name: FIRST_PARAMS[name] if name != "k_factor" or plan.refine else 1 for name in limits}
    approximate = Approximate(index, plan.type, plan.refine, vectors)
    params, measured = tune(approximate, limits, first, [queries()], config)
    seconds = {"build": round(built - started, 3), "tune": round(time.perf_counter() - built, 3)}
    return Fitted(index, plan, params, measured, seconds)


def _in_words(plan: Plan, **why: Any) -> dict[str, Any]:
    refine = {"refine": plan.refine} if plan.refine else {}
    return {"type": plan.type, **refine, "factory": plan.factory or "Flat", **why}


def _out_of_reach(rejected: Sequence[Mapping[str, Any]], config: IndexConfig, n_items: int, dim: int) -> InputError:
    tried = [each for each in rejected if "recall" in each]
    if not tried:
        least = min(rejected, key=lambda each: int(each["memory"]))
        return InputError(
            f"index.memory_limit = {config.memory_limit} bytes for {n_items:,} vectors of {dim} numbers",
            expected=f"at least {least['memory']}, which {least['factory']} takes",
            do=f"set index.memory_limit = '{-(-least['memory'] // 1_000_000)}MB' or more",
        )
    best = max(tried, key=lambda each: float(each["recall"]))
    room = [each["memory"] for each in rejected if each["type"] == "flat"]
    advice = f"index.memory_limit = '{-(-room[0] // 1_000_000)}MB'" if room else "index.type = 'auto' or 'flat'"
    return InputError(
        f"{best['factory']} reached recall@{config.recall_at} {best['recall']:.4f}, of the first {TOP} "
        f"{best['top_recall']:.4f}, at its deepest search",
        expected=f"index.target_recall = {config.target_recall}, and {1 - (1 - config.target_recall) / TOP_WEIGHT:.4g} "
        f"of the first {TOP}",
        do=f"set {advice}, or a lower target",
    )
