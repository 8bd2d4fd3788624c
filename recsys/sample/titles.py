"""The sample shop's shop window: identifiers, titles, categories and descriptions."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import schema
from recsys.sample.catalogue import DAY, MATERIALS, SECTION_OF_TYPE, SECTIONS, TYPES, Catalogue, draw_option
from recsys.sample.config import SampleConfig
from recsys.sample.shelf import Ints
from recsys.sample.vocabulary import BRANDS, STYLES

TITLE_SHOWS_STYLE = 0.85
HAS_DESCRIPTION = 0.6


def items_table(rng: np.random.Generator, config: SampleConfig, catalogue: Catalogue) -> pa.Table:
    """The catalogue as the shop exports it, one row per item, in no telling order."""
    n = len(catalogue)
    style_words = [word for words in STYLES for word in words]
    n_words = np.array([len(words) for words in STYLES])
    first = (np.cumsum(n_words) - n_words)[catalogue.style]
    # Title and description name a style by different words, so that a reader of both learns that they mean one thing.
    turn = rng.integers(0, n_words[catalogue.style])
    in_title = _words(style_words, first + turn)
    in_description = _words(style_words, first + (turn + 1) % n_words[catalogue.style])

    names = _words([t.name for t in TYPES], catalogue.kind)
    brands = _words(BRANDS, catalogue.brand)
    materials = _words(MATERIALS, catalogue.material)
    variants = _words(*_variants(rng, catalogue.kind))
    shown_style = pc.if_else(pa.array(rng.random(n) < TITLE_SHOWS_STYLE), in_title, None)
    title = pc.binary_join_element_wise(brands, shown_style, materials, names, " ", null_handling="skip")
    opening = _words(("Our", "A favourite:", "From the new range:", "The"), rng.integers(0, 4, n))
    sentence = pc.binary_join_element_wise(
        opening, pc.utf8_lower(in_description), pc.utf8_lower(names), "in", pc.utf8_lower(materials), "by", brands, " "
    )
    paths = [
        schema.CATEGORY_SEPARATOR.join((*SECTIONS[section], t.name))
        for t, section in zip(TYPES, SECTION_OF_TYPE, strict=True)
    ]
    start = np.datetime64(config.first_day, "ms")
    available_from = pa.array((start + catalogue.launched.astype("m8[ms]")).astype("M8[us]"))
    now = np.full(n, config.days * DAY)
    return pa.table(
        {
            schema.ITEM_ID: numbered("P", rng.permutation(n), n),
            "title": pc.binary_join_element_wise(title, variants, ", "),
            "category": _words(paths, catalogue.kind),
            "brand": brands,
            "price": catalogue.price,
            "description": pc.if_else(pa.array(rng.random(n) < HAS_DESCRIPTION), sentence, None),
            "in_stock": catalogue.in_stock(np.arange(n), now),
            "available_from": available_from.cast(pa.timestamp("us", tz="UTC")),
        }
    )


def numbered(prefix: str, number: Ints, limit: int) -> pa.Array:
    """Identifiers of one length: the prefix and a number below `limit` with leading zeros."""
    digits = len(str(limit)) + 1
    return pc.binary_join_element_wise(prefix, pc.utf8_lpad(pa.array(number).cast(pa.string()), digits, "0"), "")


def _variants(rng: np.random.Generator, kind: Ints) -> tuple[list[str], Ints]:
    """All variant words, and which of them each item has."""
    words = [variant for t in TYPES for variant in t.variants]
    place = np.arange(len(words))
    ends = np.cumsum([len(t.variants) for t in TYPES])[:-1]
    return words, draw_option(rng, [part.tolist() for part in np.split(place, ends)], kind)


def _words(vocabulary: tuple[str, ...] | list[str], place: Ints) -> pa.Array:
    return pa.array(vocabulary).take(pa.array(place))
