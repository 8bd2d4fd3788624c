"""The losses of distillation against their plain formulas."""

from __future__ import annotations

import pytest
import torch

from recsys.student.losses.listwise_kl import listwise_kl


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_listwise_kl_is_zero_for_the_same_list_at_any_scale() -> None:
    teacher, mask = draw(8, 3, 6), torch.ones(3, 6, dtype=torch.bool)
    assert float(listwise_kl(5 * teacher - 2, teacher, mask, temperature=2.0)) == pytest.approx(0, abs=1e-5)
    assert float(listwise_kl(-teacher, teacher, mask, temperature=2.0)) > 0.1


def test_listwise_kl_is_the_plain_formula() -> None:
    student, teacher = draw(9, 4, 7).double(), draw(10, 4, 7).double()
    mask = torch.ones(4, 7, dtype=torch.bool)
    expected = 0.0
    for s, t in zip(student, teacher, strict=True):
        s, t = ((x - x.mean()) / x.std(correction=0) / 1.5 for x in (s, t))
        p, q = t.softmax(0), s.softmax(0)
        expected += 1.5**2 * float((p * (p / q).log()).sum()) / 4
    assert float(listwise_kl(student, teacher, mask, temperature=1.5)) == pytest.approx(expected, rel=1e-4)


def test_listwise_kl_ignores_padding() -> None:
    student, teacher = draw(11, 2, 5), draw(12, 2, 5)
    mask = torch.ones(2, 5, dtype=torch.bool)
    wider = torch.cat([mask, torch.zeros(2, 3, dtype=torch.bool)], 1)
    padded = [torch.cat([x, 100 * torch.ones(2, 3)], 1) for x in (student, teacher)]
    torch.testing.assert_close(listwise_kl(*padded, wider), listwise_kl(student, teacher, mask))
