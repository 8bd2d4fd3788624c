"""Text vectors from night to night: what is taken over is what would be encoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys.api import Run
from recsys.ingest.dataset import Dataset
from recsys.nightly.texts import carry_text_vectors
from recsys.runtime import Runtime
from recsys.text import TextVectorsConfig, text_vectors

RUNTIME = Runtime(seed=1, threads=1, precision="fp32", progress=False)


class Catalogue(Dataset):
    """The same dataset with another catalogue."""

    def __init__(self, whole: Dataset, items: pa.Table) -> None:
        super().__init__(whole.path, whole.manifest | {"fingerprint": "another catalogue"})
        self.__dict__["items"] = items


def test_only_texts_that_nobody_has_encoded_are_encoded(finished: Run, tmp_path: Path) -> None:
    config, whole = TextVectorsConfig(), finished.dataset
    titles = whole.items["title"].to_pylist()
    # A night before it lacked the last ten items, had two under another title, and stood in another order.
    titles[3], titles[7] = "A title of old", "Another one"
    rows = np.random.default_rng(0).permutation(whole.n_items - 10)
    place = whole.items.column_names.index("title")
    then = Catalogue(whole, whole.items.set_column(place, "title", pa.array(titles, pa.string())).take(pa.array(rows)))
    before = then, text_vectors(then, config, tmp_path / "then", runtime=RUNTIME)
    carried, encoded = carry_text_vectors(whole, before, config, tmp_path / "carried", runtime=RUNTIME)
    assert encoded == 12
    expected = text_vectors(whole, config, tmp_path / "expected", runtime=RUNTIME)
    np.testing.assert_allclose(carried.vectors, expected.vectors, atol=1e-5)
    assert carry_text_vectors(whole, before, config, tmp_path / "carried", runtime=RUNTIME)[1] == 0  # up to date
    assert carry_text_vectors(whole, None, config, tmp_path / "first", runtime=RUNTIME)[1] == whole.n_items


def test_vectors_of_another_encoder_are_not_taken_over(finished: Run, tmp_path: Path) -> None:
    vectors = text_vectors(finished.dataset, TextVectorsConfig(), tmp_path / "then", runtime=RUNTIME)
    vectors.manifest["config"]["encoder"] = "another"
    before = finished.dataset, vectors
    out = tmp_path / "now"
    assert carry_text_vectors(finished.dataset, before, TextVectorsConfig(), out, runtime=RUNTIME)[1] == 300
