"""The ingest stage told again in plain Python, one row after the other, to compare with."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.ingest.config import IngestConfig
from recsys.ingest.dataset import Dataset
from recsys.ingest.ingest import ingest
from recsys.runtime import Runtime

Row = dict[str, Any]
SECOND = 1_000_000
MINUTE = 60 * SECOND
DAY = 24 * 60 * MINUTE
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
    rows = pq.read_table(dataset.path / "sequences.parquet").to_pylist()
    quarantine = pq.read_table(dataset.path / "quarantine.parquet").to_pylist()
    assert [row["user_idx"] for row in rows] == list(range(dataset.n_users))
    assert dataset.items["item_idx"].to_pylist() == list(range(dataset.n_items))
    return Result(
        users=dataset.users["user_id"].to_pylist(),
        items=dataset.items["item_id"].to_pylist(),
        sequences=[
            list(zip(row["item_idx"], row["event_type"], row["timestamp"], row["session"], strict=True)) for row in rows
        ],
        splits=list(zip(dataset.split.train_end.tolist(), dataset.split.valid_end.tolist(), strict=True)),
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
                    "future_timestamp": row["timestamp"] is not None and row["timestamp"] > as_of,
                    "dropped_event_type": rule == "drop",
                    "unknown_item": row["item_id"] not in goods and row["item_id"] not in others,
                    "non_merchandise": row["item_id"] in others,
                    "not_positive_quantity": "quantity" in config.positive and not (row["quantity"] or 0) > 0,
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

    users = sorted({key[0] for key in same})
    sequences, splits = [], []
    for user in users:
        history = []
        for key, places in same.items():
            if key[0] == user:
                positions = [events[place]["position"] for place in places if events[place].get("position") is not None]
                own = [events[place]["session_id"] for place in places if events[place].get("session_id")]
                text = "|".join([str(seed), user, key[1], str(key[2]), str(key[3])])
                history.append(
                    (
                        key[3],
                        min(positions, default=2**63) if config.columns.position else 0,
                        hashlib.md5(text.encode()).hexdigest(),
                        key,
                        min(own, default=None) if config.columns.session_id else None,
                    )
                )
        history.sort()
        starts: dict[tuple[int, str], int] = {}  # (first time, name) of each session → its number
        sessions: list[tuple[int, str]] = []
        current: tuple[int, str] | None = None
        last_seen = 0
        for time, _, _, _, own_session in history:
            if own_session:
                first = min(each[0] for each in history if each[4] == own_session)
                session = (first, own_session)
            else:
                if current is None or time - last_seen > config.session_gap_minutes * MINUTE:
                    current = (time, "")  # sorts before every session with a name
                session, last_seen = current, time
            sessions.append(session)
        starts = {session: number for number, session in enumerate(sorted(set(sessions)))}
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
