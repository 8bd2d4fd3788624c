"""Quality on Amazon 2014 Beauty: the whole pipeline, beside the simple baselines.

    RECSYS_DATA=… python benchmarks/quality_beauty.py          # a table
    RECSYS_DATA=… python benchmarks/quality_beauty.py --json   # one line per figure

Runs `pipelines/beauty.toml` (what is up to date is not done again) and prints recall and NDCG at 10 over the whole
catalogue, each user's last review left out, with and without seen items filtered. `difference` is the distilled
student minus another model on the same users; `low` and `high` are the ends of its 95 % paired bootstrap interval.
About half an hour on two cores the first time. The data is for research and is not part of the repository.
"""

from __future__ import annotations

import sys

from _common import Figure, arguments, at_least, at_most, report

from recsys import pipeline
from recsys.config import load_config
from recsys.errors import RecsysError

K = 10
TARGETS = {"recall": 0.095, "ndcg": 0.056}
MINUTES = 60


def main() -> int:
    """Run the pipeline and judge its figures."""
    parser = arguments(__doc__)
    parser.add_argument("-c", "--config", default="pipelines/beauty.toml", help="the run's TOML")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `recsys run`")
    options = parser.parse_args()
    try:
        config = load_config(options.config, options.set)
        run = pipeline.run(config, say=lambda line: print(line, file=sys.stderr))
    except RecsysError as error:
        print(error, file=sys.stderr)
        return error.exit_code

    figures = []
    for row in run.report.rows:
        if row.k != K or row.metric not in TARGETS:
            continue
        shown = "filtered" if row.seen_filtered else "unfiltered"
        name = f"{row.model}.{row.metric}_at_{K}.{shown}" + (".teacher_users" if row.users == "sample" else "")
        if row.model == "student" and row.seen_filtered and row.users == "all":
            figures.append(at_least(name, row.value, TARGETS[row.metric]))
        else:
            figures.append(Figure(name, row.value))
    for difference in run.report.differences:
        if difference.k == K and difference.metric == "ndcg" and difference.seen_filtered:
            name = f"difference.ndcg_at_{K}.student-{difference.other}"
            name += ".teacher_users" if difference.users == "sample" else ""
            figures += [Figure(f"{name}.{part}", getattr(difference, part)) for part in ("difference", "low", "high")]
    artifacts = (run.dataset, run.teacher, run.soft_labels, run.student, run.index, run.recommendations, run.report)
    seconds = sum(float(artifact.manifest["seconds"]) for artifact in artifacts)
    figures.append(at_most("run", seconds / 60, MINUTES, "min"))
    return report(figures, as_json=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
