"""RecTools' ranker of vectors, the one behind its matrix factorization and its transformers on a CPU.

pip install rectools==0.19.0
"""

from __future__ import annotations

import numpy as np
from common import Batch, Ints, batch_main, one_blas_thread

TOP = 10


def recommend(batch: Batch) -> Ints:
    """By `ImplicitRanker.rank`, with a whitelist for what is in stock."""
    from rectools.models.rank import Distance, ImplicitRanker

    one_blas_thread()
    ranker = ImplicitRanker(Distance.DOT, batch.users, np.array(batch.items), num_threads=batch.threads)
    allowed = np.setdiff1d(np.arange(len(batch.items)), batch.blocked)
    everybody = np.arange(len(batch.users))
    seen = batch.seen_matrix()
    users, items, _ = ranker.rank(everybody, TOP, filter_pairs_csr=seen, sorted_object_whitelist=allowed)
    user = np.asarray(users)
    lists = np.full((len(batch.users), TOP), -1, np.int64)
    lists[user, np.arange(len(user)) - np.searchsorted(user, user)] = items
    return lists


if __name__ == "__main__":
    batch_main("rectools", __doc__, recommend)
