"""What a reader is told: the tour runs, the README's config is valid, the pinned versions fit any machine."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from recsys.api import Run
from recsys.config import STAGES, load_config

ROOT = Path(__file__).parent.parent


def test_the_tour_runs(finished: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TOUR_RUN", str(finished.path))
    shown = runpy.run_path(str(ROOT / "notebooks" / "tour.py"))
    assert shown["run"].path == finished.path
    text = capsys.readouterr().out
    assert "400 users, 300 items" in text
    assert text.count("reason") == 3  # the three lists
    assert "most_popular" in text


def test_the_readme_shows_a_config_that_is_valid(tmp_path: Path) -> None:
    block = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block
    path = tmp_path / "shop.toml"
    path.write_text(block[1])
    config = load_config(path, env={})
    assert config.ingest.columns.user_id == "visitor"
    assert config.recommend.k == 20


def test_what_the_page_on_data_shows_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "data" / "README.md").read_text()
    where, sources, columns = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "shop.toml"
    path.write_text(where + columns)
    config = load_config(path, env={}).ingest
    assert config.text.delimiter == ";" and config.event_types["refund"] == "cancel"
    assert config.columns.user_id == "customer" and config.event_types["wishlist"] == "keep"
    path.write_text('data = "."\n' + sources)
    views, orders = load_config(path, env={}).ingest.event_sources()
    assert views.event_type == "view" and orders.columns.item_id == "article"
    reasons = set(re.findall(r"`([a-z_<>]+)`", text.partition("| reason |")[2].partition("Such rows go to")[0]))
    assert {"bot", "cancelled_purchase", "k_core", "malformed_line", "not_positive_<column>"} <= reasons


def test_the_readme_names_every_stage_and_only_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for stage, artifact in STAGES.items():
        assert f"{stage} " in text
        assert artifact in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_constraints_pin_versions_for_every_machine_and_leave_torch_to_it() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.match(r"[a-z0-9.-]+==[\w.]+( ; .+)?$", line) for line in lines)
    names = {line.split("==")[0] for line in lines}
    assert not [name for name in names if re.match("torch$|nvidia|cuda|triton", name)]
    assert {"pyarrow", "transformers", "faiss-cpu", "duckdb", "pytest"} <= names
