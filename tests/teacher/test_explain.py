"""Explanations: what is left out is what the score would be without it."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.api import Run
from recsys.ingest.dataset import take
from recsys.runtime import Runtime
from recsys.teacher.explain import explain
from recsys.text import item_texts

RUNTIME = Runtime(precision="fp32", threads=1, progress=False)


def test_an_item_added_what_the_score_loses_without_it(finished: Run) -> None:
    dataset, teacher = finished.dataset, finished.teacher
    user = int(np.argmax(dataset.train.lengths))
    history = dataset.histories(np.array([user], dtype=np.int32), last=12)
    candidates = np.array([3, 40, 7], dtype=np.int32)
    found = explain(teacher, dataset, history, candidates, last=5, runtime=RUNTIME)
    whole = teacher.score(history, candidates[None], runtime=RUNTIME)[0]
    np.testing.assert_allclose([each.logit for each in found], whole, atol=1e-4)
    assert [item for item, _ in found[0].history] == history.item_idx[::-1][:5].tolist()
    shorter = take(history, history.offsets[:1], history.lengths[:1] - 1)  # without the most recent event
    without = teacher.score(shorter, candidates[None], runtime=RUNTIME)[0]
    added = [each.history[0][1] for each in found]
    np.testing.assert_allclose(added, whole - without, atol=1e-4)
    assert np.abs(added).max() > 0.01


def test_words_are_those_of_the_text(finished: Run) -> None:
    dataset, teacher = finished.dataset, finished.teacher
    history = dataset.histories(np.array([0], dtype=np.int32), last=4)
    (found,) = explain(teacher, dataset, history, np.array([5], dtype=np.int32), runtime=RUNTIME)
    text = item_texts(dataset)[5]
    words = [word for word, _ in found.words]
    assert 2 <= len(words) <= teacher.config.max_tokens - 1
    place = 0
    for word in words:  # one after the other as they stand, with nothing but signs and spaces between
        assert not any(sign.isalnum() for sign in text[place : text.index(word, place)])
        place = text.index(word, place) + len(word)
    assert all(np.isfinite(added) for _, added in found.words)


def test_a_new_visitor_has_no_history_to_blame(finished: Run) -> None:
    dataset = finished.dataset
    nobody = take(dataset.train, np.zeros(1, np.int64), np.zeros(1, np.int64))
    (found,) = explain(finished.teacher, dataset, nobody, np.array([1], dtype=np.int32), runtime=RUNTIME)
    assert found.history == []
    assert found.logit == pytest.approx(
        float(finished.teacher.score(nobody, np.array([[1]], dtype=np.int32), runtime=RUNTIME)[0, 0]), abs=1e-4
    )
