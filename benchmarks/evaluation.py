"""Metrics of one million lists beside ir-measures and RecTools: time, peak memory, and whether they agree.

    python benchmarks/evaluation.py                        # a table
    python benchmarks/evaluation.py --rectools ENV/bin/python --json
    python benchmarks/evaluation.py --definitions          # what libraries say of one worked example

Lists of 100 items are invented for 1 million users with 1 to 5 targets each (one user in a hundred has no list), and
recall and NDCG at 10, 20 and 100 are taken over all of them. ir-measures keeps each row as entries of Python dicts and
does not fit a usual machine's memory at this size, so it is measured at 100 thousand users, with the others beside it.
Nothing is scaled up: its ratio is that of 100 thousand users.

RecTools has to have an environment of its own (its pins differ): the script makes one in a temporary folder with
`pip install rectools==0.19.*`, or uses that of `--rectools`; where neither works its rows are left out, and it is said.

Each run is a process of its own. Each library gets what it reads best, made before the clock starts: recsys three
arrays, RecTools a DataFrame of numbers, ir-measures a DataFrame of strings. Rows are sorted by user and rank. Seconds
are wall time of the metrics alone; the peak is the process's largest resident memory, input included. Runs take turns
and medians are reported. `by_recsys` is a library's seconds by recsys' seconds; values are compared where definitions
agree (RecTools' NDCG with `divide_by_achievable=True`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from math import log2
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _common import Figure, arguments, at_least, at_most, peak_mb, report

K = 100
KS = (10, 20, 100)
N_ITEMS = 50_021  # a prime, so that steps of any size meet every item once
MOST_TARGETS = 5
BLOCK = 50_000  # users made at a time
TIMES_FASTEST, PEAK_GB, TOLERANCE = 10, 2, 1e-9
RECTOOLS = "rectools==0.19.*"

# The worked example: lists, and who wanted what. The first is shorter than k, the second user has more targets than
# k, the third got no list.
EXAMPLE_K = 5
LISTS = {1: [1, 2, 3, 4], 2: [1, 2, 3, 4, 5], 3: []}
TARGETS = {1: [2, 4, 9], 2: [1, 4, 11, 12, 13, 14, 15], 3: [1]}
METRIC_NAMES = ("recall", "ndcg", "hit_rate", "mrr", "precision", "map")


def main() -> int:
    """Make the lists, run the libraries on them, judge the figures; or print the definitions."""
    parser = arguments(__doc__)
    parser.add_argument("--users", type=int, default=1_000_000, help="users of the large run")
    parser.add_argument("--ir-measures-users", type=int, default=100_000, help="users of the run with ir-measures")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each library at each size")
    parser.add_argument("--rectools", type=Path, help="a Python that has RecTools (by default one is made)")
    parser.add_argument("--definitions", action="store_true", help="print what libraries say of one worked example")
    parser.add_argument(
        "--folder", type=Path, help="where to make the lists (a temporary folder in it goes away after)"
    )
    parser.add_argument("--one", choices=("generate", *MEASURE, "definitions"), help=argparse.SUPPRESS)
    parser.add_argument("--lists", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.lists, options.users)))
        return 0

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        pythons = {"recsys": Path(sys.executable)}
        rectools = options.rectools or make_rectools(Path(folder))
        if rectools:
            pythons["rectools"] = rectools
        if options.definitions:
            print(definitions(rectools))
            return 0
        if find_spec("ir_measures"):
            pythons["ir_measures"] = Path(sys.executable)
        else:
            print("ir-measures is not installed: its figures are left out", file=sys.stderr)
        small, large = options.ir_measures_users, options.users
        figures = measure(Path(folder), small, pythons, options.repeats, judged=False)
        pythons.pop("ir_measures", None)
        figures += measure(Path(folder), large, pythons, options.repeats, judged=True)
    # The faster of the others, each at the largest size that it ran at.
    ratios = {figure.name: figure.value for figure in figures if figure.name.endswith("_by_recsys")}
    last = {name.split(".")[1]: ratio for name, ratio in ratios.items()}
    if last:
        figures.append(at_least("times_fastest", min(last.values()), TIMES_FASTEST))
    return report(figures, as_json=options.json)


def make_rectools(folder: Path) -> Path | None:
    """A Python with RecTools in a new environment, or None where it cannot be had."""
    python = folder / "rectools" / ("Scripts" if os.name == "nt" else "bin") / "python"
    commands = [
        [sys.executable, "-m", "venv", str(folder / "rectools")],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", RECTOOLS],
    ]
    for command in commands:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603
        if done.returncode:
            print(f"RecTools cannot be installed, its figures are left out: {done.stderr[-500:]}", file=sys.stderr)
            return None
    return python


def measure(folder: Path, n_users: int, pythons: Mapping[str, Path], repeats: int, *, judged: bool) -> list[Figure]:
    """Figures of one size."""
    lists = folder / str(n_users)
    _fresh("generate", Path(sys.executable), lists, n_users)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
    for repeat in range(repeats):
        order = list(pythons)
        turn = repeat % len(order)
        for name in (*order[turn:], *order[:turn]):
            run = _fresh(name, pythons[name], lists, n_users)
            runs[name].append(run)
            load = " ".join(str(round(load, 2)) for load in os.getloadavg())
            print(f"{n_users:,} {name}: {run['seconds']:.2f} s, {run['peak']:.2f} GB; load {load}", file=sys.stderr)
    size = f"{n_users / 1e6:g}M"
    figures = []
    for name, of in runs.items():
        seconds, peak = (median(run[key] for run in of) for key in ("seconds", "peak"))
        figures.append(Figure(f"{size}.{name}.seconds", seconds, "s"))
        peak_name = f"{size}.{name}.peak"
        limited = judged and name == "recsys"
        figures.append(at_most(peak_name, peak, PEAK_GB, "GB") if limited else Figure(peak_name, peak, "GB"))
        if name != "recsys":
            # Within a round, because what else the machine does changes from round to round.
            ratio = median(run["seconds"] / own["seconds"] for run, own in zip(of, runs["recsys"], strict=True))
            figures.append(Figure(f"{size}.{name}_by_recsys", ratio))
            expected = runs["recsys"][0]["means"]
            difference = max(abs(of[0]["means"][metric] - mean) for metric, mean in expected.items())
            figures.append(at_most(f"{size}.{name}.largest_difference", difference, TOLERANCE))
    return figures


def _fresh(what: str, python: Path, lists: Path, n_users: int) -> dict[str, Any]:
    """One step in a process of its own: its peak is its own, and this process stays small."""
    command = [str(python), __file__, "--one", what, "--lists", str(lists), "--users", str(n_users)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def one(what: str, lists: Path, n_users: int) -> dict[str, Any]:
    """One step, in this process.

    Args:
        what: "generate", a library, or "definitions" (RecTools' part of them).
        lists: folder of the lists.
        n_users: how many to make, for "generate".

    Returns:
        Of a library its `seconds`, `peak` (GB) and `means`.
    """
    if what == "generate":
        generate(lists, n_users)
        return {}
    if what == "definitions":
        return rectools_definitions()
    seconds, means = MEASURE[what](lists)
    return {"seconds": seconds, "peak": peak_mb() * 2**20 / 1e9, "means": means}


def generate(lists: Path, n_users: int) -> None:
    """Write `user`, `item`, `rank`, `target_user` and `target_item`, int32 each, sorted by user (and rank).

    A user's list starts anywhere in the catalogue and goes on in steps of any size. Targets stand at distinct places of
    the first 400 that the list would have if it went on, so that a quarter of them are found.
    """
    lists.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    has_list = np.arange(n_users) % 100 != 99
    files = {
        name: np.lib.format.open_memmap(
            lists / f"{name}.npy", mode="w+", dtype=np.int32, shape=(int(has_list.sum()) * K,)
        )
        for name in ("user", "item", "rank")
    }
    at, target_users, target_items = 0, [], []
    for first in range(0, n_users, BLOCK):
        users = np.arange(first, min(first + BLOCK, n_users))
        start = rng.integers(N_ITEMS, size=(len(users), 1))
        step = rng.integers(1, N_ITEMS, size=(len(users), 1))
        listed = has_list[users]
        end = at + int(listed.sum()) * K
        files["user"][at:end] = np.repeat(users[listed], K)
        files["item"][at:end] = ((start + step * np.arange(K)) % N_ITEMS)[listed].ravel()
        files["rank"][at:end] = np.tile(np.arange(1, K + 1), int(listed.sum()))
        at = end
        # One place in each fifth of the first 400, of which some fifths are taken.
        place = rng.integers(400 // MOST_TARGETS, size=(len(users), MOST_TARGETS))
        place += rng.permuted(np.tile(np.arange(MOST_TARGETS), (len(users), 1)), axis=1) * (400 // MOST_TARGETS)
        wanted = np.arange(MOST_TARGETS) < rng.integers(1, MOST_TARGETS + 1, size=(len(users), 1))
        target_users.append(np.broadcast_to(users[:, None], wanted.shape)[wanted])
        target_items.append(((start + step * place) % N_ITEMS)[wanted])
    for name, blocks in (("target_user", target_users), ("target_item", target_items)):
        np.save(lists / f"{name}.npy", np.concatenate(blocks).astype(np.int32))


def _load(lists: Path) -> dict[str, np.ndarray]:
    return {name: np.load(lists / f"{name}.npy") for name in ("user", "item", "rank", "target_user", "target_item")}


def with_recsys(lists: Path) -> tuple[float, dict[str, float]]:
    """Seconds and means."""
    from recsys.evaluation.lists import evaluate_lists
    from recsys.evaluation.metrics import NDCG, Recall
    from recsys.ingest.dataset import Ragged

    data = _load(lists)
    metrics = [metric(k) for k in KS for metric in (Recall, NDCG)]
    begin = time.perf_counter()
    offsets = np.append(0, np.cumsum(np.bincount(data["target_user"])))
    targets = Ragged(offsets, data["target_item"])
    values, _ = evaluate_lists(data["user"], data["item"], data["rank"], targets, metrics)
    means = dict(zip([metric.column for metric in metrics], values.mean(axis=0).tolist(), strict=True))
    return time.perf_counter() - begin, means


def with_rectools(lists: Path) -> tuple[float, dict[str, float]]:
    """Seconds and means."""
    import pandas as pd
    from rectools.metrics import NDCG, Recall, calc_metrics

    data = _load(lists)
    reco = pd.DataFrame({"user_id": data["user"], "item_id": data["item"], "rank": data["rank"]}, copy=False)
    interactions = pd.DataFrame({"user_id": data["target_user"], "item_id": data["target_item"]}, copy=False)
    metrics = {f"recall_at_{k}": Recall(k=k) for k in KS}
    metrics |= {f"ndcg_at_{k}": NDCG(k=k, divide_by_achievable=True) for k in KS}
    begin = time.perf_counter()
    means = calc_metrics(metrics, reco=reco, interactions=interactions)
    return time.perf_counter() - begin, {name: float(mean) for name, mean in means.items()}


def with_ir_measures(lists: Path) -> tuple[float, dict[str, float]]:
    """Seconds and means."""
    import ir_measures
    import pandas as pd

    data = _load(lists)
    run = pd.DataFrame(
        {
            "query_id": data["user"].astype(str).astype(object),
            "doc_id": data["item"].astype(str).astype(object),
            "score": -data["rank"].astype(float),
        }
    )
    qrels = pd.DataFrame(
        {
            "query_id": data["target_user"].astype(str).astype(object),
            "doc_id": data["target_item"].astype(str).astype(object),
            "relevance": 1,
        }
    )
    measures = {f"recall_at_{k}": ir_measures.R @ k for k in KS} | {f"ndcg_at_{k}": ir_measures.nDCG @ k for k in KS}
    begin = time.perf_counter()
    means = ir_measures.calc_aggregate(list(measures.values()), qrels, run)
    return time.perf_counter() - begin, {name: float(means[measure]) for name, measure in measures.items()}


MEASURE: dict[str, Callable[[Path], tuple[float, dict[str, float]]]] = {
    "recsys": with_recsys,
    "rectools": with_rectools,
    "ir_measures": with_ir_measures,
}


def definitions(rectools: Path | None) -> str:
    """A table of what libraries say of the worked example: users 1 and 2, and the mean over all three users."""
    columns = {"recsys": recsys_definitions()}
    if find_spec("ir_measures"):
        columns["ir-measures"] = ir_measures_definitions()
    if rectools:
        columns["RecTools"] = _fresh("definitions", rectools, Path(), 0)
    columns |= {"RecBole*": recbole_formulas(), "RePlay*": replay_formulas()}
    lines = [f"k = {EXAMPLE_K}"]
    lines += [f"user {u}: list {LISTS[u] or '—'}, targets {TARGETS[u]}" for u in LISTS]
    lines += ["", "metric     of      " + "".join(name.rjust(13) for name in columns)]
    for metric in METRIC_NAMES:
        for place, of in enumerate(("user 1", "user 2", "mean")):
            cells = "".join(f"{values[metric][place]:13.6f}" for values in columns.values())
            lines.append(f"{metric if not place else '':11}{of:8}{cells}")
    lines += [
        "",
        "RecTools as it comes (NDCG without divide_by_achievable, MAP without divide_by_k).",
        "* by the formula of the library's source (RecBole 1.2, RePlay 0.22), not by running it. RecBole asks nobody",
        "who has no list: its mean is over users 1 and 2.",
    ]
    return "\n".join(lines)


Rows = dict[str, list[float]]


def recsys_definitions() -> Rows:
    """Values of users 1 and 2, and the mean, by metric."""
    from recsys.evaluation.lists import evaluate_lists
    from recsys.evaluation.metrics import METRICS
    from recsys.ingest.dataset import Ragged

    offsets = np.cumsum([0, *(len(of) for of in TARGETS.values())])
    targets = Ragged(offsets, np.concatenate(list(TARGETS.values())).astype(np.int32))
    user, item, rank = np.array([(u - 1, item, rank) for u in LISTS for rank, item in enumerate(LISTS[u])]).T
    values, _ = evaluate_lists(user, item, rank, targets, [metric(EXAMPLE_K) for metric in METRICS])
    return {metric.name: _with_mean(column.tolist()) for metric, column in zip(METRICS, values.T, strict=True)}


def ir_measures_definitions() -> Rows:
    """Values of users 1 and 2, and the mean, by metric."""
    import ir_measures

    named = dict(zip(METRIC_NAMES, ("R", "nDCG", "Success", "RR", "P", "AP"), strict=True))
    measures = {name: getattr(ir_measures, of) @ EXAMPLE_K for name, of in named.items()}
    qrels = [ir_measures.Qrel(str(u), str(item), 1) for u, of in TARGETS.items() for item in of]
    run = [ir_measures.ScoredDoc(str(u), str(item), -rank) for u in LISTS for rank, item in enumerate(LISTS[u])]
    found = {
        (value.measure, value.query_id): value.value
        for value in ir_measures.iter_calc([*measures.values()], qrels, run)
    }
    means = ir_measures.calc_aggregate(list(measures.values()), qrels, run)
    return {name: [found[of, "1"], found[of, "2"], means[of]] for name, of in measures.items()}


def rectools_definitions() -> Rows:
    """Values of users 1 and 2, and the mean, by metric."""
    import pandas as pd
    from rectools import metrics

    named = dict(zip(METRIC_NAMES, ("Recall", "NDCG", "HitRate", "MRR", "Precision", "MAP"), strict=True))
    rows = [(u, item, rank) for u in LISTS for rank, item in enumerate(LISTS[u], start=1)]
    reco = pd.DataFrame(rows, columns=["user_id", "item_id", "rank"])
    wanted = pd.DataFrame([(u, item) for u, of in TARGETS.items() for item in of], columns=["user_id", "item_id"])
    values: Rows = {}
    for name, of in named.items():
        metric = getattr(metrics, of)(k=EXAMPLE_K)
        per_user = metric.calc_per_user(reco, wanted)
        values[name] = [float(per_user[1]), float(per_user[2]), float(metric.calc(reco, wanted))]
    return values


def recbole_formulas() -> Rows:
    """RecBole 1.2, `recbole/evaluator/metrics.py`. It asks nobody who has no list."""
    return {name: [*of[:2], sum(of[:2]) / 2] for name, of in _formulas().items()}


def replay_formulas() -> Rows:
    """RePlay 0.22, `replay/metrics`."""
    return {name: _with_mean(of) for name, of in _formulas().items()}


def _formulas() -> Rows:
    """Values of every user in plain Python, as both libraries have them: MAP divides by min(k, targets)."""
    values: Rows = {name: [] for name in METRIC_NAMES}
    for u, listed in LISTS.items():
        targets, k = TARGETS[u], EXAMPLE_K
        ranks = [rank for rank, item in enumerate(listed[:k], start=1) if item in targets]
        most = min(k, len(targets))
        ideal = sum(1 / log2(rank + 1) for rank in range(1, most + 1))
        values["recall"].append(len(ranks) / len(targets))
        values["ndcg"].append(sum(1 / log2(rank + 1) for rank in ranks) / ideal)
        values["hit_rate"].append(float(bool(ranks)))
        values["mrr"].append(1 / ranks[0] if ranks else 0.0)
        values["precision"].append(len(ranks) / k)
        values["map"].append(sum(n / rank for n, rank in enumerate(ranks, start=1)) / most)
    return values


def _with_mean(values: Sequence[float]) -> list[float]:
    return [*values[:2], sum(values) / len(values)]


if __name__ == "__main__":
    raise SystemExit(main())
