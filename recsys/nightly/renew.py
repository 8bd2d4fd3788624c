"""Tonight's lists by the model that is live, where the gate kept tonight's own out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from recsys import pipeline
from recsys.api import Run
from recsys.config import STAGES, PipelineConfig
from recsys.nightly.night import take_over

TAUGHT_FILE: Final = "taught.parquet"
# What the next night asks of a champion, and is the same whether it was trained tonight or before.
_OF_TONIGHT: Final = (STAGES["ingest"], "text_vectors", "data_report.json", "data_report.html")
_OF_THE_MODEL: Final = (STAGES["teach"], STAGES["score"], STAGES["evaluate"], TAUGHT_FILE)


def renew(
    live: Run, tonight: PipelineConfig, folder: Path, *, progress: bool = True, say: Callable[[str], None] = print
) -> Run:
    """Make a run of a live model and tonight's data, without training.

    It can be the next champion as any other run: its teacher, labels and report are the live run's.

    Args:
        live: whose student and ranker.
        tonight: the night's config; dataset and text vectors lie in its `run_dir`.
        folder: where the run goes; what is there is made anew.
        progress: draw progress bars on a terminal.
        say: takes one line per stage.

    Raises:
        InputError: the model does not fit the data, or not the config.
    """
    from recsys.ranking.renew import renew as renew_ranker
    from recsys.student.renew import renew as renew_student

    shutil.rmtree(folder, ignore_errors=True)
    for source, names in ((tonight.run_dir, _OF_TONIGHT), (live.path, _OF_THE_MODEL)):
        for name in names:
            if (source / name).is_symlink():
                take_over(source / name, folder / name)
            elif (source / name).exists():
                shutil.copyfile(source / name, folder / name)
    run, runtime = Run(folder), tonight.runtime(progress=progress)
    config = tonight.model_copy(update={"run_dir": folder, "use_ranker": live.config.use_ranker})
    options: dict[str, Any] = {"progress": progress, "say": say}
    renew_student(live.student, live.dataset, run.dataset, folder / STAGES["distill"], runtime=runtime)
    pipeline.run_stage("index", config, **options)
    if config.use_ranker:
        out = folder / STAGES["rank"]
        renew_ranker(live.ranker, run.dataset, run.student, run.index, out, text=run.text_vectors, runtime=runtime)
    pipeline.run_stage("recommend", config, **options)
    return run
