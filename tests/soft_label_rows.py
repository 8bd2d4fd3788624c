"""Soft labels by ids, to be compared between datasets."""

from __future__ import annotations

from recsys.ingest.dataset import Dataset
from recsys.soft_labels import SoftLabels

Rows = dict[tuple[str, int], dict[str, float]]


def rows_of(labels: SoftLabels, dataset: Dataset) -> Rows:
    """Logits by item_id, of each user_id and position."""
    users, items = (dataset.users["user_id"].to_pylist(), dataset.items["item_id"].to_pylist())
    found = {}
    for user, position, candidates, logits in zip(
        *(labels.table[name].to_pylist() for name in labels.table.schema.names), strict=True
    ):
        found[users[user], position] = {items[item]: logit for item, logit in zip(candidates, logits, strict=True)}
    return found
