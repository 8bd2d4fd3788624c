"""The page about all nights: it says what the records say, and no record can break it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from recsys.nightly.gate import Reason
from recsys.nightly.history import write_history
from recsys.nightly.night import Night, StageRecord, name_of

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def night(day: int, state: str = "promoted", **more: object) -> Night:
    moment = BEGIN + timedelta(days=day)
    fields = {"name": name_of(moment), "as_of": moment, "started": moment, "state": state}
    return Night.model_validate(fields | more)


def test_every_section_shows_what_the_records_hold(tmp_path: Path) -> None:
    finding = {"check": "volume", "level": "hold", "message": "volume: 3 events a day", "figure": "events_per_day"}
    other = {"check": "event_mix", "level": "warn", "message": "5% are carts", "figure": "event_share.cart"}
    usual = {"events_per_day": 100.0, "event_share.cart": 0.1, "event_share.view": 0.9}
    nights = [
        night(0, metrics={"ranker": 0.1, "most_popular": 0.02}, figures=usual),
        night(
            1,
            "kept_out",
            metrics={"ranker": 0.05, "champion": 0.1},
            figures={"events_per_day": 90.0},
            drift={"top_10_kept": 0.5, "psi.price": 0.01},
            stages=[StageRecord(stage="distill", did="done", seconds=90, peak_mb=700)],
            reasons=[Reason("primary metric", False, "surely worse")],
        ),
        night(2, "held", figures={"events_per_day": 3.0, "event_share.cart": 0.05}, findings=[finding, other]),
    ]
    text = write_history(nights, nights[0].name, tmp_path / "history.html").read_text()
    for name in (
        "quality",
        "data-0",
        "data-6",
        "drift-same",
        "drift-psi",
        "minutes",
        "memory",
    ):
        assert f'id="{name}"' in text
    assert 'id="data-7"' not in text  # nothing was ever found in the share of views
    body = text[text.index("<main>") :]
    for said in ("surely worse", "volume: 3 events a day", "<strong>2026-01-01T000000Z</strong>", "kept out"):
        assert said in body
    rows = re.findall(r"<tr(?: class=\"ours\")?><td>(2026[^<]*)</td><td>([^<]*)</td><td>([^<]*)</td>", body)
    assert rows == [
        ("2026-01-03T000000Z", "held", "0.0"),
        ("2026-01-02T000000Z", "kept out", "1.5"),
        ("2026-01-01T000000Z", "live", "0.0"),
    ]
    assert '"x":["2026-01-03T00:00:00+00:00"],"y":[3.0]' in body.replace(", ", ",").replace(
        ": ", ":"
    )  # the finding's mark
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.html"]


def test_what_a_record_says_is_no_html(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    nights = [
        night(
            0,
            "failed",
            error=bad,
            notes=[bad],
            metrics={"ranker": 0.1},
            findings=[{"level": "warn", "message": bad, "figure": f"event_share.{bad}"}],
            figures={f"event_share.{bad}": 0.1},
        )
    ]
    text = write_history(nights, None, tmp_path / "history.html").read_text()
    assert bad not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "connect-src" not in text and "default-src 'none'" in text


def test_a_shop_without_nights_has_a_page_too(tmp_path: Path) -> None:
    assert "No night is served yet" in write_history([], None, tmp_path / "history.html").read_text()
