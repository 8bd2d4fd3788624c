"""After a night that was kept out, the live model goes on over tonight's data."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.nightly_parts.shop import DAY, FIRST, Shop, check_served
from recsys import schema
from recsys.api import Run, open_run
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset, places
from recsys.nightly import night as nights
from recsys.nightly import run as job
from recsys.runtime import Runtime
from recsys.student.distill import distill
from recsys.student.renew import renew

SECOND, THIRD, FOURTH = FIRST + DAY, FIRST + 2 * DAY, FIRST + 3 * DAY
ALONE = Runtime(seed=1, threads=1, progress=False)
# Steps so long that nothing is left of what the live model knew, and no ranker to make up for it.
RUINED = ("distill.lr=0.5", "distill.epochs=1", "use_ranker=false", "nightly.gate.tolerance=0.05")


def run_of(shop: Shop, as_of: datetime) -> Run:
    return Run(nights.folder_of(shop.run_dir, nights.name_of(as_of)))


@pytest.fixture
def known(shop: Shop) -> Shop:
    """The shop, with a past that says what is usual."""
    metrics = shop.record(SECOND).metrics
    for number in range(3, 6):
        as_of = FIRST - number * DAY
        night = shop.record(SECOND).model_copy(update={"name": nights.name_of(as_of), "as_of": as_of, "kept": False})
        night.metrics = {name: 0.8 * value for name, value in metrics.items()}
        nights.save(shop.run_dir, night)
    return shop


def test_the_live_model_writes_tonights_lists(known: Shop) -> None:
    night = known.night(THIRD, *RUINED)
    assert (night.state, night.exit_code, night.renews) == ("kept_out", 3, nights.name_of(SECOND)), night.metrics
    assert any("primary metric" in why for why in night.against)
    assert known.live == night.name == check_served(known.run_dir)
    run, before, kept_out = open_run(known.run_dir), run_of(known, SECOND), run_of(known, THIRD)
    assert set(run.recommendations.table["generated_at"].to_pylist()) == {THIRD}
    assert run.dataset.fingerprint == kept_out.dataset.fingerprint != before.dataset.fingerprint
    assert run.student.manifest["inputs"]["renews"] == before.student.fingerprint
    assert run.ranker.manifest["info"] == before.ranker.manifest["info"]
    assert run.report.fingerprint == before.report.fingerprint
    assert kept_out.student.fingerprint != run.student.fingerprint  # which can still be looked at
    assert night.lists is not None and night.lists.users == run.dataset.n_users


def test_it_is_the_next_champion_and_rollback_knows_whose_model_it_is(known: Shop) -> None:
    known.night(THIRD, *RUINED)
    known.write_log(FOURTH)
    night = known.night(FOURTH)
    assert (night.state, night.champion) == ("promoted", nights.name_of(THIRD)), night.against
    renewed = Run(nights.served_folder(known.run_dir, known.record(THIRD)))
    assert run_of(known, FOURTH).student.manifest["inputs"]["warm_start"] == renewed.student.fingerprint
    assert check_served(known.run_dir) == night.name
    # Whose lists they were is one way back, the model before it the other.
    assert nights.rollback(known.run_dir, nights.name_of(THIRD)).model == nights.name_of(SECOND)
    assert check_served(known.run_dir) == nights.name_of(THIRD)
    assert nights.rollback(known.run_dir).name == nights.name_of(FIRST) == check_served(known.run_dir)


def test_two_nights_in_turn_are_renewed_from_the_same_model(known: Shop) -> None:
    known.night(THIRD, *RUINED)
    known.write_log(FOURTH)
    night = known.night(FOURTH, *RUINED)
    assert night.renews == nights.name_of(SECOND), night.against
    run, before = open_run(known.run_dir), run_of(known, SECOND)
    assert (known.live, check_served(known.run_dir)) == (night.name, night.name)
    assert_same_model(run.student.item_vectors, before.student.item_vectors, run.dataset, before.dataset)
    # What was served until now stays for its readers, though it is neither live nor promoted.
    assert nights.served_folder(known.run_dir, known.record(THIRD)).exists()


@pytest.mark.parametrize("usual", [{}, {"champion": 0.9}], ids=["nothing is known", "a window like no other"])
def test_yesterdays_lists_stay_where_the_data_may_be_at_fault(known: Shop, usual: dict[str, float]) -> None:
    for night in nights.load_nights(known.run_dir):
        night.metrics = usual
        nights.save(known.run_dir, night)
    night = known.night(THIRD, *RUINED)
    assert (night.state, night.renews, known.live) == ("kept_out", None, nights.name_of(SECOND))
    assert "renew" not in [stage.stage for stage in night.stages]


def test_in_parts_a_night_that_was_killed_after_the_gate_does_not_go_live(known: Shop) -> None:
    night = known.night(THIRD, *RUINED, "nightly.renew=false")
    night.state = "running"  # as the record says between gate and end
    nights.save(known.run_dir, night)
    night = known.night(THIRD, *RUINED, since="promote")
    assert (night.state, night.renews, known.live) == ("kept_out", None, nights.name_of(SECOND))


def test_it_can_be_left_out(known: Shop) -> None:
    night = known.night(THIRD, *RUINED, "nightly.renew=false")
    assert (night.state, night.renews, known.live) == ("kept_out", None, nights.name_of(SECOND))


def test_what_the_model_cannot_do_leaves_yesterdays_lists(known: Shop) -> None:
    night = known.night(THIRD, *RUINED, 'ingest.event_types={gift="keep"}')
    assert (night.state, night.renews, known.live) == ("kept_out", None, nights.name_of(SECOND)), night.metrics
    assert any("cannot write tonight's lists: the log has the event types" in note for note in night.notes)


@pytest.mark.parametrize("live", [False, True], ids=["before its lists were live", "just after"])
def test_a_night_killed_at_the_last_step_is_ended_by_the_next_start(
    known: Shop, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap, write = nights.promote, nights.save

    def killed(*given: Any, **options: Any) -> bool:
        if live:
            swap(*given, **options)
        monkeypatch.setattr(nights, "save", lambda *_: None)  # what is dead writes nothing
        raise KeyboardInterrupt

    monkeypatch.setattr(nights, "promote", killed)
    with pytest.raises(KeyboardInterrupt):
        known.night(THIRD, *RUINED)
    monkeypatch.setattr(nights, "promote", swap)
    monkeypatch.setattr(nights, "save", write)
    assert known.record(THIRD).state == "running"
    assert check_served(known.run_dir) == nights.name_of(THIRD if live else SECOND)
    night = known.night(THIRD, *RUINED)
    assert (night.state, night.renews, night.starts) == ("kept_out", nights.name_of(SECOND), 1 if live else 2)
    assert check_served(known.run_dir) == night.name


def test_who_rolls_back_meanwhile_is_obeyed(known: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = job.renew

    def slow(*given: Any, **options: Any) -> Run:
        nights.rollback(known.run_dir)
        return renewed(*given, **options)

    monkeypatch.setattr(job, "renew", slow)
    night = known.night(THIRD, *RUINED)
    assert (night.state, night.renews) == ("kept_out", None)
    assert known.live == nights.name_of(FIRST) == check_served(known.run_dir)


def assert_same_model(now: np.ndarray, then: np.ndarray, dataset: Dataset, before: Dataset) -> None:
    place = places(dataset.items[schema.ITEM_ID], before.items[schema.ITEM_ID])
    assert (place >= 0).sum() > 100
    np.testing.assert_array_equal(now[place >= 0], then[place[place >= 0]])


@pytest.mark.parametrize("id_rows", [0, 40], ids=["rows of their own", "rows shared by hash"])
def test_a_renewed_student_is_the_same_model(two_nights: Shop, tmp_path: Path, id_rows: int) -> None:
    then, now = (run_of(two_nights, as_of).dataset for as_of in (FIRST, SECOND))
    config = two_nights.config().distill.model_copy(update={"use_text": True, "epochs": 1, "id_rows": id_rows})
    student = distill(then, None, config, tmp_path / "then" / "student", runtime=ALONE)
    renewed = renew(student, then, now, tmp_path / "now" / "student", runtime=ALONE)
    assert_same_model(renewed.item_vectors, student.item_vectors, now, then)
    new = places(now.items[schema.ITEM_ID], then.items[schema.ITEM_ID]) < 0
    assert new.any() and np.abs(renewed.item_vectors[new]).sum(axis=1).min() > 0
    # The same histories give the same vectors, whatever the items are numbered.
    users = np.arange(50)
    histories = then.histories(users)
    place = places(then.items[schema.ITEM_ID], now.items[schema.ITEM_ID])
    renumbered = type(histories)(
        histories.offsets, place[histories.item_idx], histories.event_type, histories.timestamp, histories.session
    )
    np.testing.assert_allclose(
        renewed.user_vectors(renumbered, runtime=ALONE), student.user_vectors(histories, runtime=ALONE), atol=1e-6
    )
    # And it is a start like any other.
    warm = config.model_copy(update={"warm_start": renewed.path})
    assert distill(now, None, warm, tmp_path / "next" / "student", runtime=ALONE).counts["items_known_before"] == (
        now.n_items
    )


def test_event_types_that_were_not_learned_are_refused(two_nights: Shop, tmp_path: Path) -> None:
    then, now = (run_of(two_nights, as_of).dataset for as_of in (FIRST, SECOND))
    now.manifest["info"]["event_types"] = [*then.event_types, "gift"]
    with pytest.raises(InputError, match=r"gift\n  expected: those that the student has learned"):
        renew(run_of(two_nights, FIRST).student, then, now, tmp_path / "student", runtime=ALONE)
