"""A student that starts from yesterday's: what stayed is known, whatever row it stands in now."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.api import Run
from recsys.config import PipelineConfig
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset
from recsys.sequence.features import item_features
from recsys.sequence.towers import Towers
from recsys.student.distill import distill
from recsys.student.warm_start import warm_start
from recsys.text import TextVectors


class Shuffled:
    """The same shop with its items in another order, the first of them gone and new ones before the others."""

    def __init__(self, dataset: Dataset, order: np.ndarray) -> None:
        self.items = dataset.items.take(order)


def test_items_and_their_groups_are_matched_by_name(finished: Run) -> None:
    student, dataset = finished.student, finished.dataset
    text = np.asarray(TextVectors.open(finished.config.run_dir / "text_vectors").vectors)
    order = np.random.default_rng(0).permutation(dataset.n_items)[20:]
    today = Shuffled(dataset, order)
    # Centred on the same texts as before: what is compared is the weights.
    features = item_features(today.items, text[order], student.config)
    known = torch.from_numpy(np.bincount(dataset.train.item_idx, minlength=dataset.n_items)[order] > 0)
    torch.manual_seed(0)
    model = Towers(student.config, features, known, n_event_types=3).eval()
    with torch.no_grad():
        assert warm_start(model, features, today, student) == len(order)  # type: ignore[arg-type]
        assert model.items.text is not None
        whole = item_features(dataset.items, text, student.config).text
        model.items.text.copy_(torch.from_numpy(whole[order]))
        vectors = model.items().numpy()
    # Groups of which only one item is left have no code any more.
    same = np.all([(codes > 0) | (item_codes(student, name)[order] == 0) for name, codes in features.groups.items()], 0)
    assert same.mean() > 0.5
    price = list(features.groups).index("price")  # its bands move with the catalogue
    bands = model.items.groups[price].weight.detach().numpy()
    before = student.item_vectors[order] - old_band(student, order)
    now = vectors - bands[features.groups["price"]]
    np.testing.assert_allclose(now[same], before[same], atol=1e-4)


def item_codes(student: object, group: str) -> np.ndarray:
    import pyarrow.parquet as pq

    return pq.read_table(student.path / "items.parquet")[f"group_{group}"].to_numpy()  # type: ignore[attr-defined]


def old_band(student: object, order: np.ndarray) -> np.ndarray:
    from safetensors.numpy import load_file

    weights = load_file(student.path / "weights.safetensors")  # type: ignore[attr-defined]
    return weights["items.groups.3.weight"][item_codes(student, "price")[order]]


def test_a_warm_start_begins_where_a_fresh_one_comes_later(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    runtime = tiny.runtime(progress=False)
    config = tiny.distill.model_copy(update={"epochs": 1, "warm_start": finished.student.path})
    warm = distill(finished.dataset, finished.soft_labels, config, tmp_path / "warm", runtime=runtime)
    fresh = finished.student.manifest["info"]["history"]
    assert warm.manifest["info"]["history"][0]["hard"] < fresh[-1]["hard"] < fresh[0]["hard"]
    assert warm.counts["items_known_before"] == finished.dataset.n_items
    assert warm.manifest["inputs"]["warm_start"] == finished.student.fingerprint


def test_rows_that_items_share_by_hash_begin_anew(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    """Which items share one depends on where they stand in the catalogue."""
    config = tiny.distill.model_copy(update={"epochs": 1, "id_rows": 50})
    student = distill(finished.dataset, None, config, tmp_path / "student", runtime=tiny.runtime(progress=False))
    text = np.asarray(TextVectors.open(finished.config.run_dir / "text_vectors").vectors)
    features = item_features(finished.dataset.items, text, config)
    model = Towers(config, features, torch.ones(finished.dataset.n_items, dtype=torch.bool), n_event_types=3)
    before = model.items.ids.weight.clone()
    with torch.no_grad():
        warm_start(model, features, finished.dataset, student)
    assert torch.equal(model.items.ids.weight, before)
    assert model.user.start.abs().max() > 0  # which is zero before it is copied


def test_a_student_of_another_shape_is_refused(finished: Run, tiny: PipelineConfig, tmp_path: Path) -> None:
    config = tiny.distill.model_copy(update={"layers": 2, "warm_start": finished.student.path})
    with pytest.raises(InputError, match="built otherwise"):
        distill(finished.dataset, None, config, tmp_path / "student", runtime=tiny.runtime(progress=False))
