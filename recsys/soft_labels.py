"""The table in which teacher and student meet: the teacher's logits for some candidates at some positions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import schema
from recsys.artifacts import Artifact
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset, places

FILE: Final = "soft_labels.parquet"
ITEMS_FILE: Final = "items.parquet"
USERS_FILE: Final = "users.parquet"

# user_idx [n], position [n], candidate [n, C] (−1 for padding), teacher_logit [n, C] (0 for padding)
Rows = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]


class SoftLabels(Artifact):
    """What `recsys score` writes: `soft_labels.parquet` (`schema.SOFT_LABELS`), one row per scored position.

    Beside it lie the ids that its numbers stand for (`users.parquet`, `items.parquet`).
    """

    kind: ClassVar[str] = "soft_labels"
    stage: ClassVar[str] = "score"

    @cached_property
    def table(self) -> pa.Table:
        """The rows, checked.

        Raises:
            InputError: a logit is NaN or infinite, or a row's lists differ in length.
        """
        table = pq.read_table(self.path / FILE).cast(schema.SOFT_LABELS)
        logits = table["teacher_logit"]
        finite = pc.all(pc.is_finite(pc.list_flatten(logits))).as_py()
        same = pc.all(pc.equal(pc.list_value_length(logits), pc.list_value_length(table["candidate"]))).as_py()
        if finite is False or same is False:
            raise InputError(
                f"{self.path.name}/{FILE} holds "
                + ("logits that are NaN or infinite" if finite is False else "lists of unequal length"),
                expected="one finite teacher_logit for every candidate",
                do="score again: `recsys run --from score`; if it stays, train the teacher with a lower learning rate",
            )
        return table

    def padded(self, dataset: Dataset | None = None) -> Rows:
        """The rows as arrays.

        Args:
            dataset: another one than was scored, such as tonight's: users and items are matched by their ids. What has
                gone is left out, and so is a position that the user's training part does not reach. A history may have
                grown at its end since; it must not have lost its beginning, from which positions count.

        Returns:
            user_idx [n], position [n], candidate [n, C] (−1 for padding), teacher_logit [n, C] (0 for padding).
        """
        table = self.table.combine_chunks()
        lengths = pc.list_value_length(table["candidate"]).to_numpy()
        width = int(lengths.max()) if len(lengths) else 0
        mask = np.arange(width)[None, :] < lengths[:, None]
        candidate = np.full(mask.shape, -1, dtype=np.int32)
        candidate[mask] = pc.list_flatten(table["candidate"]).to_numpy()
        logit = np.zeros(mask.shape, dtype=np.float32)
        logit[mask] = pc.list_flatten(table["teacher_logit"]).to_numpy()
        user, position = table[schema.USER_IDX].to_numpy(), table[schema.POSITION].to_numpy()
        if dataset is None or dataset.fingerprint == self.manifest["inputs"].get("dataset"):
            return user, position, candidate, logit
        item_now = places(_saved(self.path / ITEMS_FILE), dataset.items[schema.ITEM_ID])
        candidate = np.where(candidate >= 0, item_now[candidate], -1).astype(np.int32)
        user = places(_saved(self.path / USERS_FILE), dataset.users[schema.USER_ID])[user]
        length = dataset.train.lengths
        there = (user >= 0) & (user < len(length))
        there &= position <= length[np.where(there, user, 0)]
        return user[there], position[there], candidate[there], np.where(candidate >= 0, logit, 0)[there]


def save_ids(dataset: Dataset, folder: Path) -> None:
    """Write what the rows' numbers stand for, so that they can be read beside another dataset."""
    for file, table, name in ((ITEMS_FILE, dataset.items, schema.ITEM_ID), (USERS_FILE, dataset.users, schema.USER_ID)):
        pq.write_table(table.select([name]), folder / file, compression="zstd")


def joined(labels: Sequence[SoftLabels], dataset: Dataset) -> Rows:
    """The rows of several tables on one dataset; where two speak of one position, the earlier named is believed."""
    parts = [each.padded(dataset) for each in labels]
    width = max(part[2].shape[1] for part in parts)
    user, position = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
    pad = [((0, 0), (0, width - part[2].shape[1])) for part in parts]
    candidate = np.concatenate([np.pad(part[2], p, constant_values=-1) for part, p in zip(parts, pad, strict=True)])
    logit = np.concatenate([np.pad(part[3], p) for part, p in zip(parts, pad, strict=True)])
    _, first = np.unique(user.astype(np.int64) << 32 | position, return_index=True)
    return user[first], position[first], candidate[first], logit[first]


def _saved(file: Path) -> pa.ChunkedArray:
    return pq.read_table(file).column(0)
