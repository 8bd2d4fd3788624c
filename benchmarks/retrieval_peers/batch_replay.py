"""RePlay's top items of logits, by the callback and the filter that its neural models predict with.

    pip install replay-rec==0.22.0

Its models give logits over all candidates for a batch of users; here they are dot products.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from common import Batch, Ints, batch_main

TOP = 10
USERS = 64  # whose logits are held at a time: 256 MB of a million items


def recommend(batch: Batch) -> Ints:
    """Batch by batch through `PandasTopItemsCallback` with `SeenItemsFilter`."""
    import torch
    from replay.nn.lightning.callback import PandasTopItemsCallback
    from replay.nn.lightning.postprocessor import SeenItemsFilter

    torch.set_num_threads(batch.threads)
    allowed = np.setdiff1d(np.arange(len(batch.items)), batch.blocked)
    module = SimpleNamespace(candidates_to_score=torch.from_numpy(allowed))
    items = torch.from_numpy(batch.items[allowed])
    callback = PandasTopItemsCallback(TOP, "user", "item", "score", [SeenItemsFilter(len(batch.items), "seen")])
    callback.on_predict_epoch_start(None, module)
    for start in range(0, len(batch.users), USERS):
        rows = np.arange(start, min(start + USERS, len(batch.users)))
        parts = [batch.seen[batch.seen_offsets[row] : batch.seen_offsets[row + 1]] for row in rows]
        seen = np.full((len(rows), max(map(len, parts))), -1, np.int64)
        for row, part in enumerate(parts):
            seen[row, : len(part)] = part
        logits = torch.from_numpy(batch.users[rows]) @ items.T
        given = {"user": torch.from_numpy(rows), "seen": torch.from_numpy(seen)}
        callback.on_predict_batch_end(None, module, {"logits": logits}, given, start // USERS)
    found = callback.get_result()
    return found["item"].to_numpy().reshape(-1, TOP).astype(np.int64)


if __name__ == "__main__":
    batch_main("replay-rec", __doc__, recommend)
