"""The nights of a shop: their records, which one is live, and who may write.

    <run_dir>/live -> nights/2026-11-26T020000Z     what readers open
    <run_dir>/nights/<night>/                       a run folder, and night.json
    <run_dir>/nights/<night>/renewed/               a run folder: the lists of a night that was kept out, by the model
                                                    that was live
    <run_dir>/nights/staged/                        the log's files as they were read, for all nights
    <run_dir>/nightly.lock                          held by the job that runs

A night's folder is complete in itself: what it takes over from the night before are hard links. Nothing in it is
changed once it is promoted, and `live` is one symbolic link, so whoever follows it once reads lists, index and student
of one night.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, TextIO

from pydantic import BaseModel, ConfigDict, ValidationError

from recsys.artifacts import write_json
from recsys.config import LIVE
from recsys.errors import AlreadyRunningError, InputError, RecsysError
from recsys.nightly.gate import ListFigures, Reason

NIGHTS: Final = "nights"
NIGHT_FILE: Final = "night.json"
LOCK_FILE: Final = "nightly.lock"
STAGED: Final = "staged"
RENEWED: Final = "renewed"

# running: under way, or killed; abandoned: killed, and too long ago to be taken up.
State = Literal["running", "promoted", "kept_out", "held", "failed", "abandoned"]
ENDED: Final = ("promoted", "kept_out", "held")
EXIT_CODES: Final[dict[str, int]] = {"promoted": 0, "kept_out": 3, "held": 4, "failed": 1}


class StageRecord(BaseModel):
    """What a stage of a night did: seconds by the clock, and the most memory that the process held (MiB)."""

    stage: str
    did: str
    seconds: float
    peak_mb: float
    tries: int = 1


class Night(BaseModel):
    """One night, as `night.json` has it.

    Attributes:
        name: of its folder: the moment that it is for.
        as_of: that moment; nothing later enters it.
        state: how far it came.
        started: when it was begun.
        ended: when it came to its state.
        starts: how many processes worked on it.
        champion: the night that was live when it began.
        kept: whether its artifacts are still there.
        stages: what was done, in order.
        reached: the last step that stands, where the night is done in parts.
        notes: what a reader should know, such as nights that are missing.
        figures: what the data checks looked at.
        findings: what they found.
        drift: how far the student moved from the champion.
        metrics: figures of the fresh window, by model.
        lists: what the lists are like.
        reasons: what the gate looked at.
        error: why it failed.
        teacher_as_of: the moment of the night that the teacher was taught in.
        renews: where the gate kept its own model out and it serves lists even so: the night whose model they are by.
    """

    model_config = ConfigDict(extra="ignore")

    name: str
    as_of: datetime
    state: State = "running"
    started: datetime
    ended: datetime | None = None
    starts: int = 1
    champion: str | None = None
    kept: bool = True
    stages: list[StageRecord] = []
    reached: str | None = None
    notes: list[str] = []
    figures: dict[str, float] = {}
    findings: list[dict[str, Any]] = []
    drift: dict[str, float] = {}
    metrics: dict[str, float] = {}
    lists: ListFigures | None = None
    reasons: list[Reason] = []
    error: str | None = None
    teacher_as_of: datetime | None = None
    renews: str | None = None

    @property
    def exit_code(self) -> int:
        """What `recsys nightly` exits with: 0 promoted, 3 kept out by the gate, 4 held by the data checks, 1 failed."""
        return EXIT_CODES.get(self.state, 1)

    @property
    def can_be_served(self) -> bool:
        """Whether it has lists that were found fit to be served."""
        return self.state == "promoted" or (self.state == "kept_out" and self.renews is not None)

    @property
    def model(self) -> str:
        """The night that made the model that it serves."""
        return self.renews or self.name

    @property
    def against(self) -> list[str]:
        """What kept it out or held it, a sentence each."""
        held = [str(finding["message"]) for finding in self.findings if finding["level"] == "hold"]
        return held + [reason.message for reason in self.reasons if reason.passed is False]


def name_of(as_of: datetime) -> str:
    """The name of a night's folder, by the second; in the order of names nights are in the order of time."""
    return f"{as_of.astimezone(UTC):%Y-%m-%dT%H%M%SZ}"


def folder_of(run_dir: Path, name: str) -> Path:
    """Where a night lies."""
    return run_dir / NIGHTS / name


def served_folder(run_dir: Path, night: Night) -> Path:
    """The run folder that is live when a night is."""
    folder = folder_of(run_dir, night.name)
    return folder if night.renews is None else folder / RENEWED


def save(run_dir: Path, night: Night) -> None:
    """Write its record, whole or not at all."""
    folder = folder_of(run_dir, night.name)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NIGHT_FILE, night.model_dump(mode="json"))


def load_nights(run_dir: Path) -> list[Night]:
    """All nights with a readable record, the earliest first."""
    found = []
    for file in sorted((run_dir / NIGHTS).glob(f"*/{NIGHT_FILE}")):
        with contextlib.suppress(OSError, ValueError):
            found.append(Night.model_validate(json.loads(file.read_text())))
    return sorted(found, key=lambda night: night.as_of)


def live_name(run_dir: Path) -> str | None:
    """The name of the night that is live; None before the first one was promoted."""
    link = run_dir / LIVE
    return link.readlink().parts[1] if link.is_symlink() else None


def live_night(run_dir: Path) -> Night | None:
    """The record of the night that is live.

    Raises:
        RecsysError: the link leads nowhere, or the record cannot be read.
    """
    name = live_name(run_dir)
    if name is None:
        return None
    file = folder_of(run_dir, name) / NIGHT_FILE
    try:
        return Night.model_validate(json.loads(file.read_text()))
    except (OSError, ValueError, ValidationError) as error:
        raise RecsysError(
            f"the night that is live cannot be read: {file}: {str(error).splitlines()[0]}\n"
            "  to do:    return to another one: `recsys rollback`"
        ) from None


@contextmanager
def lock(run_dir: Path, now: datetime) -> Iterator[str | None]:
    """Be the only nightly job of a shop.

    The kernel holds the lock and drops it with the process, however that ends, so it is never stale: what stands in the
    file is for people. That holds between hosts too where the file system passes `flock` on (NFS of Linux does; the
    lock of a host that is gone falls when its lease ends).

    Args:
        run_dir: of the shop.
        now: what the clock says.

    Yields:
        Who held the lock before and did not give it back, because it was killed; None if nobody.

    Raises:
        AlreadyRunningError: another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK_FILE).open("a+") as file:
        held_by = _read(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError(
                f"a nightly job of {run_dir} is running: {held_by or 'nobody knows who'}\n"
                "  to do:    wait until it ends, or end it: what it has finished is taken up"
            ) from None
        held_by = _read(file)
        _write(file, f"process {os.getpid()} on {socket.gethostname()}, since {now.isoformat(timespec='seconds')}\n")
        try:
            yield held_by
        finally:
            _write(file, "")


def promote(run_dir: Path, folder: Path, *, instead_of: str | None) -> bool:
    """Let `live` lead to a run folder, in one step that a reader or a kill sees done or not done.

    Args:
        run_dir: of the shop.
        folder: of a night, as `served_folder` has it.
        instead_of: the night that must be live now.

    Returns:
        False, and nothing is changed, if another one is live: somebody returned to an earlier model meanwhile.
    """
    with _swapping(run_dir):
        if live_name(run_dir) != instead_of:
            return False
        _swap(run_dir, folder)
    return True


def rollback(run_dir: Path, to: str | None = None) -> Night:
    """Let `live` lead to a kept night again. It does not wait for a job that runs; that one will notice.

    Args:
        run_dir: of the shop.
        to: the night's name; by default the one that was promoted before the live model was.

    Returns:
        The night that is live now.

    Raises:
        InputError: there is no such night, it has nothing to serve, or its artifacts are not whole.
    """
    with _swapping(run_dir):
        name = live_name(run_dir)
        kept = {night.name: night for night in load_nights(run_dir) if night.kept and night.can_be_served}
        if to is None:
            model = kept[name].model if name in kept else name
            promoted = [night.name for night in kept.values() if night.state == "promoted"]
            to = max((each for each in promoted if model is None or each < model), default=None)
        if to is None or to not in kept:
            raise InputError(
                f"no night before {name} is kept" if to is None else f"no model of the night {to} is kept",
                expected=f"one of {', '.join(kept)}" if kept else "a night that was promoted; none is kept",
                do="name one of them (`recsys nights` lists all)",
            )
        folder = served_folder(run_dir, kept[to])
        check_whole(folder)
        _swap(run_dir, folder)
    return kept[to]


def check_whole(folder: Path) -> None:
    """Open what a run folder serves.

    Raises:
        InputError: something is missing, truncated or unreadable.
    """
    from recsys.api import Run

    run = Run(folder)
    _ = run.config, run.dataset, run.student, run.index, run.recommendations


def remove_old(run_dir: Path, *, keep: int, keep_days: float | None, keep_others: int, now: datetime) -> list[str]:
    """Remove the artifacts of nights that are no longer kept; their records stay.

    The live night stays, and so does the one that was served before it, from which readers may still be reading.

    Args:
        run_dir: of the shop.
        keep: promoted nights to keep, the latest first.
        keep_days: of these, older ones go; None keeps them.
        keep_others: nights that ended otherwise to keep.
        now: what the clock says.

    Returns:
        The names of the nights whose artifacts were removed.
    """
    live, nights = live_name(run_dir), load_nights(run_dir)
    promoted = [night for night in reversed(nights) if night.state == "promoted"]
    others = [night for night in reversed(nights) if night.state not in ("promoted", "running")]
    staying = {night.name for night in [*promoted[:keep], *others[:keep_others]]}
    if keep_days is not None:
        oldest = now - timedelta(days=keep_days)
        staying -= {night.name for night in promoted if night.as_of < oldest}
    before_live = [night.name for night in reversed(nights) if night.can_be_served and night.name < (live or "")]
    staying |= {night.name for night in nights if night.state == "running"} | {live or "", *before_live[:1]}
    removed = []
    for night in nights:
        folder = folder_of(run_dir, night.name)
        if night.name in staying or night.name == live_name(run_dir):
            continue
        if night.kept:  # said before it is done, so that a kill in between leaves no model that is half there
            night.kept = False
            save(run_dir, night)
            removed.append(night.name)
        for each in folder.iterdir():
            if each.name != NIGHT_FILE:
                shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
    return removed


def take_over(source: Path, target: Path) -> None:
    """Make an artifact part of another night: the same files under a second name, or copies where links are not made.

    Args:
        source: the artifact's link in the one night's folder.
        target: the artifact's link in the other's, which must not exist.
    """
    version = source.resolve()
    beside = target.parent / "versions" / version.name
    unfinished = beside.with_name(f".{beside.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(beside, ignore_errors=True)
    beside.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(version, unfinished, copy_function=_link_or_copy)
    unfinished.rename(beside)
    link = target.with_name(f".{target.name}.{os.getpid()}.link")
    link.unlink(missing_ok=True)
    link.symlink_to(beside.relative_to(target.parent))
    link.replace(target)


def table(nights: Sequence[Night], live: str | None) -> str:
    """The nights for a terminal, the latest first."""
    lines = [("night", "state", "kept", "minutes", "what")]
    for night in reversed(nights):
        said = night.error or "; ".join(night.against) or ", ".join(f"{k} {v:.4f}" for k, v in night.metrics.items())
        minutes = sum(stage.seconds for stage in night.stages) / 60
        state = "live" if night.name == live else night.state.replace("_", " ")
        first = said.splitlines()[0] if said else ""
        lines.append((night.name, state, "yes" if night.kept else "", f"{minutes:.1f}", first))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in lines)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _read(file: TextIO) -> str | None:
    file.seek(0)
    return file.read().strip() or None


def _write(file: TextIO, text: str) -> None:
    # A full disk must not keep the job from running: the lock is the kernel's, the text only says whose it is.
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(text)
        file.flush()


@contextmanager
def _swapping(run_dir: Path) -> Iterator[None]:
    """Only one process at a time moves the link; the others wait the moment that it takes."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / f".{LIVE}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _swap(run_dir: Path, folder: Path) -> None:
    for path in (folder / "versions", folder, folder.parent, run_dir / NIGHTS):
        _sync(path)
    link = run_dir / f".{LIVE}.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.relative_to(run_dir))
    link.replace(run_dir / LIVE)
    _sync(run_dir)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
