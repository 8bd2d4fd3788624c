from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import schema
from recsys.ingest import profile as module
from recsys.ingest.histories import Histories
from recsys.ingest.profile import Profile
from recsys.ingest.report.drift import drift

TYPES = ("view", "cart", "purchase")
HOUR, DAY = 3_600_000_000, 86_400_000_000
START = 19_000 * DAY  # 2022-01-08
N_ITEMS = 12

Event = tuple[int, int, int, int]  # item, type, timestamp, session


def catalogue(n_items: int = N_ITEMS, *, first: int = 0, **columns: Sequence[Any]) -> pa.Table:
    given = {"item_idx": range(n_items), "item_id": [f"i{first + i}" for i in range(n_items)]}
    given |= {"title": [f"The title of {i}" for i in range(n_items)]} | columns
    return pa.table({f.name: given.get(f.name, pa.nulls(n_items, f.type)) for f in schema.ITEMS}, schema.ITEMS)


def histories(users: Sequence[Sequence[Event]], first: int = 0) -> Histories:
    """Train all but the last two events, validate on the one before the last."""
    rows = [sorted(user, key=lambda event: event[2]) for user in users]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    flat = np.array([event for row in rows for event in row], dtype=np.int64).reshape(-1, 4)
    return Histories(
        user_idx=np.arange(first, first + len(rows), dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_idx=flat[:, 0].astype(np.int32),
        event_type=flat[:, 1].astype(np.int8),
        timestamp=flat[:, 2].copy(),
        session=flat[:, 3].astype(np.int32),
        money=None,
        train_end=np.maximum(lengths - 2, 0).astype(np.int32),
        valid_end=np.maximum(lengths - 1, 0).astype(np.int32),
    )


def profile_of(
    users: Sequence[Sequence[Event]], items: pa.Table | None = None, counts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    made = Profile(catalogue() if items is None else items, TYPES)
    made.add(histories(users))
    return made.finish({"rows_in": 1000, "kept": 900} if counts is None else counts)


@st.composite
def _user(draw: st.DrawFn) -> list[Event]:
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, N_ITEMS - 1), st.integers(0, 2), st.integers(0, 40 * DAY), st.integers(0, 3)),
            min_size=1,
            max_size=12,
        )
    )
    number: dict[int, int] = {}  # sessions are numbered in the order in which they begin, and may overlap
    ordered = sorted(rows, key=lambda row: row[2])
    return [
        (item, kind, START + time, number.setdefault(session, len(number))) for item, kind, time, session in ordered
    ]


logs = st.lists(_user(), min_size=1, max_size=12)


def busy_shop(n_days: int = 60, per_day: int = 40, *, shift_hours: int = 0, seed: int = 0) -> list[list[Event]]:
    """Users who come at daytime: mostly views, some purchases."""
    rng = np.random.default_rng(seed)
    users: list[list[Event]] = [[] for _ in range(200)]
    for day in range(n_days):
        for _ in range(per_day):
            hour = 8 + int(rng.integers(12)) + shift_hours
            event = (int(rng.integers(N_ITEMS)), int(rng.choice(3, p=[0.7, 0.2, 0.1])), START + day * DAY + hour * HOUR)
            users[int(rng.integers(200))].append((*event, 0))
    return [user for user in users if user]


@settings(max_examples=60, deadline=None)
@given(users=logs, data=st.data())
def test_batches_do_not_matter(users: list[list[Event]], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(users) - 1, 1)))) | {0, len(users)})
    batches = data.draw(st.permutations([users[a:b] for a, b in pairwise(cuts)]))
    made = Profile(catalogue(), TYPES)
    for batch in batches:
        made.add(histories(batch))
    assert json.dumps(made.finish({"rows_in": 1000, "kept": 900})) == json.dumps(profile_of(users))


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    users = busy_shop()
    whole = profile_of(users)
    monkeypatch.setattr(module, "CHUNK", 17)
    assert profile_of(users) == whole


@settings(max_examples=60, deadline=None)
@given(users=logs)
def test_counts_what_pandas_counts(users: list[list[Event]]) -> None:
    log = pd.DataFrame(
        [(user, *event) for user, events in enumerate(users) for event in events],
        columns=["user", "item", "type", "time", "session"],
    )
    log["day"] = pd.to_datetime(log["time"], unit="us").dt.strftime("%Y-%m-%d")
    found = profile_of(users)
    assert found["events"]["by_type"] == {name: int((log["type"] == code).sum()) for code, name in enumerate(TYPES)}
    assert found["days"]["date"] == sorted(log["day"].unique())
    for code, name in enumerate(TYPES):
        counts = dict(zip(found["days"]["date"], found["days"]["events"][name], strict=True))
        assert {day: n for day, n in counts.items() if n} == log[log["type"] == code]["day"].value_counts().to_dict()
    for key, days in (("first", log.groupby("item")["day"].min()), ("last", log.groupby("item")["day"].max())):
        seen = dict(zip(found["days"]["date"], found["days"][f"items_{key}_seen"], strict=True))
        assert {day: n for day, n in seen.items() if n} == days.value_counts().to_dict()
    span = pd.date_range(log["day"].min(), log["day"].max())
    assert found["days"]["n_without_events"] == len(span) - log["day"].nunique()
    hours = pd.to_datetime(log["time"], unit="us").dt.strftime("%H").value_counts().to_dict()
    assert {hour: n for hour, n in found["hours"].items() if n} == hours

    per_session = log.groupby(["user", "session"]).size()
    for summary, values in (
        (found["users"]["events"], log.groupby("user").size()),
        (found["users"]["sessions"], log.groupby("user")["session"].nunique()),
        (found["sessions"]["events"], per_session),
    ):
        for percent in (1, 50, 95):
            assert summary[f"p{percent}"] == np.quantile(values, percent / 100, method="inverted_cdf")
        assert summary["mean"] == pytest.approx(values.mean(), abs=1e-4)
        assert (summary["min"], summary["max"]) == (values.min(), values.max())
        assert sum(summary["histogram"].values()) == len(values)
        assert summary["histogram"].get("2-3", 0) == values.between(2, 3).sum()
    assert found["sessions"]["total"] == len(per_session)
    assert sum(part["events"] for part in found["parts"].values()) == len(log)
    assert found["parts"]["test"] == {"events": len(users), "users": len(users)}

    by_item = np.sort(np.bincount(log["item"], minlength=N_ITEMS))
    differences = np.abs(by_item[:, None] - by_item).sum() / (2 * N_ITEMS * by_item.sum())
    assert found["concentration"]["gini"] == pytest.approx(differences, abs=1e-6)
    assert found["concentration"]["top_10_percent"] == pytest.approx(by_item[-2:].sum() / len(log), abs=1e-6)
    recent = log[pd.to_datetime(log["day"]) > pd.to_datetime(log["day"].max()) - pd.Timedelta(days=7)]
    known = set(log.drop(recent.index)["item"])
    new = recent[~recent["item"].isin(known)]
    assert found["new_items"]["items"] == new["item"].nunique()
    assert found["new_items"]["share_of_active_items"] == pytest.approx(
        new["item"].nunique() / recent["item"].nunique(), abs=1e-6
    )
    assert found["new_items"]["share_of_events"] == pytest.approx(len(new) / len(recent), abs=1e-6)


def test_describes_the_catalogue() -> None:
    items = catalogue(
        5,
        title=["Red rose", "i1", "Acme Lamp", "A long blue title", "Tea"],
        brand=[None, None, "Acme", "", "Acme"],
        category=["Plants > Roses", None, "Home > Lamp", "Home", None],
        price=[1.5, None, None, 2.0, 3.0],
        in_stock=[True, False, True, None, True],
    )
    found = profile_of([[(0, 0, START, 0), (2, 0, START, 0), (3, 0, START + 9 * DAY, 0), (4, 0, START, 0)]], items)
    # Ingestion called one by its id and one by brand and category.
    assert found["catalogue"]["coverage"] == {
        "title": 0.6,
        "brand": 0.4,
        "category": 0.6,
        "price": 0.6,
        "description": 0.0,
    }
    assert (found["catalogue"]["in_stock"], found["catalogue"]["in_stock_known"]) == (0.75, 0.8)
    assert (found["catalogue"]["title_words"]["max"], found["catalogue"]["title_words"]["p50"]) == (4, 2)
    assert found["categories"] == {"n": 2, "top": {"Home": 2, "Plants": 1}, "other": 0, "none": 1}
    assert found["days"]["gaps"] == [{"first": "2022-01-09", "last": "2022-01-16", "days": 8}]
    assert (found["events"]["first"], found["items"]["with_event"]) == ("2022-01-08T00:00:00+00:00", 4)


def test_a_dataset_without_events_has_a_profile() -> None:
    made = Profile(catalogue(), TYPES)
    made.add(histories([]))
    found = made.finish({"rows_in": np.int64(0)})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["events"] == {"total": 0, "by_type": dict.fromkeys(TYPES, 0), "first": None, "last": None}
    assert found["users"]["events"] is found["concentration"]["gini"] is None
    assert drift(found, found)["alarms"] == []


def alarms(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> set[str]:
    return {alarm["name"] for alarm in drift(before, now)["alarms"]}


def test_no_alarm_from_one_day_to_the_next() -> None:
    users = busy_shop()
    yesterday = [[event for event in user if event[2] < START + 59 * DAY] for user in users]
    before, now = profile_of([user for user in yesterday if user]), profile_of(users)
    assert alarms(before, now) == alarms(now, now) == alarms(None, now) == set()
    same = drift(now, now)
    assert same["volume"]["events"]["ratio"] == 1
    assert all(same[mix]["psi"] == 0 for mix in ("event_mix", "hours", "history_lengths"))
    assert same["items"] == {"added_share": 0.0, "gone_share": 0.0, "sampled": N_ITEMS}
    assert drift(None, now)["previous"] is False
    assert json.loads(json.dumps(same, allow_nan=False)) == same


@settings(max_examples=20, deadline=None)
@given(seeds=st.lists(st.integers(0, 1000), min_size=2, max_size=2), per_day=st.integers(1, 5))
def test_chance_alone_is_no_change_of_a_mix(seeds: list[int], per_day: int) -> None:
    before, now = (profile_of(busy_shop(30, per_day, seed=seed)) for seed in seeds)
    assert not alarms(before, now) & {"event_mix", "hours", "history_lengths"}


def test_tells_what_went_wrong() -> None:
    users = busy_shop()
    now = profile_of(users)
    half = [user for user in users if user][: len(users) // 2]
    assert {"events", "users"} <= alarms(now, profile_of(half))
    assert "hours" in alarms(now, profile_of(busy_shop(shift_hours=6)))
    unsold = [[event for event in user if event[1] != 2] for user in users]
    assert "event_type: purchase" in alarms(now, profile_of([user for user in unsold if user]))
    nameless = catalogue(title=[f"i{i}" if i < 3 else f"Title {i}" for i in range(N_ITEMS)])
    assert alarms(now, profile_of(users, nameless)) == {"coverage: title"}
    counts = {"rows_in": 1000, "quarantined": {"unknown_item": 30}, "merged": {"exact_duplicate": 60}}
    assert alarms(now, profile_of(users, counts=counts)) == {"quarantined: unknown_item", "merged: exact_duplicate"}
    assert alarms(now, profile_of(users, catalogue(first=4))) == {"items_added", "items_gone"}
    for alarm in drift(now, profile_of(half))["alarms"]:
        assert alarm["words"].endswith((".", "?")) and "PSI" not in alarm["words"]


def test_the_last_full_day_is_compared_with_its_own_month() -> None:
    users = busy_shop()
    partly = [[event for event in user if event[2] < START + 59 * DAY + 9 * HOUR] for user in users]
    partly = [user for user in partly if user]
    assert alarms(None, profile_of(partly)) == set()  # the day is not over
    full = drift(None, profile_of([*partly, [(0, 0, START + 60 * DAY - 1, 0)]]))
    assert full["last_full_day"]["date"] == "2022-03-08"
    assert [alarm["name"] for alarm in full["alarms"]] == ["last_full_day"]
    # A shop that is closed on each seventh day.
    weekly = [[event for event in user if (event[2] - START) // DAY % 7 != 2] for user in users]
    last = START + 58 * DAY  # 58 % 7 == 2
    closed = profile_of([*(u for u in weekly if u), [(0, 0, last + DAY, 0)]])
    assert drift(None, closed)["last_full_day"]["events"] == 0
    assert alarms(None, closed) == set()


def test_shares_of_items_that_came_and_went_are_estimated() -> None:
    before, now = profile_of([], catalogue(20_000)), profile_of([], catalogue(20_000, first=4_000))
    found = drift(before, now)["items"]
    assert found["gone_share"] == pytest.approx(0.2, abs=0.09)
    assert found["added_share"] == pytest.approx(0.2, abs=0.09)
    assert drift(before, profile_of([], catalogue(200)))["items"]["added_share"] == 0  # a part of the old ones


def test_categories_beyond_the_first_are_no_drift() -> None:
    users = [[(item, 0, START + n * HOUR, 0) for n in range(40 + order)] for order, item in enumerate(range(25))]
    names = [f"c{i}" for i in range(25)]
    items = catalogue(25, category=names)
    turned = [[(24 - item, *rest) for item, *rest in user] for user in users]
    before, now = profile_of(users, items), profile_of(turned, items)
    assert before["categories"]["top"].keys() != now["categories"]["top"].keys()
    assert "categories" not in alarms(before, now)
    other = profile_of(users, catalogue(25, category=["new"] * 25))
    assert "categories" in alarms(before, other)


junk = st.one_of(
    st.none(), st.integers(), st.text(), st.lists(st.integers()), st.just({"a": "b"}), st.just(float("nan"))
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_profile_of_another_shape_does_no_harm(data: st.DataObject) -> None:
    now = profile_of([[(0, 0, START, 0), (1, 2, START + DAY, 1)]], catalogue(category=["a"] * N_ITEMS))
    before = copy.deepcopy(now)
    for _ in range(data.draw(st.integers(1, 4))):
        place, key = before, data.draw(st.sampled_from(sorted(before)))
        while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place, key = place[key], data.draw(st.sampled_from(sorted(place[key])))
        if data.draw(st.booleans()) and len(place) > 1:
            del place[key]
        else:
            place[key] = data.draw(junk)
    found = drift(before, now)
    assert json.loads(json.dumps(found, allow_nan=False))["previous"] is True
