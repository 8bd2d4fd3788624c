"""implicit's batch recommend, with the vectors as the factors of a fitted model.

pip install implicit==0.7.3
"""

from __future__ import annotations

import numpy as np
from common import Batch, Ints, batch_main, one_blas_thread

TOP = 10


def recommend(batch: Batch) -> Ints:
    """By its matrix factorization's `recommend`, which takes all users at once."""
    from implicit.cpu.als import AlternatingLeastSquares

    one_blas_thread()
    model = AlternatingLeastSquares(factors=batch.items.shape[1], num_threads=batch.threads)
    model.item_factors, model.user_factors = np.array(batch.items), batch.users
    everybody = np.arange(len(batch.users))
    seen = batch.seen_matrix()
    return model.recommend(everybody, seen, TOP, filter_already_liked_items=True, filter_items=batch.blocked)[0]


if __name__ == "__main__":
    batch_main("implicit", __doc__, recommend)
