"""The `recsys` command. Every verb calls the function that a notebook would call, and imports it only when asked to.

Exit codes: 0 done, 2 the input cannot be used, 130 interrupted, 1 anything else; `nightly` has three more. Messages go
to stderr, data to stdout.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from recsys import __version__
from recsys.config import load_config, to_toml, validated
from recsys.errors import RecsysError
from recsys.sample.config import SampleConfig

if TYPE_CHECKING:
    from recsys.api import Run
    from recsys.config import PipelineConfig

app = typer.Typer(
    name="recsys",
    help="From a shop's logs to tonight's recommendations, and an honest report on how good they are.",
    epilog="First steps: recsys sample data/sample && recsys run -c pipelines/sample.toml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # `main` says what went wrong
    rich_markup_mode=None,  # plain help answers at once and reads the same in a log
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> NoReturn:
    """Run the command line: a foreseen error becomes one message and an exit code (RECSYS_DEBUG=1: its traceback)."""
    try:
        app()
    except RecsysError as error:
        _fail(error, str(error), error.exit_code)
    except Exception as error:
        if not _is_disk_full(error):
            raise
        place = getattr(error, "filename", None)
        _fail(
            error,
            f"the disk is full{f': {place}' if place else ''}\n"
            "  expected: room for the artifact that is being written\n"
            "  to do:    free some space, or set run_dir to another disk, and give the same command again;\n"
            "            artifacts that were finished before are as they were",
            2,
        )
    sys.exit(0)


def _fail(error: Exception, message: str, code: int) -> NoReturn:
    if os.environ.get("RECSYS_DEBUG"):
        raise error
    typer.echo(f"recsys: {message}", err=True)
    sys.exit(code)


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error: Python, DuckDB, Arrow and safetensors say it in their own ways."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _examples(*lines: str) -> str:
    # \b tells the help formatter to keep the lines as they are.
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


def _sample_default(field: str) -> Any:
    return SampleConfig.model_fields[field].default


ConfigOption = Annotated[Path, typer.Option("--config", "-c", metavar="TOML", help="The run's config file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a config key, e.g. distill.epochs=3. May be repeated."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Do it again even if it is up to date.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"recsys {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command(
    epilog=_examples(
        "recsys sample data/sample",
        "recsys sample /tmp/big --items 50000 --users 200000 --events 5000000",
    )
)
def sample(
    out: Annotated[Path, typer.Argument(help="Folder to write the shop to.")],
    items: Annotated[int, typer.Option(help="Items in the catalogue.")] = _sample_default("n_items"),
    users: Annotated[int, typer.Option(help="Users.")] = _sample_default("n_users"),
    events: Annotated[int, typer.Option(help="Events, about.")] = _sample_default("n_events"),
    days: Annotated[int, typer.Option(help="Days that the log covers.")] = _sample_default("days"),
    seed: Annotated[int, typer.Option(min=0, help="The same seed and sizes give the same bytes.")] = 0,
) -> None:
    """Write a shop to try things on.

    It has a catalogue, an event log in which text and co-occurrence both tell something, and a few dirty rows.
    """
    from recsys.sample.sample import write_sample

    sizes = {"n_items": items, "n_users": users, "n_events": events, "days": days}
    config = validated(SampleConfig, sizes, source="recsys sample")
    shop = write_sample(out, config, seed=seed)
    _say(
        f"sample shop in {shop.path}: {shop.n_items:,} items, {shop.n_users:,} users, {shop.n_events:,} events, "
        f"{sum(shop.dirty.values()):,} of them dirty"
    )


@app.command(
    epilog=_examples(
        "recsys run -c pipelines/sample.toml",
        "recsys run -c pipelines/sample.toml --from distill --set distill.epochs=10",
        "RECSYS_DATA=/mnt/shop recsys run -c shop.toml --set run_dir=/mnt/runs/shop",
    )
)
def run(
    config: ConfigOption,
    overrides: SetOption = None,
    from_stage: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Do this stage and all after it again.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
) -> None:
    """Run all stages in order. What is up to date is not done again."""
    from recsys import pipeline

    started = time.perf_counter()
    finished = pipeline.run(load_config(config, overrides or []), from_stage=from_stage, until=until, say=_say)
    _say(f"{'in all':<10} {time.perf_counter() - started:8.1f} s")
    if until in (None, "evaluate"):
        # Through the links and not the versions behind them, so that the paths hold after the next run too.
        typer.echo(f"recommendations: {finished.folder('recommend') / finished.recommendations.file.name}")
        typer.echo(f"open the report: {finished.folder('evaluate') / finished.report.html.name}")


def _run_stage(stage: str, config_file: Path, overrides: list[str] | None, *, force: bool) -> Run:
    from recsys.api import Run
    from recsys.pipeline import run_stage

    config = load_config(config_file, overrides or [])
    run_stage(stage, config, force=force, say=_say)
    return Run(config.run_dir)


def _stage_command(stage: str, help_text: str) -> Callable[..., None]:
    def command(config: ConfigOption, overrides: SetOption = None, force: ForceOption = False) -> None:
        _run_stage(stage, config, overrides, force=force)

    example = f"recsys {stage} -c pipelines/sample.toml"
    return app.command(stage, help=help_text, epilog=_examples(example, f"{example} --force"))(command)


@app.command(
    epilog=_examples(
        "recsys inspect clicks.parquet > shop.toml",
        "recsys inspect 'logs/*.csv.gz' products.csv -o shop.toml",
        "recsys validate -c shop.toml && recsys run -c shop.toml",
    )
)
def inspect(
    events: Annotated[Path, typer.Argument(help="The log: a file, a glob in quotes, or a folder.")],
    items: Annotated[
        Path | None, typer.Argument(help="The catalogue, likewise; none if the log tells of its items itself.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; printed where not given.")] = None,
    sample_rows: Annotated[int, typer.Option(min=1, help="Rows that are looked at.")] = 200_000,
) -> None:
    """Look at a shop's files and write a first config for them.

    Columns, event types, times, text formats and codes that are no merchandise are found by name and by content; each
    guess stands with its reason in a comment.
    """
    from recsys.errors import InputError
    from recsys.ingest.inspect import inspect as look_at

    config = look_at(events, items, sample_rows=sample_rows)
    if out is None:
        typer.echo(config, nl=False)
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(config)
    except FileExistsError:
        raise InputError(
            f"{out} is there already", expected="a name that is free", do="remove it, or choose another name for -o"
        ) from None
    _say(f"a first config: {out}")


@app.command(
    epilog=_examples("recsys ingest -c pipelines/sample.toml", "recsys ingest -c shop.toml --json | jq .drift")
)
def ingest(
    config: ConfigOption,
    overrides: SetOption = None,
    force: ForceOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the data report as JSON to stdout.")] = False,
) -> None:
    """Check the log and write the dataset.

    Bad rows are put aside with a reason; users, items, sequences and their split are what every later stage reads. The
    data report tells what the data is like, and warns of what has changed since the run before.
    """
    from recsys.ingest.report.report import JSON, PAGE

    run = _run_stage("ingest", config, overrides, force=force)
    report = json.loads((run.path / JSON).read_text(encoding="utf-8"))
    for alarm in report["drift"]["alarms"]:
        _say(f"! {alarm['words']}")
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False))
    else:
        typer.echo(f"open the data report: {run.path / PAGE}")


_stage_command("teach", "Fine-tune the cross-encoder. It reads a user's history and a candidate item together.")
_stage_command(
    "score", "Write the teacher's scores as soft labels. They are all that the student learns of the teacher."
)
_stage_command("distill", "Train the two-tower student. It learns from the log and from the soft labels.")
_stage_command("index", "Put the item vectors into a FAISS index. Its recall is measured against exact search.")
_stage_command("rank", "Learn to order candidates of several sources. The model that is best on validation is kept.")


@app.command(
    epilog=_examples(
        "recsys recommend -c pipelines/sample.toml",
        "recsys recommend -c shop.toml --set recommend.k=20 --set recommend.diversity=0.2",
        """recsys recommend -c shop.toml --set 'recommend.blocked_brands=["Acme"]' --set 'recommend.formats=["csv"]'""",
    )
)
def recommend(config: ConfigOption, overrides: SetOption = None, force: ForceOption = False) -> None:
    """Write a list of items for every user.

    Seen and out-of-stock items are left out, and what other rules forbid ([recommend] in the config); each item has a
    reason.
    """
    run = _run_stage("recommend", config, overrides, force=force)
    for rule in run.recommendations.manifest["info"]["rules_without_items"]:
        _say(f"! the catalogue has nothing that recommend.{rule} could mean")


@app.command(
    epilog=_examples(
        "recsys evaluate -c pipelines/sample.toml",
        "recsys evaluate -c pipelines/sample.toml --json | grep ndcg",
        "recsys evaluate -c pipelines/sample.toml --recs lists_of_another_system.parquet",
    )
)
def evaluate(
    config: ConfigOption,
    overrides: SetOption = None,
    force: ForceOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per figure to stdout.")] = False,
    recs: Annotated[
        Path | None,
        typer.Option(help="Measure these lists instead: Parquet with user_id, item_id and rank or score."),
    ] = None,
    with_seen: Annotated[
        bool, typer.Option("--with-seen", help="With --recs: keep items of the history in lists and targets.")
    ] = False,
) -> None:
    """Measure all models and write the report.

    Student, teacher and baselines rank the whole catalogue for the users of the test part. With --recs, lists of any
    system are measured on the same users and targets; nothing is written.
    """
    if recs is not None:
        _evaluate_lists(recs, load_config(config, overrides or []), seen_filtered=not with_seen, as_json=as_json)
        return
    evaluated = _run_stage("evaluate", config, overrides, force=force)
    if as_json:
        for row in evaluated.report.rows:
            typer.echo(json.dumps(asdict(row), ensure_ascii=False))
    else:
        typer.echo(f"open the report: {evaluated.folder('evaluate') / evaluated.report.html.name}")


@app.command(
    epilog=_examples(
        "recsys baselines -c pipelines/sample.toml",
        "recsys baselines -c shop.toml --set baselines.budget_seconds=3600 && recsys evaluate -c shop.toml",
    )
)
def baselines(
    config: ConfigOption,
    overrides: SetOption = None,
    force: ForceOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per trial to stdout.")] = False,
) -> None:
    """Find the baselines' best parameters on the validation part.

    Each starts with its defaults and tries others until the time is spent ([baselines] in the config). The next report
    takes what was best; the test part is not read.
    """
    from recsys import pipeline
    from recsys.evaluation.tuning import best

    tuning = pipeline.tune_baselines(load_config(config, overrides or []), force=force)
    if as_json:
        for trial in tuning.trials:
            typer.echo(json.dumps(asdict(trial), ensure_ascii=False))
    else:
        defaults = {trial.baseline: trial for trial in reversed(tuning.trials)}  # the first of each
        typer.echo(f"{'validation NDCG@10':<24}{'default':>9}{'best':>9}{'trials':>8}  parameters")
        for name, trial in best(tuning.trials).items():
            n = sum(each.baseline == name for each in tuning.trials)
            said = " ".join(f"{key}={value:g}" for key, value in trial.parameters.items())
            typer.echo(f"{name:<24}{defaults[name].ndcg_at_10:>9.4f}{trial.ndcg_at_10:>9.4f}{n:>8}  {said}".rstrip())
    for name, reason in tuning.left_out.items():
        _say(f"! {name} was left out: {reason}")


def _evaluate_lists(path: Path, config: PipelineConfig, *, seen_filtered: bool, as_json: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from recsys.api import Run
    from recsys.errors import InputError
    from recsys.evaluation.lists import score_lists

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}",
            expected="a table of user_id, item_id and rank or score",
            do="correct --recs",
        ) from None
    dataset = Run(config.run_dir).dataset
    scores = score_lists(
        table,
        dataset,
        ks=config.evaluate.ks,
        seen_filtered=seen_filtered,
        only_next=config.evaluate.targets == "next",
        repurchases=config.evaluate.repurchases,
    )
    said = {"protocol": dataset.protocol, "seen_filtered": seen_filtered, "users": scores.counts["users"]}
    for name, value in scores.means.items():
        typer.echo(json.dumps({"metric": name, "value": value} | said) if as_json else f"{name:<18}{value:.4f}")
    for name, count in scores.counts.items():
        _say(f"{name.replace('_', ' ')} {count:,}")


@app.command(epilog=_examples("recsys audit -c pipelines/sample.toml", "recsys audit -c shop.toml --json | jq .name"))
def audit(
    config: ConfigOption,
    overrides: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per check.")] = False,
) -> None:
    """Look for leaks in a run's dataset, and in its soft labels and lists where it has any.

    Future events in training, targets inside features, events on both sides of a cut, ties in the order of ids, items
    unknown at the time: each found or not found, with counts. Exit code 1 if there is a leak.
    """
    from recsys.api import Run
    from recsys.evaluation import audit as auditing

    run = Run(load_config(config, overrides or []).run_dir)
    made = {stage: (run.folder(stage) / "manifest.json").exists() for stage in ("score", "recommend")}
    findings = auditing.audit(
        run.dataset,
        soft_labels=run.soft_labels if made["score"] else None,
        recommendations=run.recommendations if made["recommend"] else None,
    )
    if as_json:
        for finding in findings:
            typer.echo(json.dumps(asdict(finding), ensure_ascii=False, default=str))
    else:
        typer.echo(auditing.to_text(findings))
    raise typer.Exit(auditing.exit_code(findings))


@app.command(
    epilog=_examples(
        "recsys compare runs/before runs/after",
        "recsys compare runs/* --metric ndcg --metric recall -k 20 --json",
    )
)
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="Run folders; the first is compared with.")],
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="ndcg and recall by default. May be repeated.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Length of the lists; one of the runs' evaluate.ks.")] = 10,
    model: Annotated[str, typer.Option(help="Whose figures: student, teacher or a baseline.")] = "student",
    with_seen: Annotated[bool, typer.Option("--with-seen", help="Lists that may repeat items of the history.")] = False,
    resamples: Annotated[int, typer.Option(min=100, help="Draws of the bootstrap and of the test.")] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per figure.")] = False,
) -> None:
    """Put runs side by side.

    Each run's report has a value for every user; users are paired, differences have intervals, and a second test with a
    correction for many comparisons gives the verdict.
    """
    from recsys.evaluation.compare import compare as put_side_by_side

    found = put_side_by_side(
        runs,
        model=model,
        metrics=metrics or ["ndcg", "recall"],
        k=k,
        seen_filtered=not with_seen,
        n_resamples=resamples,
    )
    if as_json:
        for row in found.to_rows():
            typer.echo(json.dumps(row, ensure_ascii=False))
        for note in found.notes:
            _say(f"! {note}")
    else:
        typer.echo(found.to_text())


@app.command(
    epilog=_examples(
        "recsys folds -c pipelines/sample.toml",
        "recsys folds -c shop.toml --folds 4 --tune --json | grep difference",
    )
)
def folds(
    config: ConfigOption,
    overrides: SetOption = None,
    n_folds: Annotated[int, typer.Option("--folds", min=2, help="Test windows, one before the other.")] = 3,
    tune: Annotated[bool, typer.Option("--tune", help="Find the baselines' best parameters in every fold.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per figure.")] = False,
) -> None:
    """Run everything for several test windows.

    The first is the config's own; each other one ends where the one after it begins, and knows nothing of what came
    later. The table says whether a verdict holds in more weeks than one. What is up to date is not done again.
    """
    from recsys.folds import run_folds

    found = run_folds(load_config(config, overrides or []), n_folds, tune=tune, say=_say)
    if as_json:
        for row in found.to_rows():
            typer.echo(json.dumps(row, ensure_ascii=False))
    else:
        typer.echo(found.to_text())


@app.command(
    epilog=_examples(
        "recsys nightly -c shop.toml",
        "recsys nightly -c shop.toml --accept-data",
        "recsys nightly -c shop.toml --as-of 2026-11-26T02:00:00Z --json | jq .reasons",
    )
)
def nightly(
    config: ConfigOption,
    overrides: SetOption = None,
    as_of: Annotated[
        str | None, typer.Option(metavar="MOMENT", help="What the night is for, in ISO 8601; now by default.")
    ] = None,
    accept_data: Annotated[
        bool, typer.Option("--accept-data", help="Go on though the data checks hold the night: the change is real.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the night's record as JSON to stdout.")] = False,
) -> None:
    r"""Do tonight's work, and let the new model go live if it is not worse.

    What is new is read and checked; the student goes on from the live one, the teacher is taught in its own rhythm. On
    the fresh window the challenger is compared with the champion and with simple baselines. RUN_DIR/live leads to the
    night that is served. A night that was killed is taken up.

    \b
    Exit codes:
      0  promoted: the new model is live
      3  kept out by the gate; what was live is live
      4  held by the data checks; nothing was trained
      5  another job of this shop is running
      1  failed (2: for what was given, or a full disk); what was live is live
    """
    from recsys.nightly.run import nightly as do_night

    night = do_night(load_config(config, overrides or []), as_of=_moment(as_of), accept_data=accept_data, say=_say)
    if as_json:
        typer.echo(json.dumps(night.model_dump(mode="json"), ensure_ascii=False))
    raise typer.Exit(night.exit_code)


def _moment(text: str | None) -> datetime | None:
    from recsys.errors import InputError

    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            f"--as-of {text!r} is no moment", expected="ISO 8601, such as 2026-11-26T02:00:00Z", do="write it so"
        ) from None


@app.command(epilog=_examples("recsys nights -c shop.toml", "recsys nights -c shop.toml --json | jq .metrics"))
def nights(
    config: ConfigOption,
    overrides: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per night.")] = False,
) -> None:
    """List the nights of a shop, the latest first.

    Which one is live, which can be returned to, and what kept others out.
    """
    from recsys.nightly import night

    run_dir = load_config(config, overrides or []).run_dir
    found = night.load_nights(run_dir)
    if as_json:
        for each in reversed(found):
            typer.echo(json.dumps(each.model_dump(mode="json"), ensure_ascii=False))
    else:
        typer.echo(night.table(found, night.live_name(run_dir)))


@app.command(epilog=_examples("recsys rollback -c shop.toml", "recsys rollback 2026-11-24T020000Z -c shop.toml"))
def rollback(
    config: ConfigOption,
    night: Annotated[str | None, typer.Argument(help="A kept night; by default the one before the live one.")] = None,
    overrides: SetOption = None,
) -> None:
    """Make the model of an earlier night live again, in one step.

    The next night competes with it. `recsys nights` lists those that are kept.
    """
    from recsys.nightly.night import rollback as return_to

    run_dir = load_config(config, overrides or []).run_dir
    _say(f"live: night {return_to(run_dir, night).name}")


@app.command(
    epilog=_examples(
        "recsys validate -c shop.toml",
        "RECSYS_DATA=/mnt/shop recsys validate -c shop.toml --set distill.epochs=3",
    )
)
def validate(config: ConfigOption, overrides: SetOption = None) -> None:
    """Check a config and print it as resolved.

    The log and the catalogue are opened and checked too: columns, event types, titles. Nothing is written.
    """
    from recsys import pipeline

    resolved = load_config(config, overrides or [])
    pipeline.validate(resolved)
    typer.echo(to_toml(resolved), nl=False)


@app.command(epilog=_examples("recsys doctor"))
def doctor() -> None:
    """Say what this machine offers.

    Versions, device, precision, threads, memory, disk and the bundled encoder; "!" marks what is short.
    """
    from recsys.doctor import examine

    for finding in examine():
        typer.echo(f"{'' if finding.ok else '! ':>2}{finding.name:<15} {finding.value}")
