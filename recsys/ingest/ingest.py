"""The ingest stage: a shop's log and catalogue in, a `Dataset` out."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ibis
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import schema
from recsys.artifacts import Draft, Recipe, hash_file
from recsys.errors import InputError, RecsysError
from recsys.ingest.catalogue import read_catalogue
from recsys.ingest.clean import EVENT_KEY, K_CORE, USER_KEY, WANTED, check, count_merged, merge, quarantine, rows_of
from recsys.ingest.config import IngestConfig
from recsys.ingest.dataset import Dataset
from recsys.ingest.engine import count, drop, engine, reading, require_file, write_parquet
from recsys.ingest.log import Log, event_types
from recsys.ingest.sequences import k_core, number_sessions, random_key, sequences
from recsys.ingest.split import Cuts, find_cuts, to_micros
from recsys.runtime import Runtime

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend


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
    files = {"events": data / config.events, "items": data / config.items}
    for path in files.values():
        require_file(path)
    recipe = Recipe(
        kind=Dataset.kind,
        # A file's content counts, not the folder that it lies in; its name is written to the quarantine.
        config=config.model_copy(update={name: Path(path.name) for name, path in files.items()}),
        inputs={name: hash_file(path) for name, path in files.items()},
        seed=runtime.seed,
        modules=("recsys.ingest",),
    )
    if force or not recipe.is_current(out):
        with recipe.build(out) as draft, engine(draft.scratch, runtime) as connection:
            _build(connection, config, draft, files["events"], files["items"], runtime)
    return Dataset.open(out)


def _build(
    connection: Backend, config: IngestConfig, draft: Draft, events_path: Path, items_path: Path, runtime: Runtime
) -> None:
    as_of = to_micros(config.as_of or datetime.now(UTC))
    catalogue, catalogue_counts = read_catalogue(connection, items_path, config)
    log = Log(connection, events_path, config)
    with reading(events_path):
        checked = connection.create_table("checked", check(log, catalogue, as_of=as_of))
    rejected, good = checked.filter(checked.reason.notnull()), checked.filter(checked.reason.isnull())
    quarantined = _count_by(rejected, "reason")
    _stop_if_too_bad(log, quarantined, config)

    keys = good.select(schema.USER_ID).distinct().mutate(user_key=ibis.row_number().over(order_by=schema.USER_ID))
    keys = connection.create_table("user_keys", keys)
    good = good.inner_join(keys, schema.USER_ID)
    events = _merge(connection, good, log.n_rows - sum(quarantined.values()), config, runtime)
    cuts = find_cuts(events, config)
    if config.min_user_events > 1 or config.min_item_events > 1:
        events, lost = _cut_to_core(connection, events, cuts, config)
        out_of_core = rows_of(lost, good).mutate(reason=ibis.literal(K_CORE))
        rejected = rejected.select("row", "reason").union(out_of_core.select("row", "reason"))
        if n_lost := count(out_of_core):
            quarantined[K_CORE] = n_lost
        _stop_if_empty(log, quarantined)

    users = keys.semi_join(events, USER_KEY).mutate(user_idx=ibis.row_number().over(order_by=USER_KEY))
    users = connection.create_table("users", users)
    items = catalogue.filter(catalogue.item_idx.notnull())
    ids = items.select(schema.ITEM_IDX, schema.ITEM_ID)
    numbered = events.inner_join(users, USER_KEY).inner_join(ids, schema.ITEM_IDX)
    numbered = numbered.mutate(random_key=random_key(numbered, seed=runtime.seed))
    numbered = numbered.drop(USER_KEY, schema.USER_ID, schema.ITEM_ID, "n_rows")
    n_users = write_parquet(connection, users.order_by(schema.USER_IDX), draft.path / "users.parquet", schema.USERS)
    n_items = write_parquet(connection, items.order_by(schema.ITEM_IDX), draft.path / "items.parquet", schema.ITEMS)
    written = _write_sequences(connection, numbered, n_users, cuts, config, draft.path, runtime)
    n_quarantined = write_parquet(
        connection, quarantine(log, rejected), draft.path / "quarantine.parquet", schema.QUARANTINE
    )

    merged = count_merged(log, good, events)
    if log.n_rows != written["kept"] + n_quarantined + sum(merged.values()):
        raise RecsysError(
            f"rows were lost on the way, which is a fault of recsys: {log.n_rows} came, {written['kept']} were kept, "
            f"{n_quarantined} quarantined and {merged} merged"
        )
    types = event_types(config)
    by_code = _count_by(events, schema.EVENT_TYPE)
    draft.counts |= {
        "rows_in": log.n_rows,
        "kept": written.pop("kept"),
        "users": n_users,
        "items": n_items,
        **written,
        "events": {name: by_code.get(code, 0) for code, name in enumerate(types)},
        "quarantined": quarantined,
        "merged": merged,
        "catalogue": catalogue_counts,
    }
    draft.info |= {
        "event_types": types,
        "protocol": config.protocol,
        "train_until": cuts.train_until,
        "valid_until": cuts.valid_until,
        "as_of": as_of,
        "timestamp_unit": log.timestamp_unit,
    }


def _merge(connection: Backend, rows: ibis.Table, n_rows: int, config: IngestConfig, runtime: Runtime) -> ibis.Table:
    """All events of `rows`, merged one bucket of users after the other, so that memory does not grow with the log."""
    n_buckets = ceil(n_rows / config.events_per_bucket)
    events = connection.create_table("events", schema=merge(rows).schema())
    for bucket in runtime.track(range(n_buckets), label="merge rows to events", unit="bucket"):
        part = rows if n_buckets == 1 else rows.filter((rows.user_id.hash() % n_buckets).abs() == bucket)
        connection.insert("events", merge(part))
    return events


def _cut_to_core(
    connection: Backend, events: ibis.Table, cuts: Cuts, config: IngestConfig
) -> tuple[ibis.Table, ibis.Table]:
    """Events that stay and events that are lost to the k-core, which is that of the training events alone."""
    training = events.filter(cuts.trains(events))
    core = k_core(connection, training, min_user_events=config.min_user_events, min_item_events=config.min_item_events)
    lost = connection.create_table("lost", training.anti_join(core, core.columns))
    return connection.create_table("core_events", events.anti_join(lost, list(EVENT_KEY))), lost


def _write_sequences(
    connection: Backend,
    events: ibis.Table,
    n_users: int,
    cuts: Cuts,
    config: IngestConfig,
    folder: Path,
    runtime: Runtime,
) -> dict[str, int]:
    """Write sequences and splits, one range of users after the other, and count what was written."""
    n_buckets = min(n_users, ceil(count(events) / config.events_per_bucket))
    bounds = [n_users * bucket // n_buckets for bucket in range(n_buckets + 1)]
    gap = round(config.session_gap_minutes * 60_000_000)
    counts = dict.fromkeys(("kept", "sessions", "train", "valid", "test"), 0)
    with (
        pq.ParquetWriter(folder / "sequences.parquet", schema.SEQUENCES, compression="zstd") as sequences_file,
        pq.ParquetWriter(folder / "splits.parquet", schema.SPLITS, compression="zstd") as splits_file,
    ):
        buckets = list(itertools.pairwise(bounds))
        for first, stop in runtime.track(buckets, label="order events by user", unit="bucket"):
            # A table, not an expression: it is read more than once.
            bucket = events.filter((events.user_idx >= first) & (events.user_idx < stop))
            bucket = connection.create_table("bucket", bucket)
            table = connection.to_pyarrow(sequences(number_sessions(bucket, gap=gap), cuts))
            drop(connection, bucket)
            sequences_file.write_table(table.select(schema.SEQUENCES.names).cast(schema.SEQUENCES))
            splits_file.write_table(table.select(schema.SPLITS.names).cast(schema.SPLITS))
            kept = pc.sum(pc.list_value_length(table[schema.ITEM_IDX])).as_py()
            train_end, valid_end = (pc.sum(table[name]).as_py() for name in ("train_end", "valid_end"))
            counts["kept"] += kept
            counts["sessions"] += pc.sum(table["n_sessions"]).as_py()
            counts["train"] += train_end
            counts["valid"] += valid_end - train_end
            counts["test"] += kept - valid_end
    return counts


def _stop_if_too_bad(log: Log, quarantined: dict[str, int], config: IngestConfig) -> None:
    _stop_if_empty(log, quarantined)
    n_faulty = sum(n for reason, n in quarantined.items() if reason not in WANTED)
    if n_faulty > config.max_bad_share * log.n_rows:
        raise InputError(
            f"{n_faulty:,} of {log.n_rows:,} rows of {log.path} are faulty: {_in_words(quarantined)}",
            expected=f"at most {config.max_bad_share:.1%} (ingest.max_bad_share)",
            do="mend what wrote the log, or raise ingest.max_bad_share",
        )


def _stop_if_empty(log: Log, quarantined: dict[str, int]) -> None:
    if sum(quarantined.values()) == log.n_rows:
        raise InputError(
            f"all {log.n_rows:,} rows of {log.path} were rejected: {_in_words(quarantined)}",
            expected="some event of a known item at a time in the past",
            do="check [ingest.columns], ingest.timestamp_unit, and that events and items name the same items",
        )


def _in_words(quarantined: dict[str, int]) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in quarantined.items())


def _count_by(table: ibis.Table, column: str) -> dict[Any, int]:
    """Number of rows by value, the most frequent first."""
    counts = table.group_by(column).aggregate(n=table.count()).order_by(ibis.desc("n"), column)
    return {row[column]: row["n"] for row in counts.to_pyarrow().to_pylist()}
