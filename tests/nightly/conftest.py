"""Two nights of a small shop, done once."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.nightly_parts.shop import DAY, FIRST, Shop


@pytest.fixture(scope="session")
def first_night(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The shop after its first night. Tests read it and take copies."""
    shop = Shop.open(tmp_path_factory.mktemp("nights") / "first")
    assert shop.night(FIRST).state == "promoted"
    return shop


@pytest.fixture(scope="session")
def two_nights(first_night: Shop, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The shop after its second night, with the log of the day after it written."""
    shop = first_night.copy(tmp_path_factory.mktemp("nights") / "second")
    shop.write_log(FIRST + DAY)
    assert shop.night(FIRST + DAY).state == "promoted"
    shop.write_log(FIRST + 2 * DAY)
    return shop


@pytest.fixture
def shop(two_nights: Shop, tmp_path: Path) -> Shop:
    """A copy of it to work on."""
    return two_nights.copy(tmp_path / "shop")
