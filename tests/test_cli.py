"""The `recsys` command as a user meets it: a process, its output and its exit code."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from recsys import __version__
from recsys.api import Run
from recsys.cli import app
from recsys.config import STAGES
from recsys.sample.config import SampleConfig

HEAVY = {"torch", "transformers", "ibis", "duckdb", "faiss", "pandas", "pyarrow", "numpy", "scipy", "plotly", "tqdm"}
ENV = {name: value for name, value in os.environ.items() if not name.startswith("RECSYS_")}


def recsys(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recsys", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=ENV | env,
    )


def artifacts(run_dir: Path) -> dict[Path, tuple[int, int]]:
    """Every file of every published artifact, with its size and time of change."""
    return {
        file: (file.stat().st_size, file.stat().st_mtime_ns)
        for name in STAGES.values()
        if (run_dir / name).exists()
        for file in (run_dir / name).resolve().rglob("*")
    }


def test_help_answers_at_once_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from recsys.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert not HEAVY & set(done.stderr.split())
    # Its own time on the processor: what a user waits for, unless the machine is busy with something else.
    assert min(seconds) < 0.5


def test_help_lists_the_verbs_and_every_verb_has_an_example() -> None:
    def help_of(*verb: str) -> str:
        return CliRunner().invoke(app, [*verb, "--help"], prog_name="recsys").output

    for verb in (*STAGES, "run", "sample", "validate", "doctor"):
        assert f"\n  {verb} " in help_of()
        assert re.search(rf"Examples:\n(    .*\n)*?    (RECSYS_\S+ )?recsys {verb}\b", help_of(verb))


def test_version() -> None:
    done = recsys("--version")
    assert (done.returncode, done.stdout) == (0, f"recsys {__version__}\n")


def test_doctor_names_what_a_bug_report_needs() -> None:
    done = recsys("doctor")
    assert done.returncode == 0
    for name in ("python", "torch", "duckdb", "threads", "free disk", "device", "precision", "encoder"):
        assert f" {name} " in done.stdout


def test_sample_writes_a_shop_of_the_size_asked_for(tmp_path: Path) -> None:
    done = recsys("sample", tmp_path / "shop", "--items", "60", "--users", "40", "--events", "600", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert pq.read_metadata(tmp_path / "shop" / "items.parquet").num_rows == 60
    assert str(SampleConfig().n_events) in recsys("sample", "--help").stdout
    refused = recsys("sample", tmp_path / "other", "--items", "3")
    assert refused.returncode == 2
    assert "n_items = 3 cannot be used" in refused.stderr


def test_run_prints_progress_to_stderr_and_what_to_open_to_stdout(finished: Run, tiny_toml: Path) -> None:
    done = recsys("run", "-c", tiny_toml)
    assert done.returncode == 0
    assert done.stderr.count("up to date") == len(STAGES)
    paths = [Path(line.split(": ")[1]) for line in done.stdout.splitlines()]
    assert [path.name for path in paths] == ["recommendations.parquet", "report.html"]
    assert all(path.is_file() and "versions" not in path.parts for path in paths)


def test_a_rule_that_means_no_item_is_named(finished: Run, tiny_toml: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(finished.path, tmp_path / "run", symlinks=True))
    rules = ('recommend.blocked_brands=["Nobody\'s brand"]', 'recommend.formats=["csv"]')
    words = [word for rule in (f'run_dir="{run_dir}"', *rules) for word in ("--set", rule)]
    done = recsys("recommend", "-c", tiny_toml, *words)
    assert done.returncode == 0, done.stderr
    assert "recommend.blocked_brands: Nobody's brand" in done.stderr
    assert (run_dir / "recommendations" / "recommendations.csv").is_file()


def test_evaluate_json_prints_the_figures(finished: Run, tiny_toml: Path) -> None:
    done = recsys("evaluate", "-c", tiny_toml, "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    keys = {"model", "protocol", "seen_filtered", "metric", "k", "value", "low", "high"}
    assert all(row.keys() >= keys for row in rows)
    assert {row["metric"] for row in rows} == {"recall", "ndcg", "hit_rate", "mrr", "precision", "map"}
    assert {row["seen_filtered"] for row in rows} == {True, False}
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
    assert len(rows) == len(finished.report.rows)
    assert "evaluate" in done.stderr


def test_validate_prints_the_config_as_resolved_and_computes_nothing(tiny_toml: Path, tmp_path: Path) -> None:
    done = recsys("validate", "-c", tiny_toml, "--set", f"run_dir={tmp_path / 'run'}", RECSYS_DISTILL__EPOCHS="9")
    assert done.returncode == 0
    assert "epochs = 9" in done.stdout
    assert not (tmp_path / "run").exists()
    missing = recsys("validate", "-c", tiny_toml, "--set", "ingest.events=nowhere.parquet")
    assert missing.returncode == 2
    assert "nowhere.parquet" in missing.stderr


def test_usage_errors_are_exit_code_2() -> None:
    for arguments in (["run"], ["run", "--no-such-option"], ["no-such-verb"]):
        done = recsys(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


# --- bad input -------------------------------------------------------------------------------------------------------


def drop_column(shop: Path) -> None:
    table = pq.read_table(shop / "events.parquet")
    pq.write_table(table.drop_columns(["user_id"]), shop / "events.parquet")


def empty_log(shop: Path) -> None:
    table = pq.read_table(shop / "events.parquet")
    pq.write_table(table.slice(0, 0), shop / "events.parquet")


def unknown_event_type(shop: Path) -> None:
    table = pq.read_table(shop / "events.parquet")
    types = pc.replace_substring(table["event_type"].cast(pa.string()), "cart", "wishlist")
    place = table.column_names.index("event_type")
    pq.write_table(table.set_column(place, "event_type", types), shop / "events.parquet")


def no_parquet(shop: Path) -> None:
    (shop / "events.parquet").write_text("user_id,item_id,event_type,timestamp\nu1,i1,view,2026-01-01\n")


def no_titles(shop: Path) -> None:
    table = pq.read_table(shop / "items.parquet")
    place = table.column_names.index("title")
    pq.write_table(table.set_column(place, "title", pa.nulls(len(table), pa.string())), shop / "items.parquet")


def no_title_column(shop: Path) -> None:
    pq.write_table(pq.read_table(shop / "items.parquet").drop_columns(["title"]), shop / "items.parquet")


def nothing(shop: Path) -> None:
    pass


BAD_INPUT: dict[str, tuple[Callable[[Path], None], list[str], list[str]]] = {
    "a missing column": (drop_column, [], ["events.parquet", "user_id"]),
    "an empty log": (empty_log, [], ["events.parquet", "no rows"]),
    "an unknown event type": (unknown_event_type, [], ["wishlist", "event_types"]),
    "a file that is no Parquet": (no_parquet, [], ["events.parquet", "Parquet"]),
    "a catalogue without titles": (no_titles, [], ["items.parquet", "title"]),
    "a catalogue without a title column": (no_title_column, [], ["items.parquet", "title"]),
    "a config key that does not exist": (nothing, ["--set", "distill.epoch=3"], ["'epoch'", "[distill]", "'epochs'"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_clear_message_exit_code_2_and_touches_nothing(
    finished: Run, tiny_toml: Path, shop: Path, tmp_path: Path, case: str
) -> None:
    spoil, options, said = BAD_INPUT[case]
    run_dir = Path(shutil.copytree(finished.path, tmp_path / "run", symlinks=True))
    spoiled = Path(shutil.copytree(shop, tmp_path / "shop"))
    spoil(spoiled)
    before = artifacts(run_dir)
    done = recsys("run", "-c", tiny_toml, "--set", f"data={spoiled}", "--set", f"run_dir={run_dir}", *options)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert done.stderr.count("expected:") == done.stderr.count("to do:") == 1
    for words in said:
        assert words in done.stderr
    assert artifacts(run_dir) == before
    assert Run(run_dir).config.data == shop


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_clear_message_exit_code_2_and_touches_nothing(
    finished: Run, tiny_toml: Path, disk: Path, stage: str
) -> None:
    run_dir = Path(shutil.copytree(finished.path, disk / "run", symlinks=True))
    before = artifacts(run_dir)
    written = sum(file.stat().st_size for file in (run_dir / STAGES[stage]).resolve().rglob("*"))
    with (disk / "ballast").open("wb") as file:
        file.write(bytes(shutil.disk_usage(disk).free - written // 2))
    done = recsys(stage, "-c", tiny_toml, "--force", "--set", f"run_dir={run_dir}")
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert artifacts(run_dir) == before


def test_a_full_disk_under_the_text_vectors_is_no_different(finished: Run, tiny_toml: Path, disk: Path) -> None:
    """They are written through a memory map, where a missing page would kill the process."""
    run_dir = Path(shutil.copytree(finished.path, disk / "run", symlinks=True))
    shutil.rmtree((run_dir / "text_vectors").resolve())
    (run_dir / "text_vectors").unlink()
    with (disk / "ballast").open("wb") as file:
        file.write(bytes(shutil.disk_usage(disk).free - 100_000))
    done = recsys("distill", "-c", tiny_toml, "--force", "--set", f"run_dir={run_dir}")
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stderr


def test_an_interrupt_is_exit_code_130(finished: Run, tiny_toml: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(finished.path, tmp_path / "run", symlinks=True))
    before = artifacts(run_dir)
    # A shell starts background jobs with SIGINT ignored, and children inherit that: here it has to arrive.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "recsys", "distill", "-c", tiny_toml, "--force", "--set", f"run_dir={run_dir}"],
            stderr=subprocess.PIPE,
            text=True,
            env=ENV,
        )
    finally:
        signal.signal(signal.SIGINT, inherited)
    while not list((run_dir / "work").glob("student-*")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate()[1]
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert artifacts(run_dir) == before


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = recsys("run", "-c", tmp_path / "nothing.toml", RECSYS_DEBUG="1")
    assert "Traceback" in done.stderr
    assert "InputError" in done.stderr


def test_an_unforeseen_error_is_exit_code_1_with_its_traceback(tiny_toml: Path, tmp_path: Path) -> None:
    """What nobody foresaw must not be made to look harmless."""
    run_dir = tmp_path / "run"
    run_dir.write_text("a file where a folder has to be")
    done = recsys("ingest", "-c", tiny_toml, "--set", f"run_dir={run_dir}")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_inspect_writes_a_config_that_ingests(shop: Path, tmp_path: Path) -> None:
    toml = tmp_path / "first.toml"
    arguments = "inspect", shop / "events.parquet", shop / "items.parquet", "-o", toml
    assert recsys(*arguments).returncode == 0
    done = recsys("ingest", "-c", toml, "--set", f"run_dir={tmp_path / 'run'}", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["profile"]["counts"]["rows_in"] == pq.read_metadata(shop / "events.parquet").num_rows
    assert report["drift"]["previous"] is False
    again = recsys(*arguments)
    assert again.returncode == 2 and "first.toml is there already" in again.stderr
    nothing = recsys("inspect", tmp_path / "nowhere.parquet")
    assert nothing.returncode == 2 and "Traceback" not in nothing.stderr and not nothing.stdout


def test_ingest_says_what_has_changed_since_the_run_before(shop: Path, tiny_toml: Path, tmp_path: Path) -> None:
    """Half of the log is missing, and the command says so."""
    half = Path(shutil.copytree(shop, tmp_path / "half"))
    run = ["ingest", "-c", tiny_toml, "--set", f"run_dir={tmp_path / 'run'}"]
    first = recsys(*run)
    assert first.returncode == 0 and "! " not in first.stderr
    assert first.stdout == f"open the data report: {tmp_path / 'run' / 'data_report.html'}\n"
    events = pq.read_table(half / "events.parquet")
    pq.write_table(events.slice(0, len(events) // 2), half / "events.parquet")
    second = recsys(*run, "--set", f"data={half}")
    assert second.returncode == 0
    assert re.search(r"^! .*events", second.stderr, re.MULTILINE), second.stderr


def test_compare_puts_runs_side_by_side(finished: Run, tmp_path: Path) -> None:
    other = Path(shutil.copytree(finished.path, tmp_path / "again", symlinks=True))
    done = recsys("compare", finished.path, other)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("undecided") == 2 and "+0.0000" in done.stdout
    rows = [
        json.loads(line) for line in recsys("compare", finished.path, other, "-k", "20", "--json").stdout.splitlines()
    ]
    assert [(row["metric"], row["k"], row["difference"]) for row in rows] == [
        ("ndcg", 20, None), ("ndcg", 20, 0.0), ("recall", 20, None), ("recall", 20, 0.0),
    ]  # fmt: skip
    alone = recsys("compare", finished.path)
    assert alone.returncode == 2 and "Traceback" not in alone.stderr


def test_audit_finds_nothing_in_a_clean_run_and_a_planted_leak(finished: Run, tiny_toml: Path, tmp_path: Path) -> None:
    clean = recsys("audit", "-c", tiny_toml)
    assert clean.returncode == 0, clean.stderr
    assert "LEAK" not in clean.stdout
    folder = tmp_path / "run"
    shutil.copytree(finished.dataset.path, folder / "dataset")
    # All of training happens a month later than it did.
    train = folder / "dataset" / "train.parquet"
    table = pq.read_table(train)
    later = [[time + 30 * 86_400_000_000 for time in row] for row in table["timestamp"].to_pylist()]
    place = table.column_names.index("timestamp")
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(later, field.type)), train)
    manifest = json.loads((folder / "dataset" / "manifest.json").read_text())
    manifest["files"]["train.parquet"] = train.stat().st_size
    (folder / "dataset" / "manifest.json").write_text(json.dumps(manifest))
    leaking = recsys("audit", "-c", tiny_toml, "--set", f"run_dir={folder}", "--json")
    assert leaking.returncode == 1 and not leaking.stderr, leaking.stderr
    findings = {row["name"]: row for row in map(json.loads, leaking.stdout.splitlines())}
    assert findings["training_after_cut"]["found"] and findings["training_after_cut"]["count"] > 0


def test_tuned_baselines_stand_in_the_next_report(finished: Run, tiny_toml: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished.path, run_dir, symlinks=True)
    config = ["-c", tiny_toml, "--set", f"run_dir={run_dir}", "--set", "baselines.max_trials=4"]
    few = ["--set", 'baselines.baselines=["item_knn", "text_similarity"]', "--set", 'evaluate.baselines=["item_knn"]']
    found = recsys("baselines", *config, *few)
    assert found.returncode == 0, found.stderr
    assert re.search(r"^item_knn +0\.\d{4} +0\.\d{4} +4  neighbours=\d+ shrinkage=", found.stdout, re.MULTILINE)
    trials = [json.loads(line) for line in recsys("baselines", *config, *few, "--json").stdout.splitlines()]
    assert [trial["baseline"] for trial in trials].count("text_similarity") == 4
    best = max((trial for trial in trials if trial["baseline"] == "item_knn"), key=lambda trial: trial["ndcg_at_10"])
    evaluated = recsys("evaluate", *config, *few, "--set", "evaluate.teacher_users=0")
    assert evaluated.returncode == 0, evaluated.stderr
    report = Run(run_dir).report
    assert {row.model for row in report.rows} == {"student", "ranker", "item_knn"}
    assert (report.baselines["item_knn"].parameters, report.baselines["item_knn"].tuned) == (best["parameters"], True)
    # A tuning of another dataset says nothing of this one.
    assert recsys("ingest", *config, "--set", "ingest.session_gap_minutes=7").returncode == 0
    assert Run(run_dir).tuning is None
    unknown = recsys("baselines", *config, "--set", 'baselines.baselines=["nobody"]')
    assert unknown.returncode == 2
    assert "unknown baseline 'nobody'" in unknown.stderr


def test_evaluate_measures_the_lists_of_any_system(finished: Run, tiny_toml: Path, tmp_path: Path) -> None:
    """Lists that hold the targets and nothing else are perfect; one user without a list costs its share."""
    dataset = finished.dataset
    cases = dataset.cases("test")
    users = cases.user_idx.repeat(cases.targets.lengths)
    rows = pa.table(
        {
            "user_id": dataset.users["user_id"].take(pa.array(users)),
            "item_id": dataset.items["item_id"].take(pa.array(cases.targets.values)),
            "score": [1.0] * len(users),
        }
    )
    lists = tmp_path / "lists.parquet"
    pq.write_table(rows, lists)
    asked = ["evaluate", "-c", tiny_toml, "--recs", lists, "--with-seen"]
    perfect = recsys(*asked, "--json")
    assert perfect.returncode == 0, perfect.stderr
    found = {row["metric"]: row for row in map(json.loads, perfect.stdout.splitlines())}
    assert found["ndcg_at_100"]["value"] == pytest.approx(1) and found["ndcg_at_100"]["seen_filtered"] is False
    assert found["ndcg_at_100"]["users"] == len(cases) and "users without list 0" in perfect.stderr
    first = rows["user_id"][0].as_py()
    pq.write_table(rows.filter(pc.not_equal(rows["user_id"], first)), lists)
    one_less = recsys(*asked)
    share = f"{1 - 1 / len(cases):.4f}"
    assert re.search(rf"^hit_rate_at_100 +{share}$", one_less.stdout, re.MULTILINE), one_less.stdout
    pq.write_table(rows.drop_columns(["score"]), lists)
    bad = recsys(*asked)
    assert bad.returncode == 2 and "rank" in bad.stderr and "Traceback" not in bad.stderr
