"""A first mapping for a log that nobody has described yet: its columns' roles, found by their names and contents."""
# ruff: noqa: S608 - whatever comes from a file goes into a query by `_name` or `_sql`

from __future__ import annotations

import csv
import glob
import io
import json
import lzma
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import IO, Any, Final, cast

import duckdb
import pyarrow as pa

from recsys.errors import InputError
from recsys.ingest.config import EventColumns, ItemColumns, TextFormat
from recsys.ingest.files import COMPRESSIONS, DataFile, find_files
from recsys.ingest.landing import land

# Folded names of columns, those that mean a role most surely first. Names are folded to small letters and digits.
EVENT_NAMES: Final[dict[str, str]] = {
    "timestamp": "timestamp eventtimestamp eventtime timestampms ts unixtime unixreviewtime datetime datetimestamp "
    "time invoicedate orderdate ordertime orderpurchasetimestamp purchasedate transactiondate transactiontime tdat "
    "createdat createdtime created occurredat eventdate servertime servertimestamp clienttime receivedat reviewtime "
    "date dt day",
    "user_id": "userid user uid visitorid visitor fullvisitorid customerid customer customerno customernumber custid "
    "shopperid shopper clientid client memberid member buyerid buyer accountid reviewerid reviewer profileid personid "
    "householdkey householdid userhash userpseudoid anonymousid cookieid cookie deviceid",
    "item_id": "itemid item parentasin asin productid product prodid sku skuid stockcode articleid article aid movieid "
    "trackid songid bookid isbn gameid appid recipeid businessid goodsid offerid listingid variantid productcode "
    "itemcode productsku productno itemno contentid newsid videoid ean gtin upc iid",
    "event_type": "eventtype event eventname action actiontype actionname behavior behaviour behaviortype interaction "
    "interactiontype activity activitytype type kind",
    "session_id": "sessionid session usersession sessionkey visitid visit sid",
    "position": "position seqno sequencenumber eventorder orderinsession",
    "quantity": "quantity qty orderquantity units pieces numitems",
    "price": "price unitprice itemprice productprice saleprice salesprice sellingprice",
    "value": "value amount revenue totalprice totalamount linetotal total salesvalue sales turnover ordervalue",
    # Not roles of the contract, but they tell more of the log.
    "order": "orderid invoiceno invoice invoiceid invoicenumber orderno ordernumber transactionid receiptid receipt "
    "basketid",
    "rating": "rating stars overall score",
}
ITEM_NAMES: Final[dict[str, str]] = {
    "title": "title itemtitle producttitle movietitle itemname productname prodname productdisplayname displayname "
    "name booktitle",
    "description": "description desc detaildesc longdescription itemdescription productdescription summary overview",
    "category": "category categorycode categoryname categorypath categories itemcategory productcategory "
    "producttypename producttype genres genre productgroupname indexgroupname department departmentname maincategory "
    "type categoryid",
    "brand": "brand brandname store maker manufacturer vendor artist author publisher seller",
    "price": "price unitprice itemprice productprice listprice saleprice salesprice",
    "in_stock": "instock isavailable available availability",
    "available_from": "availablefrom releasedate launchdate firstavailable",
    "merchandise": "ismerch ismerchandise merchandise sellable issellable",
}
# Folded names of event types, without a plural's s.
EVENT_WORDS: Final[dict[str, str]] = {
    "view": "view click pv pageview productview itemview viewitem viewproduct detail detailview productdetail "
    "productdetailview open watch listen play read",
    "cart": "cart addtocart addcart cartadd basket addtobasket addbasket atc",
    "purchase": "purchase transaction order buy bought purchased ordered sale sold conversion invoice ordercompleted "
    "orderplaced checkoutcompleted review rating rate rated",
    "cancel": "return returned refund refunded cancel cancelled canceled cancellation chargeback ordercancelled",
    "drop": "removefromcart removecart cartremove removefrombasket impression",
    "keep": "favorite favourite fav wishlist addtowishlist like",
}
SEPARATORS: Final = (" > ", ">", "|", "/", ".")
WINDOWS_NEED: Final = timedelta(days=28)  # below this, two windows of seven days would leave too little to train on
MOST_FILES: Final = 8
MOST_EVENT_TYPES: Final = 100
HEAD, TAIL = 1 << 27, 1 << 20  # bytes of a file of text that are read at most

_DATES = ("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%m/%d/%y", "%d/%m/%y", "%d.%m.%y")
_DATES_WITH_NAMES = ("%m %d, %Y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y", "%d %B %Y")
_TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p", " %H:%M:%S.%f")
TIME_FORMATS: Final = (
    *("".join(parts) for parts in product((*_DATES, *_DATES_WITH_NAMES), _TIMES)),
    *("%Y%m%d", "%Y%m%d%H%M%S", "%d/%b/%Y:%H:%M:%S %z"),
)


def inspect(events: Path, items: Path | None = None, *, sample_rows: int = 200_000) -> str:
    """Look at a log and write a first config for it, whose comments say what each guess rests on.

    Args:
        events: the log: a file (Parquet, CSV or JSON lines, plain or compressed), a glob or a folder.
        items: the catalogue, likewise; without one the log itself says what its items are.
        sample_rows: rows that are looked at. Of Parquet files the range of times and the event types are taken from
            all rows, of files of text from this many and from the end of the last file.

    Returns:
        A pipeline's TOML, which `recsys.config.load_config` reads.

    Raises:
        InputError: a file cannot be read, or no column can be taken for the user, the item or the time.
    """
    with tempfile.TemporaryDirectory(prefix="recsys-inspect-") as scratch, duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = true")
        log = _Sample(connection, events, "events", Path(scratch), sample_rows)
        catalogue = _Sample(connection, items, "items", Path(scratch), sample_rows) if items else None
        with _reading(events):
            return _Mapping(log, catalogue).to_toml()


def fold(name: str) -> str:
    """A name without case, blanks and signs: "Customer ID" and customer_id are both customerid."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def event_rule(name: str) -> str | None:
    """What ingestion is to do with events of this name ("view", …, "drop"), None if it is not a well-known one."""
    folded = fold(name)
    for rule, words in EVENT_WORDS.items():
        if folded in words.split() or folded.removesuffix("s") in words.split():
            return rule
    return None


class _Sample:
    """Some rows of a log or catalogue as a DuckDB table, with what is asked of its columns.

    Attributes:
        path: as it was given, absolute.
        text: how its files of text are written.
        columns: its columns' names.
        types: their types in DuckDB.
        n_rows: number of rows in the sample.
        is_whole: whether these are all rows.
        notes: what was guessed on the way to the columns, for comments.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, path: Path, key: str, scratch: Path, n_rows: int) -> None:
        self.connection, self.path, self.key = connection, path.absolute(), key
        self.notes: list[str] = []
        self._first_columns: list[str] = []
        self.data, self.pattern = _base(self.path)
        self.text, self.everything = TextFormat(), ""
        files = find_files(self.data, self.pattern, self.text, key=f"ingest.{key}")
        few = min(len(files), MOST_FILES)
        chosen = [files[i * (len(files) - 1) // max(1, few - 1)] for i in range(few)]
        limit = max(1, n_rows // few)
        if files[0].format == "parquet":
            parts = [self._part(file.path, self._columns_of(file.path), file, limit) for file in chosen]
        else:
            parts = self._landed(chosen, scratch, limit)
        with _reading(self.path):
            connection.execute(f"CREATE TABLE {key} AS {' UNION ALL BY NAME '.join(parts)}")
        self.types = {row[0]: str(row[1]) for row in self.rows(f"DESCRIBE {key}")}
        self.columns = list(self.types)
        self.n_rows = int(self.one("count(*)"))
        if not self.n_rows:
            raise InputError(f"{path} has no rows", expected="one row each", do="check what wrote the file")
        if files[0].format == "parquet":
            self.everything = _parquet(*(file.path for file in files))
            self.is_whole = self.n_rows == self.one("count(*)", table=self.everything)
        else:
            self.is_whole &= len(chosen) == len(files)

    def _landed(self, files: Sequence[DataFile], scratch: Path, limit: int) -> list[str]:
        """The first lines of each file and those at the last file's end, as ingestion would read them."""
        excerpts = [_excerpt(file.path, limit, tail=file is files[-1]) for file in files]
        self.is_whole = all(whole for _, whole in excerpts)
        self.text = _text_format([excerpt for excerpt, _ in excerpts], files[0], self)
        parts = []
        for i, (file, (excerpt, _)) in enumerate(zip(files, excerpts, strict=True)):
            raw = scratch / f"{self.key}{i}.{file.format}"
            raw.write_bytes(excerpt)
            landed = land(replace(file, path=raw), self.text, scratch / f"{self.key}{i}.parquet")
            parts.append(self._part(landed.path, landed.columns, file))
        return parts

    def _columns_of(self, path: Path) -> list[str]:
        with _reading(path):
            return [row[0] for row in self.rows(f"DESCRIBE FROM {_parquet(path)}")]

    def _part(self, path: Path, columns: Sequence[str], file: DataFile, limit: int | None = None) -> str:
        """A query of one file's rows."""
        self._first_columns = self._first_columns or list(columns)
        if not set(self._first_columns) & set(columns):
            raise InputError(
                f"{self.path} holds files of several kinds: with {', '.join(self._first_columns)}, and with "
                f"{', '.join(columns)}",
                expected="files of one kind, with the same columns",
                do="name one kind by a glob, such as clicks/*.csv",
            )
        levels = [
            f"{_sql(str(value))} AS {_name(level)}" for level, value in file.partition.items() if level not in columns
        ]
        query = f"SELECT {', '.join([*map(_name, columns), *levels])} FROM {_parquet(path)}"
        return f"({query} LIMIT {limit})" if limit else f"({query})"

    def one(self, expression: str, *, table: str = "", where: str = "true") -> Any:
        """The value of an aggregate over the sample, or over another table."""
        row = self.connection.execute(f"SELECT {expression} FROM {table or self.key} WHERE {where}").fetchone()
        assert row is not None
        return row[0]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(query).fetchall()

    def share(self, column: str, condition: str) -> float:
        """Share of the filled rows for which a condition on `x`, the column as trimmed text, holds."""
        return float(
            self.one(
                f"coalesce(avg(coalesce(({condition})::INT, 0)), 0)",
                table=f"(SELECT {_as_text(column)} AS x FROM {self.key})",
                where="x IS NOT NULL",
            )
        )

    def as_id(self, column: str) -> str:
        """An id as ingestion reads it: floats are the integers that they were before pandas met a null."""
        text = _as_text(column)
        return f"regexp_replace({text}, '[.]0$', '')" if self.types[column] in ("FLOAT", "DOUBLE") else text

    def filled(self, column: str) -> int:
        return int(self.one(f"count({_as_text(column)})"))

    def distinct(self, column: str) -> int:
        return int(self.one(f"count(DISTINCT {_as_text(column)})"))

    def is_number(self, column: str) -> bool:
        return self.share(column, "try_cast(x AS DOUBLE) IS NOT NULL") > 0.9

    def example(self, column: str) -> str:
        return str(self.one(f"any_value({_as_text(column)})"))[:40]

    def named(self, names: Iterable[str]) -> list[str]:
        """The sample's columns that have one of these folded names, in the names' order."""
        folded = {fold(column): column for column in reversed(self.columns)}
        return [folded[name] for name in names if name in folded]

    def rows_in_words(self) -> str:
        return f"{self.n_rows:,} rows" if self.is_whole else f"{self.n_rows:,} sampled rows"


@dataclass(frozen=True)
class _Time:
    """How a column of times is to be read."""

    how: str  # in words
    micros: str  # a SQL expression: microseconds since 1970, null where it cannot be read
    format: str = ""
    has_zone: bool = True
    doubt: str = ""


@dataclass
class _Mapping:
    """The config as it is found out: own names of columns by contract name, and what is said of each."""

    log: _Sample
    catalogue: _Sample | None
    columns: dict[str, str] = field(default_factory=dict)
    item_columns: dict[str, str] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.time = self._find_time()
        self._find_ids()
        self._find_rest()
        self._find_item_columns()

    def to_toml(self) -> str:
        """The whole config."""
        return "\n".join(
            [
                *self._head(),
                *self._general(),
                *self._text("ingest.text", self.log),
                *(self._text("ingest.items_text", self.catalogue) if self.catalogue else ()),
                *self._table("ingest.columns", self.columns, EventColumns, self.log),
                *self._table("ingest.item_columns", self.item_columns, ItemColumns, self.catalogue or self.log),
                *self._event_type_table(),
                "",
            ]
        )

    # Which column is what.

    def _candidates(self, role: str) -> list[str]:
        return [each for each in self.log.named(EVENT_NAMES[role].split()) if each not in self.columns.values()]

    def _find_time(self) -> _Time:
        named = self._candidates("timestamp")
        others = [each for each in self.log.columns if each not in named]
        # Numbers are times where the name says so; ids of such a size are common.
        tries = [
            *((each, True) for each in named),
            *((each, False) for each in others),
            *((each, True) for each in others if fold(each) not in _ALL_NAMES),
        ]
        for column, may_be_number in tries:
            if time := _time(self.log, column, may_be_number=may_be_number):
                guess = "" if column in named else "; a guess by its values, as its name does not say it"
                self._take("timestamp", column, time.how + time.doubt + guess)
                return time
        raise self._missing("timestamp", "when it happened: seconds since 1970, ISO 8601, or a date")

    def _find_ids(self) -> None:
        log = self.log
        users = [each for each in self._candidates("user_id") if log.filled(each) > 0.2 * log.n_rows]
        items = [each for each in self._candidates("item_id") if log.filled(each) > 0.2 * log.n_rows]
        sessions = self._candidates("session_id")
        if self.catalogue:
            items = self._in_catalogue(items)
        elif "parentasin" in map(fold, items):  # the variants of one product
            items = log.named(["parentasin"])
        unnamed = [each for each in log.columns if each not in (*self.columns.values(), *users, *items, *sessions)]
        unnamed = [each for each in unnamed if self._may_be_id(each)]
        doubt = ""
        if not users and sessions:
            users, doubt = sessions, "; the log names no users: each of its sessions takes the place of one"
        elif not users and len(unnamed) == (1 if items else 2):
            users, doubt = unnamed[:1], "; a guess, as its name does not say it"
        if not users:
            raise self._missing("user_id", "who acted")
        self._take("user_id", users[0], self._distinct(log, users[0]) + doubt)
        unnamed = [each for each in unnamed if each not in self.columns.values()]
        doubt = ""
        if not items and len(unnamed) == 1:
            items, doubt = unnamed, "; a guess, as its name does not say it"
        if not items:
            raise self._missing("item_id", "on which item")
        if len(items) > 1:
            doubt += f"; {', '.join(items[1:])} could be it too"
        self._take("item_id", items[0], self._distinct(log, items[0]) + doubt)

    def _may_be_id(self, column: str) -> bool:
        log = self.log
        known = (each for role, names in EVENT_NAMES.items() if role != "item_id" for each in log.named(names.split()))
        described = (each for names in ITEM_NAMES.values() for each in log.named(names.split()))
        if column in (*known, *described):
            return False
        n, filled = log.distinct(column), log.filled(column)
        return (
            n > min(20, filled / 10)
            and log.share(column, "length(x) <= 40 AND NOT regexp_full_match(x, '-?[0-9]*[.][0-9]*[1-9][0-9]*')") > 0.99
        )

    def _in_catalogue(self, named: list[str]) -> list[str]:
        """The log's column whose values the catalogue has most of; takes the catalogue's column as well."""
        assert self.catalogue is not None
        log, catalogue = self.log, self.catalogue
        own = catalogue.named(EVENT_NAMES["item_id"].split()) or catalogue.columns
        pairs = [(ours, theirs) for ours in named or log.columns for theirs in own]
        share = {pair: self._share_known(*pair) for pair in pairs}
        best = max(pairs, key=lambda pair: share[pair])
        if not share[best]:
            raise InputError(
                f"no column of {catalogue.path} names the items of {log.path}; its columns are "
                f"{', '.join(catalogue.columns)}",
                expected="a column with the values of the log's " + " or ".join(named or ["item id"]),
                do="inspect it with the catalogue of this log, or without one",
            )
        self.item_columns["item_id"] = best[1]
        known = "of the log's items are among them" if catalogue.is_whole else "of the log's items are in the sample"
        self.comments["item_columns.item_id"] = f"{self._distinct(catalogue, best[1])}; {share[best]:.1%} {known}"
        return [best[0], *(each for each in named if each != best[0] and share.get((each, best[1]), 0) > 0.5)]

    def _share_known(self, ours: str, theirs: str) -> float:
        assert self.catalogue is not None
        catalogue = f"(SELECT {self.catalogue.as_id(theirs)} FROM {self.catalogue.key})"
        items = f"(SELECT DISTINCT {self.log.as_id(ours)} AS x FROM {self.log.key})"
        return float(self.log.one(f"coalesce(avg((x IN {catalogue})::INT), 0)", table=items, where="x IS NOT NULL"))

    def _find_rest(self) -> None:
        log = self.log
        for column in self._candidates("event_type") + [each for each in log.columns if fold(each) not in _ALL_NAMES]:
            if column not in self.columns.values() and self._is_event_type(column):
                self._take("event_type", column, self._distinct(log, column))
                break
        for column in self._candidates("session_id")[:1]:
            self._take("session_id", column, self._distinct(log, column))
        for role in ("position", "quantity", "price", "value"):
            for column in [each for each in self._candidates(role) if log.is_number(each)][:1]:
                low, high = log.rows(f"SELECT min(x), max(x) FROM (SELECT {_as_number(column)} AS x FROM {log.key})")[0]
                self._take(role, column, f"from {low:,.6g} to {high:,.6g}")

    def _is_event_type(self, column: str) -> bool:
        if not 1 <= self.log.distinct(column) <= MOST_EVENT_TYPES:
            return False
        counts = self._values(column)
        known = sum(n for value, n in counts if event_rule(value))
        sure = fold(column) in EVENT_NAMES["event_type"].split() and fold(column) not in ("type", "kind")
        return sure or known > 0.5 * sum(n for _, n in counts)

    def _values(self, column: str) -> list[tuple[str, int]]:
        table = self.log.everything or self.log.key
        if column not in self._columns_of_everything:
            table = self.log.key  # a level of a folder's name
        query = f"SELECT {_as_text(column)} AS x, count(*) AS n FROM {table} GROUP BY x HAVING x IS NOT NULL"
        return cast(list[tuple[str, int]], self.log.rows(f"{query} ORDER BY n DESC, x"))

    @cached_property
    def _columns_of_everything(self) -> list[str]:
        return [row[0] for row in self.log.rows(f"DESCRIBE FROM {self.log.everything or self.log.key}")]

    def _find_item_columns(self) -> None:
        source = self.catalogue or self.log
        if not self.catalogue:
            self.item_columns["item_id"] = self.columns["item_id"]
            self.comments["item_columns.item_id"] = "as above"
        for role, names in ITEM_NAMES.items():
            if role == "merchandise" and not self.catalogue:
                continue
            taken = [own for name, own in self.item_columns.items() if name != "price"]
            if not self.catalogue:
                taken += [own for name, own in self.columns.items() if name != "price"]
            for column in source.named(names.split()):
                if column not in taken and self._fits(source, role, column):
                    self.item_columns[role] = column
                    self.comments[f"item_columns.{role}"] = f"e.g. {source.example(column)!r}"
                    break
        if "title" not in self.item_columns and "description" in self.item_columns:
            self.item_columns["title"] = self.item_columns.pop("description")
            self.comments["item_columns.title"] = self.comments["item_columns.description"]
        if "title" not in self.item_columns:
            self._find_stand_in(source)

    def _fits(self, source: _Sample, role: str, column: str) -> bool:
        if not source.filled(column):
            return False
        if role in ("in_stock", "merchandise"):
            return source.share(column, "try_cast(x AS BOOLEAN) IS NOT NULL") > 0.9
        if role == "available_from":
            return source.share(column, "try_cast(x AS TIMESTAMPTZ) IS NOT NULL") > 0.9
        if role == "price":  # of an item, though it changes in time
            return source.share(column, "try_cast(x AS DOUBLE) IS NOT NULL") > 0.5
        if role in ("title", "description") and source.is_number(column):
            return False
        # A log's column describes the item, and not the event, only if it says the same in most rows of the item.
        return source is self.catalogue or self._is_of_item(column)

    def _is_of_item(self, column: str) -> bool:
        item, value = _as_text(self.columns["item_id"]), _as_text(column)
        per_value = f"SELECT {item} AS i, {value} AS v, count(*) AS n FROM {self.log.key} GROUP BY i, v"
        per_item = (
            f"(SELECT sum(n) AS n, max(n) AS most FROM ({per_value}) WHERE v IS NOT NULL AND i IS NOT NULL GROUP BY i)"
        )
        share = self.log.one("sum(most) / sum(n)", table=per_item, where="n > 1")
        return share is None or float(share) > 0.6

    def _find_stand_in(self, source: _Sample) -> None:
        if self.catalogue:
            free = [each for each in source.columns if each not in self.item_columns.values()]
            texts = [each for each in free if source.distinct(each) > 0.5 * source.filled(each) > 0]
            texts = [each for each in texts if source.share(each, "regexp_matches(x, '[[:alpha:]]{3}')") > 0.9]
            if texts:
                longest = max(texts, key=lambda each: float(source.one(f"avg(length({_as_text(each)}))")))
                self.item_columns["title"] = longest
                self.comments["item_columns.title"] = f"a guess by its text, e.g. {source.example(longest)!r}"
                return
        if not self.catalogue and "title" not in source.columns and {"brand", "category"} & self.item_columns.keys():
            self.item_columns["title"] = "title"
            self.comments["item_columns.title"] = "the log has none: brand and category stand in for it"
            return
        self.item_columns["title"] = self.item_columns["item_id"]
        self.comments["item_columns.title"] = "no column has names of items: they are called by their ids"

    def _take(self, role: str, column: str, comment: str) -> None:
        self.columns[role] = column
        self.comments[f"columns.{role}"] = comment

    def _distinct(self, source: _Sample, column: str) -> str:
        n, empty = source.distinct(column), source.n_rows - source.filled(column)
        rest = f", {empty:,} without one" if empty else ""
        return f"{n:,} distinct value{'' if n == 1 else 's'} in {source.rows_in_words()}{rest}"

    def _missing(self, role: str, meaning: str) -> InputError:
        seen = ", ".join(f"{each} (e.g. {self.log.example(each)!r})" for each in self.log.columns)
        return InputError(
            f"no column of {self.log.path} can be taken for {role}; it has {seen}",
            expected=f"a column that says {meaning}, called {', '.join(EVENT_NAMES[role].split()[:6])} or the like",
            do=f"rename the column, or write the mapping by hand:\n[ingest.columns]\n{role} = …",
        )

    # The parts of the file.

    def _head(self) -> list[str]:
        stem = self.log.path.name.split(".")[0]
        generic = glob.has_magic(stem) or stem in (
            "",
            "events",
            "log",
            "data",
            "train",
            "interactions",
            "ratings",
            "reviews",
            "transactions",
        )
        name = _slug(self.log.data.name if generic else stem) or "shop"
        return [
            f"# A first mapping by `recsys inspect`, from {self.log.rows_in_words()}: check what the comments say.",
            "",
            f"name = {_toml(name)}",
            f"data = {_toml(str(self.log.data))}",
            f"run_dir = {_toml(f'runs/{name}')}",
            "seed = 0",
        ]

    def _general(self) -> list[str]:
        lines = ["", "[ingest]", f"events = {_toml(str(self.log.pattern))}"]
        if self.catalogue:
            path = self.catalogue.path
            inside = path.relative_to(self.log.data) if path.is_relative_to(self.log.data) else path
            lines.append(f"items = {_toml(str(inside))}")
        else:
            lines.append("items_from_events = true # no catalogue was given")
        if "event_type" not in self.columns:
            lines.append(self._constant_type())
        if self.time.format:
            example = self.log.example(self.columns["timestamp"])
            lines.append(f"timestamp_format = {_toml(self.time.format)} # e.g. {example!r}{self.time.doubt}")
        if not self.time.has_zone:
            lines.append('# timezone = "Europe/London" # times name no zone: they are read as UTC')
        return [*lines, *self._separator(), *self._rules(), *self._windows()]

    def _constant_type(self) -> str:
        for word in re.split(r"[^a-z0-9]+", self.log.path.name.casefold()):
            if (rule := event_rule(word)) in ("view", "cart", "purchase"):
                return f'event_type = "{rule}" # no column says it; taken from the name {_comment(self.log.path.name)}'
        bought = [*self.log.named((EVENT_NAMES["order"] + " " + EVENT_NAMES["rating"]).split())]
        bought += [self.columns[role] for role in ("quantity", "price", "value") if role in self.columns]
        if bought:
            return f'event_type = "purchase" # no column says it; there is {bought[0]}'
        return 'event_type = "view" # no column says it: "purchase" if these were bought'

    def _separator(self) -> list[str]:
        source, column = self.catalogue or self.log, self.item_columns.get("category")
        if column is None or source.share(column, "x LIKE '[%'") > 0.5:  # a list has its levels apart
            return []
        for separator in SEPARATORS:
            share = source.share(column, f"contains(x, {_sql(separator)})")
            # The / of "Tea/Coffee" does not split levels if few have it, nor do the dots of sentences.
            if share > (0.1 if separator in SEPARATORS[:3] else 0.3) and not (
                separator == "." and source.share(column, "contains(x, '. ')") > 0.01
            ):
                return [f"category_separator = {_toml(separator)} # in {share:.0%} of the categories"]
        return []

    def _rules(self) -> list[str]:
        lines, log = [], self.log
        if merchandise := self.item_columns.get("merchandise"):
            lines.append(f"merchandise = {_toml(merchandise)} # false: no merchandise, such as postage")
        else:
            lines += self._codes_without_digit()
        lines += self._cancellations()
        if "quantity" in self.columns and not {"view", "cart"} & {event_rule(value) for value, _ in self._event_types}:
            amounts = [self.columns[role] for role in ("quantity", "price") if role in self.columns]
            no = [log.share(each, f"NOT {_as_number('x')} > 0") for each in amounts]
            said = ", ".join(f"{share:.2%} of {each} are not" for each, share in zip(amounts, no, strict=True))
            lines.append(f"positive = [{', '.join(map(_toml, amounts))}] # {said}")
        for rating in log.named(EVENT_NAMES["rating"].split()):
            if log.is_number(rating) and log.distinct(rating) <= 20:
                lines.append(f"# bounds = {{ {_key(rating)} = {{ min = 4 }} }} # only what was liked")
        return lines

    @cached_property
    def _event_types(self) -> list[tuple[str, int]]:
        return self._values(self.columns["event_type"]) if "event_type" in self.columns else []

    def _codes_without_digit(self) -> list[str]:
        item, source = self.columns["item_id"], self.log
        with_digit = source.share(item, "regexp_matches(x, '[0-9]')")
        if not 0.95 < with_digit < 1:
            return []
        x = _as_text(item)
        codes = source.rows(
            f"SELECT {x} AS x, count(*) AS n FROM {source.key} WHERE NOT regexp_matches({x}, '[0-9]') "
            "GROUP BY x ORDER BY n DESC, x"
        )
        if len(codes) > 0.2 * source.distinct(item):
            return []
        said = ", ".join(f"{code} ({n:,})" for code, n in codes[:12])
        return [
            f"non_merchandise = ['^[^0-9]+$'] # {with_digit:.1%} of the rows' codes have a digit; not so "
            f"{_comment(said)}{', …' if len(codes) > 12 else ''}"
        ]

    def _cancellations(self) -> list[str]:
        if any(event_rule(value) == "cancel" for value, _ in self._event_types):
            return []
        log, quantity = self.log, self.columns.get("quantity")
        negative = f"{_as_number(quantity)} < 0" if quantity else "true"
        for order in log.named(EVENT_NAMES["order"].split()):
            found = log.rows(
                f"SELECT regexp_extract({_as_text(order)}, '^([A-Za-z]+)[0-9]', 1) AS letters, count(*) AS n, "
                f"avg(({negative})::INT) AS negative FROM {log.key} "
                "GROUP BY letters HAVING letters <> '' ORDER BY n DESC, letters"
            )
            for letters, n, share in found:
                # Without quantities, only the letter that shops use for it says so.
                if n < 0.3 * log.n_rows and ((share or 0) > 0.9 if quantity else letters == "C"):
                    said = f"{n:,} of {log.rows_in_words()}" + (
                        f", {share:.0%} of them with a negative quantity" if quantity else ""
                    )
                    return [f"cancelled = {{ column = {_toml(order)}, pattern = {_toml('^' + letters)} }} # {said}"]
        return []

    def _windows(self) -> list[str]:
        log, column = self.log, self.columns["timestamp"]
        table = log.everything if column in self._columns_of_everything else ""
        # A few nonsense times, such as 1970 or 2099, must not stretch the log.
        micros, latest = self.time.micros, int(datetime.now(UTC).timestamp() * 1e6)
        where = f"{micros} BETWEEN {int(_YEAR_1990 * 1e6)} AND {latest}"
        low, high, *shares = log.rows(
            "SELECT min(t), max(t), quantile_disc(t, 0.8), quantile_disc(t, 0.9) "
            f"FROM (SELECT {micros} AS t FROM {table or log.key} WHERE {where})"
        )[0]
        if low is None:
            raise self._missing("timestamp", "when it happened, after 1990 and before now")
        first, last, *cuts = (datetime.fromtimestamp(each / 1e6, UTC) for each in (low, high, *shares))
        is_whole = log.is_whole or bool(table)
        said = f"# from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC" + ("" if is_whole else ", as sampled")
        if first == last:
            return [said, 'protocol = "leave_one_out" # time cannot split events of one moment']
        if last - first >= WINDOWS_NEED:
            return [said]
        of = "the rows are earlier"
        if not is_whole or not first < cuts[0] < cuts[1]:
            cuts, of = [first + (last - first) * share for share in (0.8, 0.9)], "that time"
        if cuts[1] - cuts[0] > timedelta(minutes=2) and cuts[0] - first > timedelta(minutes=2):
            cuts = [each.replace(second=0, microsecond=0) for each in cuts]
        train, valid = (each.isoformat().replace("+00:00", "Z") for each in cuts)
        return [
            f"{said}: too short for test_days and valid_days of a week",
            f"train_until = {train} # 80 % of {of}",
            f"valid_until = {valid} # 90 %",
        ]

    def _text(self, section: str, sample: _Sample) -> list[str]:
        given = {name: getattr(sample.text, name) for name in sample.text.model_fields_set}
        if not given:
            return []
        values = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in given.items()]
        return ["", f"[{section}]", *(f"# {note}" for note in sample.notes), *values]

    def _table(
        self, section: str, columns: dict[str, str], model: type[EventColumns] | type[ItemColumns], source: _Sample
    ) -> list[str]:
        own = section.removeprefix("ingest.")
        lines = ["", f"[{section}]"]
        for role in model.model_fields:
            if role in columns:
                comment = self.comments.get(f"{own}.{role}", "")
                lines.append(f"{role} = {_toml(columns[role])} # {_comment(comment)}".removesuffix(" # "))
            elif (default := model.model_fields[role].default) in source.columns:
                # It would be taken for its name.
                why = "used above" if default in columns.values() else "the column of that name does not look like it"
                lines.append(f'{role} = "" # {why}')
        used = {*self.columns.values(), *self.item_columns.values()}
        if unused := [each for each in source.columns if each not in used]:
            lines.append(f"# not used: {_comment(', '.join(unused))}")
        return lines

    def _event_type_table(self) -> list[str]:
        if not self._event_types:
            return []
        lines = ["", "[ingest.event_types]"]
        if not (self.log.is_whole or self.log.everything):
            lines.append("# as sampled: a type that the rest of the log has besides must be added")
        for value, n in self._event_types:
            rule = event_rule(value)
            doubt = "" if rule else '; not a well-known name: say "view", "cart", "purchase", "drop" or "cancel"'
            lines.append(f'{_key(value)} = "{rule or "keep"}" # {n:,} row{"" if n == 1 else "s"}{doubt}')
        return lines


_YEAR_1990 = datetime(1990, 1, 1, tzinfo=UTC).timestamp()
_YEAR_2100 = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
_ALL_NAMES = {name for names in (*EVENT_NAMES.values(), *ITEM_NAMES.values()) for name in names.split()}
_UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
# What ingestion reads without a format: a date, maybe a time of day, maybe a zone.
_ISO_8601 = r"\d{4}-\d{1,2}-\d{1,2}([T ]\d{1,2}:\d{2}(:\d{2}(\.\d{1,9})?)?)?( ?(Z|UTC|[+-]\d{2}(:?\d{2})?))?"
_ZONE = r".*(Z|UTC|\d[+-]\d{2}(:?\d{2})?)"


def _time(sample: _Sample, column: str, *, may_be_number: bool) -> _Time | None:
    """How a column's times are written, None if it has none."""
    own = _name(column)
    if not sample.filled(column):
        return None
    kind = sample.types[column]
    if kind.startswith(("TIMESTAMP", "DATE")):
        return _Time(f"a {kind.lower()}", f"epoch_us({own}::TIMESTAMPTZ)", has_zone="ZONE" in kind)
    x = _as_text(column)
    if sample.share(column, f"regexp_full_match(x, '{_ISO_8601}') AND try_cast(x AS TIMESTAMPTZ) IS NOT NULL") > 0.9:
        zone = sample.share(column, f"regexp_full_match(x, '{_ZONE}')") > 0.9
        iso = f"CASE WHEN regexp_full_match({x}, '{_ISO_8601}') THEN try_cast({x} AS TIMESTAMPTZ) END"
        return _Time(f"ISO 8601, e.g. {sample.example(column)!r}", f"epoch_us({iso})", has_zone=zone)
    number = f"try_cast({x} AS DOUBLE)"
    for name, scale in _UNITS.items() if may_be_number else ():
        inside = f"try_cast(x AS DOUBLE) BETWEEN {_YEAR_1990 * scale} AND {_YEAR_2100 * scale}"
        # Digits of a date, such as 20261120, are less than the seconds of 1990.
        if sample.share(column, inside) > 0.9:
            return _Time(f"{name} since 1970", f"try_cast({number} / {scale} * 1000000 AS BIGINT)")
    return _written_time(sample, column) if kind == "VARCHAR" else None


def _written_time(sample: _Sample, column: str) -> _Time | None:
    """The strptime format that reads nearly all of a column's values, and more of them than any other."""
    x = _as_text(column)
    few = f"(SELECT {x} AS x FROM {sample.key} WHERE {x} IS NOT NULL LIMIT 20)"
    # A year of two digits is no year of four: 10 is not the year 10.
    reads = {each: f"(try_strptime(x, {_sql(each)}) > TIMESTAMP '1970-01-01')" for each in TIME_FORMATS}
    tried = sample.rows(f"SELECT {', '.join(f'count(*) FILTER ({read})' for read in reads.values())} FROM {few}")[0]
    able = [each for each, n in zip(reads, tried, strict=True) if n > 0.5 * max(1, max(tried))]
    share = {each: sample.share(column, reads[each]) for each in able}
    able = [each for each in able if share[each] > 0.9 and share[each] == max(share.values())]
    if not able:
        return None

    def disorder(each: str) -> tuple[int, float]:
        """Logs are mostly in the order of time, and in a few days: days read as months break one or the other."""
        read = f"try_strptime({x}, {_sql(each)})"
        times = f"(SELECT {read} AS t, lag({read}) OVER (ORDER BY rowid) AS before FROM {sample.key})"
        span = "epoch(max(t)) - epoch(min(t))"
        return int(sample.one("count(*)", table=times, where="t < before")), float(sample.one(span, table=times))

    best = min(able, key=disorder) if len(able) > 1 else able[0]
    others = [each for each in able if each != best and set(each) == set(best)]
    doubt = f"; {others[0]!r} reads it as well" if others else ""
    micros = f"epoch_us(try_strptime({x}, {_sql(best)}))"
    return _Time(f"e.g. {sample.example(column)!r}", micros, best, has_zone="%z" in best, doubt=doubt)


def _base(path: Path) -> tuple[Path, Path]:
    """The folder that a file, a glob or a folder lies in, and the path from there."""
    parts = path.parts
    plain = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    if path.exists():
        plain = len(parts) - 1
    return Path(*parts[:plain]), Path(*parts[plain:])


def _excerpt(path: Path, n_rows: int, *, tail: bool) -> tuple[bytes, bool]:
    """The first lines of a file and, if asked for, the lines of its last megabyte; and whether these are all."""
    lines, size, end = [], 0, b""
    with _reading(path), _open(path) as stream:
        for line in stream:
            lines.append(line)
            size += len(line)
            if len(lines) > n_rows or size > HEAD:
                break
        if path.suffix.lower() not in COMPRESSIONS:  # nothing to decompress up to the end
            stream.seek(max(stream.tell(), path.stat().st_size - TAIL))
        while block := stream.read(TAIL):
            end = (end + block)[-TAIL:]
            if not tail:
                break
    return b"".join(lines) + (end[end.find(b"\n") + 1 :] if tail else b""), not end


def _open(path: Path) -> IO[bytes]:
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression == "xz":
        return cast(IO[bytes], lzma.open(path))
    if compression is None:
        return path.open("rb")
    return cast(IO[bytes], io.BufferedReader(pa.input_stream(str(path), compression=compression)))


def _text_format(excerpts: Sequence[bytes], file: DataFile, sample: _Sample) -> TextFormat:
    """How files of text are written, as far as it is not what ingestion takes them for anyway."""
    given: dict[str, Any] = {}
    content = b"".join(excerpts)
    if not _decodes(content, "utf-8"):
        given["encoding"] = "cp1252" if _decodes(content, "cp1252") else "latin-1"
        sample.notes.append("the text is not UTF-8: look whether its accents come out right")
    lines = excerpts[0].decode(given.get("encoding", "utf-8-sig"), errors="replace").splitlines()[:100]
    if file.format == "jsonl" and sample.key == "events":
        if key := _list_of_events(lines):
            given["explode"] = key
            sample.notes.append(f"each line has a list of events, {_comment(key)}")
    elif file.format == "csv" and lines:
        delimiter = max(",\t;|", key=lambda each: _n_fields(lines, each))
        if delimiter != "," and _n_fields(lines, delimiter) > 1:
            given["delimiter"] = delimiter
        first = next(csv.reader(lines, delimiter=delimiter))
        if any(re.fullmatch(r"-?\d[-\d.,:/ TZ]*", field.strip()) for field in first):
            given["header"] = tuple(f"column_{i}" for i in range(1, len(first) + 1))
            sample.notes.append("the first line looks like data, so names were made up: give better ones")
    return TextFormat(**given)


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _n_fields(lines: Sequence[str], delimiter: str) -> int:
    """Number of fields of the lines, if it is the same in nearly all, else 1."""
    counts = Counter(len(row) for row in csv.reader(lines, delimiter=delimiter) if row)
    n_fields, n_lines = counts.most_common(1)[0] if counts else (1, 0)
    return n_fields if n_lines > 0.9 * counts.total() else 1


def _list_of_events(lines: Sequence[str]) -> str:
    """The key of a list in each line whose members name an item, which the line itself does not."""
    items = set(EVENT_NAMES["item_id"].split())
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict) or items & set(map(fold, row)):
            return ""
        for key, value in row.items():
            if isinstance(value, list) and value and isinstance(value[0], dict) and items & set(map(fold, value[0])):
                return str(key)
    return ""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, OSError, EOFError, lzma.LZMAError) as error:
        raise InputError(
            f"{path} cannot be read: {str(error).splitlines()[0]}",
            expected="whole files of Parquet, CSV or JSON lines, all of one kind",
            do="check what wrote it, or copy it again if it was cut off",
        ) from None


def _name(column: str) -> str:
    """A column in SQL."""
    return '"' + column.replace('"', '""') + '"'


def _sql(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _parquet(*paths: Path) -> str:
    """Parquet files as one table in SQL, without the levels of their folders."""
    listed = ", ".join(_sql(str(path)) for path in paths)
    return f"read_parquet([{listed}], union_by_name = true, hive_partitioning = false)"


def _as_text(column: str) -> str:
    """A column as trimmed text in SQL, null where it is empty."""
    return f"nullif(nullif(trim(CAST({_name(column)} AS VARCHAR)), ''), 'nan')"


def _as_number(column: str) -> str:
    return f"try_cast({_as_text(column)} AS DOUBLE)"


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else _toml(text)


def _comment(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.casefold()).strip("_")
