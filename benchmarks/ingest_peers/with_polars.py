"""The job in Polars: one streaming pass over the file, integers from there on."""

from __future__ import annotations

from typing import Any

import polars as pl

from ingest_peers.job import EVENT_TYPES, PARTS, REASONS, Job, counted, tie_key

LISTS = ("item_idx", "event_type", "timestamp", "session")


def ingest(job: Job) -> dict[str, Any]:
    """Do the job and return its counts."""
    items = pl.read_parquet(job.folder / "items.parquet").sort("item_id")
    items = items.select(pl.int_range(pl.len(), dtype=pl.Int32).alias("item_idx"), pl.all())
    items.write_parquet(job.out / "items.parquet", compression="zstd")

    rows, rejected = _read(job, items["item_id"])
    n_rows = len(rows)
    quarantined = _quarantine(job, rejected)
    users = _users(job, rows)
    users.select("user_idx", pl.col("user_id").cast(pl.String)).write_parquet(
        job.out / "users.parquet", compression="zstd"
    )
    rows = rows.join(users, on="user_id", maintain_order="none").drop("user_id").sort("user_idx", "timestamp")
    events, exact, same = _settle(job, rows, users, items)
    del rows
    events = _number_sessions(job, events)
    part = sum((pl.col("timestamp") >= until).cast(pl.Int8) for until in (job.train_until, job.valid_until))
    for number, name in enumerate(PARTS):
        lists = events.filter(part == number).group_by("user_idx", maintain_order=True).agg(LISTS)
        lists.write_parquet(job.out / f"{name}.parquet", compression="zstd")
    return counted(n_rows + len(rejected), len(events), quarantined, exact, same)


def _read(job: Job, item_ids: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The good rows, their texts turned into codes on the way, and the rejected rows as they are."""
    log = pl.scan_parquet(job.folder / "events.parquet", row_index_name="row")
    columns = [name for name in log.collect_schema().names() if name != "row"]
    # A code of an Enum is the text's place in it; no code where the text is not there.
    coded = log.with_columns(
        micros=pl.col("timestamp").dt.epoch("us"),
        item_idx=pl.col("item_id").cast(pl.Enum(item_ids), strict=False).to_physical().cast(pl.Int32),
        kind=pl.col("event_type").cast(pl.Enum(EVENT_TYPES), strict=False).to_physical().cast(pl.Int8),
    )
    micros = pl.col("micros")
    faults = (
        *(pl.col(name).is_null() | (pl.col(name) == "") for name in ("user_id", "item_id", "event_type")),
        micros.is_null(),
        micros <= 0,
        micros > job.as_of,
        pl.col("item_idx").is_null(),
    )
    is_good = ~pl.any_horizontal(faults).fill_null(False)
    good = coded.filter(is_good).select(
        pl.col("user_id").cast(pl.Categorical(pl.Categories.random())),
        "item_idx",
        pl.col("kind").alias("event_type"),
        micros.alias("timestamp"),
        "value",
    )
    reason = pl.coalesce(pl.when(fault).then(pl.lit(name)) for name, fault in zip(REASONS, faults, strict=True))
    raw = pl.struct(columns).struct.json_encode()
    rejected = coded.filter(~is_good).select(
        raw.alias("raw"), reason.alias("reason"), pl.lit("events.parquet").alias("source_file"), "row"
    )
    good_rows, rejected_rows = pl.collect_all([good, rejected], engine="streaming")
    return good_rows, rejected_rows


def _quarantine(job: Job, rejected: pl.DataFrame) -> dict[str, int]:
    rejected = rejected.sort("row").with_columns(pl.col("row").cast(pl.Int64))
    rejected.write_parquet(job.out / "quarantine.parquet", compression="zstd")
    return dict(rejected["reason"].value_counts().iter_rows())


def _users(job: Job, rows: pl.DataFrame) -> pl.DataFrame:
    """Users by the part of their earliest event and their id: `user_idx` and `user_id`, a Categorical."""
    first = pl.col("timestamp").min()
    users = rows.group_by("user_id").agg(
        part=(first >= job.train_until).cast(pl.Int8) + (first >= job.valid_until).cast(pl.Int8)
    )
    users = users.sort("part", pl.col("user_id").cast(pl.String))
    return users.select(pl.int_range(pl.len(), dtype=pl.Int32).alias("user_idx"), "user_id")


def _settle(job: Job, rows: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame) -> tuple[pl.DataFrame, int, int]:
    """Merge rows of one event and order events of one time; few rows share user and time, and only they are touched."""
    same = (pl.col("user_idx") == pl.col("user_idx").shift()) & (pl.col("timestamp") == pl.col("timestamp").shift())
    tied = (
        rows.select(follows=same.fill_null(False))
        .select(pl.col("follows") | pl.col("follows").shift(-1, fill_value=False))
        .to_series()
    )
    place = pl.int_range(pl.len(), dtype=pl.UInt32).alias("place")
    rows = rows.with_columns(place)
    ties = rows.filter(tied)
    key = tie_key(
        users["user_id"].gather(ties["user_idx"]).cast(pl.String).to_numpy(),
        items["item_id"].gather(ties["item_idx"]).to_numpy(),
        ties["event_type"].to_numpy(),
        ties["timestamp"].to_numpy(),
        job.seed,
    )
    event = ["user_idx", "timestamp", "item_idx", "event_type"]
    in_order = ties.with_columns(key=pl.Series(key)).sort("user_idx", "timestamp", "key", "item_idx", "event_type")
    # Events of one time take its places, in their order.
    in_order = in_order.with_columns(ties["place"])
    n_distinct = ties.select(*event, "value").n_unique()
    merged = in_order.unique(event, keep="first", maintain_order=True).select(rows.columns)
    events = rows.filter(~tied).merge_sorted(merged, key="place").drop("place", "value")
    return events, len(ties) - n_distinct, n_distinct - len(merged)


def _number_sessions(job: Job, events: pl.DataFrame) -> pl.DataFrame:
    starts_user = (pl.col("user_idx") != pl.col("user_idx").shift()).fill_null(True)
    pause = pl.col("timestamp").diff() > job.gap
    number = (starts_user | pause).cum_sum().cast(pl.Int32)
    events = events.with_columns(session=number, first=pl.when(starts_user).then(number).forward_fill())
    return events.with_columns(pl.col("session") - pl.col("first")).drop("first")
