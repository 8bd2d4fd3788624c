"""The job in numpy: pandas and pyarrow read and write, and all between is arrays of numbers and their places."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ingest_peers.job import EVENT_TYPES, PARTS, REASONS, Job, counted, tie_key

TEXTS = ("user_id", "item_id", "event_type")


def ingest(job: Job) -> dict[str, Any]:
    """Do the job and return its counts."""
    items = pd.read_parquet(job.folder / "items.parquet").sort_values("item_id", ignore_index=True)
    items.insert(0, "item_idx", np.arange(len(items), dtype=np.int32))
    _write(job, "items", pa.Table.from_pandas(items, preserve_index=False))

    log = pd.read_parquet(job.folder / "events.parquet", read_dictionary=list(TEXTS))
    code = {
        "user_id": _codes(log["user_id"], None),
        "item_id": _codes(log["item_id"], pd.Index(items["item_id"])),
        "event_type": _codes(log["event_type"], pd.Index(EVENT_TYPES)),
    }
    timestamp = log["timestamp"].to_numpy().view(np.int64)  # not a time is the least number there is
    good = (timestamp > 0) & (timestamp <= job.as_of)
    for name in TEXTS:
        good &= code[name] >= 0
    quarantined = _quarantine(job, log, code["item_id"], timestamp, np.flatnonzero(~good))

    user_ids = log["user_id"].cat.categories
    rows = pd.DataFrame(
        {
            "user": code["user_id"][good],
            "timestamp": timestamp[good],
            "item_idx": code["item_id"][good],
            "event_type": code["event_type"][good].astype(np.int8),
            "value": log["value"].to_numpy()[good],
        }
    )
    rows_in = len(log)
    del log, code, timestamp, good
    users, idx_of_user = _users(job, rows, user_ids)
    rows.insert(0, "user_idx", idx_of_user[rows.pop("user").to_numpy()])
    rows = rows.take(_order(rows["user_idx"].to_numpy(), rows["timestamp"].to_numpy()))
    events, exact, same = _settle(job, rows, users, items)
    del rows
    _write_parts(job, events)
    return counted(rows_in, len(events), quarantined, exact, same)


def _codes(column: pd.Series[Any], known: pd.Index[Any] | None) -> npt.NDArray[np.int32]:
    """The place of each row's text among the `known` ones, or its category's code; -1 where it is missing."""
    categories = column.cat.categories
    if known is None:
        place = np.where(categories == "", -1, np.arange(len(categories)))
    else:
        place = known.get_indexer(categories)
    return np.append(place, -1).astype(np.int32)[column.cat.codes.to_numpy()]


def _quarantine(
    job: Job,
    log: pd.DataFrame,
    item_idx: npt.NDArray[np.int32],
    timestamp: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
) -> dict[str, int]:
    rejected = log.take(places)
    micros = timestamp[places]
    missing = [(rejected[name].isna() | (rejected[name] == "")).to_numpy() for name in TEXTS]
    no_time = rejected["timestamp"].isna().to_numpy()
    faults = [*missing, no_time, micros <= 0, micros > job.as_of, item_idx[places] < 0]
    reason = np.select(faults, REASONS, "")
    text = rejected.assign(timestamp=rejected["timestamp"].astype(str).where(~no_time))
    raw = text.to_json(orient="records", lines=True, double_precision=15).splitlines()
    table = pa.table(
        {
            "raw": raw,
            "reason": pa.array(reason),
            "source_file": pa.repeat("events.parquet", len(places)),
            "row": places,
        }
    )
    _write(job, "quarantine", table)
    return {str(name): int(n) for name, n in pd.Series(reason).value_counts().items()}


def _users(job: Job, rows: pd.DataFrame, ids: pd.Index[Any]) -> tuple[pd.DataFrame, npt.NDArray[np.int32]]:
    """Users by the part of their earliest event and their id; and the user_idx of each category."""
    first = rows.groupby("user", sort=False)["timestamp"].min()
    part = np.searchsorted([job.train_until, job.valid_until], first.to_numpy(), side="right")
    users = pd.DataFrame({"part": part, "user_id": ids[first.index], "user": first.index})
    users = users.sort_values(["part", "user_id"], ignore_index=True)
    idx = np.arange(len(users), dtype=np.int32)
    idx_of_user = np.empty(len(ids), dtype=np.int32)
    idx_of_user[users["user"].to_numpy()] = idx
    table = pa.table({"user_idx": idx, "user_id": pa.array(users["user_id"], pa.string())})
    _write(job, "users", table)
    return users, idx_of_user


def _order(user: npt.NDArray[np.int32], timestamp: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """What sorts by user and time. One sort of one number is several times faster than one of two columns."""
    first = int(timestamp.min())
    span = int(timestamp.max()) - first + 1
    if (int(user.max()) + 1) * span > np.iinfo(np.int64).max:
        return np.lexsort((timestamp, user))
    return np.argsort(user * np.int64(span) + (timestamp - first))


def _settle(job: Job, rows: pd.DataFrame, users: pd.DataFrame, items: pd.DataFrame) -> tuple[pd.DataFrame, int, int]:
    """Merge rows of one event and order events of one time; few rows share user and time, and only they are touched."""
    user, timestamp = rows["user_idx"].to_numpy(), rows["timestamp"].to_numpy()
    follows = (user[1:] == user[:-1]) & (timestamp[1:] == timestamp[:-1])
    tied = np.zeros(len(rows), dtype=bool)
    tied[1:] |= follows
    tied[:-1] |= follows
    places = np.flatnonzero(tied)
    ties = rows.take(places)
    ties["key"] = tie_key(
        users["user_id"].to_numpy()[ties["user_idx"]],
        items["item_id"].to_numpy()[ties["item_idx"]],
        ties["event_type"].to_numpy(),
        ties["timestamp"].to_numpy(),
        job.seed,
    )
    event = ["user_idx", "timestamp", "item_idx", "event_type"]
    n_distinct = len(ties.drop_duplicates([*event, "value"]))
    ties = ties.sort_values(["user_idx", "timestamp", "key", "item_idx", "event_type"])
    # Events of one time take its places, in their order; the places that are too many fall away.
    again = ties.duplicated(event).to_numpy()
    keep = np.ones(len(rows), dtype=bool)
    keep[places[again]] = False
    columns = {}
    for name in event:
        column = rows[name].to_numpy(copy=True)
        column[places] = ties[name].to_numpy()
        columns[name] = column[keep]
    return pd.DataFrame(columns), len(ties) - n_distinct, n_distinct - int((~again).sum())


def _write_parts(job: Job, events: pd.DataFrame) -> None:
    """Number sessions and write each part's lists, which lie end to end in the sorted columns."""
    user, timestamp = events["user_idx"].to_numpy(), events["timestamp"].to_numpy()
    starts_user = np.diff(user, prepend=-1) != 0
    number = np.cumsum(starts_user | (np.diff(timestamp, prepend=timestamp[:1]) > job.gap), dtype=np.int32)
    first = np.flatnonzero(starts_user)
    session = number - np.repeat(number[first], np.diff(first, append=len(events)))
    columns = {
        "item_idx": events["item_idx"].to_numpy(),
        "event_type": events["event_type"].to_numpy(),
        "timestamp": timestamp,
        "session": session,
    }
    part = np.searchsorted([job.train_until, job.valid_until], timestamp, side="right")
    for number_of_part, name in enumerate(PARTS):
        chosen = part == number_of_part
        user_of_event = user[chosen]
        starts = np.flatnonzero(np.diff(user_of_event, prepend=-1))
        offsets = pa.array(np.append(starts, len(user_of_event)), pa.int32())
        lists = {
            column: pa.ListArray.from_arrays(offsets, pa.array(values[chosen])) for column, values in columns.items()
        }
        _write(job, name, pa.table({"user_idx": user_of_event[starts], **lists}))


def _write(job: Job, name: str, table: pa.Table) -> None:
    pq.write_table(table, job.out / f"{name}.parquet", compression="zstd")
