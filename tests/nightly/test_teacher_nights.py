"""What a night takes over from the teacher of another, and what it asks it."""

from __future__ import annotations

from datetime import datetime

from benchmarks.nightly_parts.shop import DAY, FIRST, Shop
from recsys.api import Run
from recsys.nightly import night as nights
from tests.soft_label_rows import rows_of

TEACHER = "use_teacher=true"
TAUGHT, CARRIED = FIRST + 2 * DAY, FIRST + 3 * DAY


def night_run(shop: Shop, as_of: datetime) -> Run:
    return Run(nights.folder_of(shop.run_dir, nights.name_of(as_of)))


def test_the_teacher_is_carried_over_and_asked_about_what_has_changed(shop: Shop) -> None:
    assert shop.night(TAUGHT, TEACHER).state == "promoted"
    shop.write_log(CARRIED)
    said: list[str] = []
    night = shop.night(CARRIED, TEACHER, say=said.append)
    assert night.state == "promoted", night.against
    assert night.teacher_as_of == TAUGHT
    before, after = night_run(shop, TAUGHT), night_run(shop, CARRIED)
    assert after.teacher.fingerprint == before.teacher.fingerprint
    earlier, now = rows_of(before.soft_labels, before.dataset), rows_of(after.soft_labels, after.dataset)
    ends = dict(zip(after.dataset.users["user_id"].to_pylist(), after.dataset.split.train_end.tolist(), strict=True))
    new = {key for key in now if key not in earlier}
    assert after.soft_labels.counts["scored"] == len(new)
    assert 0 < len(new) < len(now)
    assert all(ends[user] == position for user, position in new)  # the end of training, which has moved
    known = set(after.dataset.items["item_id"].to_pylist())
    for key in now.keys() & earlier.keys():
        assert now[key] == {item: logit for item, logit in earlier[key].items() if item in known}
    assert after.student.manifest["inputs"]["soft_labels"] == after.soft_labels.fingerprint


def test_a_week_later_the_teacher_is_taught_anew(shop: Shop) -> None:
    assert shop.night(TAUGHT, TEACHER).state == "promoted"
    later = TAUGHT + 7 * DAY
    shop.write_log(later, since=TAUGHT)
    night = shop.night(later, TEACHER)
    assert night.teacher_as_of == later
    assert night_run(shop, later).teacher.fingerprint != night_run(shop, TAUGHT).teacher.fingerprint
