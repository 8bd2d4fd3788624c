"""The nightly job under fire: kills, faults, a reader beside it, and what a night takes.

    python benchmarks/nightly_faults.py                             # a table; most of an hour on two cores
    python benchmarks/nightly_faults.py --json                      # one line per figure
    python benchmarks/nightly_faults.py --only kills --kills 20     # four minutes
    python benchmarks/nightly_faults.py --only faults readers       # four minutes
    python benchmarks/nightly_faults.py --only stages --scales 1 --teacher off
    python benchmarks/nightly_faults.py --only stages --scales 10 --set distill.epochs=2 --set nightly.warm_epochs=1

All but `stages` is done on the sample shop with 200 items, 300 users and 9,000 events, whose log grows by a file a day.
Each trial works on a copy of it after two nights, and starts the `recsys` command in a process of its own.

* `kills`: `kill -9` at so many moments of the third night. Half of them are drawn evenly in the night's time, for half
  a stage is drawn first, so that short ones get their share too; `.in.*` counts where they came by what the night's
  record says. After each, what is live is opened and read (`torn`: it was not whole, or not of one run), every file of
  the nights before is compared with what it was (`lost`), and the night is started again (`not_recovered`: it did not
  end as promoted and live, or left scratch behind). `other_lists`: how often its lists were others than those of a
  night that nobody killed.
* `faults`: one at a time; beside the figures (1: all as expected) a table says what was served before, after, and when
  the fault was mended and the job started again.
* `readers`: a process promotes two nights in turn, 200 times, while this one opens what is live and reads all of it,
  over and over. `mixes` counts reads of parts of two nights, `errors` reads that failed.
* `stages`: seconds and peak memory of the process, by stage, for the night after the first one, of the sample shop
  (2,000 items, 5,000 users, 150,000 events, the settings of `pipelines/sample.toml`) and one ten times as large,
  without a teacher and with one. `first` is the night before it, which trains student and teacher from scratch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import tomli_w
from _common import Figure, arguments, at_most, report
from nightly_parts.shop import DAY, FIRST, Shop, check_served

from recsys.artifacts import MANIFEST
from recsys.errors import RecsysError
from recsys.nightly import night as nights
from recsys.nightly.night import Night

SECOND, THIRD = FIRST + DAY, FIRST + 2 * DAY
PARTS: Final = ("kills", "faults", "readers", "stages")
PROMOTIONS: Final = 200
SAMPLE: Final = {"n_items": 2_000, "n_users": 5_000, "n_events": 150_000}
SAMPLE_TOML: Final = Path(__file__).parents[1] / "pipelines" / "sample.toml"


def main() -> int:
    """Run the parts that are asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scales", nargs="+", type=int, default=[1, 10], help="sizes of `stages`, in sample shops")
    parser.add_argument("--teacher", nargs="+", choices=("off", "on"), default=["off", "on"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the config of `stages`")
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder in it goes away after)")
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("RECSYS_")]:
        del os.environ[name]  # would say where another shop's data is
    to, figures = sys.stderr if options.json else sys.stdout, list[Figure]()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        work = Path(folder)
        if set(options.only) - {"stages"}:
            shop = two_nights(work / "shop")
        if "kills" in options.only:
            figures += kills(shop, work, options.kills, options.seed)
        if "faults" in options.only:
            seen = faults(shop, work)
            print(in_columns([Seen.HEADER, *(each.row for each in seen)]), end="\n\n", file=to)
            figures += [each.figure for each in seen]
        if "readers" in options.only:
            figures += readers(shop, work)
        if "stages" in options.only:
            for scale in options.scales:
                for teacher in options.teacher:
                    found = stages(work / f"{scale}_{teacher}", scale, options.set, use_teacher=teacher == "on")
                    print(by_stage(found), end="\n\n", file=to)
                    figures += found
    return report(figures, as_json=options.json)


def two_nights(folder: Path) -> Shop:
    """The small shop after two nights, with the log of the third written."""
    shop = Shop.open(folder)
    for as_of in (FIRST, SECOND):
        if as_of > FIRST:
            shop.write_log(as_of)
        night = shop.night(as_of)
        if night.state != "promoted":
            raise RecsysError(f"the small shop's night {night.name} was not promoted: {'; '.join(night.against)}")
    shop.write_log(THIRD)
    return shop


@contextmanager
def copied(shop: Shop, folder: Path) -> Iterator[Shop]:
    """A copy to break, removed after."""
    try:
        yield shop.copy(folder / "copy")
    finally:
        shutil.rmtree(folder / "copy", ignore_errors=True)


def command(shop: Shop, *arguments: str) -> list[str]:
    """The `recsys` command for a shop."""
    return [sys.executable, "-m", "recsys", *arguments, "-c", str(shop.config_file)]


def nightly(shop: Shop, as_of: datetime = THIRD, *more: str) -> subprocess.CompletedProcess[str]:
    """The job, in a process of its own."""
    line = command(shop, "nightly", "--as-of", as_of.isoformat(), *more)
    return subprocess.run(line, capture_output=True, text=True, check=False)  # noqa: S603


# ---- kills ----------------------------------------------------------------------------------------------------------


def kills(shop: Shop, folder: Path, n: int, seed: int) -> list[Figure]:
    """Kill the third night at random moments and see what is left of it, of the nights before, and of what is live."""
    rng = np.random.default_rng(seed)
    with copied(shop, folder) as alone:
        segments = timed(alone)
        expected = lists_of(alone)
    stages = [stage for stage, _ in segments[1:-1]]
    before = {as_of: contents(shop, as_of) for as_of in (FIRST, SECOND)}
    count, came_in, seconds = Counter[str](), Counter[str](), list[float]()
    for trial in range(3 * n):
        if count["kills"] == n:
            break
        with copied(shop, folder) as killed:
            if not kill(killed, segments, rng, evenly=trial % 2 == 0):
                count["too_late"] += 1
                continue
            count["kills"] += 1
            stage, served = where(killed, stages), read(killed)
            came_in[stage] += 1
            count["torn"] += served not in (nights.name_of(SECOND), nights.name_of(THIRD))
            count["lost"] += any(contents(killed, as_of) != files for as_of, files in before.items())
            started = time.perf_counter()
            again = nightly(killed)
            seconds.append(time.perf_counter() - started)
            folder_of = nights.folder_of(killed.run_dir, nights.name_of(THIRD))
            recovered = again.returncode == 0 and read(killed) == nights.name_of(THIRD)
            count["not_recovered"] += not recovered or any(folder_of.glob("work/*-*"))
            count["lost"] += any(contents(killed, as_of) != files for as_of, files in before.items())
            count["other_lists"] += lists_of(killed) != expected
            print(f"kill {count['kills']} in {stage}: {served}, then exit {again.returncode}", file=sys.stderr)
            if not recovered:
                print(f"kill {count['kills']}: exit {again.returncode}\n{again.stderr}", file=sys.stderr)
    return [
        Figure("kills", count["kills"]),
        *(at_most(f"kills.{name}", count[name], 0) for name in ("torn", "lost", "not_recovered", "other_lists")),
        *(Figure(f"kills.in.{stage}", came_in[stage]) for stage in ("start", *stages, "promotion", "end")),
        Figure("kills.after_the_end", count["too_late"]),
        Figure("kills.next_start.median", median(seconds), "s"),
        Figure("kills.next_start.max", max(seconds), "s"),
    ]


def timed(shop: Shop) -> list[tuple[str, float]]:
    """A night that nobody kills: its stages and how long each takes, the process's start before them."""
    started = time.perf_counter()
    with begun(shop) as process:
        start = time.perf_counter() - started
        process.communicate()
    whole = time.perf_counter() - started
    night = shop.record(THIRD)
    if night.state != "promoted":
        raise RecsysError(f"the third night was not promoted: {'; '.join(night.against)}")
    segments = [("start", start), *((stage.stage, stage.seconds) for stage in night.stages)]
    return [*segments, ("promotion", max(whole - sum(seconds for _, seconds in segments), 0.05))]


@contextmanager
def begun(shop: Shop) -> Iterator[subprocess.Popen[str]]:
    """The third night under way: it has said its name."""
    line = command(shop, "nightly", "--as-of", THIRD.isoformat())
    with subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:  # noqa: S603
        assert process.stderr is not None
        for said in process.stderr:
            if said.startswith("night "):
                break
        yield process


def kill(shop: Shop, segments: Sequence[tuple[str, float]], rng: np.random.Generator, *, evenly: bool) -> bool:
    """Start the third night and kill it at a random moment; False if it had come to its end by then."""
    seconds = np.array([each for _, each in segments])
    drawn = rng.choice(len(segments), p=seconds / seconds.sum() if evenly else None)
    into = rng.uniform(0, seconds[drawn])
    if drawn == 0:
        line = command(shop, "nightly", "--as-of", THIRD.isoformat())
        process = subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # noqa: S603
        time.sleep(into)
        process.kill()
        return process.wait() < 0
    with begun(shop) as running:
        time.sleep(float(seconds[1:drawn].sum()) + into)
        running.kill()
    return running.returncode < 0


def where(shop: Shop, stages: Sequence[str]) -> str:
    """Which of its stages the killed night was at, as its record has it."""
    found = [night for night in nights.load_nights(shop.run_dir) if night.as_of == THIRD]
    if not found:
        return "start"
    if found[0].state != "running":
        return "end"
    done = {stage.stage for stage in found[0].stages}
    return next((stage for stage in stages if stage not in done), "promotion")


def read(shop: Shop) -> str:
    """What is live, opened and checked; what is wrong with it where it is torn."""
    try:
        return check_served(shop.run_dir)
    except Exception as error:
        return f"torn: {type(error).__name__}: {error}"


def contents(shop: Shop, as_of: datetime) -> dict[str, str]:
    """Every file of a night, with a digest of what is in it."""
    folder = nights.folder_of(shop.run_dir, nights.name_of(as_of))
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def lists_of(shop: Shop) -> list[tuple[Any, ...]]:
    """The lists of the third night: who is shown what, in which order, with which score."""
    from recsys.api import Run

    table = Run(nights.folder_of(shop.run_dir, nights.name_of(THIRD))).recommendations.table
    return sorted(zip(*(table[name].to_pylist() for name in ("user_id", "rank", "item_id", "score")), strict=True))


# ---- faults ---------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What a fault did.

    Attributes:
        fault: which.
        expected: exit code, and whether the night after the fault is served (else the one before).
        exits: of the job under the fault, and of the next start.
        served: before, after the fault, after the next start.
        word: the line that tells the user of it.
        wanted: what has to stand in it.
        then: what was done before the next start.
    """

    HEADER = ("fault", "exit", "served", "what the job says", "then", "exit", "served", "")

    fault: str
    expected: tuple[int, bool]
    wanted: str
    then: str
    exits: list[int] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    word: str = ""
    target: str = ""

    def start(self, shop: Shop, as_of: datetime = THIRD, *more: str, code: str | None = None) -> None:
        """Start the job, with `code` before it in its process."""
        self.served = self.served or [read(shop)]
        line = command(shop, "nightly", "--as-of", as_of.isoformat(), *more)
        if code is not None:
            line = [sys.executable, "-c", f"{code}\nimport sys, recsys.cli\nrecsys.cli.main()", *line[3:]]
        done = subprocess.run(line, capture_output=True, text=True, check=False)  # noqa: S603
        self.exits.append(done.returncode)
        self.served.append(read(shop))
        self.target = nights.name_of(as_of)
        if len(self.exits) == 1:
            lines = done.stderr.splitlines()
            said = [each for each in lines if each.startswith("recsys: ")] or [each for each in lines if each[0] == "!"]
            said = [each.removeprefix("recsys: ").removeprefix("! ") for each in said]
            self.word = next((each for each in said if self.wanted in each), said[0] if said else "")

    @property
    def ok(self) -> bool:
        """Whether all is as it should be, up to the night that ends well."""
        code, is_new = self.expected
        under = self.exits[0] == code and (self.served[1] != self.served[0]) == is_new
        return under and self.wanted in self.word and self.exits[-1] == 0 and self.served[-1] == self.target

    @property
    def row(self) -> tuple[str, ...]:
        """For a table."""
        days = [name[8:10] if name[0] == "2" else name for name in self.served]
        again = ("", "", "") if len(self.exits) == 1 else (self.then, str(self.exits[-1]), days[-1])
        verdict = "as expected" if self.ok else "NOT AS EXPECTED"
        return self.fault, str(self.exits[0]), f"{days[0]} → {days[1]}", self.word, *again, verdict

    @property
    def figure(self) -> Figure:
        """1 if all is as it should be."""
        return Figure(f"faults.{self.fault.replace(' ', '_')}", float(self.ok), "", "1", self.ok)


def faults(shop: Shop, folder: Path) -> list[Seen]:
    """Each fault on a copy of the shop."""
    found = []
    for fault in (
        full_disk,
        corrupt_partition,
        truncated_tonight,
        truncated_live,
        clock_back,
        clock_ahead,
        missing_night,
        double_start,
        week_off,
        over_budget,
        flaky_disk,
    ):
        with copied(shop, folder) as copy:
            seen = fault(copy, folder)
        if seen is not None:
            found.append(seen)
    return found


def full_disk(shop: Shop, folder: Path) -> Seen | None:
    """A disk of its own, filled to its last half megabyte."""
    disk, mount = folder / "disk", shutil.which("mount")
    disk.mkdir()
    size = 100 + sum(file.stat().st_size for file in shop.folder.rglob("*") if file.is_file()) // 2**20
    line = [str(mount), "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(disk)]
    if mount is None or os.geteuid() or subprocess.run(line, check=False).returncode:  # noqa: S603
        print("full disk: skipped, since a disk can only be mounted as root", file=sys.stderr)
        return None
    try:
        there = shop.copy(disk / "shop")
        seen = Seen("full disk", (2, False), "the disk is full", "room made")
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            file.write(bytes(shutil.disk_usage(disk).free - (1 << 19)))
        seen.start(there)
        ballast.unlink()
        seen.start(there)
    finally:
        subprocess.run(["umount", str(disk)], check=True)  # noqa: S603, S607
    return seen


def corrupt_partition(shop: Shop, folder: Path) -> Seen:
    """Half of the day's file of the log."""
    seen = Seen("corrupt partition", (2, False), shop.file(THIRD).name, "file mended")
    good = shop.file(THIRD).read_bytes()
    shop.file(THIRD).write_bytes(good[: len(good) // 2])
    seen.start(shop)
    shop.file(THIRD).write_bytes(good)
    seen.start(shop)
    return seen


def truncate(artifact: Path) -> None:
    """Cut an artifact's first file short, as a power cut may."""
    file = next(file for file in sorted(artifact.resolve().iterdir()) if file.name != MANIFEST and file.is_file())
    os.truncate(file, file.stat().st_size // 2)


def truncated_tonight(shop: Shop, folder: Path) -> Seen:
    """The power went after the student was trained, and took half of it along."""
    seen = Seen("truncated student of tonight", (0, True), "it is made again", "")
    night = nights.folder_of(shop.run_dir, nights.name_of(THIRD))
    with begun(shop) as process:
        while not (night / "index").exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    truncate(night / "student")
    seen.start(shop)
    return seen


def truncated_live(shop: Shop, folder: Path) -> Seen:
    """Half of the live student's weights are gone."""
    seen = Seen("truncated live student", (1, False), "not whole", "recsys rollback")
    seen.served = [nights.name_of(SECOND)]
    truncate(nights.folder_of(shop.run_dir, nights.name_of(SECOND)) / "student")
    seen.start(shop)
    seen.served[1] = str(shop.live)  # what is broken is still what the link leads to, which the message says
    subprocess.run(command(shop, "rollback"), capture_output=True, check=True)  # noqa: S603
    seen.start(shop)
    return seen


def clock_back(shop: Shop, folder: Path) -> Seen:
    """The clock stands at half a day after the first night."""
    seen = Seen("clock back", (1, False), "the live one is for", "clock set right")
    seen.start(shop, FIRST + DAY / 2)
    seen.start(shop)
    return seen


def clock_ahead(shop: Shop, folder: Path) -> Seen:
    """The clock stands at next year."""
    seen = Seen("clock ahead", (4, False), "", "clock set right")
    seen.start(shop, THIRD + 300 * DAY)
    seen.start(shop)
    return seen


def missing_night(shop: Shop, folder: Path) -> Seen:
    """The log of the third night came, but no job ran."""
    seen = Seen("missing night", (0, True), "2.0 days old", "")
    shop.write_log(THIRD + DAY)
    seen.start(shop, THIRD + DAY)
    return seen


def double_start(shop: Shop, folder: Path) -> Seen:
    """The job is started while it runs."""
    seen = Seen("double start", (5, False), "is running", "the first one ends")
    with begun(shop) as first:
        seen.start(shop)
        first.communicate()
    seen.exits.append(first.returncode)
    seen.served.append(read(shop))
    return seen


def week_off(shop: Shop, folder: Path) -> Seen:
    """Nothing ran for eight days."""
    seen = Seen("a week off", (0, True), "8.0 days old", "")
    shop.write_log(SECOND + 8 * DAY, since=THIRD)
    seen.start(shop, SECOND + 8 * DAY)
    return seen


def over_budget(shop: Shop, folder: Path) -> Seen:
    """Training takes longer than it may."""
    seen = Seen("over its time budget", (1, False), "distill has taken", "budget raised")
    seen.start(shop, THIRD, "--set", "nightly.budgets.distill.minutes=0.001", "--set", "distill.epochs=1000")
    seen.start(shop)
    return seen


FLAKY: Final = f"""
from recsys.retrieval import index
fit, faults = index.fit, [OSError({errno.EIO}, "Input/output error")]
def flaky(*arguments, **options):
    if faults:
        raise faults.pop()
    return fit(*arguments, **options)
index.fit = flaky
"""


def flaky_disk(shop: Shop, folder: Path) -> Seen:
    """A read fails once."""
    seen = Seen("transient fault of the disk", (0, True), "once more", "")
    seen.start(shop, code=FLAKY)
    return seen


# ---- readers --------------------------------------------------------------------------------------------------------

PROMOTE: Final = """
import sys, time
from pathlib import Path
from recsys.nightly.night import folder_of, promote, rollback
run_dir, one, other = Path(sys.argv[1]), *sys.argv[2:4]
for n in range(int(sys.argv[4]) // 2):
    rollback(run_dir)
    time.sleep(0.1)
    assert promote(run_dir, folder_of(run_dir, other), instead_of=one)
"""


def readers(shop: Shop, folder: Path) -> list[Figure]:
    """Read what is live while it is exchanged."""
    with copied(shop, folder) as copy:
        names = [nights.name_of(as_of) for as_of in (FIRST, SECOND)]
        line = [sys.executable, "-c", PROMOTE, str(copy.run_dir), *names, str(PROMOTIONS)]
        count, mixes, errors = Counter[str](), 0, 0
        process = subprocess.Popen(line)  # noqa: S603
        while process.poll() is None:
            try:
                count[check_served(copy.run_dir)] += 1
            except AssertionError:
                mixes += 1
            except Exception as error:
                print(f"a read failed: {error}", file=sys.stderr)
                errors += 1
        if process.returncode:
            raise RecsysError("the process that promotes has failed")
    return [
        Figure("readers.promotions", PROMOTIONS),
        Figure("readers.reads", count.total()),
        *(Figure(f"readers.reads.{name[:10]}", count[name]) for name in names),
        at_most("readers.mixes", mixes, 0),
        at_most("readers.errors", errors, 0),
    ]


# ---- stages ---------------------------------------------------------------------------------------------------------


def stages(folder: Path, scale: int, overrides: Sequence[str], *, use_teacher: bool) -> list[Figure]:
    """What a night takes."""
    settings = tomllib.loads(SAMPLE_TOML.read_text())
    for key in ("name", "data", "run_dir"):
        del settings[key]
    settings |= {"use_teacher": use_teacher, "ingest": {"events": "log"}}
    end = datetime(2026, 5, 1, tzinfo=UTC)
    sizes = {name: scale * n for name, n in SAMPLE.items()}
    shop = Shop.open(folder, tomli_w.dumps(settings), sizes=sizes, first=end - DAY)
    shop.write_log(end)
    name, figures = f"stages.{scale}x.teacher_{'on' if use_teacher else 'off'}", list[Figure]()
    for which, as_of in (("first", end - DAY), ("night", end)):
        load = os.getloadavg()[0]
        started = time.perf_counter()
        done = nightly(shop, as_of, "--json", *(each for override in overrides for each in ("--set", override)))
        whole = time.perf_counter() - started
        if not done.stdout:
            raise RecsysError(f"the night came to nothing\n{done.stderr}")
        night = Night.model_validate(json.loads(done.stdout))
        print(f"{name}, {which}: {night.state} {'; '.join(night.against)}; load {load:.1f}", file=sys.stderr)
        if which == "night":
            for stage in night.stages:
                figures += [
                    Figure(f"{name}.{stage.stage}.seconds", stage.seconds, "s"),
                    Figure(f"{name}.{stage.stage}.peak", stage.peak_mb, "MB"),
                ]
        figures += [
            Figure(f"{name}.{which}.seconds", whole, "s"),
            Figure(f"{name}.{which}.peak", max(stage.peak_mb for stage in night.stages), "MB"),
        ]
    shutil.rmtree(folder)
    return figures


def by_stage(figures: Sequence[Figure]) -> str:
    """Figures of one size, a line per stage."""
    values = {figure.name: figure.value for figure in figures}
    head = figures[0].name.rsplit(".", 2)[0]
    names = [name.rsplit(".", 1)[0] for name in values if name.endswith(".seconds")]
    rows = [(each.rsplit(".", 1)[1], values[f"{each}.seconds"], values[f"{each}.peak"]) for each in names]
    cells = [(name, f"{seconds:,.1f}", f"{peak:,.0f}") for name, seconds, peak in rows]
    return in_columns([(head, "seconds", "peak MB"), *cells])


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    raise SystemExit(main())
