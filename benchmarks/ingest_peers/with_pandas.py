"""The job in pandas, in its own verbs: texts are read as categories, and events are grouped, sorted and masked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ingest_peers.job import EVENT_TYPES, PARTS, REASONS, Job, counted, tie_key

TEXTS = ("user_id", "item_id", "event_type")
EVENT = ["user_idx", "timestamp", "item_idx", "event_type"]
LISTS = ["item_idx", "event_type", "timestamp", "session"]


def ingest(job: Job) -> dict[str, Any]:
    """Do the job and return its counts."""
    items = pd.read_parquet(job.folder / "items.parquet").sort_values("item_id", ignore_index=True)
    items.insert(0, "item_idx", items.index.astype(np.int32))
    _write(job, "items", items)

    # As categories, because their texts are then looked up once each and not once a row.
    log = pd.read_parquet(job.folder / "events.parquet", read_dictionary=list(TEXTS))
    rows_in = len(log)
    item_idx = _codes(log["item_id"], items["item_id"])
    faults = _faults(job, log, item_idx)
    bad = faults.any(axis=1)
    quarantined = _quarantine(job, log[bad], faults[bad].idxmax(axis=1))

    rows = log.assign(item_idx=item_idx).loc[~bad, ["user_id", "timestamp", "item_idx", "event_type", "value"]]
    del log, item_idx, faults, bad
    rows["timestamp"] = rows["timestamp"].astype(np.int64)
    rows["event_type"] = _codes(rows["event_type"], EVENT_TYPES).astype(np.int8)
    users = _users(job, rows)
    rows["user_idx"] = _codes(rows.pop("user_id"), users["user_id"])
    rows = rows.sort_values(["user_idx", "timestamp"], ignore_index=True)
    pause = rows.groupby("user_idx", sort=False)["timestamp"].diff()
    rows["session"] = _sessions(job, rows["user_idx"], pause)
    events, exact, same = _settle(job, rows, pause == 0, users, items)
    del rows, pause

    part = _part(job, events["timestamp"])
    for number, name in enumerate(PARTS):
        # `to_numpy` rather than `list`: no Python object is made of each number, which saves about a tenth in all.
        lists = events[part == number].groupby("user_idx", sort=False)[LISTS].agg(pd.Series.to_numpy)
        _write(job, name, lists.reset_index())
    return counted(rows_in, len(events), quarantined, exact, same)


def _codes(texts: pd.Series[Any], known: Any) -> pd.Series[Any]:
    """The place of each text among the known ones; -1 where it is not there."""
    return texts.cat.set_categories(known).cat.codes.astype(np.int32)


def _faults(job: Job, log: pd.DataFrame, item_idx: pd.Series[Any]) -> pd.DataFrame:
    """Which faults each row has, a column for each."""
    time = log["timestamp"]
    masks = (
        *(log[name].isna() | (log[name] == "") for name in TEXTS),
        time.isna(),
        time <= pd.Timestamp(0),
        time > pd.Timestamp(job.as_of, unit="us"),
        item_idx < 0,
    )
    return pd.DataFrame(dict(zip(REASONS, masks, strict=True)))


def _quarantine(job: Job, rejected: pd.DataFrame, reason: pd.Series[Any]) -> dict[str, int]:
    time = rejected["timestamp"]
    text = rejected.assign(timestamp=time.astype(str).where(time.notna()))
    raw = text.to_json(orient="records", lines=True, double_precision=15).splitlines()
    columns = {"raw": raw, "reason": reason, "source_file": "events.parquet", "row": rejected.index}
    _write(job, "quarantine", pd.DataFrame(columns))
    return {str(name): int(n) for name, n in reason.value_counts().items()}


def _part(job: Job, timestamp: pd.Series[Any]) -> pd.Series[Any]:
    """The place in `PARTS` of each time's part."""
    return (timestamp >= job.train_until).astype(np.int8) + (timestamp >= job.valid_until)


def _users(job: Job, rows: pd.DataFrame) -> pd.DataFrame:
    """Users by the part of their earliest event and their id: `user_idx` and `user_id`."""
    first = rows.groupby("user_id", observed=True, sort=False)["timestamp"].min()
    users = _part(job, first).rename("part").reset_index().astype({"user_id": str})
    users = users.sort_values(["part", "user_id"], ignore_index=True)[["user_id"]]
    users.insert(0, "user_idx", users.index.astype(np.int32))
    _write(job, "users", users)
    return users


def _sessions(job: Job, user_idx: pd.Series[Any], pause: pd.Series[Any]) -> pd.Series[Any]:
    """Number each user's sessions from 0."""
    # One running number for all users, less that of the user's first event: faster than one running number each.
    number = (pause > job.gap).cumsum()
    return (number - number.groupby(user_idx, sort=False).transform("first")).astype(np.int32)


def _settle(
    job: Job, rows: pd.DataFrame, follows: pd.Series[Any], users: pd.DataFrame, items: pd.DataFrame
) -> tuple[pd.DataFrame, int, int]:
    """Merge rows of one event and order events of one time; few rows share user and time, and only they are touched.

    `follows` says which rows have the user and time of the row before.
    """
    tied = follows | follows.shift(-1, fill_value=False)
    ties = rows[tied]
    key = tie_key(
        ties["user_idx"].map(users["user_id"]),
        ties["item_idx"].map(items["item_id"]),
        ties["event_type"].to_numpy(),
        ties["timestamp"].to_numpy(),
        job.seed,
    )
    in_order = ties.assign(key=key).sort_values(["user_idx", "timestamp", "key", "item_idx", "event_type"])
    in_order.index = ties.index  # events of one time take its places, in their order
    events = rows.drop(columns="value")
    # User, time and session are those of the place already.
    for name in ("item_idx", "event_type"):
        events.loc[tied, name] = in_order[name]
    again = in_order.duplicated(EVENT)
    n_distinct = len(ties.drop_duplicates([*EVENT, "value"]))
    events = events.drop(index=again.index[again])
    return events, len(ties) - n_distinct, n_distinct - int((~again).sum())


def _write(job: Job, name: str, table: pd.DataFrame) -> None:
    table.to_parquet(job.out / f"{name}.parquet", engine="pyarrow", index=False, compression="zstd")
