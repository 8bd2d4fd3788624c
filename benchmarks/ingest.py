"""Ingestion beside the same job in pandas, numpy and Polars: time and peak memory.

    python benchmarks/ingest.py                    # 1, 10 and 100 million events; a table
    python benchmarks/ingest.py --sizes 1 --json   # 1 million; one line per figure

Logs of invented events are made (`ingest_peers/data.py`), and each engine checks them, puts bad rows aside, numbers
users and items, merges copies, orders each user's events, cuts sessions and writes train, valid and test. The peers
run up to 10 million events, which fit in memory; recsys runs alone beyond that, once. At every size where all run,
their rows are compared, and all must be the same.

`pandas` is the job in the library's own verbs (masks, categories, sort_values, groupby, agg), as most would write it;
the target is about this one. `numpy` is what an expert makes of it who leaves pandas for arrays wherever that is
faster: one sort of a packed key, codes of dictionaries, lists from offsets. It is shown so that nobody takes the target
for more than it says; at 10 million it is about as fast as recsys and below that faster. Two thirds of pandas' time at
10 million is its last step, a list for each user and column: handed to pyarrow as offsets, the same code took 14.7 s,
and the target of 3 would be missed.

Each run is a process of its own with two threads. Seconds are wall time from opening the files to the written dataset;
imports come before the clock starts, for all engines alike. The peak is the process's largest resident memory. Runs
of the engines take turns, and medians are reported; `pandas_by_recsys` is the median over the rounds of pandas'
seconds by recsys' seconds. `cpu` is the CPU time of all threads, which other work on the machine disturbs least.
recsys also hashes its inputs and writes statistics of items and users and a profile of the log, which the others are
not asked for: its seconds hold all of that.

Polars is no dependency of recsys: `pip install polars` to have its figures. The machine should have nothing else to do:
`low` and `high` are the least and the greatest ratio of a round. 100 million events need several GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from _common import Figure, arguments, at_least, at_most, peak_mb, report

PEERS = ("pandas", "numpy", "polars")
ENGINES = ("recsys", *PEERS)
THREADS = 2
PEERS_UP_TO = 10  # million events
TIMES_PANDAS, TIMES_POLARS, PEAK_GB = 3, 1.5, 4


def main() -> int:
    """Make the logs, run the engines on them, judge the figures."""
    parser = arguments(__doc__)
    parser.add_argument("--sizes", default="1,10,100", help="millions of events, split by commas")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each engine at each size")
    parser.add_argument("--folder", type=Path, help="where to make the logs (a temporary folder in it goes away after)")
    parser.add_argument("--one", choices=("generate", *ENGINES, "compare"), help=argparse.SUPPRESS)
    parser.add_argument("--shop", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [float(size) for size in options.sizes.split(",")]
    if options.one:
        print(json.dumps(one(options.one, options.shop, round(sizes[0] * 1_000_000))))
        return 0

    engines = [engine for engine in ENGINES if engine == "recsys" or find_spec(engine)]
    if len(engines) < len(ENGINES):
        print("polars is not installed: its figures are left out", file=sys.stderr)
    figures = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            alone = size > PEERS_UP_TO
            figures += measure(
                Path(folder), size, engines[:1] if alone else engines, repeats=1 if alone else options.repeats
            )
    return report(figures, as_json=options.json)


def measure(shop: Path, size: float, engines: Sequence[str], repeats: int) -> list[Figure]:
    """Figures of one size, in millions of events; `shop` is an empty folder."""
    _fresh("generate", shop, size)
    os.sync()  # so that no run waits for the log's own bytes to reach the disk
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    for repeat in range(repeats):
        turn = repeat % len(engines)
        for engine in (*engines[turn:], *engines[:turn]):
            run = _fresh(engine, shop, size)
            runs[engine].append(run)
            load = " ".join(str(round(load, 2)) for load in os.getloadavg())
            line = f"{run['seconds']:.2f} s, {run['cpu']:.2f} s of CPU, {run['peak']:.2f} GB"
            print(f"{size:g}M {engine}: {line}; load {load}", file=sys.stderr)

    name = f"{size:g}M"
    figures = []
    for engine in engines:
        seconds, cpu, peak = (median(run[key] for run in runs[engine]) for key in ("seconds", "cpu", "peak"))
        figures += [Figure(f"{name}.{engine}.seconds", seconds, "s"), Figure(f"{name}.{engine}.cpu", cpu, "s")]
        judged = engine == "recsys" and size == 100
        peak_name = f"{name}.{engine}.peak"
        figures.append(at_most(peak_name, peak, PEAK_GB, "GB") if judged else Figure(peak_name, peak, "GB"))
    for above, below, judge, target in (
        ("pandas", "recsys", at_least, TIMES_PANDAS),
        ("numpy", "recsys", None, 0.0),
        ("recsys", "polars", at_most, TIMES_POLARS),
    ):
        if above in engines and below in engines:
            # Within a round, because what else the machine does changes from round to round.
            pairs = zip(runs[above], runs[below], strict=True)
            ratios = [one["seconds"] / other["seconds"] for one, other in pairs]
            ratio_name = f"{name}.{above}_by_{below}"
            ratio = median(ratios)
            figures += [
                judge(ratio_name, ratio, target) if judge and size == 10 else Figure(ratio_name, ratio),
                Figure(f"{ratio_name}.low", min(ratios)),
                Figure(f"{ratio_name}.high", max(ratios)),
            ]
    if len(engines) > 1:
        differences = _fresh("compare", shop, size)["differences"]
        for line in differences:
            print(f"{name} {line}", file=sys.stderr)
        figures.append(at_most(f"{name}.differences", len(differences), 0))
    return figures


def _fresh(what: str, shop: Path, size: float) -> dict[str, Any]:
    """One step in a process of its own: its peak is its own, and this process stays small.

    A process's peak begins with that of the process that forked it.
    """
    command = [sys.executable, __file__, "--one", what, "--shop", str(shop), "--sizes", f"{size:g}"]
    threads = dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(THREADS))
    done = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def one(what: str, shop: Path, n_events: int) -> dict[str, Any]:
    """One step, in this process.

    Args:
        what: "generate", "compare", or an engine.
        shop: folder of the log; each engine writes to a folder in it.
        n_events: size of the log, for "generate".

    Returns:
        Of an engine its `seconds`, `cpu` (seconds of all threads), `peak` (GB) and `counts`; of "compare" the
        `differences`, in words.
    """
    if what == "generate":
        from ingest_peers.data import generate

        generate(shop, n_events)
        return {}
    if what == "compare":
        from ingest_peers.compare import differences

        done = [engine for engine in ENGINES if output(shop, engine).is_dir()]
        first, *others = [output(shop, engine) for engine in done]
        return {"differences": [line for other in others for line in differences(first, other)]}

    from ingest_peers.data import AS_OF
    from ingest_peers.job import Job

    # The whole folder, so that every run does all of the work: recsys does nothing where its dataset is up to date, and
    # what it calls `dataset` is a link.
    own = shop / f"by_{what}"
    if own.exists():
        shutil.rmtree(own)
    own.mkdir()
    out = output(shop, what)
    if what == "recsys":
        from recsys.ingest.config import IngestConfig
        from recsys.ingest.ingest import ingest
        from recsys.runtime import Runtime

        config = IngestConfig(as_of=AS_OF, test_days=7, valid_days=7)
        runtime = Runtime(threads=THREADS, progress=False)
        begin, begin_cpu = time.perf_counter(), time.process_time()
        counts = ingest(config, out, data=shop, runtime=runtime).counts
    else:
        import pyarrow as pa

        peer = import_module(f"ingest_peers.with_{what}")
        pa.set_cpu_count(THREADS)
        job = Job(shop, out, as_of=round(AS_OF.timestamp() * 1_000_000))
        begin, begin_cpu = time.perf_counter(), time.process_time()
        counts = peer.ingest(job)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    if counts["rows_in"] != n_events:
        raise RuntimeError(f"{what} read {counts['rows_in']} of {n_events} rows")
    return {
        "seconds": seconds,
        "cpu": cpu,
        "peak": peak_mb() * 2**20 / 1e9,
        "counts": {name: counts[name] for name in ("rows_in", "kept", "quarantined", "merged")},
    }


def output(shop: Path, engine: str) -> Path:
    """Where an engine writes."""
    return shop / f"by_{engine}" / "dataset" if engine == "recsys" else shop / f"by_{engine}"


if __name__ == "__main__":
    raise SystemExit(main())
