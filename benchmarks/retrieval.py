"""Retrieval and ranking: what sources, ranker and diversity bring, how good and fast the index is, and a batch.

    RECSYS_DATA=… python benchmarks/retrieval.py --only quality                 # trains what is missing: hours
    RECSYS_DATA=… python benchmarks/retrieval.py --only quality --run RUN       # a run folder, taken as it is
    RECSYS_DATA=… python benchmarks/retrieval.py --only temporal
    python benchmarks/retrieval.py --only index --student RUN/student --ann ENV/bin/python
    python benchmarks/retrieval.py --only batch --student RUN/student --rectools ENV/bin/python --replay ENV/bin/python
    python benchmarks/retrieval.py --json                                       # one line per figure

* `quality`: Amazon 2014 Beauty, leave-one-out in the order of `position`, all test users, whole catalogue, seen items
  filtered and not. `student`: its order over all items. `sources`: the candidates of all sources, in an order without
  learning (reciprocal rank fusion of student, co-occurrence and titles). `ranker`: the same candidates in the order of
  the model that stage `rank` kept. `diversity_…`: its first hundred with `recommend.diversity`. Beside recall and NDCG
  at 10 stand the share of the catalogue that the lists show and the share of pairs of a list whose categories differ.
  `one-other` is the difference in NDCG of two of them on the same users, with its 95 % paired bootstrap interval.
  `candidates`: which share of the targets is among the student's quota, among as many of the student's as all sources
  bring, and among those of all sources.
* `temporal`: the same, trained before one moment and asked about the 60 days after it; the student without a teacher.
* `index`: a student's item vectors, and users with noise around the student's, at `--items` items; where there are more
  than the student's, copies with noise. Recall of the exact top 100, NDCG@10 lost (the exact first ten are wanted),
  queries a second on one thread, time and memory of the build, size. Every contender is tuned, on other users, to
  recall `--target` at 100; `recsys` is what `[index]` chooses by itself.
* `batch`: lists of ten for a million users among a million items on two threads, seen items and a hundredth of the
  catalogue left out; `recsys` also keeps to three items of a brand and writes reasons to Parquet, `…_without_cap` and
  `…_exact` (a flat index) do not know brands. Each contender does the same `--batch-users` of the users in a process of
  its own, and users a second are of these; implicit's, RecTools' and RePlay's search is exact. `recall` is that of the
  exact lists under the same rules, but for the cap by brand. `memory` is the peak of resident memory, pages of
  memory-mapped files included.

The data is for research and is not part of the repository. Without `--student`, vectors are normal.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from _common import Figure, arguments, report
from retrieval_parts.batch import batch
from retrieval_parts.index import index
from retrieval_parts.quality import quality

from recsys import pipeline
from recsys.api import Run
from recsys.config import load_config
from recsys.errors import RecsysError

PARTS: Final = ("quality", "temporal", "index", "batch")
TEMPORAL: Final = ("ingest.protocol=temporal", "ingest.valid_days=60", "ingest.test_days=60", "use_teacher=false")


def main() -> int:
    """Measure and judge."""
    options = _options()
    figures: list[Figure] = []
    try:
        for part in options.only or PARTS:
            if part == "quality":
                config = load_config(options.config, options.set)
                run = pipeline.run(config, until="rank", say=_say) if options.run is None else Run(options.run)
                figures += quality(run, config.runtime(), options.diversity)
            elif part == "temporal":
                config = load_config(options.config, [*options.set, *TEMPORAL])
                config = config.model_copy(update={"run_dir": Path(config.run_dir) / "temporal"})
                run = pipeline.run(config, until="rank", say=_say)
                figures += quality(run, config.runtime(), options.diversity, prefix="temporal.", judge=False)
            elif part == "index":
                figures += index(options)
            else:
                figures += batch(options)
    except RecsysError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return report(figures, as_json=options.json)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("-c", "--config", default="pipelines/beauty.toml", help="the run's TOML")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `recsys run`")
    parser.add_argument("--only", action="append", choices=PARTS, help="one part; may be repeated")
    parser.add_argument("--run", type=Path, help="of `quality`: a run folder whose artifacts are taken as they are")
    parser.add_argument("--diversity", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--student", type=Path, help="of `index` and `batch`: whose vectors are drawn around")
    parser.add_argument("--work", type=Path, default=Path("runs/retrieval"), help="folder of vectors and indexes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of builds and of `batch`")
    parser.add_argument("--items", type=int, nargs="+", default=[12_000, 1_000_000], help="sizes of `index`")
    parser.add_argument("--types", nargs="*", default=["flat"], help="what `index` measures beside what is chosen")
    parser.add_argument("--target", type=float, default=0.98, help="recall at 100 that indexes are tuned to")
    parser.add_argument("--ann", help="a Python that has hnswlib and scann, for `index`")
    parser.add_argument("--shop", type=int, nargs=2, default=[1_000_000, 1_000_000], help="users and items of `batch`")
    parser.add_argument("--batch-users", type=int, default=20_000, help="users that every contender of `batch` does")
    for name in ("implicit", "rectools", "replay"):
        default = sys.executable if name == "implicit" else None
        parser.add_argument(f"--{name}", default=default, help=f"a Python that has {name}, for `batch`")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
