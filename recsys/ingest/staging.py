"""What is kept of each file from run to run, so that a nightly run reads only what is new or has changed.

A file's rows under the contract's names, with the reasons that they give by themselves, depend on nothing but the file
and the config. They are kept as Parquet; all that depends on other rows, on the catalogue or on the time of the run is
computed anew over all files. So the result is that of a full run, whatever came late, changed or went away.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.artifacts import code_version, hash_file, write_json
from recsys.ingest.config import EventSource, IngestConfig, TimestampUnit
from recsys.ingest.engine import FILE, DuckDbEngine, Engine
from recsys.ingest.files import DataFile
from recsys.ingest.log import (
    FileGroup,
    Log,
    LogFile,
    check_event_types,
    choose_units,
    find_log,
    log_name,
    open_file,
    uniform,
)
from recsys.ingest.quarantine import read_raws
from recsys.runtime import Runtime

_INDEX: Final = "files.json"
# What the config says of rows that no file has a say in.
_LATER: Final = frozenset(
    {
        "items",
        "items_text",
        "merchandise",
        "as_of",
        "bot_events_per_hour",
        "bot_events_per_day",
        "max_bad_share",
        "session_gap_minutes",
        "min_user_events",
        "min_item_events",
        "event_weights",
        "popularity_days",
        "protocol",
        "test_days",
        "valid_days",
        "train_until",
        "valid_until",
        "category_separator",
        "sources",
        "events",
        "spark",
        "incremental",
    }
)


class Fingerprints:
    """Content hashes of files, kept by path, size and time of change, so that an old file is not read again."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _INDEX
        try:
            known = json.loads(self._path.read_text())
        except (OSError, ValueError):
            known = {}
        self._known: dict[str, list[Any]] = known if isinstance(known, dict) else {}
        self._seen: dict[str, list[Any]] = {}

    def of(self, path: Path) -> str:
        """The file's content hash."""
        status, key = path.stat(), str(path.absolute())
        stamp = [status.st_size, status.st_mtime_ns]
        known = self._known.get(key)
        content = known[2] if known and known[:2] == stamp else hash_file(path)
        self._seen[key] = [*stamp, content]
        return str(content)

    def save(self) -> None:
        """Keep what was asked for."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, self._seen)


@dataclass(frozen=True)
class StagedFile:
    """A file whose rows are kept.

    Attributes:
        number: its place in the log.
        file: the file as the shop has it.
        source: the config of its kind.
        folder: where it is kept.
    """

    number: int
    file: DataFile
    source: EventSource
    folder: Path

    @cached_property
    def _look(self) -> dict[str, Any]:
        look: dict[str, Any] = json.loads((self.folder / "look.json").read_text())
        return look

    @property
    def n_rows(self) -> int:
        """Number of rows, those that could not be read included."""
        return int(self._look["n_rows"])

    @property
    def unit_votes(self) -> dict[str, int]:
        """As `FileGroup.unit_votes`."""
        return dict(self._look["unit_votes"])

    @property
    def event_types(self) -> dict[str, int]:
        """As `FileGroup.event_types`."""
        return dict(self._look["event_types"])

    @cached_property
    def rejected(self) -> pa.Table:
        """The rows that could not be read: `row`, `raw`, `reason`."""
        return pq.read_table(self.folder / "rejected.parquet")

    def rows(self, unit: TimestampUnit) -> Path:
        """The file of its rows, times read in this unit."""
        return self.folder / f"rows_{unit}.parquet"

    @property
    def raws(self) -> Path:
        """The file of its rows as they came, as far as they were ever rejected."""
        return self.folder / "raws.parquet"


class Staging:
    """The kept files of a log."""

    def __init__(self, folder: Path, fingerprints: Fingerprints, scratch: Path) -> None:
        """Open the folder.

        Args:
            folder: where files are kept; nothing else may stand there.
            fingerprints: tells whether a file is one that is kept.
            scratch: folder for files that are needed only once.
        """
        self._folder, self._fingerprints, self._scratch = folder, fingerprints, scratch
        self.n_read = 0

    def read_log(self, engine: Engine, config: IngestConfig, data: Path, runtime: Runtime) -> Log:
        """The log, of which only files are read that are not kept yet.

        Raises:
            InputError: a file cannot be used.
        """
        found = runtime.track(find_log(config, data), label="look for new files", unit="file")
        files = [self._stage(engine, config, n, file, source) for n, (file, source) in enumerate(found)]
        name = log_name(files)
        units = choose_units(config, [(file.source, file.unit_votes) for file in files])
        check_event_types([file.event_types for file in files], config, name)
        for file in files:
            if not file.rows(units[file.source]).exists():
                group = FileGroup(engine, config, [self._open(file)])
                self._keep_rows(engine, group, file, units[file.source])
        self._forget_all_but(files)
        rows = engine.read([file.rows(units[file.source]) for file in files])
        return Log(name, files, units, rows.mutate(file=rows[FILE], row=rows.kept_row).drop(FILE, "kept_row"))

    def _stage(
        self, engine: Engine, config: IngestConfig, number: int, file: DataFile, source: EventSource
    ) -> StagedFile:
        staged = StagedFile(number, file, source, self._folder / self._key(engine, config, file, source))
        if staged.folder.exists():
            return staged
        self.n_read += 1
        opened = self._open(staged)
        group = FileGroup(engine, config, [opened])
        look = {"n_rows": opened.n_rows, "unit_votes": group.unit_votes(), "event_types": group.event_types()}
        unfinished = self._folder / f".{staged.folder.name}.{os.getpid()}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write_json(unfinished / "look.json", look)
        pq.write_table(opened.rejected, unfinished / "rejected.parquet")
        unfinished.rename(staged.folder)
        # Most likely the unit that the whole log will choose; if not, the rows are written once more.
        check_event_types([staged.event_types], config, file.name)
        self._keep_rows(engine, group, staged, choose_units(config, [(source, staged.unit_votes)])[source])
        return staged

    def _open(self, file: StagedFile) -> LogFile:
        return open_file(file.number, file.file, file.source, self._scratch)

    @staticmethod
    def _keep_rows(engine: Engine, group: FileGroup, file: StagedFile, unit: TimestampUnit) -> None:
        rows = uniform(group.rows(unit), group.optional_columns())
        rows = rows.mutate(kept_row=rows.row).drop("file", "row")
        path = file.rows(unit)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        with pq.ParquetWriter(unfinished, rows.schema().to_pyarrow(), compression="zstd") as writer:
            for batch in engine.stream(rows):
                writer.write_batch(batch.cast(writer.schema))
        unfinished.replace(path)

    def raws(self, local: DuckDbEngine, file: StagedFile, wanted: ibis.Table) -> ibis.Table:
        """Rows as they came, `row` and `raw`; the file is read again only for rows that were never rejected before."""
        known = pq.read_table(file.raws) if file.raws.exists() else _NO_RAWS
        kept = local.take(f"raws_{file.number}", known)
        missing = local.keep(f"missing_{file.number}", wanted.anti_join(kept, "row").select("row"))
        n_missing = missing.count().to_pyarrow().as_py()
        if n_missing:
            found = read_raws(local, self._open(file), missing)
            fresh = pa.Table.from_batches(local.stream(found), _NO_RAWS.schema)
            known = pa.concat_tables([known, fresh])
            unfinished = file.raws.with_name(f".{file.raws.name}.{os.getpid()}")
            pq.write_table(known, unfinished, compression="zstd")
            unfinished.replace(file.raws)
            kept = local.take(f"all_raws_{file.number}", known)
        return kept

    def _key(self, engine: Engine, config: IngestConfig, file: DataFile, source: EventSource) -> str:
        """A name for all that the file's rows depend on."""
        said = {
            "content": self._fingerprints.of(file.path),
            "format": file.format,
            "partition": dict(file.partition),
            "source": source.model_dump(mode="json", exclude={"events"}),
            "config": config.model_dump(mode="json", exclude=set(_LATER)),
            "code": code_version("recsys.schema", "recsys.ingest"),
            # The engine's own hash of a row's content must not change among the files.
            "engine": [type(engine).__name__, duckdb.__version__],
        }
        return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()

    def _forget_all_but(self, files: Sequence[StagedFile]) -> None:
        used = {file.folder.name for file in files}
        for folder in self._folder.iterdir():
            if folder.is_dir() and folder.name not in used:
                shutil.rmtree(folder, ignore_errors=True)


_NO_RAWS: Final = pa.table({"row": pa.array([], pa.int64()), "raw": pa.array([], pa.string())})
