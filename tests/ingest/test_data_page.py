from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys import schema
from recsys.ingest.histories import Histories
from recsys.ingest.profile import Profile
from recsys.ingest.report.drift import drift
from recsys.ingest.report.page import data_page, data_section

HOSTILE = '<a href="http://evil.example/">x</a><img src=x onerror="alert(1)"></script>'
DAY = 86_400_000_000
START = 19_003 * DAY  # a Tuesday, 2022-01-11


class Parsed(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.inside = ""
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = tag
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "data", "action", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def made(
    n_days: int = 100,
    *,
    types: tuple[str, ...] = ("view", "cart", "purchase"),
    category: str = "Home > Lamps",
    counts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One user a day, who has as many events as days have passed since Tuesday, so that Tuesdays have none."""
    lengths = np.arange(n_days) % 7
    day = np.repeat(np.arange(n_days), lengths)
    n_events = len(day)
    used = lengths > 0
    n_items = 20
    columns = {
        "item_idx": range(n_items),
        "item_id": [f"i{i}" for i in range(n_items)],
        "title": [f"Lamp number {i}" for i in range(n_items)],
        "category": [category] * n_items,
    }
    items = pa.table({f.name: columns.get(f.name, pa.nulls(n_items, f.type)) for f in schema.ITEMS}, schema.ITEMS)
    profile = Profile(items, types)
    profile.add(
        Histories(
            user_idx=np.arange(used.sum(), dtype=np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths[used])]).astype(np.int64),
            item_idx=(np.arange(n_events) % n_items).astype(np.int32),
            event_type=(np.arange(n_events) % len(types)).astype(np.int8),
            timestamp=START + day * DAY,
            session=np.zeros(n_events, np.int32),
            money=None,
            train_end=lengths[used].astype(np.int32),
            valid_end=lengths[used].astype(np.int32),
        )
    )
    default = {"rows_in": 400, "kept": n_events, "quarantined": {"missing_user_id": 90}, "merged": {"same_event": 13}}
    return profile.finish(default if counts is None else counts)


def drawn(page: str, name: str) -> list[dict[str, Any]]:
    """The traces of a plot."""
    found = re.search(rf'"{name}",\s*(\[.*?\]),\s*\{{"(?:template|margin|barmode|bargap|showlegend)', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_draws_the_profile() -> None:
    profile = made()
    page = data_page(profile, title="Our shop")
    text = Parsed(page).text
    assert "295 events of 85 users" in text
    assert "14 of 99 days have no event, 14 of them Tuesdays" in text
    assert "400 rows came; 295 (73.8 %) became events" in text
    activity = drawn(page, "data-activity")
    assert [trace["name"] for trace in activity] == ["view", "cart", "purchase"]
    assert [trace["y"] for trace in activity] == list(profile["days"]["events"].values())
    assert drawn(page, "data-rows")[0]["text"] == ["22.5 % · 90", "3.2 % · 13"]
    assert drawn(page, "data-event-types")[0]["text"] == ["33.6 % · 99", "33.2 % · 98", "33.2 % · 98"]
    came, went = drawn(page, "data-churn")
    assert sum(came["y"]) == -sum(went["y"]) == 20
    assert sum(drawn(page, "data-lengths")[0]["y"]) == 85


def test_alarms_come_first_and_in_words() -> None:
    before, now = made(), made(40, counts={"rows_in": 100, "quarantined": {"unknown_item": 50}})
    page = data_section(now, drift(before, now))
    assert page.index("need a look") < page.index("Activity by day")
    text = Parsed(page).text
    assert "There are 61 % fewer events than in the run before (115 against 295)" in text
    assert "50.0 % of the log's rows are rejected (unknown item); it was 0.0 %." in text
    quiet = Parsed(data_section(before, drift(before, before))).text
    assert "Nothing unusual since the run before" in quiet and "need a look" not in quiet
    assert "no earlier run" in Parsed(data_section(before, drift(None, before))).text
    assert "the run before" not in Parsed(data_section(before)).text


def test_loads_nothing_from_outside_and_escapes_what_the_data_holds() -> None:
    profile = made(
        types=("view", HOSTILE), category=HOSTILE, counts={"rows_in": 9, "quarantined": {HOSTILE: 5}, HOSTILE: HOSTILE}
    )
    page = data_page(profile, drift(made(), profile), title=HOSTILE)
    found = Parsed(page)
    assert found.addresses == []
    assert not {"a", "img", "link", "iframe", "object", "embed", "base"} & set(found.tags)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None and policy[1].startswith("default-src 'none'") and "http" not in policy[1]
    # Plotly makes links of HTML in its labels, so that there is none either.
    plots = page.split("</script>", 1)[1]
    assert "<a href" not in plots and "\\u003ca href" not in plots
    assert len(set(found.ids)) == len(found.ids)


@pytest.mark.parametrize("n_days", [2, 9, 1000])
def test_short_and_long_logs(n_days: int) -> None:
    profile = made(n_days)
    text = Parsed(data_section(profile, drift(None, profile))).text
    assert ("Activity by week" in text) == (n_days > 400)
    assert ("All events are of one day" in text) == (n_days == 2)


def test_a_dataset_without_events_is_shown() -> None:
    profile = made(1, counts={})
    assert "No event; 20 items" in Parsed(data_page(profile, drift(None, profile), title="Empty")).text


def test_plotly_is_not_loaded_before_it_is_needed() -> None:
    code = "import sys, recsys.ingest.report.page, recsys.ingest.profile; sys.exit('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
