"""The habit of every benchmark: a table for people, and with --json one line per figure for machines."""

from __future__ import annotations

import argparse
import contextlib
import json
import operator
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured; words joined by dots, the same from run to run.
        value: the number.
        unit: of the value, "" for a ratio or a share.
        target: what it has to be, such as "≥ 0.095"; None where nothing is asked.
        holds: whether it is; None where nothing is asked.
    """

    name: str
    value: float
    unit: str = ""
    target: str | None = None
    holds: bool | None = None


def at_least(name: str, value: float, target: float, unit: str = "") -> Figure:
    """A figure that must not be below its target."""
    return _judged(name, value, unit, target, "≥", operator.ge)


def at_most(name: str, value: float, target: float, unit: str = "") -> Figure:
    """A figure that must not be above its target."""
    return _judged(name, value, unit, target, "≤", operator.le)


def _judged(
    name: str, value: float, unit: str, target: float, sign: str, compare: Callable[[float, float], bool]
) -> Figure:
    # bool() because a numpy comparison gives a bool that JSON does not know.
    return Figure(name, float(value), unit, f"{sign} {target:g}", bool(compare(value, target)))


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; a script adds its own.

    Args:
        description: what `--help` says; a script gives its `__doc__`, which tells how to run it again.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per figure; the table goes to stderr"
    )
    return parser


def report(figures: Sequence[Figure], *, as_json: bool) -> int:
    """Print the figures.

    Returns:
        The script's exit status: 0 if every target holds, else 1.
    """
    print(table(figures), file=sys.stderr if as_json else sys.stdout)
    if as_json:
        for figure in figures:
            print(json.dumps(asdict(figure), ensure_ascii=False))
    return 0 if all(figure.holds is not False for figure in figures) else 1


def table(figures: Sequence[Figure]) -> str:
    """The figures in aligned columns."""
    verdict = {True: "holds", False: "MISSED", None: ""}
    rows = [("figure", "value", "unit", "target", "")]
    rows += [(f.name, f"{f.value:,.6g}", f.unit, f.target or "", verdict[f.holds]) for f in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(cell.rjust(width) if place == 1 else cell.ljust(width) for place, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    lines.insert(1, "─" * (sum(widths) + 8))
    return "\n".join(line.rstrip() for line in lines)


def peak_mb() -> float:
    """The most memory that this process has had, MiB."""
    # On Linux `ru_maxrss` begins with the memory of the process that started this one, which may be a larger one.
    with contextlib.suppress(OSError), Path("/proc/self/status").open() as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
