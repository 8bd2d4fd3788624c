"""The Python API: runs opened, recommendations as DataFrames."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import recsys
from recsys.api import Run
from recsys.errors import InputError

COLUMNS = ["item_id", "title", "rank", "score", "source", "reason"]


@pytest.fixture
def run(finished: Run) -> Run:
    return recsys.open_run(finished.path)


def users_with(run: Run, at_least: int) -> list[str]:
    rows = np.flatnonzero(run.dataset.sequences.lengths >= at_least)
    return run.dataset.users["user_id"].take(rows).to_pylist()


def item_ids(run: Run, user: str) -> list[str]:
    place = run.dataset.users["user_id"].to_pylist().index(user)
    return run.dataset.items["item_id"].take(run.dataset.history(place)).to_pylist()


def test_importing_recsys_loads_nothing() -> None:
    code = "import sys, recsys; recsys.open_run; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "pyarrow", "faiss", "ibis"} & set(done.stdout.split())
    assert set(dir(recsys)) >= {"open_run", "load_config", "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        recsys.nothing  # noqa: B018  # the access is the test


def test_known_users_get_what_the_batch_wrote(run: Run) -> None:
    users = users_with(run, 1)[::7]
    frame = run.recommend(users=users, k=run.config.recommend.k)
    assert list(frame.columns) == ["user_id", *COLUMNS]
    written = run.recommendations.table.to_pandas()
    written = written.set_index(["user_id", "rank"]).loc[list(zip(frame.user_id, frame["rank"], strict=True))]
    assert frame.item_id.tolist() == written.item_id.tolist()
    assert frame.reason.tolist() == written.reason.tolist()
    # The batch encodes other users together, so sums are rounded elsewhere.
    np.testing.assert_allclose(frame.score, written.score, rtol=1e-3, atol=1e-4)


def test_users_come_in_the_order_asked_for_and_ranks_ascend(run: Run) -> None:
    users = users_with(run, 1)[3::-1]
    frame = run.recommend(users, k=4)
    assert frame.user_id.tolist() == [user for user in users for _ in range(4)]
    assert frame["rank"].tolist() == [1, 2, 3, 4] * len(users)
    assert (frame.groupby("user_id").score.diff().dropna() <= 0).all()
    pd.testing.assert_frame_equal(run.recommend(users[0], k=4), frame[:4])


def test_a_title_belongs_to_its_item(run: Run) -> None:
    titles = dict(zip(run.dataset.items["item_id"].to_pylist(), run.dataset.items["title"].to_pylist(), strict=True))
    frame = run.recommend(history=[], k=50)
    assert list(frame.columns) == COLUMNS
    assert frame.title.tolist() == [titles[item] for item in frame.item_id]


def test_a_history_never_seen_before_decides_its_list(run: Run) -> None:
    one, other = (item_ids(run, user)[:5] for user in users_with(run, 20)[:2])
    assert run.recommend(history=one).item_id.tolist() != run.recommend(history=other).item_id.tolist()
    assert run.recommend(history=one, event_type="purchase").reason.str.contains("bought").any()


def test_seen_items_stay_out_unless_they_are_wanted(run: Run) -> None:
    everything = run.dataset.n_items
    seen = item_ids(run, users_with(run, 20)[0])
    assert not set(run.recommend(history=seen, k=everything).item_id) & set(seen)
    shown = run.recommend(history=seen, k=everything, exclude_seen=False)
    hidden = run.recommend(history=seen, k=everything, exclude_seen=True)
    assert set(shown.item_id) - set(hidden.item_id) <= set(seen)
    assert len(shown) > len(hidden)


def test_what_is_out_of_stock_is_never_shown(run: Run) -> None:
    items = run.dataset.items
    gone = {
        item
        for item, stock in zip(items["item_id"].to_pylist(), items["in_stock"].to_pylist(), strict=True)
        if not stock
    }
    assert gone
    assert not gone & set(run.recommend(history=[], k=run.dataset.n_items).item_id)


def test_what_cannot_be_answered_says_why(run: Run, tmp_path: Path) -> None:
    user = users_with(run, 1)[0]
    item = run.dataset.items["item_id"][0].as_py()
    with pytest.raises(InputError, match=r"1 unknown users: 'nobody'\n.*\n.*history="):
        run.recommend(users=[user, "nobody"])
    with pytest.raises(InputError, match="2 unknown items: 'x', 'y'"):
        run.recommend(history=["x", item, "y"])
    with pytest.raises(InputError, match="neither of users and history"):
        run.recommend()
    with pytest.raises(InputError, match="both of users and history"):
        run.recommend(users=[user], history=[item])
    with pytest.raises(InputError, match="k = 0 cannot be used"):
        run.recommend(users=[user], k=0)
    with pytest.raises(InputError, match=r"unknown event type 'gaze'\n  expected: one of view"):
        run.recommend(history=[item], event_type="gaze")
    with pytest.raises(InputError, match="no run at"):
        recsys.open_run(tmp_path)
