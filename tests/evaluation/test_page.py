from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from recsys import schema
from recsys.artifacts import Recipe
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.metrics import METRICS
from recsys.evaluation.page import render
from recsys.evaluation.report import (
    BeyondRow,
    CoverageRow,
    DifferenceRow,
    Example,
    Figures,
    MetricRow,
    SegmentGainRow,
    SegmentRow,
    Shown,
)
from recsys.evaluation.tuning import Setting
from recsys.ingest.dataset import Dataset
from recsys.ingest.profile import Profile

CONFIG = EvaluateConfig(ks=(10, 20))
HOSTILE = '<img src="http://evil.example/x.png" onerror="alert(1)">'
ADDRESS_ATTRIBUTES = {"src", "href", "srcset", "data", "action", "poster", "background", "formaction", "xlink:href"}

Render = Callable[..., str]


class Resources(HTMLParser):
    """Everything in a page that a browser would fetch or follow, and the page's text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.styles: list[str] = []
        self.text: list[str] = []
        self.inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside.append(tag)
        self.addresses += [(tag, value or "") for name, value in attrs if name in ADDRESS_ATTRIBUTES]
        self.styles += [value or "" for name, value in attrs if name == "style"]

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1] == "style":
            self.styles.append(data)
        elif self.inside and self.inside[-1] != "script":
            self.text.append(data)


@pytest.fixture
def render_page(write_dataset: Callable[..., Dataset]) -> Render:
    def rendered(
        gains: dict[str, tuple[float, float, float]],
        counts: dict[str, Any] | None = None,
        profile: dict[str, Any] | None = None,
        segments: Sequence[tuple[float, int]] = ((0.02, 40),),
        p_holm: float = 0.001,
    ) -> str:
        """The page for a student at .06 everywhere; `gains` gives its differences as (value, low, high)."""
        rows, differences = [], []
        for metric in METRICS:
            for k in CONFIG.ks:
                about = {"protocol": "leave_one_out", "seen_filtered": True, "metric": metric.name, "k": k}
                about |= {"n_users": 1234, "users": "all"}
                rows.append(MetricRow(model="student", value=0.06, low=0.055, high=0.065, **about))
                for other, (gain, low, high) in gains.items():
                    rows.append(MetricRow(model=other, value=0.06 - gain, low=0.01, high=0.0599, **about))
                    difference = {"difference": gain, "low": low, "high": high, "p_holm": p_holm}
                    differences.append(DifferenceRow(model="student", other=other, **difference, **about))
        dataset = write_dataset([[0, 1, 2]], [1], [2], n_items=3, counts=counts or {})
        if profile is not None:
            (dataset.path / "profile.json").write_text(json.dumps(profile))
        student = SimpleNamespace(fingerprint="f1", manifest={"fingerprint": "f1", "config": {"note": HOSTILE}})
        about = {"protocol": "leave_one_out", "seen_filtered": True, "metric": "ndcg", "k": 10}
        models = ["student", *gains]
        figures = Figures(
            rows,
            differences,
            [CoverageRow("student", "leave_one_out", True, 10, 0.321, 1234)],
            [BeyondRow("student", "leave_one_out", True, "popularity_lift", 10, -0.25, 1234)],
            [
                SegmentRow("category", HOSTILE, model, value=0.1, low=0.05, high=0.2, n_users=40, n_targets=57, **about)
                for model in models
            ],
            [
                SegmentGainRow(
                    "category", HOSTILE, "student", models[1], difference=d, low=d, high=d, n_users=n, **about
                )
                for d, n in segments
            ],
            {model: {"fit": 2.5, "rank": 4.0, "users": 1000} for model in models},
            [
                Example(
                    HOSTILE,
                    9,
                    [Shown("i1", HOSTILE)],
                    [Shown("i2", "Chosen & found", True), Shown("i3", HOSTILE)],
                    {"student": [Shown("i2", "Chosen & found", True), Shown("i1", HOSTILE)]},
                )
            ],
            {name: Setting({"shrinkage": 30.0}, tuned=True) for name in gains},
        )
        return render(
            figures,
            dataset=dataset,
            models={"student": student},
            recipe=Recipe("report", CONFIG, {"dataset": "d1"}, 0, ("recsys.evaluation",)),
            config=CONFIG,
        )

    return rendered


def test_holds_the_figures(render_page: Render) -> None:
    page = render_page({"most_popular": (0.0456, 0.041, 0.049)}, {"rows_in": 541_909, "merged": {"duplicate": 5_270}})
    text = " ".join("".join(Resources(page).text).split())
    assert "The student beats every baseline" in text
    assert "better than most popular: NDCG@10 0.0600 against 0.0144 (4.2 times as much)" in text
    assert "difference +0.0456, 95 % interval +0.0410 to +0.0490, p = 0.001, 1,234 users" in text
    assert "541,909" in text
    assert "5,270" in text
    assert "32.1 %" in text
    assert "−25 %" in text
    assert "250" in text  # users per second
    drawn = [json.loads(found) for found in re.findall(r'"recall-curves",\s*(\[.*?\]),\s*\{"template', page)]
    assert [trace["y"] for trace in drawn[0]] == [[0.06, 0.06], pytest.approx([0.0144, 0.0144])]


def test_describes_the_data_where_there_is_a_profile(render_page: Render) -> None:
    items = pa.table(
        {
            f.name: [0] if f.name == "item_idx" else ["x"] if not f.nullable else pa.nulls(1, f.type)
            for f in schema.ITEMS
        },
        schema.ITEMS,
    )
    profile = Profile(items, ("view",)).finish({"rows_in": 7, "kept": 0, "quarantined": {"unknown_item": 7}})
    page = render_page({"most_popular": (0.04, 0.03, 0.05)}, profile=profile)
    text = " ".join("".join(Resources(page).text).split())
    assert "7 rows came; 0 (0.0 %) became events" in text
    assert '"data-rows"' in page


@pytest.mark.parametrize(
    ("gains", "headline"),
    [
        ({"item_knn": (0.01, 0.005, 0.015), "most_popular": (0.04, 0.03, 0.05)}, "The student beats every baseline"),
        (
            {"item_knn": (-0.01, -0.015, -0.005), "most_popular": (0.04, 0.03, 0.05)},
            "The student beats 1 of 2 baselines; it loses to item-kNN",
        ),
        (
            {"item_knn": (0.01, -0.005, 0.025), "most_popular": (0.04, 0.0, 0.05)},
            "The student beats none of 2 baselines; no difference from item-kNN and most popular could be shown",
        ),
        (
            {"teacher": (-0.01, -0.015, -0.005), "most_popular": (0.04, 0.03, 0.05)},
            "The student beats every baseline",  # the teacher is none
        ),
    ],
)
def test_the_verdict_says_no_more_than_the_intervals(
    render_page: Render, gains: dict[str, tuple[float, float, float]], headline: str
) -> None:
    assert f"<h2>{headline}</h2>" in render_page(gains)


def test_of_many_baselines_the_strongest_are_spoken_of_first(render_page: Render) -> None:
    names = ["most_popular", "als", "bpr", "ease", "item_knn"]
    gains = {name: (0.01 * place, -0.1, 0.2) for place, name in enumerate(names, start=1)}
    page = render_page(gains)
    assert "no difference from 5 of them could be shown" in page
    first, _, rest = page.partition("<summary>2 weaker baselines</summary>")
    assert [name in first.partition("<ul>")[2] for name in ("most popular", "ALS", "BPR", "EASE")] == [True] * 3 + [
        False
    ]
    assert "EASE" in rest.partition("</details>")[0]
    assert "item-kNN" in rest.partition("</details>")[0]
    assert "2 weaker baselines are left out" in page  # of the curves


def test_loads_nothing_from_outside(render_page: Render) -> None:
    page = render_page({"most_popular": (0.04, 0.03, 0.05)})
    found = Resources(page)
    assert found.addresses == []
    assert not {"link", "iframe", "img", "object", "embed", "base"} & set(found.tags)
    assert not any("url(" in style or "@import" in style for style in found.styles)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    assert "http" not in policy[1]
    assert page.count("Plotly.newPlot(") == 3 + page.split("</script>")[0].count("Plotly.newPlot(")


def test_escapes_whatever_the_data_holds(render_page: Render) -> None:
    page = render_page(
        {"most_popular": (0.04, 0.03, 0.05), "<script>alert(1)</script>": (0.01, 0.0, 0.02)},
        {HOSTILE: 3, "quarantined": {HOSTILE: HOSTILE}},
    )
    found = Resources(page)
    assert "img" not in found.tags
    assert found.addresses == []
    assert "<script>alert(1)" not in page
    assert HOSTILE in "".join(found.text)  # shown as it is, as text


def test_a_difference_that_the_corrected_test_doubts_is_not_called_one(render_page: Render) -> None:
    gains = {"item_knn": (0.01, 0.001, 0.02), "most_popular": (0.04, 0.03, 0.05)}
    assert "The student beats every baseline" in render_page(gains, p_holm=0.05)
    page = render_page(gains, p_holm=0.051)
    assert "The student beats none of 2 baselines" in page
    assert "not distinguishable from item-kNN" in page


@pytest.mark.parametrize(
    ("segments", "words"),
    [
        (((0.02, 40),), "the student is better than most popular in 1 and worse in none."),
        (((0.02, 40), (-0.01, 30)), "is better than most popular in 1 and worse in 1. Worse: “<img"),
        (((0.02, 40), (0.0, 30)), "in 1 and worse in none; in the others no difference could be shown."),
        (((0.02, 29),), "No segment has 30 users."),
    ],
)
def test_segments_in_words(render_page: Render, segments: Sequence[tuple[float, int]], words: str) -> None:
    page = render_page({"most_popular": (0.04, 0.03, 0.05)}, segments=segments)
    assert words in " ".join("".join(Resources(page).text).split())


def test_shows_what_users_did_and_got(render_page: Render) -> None:
    page = render_page({"most_popular": (0.04, 0.03, 0.05)})
    assert page.count('<li class="hit">✓ Chosen &amp; found</li>') == 2  # among the chosen, and in the list
    text = " ".join("".join(Resources(page).text).split())
    assert "the student found 1 of 2" in text
    assert "(the last 1 of 9)" in text
