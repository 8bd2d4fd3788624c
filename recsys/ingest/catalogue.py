"""The catalogue: the shop's items under the contract's names and types, numbered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Final

import ibis

from recsys import schema
from recsys.errors import InputError
from recsys.ingest.columns import (
    as_id,
    as_micros,
    as_number,
    as_text,
    elected,
    find_columns,
    require_column,
    unit_votes,
)
from recsys.ingest.columns import votes as has_votes
from recsys.ingest.config import EventSource, IngestConfig
from recsys.ingest.engine import Engine, count, reading
from recsys.ingest.files import find_files
from recsys.ingest.log import FOR_CATALOGUE, LogFile, alike, open_file
from recsys.ingest.split import Cuts

_TEXTS: Final = ("title", "category", "brand", "description")


def open_catalogue(config: IngestConfig, data: Path, folder: Path) -> list[LogFile]:
    """Open the catalogue's files; text is turned into Parquet in `folder` first.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    source = EventSource(text=config.items_text)
    files = find_files(data, config.items, config.items_text, key="ingest.items")
    return [open_file(number, file, source, folder) for number, file in enumerate(files)]


def read_catalogue(engine: Engine, files: Sequence[LogFile], config: IngestConfig) -> tuple[ibis.Table, dict[str, int]]:
    """Read the catalogue into a table of one row per item_id.

    Rows of one item_id are merged: the one stays that has a title and comes first in the columns' order. An item
    without a title is called by its brand and last category level, or else by its item_id, so that every item has a
    text and can be recommended.

    Returns:
        The columns of `schema.ITEMS` (`available_from` as int64 microseconds), with `item_idx` counting in the order of
        item_id and null for what is no merchandise, and `part`, the part of the split from which on an item is known:
        the first for all; and counts of rows and items.

    Raises:
        InputError: a file cannot be read, lacks a column, or there is no item to recommend or no title at all.
    """
    where = files[0].file.name if len(files) == 1 else f"the catalogue ({len(files):,} files)"
    tables = [_contract_rows(engine, group, config) for group in alike(files)]
    with reading(where):
        rows = engine.keep("catalogue_rows", reduce(lambda one, other: one.union(other), tables))
    identified = rows.filter(rows.item_id.notnull())
    order = [identified.title.isnull(), *(identified[name] for name in identified.columns if name != schema.ITEM_ID)]
    place = ibis.row_number().over(group_by=schema.ITEM_ID, order_by=order)
    items = identified.mutate(place=place).filter(lambda t: t.place == 0).drop("place")
    n_rows, n_identified = count(rows), count(identified)
    counts = {
        "rows_in": n_rows,
        "missing_item_id": n_rows - n_identified,
        "merged": n_identified - count(identified.select(schema.ITEM_ID).distinct()),
    }
    items = items.mutate(part=ibis.literal(0, "int8"))
    return _number(engine, items, where, config, counts, from_events=False)


def derive_catalogue(
    engine: Engine, rows: ibis.Table, cuts: Cuts, config: IngestConfig
) -> tuple[ibis.Table, dict[str, int]]:
    """Make a catalogue of what the log says of its items.

    Of each text and of the price, the value that most rows have is taken (of several, the least), and of these rows
    only those of the part of the split in which the item is first seen: what is known later must not be read earlier.

    Args:
        engine: what `rows` belong to.
        rows: as `Log.rows` gives them, those without a fault.
        cuts: where the log is split.
        config: for the separator of categories.

    Returns:
        As `read_catalogue`, but `part` is that in which the item is first seen, and `item_idx` counts in the order of
        (part, item_id).

    Raises:
        InputError: there is no item.
    """
    rows = rows.mutate(part=cuts.part(rows.timestamp))
    first = rows.group_by(schema.ITEM_ID).aggregate(first_part=rows.part.min())
    items = first.rename(part="first_part")
    early = rows.inner_join(first, schema.ITEM_ID).filter(lambda t: t.part == t.first_part)
    for name in (*_TEXTS, "price"):
        own = f"{FOR_CATALOGUE}{name}"
        if own not in rows.columns:
            items = items.mutate(**{name: ibis.null("float64" if name == "price" else "string")})
            continue
        said = early.filter(early[own].notnull())
        votes = said.group_by([schema.ITEM_ID, own]).aggregate(n=said.count())
        value: Any = as_number(votes[own]) if name == "price" else votes[own]
        place = ibis.row_number().over(group_by=schema.ITEM_ID, order_by=[ibis.desc("n"), value])
        chosen = votes.mutate(place=place).filter(lambda t: t.place == 0)
        value = as_number(chosen[own]) if name == "price" else chosen[own]
        chosen = chosen.select(schema.ITEM_ID, **{name: value})
        items = items.left_join(chosen, schema.ITEM_ID).drop("item_id_right")
    items = items.mutate(
        category=_category(items.category, config),
        in_stock=ibis.null("boolean"),
        available_from=ibis.null("int64"),
        is_merchandise=ibis.literal(True),
    )
    return _number(engine, items, "the log", config, {"from_events": count(first)}, from_events=True)


def _number(
    engine: Engine,
    items: ibis.Table,
    where: str,
    config: IngestConfig,
    counts: dict[str, int],
    *,
    from_events: bool,
) -> tuple[ibis.Table, dict[str, int]]:
    """Give every item a title and a number."""
    leaf = items.category.split(schema.CATEGORY_SEPARATOR)
    stand_in = (items.brand.fill_null("") + " " + leaf[leaf.length() - 1].fill_null("")).strip().nullif("")
    index = ibis.row_number().over(order_by=[~items.is_merchandise, items.part, items.item_id])
    items = engine.keep(
        "catalogue",
        items.mutate(
            is_untitled=items.title.isnull(),
            is_nameless=items.title.isnull() & stand_in.isnull(),
            title=ibis.coalesce(items.title, stand_in, items.item_id),
            item_idx=ibis.cases((items.is_merchandise, index)).cast("int32"),
        ),
    )
    kinds = items.group_by(["is_merchandise", "is_untitled", "is_nameless"]).aggregate(n=items.count())
    found = kinds.to_pyarrow().to_pylist()
    goods = [row for row in found if row["is_merchandise"]]
    n_items = sum(row["n"] for row in goods)
    counts = counts | {
        "non_merchandise": sum(row["n"] for row in found) - n_items,
        "untitled": sum(row["n"] for row in goods if row["is_untitled"]),
    }
    if not n_items:
        raise InputError(
            f"{where} has no item to recommend: {counts}",
            expected="one row per item",
            do="check what wrote the file, and ingest.merchandise",
        )
    # What a log says of its items may be no more than a brand and a category; a catalogue is there to name them.
    n_unnamed = sum(row["n"] for row in goods if row["is_nameless" if from_events else "is_untitled"])
    if n_unnamed == n_items:
        raise InputError(
            f"{where} is a catalogue without titles: {config.item_columns.title!r} is empty for all {n_items:,} items",
            expected="a name for each item, as a customer reads it: the models read this text"
            + (" (a brand or a category can stand in for it)" if from_events else ""),
            do='map the column that has it, the item_id itself if there is none:\n[ingest.item_columns]\ntitle = "…"',
        )
    return items.select(*schema.ITEMS.names, "part"), counts


def _contract_rows(engine: Engine, files: Sequence[LogFile], config: IngestConfig) -> ibis.Table:
    where, columns = files[0].file.name, files[0].columns
    names = find_columns(where, columns, config.item_columns, "item_columns", schema.REQUIRED_ITEM_COLUMNS)
    with reading(where):
        rows = engine.read([file.path for file in files])

    def column(name: str, kind: str) -> Any:
        return rows[names[name]] if name in names else ibis.null(kind)

    available_from = column("available_from", "timestamp")
    unit = config.timestamp_unit
    if has_votes(available_from, unit):
        with reading(where):
            unit = elected(rows.aggregate(**unit_votes(available_from)).to_pyarrow().to_pylist()[0])
    is_merchandise = ibis.literal(True)
    if config.merchandise is not None:
        require_column(where, columns, config.merchandise, "merchandise")
        is_merchandise = rows[config.merchandise].try_cast("boolean").fill_null(True)
    return rows.select(
        item_id=as_id(column(schema.ITEM_ID, "string")),
        title=as_text(column("title", "string")),
        category=_category(as_text(column("category", "string")), config),
        brand=as_text(column("brand", "string")),
        price=as_number(column("price", "float64")),
        description=as_text(column("description", "string")),
        in_stock=column("in_stock", "boolean").try_cast("boolean"),
        available_from=as_micros(engine, available_from, unit, zone=config.timezone),
        is_merchandise=is_merchandise,
    )


def _category(category: ibis.Value, config: IngestConfig) -> ibis.Value:
    if config.category_separator == schema.CATEGORY_SEPARATOR:
        return category
    return category.replace(config.category_separator, schema.CATEGORY_SEPARATOR)
