"""Nothing that comes after a cut changes a byte of what stands before it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ingest_oracle import START, Row, run, write_shop
from test_ingest import HOUR, ITEMS

from recsys.errors import InputError
from recsys.ingest.config import IngestConfig

TRAIN_UNTIL, VALID_UNTIL = START + 8 * HOUR, START + 12 * HOUR
FROM_TRAINING = ("train.parquet", "item_statistics_train.parquet", "user_statistics_train.parquet")
FROM_VALIDATION = ("valid.parquet", "item_statistics_valid.parquet", "user_statistics_valid.parquet")

users = st.sampled_from(["u1", "u2", "U3", "é", "new", "a0"])
items = st.sampled_from(["apple", "pear", "Birne", "ünder", "postage", "ghost"])


def rows_between(first: int, last: int) -> st.SearchStrategy[Row]:
    return st.fixed_dictionaries(
        {
            "user_id": users,
            "item_id": items,
            "event_type": st.sampled_from(["view", "view", "cart", "purchase", "refund"]),
            "timestamp": st.integers(first // 600, last // 600 - 1).map(lambda step: step * 600),
            "quantity": st.sampled_from([1.0, 2.0]),
            "session_id": st.sampled_from(["s1", "s2", None]),
            "position": st.sampled_from([0, 1, None]),
            "name": st.sampled_from(["One", "Other", None]),
            "price": st.sampled_from(["1.5", "2", "30", None]),
            "category": st.sampled_from(["Home > Lamp", "Home > Sofa", "Garden", None]),
        }
    )


# Every rule that looks at other rows is on; the limits are low, so that the planted rows meet them.
configs: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "event_types": st.just({"refund": "cancel"}),
        "bot_events_per_hour": st.sampled_from([0, 3]),
        "bot_events_per_day": st.sampled_from([0, 12]),
        "min_user_events": st.sampled_from([1, 2]),
        "min_item_events": st.sampled_from([1, 3]),
        "items_from_events": st.booleans(),
        "item_columns": st.just({"title": "name"}),
        "columns": st.sampled_from([{}, {"session_id": "", "position": "position"}]),
        "popularity_days": st.just((0.05, 1)),
        "train_until": st.just(datetime.fromtimestamp(TRAIN_UNTIL, UTC)),
        "valid_until": st.just(datetime.fromtimestamp(VALID_UNTIL, UTC)),
    }
)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking two runs of the stage would take an hour
)
@given(
    known=st.lists(rows_between(START, VALID_UNTIL), min_size=8, max_size=40),
    planted=st.lists(rows_between(VALID_UNTIL, VALID_UNTIL + 6 * HOUR), min_size=1, max_size=25),
    options=configs,
    cut=st.sampled_from([TRAIN_UNTIL, VALID_UNTIL]),
)
def test_planting_events_after_a_cut_changes_nothing_before_it(
    tmp_path_factory: pytest.TempPathFactory,
    known: list[Row],
    planted: list[Row],
    options: dict[str, Any],
    cut: int,
) -> None:
    if cut == TRAIN_UNTIL:  # validation is the future too
        planted = planted + [row for row in known if row["timestamp"] >= cut]
        known = [row for row in known if row["timestamp"] < cut]
    catalogue = [item | {"name": item["title"] or item["item_id"]} for item in ITEMS]
    config = IngestConfig.model_validate(options)
    folder = tmp_path_factory.mktemp("shop")
    try:
        before = run(write_shop(folder / "before", known, catalogue), config)
    except InputError:
        return  # nothing to train on
    after = run(write_shop(folder / "after", known + planted, catalogue), config)
    for name in FROM_TRAINING + (FROM_VALIDATION if cut == VALID_UNTIL else ()):
        assert (before.path / name).read_bytes() == (after.path / name).read_bytes(), name
    # Numbers stay what they were: new users and items come after the others.
    for name in ("users.parquet", "items.parquet"):
        old, new = (pq.read_table(each.path / name) for each in (before, after))
        assert new.slice(0, len(old)).equals(old), name
