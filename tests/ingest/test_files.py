"""Which files a source's name, glob or folder stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.errors import InputError
from recsys.ingest.config import TextFormat
from recsys.ingest.files import DataFile, find_files

AUTO = TextFormat()


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def found(data: Path, pattern: str, text: TextFormat = AUTO) -> list[DataFile]:
    return find_files(data, Path(pattern), text, key="ingest.events")


def names(data: Path, pattern: str, text: TextFormat = AUTO) -> list[str]:
    return [file.name for file in found(data, pattern, text)]


def test_a_file_a_glob_and_a_folder(tmp_path: Path) -> None:
    data = make(tmp_path / "data", "log/b.csv", "log/a.csv.gz", "log/deep/er/c.jsonl", "other.pq")
    assert names(data, "other.pq") == ["other.pq"]
    assert names(data, "log") == ["log/a.csv.gz", "log/b.csv", "log/deep/er/c.jsonl"]
    assert names(data, "log/*.csv*") == ["log/a.csv.gz", "log/b.csv"]
    assert names(data, "l?g/[ab].csv") == ["log/b.csv"]
    assert names(data, "**/*.jsonl") == ["log/deep/er/c.jsonl"]
    assert names(data, "log/**") == names(data, "l*") == names(data, "log")
    assert names(data, ".") == [*names(data, "log"), "other.pq"]
    assert all(file.path == data / file.name for file in found(data, "log"))


def test_names_outside_of_data_do_not_tell_where_it_lies(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/a.csv", "data/b.csv")
    outside = tmp_path / "elsewhere" / "a.csv"
    assert names(tmp_path / "data", str(outside)) == ["a.csv"]
    assert names(tmp_path / "data", str(outside.parent)) == ["a.csv"]
    assert names(tmp_path / "data", str(tmp_path / "data" / "*.csv")) == ["b.csv"]


def test_a_relative_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "data/b.csv")
    monkeypatch.chdir(tmp_path)
    assert names(Path("data"), "*.csv") == ["b.csv"]


def test_what_tools_leave_behind_is_ignored(tmp_path: Path) -> None:
    data = make(
        tmp_path, "log/a.csv", "log/_SUCCESS", "log/.a.csv.crc", "log/a.csv.crc", "log/.b.csv",
        "log/_temporary/0/c.csv", "log/.ipynb_checkpoints/a.csv", "_hidden/d.csv", ".e.csv",
    )  # fmt: skip
    assert names(data, "log") == names(data, "log/**") == names(data, ".") == ["log/a.csv"]
    assert names(data, "_hidden") == names(data, "_hidden/*.csv") == ["_hidden/d.csv"]
    assert names(data, ".e.csv") == [".e.csv"]


def test_a_name_may_look_like_a_glob(tmp_path: Path) -> None:
    data = make(tmp_path, "events[1].csv", "events1.csv", "[x]/a.csv")
    assert names(data, "events[1].csv") == ["events[1].csv"]
    assert names(data, "[x]") == ["[x]/a.csv"]


def test_linked_files_count_once(tmp_path: Path) -> None:
    data = make(tmp_path / "data", "log/a.csv")
    make(tmp_path, "far/b.csv")
    (data / "log" / "far").symlink_to(tmp_path / "far")
    (data / "log" / "Latest.csv").symlink_to(data / "log" / "a.csv")
    (data / "log" / "loop").symlink_to(data / "log")
    assert names(data, "log") == ["log/a.csv", "log/far/b.csv"]
    (data / "log" / "broken.csv").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"broken\.csv is no file"):
        found(data, "log")


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("a.csv", "auto", "csv"),
        ("a.TSV.GZ", "auto", "csv"),
        ("a.txt.xz", "auto", "csv"),
        ("a.dat.bz2", "auto", "csv"),
        ("a.json.zst", "auto", "jsonl"),
        ("a.ndjson", "auto", "jsonl"),
        ("a.snappy.parquet", "auto", "parquet"),
        ("a.parquet", "csv", "parquet"),
        ("a.log", "csv", "csv"),
        ("a.log.gz", "jsonl", "jsonl"),
        ("part-00000", "parquet", "parquet"),
        ("a.txt", "jsonl", "jsonl"),
    ],
)
def test_formats(tmp_path: Path, name: str, said: str, expected: str) -> None:
    data = make(tmp_path, name)
    assert found(data, name, TextFormat.model_validate({"format": said}))[0].format == expected


def test_levels_of_hive_folders(tmp_path: Path) -> None:
    data = make(
        tmp_path, "log/dt=2026-11-20/country=a%2Fb/x.csv", "log/dt=__HIVE_DEFAULT_PARTITION__/country=/raw/y.csv",
        "log/dt=a=b/country=c/=/k=v.csv",
    )  # fmt: skip
    assert [dict(file.partition) for file in found(data, "log")] == [
        {"dt": "2026-11-20", "country": "a/b"},
        {"dt": "", "country": ""},
        {"dt": "a=b", "country": "c"},
    ]
    assert found(data, "log/dt=2026*")[0].partition == {"dt": "2026-11-20", "country": "a/b"}
    assert found(data, "log/dt=2026-11-20")[0].partition == {"country": "a/b"}
    assert found(data, "log/dt=2026-11-20/country=a%2Fb/x.csv")[0].partition == {}


@pytest.mark.parametrize(
    ("files", "pattern", "message"),
    [
        ((), "gone.csv", r"gone\.csv is not there"),
        (("a.csv",), "*.json", "no file fits"),
        (("a.csv",), "gone/*.csv", "no file fits"),
        (("log/_SUCCESS", "log/.a.csv"), "log", "there is no file in"),
        (("log/a.csv", "log/README.md"), "log", r"README\.md has a name that does not tell its format"),
        (("a.parquet.gz",), "a.parquet.gz", "compressed once more"),
        (("log/dt=1/a.csv", "log/b.csv"), "log", r"the keys \['dt'\]"),
        (("log/dt=1/a.csv", "log/day=1/b.csv"), "log", r"the keys \['day'\]"),
        (("log/dt=1/dt=2/a.csv",), "log", "the same key twice"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, files: tuple[str, ...], pattern: str, message: str) -> None:
    make(tmp_path, *files)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message) as error:
        found(tmp_path, pattern)
    assert "ingest.events" in error.value.do or "unpack" in error.value.do


def test_an_empty_folder_and_the_key_of_the_format(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there is no file in"):
        found(tmp_path, "empty")
    make(tmp_path, "a.xls")
    for key, expected in [
        ("ingest.events", "ingest.text.format"),
        ("ingest.sources[1].events", "ingest.sources[1].text.format"),
        ("ingest.items", "ingest.items_text.format"),
    ]:
        with pytest.raises(InputError) as error:
            find_files(tmp_path, Path("a.xls"), AUTO, key=key)
        assert expected in error.value.do
