"""The batch stage: one whole table, the same after a kill, and the same bytes every time."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from ranking_shop import RUNTIME, Linear, build_shop, integer_vectors, moment, random_histories, write_dataset

from recsys import schema
from recsys.artifacts import Recipe, hash_file
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset, Sequences
from recsys.ranking.config import RecommendConfig
from recsys.ranking.recommend import Recommendations, recommend
from recsys.ranking.recommender import Recommender
from recsys.retrieval.config import IndexConfig
from recsys.retrieval.index import ItemIndex, Vectors, build_index
from recsys.runtime import Runtime

N_USERS, N_ITEMS = 100, 60


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Dataset, Linear, ItemIndex]:
    rng = np.random.default_rng(8)
    vectors = integer_vectors(rng, N_ITEMS)
    histories = random_histories(rng, N_USERS, N_ITEMS, 30)
    histories[7] = [(item, 0) for item in range(N_ITEMS - 4)]
    return build_shop(tmp_path / "shop", vectors, histories, in_stock=[i != 5 for i in range(N_ITEMS)])


@dataclass
class Dies(Linear):
    """A model whose process is killed when it is asked a third time."""

    def user_vectors(self, histories: Sequences, *, runtime: Runtime = RUNTIME) -> Vectors:
        if len(self.asked) == 2:
            raise KeyboardInterrupt
        return super().user_vectors(histories, runtime=runtime)


def test_every_user_has_a_list_in_one_table(shop: tuple[Dataset, Linear, ItemIndex], tmp_path: Path) -> None:
    dataset, student, index = shop
    made = recommend(*shop, RecommendConfig(k=6, shard_users=16), tmp_path / "recommendations", runtime=RUNTIME)
    table = made.table
    assert table.schema.equals(schema.RECOMMENDATIONS)
    assert table["run_id"].unique().to_pylist() == [made.fingerprint]
    assert table["generated_at"].unique().to_pylist() == [moment(N_ITEMS - 5)]  # of the last event of the log
    assert made.counts == {
        "users": N_USERS,
        "rows": N_USERS * 6 - 2,
        "full_lists": N_USERS - 1,
        "distinct_items": len(table["item_id"].unique()),
    }

    users = np.arange(N_USERS, dtype=np.int32)
    whole = Recommender(dataset, student, index, RecommendConfig(k=6), runtime=RUNTIME).recommend_for(
        dataset.histories(users)
    )
    assert table["user_id"].to_pylist() == [f"u{row}" for row in whole["row"].to_pylist()]
    for name in ("item_id", "rank", "score", "reason"):
        assert table[name].to_pylist() == whole[name].to_pylist()
    mine = made.for_user("u7")
    assert set(mine["item_id"].to_pylist()) == {f"i{i}" for i in range(N_ITEMS - 4, N_ITEMS)}
    assert mine["rank"].to_pylist() == [1, 2, 3, 4]
    assert made.for_user("nobody").num_rows == 0


def test_a_killed_run_goes_on_where_it_stopped_and_ends_with_the_same_bytes(
    shop: tuple[Dataset, Linear, ItemIndex], tmp_path: Path
) -> None:
    dataset, student, index = shop
    config = RecommendConfig(shard_users=16)
    undisturbed = recommend(*shop, config, tmp_path / "a" / "recommendations", runtime=RUNTIME)
    out = tmp_path / "b" / "recommendations"
    with pytest.raises(KeyboardInterrupt):
        recommend(dataset, Dies(student.item_vectors), index, config, out, runtime=RUNTIME)
    assert not out.exists()
    student.asked.clear()
    resumed = recommend(dataset, student, index, config, out, runtime=RUNTIME)
    assert student.asked == [16, 16, 16, 16, 4]  # of seven blocks, two were done
    assert hash_file(resumed.file) == hash_file(undisturbed.file)
    assert [path.name for path in resumed.path.iterdir() if path.name != "manifest.json"] == ["recommendations.parquet"]


def test_what_is_up_to_date_is_not_written_again(shop: tuple[Dataset, Linear, ItemIndex], tmp_path: Path) -> None:
    out = tmp_path / "recommendations"
    first = recommend(*shop, RecommendConfig(), out, runtime=RUNTIME)
    assert recommend(*shop, RecommendConfig(), out, runtime=RUNTIME).path == first.path
    bytes_before = hash_file(first.file)
    forced = recommend(*shop, RecommendConfig(), out, runtime=RUNTIME, force=True)
    assert forced.path != first.path
    assert hash_file(forced.file) == bytes_before
    assert recommend(*shop, RecommendConfig(k=3), out, runtime=RUNTIME).fingerprint != first.fingerprint


def test_users_can_be_chosen_in_any_order(shop: tuple[Dataset, Linear, ItemIndex], tmp_path: Path) -> None:
    everyone = recommend(*shop, RecommendConfig(), tmp_path / "a" / "recommendations", runtime=RUNTIME)
    config = RecommendConfig(users=("u93", "u2", "u11", "u2"), as_of=datetime(2030, 1, 1))
    some = recommend(*shop, config, tmp_path / "b" / "recommendations", runtime=RUNTIME)
    assert some.table["user_id"].unique().to_pylist() == ["u2", "u11", "u93"]
    assert {moment.isoformat() for moment in some.table["generated_at"].to_pylist()} == {"2030-01-01T00:00:00+00:00"}
    for user in ("u2", "u11", "u93"):
        columns = ["item_id", "rank", "score", "reason"]
        assert some.for_user(user).select(columns).equals(everyone.for_user(user).select(columns))
    with pytest.raises(InputError, match="names 2 unknown users: 'u100', 'x'"):
        recommend(*shop, RecommendConfig(users=("u1", "x", "u100")), tmp_path / "c" / "r", runtime=RUNTIME)


def test_the_table_in_parts_and_in_other_forms_holds_the_same_rows(
    shop: tuple[Dataset, Linear, ItemIndex], tmp_path: Path
) -> None:
    whole = recommend(*shop, RecommendConfig(), tmp_path / "a" / "recommendations", runtime=RUNTIME)
    config = RecommendConfig(shard_users=16, partitions=3, formats=("csv", "jsonl"))
    cut = recommend(*shop, config, tmp_path / "b" / "recommendations", runtime=RUNTIME)
    columns = [name for name in schema.RECOMMENDATIONS.names if name != "run_id"]
    assert cut.table.select(columns).equals(whole.table.select(columns))
    assert cut.counts == whole.counts
    files = sorted(cut.file.glob("*"))
    assert [file.name for file in files] == [f"part-{number:05d}.parquet" for number in range(3)]
    users = [set(pq.read_table(file)["user_id"].to_pylist()) for file in files]
    assert all(users) and not (users[0] & users[1] or users[1] & users[2] or users[0] & users[2])
    assert cut.for_user("u7").select(columns).equals(whole.for_user("u7").select(columns))
    rows = cut.table.to_pylist()
    lines = [json.loads(line) for line in (cut.path / "recommendations.jsonl").read_text().splitlines()]
    with (cut.path / "recommendations.csv").open(newline="") as file:
        comma = list(csv.DictReader(file))
    assert len(lines) == len(comma) == len(rows)
    for row, line, cells in zip(rows, lines, comma, strict=True):
        for name in ("user_id", "item_id", "reason", "run_id"):
            assert row[name] == line[name] == cells[name]
        assert row["rank"] == line["rank"] == int(cells["rank"])
        assert row["score"] == pytest.approx(line["score"]) == float(cells["score"])
        assert datetime.fromisoformat(cells["generated_at"]) == row["generated_at"]
        assert line["generated_at"] == cells["generated_at"]


def test_lists_in_parts_are_candidates_for_the_teacher_s_next_night(
    shop: tuple[Dataset, Linear, ItemIndex], tmp_path: Path
) -> None:
    from recsys.teacher.config import ScoreConfig
    from recsys.teacher.score import _student_lists

    found = []
    for partitions in (1, 3):
        config = RecommendConfig(shard_users=16, partitions=partitions)
        lists = recommend(*shop, config, tmp_path / str(partitions) / "recommendations", runtime=RUNTIME)
        found.append(_student_lists(shop[0], ScoreConfig(recommendations=lists.path, student_top=5)))
    for one, three in zip(*found, strict=True):
        np.testing.assert_array_equal(one, three)
    assert len(found[0][1]) > N_USERS


def test_nobody_to_recommend_for_is_an_empty_table(shop: tuple[Dataset, Linear, ItemIndex], tmp_path: Path) -> None:
    made = recommend(*shop, RecommendConfig(users=()), tmp_path / "recommendations", runtime=RUNTIME)
    assert made.table.equals(schema.RECOMMENDATIONS.empty_table())
    assert made.counts["users"] == 0


def test_the_real_student_recommends_what_it_scores_highest(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from recsys.sequence.features import ItemFeatures
    from recsys.sequence.towers import Towers
    from recsys.student.config import DistillConfig
    from recsys.student.model import Student

    config, rng = DistillConfig(dim=16, layers=1, heads=2, max_history=8), np.random.default_rng(0)
    histories = random_histories(rng, 50, 2000, 20)
    dataset = write_dataset(tmp_path / "dataset", histories, 2000)
    torch.manual_seed(0)
    features = ItemFeatures(rng.normal(size=(2000, 24)).astype(np.float32))
    model = Towers(config, features, torch.rand(2000) < 0.9, n_event_types=4).eval()
    with Recipe("student", config, {"dataset": dataset.fingerprint}, 0, ()).build(tmp_path / "student") as draft:
        with torch.inference_mode():
            np.save(draft.path / "item_vectors.npy", model.items().numpy())
        save_file(model.state_dict(), draft.path / "weights.safetensors")
        draft.info["n_event_types"] = 4
    student = Student.open(tmp_path / "student")

    for kind, least_overlap in (("flat", 1.0), ("hnsw", 0.95)):
        folder = tmp_path / kind
        index = build_index(
            student,
            IndexConfig(type=kind, recall_at=20, target_recall=0.9),
            folder / "index",
            dataset=dataset,
            runtime=RUNTIME,
        )
        assert index.manifest["info"]["tuned_with"] == "user vectors"
        made = recommend(dataset, student, index, RecommendConfig(), folder / "recommendations", runtime=RUNTIME)
        assert isinstance(made, Recommendations)
        rows = dataset.histories(np.arange(50, dtype=np.int32))
        scores = student.user_vectors(rows, runtime=RUNTIME) @ student.item_vectors.T
        for user, history in enumerate(histories):
            scores[user, [item for item, _ in history]] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        listed = np.char.lstrip(np.array(made.table["item_id"].to_pylist()), "i").astype(int).reshape(50, 10)
        overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(listed, best, strict=True)])
        assert overlap >= least_overlap
        np.testing.assert_allclose(
            np.array(made.table["score"]).reshape(50, 10), np.take_along_axis(scores, listed, 1), rtol=1e-4, atol=1e-5
        )
