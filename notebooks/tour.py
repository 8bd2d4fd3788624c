# %% [markdown]
# # A tour through a run
#
# From the log to tonight's recommendations: what each stage wrote, and how to ask for more. Run `make demo` first, or
# point `TOUR_RUN` at any other run folder. The file is a notebook in percent format: VS Code and Jupytext
# open it as cells, and `python notebooks/tour.py` runs it from top to bottom.

# %%
import os
from pathlib import Path

import numpy as np
import pandas as pd

import recsys

here = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()
run = recsys.open_run(os.environ.get("TOUR_RUN", here.parent / "runs" / "sample"))
print(run)

# %% [markdown]
# ## The data
#
# `ingest` read the logs, put bad rows aside and wrote flat arrays: a user's events are a slice.

# %%
dataset = run.dataset
print(f"{dataset.n_users:,} users, {dataset.n_items:,} items, split by {dataset.protocol!r}")
pd.Series(dataset.counts)

# %% [markdown]
# One of the busier users: the last five events, with titles.

# %%
user = int(np.argsort(dataset.sequences.lengths)[-len(dataset.users) // 10])
user_id = dataset.users["user_id"][user].as_py()
last = dataset.histories(np.array([user], dtype=np.int32), last=5)
history = dataset.items.select(["item_id", "title", "category"]).take(last.item_idx).to_pandas()
history.insert(0, "event_type", [dataset.event_types[code] for code in last.event_type])
history.insert(0, "time", pd.to_datetime(last.timestamp, unit="us", utc=True))
print(history.to_string(index=False))

# %% [markdown]
# ## The lists
#
# The same call serves people in the log …

# %%
print(run.recommend(users=[user_id], k=5).to_string(index=False))

# %% [markdown]
# … people of whom only a few clicks are known …

# %%
clicks = history.item_id.tolist()[-2:]
print(run.recommend(history=clicks, k=5).to_string(index=False))

# %% [markdown]
# … and people of whom nothing is.

# %%
print(run.recommend(history=[], k=5).to_string(index=False))

# %% [markdown]
# ## What the student knows about items
#
# Every item has a vector, those that nobody has touched yet too, because text gives them one. Neighbours by cosine:

# %%
vectors = np.array(run.student.item_vectors)
vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
item = int(last.item_idx[-1])
near = np.argsort(-(vectors @ vectors[item]))[:6]
print(dataset.items["title"].take(near).to_pylist())

# %% [markdown]
# ## What the teacher told
#
# Teacher and student meet in a table: a user, a position, candidates and their logits.

# %%
if run.config.use_teacher:
    print(run.soft_labels.table.slice(0, 3).to_pandas())

# %% [markdown]
# ## How good it is
#
# Whole catalogue, test part, seen items filtered; `low` and `high` bound the bootstrap interval. The report's page has
# the rest, and `run.report.per_user` every user's values.

# %%
rows = pd.DataFrame(run.report.rows)
chosen = rows[(rows.k == 10) & rows.seen_filtered & (rows.users == "all") & rows.metric.isin(["ndcg", "recall"])]
print(chosen.pivot_table(index="model", columns="metric", values=["value", "low", "high"]).round(4))
print(f"the page: {run.folder('evaluate') / run.report.html.name}")
