"""Files of text, good and broken, as Parquet: what lands, what is rejected, and that nothing goes missing."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.ingest import landing
from recsys.ingest.config import TextFormat
from recsys.ingest.files import DataFile
from recsys.ingest.landing import LINE, ROW, Landed, columns_of, land

TWO = TextFormat(header=("a", "b"), delimiter=",")


def file_of(folder: Path, data: bytes, name: str = "f.csv") -> DataFile:
    (folder / name).write_bytes(data)
    return DataFile(folder / name, name, "jsonl" if ".jsonl" in name else "csv", {})


def landed(folder: Path, data: bytes, text: TextFormat | None = None, name: str = "f.csv") -> tuple[Landed, list[Any]]:
    """What lands, and its rows as tuples."""
    result = land(file_of(folder, data, name), text or TextFormat(), folder / "out.parquet")
    table = pq.read_table(result.path)
    assert [path.name for path in folder.glob("*.part")] == []
    expected = [ROW, *result.columns, *([LINE] if ".jsonl" in name else [])]
    assert table.column_names == expected
    assert table.schema.types == [pa.int64()] + [pa.string()] * (len(expected) - 1)
    rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    numbers = table[ROW].to_pylist()
    assert numbers == sorted(numbers)
    assert result.rejected["row"].to_pylist() == sorted(result.rejected["row"].to_pylist())
    assert sorted(numbers + result.rejected["row"].to_pylist()) == list(range(result.n_rows))
    return result, rows


def rejected(result: Landed) -> list[tuple[int, str, str]]:
    return [(row["row"], json.loads(row["raw"]), row["reason"]) for row in result.rejected.to_pylist()]


def anew(data: bytes, text: TextFormat, name: str = "f.csv", block: int = 1 << 24) -> tuple[Landed, list[Any]]:
    """`landed` in a folder of its own, read in blocks of this size."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(landing, "_BLOCK", block)
        return landed(Path(folder), data, text, name)


# CSV


def by_the_rule(data: bytes, width: int) -> tuple[list[tuple[Any, ...]], list[tuple[int, str, str]]]:
    """The rule for CSV in plain words: record by record, by the csv module alone."""
    raw = re.findall(rb"[^\n]*\n|[^\n]+", data.removeprefix(b"\xef\xbb\xbf"))
    lines, invalid = [], []
    for line in raw:
        try:
            lines.append(line.decode())
            invalid.append(False)
        except UnicodeDecodeError:
            lines.append(line.decode("ascii", "backslashreplace"))
            invalid.append(True)
    good: list[tuple[Any, ...]] = []
    bad: list[tuple[int, str, str]] = []
    i = 0
    while i < len(lines):
        reader = csv.reader(lines[i : i + 100], strict=True)
        fields, n = None, 1
        with suppress(csv.Error):
            fields = next(reader)
        if fields == []:
            i += 1
            continue
        if fields is not None and len(fields) == width:
            n = reader.line_num
        row = len(good) + len(bad)
        text = "".join(lines[i : i + n]).rstrip("\r\n")
        if any(invalid[i : i + n]):
            bad.append((row, text, "invalid_encoding"))
        elif fields is not None and len(fields) == width:
            good.append((row, *fields))
        else:
            bad.append((row, text, "malformed_line"))
        i += n
    return good, bad


PIECES = [
    b"a",
    b"bc",
    b",",
    b'"',
    b'""',
    b"\n",
    b"\r\n",
    b"\r",
    b"\0",
    b" ",
    "é".encode(),
    b"\xff",
    b'"x",y\n',
    b"p,q\n",
]


@settings(max_examples=250, deadline=None)
@given(
    pieces=st.lists(st.sampled_from([*PIECES, b",", b'"', b"\n"]), max_size=40),
    width=st.integers(1, 3),
    block=st.sampled_from([1, 5, 30, 1 << 24]),
)
def test_any_csv_lands_by_the_plain_rule(pieces: list[bytes], width: int, block: int) -> None:
    data = b"".join(pieces)
    good, bad = by_the_rule(data, width)
    text = TextFormat(header=tuple("abc"[:width]), delimiter=",")
    if not data.removeprefix(b"\xef\xbb\xbf").strip(b"\r\n"):
        with pytest.raises(InputError, match="has no rows"):
            anew(data, text, block=block)
        return
    result, rows = anew(data, text, block=block)
    assert rows == good
    assert rejected(result) == bad


words = st.text("abcxyz é'-;", min_size=1, max_size=8).map(lambda word: "w" + word)
BAD_LINES = ["lonely", "one,two,three", '"unclosed,x', 'x,"unclosed', '"a"b,c', ',,"z']


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(words, st.tuples(words, words).map("\n, ".join) | words | st.just("")), min_size=1),
    junk=st.lists(st.sampled_from(BAD_LINES), max_size=5),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    end=st.sampled_from(["\n", "\r\n"]),
    random=st.randoms(use_true_random=False),
)
def test_no_broken_line_costs_a_good_row(
    rows: list[tuple[str, str]], junk: list[str], quoting: Any, end: str, random: Any
) -> None:
    records = []
    for row in rows:
        buffer = io.StringIO(newline="")
        csv.writer(buffer, quoting=quoting, lineterminator=end).writerow(row)
        records.append(buffer.getvalue())
    for line in junk:
        records.insert(random.randint(0, len(records)), line + end)
    result, found = anew("".join(["a,b" + end, *records]).encode(), TextFormat(delimiter=","), block=64)
    assert [row[1:] for row in found] == rows
    assert sorted(raw for _, raw, _ in rejected(result)) == sorted(junk)


def test_an_unclosed_quote_costs_one_row_and_a_quoted_newline_none(tmp_path: Path) -> None:
    data = b'id,title\n1,"two\nlines"\n2,"never closed\n3,5" screen\n4,"5"" screen"\n\n5,\n'
    result, rows = landed(tmp_path, data)
    assert rows == [(0, "1", "two\nlines"), (2, "3", '5" screen'), (3, "4", '5" screen'), (4, "5", "")]
    assert rejected(result) == [(1, '2,"never closed', "malformed_line")]


def test_a_record_ends_after_a_hundred_lines(tmp_path: Path) -> None:
    for n, n_good in [(100, 1), (101, 0)]:
        _, rows = landed(tmp_path, b'a,b\n1,"' + b"\n" * (n - 1) + b'"\n')
        assert len(rows) == n_good


def test_long_fields_land(tmp_path: Path) -> None:
    long = "x" * 300_000
    _, rows = landed(tmp_path, f'a,b\n1,{long}\n2,"{long}\n{long}"\n'.encode())
    assert [row[2] for row in rows] == [long, f"{long}\n{long}"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str) -> None:
    lines = [["id", "title", "price"], ["1", '"a, b; c | d"', "1.5"], ["2", "plain", "2"]]
    data = "\n".join(delimiter.join(line) for line in lines).encode() + b'\n"'
    result, rows = landed(tmp_path, data)
    assert result.columns == ("id", "title", "price")
    assert rows == [(0, "1", "a, b; c | d", "1.5"), (1, "2", "plain", "2")]
    assert columns_of(file_of(tmp_path, data), TextFormat()) == result.columns


def test_a_decimal_comma_is_no_delimiter(tmp_path: Path) -> None:
    assert landed(tmp_path, b"a;b\n1,5;2,5\n3,5;4,5\n")[1][0] == (0, "1,5", "2,5")
    assert landed(tmp_path, b"1,5;2,5\n3,5;4,5\n", TextFormat(header=("a", "b")))[1][0] == (0, "1,5", "2,5")
    assert landed(tmp_path, b"a,b\tc\n1\t2\n", name="f.tsv")[0].columns == ("a,b", "c")
    assert landed(tmp_path, b"a^b\n1^2\n", TextFormat(delimiter="^"))[1] == [(0, "1", "2")]


def test_one_column_and_a_header_alone(tmp_path: Path) -> None:
    assert landed(tmp_path, b'id\nx\n""\n\ny')[1] == [(0, "x"), (1, ""), (2, "y")]
    result, rows = landed(tmp_path, b"id,title\r\n")
    assert (result.n_rows, rows, result.columns) == (0, [], ("id", "title"))


def test_text_in_other_encodings(tmp_path: Path) -> None:
    data = "id,title\n1,Käse\n2,Tee\n".encode("latin-1")
    assert landed(tmp_path, data, TextFormat(encoding="latin-1"))[1] == [(0, "1", "Käse"), (1, "2", "Tee")]
    result, rows = landed(tmp_path, data)
    assert rows == [(1, "2", "Tee")]
    assert rejected(result) == [(0, "1,K\\xe4se", "invalid_encoding")]
    assert landed(tmp_path, "a,b\n1,表示\n".encode("cp932"), TextFormat(encoding="cp932"))[1] == [(0, "1", "表示")]
    # As many bytes in both encodings, but not line by line.
    data = "a,b\n1,ß\n2,表示\n".encode("gb18030")
    assert landed(tmp_path, data, TextFormat(encoding="gb18030"))[1] == [(0, "1", "ß"), (1, "2", "表示")]
    result, rows = landed(tmp_path, b"a,b\n1,\x81\n2,\x80\n", TextFormat(encoding="cp1252"))
    assert (rows, rejected(result)) == ([(1, "2", "€")], [(0, "1,\\x81", "invalid_encoding")])
    assert landed(tmp_path, b"\xef\xbb\xbfid,b\n1,2\n")[0].columns == ("id", "b")


@pytest.mark.parametrize(
    ("data", "text", "message"),
    [
        (b"", TextFormat(), "has no rows"),
        (b"\n\r\n\n", TextFormat(), "has no rows"),
        (b"\xef\xbb\xbf", TextFormat(), "has no rows"),
        (b"a,a\n1,2\n", TextFormat(), "ingest.text.header"),
        (b"a,\n1,2\n", TextFormat(), "ingest.text.header"),
        (b"a,\0\n1,2\n", TextFormat(), "ingest.text.header"),
        (b'"a,b\n1,2\n', TextFormat(), "no header that can be read"),
        (b"a,b\r1,2\r", TextFormat(), "no header that can be read"),
        (b"a,\xff\n1,2\n", TextFormat(), "ingest.text.encoding"),
        (b"1,2\n", TextFormat(header=("a", "a")), "two columns 'a'"),
        (b"recsys_row,b\n1,2\n", TextFormat(), "a column 'recsys_row'"),
        (b"a,Recsys_Line\n1,2\n", TextFormat(), "a column 'Recsys_Line'"),
        (b"a,b\n1,2\n", TextFormat(encoding="no-such"), "'no-such' cannot be read"),
        (b"a,b\n1,2\n", TextFormat(encoding="utf-16"), "'utf-16' cannot be read"),
        (b"a,b\n1,2\n", TextFormat(encoding="rot13"), "'rot13' cannot be read"),
        ("a,b\n1,2\n".encode("utf-16"), TextFormat(), "is in UTF-16"),
        (b"a,b\n1,2\n", TextFormat(delimiter='"'), "cannot be split"),
        (b"a,b\n1,2\n", TextFormat(delimiter="§"), "cannot be split"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, data: bytes, text: TextFormat, message: str) -> None:
    file = file_of(tmp_path, data)
    with pytest.raises(InputError, match=re.escape(message)):
        land(file, text, tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["f.csv"]
    with pytest.raises(InputError, match=re.escape(message)):
        columns_of(file, text)


def test_a_line_without_end_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landing, "_BLOCK", 1 << 10)
    monkeypatch.setattr(landing, "_LONGEST_LINE", 1 << 12)
    with pytest.raises(InputError, match="has a line of more than"):
        landed(tmp_path, b"a,b\n" + b"x" * (1 << 14))


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


@pytest.mark.parametrize(("ending", "pack"), PACKERS.items())
def test_packed_files_land_whole_or_not_at_all(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    plain = b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * i % 1009) for i in range(20_000))
    packed = pack(plain)
    assert landed(tmp_path, packed, name=f"f.csv.{ending}")[0].n_rows == 20_000
    assert landed(tmp_path, packed + pack(b"1,2\n"), name=f"f.csv.{ending}")[0].n_rows == 20_001
    assert landed(tmp_path, pack(b"a,b\tc\n"), name=f"f.tsv.{ending}")[0].columns == ("a,b", "c")
    (tmp_path / "out.parquet").unlink()
    for cut in (1, 3, len(packed) // 2, len(packed) - 5, len(packed) - 1):
        with pytest.raises(InputError, match=rf"g\.csv\.{ending} cannot be read"):
            landed(tmp_path, packed[:cut], name=f"g.csv.{ending}")
    with pytest.raises(InputError, match=rf"g\.csv\.{ending} cannot be read"):
        landed(tmp_path, plain, name=f"g.csv.{ending}")
    assert not (tmp_path / "out.parquet").exists()


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    for format_ in ("csv", "jsonl", "parquet"):
        file = DataFile(tmp_path / "gone", "gone", format_, {})  # type: ignore[arg-type]
        with pytest.raises(InputError, match="gone cannot be read"):
            columns_of(file, TextFormat())


def test_columns_of_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "f.parquet")
    assert columns_of(DataFile(tmp_path / "f.parquet", "f.parquet", "parquet", {}), TextFormat()) == ("a", "b")


# JSON lines


def json_lines(records: Iterable[Any], ascii_: bool = False) -> bytes:
    return "".join(json.dumps(each, ensure_ascii=ascii_) + "\n" for each in records).encode()


def as_landed(value: Any) -> str | None:
    if isinstance(value, list):
        return " > ".join(text for each in value if (text := as_scalar(each)) is not None) or None
    return as_scalar(value)


def as_scalar(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# No lone surrogates, which are no text, and in keys no NUL, which no column's name can have.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
keys = st.sampled_from(["a", "a.b", "$", "*", "a b", 'q"', "/", "~1", "0", "[0]", "$.a", "'", "é", "\\", "Ab", "{x}"])
keys = keys | texts.filter(lambda key: bool(key) and "\0" not in key and key.casefold() not in (ROW, LINE))
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | texts | st.sampled_from(["[1", "{", '["x"]', "null"])
)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(keys, scalars)
objects = st.dictionaries(keys, values, max_size=4)


@settings(max_examples=20, deadline=None)
@given(records=st.lists(objects, min_size=1, max_size=8), ascii_=st.booleans(), block=st.sampled_from([100, 1 << 24]))
def test_json_lines_land_by_their_keys(records: list[dict[str, Any]], ascii_: bool, block: int) -> None:
    data = json_lines(records, ascii_)
    result, rows = anew(data, TextFormat(), "f.jsonl", block)
    assert result.columns == tuple(dict.fromkeys(key for record in records for key in record))
    assert len(result.rejected) == 0
    for i, (record, line, row) in enumerate(zip(records, data.decode().split("\n"), rows, strict=False)):
        assert (row[0], row[-1]) == (i, line)
        for key, value in zip(result.columns, row[1:-1], strict=True):
            expected = record.get(key)
            if isinstance(expected, dict):
                assert json.loads(value) == expected
            else:
                assert value == as_landed(expected)


def test_json_lines_of_all_kinds(tmp_path: Path) -> None:
    lines = [
        b'{"id": 1, "price": 1.5, "ok": true, "path": ["Home", "Tea"], "none": null}',
        b"",
        b"[1]",
        b'{"id": "x", "path": [["a"], ["b"]], "deep": {"k": [1, 2]}}',
        b'{"id": "\xff"}',
        b'{"id": 2',
        b"\xe4, no JSON",
        b'{"id": 3, "id": 4, "path": [1, null, true], "none": [], "deep": [null]}  ',
        b"null",
        b'{"id": "a\\u0000b", "": 1}',
    ]
    result, rows = landed(tmp_path, b"\r\n".join(lines), name="f.jsonl")
    assert result.columns == ("id", "price", "ok", "path", "none", "deep")
    assert [row[:-1] for row in rows] == [
        (0, "1", "1.5", "true", "Home > Tea", None, None),
        (2, "x", None, None, '[["a"],["b"]]', None, '{"k":[1,2]}'),
        (6, "3", None, None, "1 > true", None, None),
        (8, "a\0b", None, None, None, None, None),
    ]
    assert [row[-1] for row in rows] == [lines[i].decode() for i in (0, 3, 7, 9)]
    assert rejected(result) == [
        (1, "[1]", "malformed_line"),
        (3, '{"id": "\\xff"}', "invalid_encoding"),
        (4, '{"id": 2', "malformed_line"),
        (5, "\\xe4, no JSON", "invalid_encoding"),
        (7, "null", "malformed_line"),
    ]
    assert columns_of(file_of(tmp_path, b"\n".join(lines), "f.jsonl"), TextFormat()) == result.columns


def test_events_in_a_list_become_rows(tmp_path: Path) -> None:
    sessions = [
        {"session": 1, "events": [{"aid": 2, "ts": 3, "type": "clicks"}, {"aid": 4, "ts": 5, "type": "carts"}]},
        {"session": 2, "events": []},
        {"session": 3},
        {"session": 4, "events": {"aid": 1}},
        {"session": 5, "events": [{"aid": 6, "session": 7, "tags": ["a", "b"]}, "text", "{", None, 8, [9]]},
    ]
    text = TextFormat(explode="events")
    result, rows = landed(tmp_path, json_lines(sessions), text, name="f.jsonl")
    assert result.columns == ("session", "aid", "ts", "type", "tags")
    assert [row[:-1] for row in rows] == [
        (0, "1", "2", "3", "clicks", None),
        (1, "1", "4", "5", "carts", None),
        (4, "7", "6", None, None, "a > b"),
    ]
    assert [json.loads(row[-1]) for row in rows] == [
        {"session": 1, "aid": 2, "ts": 3, "type": "clicks"},
        {"session": 1, "aid": 4, "ts": 5, "type": "carts"},
        {"session": 7, "aid": 6, "tags": ["a", "b"]},
    ]
    assert [(row, reason) for row, _, reason in rejected(result)] == [
        (row, "malformed_line") for row in (2, 3, 5, 6, 7, 8, 9)
    ]
    assert [raw for _, raw, _ in rejected(result)][:2] == [json.dumps(sessions[2]), json.dumps(sessions[3])]


@settings(max_examples=12, deadline=None)
@given(
    lists=st.lists(st.lists(objects | scalars, max_size=3), min_size=1, max_size=5),
    outer=objects,
    key=keys,
)
def test_a_list_of_any_objects_explodes(lists: list[list[Any]], outer: dict[str, Any], key: str) -> None:
    # At least one record, for a file without any has no rows.
    lines = [{**outer, key: elements} for elements in [*lists, [{"one": 1}]]]
    result, rows = anew(json_lines(lines), TextFormat(explode=key), "f.jsonl")
    elements = [each for line in lines for each in line[key]]
    assert result.n_rows == len(elements)
    assert [row[0] for row in rows] == [i for i, each in enumerate(elements) if isinstance(each, dict)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no rows"),
        (b" \n\n", "has no rows"),
        (b'{"recsys_line": 1}\n', "a column 'recsys_line'"),
        (json_lines({f"k{i}": 1} for i in range(2000)), "more than 1000 different keys"),
    ],
)
def test_json_lines_that_cannot_be_used(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        landed(tmp_path, data, name="f.jsonl")


# Neither


@settings(max_examples=30, deadline=None)
@given(
    data=st.binary(max_size=60)
    | st.lists(
        st.sampled_from([b'{"a":', b"1}", b"\n", b"[", b"]", b'"', b"\\", b"{", b"}", b",", b"1e999", b"\0"])
    ).map(b"".join),
    name=st.sampled_from(["f.csv", "f.jsonl", "f.csv.gz", "f.csv.xz", "f.jsonl.zst", "f.jsonl.bz2"]),
    encoding=st.sampled_from(["utf-8", "ascii", "cp1252", "gb18030"]),
    explode=st.sampled_from(["", "a"]),
    header=st.sampled_from([(), ("a",), ("a", "b")]),
)
def test_nothing_ends_in_a_traceback(data: bytes, name: str, encoding: str, explode: str, header: Any) -> None:
    text = TextFormat(encoding=encoding, explode=explode, header=header)
    pack = PACKERS.get(name.rsplit(".", 1)[1], bytes)
    for packed in (data, pack(data)):
        try:
            anew(packed, text, name)
        except InputError as error:
            assert name in str(error) or "cannot" in str(error)
