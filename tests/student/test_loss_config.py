"""The losses as a config names them: in TOML, by --set, over training, and by the teacher's confidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.config import PipelineConfig, load_config, to_toml
from recsys.errors import InputError
from recsys.student import distill
from recsys.student.config import DistillConfig, LossConfig
from recsys.student.distill import Soft
from recsys.student.losses.all import LOSSES


def loaded(folder: Path, toml: str, *overrides: str) -> PipelineConfig:
    path = folder / "shop.toml"
    path.write_text(f'data = "shop"\n{toml}')
    return load_config(path, overrides, env={})


def test_by_default_the_lists_count_half() -> None:
    assert DistillConfig().losses == {"listwise_kl": LossConfig(weight=0.5, temperature=1.0)}
    assert not DistillConfig().confidence


def test_losses_are_named_in_toml_and_come_back_from_the_resolved_config(tmp_path: Path) -> None:
    named = loaded(tmp_path, "[distill.losses.listwise_kl]\nweight = 1.0\n", "distill.losses.margin_mse.final_weight=0")
    assert named.distill.losses == {"listwise_kl": LossConfig(weight=1.0), "margin_mse": LossConfig(final_weight=0)}
    none = loaded(tmp_path, "[distill]\nlosses = {}\n")
    assert none.distill.losses == {}
    for config in (named, none):
        again = tmp_path / "again.toml"
        again.write_text(to_toml(config))
        assert load_config(again, env={}).distill == config.distill


@pytest.mark.parametrize("name", [*LOSSES, "feature_matching"])
def test_every_loss_can_be_named(name: str) -> None:
    assert name in DistillConfig.model_validate({"losses": {name: {}}}).losses


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("distill.losses.listwise.weight=1", "'listwise_kl', 'hard_targets', .*'feature_matching'"),
        ("distill.losses.listwise_kl.wieght=1", "unknown key 'wieght'"),
        ("distill.losses.listwise_kl.weight=-1", "greater than or equal to 0"),
        ("distill.losses.listwise_kl.weight=inf", "finite"),
        ("distill.losses.listwise_kl.final_weight=nan", "finite|greater than or equal to 0"),
        ("distill.losses.listwise_kl.temperature=0", "greater than 0"),
        ("distill.losses.listwise_kl.temperature=inf", "finite"),
        ("distill.soft_weight=1", "unknown key 'soft_weight'"),
    ],
)
def test_what_cannot_be_used_is_refused(override: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        loaded(tmp_path, "", override)


@given(st.floats(0, 9), st.floats(0, 9), st.floats(0, 1))
def test_a_weight_goes_in_a_straight_line(first: float, last: float, progress: float) -> None:
    loss = LossConfig(weight=first, final_weight=last)
    assert loss.at(0) == first
    assert loss.at(1) == pytest.approx(last)
    assert loss.at(progress) == pytest.approx((1 - progress) * first + progress * last)
    assert LossConfig(weight=first).at(progress) == first


def test_confidence_weighs_alike_in_one_process_and_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """The surer rows are all in one of three processes, and one has no rows at all."""
    rng = np.random.default_rng(0)
    logit = (rng.standard_normal((6, 5)) * np.array([[9], [7], [8], [1], [0.5], [2]])).astype(np.float32)
    candidate = rng.permuted(np.tile(np.arange(5, dtype=np.int32), (6, 1)), axis=1)
    config = DistillConfig(losses={"listwise_kl": LossConfig(weight=1.0)}, confidence=True)
    soft = Soft(np.array([0, 3, 6, 6]), np.zeros(6, dtype=np.int64), candidate, logit, config)
    users, items = torch.from_numpy(rng.standard_normal((8, 4))).float().split([3, 5])

    seen: list[tuple[float, ...]] = []
    real = distill.distributed.total
    monkeypatch.setattr(distill.distributed, "total", lambda *values: seen.append(values) or real(*values))
    whole = soft(np.arange(3), users, items, 1, progress=0.0)[1]
    together = list(seen[0])
    monkeypatch.setattr(distill.distributed, "total", lambda *values: seen.append(values) or together)
    parts = [soft(np.array([window]), users[[window]], items, 1, progress=0.0)[1] for window in range(3)]
    assert 3 * parts[0] + 3 * parts[1] == pytest.approx(6 * whole, rel=1e-5)
    assert parts[2] == 0
    assert np.sum(seen[1:], axis=0) == pytest.approx(together, rel=1e-5)  # all three said what they have
