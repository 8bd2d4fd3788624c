"""The stages in their order; what is up to date is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from recsys import distributed
from recsys.api import Run
from recsys.artifacts import Artifact
from recsys.config import CONFIG_FILE, STAGES, PipelineConfig, write_config
from recsys.errors import InputError
from recsys.runtime import Runtime

if TYPE_CHECKING:
    from recsys.evaluation.tuning import Tuning

# What leaves a stage out.
_SWITCHES: Final = {"teach": "use_teacher", "score": "use_teacher", "rank": "use_ranker"}
# Stages that several processes of `torchrun` do together; the others are the first one's, and the rest wait.
TOGETHER: Final = ("teach", "score", "distill", "recommend")


def run(
    config: PipelineConfig,
    *,
    from_stage: str | None = None,
    until: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Run:
    """Run the stages in order. A stage whose inputs, config and code are those of its artifact is not done again.

    A run that was killed is taken up by the same call: finished stages stand, and a stage that was under way goes on
    from its own checkpoints where it keeps any.

    Args:
        config: what to run; it is written, resolved, to `<run_dir>/config.toml`.
        from_stage: do this stage and all after it again, up to date or not.
        until: the last stage to run.
        progress: draw progress bars on a terminal.
        say: takes one line per stage.

    Returns:
        The run, opened.

    Raises:
        InputError: a stage is not one of this config's, or something in the input cannot be used.
    """
    stages = config.stages()
    first, last = (_place(stage, stages) for stage in (from_stage or stages[-1], until or stages[-1]))
    if from_stage is not None and first > last:
        raise InputError(
            f"--from {from_stage} comes after --until {until}",
            expected=f"two stages in the order {', '.join(stages)}",
            do="exchange them",
        )
    for place, stage in enumerate(stages[: last + 1]):
        run_stage(stage, config, force=from_stage is not None and place >= first, progress=progress, say=say)
    return Run(config.run_dir)


def run_stage(
    stage: str,
    config: PipelineConfig,
    *,
    force: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Artifact:
    """Run one stage on what the stages before it wrote, and say in a line what it did.

    Args:
        stage: one of `recsys.config.STAGES`.
        config: the whole config.
        force: do it again even if it is up to date.
        progress: draw progress bars on a terminal.
        say: takes the line.

    Returns:
        The stage's artifact, opened.

    Raises:
        InputError: an artifact that the stage reads is not there, or the input cannot be used.
    """
    _place(stage, config.stages())
    out = config.run_dir / STAGES[stage]
    before = out.resolve()
    started = time.perf_counter()
    runtime = config.runtime(progress=progress)
    if stage in TOGETHER:
        artifact = _call(stage, config, out, runtime=runtime, force=force)
    else:
        force = force and not distributed.rank()
        with distributed.first_alone():
            artifact = _call(stage, config, out, runtime=runtime, force=force)
    if distributed.rank():
        return artifact
    # Only now: a config that came to nothing must not stand beside the artifacts of the one before.
    write_config(config, config.run_dir / CONFIG_FILE)
    # A build is published under a folder of its own: the link points to the old one only if none was needed.
    done = f"{time.perf_counter() - started:7.1f} s" if artifact.path != before else "up to date"
    say(f"{stage:<10} {done:>10}  {_in_words(artifact.counts)}".rstrip())
    return artifact


def tune_baselines(config: PipelineConfig, *, force: bool = False, progress: bool = True) -> Tuning:
    """Find the baselines' best parameters on the validation part; the next report takes them.

    Args:
        config: the whole config; the dataset must have been written.
        force: search again even if it is up to date.
        progress: draw progress bars on a terminal.

    Raises:
        InputError: there is no dataset yet, nobody to ask, or a baseline is unknown or cannot run.
    """
    from recsys.evaluation.tuning import tune_baselines as search
    from recsys.text import TextVectorsConfig, text_vectors

    run, runtime = Run(config.run_dir), config.runtime(progress=progress)
    # The same as the student's, so that they are made once.
    encoder = TextVectorsConfig(encoder=config.distill.encoder)
    text = text_vectors(run.dataset, encoder, run.path / "text_vectors", runtime=runtime)
    return search(run.dataset, config.baselines, run.path / "tuning", text=text, runtime=runtime, force=force)


def validate(config: PipelineConfig) -> None:
    """Open the log and the catalogue as `ingest` would: columns, event types and titles are checked, nothing is kept.

    Raises:
        InputError: they cannot be used.
    """
    from recsys.ingest.ingest import check_input

    check_input(config.ingest, config.data, config.runtime())


def _call(stage: str, config: PipelineConfig, out: Path, *, runtime: Runtime, force: bool) -> Artifact:
    """Open what the stage takes and call it. Imports stand here, because a stage needs only its own libraries."""
    run = Run(config.run_dir)
    options: dict[str, Any] = {"runtime": runtime, "force": force}
    match stage:
        case "ingest":
            from recsys.ingest.ingest import ingest
            from recsys.ingest.report.report import write_data_report

            dataset = ingest(config.ingest, out, data=config.data, **options)
            write_data_report(dataset, config.run_dir)
            return dataset
        case "teach":
            from recsys.teacher.teach import teach

            return teach(run.dataset, config.teach, out, **options)
        case "score":
            from recsys.teacher.score import score

            others = [type(run.teacher).open(folder) for folder in config.score.ensemble]
            return score(run.dataset, [run.teacher, *others], config.score, out, **options)
        case "distill":
            from recsys.student.distill import distill

            soft_labels = run.soft_labels if config.use_teacher else None
            return distill(run.dataset, soft_labels, config.distill, out, **options)
        case "index":
            from recsys.retrieval.index import build_index

            return build_index(run.student, config.index, out, dataset=run.dataset, **options)
        case "rank":
            from recsys.ranking.ranker import train_ranker

            return train_ranker(run.dataset, run.student, run.index, config.rank, out, text=run.text_vectors, **options)
        case "recommend":
            from recsys.ranking.recommend import recommend

            ranker = run.ranker if config.use_ranker else None
            return recommend(run.dataset, run.student, run.index, config.recommend, out, ranker=ranker, **options)
        case "evaluate":
            from recsys.evaluation.evaluate import evaluate

            teacher = run.teacher if config.use_teacher else None
            options |= {"text": run.text_vectors, "tuning": run.tuning}
            if config.use_ranker:
                options["ranker"] = run.ranker
            if teacher is not None and config.evaluate.teacher_users:
                from recsys.teacher.explain import explain

                options["explain"] = partial(explain, teacher, run.dataset, runtime=runtime)
            return evaluate(run.dataset, run.student, teacher, config.evaluate, out, **options)
    raise AssertionError(stage)


def _place(stage: str, stages: list[str]) -> int:
    if stage not in stages:
        raise InputError(
            f"there is no stage {stage!r} in this run",
            expected=f"one of {', '.join(stages)}",
            do=f"set {_SWITCHES[stage]} = true, or leave the stage out" if stage in _SWITCHES else "correct the name",
        )
    return stages.index(stage)


def _in_words(counts: dict[str, Any], most: int = 5) -> str:
    """The first plain numbers among an artifact's counts."""
    plain = {name: value for name, value in counts.items() if isinstance(value, int | float)}
    shown = [
        f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in list(plain.items())[:most]
    ]
    return " · ".join(shown)
