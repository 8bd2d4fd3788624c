"""The same ranker beside a renewed student."""

from __future__ import annotations

from pathlib import Path

from recsys.artifacts import Recipe
from recsys.ingest.dataset import Dataset
from recsys.ranking.ranker import Ranker
from recsys.retrieval.index import ItemIndex, VectorModel
from recsys.retrieval.sources import Sources
from recsys.runtime import Runtime
from recsys.text import TextVectors


def renew(
    ranker: Ranker,
    dataset: Dataset,
    student: VectorModel,
    index: ItemIndex,
    out: Path,
    *,
    text: TextVectors | None = None,
    runtime: Runtime = Runtime(),
) -> Ranker:
    """Give a ranker's model to a later dataset, without learning: what its sources count is counted again.

    Args:
        ranker: of an earlier dataset with the same event types.
        dataset: the later one.
        student: of that one, of `recsys.student.renew`: the ranker's own with other items.
        index: of that student.
        out: where the artifact goes.
        text: the items' text vectors, if the ranker had some.
        runtime: seed.
    """
    inputs = {"dataset": dataset.fingerprint, "student": student.fingerprint, "index": index.fingerprint}
    inputs["renews"] = ranker.fingerprint
    recipe = Recipe(
        kind=Ranker.kind,
        config=ranker.config,
        inputs=inputs | ({} if text is None else {"text_vectors": text.fingerprint}),
        seed=runtime.seed,
        modules=("recsys.items", "recsys.ranking.renew", "recsys.retrieval.neighbours", "recsys.retrieval.sources"),
    )
    if not recipe.is_current(out):
        vectors = None if text is None else text.vectors
        with recipe.build(out) as draft:
            Sources.fit(dataset.train, dataset.items, vectors, ranker.config.sources).save(draft.path)
            ranker.model.save(draft.path)
            if ranker.calibration is not None:
                ranker.calibration.save(draft.path)
            draft.info |= ranker.manifest["info"]
    return Ranker.open(out)
