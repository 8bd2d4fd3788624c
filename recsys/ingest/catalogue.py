"""The catalogue: the shop's items under the contract's names and types, numbered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ibis

from recsys import schema
from recsys.errors import InputError
from recsys.ingest.columns import as_id, as_micros, as_text, find_columns, require_column, time_unit
from recsys.ingest.config import IngestConfig
from recsys.ingest.engine import count, open_parquet, reading

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend


def read_catalogue(connection: Backend, path: Path, config: IngestConfig) -> tuple[ibis.Table, dict[str, int]]:
    """Read the catalogue into a table of one row per item_id.

    Rows of one item_id are merged: the one stays that has a title and comes first in the columns' order. An item
    without a title is called by its brand and last category level, or else by its item_id, so that every item has a
    text and can be recommended.

    Returns:
        The columns of `schema.ITEMS` (`available_from` as int64 microseconds), with `item_idx` counting in the order of
        item_id and null for what is no merchandise; and counts of rows and items.

    Raises:
        InputError: the file cannot be read, lacks a column, or has no item to recommend or no title at all.
    """
    rows = _contract_rows(connection, path, config)
    with reading(path):
        rows = connection.create_table("catalogue_rows", rows)
    identified = rows.filter(rows.item_id.notnull())
    order = [identified.title.isnull(), *(identified[name] for name in identified.columns if name != schema.ITEM_ID)]
    place = ibis.row_number().over(group_by=schema.ITEM_ID, order_by=order)
    items = identified.mutate(place=place).filter(lambda t: t.place == 0).drop("place")
    leaf = items.category.split(schema.CATEGORY_SEPARATOR)
    stand_in = (items.brand.fill_null("") + " " + leaf[leaf.length() - 1].fill_null("")).strip().nullif("")
    index = ibis.row_number().over(order_by=[~items.is_merchandise, items.item_id])
    items = connection.create_table(
        "catalogue",
        items.mutate(
            is_untitled=items.title.isnull(),
            title=ibis.coalesce(items.title, stand_in, items.item_id),
            item_idx=ibis.cases((items.is_merchandise, index)).cast("int32"),
        ),
    )
    counts = {
        "rows_in": count(rows),
        "missing_item_id": count(rows) - count(identified),
        "merged": count(identified) - count(items),
        "non_merchandise": count(items.filter(~items.is_merchandise)),
        "untitled": count(items.filter(items.is_merchandise & items.is_untitled)),
    }
    n_items = count(items) - counts["non_merchandise"]
    if not n_items:
        raise InputError(
            f"{path} has no item to recommend: {counts}",
            expected="one row per item",
            do="check what wrote the file, and ingest.merchandise",
        )
    if counts["untitled"] == n_items:
        raise InputError(
            f"{path} is a catalogue without titles: {config.item_columns.title!r} is empty for all {n_items:,} items",
            expected="a name for each item, as a customer reads it: the models read this text",
            do='map the column that has it:\n[ingest.item_columns]\ntitle = "…"',
        )
    return items.select(schema.ITEMS.names), counts


def _contract_rows(connection: Backend, path: Path, config: IngestConfig) -> ibis.Table:
    rows = open_parquet(connection, path)
    columns = list(rows.columns)
    names = find_columns(path, columns, config.item_columns, "item_columns", schema.REQUIRED_ITEM_COLUMNS)

    def column(name: str, kind: str) -> Any:
        return rows[names[name]] if name in names else ibis.null(kind)

    category = as_text(column("category", "string"))
    if config.category_separator != schema.CATEGORY_SEPARATOR:
        category = category.replace(config.category_separator, schema.CATEGORY_SEPARATOR)
    available_from = column("available_from", "timestamp")
    with reading(path):
        unit = time_unit(available_from, "auto")
    is_merchandise = ibis.literal(True)
    if config.merchandise is not None:
        require_column(path, columns, config.merchandise, "merchandise")
        is_merchandise = rows[config.merchandise].try_cast("boolean").fill_null(True)
    return rows.select(
        item_id=as_id(column(schema.ITEM_ID, "string")),
        title=as_text(column("title", "string")),
        category=category,
        brand=as_text(column("brand", "string")),
        price=column("price", "float64").try_cast("float64"),
        description=as_text(column("description", "string")),
        in_stock=column("in_stock", "boolean").try_cast("boolean"),
        available_from=as_micros(available_from, unit),
        is_merchandise=is_merchandise,
    )
