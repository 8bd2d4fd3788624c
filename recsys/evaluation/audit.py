"""A leakage audit: what the dataset of a run knows too early, what it holds twice, and what its order rests on.

Each check counts something that a sound dataset has none of, or that one should know before a figure is believed. It
looks at what is on disk, not at how it came there, so that it also finds the faults of another program that wrote
these files. Why such faults matter: Ji, Sun, Zhang and Li, "A critical study on data leakage in recommender system
offline evaluation" (TOIS 2023); Kaufman, Rosset and Perlich, "Leakage in data mining" (KDD 2011).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.errors import InputError
from recsys.ingest.dataset import PARTS, Dataset, places
from recsys.ingest.histories import mix
from recsys.ingest.statistics import conversion
from recsys.ranking.recommend import Recommendations
from recsys.soft_labels import SoftLabels

Severity = Literal["leak", "caution", "fact"]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

N_EXAMPLES: Final = 5
# Short histories are equal by chance; two people seldom do the same this many times in the same order.
COPIED_EVENTS: Final = 5
# The order inside ties is called suspicious from this many standard deviations on (chance: 1 in 16,000).
SUSPICIOUS_Z: Final = 4.0

_NEVER: Final = np.iinfo(np.int64).max
_DAY: Final = 86_400_000_000
_WORDS: Final[dict[Severity, str]] = {"leak": "LEAK", "caution": "CAUTION", "fact": "FACT"}


@dataclass(frozen=True)
class Finding:
    """What one check came to.

    Attributes:
        name: of the check, for programs.
        title: what is counted.
        severity: "leak": a model or a feature knows what it must not, and figures cannot be trusted; "caution": figures
            may mislead; "fact": no fault, but figures mean something else if one does not know it.
        found: whether there is anything to tell.
        count: how many, in the unit of the title.
        out_of: how many were looked at; 0 if there was nothing to look at.
        words: what it means and what to do; why there was nothing to look at if that is so.
        examples: at most `N_EXAMPLES` rows.
    """

    name: str
    title: str
    severity: Severity
    found: bool
    count: int
    out_of: int
    words: str
    examples: tuple[dict[str, Any], ...] = ()

    @property
    def is_leak(self) -> bool:
        """Whether a script should stop here."""
        return self.found and self.severity == "leak"


def audit(
    dataset: Dataset, *, soft_labels: SoftLabels | None = None, recommendations: Recommendations | None = None
) -> list[Finding]:
    """Look for leaks in a dataset, and in what was made of it where that is given.

    Time and memory grow with the number of events: several arrays of one number per event are held at a time.

    Args:
        dataset: what `ingest` wrote.
        soft_labels: what `score` made of the same dataset.
        recommendations: what `recommend` made of the same dataset.

    Returns:
        All checks in a fixed order, those that found nothing too.

    Raises:
        InputError: the soft labels or recommendations name users or items that the dataset does not have.
    """
    log = _Log(dataset)
    return [
        *_cuts(log),
        *_order(log),
        *_statistics(log),
        _attributes(log),
        *_soft_labels(log, soft_labels),
        *_copies(log),
        _repeats(log),
        *_copied_users(log),
        *_ties(log),
        _cold_targets(log),
        _before_available(log),
        *_recommended(log, recommendations),
    ]


def exit_code(findings: Iterable[Finding]) -> int:
    """1 if there is a leak, else 0; cautions and facts are for people to judge."""
    return int(any(finding.is_leak for finding in findings))


def to_text(findings: Sequence[Finding], *, width: int = 100) -> str:
    """The findings for a terminal: leaks first, then cautions and facts, then what was in order or not looked at.

    Args:
        findings: as `audit` returns them.
        width: characters of a line.
    """
    told = {kind: [each for each in findings if each.found and each.severity == kind] for kind in _WORDS}
    clean = [each for each in findings if not each.found and each.out_of]
    idle = [each for each in findings if not each.found and not each.out_of]
    number = {kind: f"{len(each)} {kind}{'' if len(each) == 1 else 's'}" for kind, each in told.items()}
    lines = [
        f"Leakage audit: {', '.join(number.values())}; {len(clean)} of {len(findings)} checks found nothing"
        + (f", {len(idle)} had nothing to look at" if idle else "")
    ]
    for kind, found in told.items():
        for each in found:
            lines += ["", f"{_WORDS[kind]:<8} {each.title}: {_share(each.count, each.out_of)}  [{each.name}]"]
            lines += textwrap.wrap(each.words, width, initial_indent=" " * 9, subsequent_indent=" " * 9)
            for row in each.examples:
                example = ", ".join(f"{key} {value}" for key, value in row.items())
                lines.append(f"{'':9}e.g. {example}")
    if clean:
        lines += ["", "Nothing found:"]
        lines += [f"         {each.title} (0 of {each.out_of:,})" for each in clean if each.count == 0]
        lines += [f"         {each.title} ({_share(each.count, each.out_of)})" for each in clean if each.count]
    if idle:
        lines += ["", "Nothing to look at:"]
        for each in idle:
            lines += textwrap.wrap(
                f"{each.title}: {each.words}", width, initial_indent=" " * 9, subsequent_indent=" " * 11
            )
    return "\n".join(lines) + "\n"


class _Log:
    """All events, with what several checks ask of them."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.events = dataset.sequences
        split, begin = dataset.split, dataset.sequences.offsets[:-1]
        # Part p of user u is the slice borders[p][u]:borders[p + 1][u] of the events.
        self.borders = (begin, begin + split.train_end, begin + split.valid_end, dataset.sequences.offsets[1:])
        counts = np.diff(np.stack(self.borders, axis=1), axis=1)
        self.part = np.repeat(np.tile(np.arange(len(PARTS), dtype=np.int8), len(begin)), counts.ravel())
        self.user = np.repeat(np.arange(len(begin), dtype=np.int32), self.events.lengths)

    @property
    def is_temporal(self) -> bool:
        return self.dataset.protocol == "temporal"

    @cached_property
    def n_in(self) -> list[int]:
        """Number of events of each part."""
        return [int(count) for count in np.bincount(self.part, minlength=len(PARTS))]

    @property
    def n_held_out(self) -> int:
        return self.n_in[1] + self.n_in[2]

    @cached_property
    def trained(self) -> Ints:
        """Training events of each item, [n_items]."""
        return np.bincount(self.events.item_idx[self.part == 0], minlength=self.dataset.n_items)

    @cached_property
    def at_or_after_later_part(self) -> Ints:
        """Places of events that are not earlier than all of their user's events of the parts after their own."""
        time, found = self.events.timestamp, []
        for part in (0, 1):
            least = _extreme(np.minimum, time, self.borders[part + 1], self.borders[3], _NEVER)
            places = np.flatnonzero(self.part == part)
            found.append(places[time[places] >= least[self.user[places]]])
        return np.sort(np.concatenate(found))

    @cached_property
    def pairs(self) -> _Pairs:
        """Every user and item that met."""
        n_items = self.dataset.n_items
        key = self.user * np.int64(n_items) + self.events.item_idx
        order = np.argsort(key, kind="stable")  # within a pair the places, and so the parts, ascend
        key, part = key[order], self.part[order]
        starts = np.flatnonzero(np.diff(key, prepend=-1))
        key = key[starts]
        held_out = tuple(
            np.logical_or.reduceat(part == number, starts) if len(starts) else np.zeros(0, dtype=np.bool_)
            for number in (1, 2)
        )
        return _Pairs((key // n_items).astype(np.int32), (key % n_items).astype(np.int32), part[starts], held_out)

    def examples(self, places: Ints) -> tuple[dict[str, Any], ...]:
        """The first of these events as people read them."""
        return tuple(
            {
                "user": self.user_id(self.user[place]),
                "item": self.item_id(self.events.item_idx[place]),
                "part": PARTS[self.part[place]],
                "time": _moment(int(self.events.timestamp[place])),
            }
            for place in places[:N_EXAMPLES].tolist()
        )

    def user_id(self, user: int | np.integer[Any]) -> str:
        return str(self.dataset.users[schema.USER_ID][int(user)].as_py())

    def item_id(self, item: int | np.integer[Any]) -> str:
        return str(self.dataset.items[schema.ITEM_ID][int(item)].as_py())


@dataclass(frozen=True)
class _Pairs:
    """Distinct pairs of user and item; a pair of a held-out part is one of its targets."""

    user: npt.NDArray[np.int32]  # [n_pairs]
    item: npt.NDArray[np.int32]  # [n_pairs]
    first_part: npt.NDArray[np.int8]  # [n_pairs], in which they met first
    held_out: tuple[Bools, ...]  # validation, test: [n_pairs], whether they met in it


def _cuts(log: _Log) -> Iterator[Finding]:
    """Whether the parts lie between the moments that the manifest names."""
    if not log.is_temporal:
        return
    info, time = log.dataset.manifest["info"], log.events.timestamp
    train_until, valid_until = info.get("train_until"), info.get("valid_until")
    known = train_until is not None and valid_until is not None
    for part, name, title, words in (
        (
            0,
            "training_after_cut",
            "training events at or after the end of training",
            "Models learn from events of the time on which they are then tested, so every figure is too good.",
        ),
        (
            1,
            "validation_outside_window",
            "validation events outside of the validation window",
            "Settings are chosen on events of another time than planned: later ones belong to the test.",
        ),
        (
            2,
            "test_before_window",
            "test events before the end of validation",
            "What is asked had already happened when training or validation ended, so it may have been learned.",
        ),
    ):
        if known:
            places = np.flatnonzero(log.part == part)
            low, high = [(None, train_until), (train_until, valid_until), (valid_until, None)][part]
            wrong = np.zeros(len(places), dtype=np.bool_)
            if low is not None:
                wrong |= time[places] < low
            if high is not None:
                wrong |= time[places] >= high
            places = places[wrong]
            action = "Ingest again, and do not move events between the files of the parts."
            yield _finding(name, title, "leak", len(places), log.n_in[part], f"{words} {action}", log.examples(places))
        else:
            yield _finding(name, title, "leak", 0, 0, "the manifest does not say where the parts are cut")


def _order(log: _Log) -> Iterator[Finding]:
    """Whether time runs forward, within a user and between users."""
    time, part, user = log.events.timestamp, log.part, log.user
    places = log.at_or_after_later_part
    least = [_extreme(np.minimum, time, log.borders[number], log.borders[3], _NEVER) for number in (1, 2)]
    limit = np.where(part[places] == 0, least[0][user[places]], least[1][user[places]])
    late = places[time[places] > limit]
    yield _finding(
        "history_after_target",
        "events before a cut that are later than the user's first event after it",
        "leak",
        len(late),
        log.n_in[0] + log.n_in[1],
        "A model is told what the user did after the event that it has to guess. Order each user's events by time "
        "before they are cut; `recsys ingest` does.",
        log.examples(late),
    )
    backward = np.flatnonzero((user[1:] == user[:-1]) & (time[1:] < time[:-1])) + 1
    yield _finding(
        "out_of_order",
        "events earlier than the event that stands before them",
        "caution",
        len(backward),
        len(time),
        "Histories have to run in time: the last events count most, and pauses between events become negative. Order "
        "them by time; `recsys ingest` does.",
        log.examples(backward),
    )
    yield _other_futures(log)


def _other_futures(log: _Log) -> Finding:
    time = log.events.timestamp
    test, trained = np.flatnonzero(log.part == 2), np.flatnonzero(log.part == 0)
    last = _extreme(np.maximum, time, log.borders[0], log.borders[1], -_NEVER)
    # The last training event of anybody else: the overall last, or for the user who has it the second.
    latest = int(np.argmax(last)) if len(last) else 0
    second = np.delete(last, latest).max(initial=-_NEVER)
    others = np.where(log.user[test] == latest, second, last.max(initial=-_NEVER))
    early = test[time[test] < others]
    words = ""
    if len(early):
        ordered = np.sort(time[trained])
        later = 1 - np.searchsorted(ordered, time[test], side="right") / len(ordered)
        words = f"The median test event is followed by {np.median(later):.1%} of all training events. "
    if log.is_temporal:
        words += "All training has to come before all testing in a split by time. Ingest again."
    else:
        words += (
            "Leave-one-out is so by its nature: models have seen what other users did after the moment that is asked "
            "about, trends and new items included, and no shop has that. Use it to compare with papers; use "
            'protocol = "temporal" to know what to expect in a shop.'
        )
    return _finding(
        "other_users_futures",
        "test events before a training event of another user",
        "leak" if log.is_temporal else "fact",
        len(early),
        len(test),
        words,
        log.examples(early),
    )


def _statistics(log: _Log) -> Iterator[Finding]:
    """Whether the statistics of a part can be recomputed from the events up to its end."""
    dataset = log.dataset
    for number, part in enumerate(PARTS[:2]):
        moment = "training" if number == 0 else "validation"
        for kind in ("item", "user"):
            name = f"{kind}_statistics_{part}"
            title = f"{kind}s whose statistics at the end of {moment} are not those of the events up to it"
            if not (dataset.path / f"{name}.parquet").is_file():
                yield _finding(name, title, "leak", 0, 0, f"the dataset has no {name}.parquet")
                continue
            expect = _expected_items if kind == "item" else _expected_users
            table = dataset.item_statistics(part) if kind == "item" else dataset.user_statistics(part)
            index = table[f"{kind}_idx"].to_numpy()
            n_rows = dataset.n_items if kind == "item" else dataset.n_users
            _require_known(index, n_rows, f"{name}.parquet", f"{kind}_idx", "ingest")
            over, differs = np.zeros(n_rows, dtype=np.bool_), np.zeros(n_rows, dtype=np.bool_)
            what: dict[str, Bools] = {}
            for column, expected, tolerance in expect(log, number, table.column_names):
                actual = np.full(n_rows, 0.0 if column.startswith("n_") else -np.inf)
                actual[index] = _numbers(table[column])
                equal = np.isclose(actual, expected, rtol=tolerance, atol=0)
                what[column] = ~equal
                differs |= ~equal
                over |= ~equal & (actual > expected)
            rows = np.flatnonzero(over if over.any() else differs)
            name_of = log.item_id if kind == "item" else log.user_id
            examples = tuple(
                {kind: name_of(row), "columns": " ".join(column for column, wrong in what.items() if wrong[row])}
                for row in rows[:N_EXAMPLES].tolist()
            )
            yield _finding(
                name,
                title,
                "leak" if over.any() or not differs.any() else "caution",
                int(differs.sum()),
                n_rows,
                f"{int(over.sum()):,} of them say more, or something later, than had happened by then: a feature of "
                f"this table gives away what is asked after {moment}. The others say less, as statistics of another "
                "run would. Ingest again, and compute features from the events up to the cut only.",
                examples,
            )


_Expected = Iterator[tuple[str, Values, float]]  # column, what it should hold (−∞ for null), relative tolerance


def _expected_items(log: _Log, part: int, columns: Sequence[str]) -> _Expected:
    """What an item's statistics should be, one column after the other, [n_items] each."""
    dataset, events = log.dataset, log.events
    n_items, types = dataset.n_items, dataset.event_types
    places: Any = np.flatnonzero(log.part <= part)
    item, time, kind = events.item_idx[places], events.timestamp[places], events.event_type[places]
    cell = item * np.int64(len(types)) + kind
    count = np.bincount(cell, minlength=n_items * len(types)).reshape(n_items, len(types)).astype(np.int32)
    for code, name in enumerate(types):
        yield f"n_{name}", count[:, code].astype(np.float64), 0.0
    popularity = count @ dataset.event_weights
    yield "popularity", popularity, 1e-5
    yield "conversion", _numbers(conversion(count)), 1e-5
    first, last = np.full(n_items, _NEVER), np.full(n_items, -_NEVER)
    np.minimum.at(first, item, time)
    np.maximum.at(last, item, time)
    seen = first != _NEVER
    yield "first_seen", np.where(seen, first, -np.inf), 0.0
    yield "last_seen", np.where(seen, last, -np.inf), 0.0
    info, config = dataset.manifest["info"], dataset.manifest["config"]
    until = info.get("train_until" if part == 0 else "valid_until")
    if until is None:  # leave-one-out counts back from the log's end, which may be a rejected event
        return
    for days in config.get("popularity_days", ()):
        name = f"popularity_{days:g}d"
        if name in columns:
            recent = time >= until - days * _DAY
            weight = dataset.event_weights[kind[recent]]
            yield name, np.bincount(item[recent], weights=weight, minlength=n_items).astype(np.float64), 1e-5


def _expected_users(log: _Log, part: int, columns: Sequence[str]) -> _Expected:
    """What a user's statistics should be, one column after the other, [n_users] each."""
    dataset, events = log.dataset, log.events
    n_users, types = dataset.n_users, dataset.event_types
    begin, end = log.borders[0], log.borders[part + 1]
    places = np.flatnonzero(log.part <= part)
    cell = log.user[places] * np.int64(len(types)) + events.event_type[places]
    count = np.bincount(cell, minlength=n_users * len(types)).reshape(n_users, len(types))
    for code, name in enumerate(types):
        yield f"n_{name}", count[:, code].astype(np.float64), 0.0
    yield "n_sessions", _extreme(np.maximum, events.session, begin, end, -1) + 1.0, 0.0
    first = _extreme(np.minimum, events.timestamp, begin, end, _NEVER)
    last = _extreme(np.maximum, events.timestamp, begin, end, -_NEVER)
    n_events = end - begin
    yield "first_seen", np.where(n_events > 0, first, -np.inf), 0.0
    yield "last_seen", np.where(n_events > 0, last, -np.inf), 0.0
    span = np.where(n_events > 1, last - first, 0) / np.maximum(n_events - 1, 1) / 1e6
    yield "mean_gap", np.where(n_events > 1, span, -np.inf), 1e-9


def _attributes(log: _Log) -> Finding:
    """Items whose row in the catalogue was not there yet when training ended."""
    dataset = log.dataset
    name, title = "attributes_from_later", "items whose title and other attributes are of after the end of training"
    from_events = "from_events" in dataset.counts.get("catalogue", {})
    severity: Severity = "caution" if from_events else "fact"
    held_out = np.bincount(log.events.item_idx[log.part > 0], minlength=dataset.n_items)
    late = from_events & (log.trained == 0) & (held_out > 0)
    until = dataset.manifest["info"].get("train_until")
    available = _available(dataset)
    if until is not None:
        late |= available >= until
    if not from_events and (until is None or not (available > -_NEVER).any()):
        words = (
            "the catalogue is a file without dates that could tell: see for yourself that no column of it (ratings, "
            "sales, best-seller ranks) was computed after the cut"
        )
        return _finding(name, title, severity, 0, 0, words)
    words = (
        "The catalogue was derived from the log, and these items appear only after the cut. "
        if from_events
        else "By available_from these items were not there yet. "
    )
    words += (
        "Models see them as candidates and read their text before there was any: figures on new items are those of a "
        "shop that knows its assortment in advance."
    )
    examples = tuple({"item": log.item_id(item)} for item in np.flatnonzero(late)[:N_EXAMPLES])
    return _finding(name, title, severity, int(late.sum()), dataset.n_items, words, examples)


def _soft_labels(log: _Log, soft_labels: SoftLabels | None) -> Iterator[Finding]:
    beyond = "soft_labels_beyond_training", "soft labels at positions after the end of training", "leak"
    hits = "soft_labels_with_target", "soft labels whose candidates hold the user's next held-out item", "caution"
    if soft_labels is None:
        for name, title, _ in (beyond, hits):
            yield _finding(name, title, "leak" if name == beyond[0] else "caution", 0, 0, "no soft labels were given")
        return
    dataset, events = log.dataset, log.events
    table = soft_labels.table
    user = table[schema.USER_IDX].to_numpy().astype(np.int64)
    position = table[schema.POSITION].to_numpy().astype(np.int64)
    _require_known(user, dataset.n_users, "soft_labels.parquet", schema.USER_IDX, "score")
    end = dataset.split.train_end[user]

    def rows(places: Ints) -> tuple[dict[str, Any], ...]:
        return tuple(
            {"user": log.user_id(user[row]), "position": int(position[row]), "training events": int(end[row])}
            for row in places[:N_EXAMPLES]
        )

    late = np.flatnonzero(position > end)
    yield _finding(
        beyond[0],
        beyond[1],
        "leak",
        len(late),
        len(user),
        "The history of such a row holds held-out events, so the student learns from what it is then asked. Score "
        "again, at positions up to the number of the user's training events.",
        rows(late),
    )
    # At the very end of training the next event is held out; a candidate there is a guess as long as it was retrieved.
    asked = np.flatnonzero((position == end) & (dataset.split.train_end < events.lengths)[user])
    candidates = table["candidate"].take(pa.array(asked)).combine_chunks()
    lengths = np.asarray(pc.list_value_length(candidates).to_numpy(zero_copy_only=False), dtype=np.int64)
    answer = events.item_idx[log.borders[1][user[asked]]]
    hit = np.repeat(answer, lengths) == np.asarray(pc.list_flatten(candidates))
    has_hit = np.bincount(np.repeat(np.arange(len(asked)), lengths)[hit], minlength=len(asked)) > 0
    share = float(has_hit.mean()) if len(asked) else 0.0
    yield _finding(
        hits[0],
        hits[1],
        "caution" if share > 0.5 else "fact",
        int(has_hit.sum()),
        len(asked),
        "Candidates that were retrieved without knowing the answer hold it now and then, about as often as a list of "
        "that length does (its recall). "
        + (
            "More than half is more than most lists reach: make sure that the answer was not put among them."
            if share > 0.5
            else "So many are no sign that it was put among them."
        ),
        rows(asked[has_hit]),
    )


def _copies(log: _Log) -> Iterator[Finding]:
    """Held-out events that stand in an earlier part too."""
    before = log.at_or_after_later_part
    has_any = np.zeros(log.dataset.n_users, dtype=np.bool_)
    has_any[log.user[before]] = True
    places = np.union1d(before, np.flatnonzero((log.part > 0) & has_any[log.user]))
    exact = _stands_earlier(log, places, with_type=True)
    same = np.setdiff1d(_stands_earlier(log, places, with_type=False), exact)
    yield _finding(
        "copies_across_cut",
        "held-out events with a copy (user, item, type, time) in an earlier part",
        "leak",
        len(exact),
        log.n_held_out,
        "The answer itself was trained on, or stands in the history. Remove copies before the log is split; "
        "`recsys ingest` does.",
        log.examples(exact),
    )
    yield _finding(
        "same_moment_across_cut",
        "held-out events of an item that the user met at the same moment before the cut, with another event type",
        "caution",
        len(same),
        log.n_held_out,
        "One act that was logged as several events (say a view and a purchase) is cut in two, so that the history "
        "holds the answer. Keep one event type (ingest.event_types), or split by time.",
        log.examples(same),
    )


def _stands_earlier(log: _Log, places: Ints, *, with_type: bool) -> Ints:
    """Those of the places whose user, item and time (and type) occur in an earlier part too, ascending."""
    events = log.events
    keys: list[npt.NDArray[Any]] = [log.user[places], events.timestamp[places], events.item_idx[places]]
    if with_type:
        keys.append(events.event_type[places])
    part = log.part[places]
    order = np.lexsort([part, *reversed(keys)])
    starts = np.zeros(len(order), dtype=np.bool_)
    starts[:1] = True
    for key in keys:
        starts[1:] |= key[order][1:] != key[order][:-1]
    part = part[order]
    least = part[np.flatnonzero(starts)][np.cumsum(starts) - 1]
    return np.sort(places[order][part > least])


def _repeats(log: _Log) -> Finding:
    pairs = log.pairs
    again = [target & (pairs.first_part < part) for part, target in zip((1, 2), pairs.held_out, strict=True)]
    n_again, n_all = [int(each.sum()) for each in again], [int(each.sum()) for each in pairs.held_out]
    shown = np.flatnonzero(again[0] | again[1])[:N_EXAMPLES]
    return _finding(
        "repeated_targets",
        "targets that the user's history already holds",
        "fact",
        sum(n_again),
        sum(n_all),
        f"Validation {_share(n_again[0], n_all[0])}, test {_share(n_again[1], n_all[1])}. People come back to items, "
        "which is no fault. But a model whose lists leave out what was seen cannot hit these targets, and one that "
        "repeats the history hits them without having learned anything: compare only models that do the same.",
        tuple({"user": log.user_id(pairs.user[row]), "item": log.item_id(pairs.item[row])} for row in shown),
    )


def _copied_users(log: _Log) -> Iterator[Finding]:
    """Users whose histories are equal event by event.

    Histories are told apart by a 64-bit hash, the sum of their events' hashes: among ten million users it takes two
    for equal that are not once in 400,000 datasets.
    """
    events = log.events
    users = np.flatnonzero(events.lengths >= COPIED_EVENTS)
    begin, end = events.offsets[:-1], events.offsets[1:]
    act = mix(mix(events.item_idx.astype(np.uint64)) + events.event_type.astype(np.uint64))
    # What happened when says in which order; two copies of a user may differ in the order inside equal times.
    equal = _extreme(np.add, mix(act + events.timestamp.astype(np.uint64)), begin, end, 0)[users]
    place = np.arange(len(log.user)) - begin[log.user]
    alike = _extreme(np.add, mix(act + mix(place.astype(np.uint64))), begin, end, 0)[users]
    groups = _groups(equal)
    copied = groups >= 0
    yield _finding(
        "copied_users",
        f"users with exactly the events of another user, times included (of those with {COPIED_EVENTS} events or more)",
        "caution",
        int(copied.sum()),
        len(users),
        "Nobody does the same at the same moments: these are copies of accounts, or robots. They count twice in every "
        "mean, and what one of them has in training can be the other's answer. Keep one of each.",
        _alike(log, users, groups, copied),
    )
    groups = _groups(alike)
    moved = (groups >= 0) & ~copied  # copies have the same items too; only the others are news
    yield _finding(
        "same_item_sequences",
        f"users with the items of another user in the same order at other times (with {COPIED_EVENTS} events or more)",
        "caution",
        int(moved.sum()),
        len(users),
        "Scripts, test accounts or moved copies of users look like this; on a shelf of few items chance does too. One "
        "of them gives the other's answer away. Look at the examples, and keep one of each if they are copies.",
        _alike(log, users, groups, moved),
    )


def _groups(value: npt.NDArray[Any]) -> Ints:
    """A number for each value that occurs more than once, −1 for those that occur once."""
    _, number, count = np.unique(value, return_inverse=True, return_counts=True)
    return np.where(count[number] > 1, number, -1)


def _alike(log: _Log, users: Ints, groups: Ints, shown: Bools) -> tuple[dict[str, Any], ...]:
    """The first two users of the first groups of which one is to be shown."""
    rows = np.flatnonzero(shown)
    _, first = np.unique(groups[rows], return_index=True)
    pairs = [users[groups == groups[rows[place]]][:2] for place in np.sort(first)[:N_EXAMPLES]]
    return tuple(
        {"user": log.user_id(one), "other user": log.user_id(other), "events": int(log.events.lengths[one])}
        for one, other in pairs
    )


def _ties(log: _Log) -> Iterator[Finding]:
    """Events of one user at one time, whose order the log does not tell."""
    item, time, user = log.events.item_idx, log.events.timestamp, log.user
    same = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    tied = np.zeros(len(time), dtype=np.bool_)
    tied[1:] |= same
    tied[:-1] |= same
    yield _finding(
        "tied_events",
        "events at the same time as another event of their user",
        "fact",
        int(tied.sum()),
        len(time),
        f"Time alone does not order them; {_ordered_by(log)}. Models that read the order read this as well.",
        log.examples(np.flatnonzero(tied)),
    )
    places = []
    for part in (1, 2):
        before = _extreme(np.maximum, time, log.borders[0], log.borders[part], -_NEVER)
        held_out = np.flatnonzero(log.part == part)
        places.append(held_out[time[held_out] == before[user[held_out]]])
    n_tied = [len(each) for each in places]
    yield _finding(
        "tied_targets",
        "held-out events at the same time as an event of their history",
        "caution",
        sum(n_tied),
        log.n_held_out,
        f"Validation {_share(n_tied[0], log.n_in[1])}, test {_share(n_tied[1], log.n_in[2])}. Which of the tied events "
        f"is the answer and which is the history was not settled by time: {_ordered_by(log)}. Another order gives "
        "other targets and other figures. Use finer times or a true order (ingest.columns.position), or split by time.",
        log.examples(np.sort(np.concatenate(places))),
    )
    neighbours = np.flatnonzero(same)
    neighbours = neighbours[item[neighbours] != item[neighbours + 1]]
    one, next_one = item[neighbours], item[neighbours + 1]
    yield _tie_order(
        log,
        neighbours,
        one < next_one,
        "ties_follow_item_ids",
        "neighbours at one time whose items stand in the order of their numbers",
        "Items are numbered in the order of their ids",
    )
    # Held-out events count too: without them the last event of a history would seem to be of a rarer item.
    n_events = np.bincount(item, minlength=log.dataset.n_items)
    differ = n_events[one] != n_events[next_one]
    yield _tie_order(
        log,
        neighbours[differ],
        n_events[one[differ]] < n_events[next_one[differ]],
        "ties_follow_popularity",
        "neighbours at one time of which the second item is the more popular one",
        "Popularity is the number of an item's events in all parts",
    )


def _tie_order(log: _Log, places: Ints, ascends: Bools, name: str, title: str, words: str) -> Finding:
    """A sign test: in an order that means nothing, half of the neighbours ascend (binomial, normal approximation).

    Neighbours in a tie of three events or more depend on each other, which makes their number vary less: the test is
    then on the safe side.
    """
    n, n_up = len(places), int(ascends.sum())
    z = (n_up - n / 2) / np.sqrt(n / 4) if n else 0.0
    found = bool(abs(z) > SUSPICIOUS_Z)
    return Finding(
        name,
        title,
        "caution",
        found,
        n_up,
        n,
        "no two items at one time to compare"
        if not n
        else f"{words}. By chance {n / 2:,.0f} ± {np.sqrt(n / 4):,.0f} would ascend; z = {z:+.1f}. The order in ties "
        f"{'comes from how the file was sorted, and' if found else 'does not follow it; if it did,'} a model could "
        "learn the file instead of the people. Leave out `position` unless it is the true order: ties are then "
        "shuffled by the seed.",
        log.examples(places[ascends if z > 0 else ~ascends]) if found else (),
    )


def _ordered_by(log: _Log) -> str:
    config = log.dataset.manifest["config"]
    sources = [config, *config.get("sources", ())]
    if any((source.get("columns") or {}).get(schema.POSITION) for source in sources):
        return f"the log's own `{schema.POSITION}` does, whatever it rests on"
    return "the order is drawn by the seed"


def _cold_targets(log: _Log) -> Finding:
    pairs = log.pairs
    unknown = log.trained[pairs.item] == 0
    cold = [target & unknown for target in pairs.held_out]
    n_cold, n_all = [int(each.sum()) for each in cold], [int(each.sum()) for each in pairs.held_out]
    shown = np.flatnonzero(cold[0] | cold[1])[:N_EXAMPLES]
    return _finding(
        "cold_targets",
        "targets whose item has no training event",
        "fact",
        sum(n_cold),
        sum(n_all),
        f"Validation {_share(n_cold[0], n_all[0])}, test {_share(n_cold[1], n_all[1])}. No model that knows items by "
        "their events can hit these; one that reads their text can. They bound what such models can reach: see the "
        "figures for cold items.",
        tuple({"user": log.user_id(pairs.user[row]), "item": log.item_id(pairs.item[row])} for row in shown),
    )


def _before_available(log: _Log) -> Finding:
    available = _available(log.dataset)
    name, title = "before_available", "events of items before they were available"
    known = available > -_NEVER
    if not known.any():
        return _finding(name, title, "caution", 0, 0, "the catalogue has no available_from")
    item = log.events.item_idx
    early = np.flatnonzero(log.events.timestamp < available[item])
    n_targets = int((log.part[early] > 0).sum())
    return _finding(
        name,
        title,
        "caution",
        len(early),
        int(known[item].sum()),
        f"{n_targets:,} of them are held out. Nobody can act on an item that is not there: available_from is wrong or "
        "was set anew (a restock, a new import), or times are in another zone. Such an item is left out of lists that "
        "should have it. Correct the catalogue.",
        log.examples(early),
    )


def _recommended(log: _Log, recommendations: Recommendations | None) -> Iterator[Finding]:
    cold, absent = "recommended_cold", "recommended_unavailable"
    titles = {
        cold: "recommended items without a training event",
        absent: "recommended items that are not available yet at the moment that the list is for",
    }
    if recommendations is None:
        yield _finding(cold, titles[cold], "fact", 0, 0, "no recommendations were given")
        yield _finding(absent, titles[absent], "caution", 0, 0, "no recommendations were given")
        return
    table = recommendations.table
    item = places(table[schema.ITEM_ID], log.dataset.items[schema.ITEM_ID]).astype(np.int64)
    _require_known(item, log.dataset.n_items, "recommendations.parquet", schema.ITEM_ID, "recommend")
    moment = table["generated_at"].cast(pa.int64()).to_numpy()

    def rows(places: Ints) -> tuple[dict[str, Any], ...]:
        names = (schema.USER_ID, schema.ITEM_ID, "rank", "generated_at")
        few = table.select(names).take(pa.array(places[:N_EXAMPLES])).to_pylist()
        return tuple({name.removesuffix("_id"): value for name, value in row.items()} for row in few)

    unknown = np.flatnonzero(log.trained[item] == 0)
    yield _finding(
        cold,
        titles[cold],
        "fact",
        len(unknown),
        len(item),
        "They are there for their text alone, or because somebody met them after training. No fault: that is how new "
        "items come into lists.",
        rows(unknown),
    )
    early = np.flatnonzero(_available(log.dataset)[item] > moment)
    yield _finding(
        absent,
        titles[absent],
        "caution",
        len(early),
        len(item),
        "People cannot buy them, and whoever measures these lists counts them as misses. Recommend again with the "
        "catalogue as it is.",
        rows(early),
    )


def _finding(
    name: str,
    title: str,
    severity: Severity,
    count: int,
    out_of: int,
    words: str,
    examples: tuple[dict[str, Any], ...] = (),
) -> Finding:
    return Finding(name, title, severity, count > 0, int(count), int(out_of), words, examples)


def _extreme(ufunc: np.ufunc, values: npt.NDArray[Any], begin: Ints, end: Ints, empty: int) -> npt.NDArray[Any]:
    """`ufunc` over `values[begin[i]:end[i]]` for each i, `empty` for an empty slice; slices in order, none overlap."""
    some = np.flatnonzero(end > begin)
    reduced = np.full(len(begin), empty, dtype=values.dtype)
    if len(some):
        borders = np.stack([begin[some], end[some]], axis=1).ravel()
        if borders[-1] == len(values):  # the last slice ends with the array anyway, and reduceat knows no such border
            borders = borders[:-1]
        reduced[some] = ufunc.reduceat(values, borders)[::2]
    return reduced


def _available(dataset: Dataset) -> Ints:
    """From when on each item can be bought, microseconds since 1970, [n_items]; −`_NEVER` where nobody says."""
    moments = dataset.items["available_from"].cast(pa.int64())
    return np.asarray(pc.fill_null(moments, -_NEVER).to_numpy(), dtype=np.int64)


def _numbers(column: pa.Array | pa.ChunkedArray) -> Values:
    """Any numbers as float64 (microseconds since 1970 are exact up to the year 2255), −∞ for null."""
    return np.asarray(pc.fill_null(column.cast(pa.float64()), -np.inf).to_numpy(zero_copy_only=False))


def _require_known(index: npt.NDArray[np.integer[Any]], size: int, file: str, column: str, stage: str) -> None:
    wrong = (index < 0) | (index >= size)
    if wrong.any():
        raise InputError(
            f"{file}: {int(wrong.sum()):,} rows have a {column} that the dataset does not have",
            expected="a file that was made of this dataset",
            do=f"write it again: `recsys run --from {stage}`",
        )


def _moment(micros: int) -> str:
    return f"{np.datetime64(micros, 'us')}".removesuffix(".000000") + "Z"


def _share(count: int, out_of: int) -> str:
    return f"{count:,} of {out_of:,}" + (f" ({count / out_of:.1%})" if out_of else "")
