"""What the scripts share: their arguments, the sequences they read, the figures they print.

They run where this project is not installed, so nothing but numpy and the standard library is imported here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

# The folder above, which holds what all benchmarks share and imports nothing but the standard library.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from _common import peak_mb

__all__ = ["TOP", "Data", "Ints", "Items", "Options", "Outcome", "main", "peak_mb", "users_and_places"]

TOP: Final = 10

Ints = npt.NDArray[np.int64]
Items = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Options:
    """The command line.

    Attributes:
        data: an `.npz` with the arrays of `Data`.
        out: where the lists are written, int32 [n_users, TOP] as `.npy`.
        epochs: passes over the training sequences.
        dim: width of the model; its feed-forward layers are four times as wide where the library lets one set it.
        layers: transformer blocks.
        heads: attention heads of each.
        length: events of history at most.
        positions: positions asked in a batch, about.
        dropout: rate, the same everywhere in the model.
        lr: Adam's learning rate.
        seed: decides weights, batches and dropout.
        threads: that PyTorch uses.
    """

    data: Path
    out: Path
    epochs: int
    dim: int
    layers: int
    heads: int
    length: int
    positions: int
    dropout: float
    lr: float
    seed: int
    threads: int


@dataclass(frozen=True)
class Data:
    """Sequences of all users, one after the other, oldest event first.

    Attributes:
        train_offsets: int64 [n_users + 1], where each user's training sequence starts and ends.
        train_items: int32 [n], numbers from 0 to `n_items - 1`.
        test_offsets: int64 [n_users + 1].
        test_items: int32, what each user has seen when asked.
        n_items: size of the catalogue.
    """

    train_offsets: Ints
    train_items: Items
    test_offsets: Ints
    test_items: Items
    n_items: int


@dataclass(frozen=True)
class Outcome:
    """What a library did.

    Attributes:
        seconds: of training, by the clock on the wall; without preparing data and without ranking.
        positions: asked in all epochs; padding is not counted.
        peak_mb: the most memory of the process until training ended, MiB.
        lists: int32 [n_users, TOP], best first, without what the user has seen; -1 where there is none.
    """

    seconds: float
    positions: int
    peak_mb: float
    lists: Items


def main(library: str, description: str | None, train: Callable[[Data, Options], Outcome]) -> None:
    """Read the arguments and the data, train, write the lists and print one line of JSON.

    Args:
        library: name of its distribution, whose version is printed.
        description: what `--help` says; a script gives its `__doc__`.
        train: does the work.
    """
    options = _options(description)
    # A library that prints must not come between the reader and the one line.
    with contextlib.redirect_stdout(sys.stderr):
        outcome = train(_read(options.data), options)
    np.save(options.out, outcome.lists.astype(np.int32, copy=False))
    figures = {
        "seconds": outcome.seconds,
        "positions": outcome.positions,
        "epochs": options.epochs,
        "peak_mb": outcome.peak_mb,
        "version": version(library),
    }
    print(json.dumps(figures))


def users_and_places(offsets: Ints) -> tuple[Ints, Ints]:
    """Of every event its user and its place in the user's sequence, both int64 [n].

    The place stands for the time, for the libraries put events in order by themselves.
    """
    lengths = np.diff(offsets)
    users = np.repeat(np.arange(len(lengths)), lengths)
    return users, np.arange(offsets[-1]) - offsets[users]


def _options(description: str | None, argv: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("epochs", "dim", "layers", "heads", "length", "positions", "seed", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("dropout", "lr"):
        parser.add_argument(f"--{name}", type=float, required=True)
    options = Options(**vars(parser.parse_args(argv)))
    # A library may want another working folder.
    return Options(**{**asdict(options), "data": options.data.absolute(), "out": options.out.absolute()})


def _read(file: Path) -> Data:
    with np.load(file, allow_pickle=False) as arrays:
        return Data(
            arrays["train_offsets"].astype(np.int64),
            arrays["train_items"].astype(np.int32),
            arrays["test_offsets"].astype(np.int64),
            arrays["test_items"].astype(np.int32),
            int(arrays["n_items"]),
        )
