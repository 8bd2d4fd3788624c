"""Night after night of an invented shop: the nightly job beside three other ways of keeping a model.

    python benchmarks/nightly_year.py                            # 60 nights; a quarter of an hour on a free core
    python benchmarks/nightly_year.py --nights 365 --out year.html
    python benchmarks/nightly_year.py --json                     # one line per figure

The shop (`nightly_parts/year.py`) has 1,500 users and some 600 items; about 1,200 events a day, a file of the log a
day, and the log reaches back four weeks. Tastes drift, items are launched and fade, weekdays differ, and on sales days,
which the config names, twice as many come. Five nights in sixty read a log that is broken: an outage (a tenth of a
day's events), a tracking bug that sends every event twice, for two days, a day whose items a broken join has mixed up,
and a backfill that did the same to all but the last five days, mended the day after. Nothing else is ever repaired.

Four policies see the same log and serve lists on the next morning:

* `nightly`: `recsys.nightly.run.nightly`, the real job, with data checks and gate. A student that goes on from the live
  one's weights is trained for `nightly.warm_epochs`.
* `scratch`: ingests all of the log and trains a student from scratch every night, with the same split and
  the same settings: `distill.epochs` at most, stopped early.
* `never`: the first night's student; it reads today's histories, and knows the items of the first night.
* `always`: as `nightly` but without checks and gate: whatever comes is trained on, and served.

A night's live quality is NDCG@10 (and recall@10) of the lists over what users really take on the next day, before
faults and without what they had seen, the same users for all policies.

`below`: nights after which the promoted model is surely worse than the one that it replaced, both asked by the same
histories on the morning after: the 95 % paired interval lies below zero. Two and a half in a hundred would do so by
chance where both are equally good; `below.holm` counts those that stay after Holm's correction over all nights.
`stopped` are the broken nights that were held by the checks or kept out by the gate.

Seconds are of the CPU, on one thread. `time.night` is all that a night takes (`scratch`: ingest to lists, without any
evaluation), `time.training` the student's training alone (`nightly`: with the data checks just before it).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from _common import Figure, arguments, at_least, at_most, report
from nightly_parts.year import Log, Year

from recsys.api import Run
from recsys.config import PipelineConfig, load_config
from recsys.evaluation.metrics import NDCG, Recall
from recsys.evaluation.scorers import Champion
from recsys.evaluation.significance import holm, percentile_interval, randomization_p_values, resampled_means
from recsys.ingest.dataset import Dataset
from recsys.nightly import night as nights
from recsys.nightly.night import Night
from recsys.nightly.run import nightly
from recsys.page import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure, page, plot_block
from recsys.pipeline import run_stage

Lists = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

POLICIES: Final = ("nightly", "scratch", "never", "always")
COLOURS: Final = dict(zip(POLICIES, (BLUE, GREEN, GREY, VERMILION), strict=True))
METRICS: Final = {"ndcg": NDCG(10), "recall": Recall(10)}
QUALITY, TIME = 0.98, 0.2

SETTINGS: Final = """
seed = 1
threads = 1
use_teacher = false
use_ranker = false  # three hundred users of a day's validation part are too few to learn one from

[ingest]
events = "log"
test_days = 1
valid_days = 1

[distill]
use_text = false
dim = 64
layers = 1
max_history = 30
batch_positions = 1024
valid_users = 500

[evaluate]
ks = [10]
n_bootstrap = 100
n_permutations = 99
examples = 0

[nightly]
warm_epochs = 1
warm_lr = 0.0003
keep = 3

[nightly.checks]
special_days = {special_days}
"""


def main() -> int:
    """Live through the nights and judge them."""
    parser = arguments(__doc__)
    parser.add_argument("--nights", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the config")
    parser.add_argument("--out", type=Path, help="HTML page with the quality of every night")
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder in it goes away after)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        lived = live(Path(folder), options.nights, options.seed, options.set)
    to = sys.stderr if options.json else sys.stdout
    print(lived.fault_table(), end="\n\n", file=to)
    if options.out:
        options.out.write_text(lived.page(), encoding="utf-8")
    return report(lived.figures(), as_json=options.json)


@dataclass
class Lived:
    """What was seen.

    Attributes:
        year: the shop.
        nights: the records of the nightly job, in order.
        quality: by metric and policy, one array per night: [n_users], NaN for who took nothing.
        against: NDCG of the served model minus that of the one it replaced, one array per promoted night.
        seconds: by policy and what was done, one value per night.
    """

    year: Year
    nights: list[Night] = field(default_factory=list)
    quality: dict[tuple[str, str], list[Values]] = field(default_factory=lambda: defaultdict(list))
    against: dict[int, Values] = field(default_factory=dict)
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def by_night(self, metric: str, policy: str) -> Values:
        """[n_nights] means over users."""
        return np.array([np.nanmean(values) for values in self.quality[metric, policy]])

    def day(self, night: int) -> int:
        """The day at whose end a night is."""
        return self.year.warm_up - 1 + night

    def broken(self) -> list[int]:
        """The nights that read a broken log."""
        return [night for night in range(len(self.nights)) if self.year.fault(self.day(night))]

    def fault_table(self) -> str:
        """What became of every broken night, of every night of sales, and of all others that were not promoted."""
        lines = []
        for number, night in enumerate(self.nights):
            day = self.day(number)
            what = self.year.fault(day) or ("sales" if self.year.is_sale(day) else "")
            if what or night.state != "promoted":
                why = (night.against or [""])[0]
                lines.append(f"{number:>4}  {night.as_of:%Y-%m-%d}  {what:<9} {night.state:<9} {why}".rstrip())
        return "\n".join(["night", *lines])

    def figures(self) -> list[Figure]:
        """Everything in numbers."""
        broken, states = self.broken(), Counter(night.state for night in self.nights)
        caught = sum(self.nights[number].state in ("held", "kept_out") for number in broken)
        sound = [number for number in range(len(self.nights)) if number not in broken]
        longest = max(map(len, "".join("x."[night.state == "promoted"] for night in self.nights).split(".")))
        figures = [
            Figure("nights", len(self.nights)),
            *(Figure(f"nights.{state}", states[state]) for state in ("promoted", "kept_out", "held")),
            Figure("nights.longest_without_promotion", longest),
            Figure("nights.broken", len(broken)),
            at_least("nights.broken.stopped", caught, len(broken)),
            Figure("nights.sound.promoted_share", np.mean([self.nights[n].state == "promoted" for n in sound])),
            *self._below(),
        ]
        for metric in METRICS:
            means = {policy: self.by_night(metric, policy) for policy in POLICIES}
            figures += [Figure(f"{metric}.{policy}", float(values.mean())) for policy, values in means.items()]
            for policy in ("nightly", "never", "always"):
                name, ratio = f"{metric}.{policy}_by_scratch", float(means[policy].mean() / means["scratch"].mean())
                figures.append(at_least(name, ratio, QUALITY) if policy == "nightly" else Figure(name, ratio))
            lost = [night for night, value in enumerate(means["nightly"]) if value < QUALITY * means["scratch"][night]]
            figures.append(Figure(f"{metric}.nights_below_98_percent_of_scratch", len(lost)))
        stopped = [number for number, night in enumerate(self.nights) if night.state != "promoted"]
        for name, chosen in (("broken", broken), ("not_promoted", stopped)):
            means = {policy: self.by_night("ndcg", policy)[chosen].mean() for policy in POLICIES} if chosen else {}
            figures += [Figure(f"ndcg.on_nights.{name}.{policy}", float(value)) for policy, value in means.items()]
        return figures + self._time()

    def _below(self) -> list[Figure]:
        rng = np.random.default_rng(0)
        highs, p_values, means = list[float](), list[float](), list[float]()
        for difference in self.against.values():
            samples = resampled_means(difference[:, None], n_resamples=2000, rng=rng)
            highs.append(float(percentile_interval(samples, 0.95)[1][0]))
            p_values.append(float(randomization_p_values(difference[:, None], n_permutations=9999, rng=rng)[0]))
            means.append(float(difference.mean()))
        worse = (holm(np.array(p_values)) <= 0.05) & (np.array(means) < 0)
        return [
            Figure("below.compared", len(means)),
            Figure("below.mean_difference", float(np.mean(means))),
            Figure("below.better", sum(mean > 0 for mean in means)),
            at_most("below", sum(high < 0 for high in highs), 0),
            at_most("below.holm", int(worse.sum()), 0),
        ]

    def _time(self) -> list[Figure]:
        figures = []
        # The first night is a cold start for all.
        mean = {key: float(np.mean(values[1:])) for key, values in self.seconds.items()}
        for policy, what in mean:
            figures.append(Figure(f"time.{what}.{policy}", mean[policy, what], "s"))
        for what in ("training", "night"):
            ratio = mean["nightly", what] / mean["scratch", what]
            figures.append(at_most(f"time.{what}.nightly_by_scratch", ratio, TIME))
        return figures

    def page(self) -> str:
        """A page with the quality of every night."""
        figure, n = new_figure(), len(self.nights)
        for policy in POLICIES:
            values = self.by_night("ndcg", policy)
            style = {"color": COLOURS[policy], "width": 2}
            figure.add_scatter(x=np.arange(n), y=values, mode="lines", name=policy, line=style)
        for number in self.broken():
            figure.add_vline(x=number, line={"color": ORANGE, "dash": "dot"})
            text = self.year.fault(self.day(number))
            figure.add_annotation(x=number, y=1, yref="paper", text=text, showarrow=False, textangle=-90, xshift=-7)
        stopped = [number for number, night in enumerate(self.nights) if night.state != "promoted"]
        figure.add_scatter(
            x=stopped,
            y=self.by_night("ndcg", "nightly")[stopped],
            mode="markers",
            name="not promoted",
            marker={"color": BLUE, "symbol": "x", "size": 9},
        )
        figure.update_xaxes(title="night")
        figure.update_yaxes(title="NDCG@10 of the lists on the next day", rangemode="tozero")
        ratio = self.by_night("ndcg", "nightly").mean() / self.by_night("ndcg", "scratch").mean()
        body = f"<h1>{n} nights of an invented shop</h1><p>The nightly job has {ratio:.1%} of the quality of training "
        body += "from scratch every night. Dotted: nights that read a broken log.</p>"
        return page("Nights of an invented shop", body + plot_block(figure, "quality", height=32))


# ---- the policies ---------------------------------------------------------------------------------------------------


def live(folder: Path, n_nights: int, seed: int, overrides: Sequence[str] = ()) -> Lived:
    """All nights, one after the other."""
    year = Year(seed=seed)
    log, lived = Log(folder / "shop", year), Lived(year)
    toml = folder / "shop.toml"
    special = "[" + ", ".join(day.isoformat() for day in year.sales_days()) + "]"
    toml.write_text(f'data = "{folder}/shop"\nrun_dir = "{folder}/nightly"\n' + SETTINGS.format(special_days=special))
    config = load_config(toml, overrides, env={})
    for _ in range(year.warm_up - 1):
        log.next_day()
    morning: Morning | None = None
    for number in range(n_nights + 1):
        day = log.next_day()
        others = Others(config, folder, year, day, lived)
        if morning is not None:
            morning.judge(log, others.dataset, config, lived)
        if number == n_nights:
            break
        marks: dict[str, float] = {}
        with timed(lived, "nightly", "night"):
            say = partial(mark, marks)
            night = nightly(config, as_of=year.date(day + 1), progress=False, say=say)
        if "distill" in marks:
            lived.seconds["nightly", "training"].append(marks["distill"] - marks["ingest"])
        lived.nights.append(night)
        if number == 0:
            if night.state != "promoted":
                raise RuntimeError(f"the first night was not promoted: {'; '.join(night.against)}")
            shutil.copytree(nights.folder_of(config.run_dir, night.name), folder / "first", symlinks=True)
        served = {
            "nightly": lists_of(Run(config.run_dir / "live"), year),
            "scratch": others.scratch(),
            "always": others.always(folder / "first"),
        }
        replaced = None
        if night.state == "promoted" and night.champion is not None:
            replaced = nights.folder_of(config.run_dir, night.champion)
        morning = Morning(number, day, served, folder / "first", (config.run_dir / "live").resolve(), replaced)
        progress(lived, number)
    return lived


class Others:
    """What the other policies do on a night.

    Args:
        config: of the shop.
        folder: to work in.
        year: the shop.
        day: at whose end the night is.
        lived: where seconds are written down.
    """

    def __init__(self, config: PipelineConfig, folder: Path, year: Year, day: int, lived: Lived) -> None:
        as_of = year.date(day + 1)
        stages = {
            "ingest": config.ingest.model_copy(update={"as_of": as_of}),
            "recommend": config.recommend.model_copy(update={"as_of": as_of}),
        }
        self.folder, self.year, self.lived = folder, year, lived
        self.config = config.model_copy(update=stages | {"run_dir": folder / "scratch"})
        started = time.process_time()
        run_stage("ingest", self.config, progress=False, say=quiet)
        self.ingest_seconds = time.process_time() - started
        self.dataset = Run(self.config.run_dir).dataset

    def scratch(self) -> Lists:
        """Train everything from scratch."""
        with timed(self.lived, "scratch", "training"):
            run_stage("distill", self.config, progress=False, say=quiet)
        with timed(self.lived, "scratch", "rest"):
            for stage in ("index", "recommend"):
                run_stage(stage, self.config, progress=False, say=quiet)
        seconds = self.lived.seconds
        seconds["scratch", "night"].append(
            self.ingest_seconds + seconds["scratch", "training"][-1] + seconds["scratch", "rest"][-1]
        )
        return lists_of(Run(self.config.run_dir), self.year)

    def always(self, first: Path) -> Lists:
        """Go on from last night's student, and serve what comes of it."""
        run_dir = self.folder / "always"
        run_dir.mkdir(exist_ok=True)
        dataset = run_dir / "dataset"
        dataset.unlink(missing_ok=True)
        dataset.symlink_to(self.dataset.path)
        before = run_dir / "student" if (run_dir / "student").exists() else first / "student"
        warm = {"warm_start": before.resolve(), **self.config.nightly.warm()}
        distill = self.config.distill.model_copy(update=warm)
        config = self.config.model_copy(update={"run_dir": run_dir, "distill": distill})
        for stage in ("distill", "index", "recommend"):
            run_stage(stage, config, progress=False, say=quiet)
        return lists_of(Run(run_dir), self.year)


@dataclass(frozen=True)
class Morning:
    """What is served on the day after a night.

    Attributes:
        number: of the night.
        day: at whose end it was.
        served: lists by policy.
        first: the first night's run.
        live: the run that is live.
        replaced: the run that was live before, if another one was promoted.
    """

    number: int
    day: int
    served: Mapping[str, Lists]
    first: Path
    live: Path
    replaced: Path | None

    def judge(self, log: Log, dataset: Dataset, config: PipelineConfig, lived: Lived) -> None:
        """Compare the lists with what users really took on that day.

        Args:
            log: which knows that.
            dataset: of the night after, whose test part is that day: histories are those of the morning.
            config: of the shop.
            lived: where it is written down.
        """
        seen = log.seen(self.day)
        targets = log.taken(self.day + 1) & ~seen
        asked = targets.any(axis=1) & seen.any(axis=1)  # who is new has no list

        def values(lists: Lists, metric: str) -> Values:
            hits = np.take_along_axis(targets, np.maximum(lists, 0), axis=1) & (lists >= 0)
            found = METRICS[metric](hits, targets.sum(axis=1))
            return np.where(asked, found, np.nan)

        def model(run: Path) -> Lists:
            return lists_by(Run(run), dataset, lived.year, seen, config)

        lists = {**self.served, "never": model(self.first)}
        for metric in METRICS:
            for policy in POLICIES:
                lived.quality[metric, policy].append(values(lists[policy], metric))
        if self.replaced is not None:
            now, before = (values(model(run), "ndcg")[asked] for run in (self.live, self.replaced))
            lived.against[self.number] = now - before


def lists_of(run: Run, year: Year) -> Lists:
    """The lists of a run, [n_users, 10], −1 where there is nothing."""
    table = run.recommendations.table
    lists = np.full((year.sizes.n_users, 10), -1)
    lists[_numbers(table["user_id"]), table["rank"].to_numpy() - 1] = _numbers(table["item_id"])
    return lists


def lists_by(run: Run, dataset: Dataset, year: Year, seen: npt.NDArray[np.bool_], config: PipelineConfig) -> Lists:
    """What an earlier run's models would show by the histories before a dataset's test part, as `lists_of`."""
    champion = Champion(run.student, None, run.dataset, dataset, config.runtime(progress=False))
    users, items = _numbers(dataset.users["user_id"]), _numbers(dataset.items["item_id"])
    scores = champion.score(dataset.histories(np.arange(dataset.n_users), dataset.split.valid_end))
    scores[seen[users][:, items]] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    there = np.isfinite(np.take_along_axis(scores, best, axis=1))
    lists = np.full((year.sizes.n_users, 10), -1)
    lists[users] = np.where(there, items[best], -1)
    return lists


def _numbers(ids: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.asarray(pc.cast(pc.utf8_slice_codeunits(ids, 1), pa.int64()))


def mark(marks: dict[str, float], line: str) -> None:
    """Write down at how many seconds of CPU a stage says that it is done."""
    marks[line.partition(" ")[0]] = time.process_time()


def quiet(line: str) -> None:
    """Say nothing."""


@contextmanager
def timed(lived: Lived, policy: str, what: str) -> Iterator[None]:
    """Write down the block's seconds of CPU."""
    started = time.process_time()
    yield
    lived.seconds[policy, what].append(time.process_time() - started)


def progress(lived: Lived, number: int) -> None:
    """A line per night for who waits."""
    night = lived.nights[-1]
    quality = " ".join(f"{policy} {lived.by_night('ndcg', policy)[-1]:.4f}" for policy in POLICIES) if number else ""
    cpu = " ".join(f"{policy} {lived.seconds[policy, 'night'][-1]:.1f} s" for policy in ("nightly", "scratch"))
    why = f" ({night.against[0]})" if night.against else ""
    print(f"night {number}: {night.state}{why}; {cpu}; the night before: {quality}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
