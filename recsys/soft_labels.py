"""The table in which teacher and student meet: the teacher's logits for some candidates at some positions."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import schema
from recsys.artifacts import Artifact
from recsys.errors import InputError

FILE: Final = "soft_labels.parquet"


class SoftLabels(Artifact):
    """What `recsys score` writes: `soft_labels.parquet` (`schema.SOFT_LABELS`), one row per scored position."""

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

    def padded(
        self,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """The rows as arrays.

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
        return table[schema.USER_IDX].to_numpy(), table[schema.POSITION].to_numpy(), candidate, logit
