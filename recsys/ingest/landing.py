"""Files of text become Parquet of strings with a row number, so that engines only ever read Parquet.

A file passes through in blocks of whole lines. What cannot be read is set aside with its row number and the reason; the
rows around it are kept.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from recsys.errors import InputError
from recsys.ingest.config import TextFormat
from recsys.ingest.files import COMPRESSIONS, DataFile, ending

ROW: Final = "recsys_row"
LINE: Final = "recsys_line"

_BLOCK: Final = 16 << 20  # bytes of decompressed text
_LONGEST_LINE: Final = 64 << 20
_RECORD_LINES: Final = 100  # a quoted field that is not closed by then was never meant to be one
_MOST_KEYS: Final = 1000
_JSON_BATCH: Final = 1 << 22  # values (rows times columns) that are held at once
_REJECTED: Final = pa.schema([("row", pa.int64()), ("raw", pa.string()), ("reason", pa.string())])
_NEWLINE, _RETURN, _QUOTE = (ord(each) for each in '\n\r"')

# The csv module's own limit of 128 KiB would reject long descriptions.
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class Landed:
    """A file of text that became Parquet.

    Attributes:
        path: Parquet of `ROW` int64 (0-based among the file's records, rejected ones included; a CSV's header is no
            record), all of the file's columns as strings (null where a JSON line lacks the key or has null; an empty
            field of a CSV is an empty string), and for JSON lines `LINE`, the line as it came. Rows are in file order.
        columns: the file's own columns, in order.
        n_rows: number of all records, rejected ones included.
        rejected: row int64, raw string (the record's text as a JSON string) and reason string: "malformed_line" or
            "invalid_encoding". In row order.
    """

    path: Path
    columns: tuple[str, ...]
    n_rows: int
    rejected: pa.Table


def land(file: DataFile, text: TextFormat, out: Path) -> Landed:
    """Turn a file of text into Parquet.

    CSV is read by RFC 4180, with CRLF or LF. A line begins a record; the record goes on over the following lines (100
    at most) where a quoted field holds newlines. If it cannot be parsed like that or has the wrong number of fields,
    its first line alone is rejected, and reading goes on at the next line: an unclosed quote costs one row. A quote in
    the middle of an unquoted field stands for itself. Empty lines are no records.

    Of JSON lines, each is an object whose keys are the columns. Scalars become their text, a list of scalars its
    elements joined by " > " (nulls left out; null if nothing is left), all else stays JSON. Of a key that comes twice
    in a line, the first counts. With `text.explode`, each object in the line's list is a record, and what `LINE` holds
    is that object merged into the line without its list (RFC 7396: the object's own keys win); an element that is no
    object is a malformed record, and so is a line without that list; an empty list holds no record.

    Args:
        file: the file, CSV or JSON lines.
        text: how it is written.
        out: the Parquet file to write; it appears only when it is whole.

    Raises:
        InputError: the file cannot be read or unpacked, has no line at all, is in an encoding that is not known or not
            supported, or its columns have names that cannot be used.
    """
    if file.format == "csv":
        return _land_csv(file, text, out)
    return _land_json(file, text, out)


def columns_of(file: DataFile, text: TextFormat) -> tuple[str, ...]:
    """The file's columns, without landing it. For JSON lines these are the keys in the file's first lines only.

    Raises:
        InputError: as `land`; or a Parquet file cannot be read.
    """
    if file.format == "parquet":
        try:
            return tuple(pq.read_schema(file.path).names)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(file, error) from None
    if file.format == "csv":
        return _head(file, text, _blocks(file, text)).columns
    with _duckdb() as connection:
        first = next(_blocks(file, text), None)
        return _keys(connection, file, _json_records(connection, text, [] if first is None else [first]))


# Text


@dataclass(frozen=True)
class _Lines:
    """Whole lines of text.

    Attributes:
        data: the lines with their ends, in UTF-8.
        ends: int64 [n], where each line ends in `data`, its newline included.
        invalid: bool [n], lines that are no text in the file's encoding; they stand in `data` with escapes.
    """

    data: bytes
    ends: npt.NDArray[np.int64]
    invalid: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        return np.concatenate([[0], self.ends[:-1]]).astype(np.int64)[: len(self)]

    @cached_property
    def _bounds(self) -> list[int]:
        return [0, *self.ends.tolist()]  # many times faster than the array, one line at a time

    def text(self, first: int, n: int = 1) -> str:
        """A few lines with their ends."""
        return self.data[self._bounds[first] : self._bounds[first + n]].decode()

    def after(self, first: int) -> _Lines:
        """The lines from one on."""
        if not first:
            return self
        start = self.ends[first - 1]
        return _Lines(self.data[start:], self.ends[first:] - start, self.invalid[first:])

    def __add__(self, other: _Lines) -> _Lines:
        ends = np.concatenate([self.ends, other.ends + len(self.data)])
        return _Lines(self.data + other.data, ends, np.concatenate([self.invalid, other.invalid]))

    def select(self, chosen: npt.NDArray[np.bool_]) -> bytes:
        """The text of the chosen lines; bool [n]."""
        if chosen.all():
            return self.data
        lengths = np.diff(self.ends, prepend=0)
        return np.frombuffer(self.data, np.uint8)[np.repeat(chosen, lengths)].tobytes()


_NO_LINES: Final = _Lines(b"", np.zeros(0, np.int64), np.zeros(0, np.bool_))


def _blocks(file: DataFile, text: TextFormat) -> Iterator[_Lines]:
    """The file's lines, about `_BLOCK` bytes at a time."""
    encoding = _encoding(text)
    rest, begun = b"", False
    for chunk in _chunks(file):
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            rest += chunk
            if len(rest) > _LONGEST_LINE:
                raise InputError(
                    f"{file.name} has a line of more than {_LONGEST_LINE >> 20} MiB",
                    expected="text in lines",
                    do="check that it is a file of text",
                )
            continue
        data, rest = rest + chunk[:cut], chunk[cut:]
        yield _lines(data if begun else _without_mark(file, data), encoding)
        begun = True
    if rest:
        yield _lines(rest if begun else _without_mark(file, rest), encoding)


def _chunks(file: DataFile) -> Iterator[bytes]:
    try:
        with _open(file.path) as stream:
            while chunk := stream.read(_BLOCK):
                yield chunk
    except (OSError, EOFError, lzma.LZMAError, pa.ArrowException) as error:
        raise _unreadable(file, error) from None


def _open(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked. At the end of a packed file that was cut off, reading fails."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression == "xz":
        return lzma.open(path)
    stream: IO[bytes] = pa.input_stream(str(path), compression=compression)
    return stream


def _unreadable(file: DataFile, error: Exception) -> InputError:
    return InputError(
        f"{file.name} cannot be read: {error}", expected="a whole, readable file", do="write or copy it again"
    )


def _encoding(text: TextFormat) -> str:
    """Python's name of the encoding, if lines can be told before they are decoded."""
    # What many encodings take as more than ASCII.
    probe = bytes(range(128)) + rb"\u000a\x0a~{+AAo-"
    try:
        known = probe.decode(text.encoding) == probe.decode("ascii")
    except (LookupError, ValueError):
        known = False
    if not known:
        raise InputError(
            f"text in the encoding {text.encoding!r} cannot be read",
            expected='an encoding that Python knows and that holds ASCII as it is, such as "utf-8" or "latin-1"',
            do="correct text.encoding; convert UTF-16 and its like to UTF-8",
        )
    return text.encoding


def _without_mark(file: DataFile, data: bytes) -> bytes:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{file.name} is in UTF-16", expected="UTF-8, or one of its like", do="convert it to UTF-8")
    return data.removeprefix(b"\xef\xbb\xbf")


def _lines(data: bytes, encoding: str) -> _Lines:
    try:
        decoded = data.decode(encoding).encode()
    except UnicodeDecodeError:
        # Line by line only now: few blocks have such lines, or the encoding is wrong.
        pieces, invalid = [], []
        for line in io.BytesIO(data):
            try:
                pieces.append(line.decode(encoding).encode())
                invalid.append(False)
            except UnicodeDecodeError:
                pieces.append(line.decode("ascii", "backslashreplace").encode())
                invalid.append(True)
        decoded = b"".join(pieces)
        return _Lines(decoded, _ends(decoded), np.array(invalid))
    ends = _ends(decoded)
    return _Lines(decoded, ends, np.zeros(len(ends), np.bool_))


def _ends(data: bytes) -> npt.NDArray[np.int64]:
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == _NEWLINE) + 1
    return ends if not data or data.endswith(b"\n") else np.append(ends, len(data))


# CSV


@dataclass(frozen=True)
class _Head:
    """How a CSV begins: its delimiter, its columns, and the first blocks without the header."""

    delimiter: str
    columns: tuple[str, ...]
    rest: _Lines


def _head(file: DataFile, text: TextFormat, blocks: Iterator[_Lines]) -> _Head:
    lines = _NO_LINES
    for block in blocks:
        lines += block
        if len(lines) >= _RECORD_LINES or len(lines.data) > _LONGEST_LINE:
            break
    n_blank = len(lines.data) - len(lines.data.lstrip(b"\r\n"))
    if n_blank == len(lines.data):
        raise _no_rows(file)
    lines = lines.after(int(np.searchsorted(lines.ends, n_blank, side="right")))
    delimiter = _delimiter(file, text, lines)
    if text.header:
        return _Head(delimiter, _usable(file, text.header), lines)
    fields, n_lines = _record(lines, 0, delimiter)
    if fields is None or lines.invalid[:n_lines].any():
        raise InputError(
            f"{file.name} has no header that can be read: {lines.text(0).rstrip()[:200]!r}",
            expected=f"names of columns in {text.encoding}, and lines that end in LF or CRLF",
            do="say ingest.text.header if it has none, or correct ingest.text.encoding",
        )
    return _Head(delimiter, _usable(file, fields), lines.after(n_lines))


def _no_rows(file: DataFile) -> InputError:
    return InputError(f"{file.name} has no rows", expected="at least one line", do="leave it out or write it again")


def _usable(file: DataFile, columns: Sequence[str]) -> tuple[str, ...]:
    faulty = "" if all(columns) and "\0" not in "".join(columns) else "a column whose name is empty or holds a NUL"
    twice = next((name for i, name in enumerate(columns) if name in columns[:i]), None)
    if twice is not None and not faulty:
        faulty = f"two columns {twice!r}"
    if faulty:
        raise InputError(
            f"{file.name} has {faulty}",
            expected="a header of different names",
            do="give all columns names in ingest.text.header, and remove the file's own header if it has one",
        )
    _refuse_own_names(file, columns)
    return tuple(columns)


def _refuse_own_names(file: DataFile, columns: Sequence[str]) -> None:
    # Engines take names that differ only in case for the same.
    for name in columns:
        if name.casefold() in (ROW, LINE):
            raise InputError(f"{file.name} has a column {name!r}", expected="any other name", do="rename it")


def _delimiter(file: DataFile, text: TextFormat, lines: _Lines) -> str:
    """What splits the fields: said, or what splits most of the first lines into the same number of fields."""
    if text.delimiter:
        if text.delimiter in '"\0\n\r' or not text.delimiter.isascii():
            raise InputError(
                f"fields cannot be split by {text.delimiter!r}",
                expected="one ASCII character such as ;",
                do="correct text.delimiter",
            )
        return text.delimiter
    if ending(file.path) == ".tsv":
        return "\t"
    best, found = (0, 0), ","
    for candidate in ",;\t|":
        sizes, i = [], 0
        while i < min(len(lines), _RECORD_LINES):
            fields, n_lines = _record(lines, i, candidate)
            sizes.append(len(fields or ()))
            i += n_lines if fields else 1
        size = len(text.header) or sizes[0]
        if size > 1 and (sizes.count(size), size) > best:
            best, found = (sizes.count(size), size), candidate
    return found


def _record(lines: _Lines, first: int, delimiter: str) -> tuple[list[str] | None, int]:
    """The fields of the record that begins at a line, or None if there is none; and the number of lines looked at."""
    ahead = range(first, min(first + _RECORD_LINES, len(lines)))
    reader = csv.reader((lines.text(i) for i in ahead), delimiter=delimiter, strict=True)
    try:
        return next(reader), reader.line_num
    except csv.Error:
        return None, reader.line_num


def _plain(lines: _Lines, delimiter: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Lines that every parser reads alike and alone, and empty lines, which are no records; bool [n] each.

    In a plain line, quotes surround whole fields or are doubled within them, and no field is open at its end; or no
    quote begins a field, so that all stand for themselves.
    """
    data = np.frombuffer(lines.data, np.uint8)
    starts, n = lines.starts, len(lines)
    # With a byte around, so that neighbours exist at both ends.
    before = np.frombuffer(b"\n" + lines.data + b"\n", np.uint8)
    after = before[2:]

    quotes = np.flatnonzero(data == _QUOTE)
    line_of = np.searchsorted(lines.ends, quotes, side="right")
    per_line = np.bincount(line_of, minlength=n)
    opening = (np.arange(len(quotes)) - (np.cumsum(per_line) - per_line)[line_of]) % 2 == 0
    neighbour = np.where(opening, before[quotes], after[quotes])
    at_border = np.isin(neighbour, [ord(delimiter), _QUOTE, _NEWLINE]) | (~opening & (neighbour == _RETURN))
    at_begin = np.isin(before[quotes], [ord(delimiter), _NEWLINE])
    odd = (per_line % 2 == 1) | (np.bincount(line_of[~at_border], minlength=n) > 0)
    odd &= np.bincount(line_of[at_begin], minlength=n) > 0
    odd |= lines.invalid

    returns = np.flatnonzero(data == _RETURN)
    lone = returns[after[returns] != _NEWLINE]
    odd[np.searchsorted(lines.ends, lone, side="right")] = True

    empty = (data[starts] == _NEWLINE) | ((data[starts] == _RETURN) & (after[starts] == _NEWLINE))
    return ~odd & ~empty, empty & ~odd


@dataclass(frozen=True)
class _Records:
    """What a few lines of a CSV hold: their number of records, the good ones, and the rejected ones."""

    n_rows: int
    good: pa.Table
    rejected: pa.Table


def _csv_records(lines: _Lines, head: _Head, schema: pa.Schema, first_row: int, final: bool) -> tuple[_Records, int]:
    """Read a block, and how many of its lines were read: the last few may need the block after it."""
    stop = len(lines)
    plain, empty = _plain(lines, head.delimiter)
    begins = plain.copy()
    good: list[tuple[int, list[str]]] = []
    bad: list[tuple[int, str, str]] = []
    free, any_invalid = 0, lines.invalid.any()
    for i in np.flatnonzero(~plain & ~empty).tolist():
        if i < free:
            continue  # it lies within a quoted field
        fields, n_lines = _record(lines, i, head.delimiter)
        if fields is None and not final and i + n_lines == len(lines) and n_lines < _RECORD_LINES:
            stop = i
            break
        if fields == []:
            continue  # nothing but carriage returns
        fits = fields is not None and len(fields) == len(head.columns)
        n_lines = n_lines if fits else 1
        free = i + n_lines
        begins[i] = True
        begins[i + 1 : free] = False
        invalid = any_invalid and lines.invalid[i:free].any()
        if fields is not None and fits and not invalid:
            good.append((i, fields))
        else:
            reason = "invalid_encoding" if invalid else "malformed_line"
            bad.append((i, lines.text(i, n_lines), reason))
    begins[stop:] = False
    plain &= begins

    where = np.flatnonzero(plain)
    parsed, misfits = _parse(lines.select(plain), head)
    bad += [(i, lines.text(i), "malformed_line") for i in where[misfits].tolist()]
    bad.sort()

    row = first_row - 1 + np.cumsum(begins)
    table = pa.Table.from_arrays([row[np.delete(where, misfits)], *parsed], schema=schema)
    if good:
        rows = pa.array(row[[i for i, _ in good]])
        fields_of = [pa.array(each, pa.string()) for each in zip(*(fields for _, fields in good), strict=True)]
        table = pa.concat_tables([table, pa.Table.from_arrays([rows, *fields_of], schema=schema)]).sort_by(ROW)
    rejected = pa.Table.from_arrays(
        [
            pa.array(row[[i for i, _, _ in bad]], pa.int64()),
            pa.array([json.dumps(raw.rstrip("\r\n"), ensure_ascii=False) for _, raw, _ in bad], pa.string()),
            pa.array([reason for _, _, reason in bad], pa.string()),
        ],
        schema=_REJECTED,
    )
    return _Records(int(begins.sum()), table, rejected), stop


def _parse(data: bytes, head: _Head) -> tuple[list[pa.ChunkedArray], npt.NDArray[np.int64]]:
    """Columns of plain lines, and which of the lines have a wrong number of fields."""
    misfits: list[int] = []

    def skip(row: pa.csv.InvalidRow) -> str:
        misfits.append(row.number - 1)
        return "skip"

    # Numbers, for names of columns may be anything.
    names = [str(i) for i in range(len(head.columns))]
    if not data:
        return [pa.chunked_array([], pa.string()) for _ in names], np.zeros(0, np.int64)
    table = pa.csv.read_csv(
        pa.BufferReader(data),
        # In one block and one thread, for only so are the rows numbered.
        read_options=pa.csv.ReadOptions(use_threads=False, column_names=names, block_size=len(data) + 1),
        parse_options=pa.csv.ParseOptions(delimiter=head.delimiter, invalid_row_handler=skip),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, check_utf8=False
        ),
    )
    # If all rows are skipped, the types are not as asked for.
    return [column.cast(pa.string()) for column in table.columns], np.array(misfits, np.int64)


def _land_csv(file: DataFile, text: TextFormat, out: Path) -> Landed:
    blocks = _blocks(file, text)
    head = _head(file, text, blocks)
    schema = pa.schema([(ROW, pa.int64()), *((name, pa.string()) for name in head.columns)])
    n_rows, rejected = 0, [_REJECTED.empty_table()]
    with _writing(out, schema) as writer:
        pending, final = head.rest, False
        while not final:
            block = next(blocks, None)
            final = block is None
            records, n_lines = _csv_records(pending, head, schema, n_rows, final)
            if len(records.good):
                writer.write_table(records.good)
            rejected.append(records.rejected)
            n_rows += records.n_rows
            pending = pending.after(n_lines)
            if block is not None:
                pending += block
    return Landed(out, head.columns, n_rows, pa.concat_tables(rejected))


@contextmanager
def _writing(out: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    part = out.with_name(out.name + ".part")
    try:
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            yield writer
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


# JSON lines


@contextmanager
def _duckdb() -> Iterator[duckdb.DuckDBPyConnection]:
    # In one thread, and so in the lines' order.
    with duckdb.connect(":memory:", config={"threads": 1}) as connection:
        yield connection


def _query(connection: duckdb.DuckDBPyConnection, sql: str, block: pa.Table, *values: Any) -> pa.Table:
    connection.register("block", block)
    return connection.sql(sql, params=values).to_arrow_table()


def _pointer(key: str) -> str:
    """A JSON pointer, in which unlike in a JSON path a key may have any character."""
    return "/" + key.replace("~", "~0").replace("/", "~1")


def _json_records(
    connection: duckdb.DuckDBPyConnection, text: TextFormat, blocks: Iterator[_Lines] | Sequence[_Lines]
) -> Iterator[pa.Table]:
    """The file's records, a block at a time: `ROW` int64, line string, reason string (null for good ones)."""
    n_rows = 0
    for lines in blocks:
        offsets = np.concatenate([[0], lines.ends]).astype(np.int32)
        whole = pa.StringArray.from_buffers(len(lines), pa.py_buffer(offsets), pa.py_buffer(lines.data))
        table = pa.table({"line": pc.utf8_rtrim(whole, characters="\r\n"), "invalid": lines.invalid})
        table = table.filter(pc.greater(pc.binary_length(pc.utf8_trim(table["line"], characters=" \t\r\n")), 0))
        sql = """
            SELECT line, CASE WHEN invalid THEN 'invalid_encoding' WHEN NOT json_valid(line) THEN 'malformed_line'
                WHEN json_type(line) <> 'OBJECT' THEN 'malformed_line' END AS reason
            FROM block
        """
        table = _query(connection, sql, table)
        if text.explode:
            table = _exploded(connection, table, text.explode)
        rows = pa.array(np.arange(n_rows, n_rows + len(table)), pa.int64())
        n_rows += len(table)
        yield table.add_column(0, ROW, rows)


def _exploded(connection: duckdb.DuckDBPyConnection, table: pa.Table, key: str) -> pa.Table:
    sql = """
        WITH typed AS (
            SELECT *, CASE WHEN reason IS NULL
                THEN coalesce(json_type(line, $1) = 'ARRAY', false) ELSE false END AS listed
            FROM block
        ), exploded AS (
            SELECT *, unnest(CASE WHEN listed THEN CAST(json_extract(line, $1) AS JSON[]) ELSE [NULL] END) AS element
            FROM typed
        ), checked AS (
            SELECT *, listed AND coalesce(json_type(element) = 'OBJECT', false) AS good FROM exploded
        )
        SELECT CASE WHEN good THEN CAST(json_merge_patch(line, $2, element) AS VARCHAR)
                WHEN listed THEN coalesce(CAST(element AS VARCHAR), 'null') ELSE line END AS line,
            CASE WHEN NOT good THEN coalesce(reason, 'malformed_line') END AS reason
        FROM checked
    """
    return _query(connection, sql, table, _pointer(key), json.dumps({key: None}))


def _keys(connection: duckdb.DuckDBPyConnection, file: DataFile, records: Iterator[pa.Table]) -> tuple[str, ...]:
    """All keys, in the order in which they come first."""
    sql = f"""
        SELECT key FROM (
            SELECT {ROW} AS line_number, unnest(json_keys(line)) AS key,
                generate_subscripts(json_keys(line), 1) AS place
            FROM block WHERE reason IS NULL
        ) GROUP BY key ORDER BY min({{'line_number': line_number, 'place': place}})
    """  # noqa: S608
    keys: dict[str, None] = {}
    n_rows = 0
    for table in records:
        n_rows += len(table)
        # Neither an empty name nor one with a NUL can be a column's; such values are still in LINE.
        found = (key for key in _query(connection, sql, table)["key"].to_pylist() if key and "\0" not in key)
        keys |= dict.fromkeys(found)
        if len(keys) > _MOST_KEYS:
            raise InputError(
                f"the lines of {file.name} have more than {_MOST_KEYS} different keys",
                expected="objects whose keys are columns",
                do="write what the keys stand for as a value",
            )
    if not n_rows:
        raise _no_rows(file)
    _refuse_own_names(file, list(keys))
    return tuple(keys)


def _land_json(file: DataFile, text: TextFormat, out: Path) -> Landed:
    with _duckdb() as connection:
        columns = _keys(connection, file, _json_records(connection, text, _blocks(file, text)))
        schema = pa.schema([(ROW, pa.int64()), *((name, pa.string()) for name in columns), (LINE, pa.string())])
        n_rows, rejected = 0, [_REJECTED.empty_table()]
        with _writing(out, schema) as writer:
            for table in _json_records(connection, text, _blocks(file, text)):
                n_rows += len(table)
                good = pc.is_null(table["reason"])
                bad = table.filter(pc.invert(good))
                raw = [json.dumps(line, ensure_ascii=False) for line in bad["line"].to_pylist()]
                rejected.append(
                    pa.Table.from_arrays([bad[ROW], pa.array(raw, pa.string()), bad["reason"]], schema=_REJECTED)
                )
                for batch in _values(connection, table.filter(good), columns):
                    writer.write_table(batch.rename_columns(schema.names).cast(schema))
    return Landed(out, columns, n_rows, pa.concat_tables(rejected))


def _values(connection: duckdb.DuckDBPyConnection, table: pa.Table, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The good records' values, a few rows at a time: `ROW`, the columns, the line; under names of no meaning."""
    values = [
        f"""CASE WHEN types[{i}] IS DISTINCT FROM 'ARRAY' THEN texts[{i}]
            WHEN list_has_any(json_type(texts[{i}], '$[*]'), ['OBJECT', 'ARRAY']) THEN texts[{i}]
            ELSE nullif(array_to_string(json_extract_string(texts[{i}], '$[*]'), ' > '), '') END AS value_{i}"""
        for i in range(1, len(columns) + 1)
    ]
    sql = f"""
        SELECT {", ".join([ROW, *values, "line"])} FROM (
            SELECT *, json_type(line, $1) AS types, json_extract_string(line, $1) AS texts FROM block
        )
    """  # noqa: S608
    pointers = [_pointer(column) for column in columns]
    n = max(1024, _JSON_BATCH // (len(columns) + 1))
    for start in range(0, len(table), n):
        yield _query(connection, sql, table.slice(start, n), pointers)
