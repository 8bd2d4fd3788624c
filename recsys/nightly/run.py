"""The nightly job: one call for one night."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from recsys import distributed, pipeline
from recsys.api import Run
from recsys.config import STAGES, PipelineConfig
from recsys.errors import InputError, RecsysError
from recsys.nightly import night as nights
from recsys.nightly.alerts import alert, check_alerts
from recsys.nightly.budget import within
from recsys.nightly.checks import Finding, check_data, profile
from recsys.nightly.config import StageBudget
from recsys.nightly.drift import drift
from recsys.nightly.faults import damaged, is_transient
from recsys.nightly.figures import headline, list_figures, measured, served
from recsys.nightly.gate import Measured, Reason, check_lists, data_are_as_usual, judge
from recsys.nightly.history import write_history
from recsys.nightly.night import Night, StageRecord
from recsys.nightly.renew import TAUGHT_FILE, renew

if TYPE_CHECKING:
    from recsys.evaluation.scorers import Champion
    from recsys.student.model import Student

HISTORY_FILE: Final = "history.html"
# Stages of a night: those of a run, and what is done only here.
NIGHT_STAGES: Final = (
    "ingest",
    "check",
    "texts",
    "teach",
    "score",
    "distill",
    "index",
    "rank",
    "recommend",
    "drift",
    "evaluate",
    "gate",
    "renew",  # only where the gate keeps the challenger out
)
STEPS: Final = (*NIGHT_STAGES, "promote")
# A teacher is due a little early rather than a day late, since no two nights begin at the same second.
_SLACK: Final = timedelta(hours=6)
_WEEK: Final = 7
# Nights that lie further apart than this have one missing between them.
_ONE_NIGHT: Final = timedelta(hours=36)
# What decides the shape of a student's weights; another shape cannot start from them.
_SHAPE: Final = (
    "dim",
    "encoder",
    "heads",
    "id_rows",
    "item_features",
    "layers",
    "max_history",
    "time_gaps",
    "use_text",
)


def _now() -> datetime:
    return datetime.now(UTC)


def nightly(
    config: PipelineConfig,
    *,
    as_of: datetime | None = None,
    accept_data: bool = False,
    since: str = STEPS[0],
    until: str = STEPS[-1],
    progress: bool = True,
    say: Callable[[str], None] = print,
    now: Callable[[], datetime] = _now,
    pause: Callable[[float], None] = time.sleep,
) -> Night:
    """Do one night: take in what is new, make a challenger, and let it go live if the gate lets it.

    A night is the ordinary stages with the ordinary artifacts, in a run folder of its own below `<run_dir>/nights`. Its
    log is closed at `as_of`. What it takes over (the student's weights, the teacher, text vectors) it takes from the
    night that is live, so that whatever was kept out or held leaves no trace. The challenger is trained on what lies
    before the fresh window and goes live as it was measured: it is not trained again on the window, because then nobody
    would have measured what is served, and the next champion would have seen part of the next window. Histories are
    read to their end when lists are made.

    Whatever happens, `<run_dir>/live` leads to a whole night: the one before, until the last step of this one. A night
    that was killed or failed is taken up by the next call, if that comes soon (`nightly.resume_hours`).

    Args:
        config: of the shop; `run_dir` is the shop's folder.
        as_of: the moment that the night is for, to the second; by default now. A night of that moment that has come to
            its end is returned as it is.
        accept_data: go on though the data checks hold the night: a change in the data is real. A held night is taken
            up.
        since: the first of `STEPS` to do, for an orchestrator that calls for one part after the other. The steps before
            it must stand as an earlier call left them.
        until: the last one; before "promote" the night stays open, in the state "running".
        progress: draw progress bars on a terminal.
        say: takes one line per step.
        now: the clock.
        pause: waits so many seconds before a stage is tried again.

    Returns:
        The night: promoted, kept out by the gate, held by the data checks, or open.

    Raises:
        AlreadyRunningError: another job of this shop is running.
        InputError: the config has no nights, a step before `since` is not done, or something in the input cannot
            be used.
        RecsysError: the clock is behind the live night, or a stage failed. The record tells why, and an alert was sent.
    """
    _check(config)
    with nights.lock(config.run_dir, now()) as killed:
        if killed:
            say(f"! the job before did not come to its end: {killed}")
        _recover(config, now())
        try:
            live = nights.live_night(config.run_dir)
            night = _begin(config, as_of, live, now(), accept_data=accept_data, since=since)
        except RecsysError as error:
            alert(config.nightly.alerts, subject=f"{config.name}: the night could not begin", lines=[str(error)])
            raise
        if night.state != "running":
            say(f"the night {night.name} has come to its end: {night.state.replace('_', ' ')}")
            return night
        steps = STEPS[STEPS.index(since) : STEPS.index(until) + 1]
        # Not `live`, which may have moved since the night began.
        champion = next((each for each in nights.load_nights(config.run_dir) if each.name == night.champion), None)
        job = _Job(
            config, night, champion, steps, progress=progress, say=say, now=now, pause=pause, accept_data=accept_data
        )
        try:
            job.run()
        except BaseException as error:
            # The record and the alert are worth a try even where the disk is full.
            with contextlib.suppress(OSError):
                job.end("failed", error=str(error) or type(error).__name__)
            raise
        finally:
            if night.state != "running":
                _tell(config, night)
                _tidy(config, night, say)
    return night


def _check(config: PipelineConfig) -> None:
    """Refuse a config that has no nights.

    Raises:
        InputError: see there.
    """
    check_alerts(config.nightly.alerts)
    ingest, gate = config.ingest, config.nightly.gate
    if ingest.protocol != "temporal" or ingest.train_until is not None or ingest.as_of is not None:
        raise InputError(
            "ingest.protocol, train_until, valid_until or as_of fix a split that does not move from night to night",
            expected='ingest.protocol = "temporal" with ingest.test_days and ingest.valid_days, and no as_of',
            do="leave these keys out for the nightly job; `recsys nightly --as-of` names a moment",
        )
    unknown = sorted(set(config.nightly.budgets) - set(NIGHT_STAGES))
    if unknown:
        raise InputError(
            f"[nightly.budgets.{unknown[0]}] is no stage of a night",
            expected=f"one of {', '.join(NIGHT_STAGES)}",
            do="correct the name",
        )
    if config.score.ensemble:
        raise InputError(
            "score.ensemble names teachers of one dataset, and every night has its own",
            expected="no ensemble in the nightly job, which teaches its own teacher",
            do="leave score.ensemble out",
        )
    if distributed.world_size() > 1:
        raise InputError(
            "the nightly job was started by torchrun in several processes",
            expected="one process",
            do='start it alone; stages share work on Spark (engine = "spark")',
        )
    from recsys.evaluation.tuning import BASELINES

    for name in gate.baselines:
        if name not in BASELINES:
            raise InputError(
                f"nightly.gate.baselines names {name!r}",
                expected=f"some of {', '.join(BASELINES)}",
                do="correct the name",
            )


def _recover(config: PipelineConfig, now: datetime) -> None:
    """Set right the records of nights that were killed."""
    live = nights.live_name(config.run_dir)
    for night in nights.load_nights(config.run_dir):
        if night.state == "running":
            if night.name == live:
                night.state, night.ended = "promoted" if night.renews is None else "kept_out", now
                night.notes.append("killed just after its lists went live")
            elif not _is_young(night, config, now):
                night.state, night.ended = "abandoned", now
            else:
                continue
            nights.save(config.run_dir, night)


def _is_young(night: Night, config: PipelineConfig, now: datetime) -> bool:
    return abs(now - night.started) <= timedelta(hours=config.nightly.resume_hours)


def _begin(
    config: PipelineConfig, as_of: datetime | None, live: Night | None, now: datetime, *, accept_data: bool, since: str
) -> Night:
    """The night to do: a new one, one that was not finished, or one that is done."""
    known = nights.load_nights(config.run_dir)
    if as_of is None:
        open_states = ("running", "failed", "held") if accept_data else ("running", "failed")
        if known and known[-1].state in open_states and _is_young(known[-1], config, now):
            as_of = known[-1].as_of
        else:
            as_of = now
    as_of = (as_of.replace(tzinfo=UTC) if as_of.tzinfo is None else as_of.astimezone(UTC)).replace(microsecond=0)
    night = next((each for each in known if each.name == nights.name_of(as_of)), None)
    if night is not None and night.state in nights.ENDED and not (accept_data and night.state == "held"):
        return night
    if live is not None and as_of <= live.as_of:
        raise RecsysError(
            f"the night would be for {as_of.isoformat()}, and the live one is for {live.as_of.isoformat()}\n"
            "  expected: a later moment: the live model may have seen what the earlier one would be judged on\n"
            "  to do:    set the clock right, or return to an earlier night: `recsys rollback`"
        )
    first, standing = STEPS.index(since), _standing(night)
    if first > standing:
        raise InputError(
            f"the night {nights.name_of(as_of)} has not come as far as {since!r}",
            expected=f"the steps before it done; {STEPS[standing]!r} would be next",
            do="do them first, or the whole night again",
        )
    if night is None:
        night = Night(name=nights.name_of(as_of), as_of=as_of, started=now)
        if live is not None and as_of - live.as_of > _ONE_NIGHT:
            days = (as_of - live.as_of) / timedelta(days=1)
            night.notes.append(f"the night that is live is {days:.1f} days old")
    elif first == 0 or night.state != "running":
        night.starts += 1
        night.state, night.error, night.ended, night.kept = "running", None, None, True
    # From here on nothing stands any more, nor does what was found of it.
    if first <= STEPS.index("check"):
        night.findings = []
    if first <= STEPS.index("gate"):
        night.reasons, night.renews = [], None
    if first == 0:
        night.champion = None if live is None else live.name
    night.reached = STEPS[first - 1] if first else None
    nights.save(config.run_dir, night)
    return night


def _standing(night: Night | None) -> int:
    """How many of `STEPS` are done and need not be done again."""
    if night is None or night.reached is None or not night.kept:
        return 0
    if night.state == "held":
        return STEPS.index("check")
    if night.reached == "gate":  # whether it was kept out stands in its reasons; if not, there is nothing to renew
        return STEPS.index("promote")
    return STEPS.index(night.reached) + 1


@dataclass
class _Job:
    """One night under way."""

    config: PipelineConfig
    night: Night
    live: Night | None
    steps: Sequence[str]
    progress: bool
    say: Callable[[str], None]
    now: Callable[[], datetime]
    pause: Callable[[float], None]
    accept_data: bool

    @cached_property
    def folder(self) -> Path:
        return nights.folder_of(self.config.run_dir, self.night.name)

    @property
    def run_so_far(self) -> Run:
        """Tonight's artifacts, as far as they are there."""
        return Run(self.folder)

    @cached_property
    def champion(self) -> Run | None:
        """The live night's artifacts."""
        return None if self.live is None else Run(nights.served_folder(self.config.run_dir, self.live))

    @cached_property
    def tonight(self) -> PipelineConfig:
        """The shop's config with what is this night's."""
        config, as_of = self.config, self.night.as_of
        ingest = config.ingest.model_copy(update={"as_of": as_of, "incremental": True})
        recommend = config.recommend.model_copy(update={"as_of": config.recommend.as_of or as_of})
        chosen: dict[str, Any] = {"baselines": config.nightly.gate.baselines, "teacher_users": 0}
        evaluate = config.evaluate.model_copy(update=chosen)
        stages = {"ingest": ingest, "recommend": recommend, "evaluate": evaluate}
        return config.model_copy(update=stages | {"run_dir": self.folder})

    def run(self) -> None:
        """Its steps, each with its budget and its retries."""
        self.say(f"night {self.night.name}{f', start {self.night.starts}' if self.night.starts > 1 else ''}")
        if self.champion is not None:
            try:
                nights.check_whole(self.champion.path)
            except InputError as error:
                raise RecsysError(
                    f"the night that is live is not whole: {error.came}\n"
                    "  to do:    return to another one: `recsys rollback`"
                ) from None
        self._step("ingest", self._ingest)
        self._step("check", self._check_data)
        if any(finding["level"] == "hold" for finding in self.night.findings):
            self.end("held")
            return
        if self.tonight.distill.use_text:
            self._step("texts", self._texts)
        if self.tonight.use_teacher:
            self._step("teach", self._teach)
            self._step("score", self._score)
        self._step("distill", self._distill)
        self._step("index", lambda: self._pipeline("index"))
        if self.tonight.use_ranker:
            self._step("rank", lambda: self._pipeline("rank"))
        self._step("recommend", lambda: self._pipeline("recommend"))
        if self.champion is not None:
            champion = self.champion
            self._step("drift", lambda: self._drift(champion))
        self._step("evaluate", self._evaluate)
        self._step("gate", self._gate)
        if any(reason.passed is False for reason in self.night.reasons):
            if self.champion is not None and self.config.nightly.renew and data_are_as_usual(self.night.reasons):
                self._step("renew", self._renew)
                if self.night.renews is not None and not self._go_live():
                    self.night.renews = None
            self.end("kept_out")
            return
        if "promote" not in self.steps:
            self.night.reached = self.steps[-1]
            nights.save(self.config.run_dir, self.night)
            return
        self.end("promoted" if self._go_live() else "kept_out")

    def _go_live(self) -> bool:
        """Let `live` lead to this night's lists, if it still leads where it did when the night began."""
        folder = nights.served_folder(self.config.run_dir, self.night)
        nights.check_whole(folder)
        if nights.promote(self.config.run_dir, folder, instead_of=self.night.champion):
            return True
        moved = f"another night was made live meanwhile: {nights.live_name(self.config.run_dir)}"
        self.night.reasons.append(Reason("live", False, moved))
        return False

    def end(self, state: nights.State, error: str | None = None) -> None:
        """Write down how it ended, and say it."""
        self.night.state, self.night.error, self.night.ended = state, error, self.now()
        for line in [*self.night.notes, *self.night.against]:
            self.say(f"! {line}")
        self.say(f"{state.replace('_', ' ')}: night {self.night.name}")
        nights.save(self.config.run_dir, self.night)

    def _step(self, stage: str, work: Callable[[], str]) -> None:
        if stage not in self.steps:
            return
        budget = self.config.nightly.budgets.get(stage, StageBudget())
        wait, tries = self.config.nightly.retry_seconds, 0
        usage, did = None, "failed"
        try:
            while True:
                tries += 1
                try:
                    with within(budget, stage) as usage:
                        did = work()
                except Exception as error:
                    if tries > self.config.nightly.retries or not is_transient(error):
                        raise
                    self.say(f"! {stage}: {str(error).splitlines()[0]}; once more in {wait:g} s")
                    self.pause(wait)
                    wait *= 2
                else:
                    return
        finally:
            if usage is not None:
                seconds, peak = round(usage.seconds, 3), round(usage.peak_bytes / 2**20, 1)
                record = StageRecord(stage=stage, did=did, seconds=seconds, peak_mb=peak, tries=tries)
                self.night.stages.append(record)
            if did != "failed":
                self.night.reached = stage
                nights.save(self.config.run_dir, self.night)

    def _pipeline(self, stage: str, config: PipelineConfig | None = None) -> str:
        """An ordinary stage. What a power cut left of its artifact is made again."""
        before, force = (self.folder / STAGES[stage]).resolve(), self._is_broken(stage)
        options: dict[str, Any] = {"progress": self.progress, "say": self.say, "force": force}
        artifact = pipeline.run_stage(stage, config or self.tonight, **options)
        return "up to date" if artifact.path == before else "done"

    def _is_broken(self, stage: str) -> bool:
        """Whether a stage's artifact is there and not whole, as a power cut may leave it."""
        if not (self.folder / STAGES[stage]).exists():
            return False
        try:
            _ = getattr(self.run_so_far, STAGES[stage])
        except InputError as error:
            self.say(f"! {error.came}: it is made again")
            return True
        return False

    def _ingest(self) -> str:
        from recsys.ingest.report.report import JSON as REPORT

        kept = self.config.run_dir / nights.NIGHTS / nights.STAGED
        kept.mkdir(exist_ok=True)
        for folder in damaged(kept / STAGES["ingest"]):
            self.say(f"! what was kept of a file of the log is damaged, and the file is read again: {folder.name}")
            shutil.rmtree(folder)
        report = self.folder / REPORT
        if self.champion is not None and not report.exists() and (self.champion.path / REPORT).exists():
            shutil.copyfile(self.champion.path / REPORT, report)  # what the data report compares with
        link = self.folder / nights.STAGED
        if not link.is_symlink():
            link.symlink_to(Path("..") / nights.STAGED)
        return self._pipeline("ingest")

    def _check_data(self) -> str:
        night, dataset = self.night, self.run_so_far.dataset
        before = [each for each in nights.load_nights(self.config.run_dir) if each.as_of < night.as_of and each.figures]
        last = before[-1] if before else None  # whatever became of it: one bad night must not tell of those after it
        night.figures = profile(
            dataset,
            since=None if last is None else last.as_of,
            previous=None if last is None else last.figures,
            now=night.as_of,
        )
        good = [each.figures for each in before if each.state in ("promoted", "kept_out")]
        findings = check_data(night.figures, good, self.config.nightly.checks)
        if self.accept_data and findings:
            night.notes.append(f"accepted: {'; '.join(finding.message for finding in findings)}")
            findings = []
        if not dataset.counts["test"]:
            message = (
                f"no event in the {self.tonight.ingest.test_days:g} days before {night.as_of.isoformat()}: there is "
                "nothing to judge a model on; is the clock right, and did the log come?"
            )
            findings.append(Finding("fresh_window", "hold", message, 0.0, 1.0, None))
        night.findings = [asdict(finding) for finding in findings]
        for finding in findings:
            self.say(f"! {finding.message}")
        return f"{len(findings)} findings"

    def _texts(self) -> str:
        from recsys.nightly.texts import carry_text_vectors
        from recsys.text import TextVectors, TextVectorsConfig

        out, before = self.folder / TextVectors.kind, None
        if self.champion is not None:
            with contextlib.suppress(InputError):  # what is not there or broken is encoded again
                before = self.champion.dataset, TextVectors.open(self.champion.path / TextVectors.kind)
        if out.exists():
            try:
                TextVectors.open(out)
            except InputError:
                out.unlink()  # the link: it is made again
        _, encoded = carry_text_vectors(
            self.run_so_far.dataset,
            before,
            TextVectorsConfig(encoder=self.tonight.distill.encoder),
            out,
            runtime=self.tonight.runtime(progress=self.progress),
        )
        return f"{encoded} encoded"

    def _teach(self) -> str:
        night, taught = self.night, self.folder / TAUGHT_FILE
        if self._teacher_is_young():
            assert self.champion is not None and self.live is not None and self.live.teacher_as_of is not None
            night.teacher_as_of = self.live.teacher_as_of
            nights.take_over(self.champion.folder("teach"), self.folder / STAGES["teach"])
            shutil.copyfile(self.champion.path / TAUGHT_FILE, taught)
            return f"of {night.teacher_as_of.isoformat()}"
        from recsys.teacher.rescore import save_taught

        did = self._pipeline("teach")
        save_taught(self.run_so_far.dataset, taught)
        night.teacher_as_of = night.as_of
        return did

    def _teacher_is_young(self) -> bool:
        """Whether the live night's teacher is there, fits, and is not due to be taught again."""
        taught = None if self.live is None else self.live.teacher_as_of
        if self.champion is None or taught is None:
            return False
        if self.night.as_of - taught >= timedelta(days=self.config.nightly.teach_days) - _SLACK:
            return False
        try:
            teacher, _ = self.champion.teacher, self.champion.soft_labels
        except InputError as error:
            self.say(f"! {error.came}: the teacher is taught again")
            return False
        same_types = self.champion.dataset.event_types == self.run_so_far.dataset.event_types
        return same_types and bool(teacher.manifest["config"] == self.tonight.teach.model_dump(mode="json"))

    def _score(self) -> str:
        if self.night.teacher_as_of == self.night.as_of:
            return self._pipeline("score")
        from recsys.teacher.rescore import score_changes

        assert self.champion is not None
        run, out = self.run_so_far, self.folder / STAGES["score"]
        labels = score_changes(
            run.dataset,
            run.teacher,
            self.folder / TAUGHT_FILE,
            self.champion.soft_labels,
            self.tonight.score,
            out,
            runtime=self.tonight.runtime(progress=self.progress),
            force=self._is_broken("score"),
        )
        self.say(f"{'score':<10} {labels.counts['scored']:,} of {labels.counts['rows']:,} rows are new")
        return f"{labels.counts['scored']} rows"

    def _distill(self) -> str:
        update: dict[str, Any] = {}
        if self.champion is not None and self._has_shape_of(self.champion.student):
            update = {"warm_start": self.champion.folder("distill"), **self.config.nightly.warm()}
        distill = self.tonight.distill.model_copy(update=update)
        return self._pipeline("distill", self.tonight.model_copy(update={"distill": distill}))

    def _has_shape_of(self, student: Student) -> bool:
        same = all(getattr(student.config, name) == getattr(self.tonight.distill, name) for name in _SHAPE)
        return same and student.manifest["info"]["n_event_types"] == len(self.run_so_far.dataset.event_types)

    def _drift(self, champion: Run) -> str:
        self.night.drift = drift(champion, self.run_so_far, seed=self.tonight.seed)
        return ", ".join(f"{name} {value:.3f}" for name, value in self.night.drift.items())

    def _evaluate(self) -> str:
        from recsys.evaluation.evaluate import evaluate

        run, out = self.run_so_far, self.folder / STAGES["evaluate"]
        report = evaluate(
            run.dataset,
            run.student,
            None,
            self.tonight.evaluate,
            out,
            ranker=run.ranker if self.tonight.use_ranker else None,
            text=run.text_vectors,
            champion=self._measured_champion(run),
            runtime=self.tonight.runtime(progress=self.progress),
            force=self._is_broken("evaluate"),
        )
        rows = headline(report, self.tonight)
        self.night.metrics = {model: float(values.mean()) for model, values in rows.items()}
        metric = f"{self.tonight.evaluate.primary_metric}@{self.tonight.evaluate.primary_k}"
        did = ", ".join(f"{model} {value:.4f}" for model, value in self.night.metrics.items())
        self.say(f"{'evaluate':<10} {metric}: {did}")
        return did

    def _measured_champion(self, run: Run) -> Champion | None:
        from recsys.evaluation.scorers import Champion

        if self.champion is None:
            return None
        before = self.champion
        ranker = before.ranker if before.config.use_ranker else None
        return Champion(
            before.student, ranker, before.dataset, run.dataset, self.tonight.runtime(progress=self.progress)
        )

    def _gate(self) -> str:
        from recsys.evaluation.report import NOT_BASELINES

        run, night = self.run_so_far, self.night
        lists = night.lists = list_figures(run)
        values = headline(run.report, self.tonight)
        models = measured(run.report, values, self.tonight)
        before = None if self.live is None else self.live.lists
        verdict = judge(
            Measured(**models[served(self.tonight)], lists=lists),
            Measured(**models["champion"], lists=before) if "champion" in models else None,
            {name: of for name, of in values.items() if name not in NOT_BASELINES},
            self.config.nightly.gate,
            usual=self._usual(),
            seed=self.tonight.seed,
        )
        night.reasons = list(verdict.reasons)
        for reason in verdict.reasons:
            mark = {True: "+", False: "−", None: "?"}[reason.passed]
            self.say(f"{'gate':<10} {mark} {reason.message}")
        return "promoted" if verdict.promoted else "kept out"

    def _renew(self) -> str:
        """Lists by the live model, from tonight's histories."""
        assert self.champion is not None and self.live is not None
        night, folder = self.night, self.folder / nights.RENEWED
        try:
            run = renew(self.champion, self.tonight, folder, progress=self.progress, say=self.say)
        except InputError as error:  # shop or config have changed beyond what this model can do
            night.notes.append(f"the live model cannot write tonight's lists: {error.came}")
            return "not possible"
        lists = list_figures(run)
        unfit = [each for each in check_lists(lists, self.live.lists, self.config.nightly.gate) if each.passed is False]
        if unfit:
            night.notes += [f"the live model's lists of tonight are not served: {each.message}" for each in unfit]
            return "not fit"
        night.lists, night.renews, night.teacher_as_of = lists, self.live.model, self.live.teacher_as_of
        night.notes.append(f"tonight's lists are by the model of {night.renews}")
        return f"{lists.users} users"

    def _usual(self) -> dict[str, list[float]]:
        """By model, the figures of the nights before that came as far as the gate, a week of them at most."""
        found: dict[str, list[float]] = {}
        for night in nights.load_nights(self.config.run_dir):
            if night.as_of < self.night.as_of and night.state in ("promoted", "kept_out"):
                for model, value in night.metrics.items():
                    found.setdefault(model, []).append(value)
        return {model: values[-_WEEK:] for model, values in found.items()}


def _tell(config: PipelineConfig, night: Night) -> None:
    """Send word where somebody should look."""
    warnings = [str(finding["message"]) for finding in night.findings if finding["level"] == "warn"]
    if night.state == "promoted" and not warnings:
        return
    subject = f"{config.name}: night {night.name} {night.state.replace('_', ' ')}"
    lines = [*([night.error] if night.error else []), *night.against, *night.notes, *warnings]
    alert(config.nightly.alerts, subject=subject, lines=lines)


def _tidy(config: PipelineConfig, night: Night, say: Callable[[str], None]) -> None:
    """Remove what is no longer kept and draw the page. Neither may undo a night."""
    policy = config.nightly
    try:
        removed = nights.remove_old(
            config.run_dir,
            keep=policy.keep,
            keep_days=policy.keep_days,
            keep_others=policy.keep_others,
            now=night.as_of,
        )
        if removed:
            say(f"removed the artifacts of {len(removed)} nights, the earliest {removed[0]}")
        live = nights.live_name(config.run_dir)
        write_history(nights.load_nights(config.run_dir), live, config.run_dir / HISTORY_FILE)
    except OSError as error:
        say(f"! the night is done, but old ones could not be removed or the page not be written: {error}")
