"""The ingest stage: a shop's log and catalogue in, a `Dataset` out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import schema
from recsys.artifacts import Draft, Recipe, hash_file, write_json
from recsys.errors import InputError, RecsysError
from recsys.ingest.catalogue import derive_catalogue, open_catalogue, read_catalogue
from recsys.ingest.clean import K_CORE, WANTED, bots, cancellations, check, outside_core
from recsys.ingest.config import IngestConfig
from recsys.ingest.dataset import PARTS, Dataset
from recsys.ingest.engine import DuckDbEngine, Engine, count_by, open_duckdb, open_engine, reading
from recsys.ingest.files import DataFile, find_files
from recsys.ingest.histories import CONTENT, MONEY, SESSION_KEY, Assembly, Histories
from recsys.ingest.log import AnyFile, Log, LogFile, event_types, find_log, open_log, read_log
from recsys.ingest.profile import Profile
from recsys.ingest.quarantine import read_raws, write_quarantine
from recsys.ingest.sequences import write_parts
from recsys.ingest.split import find_cuts, to_micros
from recsys.ingest.staging import Fingerprints, StagedFile, Staging
from recsys.ingest.statistics import Statistics
from recsys.ingest.tables import write_parquet
from recsys.runtime import Runtime, ahead


def ingest(
    config: IngestConfig,
    out: Path,
    *,
    data: Path = Path(),
    runtime: Runtime = Runtime(),
    force: bool = False,
) -> Dataset:
    """Check a log against its catalogue, put bad rows aside, and write users, items, sequences and their split.

    Args:
        config: what the files are called and how they are read.
        out: folder of the dataset; nothing is done if it is what would be written again.
        data: folder in which the config's relative paths start.
        runtime: seed of the order inside equal times; threads and memory of the engine.
        force: write it again even so.

    Returns:
        The dataset, opened.

    Raises:
        InputError: the files cannot be used, or no event is left; what was at `out` is untouched.
    """
    kept = out.parent / "staged" / out.name
    fingerprints = Fingerprints(kept) if config.incremental else None
    fingerprint = fingerprints.of if fingerprints else hash_file
    recipe = Recipe(
        kind=Dataset.kind,
        config=_what_counts(config),
        inputs={name: fingerprint(file.path) for name, file in _inputs(config, data)},
        seed=runtime.seed,
        modules=("recsys.ingest",),
    )
    if force or not recipe.is_current(out):
        with recipe.build(out) as draft, open_engine(config, draft.scratch / "engine", runtime) as engine:
            staging = Staging(kept, fingerprints, draft.scratch / "landed") if fingerprints else None
            _Ingestion(engine, config, data, draft, runtime, staging).run()
    if fingerprints:
        fingerprints.save()
    return Dataset.open(out)


def _inputs(config: IngestConfig, data: Path) -> Iterator[tuple[str, DataFile]]:
    """All files that are read, each under a name that says what it is and how it is called in the quarantine."""
    for file, _ in find_log(config, data):
        yield f"events {file.name}", file
    if not config.items_from_events:
        for file in find_files(data, config.items, config.items_text, key="ingest.items"):
            yield f"items {file.name}", file


def _what_counts(config: IngestConfig) -> IngestConfig:
    """The config without what decides only how the dataset is made, and not what is in it."""
    defaults = IngestConfig()
    # The files' content and names count, not the folder that they lie in.
    free = {"events", "items", "engine", "spark", "incremental"}
    sources = tuple(source.model_copy(update={"events": defaults.events}) for source in config.sources)
    return config.model_copy(update={name: getattr(defaults, name) for name in free} | {"sources": sources})


def check_input(config: IngestConfig, data: Path, runtime: Runtime) -> None:
    """Open the log and the catalogue as `ingest` would: columns, event types and titles are checked, nothing is kept.

    Raises:
        InputError: they cannot be used.
    """
    with TemporaryDirectory() as folder, open_engine(config, Path(folder) / "engine", runtime) as engine:
        read_log(engine, config, open_log(config, data, Path(folder) / "landed", runtime))
        if not config.items_from_events:
            read_catalogue(engine, open_catalogue(config, data, Path(folder) / "items"), config)


_REJECTED: Final = ("file", "row", "reason")


class _Ingestion:
    """One run of the stage; its steps, in their order."""

    def __init__(
        self,
        engine: Engine,
        config: IngestConfig,
        data: Path,
        draft: Draft,
        runtime: Runtime,
        staging: Staging | None,
    ) -> None:
        self._staging = staging
        self._engine, self._config, self._data, self._draft, self._runtime = engine, config, data, draft, runtime
        self._as_of = to_micros(config.as_of or datetime.now(UTC))

    def run(self) -> None:
        self._log = log = self._read_log()
        catalogue, catalogue_counts = self._check()
        self._apply_rules_between_rows()

        path = self._draft.path
        items = catalogue.filter(catalogue.item_idx.notnull()).order_by(schema.ITEM_IDX)
        n_items = write_parquet(self._engine.stream(items), path / "items.parquet", schema.ITEMS)
        by_part = count_by(items, "part")
        self._n_known = np.cumsum([by_part.get(part, 0) for part in range(len(PARTS))]).tolist()
        users = self._number_users()
        n_users = write_parquet(
            self._engine.stream(users.order_by(schema.USER_IDX)), path / "users.parquet", schema.USERS
        )
        written = self._write_histories(users)
        quarantined = self._count_rejected()
        self._write_quarantine(sum(quarantined.values()))
        merged = self._merged
        n_out = written["kept"] + sum(quarantined.values()) + sum(merged.values())
        if log.n_rows != n_out:
            raise RecsysError(
                f"rows were lost on the way, which is a fault of recsys: {log.n_rows} came, {written['kept']} were "
                f"kept, {sum(quarantined.values())} quarantined and {sum(merged.values())} merged"
            )
        counts = {
            "rows_in": log.n_rows,
            "kept": written["kept"],
            "users": n_users,
            "items": n_items,
            **{name: written[name] for name in ("sessions", *PARTS)},
            "events": written["events"],
            "quarantined": quarantined,
            "merged": merged,
            "catalogue": catalogue_counts,
            "files": len(log.files),
        }
        write_json(path / "profile.json", self._profile.finish(counts))
        self._draft.counts |= counts
        self._draft.info |= {
            "event_types": event_types(self._config),
            "event_weights": [self._config.event_weights.get(name, 1.0) for name in event_types(self._config)],
            "protocol": self._config.protocol,
            "train_until": self._cuts.train_until,
            "valid_until": self._cuts.valid_until,
            "as_of": self._as_of,
            "timestamp_unit": next(iter(log.units.values())),
        }

    def _read_log(self) -> Log:
        scratch = self._draft.scratch / "landed"
        if self._staging is None:
            return read_log(self._engine, self._config, open_log(self._config, self._data, scratch, self._runtime))
        return self._staging.read_log(self._engine, self._config, self._data, self._runtime)

    def _check(self) -> tuple[ibis.Table, dict[str, int]]:
        """Judge every row by itself and by the catalogue, which is returned with its counts; find the cuts."""
        engine, config, log = self._engine, self._config, self._log
        rows = log.rows
        if config.items_from_events:
            with reading(log.name):
                rows = engine.keep("rows", check(rows, None, as_of=self._as_of))
            self._judge(rows)
            catalogue, counts = derive_catalogue(engine, self._good, self._cuts, config)
            self._judge(engine.keep("checked", check(rows, catalogue, as_of=self._as_of)))
            return catalogue, counts
        files = open_catalogue(config, self._data, self._draft.scratch / "landed_items")
        catalogue, counts = read_catalogue(engine, files, config)
        with reading(log.name):
            checked = engine.keep("checked", check(rows, catalogue, as_of=self._as_of))
        self._judge(checked)
        return catalogue, counts

    def _judge(self, checked: ibis.Table) -> None:
        self._good = checked.filter(checked.reason.isnull())
        self._rejected = [checked.filter(checked.reason.notnull()).select(*_REJECTED)]
        self._stop_if_too_bad()
        self._cuts = find_cuts(self._good, self._config)

    def _apply_rules_between_rows(self) -> None:
        """Reject what only other rows show to be wrong."""
        config, cuts = self._config, self._cuts
        if config.bot_events_per_hour or config.bot_events_per_day:
            self._reject("bot", bots(self._good, cuts, config).mutate(reason=ibis.literal("bot")))
        if config.cancelled or "cancel" in config.event_types.values():
            self._reject("cancelled", cancellations(self._good, cuts))
        if config.min_user_events > 1 or config.min_item_events > 1:
            outside = outside_core(
                self._engine,
                self._good,
                cuts,
                min_user_events=config.min_user_events,
                min_item_events=config.min_item_events,
            )
            self._reject("core", outside.mutate(reason=ibis.literal(K_CORE)))
        if len(self._rejected) > 1:
            self._stop_if_empty(self._count_rejected())

    def _reject(self, rule: str, rows: ibis.Table) -> None:
        found = self._engine.keep(f"rejected_by_{rule}", rows.select(*_REJECTED))
        self._rejected.append(found)
        self._good = self._engine.keep(f"good_after_{rule}", self._good.anti_join(found, ["file", "row"]))

    def _number_users(self) -> ibis.Table:
        """Users in the order of the part in which they are first seen, so that later ones do not renumber them."""
        good = self._good
        first = good.group_by(schema.USER_ID).aggregate(first=good.timestamp.min())
        index = ibis.row_number().over(order_by=["part", schema.USER_ID])
        users = first.mutate(part=self._cuts.part(first.first)).mutate(user_idx=index.cast("int32"))
        return self._engine.keep("users", users.select(schema.USER_IDX, schema.USER_ID))

    def _write_histories(self, users: ibis.Table) -> dict[str, Any]:
        """Write the three parts and what is counted on the way."""
        path, config = self._draft.path, self._config
        names = (schema.ITEM_IDX, schema.EVENT_TYPE, schema.TIMESTAMP, CONTENT)
        optional = (name for name in (SESSION_KEY, schema.POSITION, MONEY) if name in self._good.columns)
        events = self._good.inner_join(users, schema.USER_ID).select(schema.USER_IDX, *names, *optional)
        events = events.order_by(schema.USER_IDX, schema.TIMESTAMP)
        items = pq.read_table(path / "items.parquet")
        types = event_types(config)
        assembly = Assembly(
            item_ids=items[schema.ITEM_ID],
            cuts=self._cuts,
            gap=round(config.session_gap_minutes * 60_000_000),
            seed=self._runtime.seed,
        )
        self._profile = Profile(items, types)
        statistics = Statistics(
            items,
            types,
            self._cuts,
            n_known=self._n_known,
            weights=config.event_weights,
            popularity_days=config.popularity_days,
        )
        by_type = np.zeros(len(types), dtype=np.int64)
        n_sessions = 0

        def counted(users_file: pq.ParquetFile) -> Iterator[Histories]:
            nonlocal by_type, n_sessions
            stream = self._runtime.track(self._engine.stream(events), label="order events by user", unit="batch")
            for histories in ahead(assembly.histories(stream, users_file.iter_batches())):
                self._profile.add(histories)
                by_type += np.bincount(histories.event_type, minlength=len(types))
                n_sessions += int(np.maximum.reduceat(histories.session, histories.offsets[:-1]).sum()) + len(histories)
                yield histories

        with pq.ParquetFile(path / "users.parquet") as users_file:
            by_part = write_parts(path, statistics.write_users(path, counted(users_file)))
        statistics.write_items(path)
        self._merged = asdict(assembly.merged)
        return {
            "kept": int(by_type.sum()),
            "sessions": n_sessions,
            **by_part,
            "events": dict(zip(types, by_type.tolist(), strict=True)),
        }

    def _write_quarantine(self, n_rejected: int) -> None:
        path = self._draft.path / "quarantine.parquet"
        rejected = reduce(lambda one, other: one.union(other), self._rejected)
        if isinstance(self._engine, DuckDbEngine):
            n_written = self._write_raws(self._engine, rejected, path)
        else:
            with open_duckdb(self._draft.scratch / "duckdb", self._runtime) as local:
                found = pa.Table.from_batches(self._engine.stream(rejected), rejected.schema().to_pyarrow())
                n_written = self._write_raws(local, local.take("rejected", found), path)
        if n_written != n_rejected:
            raise RecsysError(
                f"rows were lost on the way, which is a fault of recsys: {n_rejected} were rejected, {n_written} found "
                "in the files"
            )

    def _write_raws(self, local: DuckDbEngine, rejected: ibis.Table, path: Path) -> int:
        def raws(file: AnyFile, wanted: ibis.Table) -> ibis.Table:
            if isinstance(file, StagedFile):
                assert self._staging is not None
                return self._staging.raws(local, file, wanted)
            assert isinstance(file, LogFile)
            return read_raws(local, file, wanted)

        return write_quarantine(local, self._log.files, rejected, path, raws)

    def _count_rejected(self) -> dict[str, int]:
        """Number of rejected rows by reason, those included that could not be read from their file."""
        counts: dict[str, int] = {}
        unread = [pc.value_counts(file.rejected["reason"]).to_pylist() for file in self._log.files]
        found = [count_by(table, "reason") for table in self._rejected]
        for each in (*found, *({pair["values"]: pair["counts"] for pair in pairs} for pairs in unread)):
            for reason, n in each.items():
                counts[reason] = counts.get(reason, 0) + n
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    def _stop_if_too_bad(self) -> None:
        quarantined = self._count_rejected()
        self._stop_if_empty(quarantined)
        log, limit = self._log, self._config.max_bad_share
        n_faulty = sum(n for reason, n in quarantined.items() if reason not in WANTED)
        if n_faulty > limit * log.n_rows:
            raise InputError(
                f"{n_faulty:,} of {log.n_rows:,} rows of {log.name} are faulty: {_in_words(quarantined)}",
                expected=f"at most {limit:.1%} (ingest.max_bad_share)",
                do="mend what wrote the log, or raise ingest.max_bad_share",
            )

    def _stop_if_empty(self, quarantined: dict[str, int]) -> None:
        if sum(quarantined.values()) == self._log.n_rows:
            raise InputError(
                f"all {self._log.n_rows:,} rows of {self._log.name} were rejected: {_in_words(quarantined)}",
                expected="some event of a known item at a time in the past",
                do="check [ingest.columns], ingest.timestamp_unit, and that events and items name the same items",
            )


def _in_words(quarantined: dict[str, int]) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in quarantined.items())
