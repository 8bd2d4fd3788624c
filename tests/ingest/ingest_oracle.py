"""The ingest stage told again in plain Python, one row after the other, to compare with."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.ingest.config import IngestConfig
from recsys.ingest.dataset import Dataset
from recsys.ingest.ingest import ingest
from recsys.runtime import Runtime

Row = dict[str, Any]
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
START = 1_767_225_600  # 2026-01-01T00:00:00Z, in seconds


class Result(NamedTuple):
    """What ingestion should write."""

    users: list[str]
    items: list[str]
    sequences: list[list[tuple[int, int, int, int]]]  # per user: (item_idx, event_type, timestamp, session)
    splits: list[tuple[int, int]]
    quarantine: dict[int, str]  # row → reason
    merged: dict[str, int]


def write_shop(folder: Path, events: list[Row], items: list[Row]) -> Path:
    """Write a log (times in seconds) and a catalogue, with the types that a real file has even where all is null."""
    folder.mkdir(parents=True, exist_ok=True)
    types = {"timestamp": pa.int64(), "quantity": pa.float64(), "position": pa.int64(), "is_goods": pa.bool_()}
    for name, rows in (("events", events), ("items", items)):
        columns = sorted({key for row in rows for key in row})
        table = pa.table({key: pa.array([row[key] for row in rows], types.get(key, pa.string())) for key in columns})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=7)
    return folder


def run(shop: Path, config: IngestConfig, seed: int = 0, name: str = "run") -> Dataset:
    """Ingest a shop's folder into a run beside it."""
    return ingest(
        config, shop / name / "dataset", data=shop, runtime=Runtime(seed=seed, threads=1, progress=False), force=True
    )


def found(dataset: Dataset) -> Result:
    """What ingestion wrote, in the oracle's form."""
    histories: list[list[tuple[int, int, int, int]]] = [[] for _ in range(dataset.n_users)]
    ends: list[list[int]] = []
    for part in ("train", "valid", "test"):
        rows = pq.read_table(dataset.path / f"{part}.parquet").to_pylist()
        assert [row["user_idx"] for row in rows] == sorted({row["user_idx"] for row in rows})
        for row in rows:
            columns = (row[name] for name in ("item_idx", "event_type", "timestamp", "session"))
            histories[row["user_idx"]] += zip(*columns, strict=True)
        ends.append([len(history) for history in histories])
    quarantine = pq.read_table(dataset.path / "quarantine.parquet").to_pylist()
    assert dataset.users["user_idx"].to_pylist() == list(range(dataset.n_users))
    assert dataset.items["item_idx"].to_pylist() == list(range(dataset.n_items))
    return Result(
        users=dataset.users["user_id"].to_pylist(),
        items=dataset.items["item_id"].to_pylist(),
        sequences=histories,
        splits=list(zip(ends[0], ends[1], strict=True)),
        quarantine={row["row"]: row["reason"] for row in quarantine},
        merged=dataset.counts["merged"],
    )


def expected(events: list[Row], items: list[Row], config: IngestConfig, seed: int) -> Result | None:
    """What ingestion should write, or None where it should refuse for want of events."""
    goods = sorted({item["item_id"] for item in items if item.get("is_goods") is not False})
    others = {item["item_id"] for item in items} - set(goods)
    names = ["view", "cart", "purchase", *(name for name, rule in config.event_types.items() if rule == "keep")]
    rules: dict[str, str] = {name: name for name in names} | {
        name: name if rule == "keep" else rule for name, rule in config.event_types.items()
    }
    as_of = int(config.as_of.timestamp()) if config.as_of else 2**62

    quarantine: dict[int, str] = {}
    same: dict[tuple[str, str, int, int], list[int]] = defaultdict(list)
    for place, row in enumerate(events):
        rule = rules.get(row["event_type"] or "")
        reason = next(
            (
                reason
                for reason, applies in {
                    "missing_user_id": not row["user_id"],
                    "missing_item_id": not row["item_id"],
                    "missing_event_type": not row["event_type"],
                    "missing_timestamp": row["timestamp"] is None,
                    "invalid_timestamp": row["timestamp"] is not None and row["timestamp"] <= 0,
                    "dropped_event_type": rule == "drop",
                    "not_positive_quantity": "quantity" in config.positive and not (row["quantity"] or 0) > 0,
                    "future_timestamp": row["timestamp"] is not None and row["timestamp"] > as_of,
                    "unknown_item": row["item_id"] not in goods and row["item_id"] not in others,
                    "non_merchandise": row["item_id"] in others,
                }.items()
                if applies
            ),
            None,
        )
        if reason:
            quarantine[place] = reason
        else:
            assert rule is not None
            same[row["user_id"], row["item_id"], names.index(rule), row["timestamp"] * SECOND].append(place)
    if not same:
        return None

    train_until = valid_until = 0
    if config.protocol == "temporal":
        times = [key[3] for key in same]
        end = as_of * SECOND if config.as_of else max(times)
        valid_until = end - round(config.test_days * DAY)
        train_until = valid_until - round(config.valid_days * DAY)
        if min(times) >= train_until:
            return None
    core = {key for key in same if config.protocol == "leave_one_out" or key[3] < train_until}
    outside = set(same) - core
    while True:
        by_user, by_item = Counter(key[0] for key in core), Counter(key[1] for key in core)
        smaller = {
            key
            for key in core
            if by_user[key[0]] >= config.min_user_events and by_item[key[1]] >= config.min_item_events
        }
        if smaller == core:
            break
        core = smaller
    for key in set(same) - core - outside:
        quarantine |= dict.fromkeys(same.pop(key), "k_core")
    if not same:
        return None

    first: dict[str, int] = {}
    for key in same:
        first[key[0]] = min(first.get(key[0], 2**62), key[3])
    temporal = config.protocol == "temporal"
    parts = {user: temporal * ((time >= train_until) + (time >= valid_until)) for user, time in first.items()}
    users = sorted(first, key=lambda user: (parts[user], user))
    sequences, splits = [], []
    for user in users:
        history = []
        for key, places in same.items():
            if key[0] == user:
                positions = [events[place]["position"] for place in places if events[place].get("position") is not None]
                own = [events[place]["session_id"] for place in places if events[place].get("session_id")]
                history.append(
                    (
                        key[3],
                        min(positions, default=2**63) if config.columns.position else 0,
                        tie_key(seed, *key),
                        key,
                        min(own, default=None) if config.columns.session_id else None,
                    )
                )
        history.sort()
        sessions: list[str] = []
        n_pauses, last_seen = 0, None
        for time, _, _, _, own_session in history:
            if not own_session:
                if last_seen is None or time - last_seen > config.session_gap_minutes * MINUTE:
                    n_pauses += 1
                last_seen = time
            sessions.append(f"named {own_session}" if own_session else f"nameless {n_pauses}")
        starts = {session: number for number, session in enumerate(dict.fromkeys(sessions))}
        sequences.append(
            [
                (goods.index(key[1]), key[2], key[3], starts[session])
                for (_, _, _, key, _), session in zip(history, sessions, strict=True)
            ]
        )
        if config.protocol == "leave_one_out":
            n = len(history)
            splits.append((n - 2, n - 1) if n >= 3 else (n, n))
        else:
            splits.append(
                (sum(each[0] < train_until for each in history), sum(each[0] < valid_until for each in history))
            )

    rows = [tuple(sorted(row.items(), key=str)) for row in events]
    distinct = sum(len({rows[place] for place in places}) for places in same.values())
    return Result(
        users=users,
        items=goods,
        sequences=sequences,
        splits=splits,
        quarantine=quarantine,
        merged={
            "exact_duplicate": sum(len(places) for places in same.values()) - distinct,
            "same_event": distinct - len(same),
        },
    )


def tie_key(seed: int, user: str, item: str, event_type: int, timestamp: int) -> int:
    """What events of one user and time are ordered by, in Python's own integers."""
    user_hash, item_hash = (int(pd.util.hash_array(np.array([each], dtype=object))[0]) for each in (user, item))
    key = seed + user_hash
    for part in (0, item_hash, event_type, timestamp):
        key = (key + part) % 2**64
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) % 2**64
        key ^= key >> 31
    return key
