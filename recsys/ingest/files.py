"""A source's files: found by a name, a glob or a folder, each with its format and the hive levels of its folders."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote

from recsys.errors import InputError
from recsys.ingest.config import TextFormat

Format = Literal["parquet", "csv", "jsonl"]

COMPRESSIONS: Final = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}
_ENDINGS: Final[dict[str, Format]] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".dat": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_SIDECARS: Final = (".crc",)  # checksums that Hadoop writes beside its files
_NO_VALUE: Final = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class DataFile:
    """One file of a source.

    Attributes:
        path: where it lies.
        name: how it is called towards the user: relative to the `data` folder, or to the source's own folder where
            that lies outside: where the data lies on a machine says nothing about it.
        format: "parquet", "csv" or "jsonl".
        partition: what the levels of its folders below the source's own folder say, such as {"dt": "2026-11-20"};
            "" for hive's default partition.
    """

    path: Path
    name: str
    format: Format
    partition: Mapping[str, str]


def find_files(data: Path, pattern: Path, text: TextFormat, *, key: str) -> list[DataFile]:
    """The files that a source's `pattern` names, sorted by name.

    What lies in a folder or fits a glob counts at all levels, except for hidden files, those whose name or folder
    begins with `_` (such as `_SUCCESS`), and checksums. A file that can be reached by two names counts once.

    Args:
        data: the folder that a relative pattern starts from.
        pattern: a file, a glob with `*`, `?`, `[…]` or `**`, or a folder.
        text: how the source's files of text are written.
        key: the config's key of the pattern, such as "ingest.events", for messages.

    Raises:
        InputError: nothing is there, it has no usable file, the format of one is not known, or the files' folders do
            not have the same keys.
    """
    root, paths = _search(data.absolute() / pattern, key)
    text_key = key.replace("events", "text") if key.endswith("events") else f"{key}_text"
    files = [
        DataFile(
            path=path,
            name=_name(path, data, root, key),
            format=_format(path, text, key, text_key),
            partition=_partition(path.relative_to(root), key),
        )
        for path in paths
    ]
    for file in files[1:]:
        if file.partition.keys() != files[0].partition.keys():
            raise InputError(
                f"{files[0].name} lies in folders with the keys {list(files[0].partition)}, "
                f"but {file.name} in folders with the keys {list(file.partition)}",
                expected="the same keys (as in dt=2026-11-20) for all files of a source",
                do=f"name one kind of files in {key}",
            )
    return sorted(files, key=lambda file: file.name)


def ending(path: Path) -> str:
    """What a name ends in, such as ".csv", in lower case and without the ending of a compression."""
    packed = path.suffix.lower() in COMPRESSIONS
    return (path.with_suffix("") if packed else path).suffix.lower()


def _search(place: Path, key: str) -> tuple[Path, list[Path]]:
    """The folder that the search starts from, and the files found."""
    if place.is_file():  # before globs, for its name may have brackets
        return place.parent, [place]
    root, matched = place, [place]
    if not place.is_dir():
        n_fixed = next((i for i, part in enumerate(place.parts) if glob.has_magic(part)), None)
        if n_fixed is None:
            raise InputError(
                f"{place} is not there",
                expected="a file, a glob or a folder",
                do=f"correct {key}, or `data` (RECSYS_DATA) where it is relative",
            )
        root, rest = Path(*place.parts[:n_fixed]), str(Path(*place.parts[n_fixed:]))
        # Not Path.glob: what its ** stands for varies between Python's versions.
        matched = [root / name for name in glob.glob(rest, root_dir=root, recursive=True)]  # noqa: PTH207
    # A glob such as dt=* stands for all that is in the folders that it fits.
    found = {path for each in matched for path in (_below(each, key) if each.is_dir() else [each])}
    paths: dict[str, Path] = {}
    # Under its own name rather than under a link's, whose folders may say something else.
    for path in sorted(found, key=lambda path: (path.is_symlink(), path)):
        if not all(map(_is_open, path.relative_to(root).parts)) or path.suffix in _SIDECARS:
            continue
        if not path.is_file():
            raise InputError(f"{path} is no file", expected="files and folders", do=f"remove it, or narrow {key}")
        paths.setdefault(os.path.realpath(path), path)
    if not paths:
        raise InputError(
            f"there is no file in {place}" if place.is_dir() else f"no file fits {place}",
            expected="files whose names do not begin with a dot or an underscore",
            do=f"set {key} to a file, a glob or a folder",
        )
    return root, list(paths.values())


def _is_open(name: str) -> bool:
    """Not hidden, and not one that tools keep for themselves."""
    return not name.startswith((".", "_"))


def _below(folder: Path, key: str) -> Iterator[Path]:
    """All files at all levels, through links too; a folder that is linked into itself is left at the second visit."""

    def fail(error: OSError) -> None:
        raise InputError(
            f"the folder {error.filename} cannot be read: {error.strerror}",
            expected="folders that may be looked into",
            do=f"narrow {key}, or allow it",
        )

    seen = set()
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = sorted(filter(_is_open, folders), key=lambda name: (Path(parent, name).is_symlink(), name))
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(parent, name) for name in names)


def _name(path: Path, data: Path, root: Path, key: str) -> str:
    folder = data.absolute()
    name = path.relative_to(folder if path.is_relative_to(folder) else root).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{name!a} is no name in UTF-8",
            expected="a name that can be written to a table",
            do=f"rename the file, which {key} names, or its folder",
        ) from None
    return name


def _format(path: Path, text: TextFormat, key: str, text_key: str) -> Format:
    by_ending = _ENDINGS.get(ending(path))
    found = by_ending if text.format == "auto" or by_ending == "parquet" else text.format
    if found is None:
        raise InputError(
            f"{path} has a name that does not tell its format",
            expected=f"one of {', '.join(_ENDINGS)}, with one of {', '.join(COMPRESSIONS)} after it where compressed",
            do=f"say {text_key}.format, or leave the file out by a glob in {key}",
        )
    if found == "parquet" and path.suffix.lower() in COMPRESSIONS:
        raise InputError(
            f"{path} is a Parquet file that was compressed once more",
            expected="Parquet as it is; it is compressed inside",
            do="unpack it",
        )
    return found


def _partition(path: Path, key: str) -> dict[str, str]:
    levels = [part.split("=", 1) for part in path.parent.parts if part.find("=") > 0]
    partition = {unquote(name): "" if value == _NO_VALUE else unquote(value) for name, value in levels}
    if len(partition) < len(levels):
        raise InputError(f"{path} has the same key twice in its folders", expected="each key once", do=f"narrow {key}")
    return partition
