"""The pipelines that come with recsys read the public logs that they are for, in those logs' own formats."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

from recsys.config import PipelineConfig, load_config
from recsys.ingest.dataset import Dataset
from recsys.ingest.ingest import ingest
from recsys.ingest.inspect import inspect
from recsys.runtime import Runtime

PIPELINES = Path(__file__).parents[2] / "pipelines"
START = datetime(2015, 3, 1, 8, 30, tzinfo=UTC)
KINDS = ("view", "cart", "purchase")


@dataclass(frozen=True)
class Act:
    """What a made-up user did, whatever the log calls it."""

    user: int
    item: int
    kind: str
    at: datetime


# Six users come to a shop of seven items on eight days each.
STORY = [
    Act(
        100 + user,
        10 + (3 * user + day * day) % 7,
        KINDS[(user + day) % 3],
        START + timedelta(days=9 * day, hours=user),
    )
    for day in range(8)
    for user in range(6)
]
PURCHASES = [replace(act, kind="purchase") for act in STORY]


@dataclass
class Log:
    """A log as it was written, and what ingestion is to find in it.

    Attributes:
        acts: the events that are kept.
        user, item: a user's and an item's id in the log.
        titles: titles of some items.
        quarantined: rejected rows by reason.
        events, items: where they lie, to be inspected.
    """

    acts: Sequence[Act]
    events: str
    items: str | None = None
    user: Callable[[int], str] = str
    item: Callable[[int], str] = str
    titles: dict[str, str] = field(default_factory=dict)
    categories: dict[str, str] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def csv_of(header: str, rows: Iterable[Sequence[Any]]) -> str:
    lines = ([header] if header else []) + [",".join(map(str, row)) for row in rows]
    return "\n".join(lines) + "\n"


def jsonl_of(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def amazon_reviews_2023(folder: Path) -> Log:
    place = folder / "amazon_reviews_2023"
    reviews = [
        {
            "rating": 5.0,
            "title": f"Review {i}",
            "text": "Smells good,\nand works.",
            "images": [{"small_image_url": "https://m.media-amazon.com/a.jpg", "attachment_type": "IMAGE"}],
            "asin": f"B0{act.item}V{i % 2}",
            "parent_asin": f"B00{act.item}",
            "user_id": f"AE{act.user}",
            "timestamp": milliseconds(act.at),
            "helpful_vote": 0,
            "verified_purchase": True,
        }
        for i, act in enumerate(PURCHASES)
    ]
    metas = [
        {
            "main_category": "All Beauty",
            "title": f"Cream No. {item}",
            "average_rating": 4.8,
            "rating_number": 10,
            "features": [],
            "description": ["Rich", "for dry skin"],
            "price": 9.5 if item % 2 else None,
            "images": [{"thumb": "https://m.media-amazon.com/b.jpg", "variant": "MAIN"}],
            "videos": [],
            "store": "Howard",
            "categories": ["Beauty", "Skin Care"] if item % 2 else [],
            "details": {"Package Dimensions": "7 x 5 inches"},
            "parent_asin": f"B00{item}",
            "bought_together": None,
        }
        for item in range(10, 17)
    ]
    write(place / "All_Beauty.jsonl.gz", jsonl_of(reviews))
    write(place / "meta_All_Beauty.jsonl.gz", jsonl_of(metas))
    return Log(
        PURCHASES,
        "amazon_reviews_2023/All_Beauty.jsonl.gz",
        "amazon_reviews_2023/meta_All_Beauty.jsonl.gz",
        "AE{}".format,
        "B00{}".format,
        titles={"B0010": "Cream No. 10"},
        categories={"B0011": "Beauty > Skin Care"},
    )


def retailrocket(folder: Path) -> Log:
    own = {"view": "view", "cart": "addtocart", "purchase": "transaction"}
    rows = [
        (milliseconds(act.at), act.user, own[act.kind], act.item, i if act.kind == "purchase" else "")
        for i, act in enumerate(STORY)
    ]
    write(folder / "retailrocket/events.csv", csv_of("timestamp,visitorid,event,itemid,transactionid", rows))
    return Log(STORY, "retailrocket/events.csv", titles={"10": "10"})


def rees46_full(folder: Path) -> Log:
    header = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session"
    end = START + timedelta(days=40)
    rows = [
        (
            f"{act.at:%Y-%m-%d %H:%M:%S} UTC",
            act.kind,
            act.item,
            2053013555631882655,
            "electronics.smartphone" if act.item < 14 else "",
            "samsung" if act.item < 15 else "",
            489.07,
            act.user,
            f"26dd6e6e-4dac-4778-8d2c-{act.at.timestamp():.0f}",
        )
        for act in STORY
    ]
    removed = (f"{end:%Y-%m-%d %H:%M:%S} UTC", "remove_from_cart", 10, 1, "electronics.smartphone", "", 1.0, 100, "x")
    months = [act.at < end for act in STORY]
    first = [row for row, is_first in zip(rows, months, strict=True) if is_first]
    second = [removed, *(row for row, is_first in zip(rows, months, strict=True) if not is_first)]
    write(folder / "rees46/2019-Oct.csv.gz", csv_of(header, first))
    write(folder / "rees46/2019-Nov.csv.gz", csv_of(header, second))
    return Log(
        STORY,
        "rees46/20*.csv.gz",
        titles={"10": "samsung smartphone"},
        categories={"10": "electronics > smartphone"},
        quarantined={"dropped_event_type": 1},
    )


def online_retail(folder: Path, place: str, columns: str, layout: str, user: str, encoding: str, n_files: int) -> Log:
    """Order lines of a shop in London: purchases, one of which is taken back, postage, gifts and what has no user."""
    invoice = iter(range(536365, 600000))

    def row(act: Act, code: str, title: str, *, quantity: int = 6, price: float = 2.55, mark: str = "") -> list[Any]:
        at = act.at.astimezone(ZoneInfo("Europe/London"))
        moment = at.strftime(layout)
        if "%m/" in layout:
            moment = f"{at.month}/{at.day}/{at.year} {at.hour}:{at.minute:02}"
        return [f"{mark}{next(invoice)}", code, f'"{title}"', quantity, moment, price, user.format(act.user), "France"]

    rows = [row(act, f"851{act.item}A", f"MUG, £{act.item}") for act in PURCHASES]
    last = PURCHASES[-1]
    later = replace(last, at=last.at + timedelta(hours=1))
    rows += [
        row(later, f"851{last.item}A", f"MUG, £{last.item}", quantity=-6, mark="C"),
        row(later, "POST", "POSTAGE", price=18.0),
        row(later, "85110A", "MUG, £10", price=0.0),
        [*row(later, "85110A", "MUG, £10")[:6], "", "France"],
    ]
    parts = [rows[i * len(rows) // n_files : (i + 1) * len(rows) // n_files] for i in range(n_files)]
    for i, part in enumerate(parts):
        name = place if n_files == 1 else place.replace("*", f"Year 20{9 + i:02}-20{10 + i}")
        write(folder / name, csv_of(columns, part), encoding)
    price = columns.split(",")[5]
    return Log(
        PURCHASES[:-1],
        place,
        user=user.format,
        item="851{}A".format,
        titles={"85110A": "MUG, £10"},
        quarantined={
            "cancellation": 1,
            "cancelled_purchase": 1,
            "non_merchandise": 1,
            f"not_positive_{price}": 1,
            "missing_user_id": 1,
        },
    )


def hm(folder: Path) -> Log:
    acts = [replace(act, at=act.at.replace(hour=0, minute=0)) for act in PURCHASES]
    write(
        folder / "hm/transactions_train.csv",
        csv_of(
            "t_dat,customer_id,article_id,price,sales_channel_id",
            [(date.isoformat(act.at), f"000058a12d5b43{act.user}", f"06637130{act.item}", 0.0508, 2) for act in acts],
        ),
    )
    header = (
        "article_id,product_code,prod_name,product_type_no,product_type_name,product_group_name,"
        "index_group_no,index_group_name,detail_desc"
    )
    articles = [
        (
            f"06637130{item}",
            663713,
            f"Strap top {item}",
            253,
            "Vest top",
            "Garment Upper body",
            1,
            "Ladieswear",
            '"a, b"',
        )
        for item in range(10, 17)
    ]
    write(folder / "hm/articles.csv", csv_of(header, articles))
    return Log(
        acts,
        "hm/transactions_train.csv",
        "hm/articles.csv",
        "000058a12d5b43{}".format,
        "06637130{}".format,
        titles={"0663713010": "Strap top 10"},
        categories={"0663713010": "Vest top"},
    )


def movielens(folder: Path) -> Log:
    rows = [
        (act.user, act.item, 4.5 if act.user < 105 else 3.5, round(act.at.timestamp()))
        for act in sorted(PURCHASES, key=lambda act: act.user)
    ]
    write(folder / "movielens/ratings.csv", csv_of("userId,movieId,rating,timestamp", rows))
    films = [(item, f'"Film {item}, The (1995)"', "Adventure|Comedy") for item in range(10, 17)]
    write(folder / "movielens/movies.csv", csv_of("movieId,title,genres", films))
    return Log(
        [act for act in PURCHASES if act.user < 105],
        "movielens/ratings.csv",
        "movielens/movies.csv",
        titles={"10": "Film 10, The (1995)"},
        categories={"10": "Adventure > Comedy"},
        quarantined={"out_of_bounds_rating": 8},
    )


def otto(folder: Path) -> Log:
    own = {"view": "clicks", "cart": "carts", "purchase": "orders"}
    sessions = [
        {
            "session": user,
            "events": [
                {"aid": act.item, "ts": milliseconds(act.at), "type": own[act.kind]}
                for act in STORY
                if act.user == user
            ],
        }
        for user in range(100, 106)
    ]
    write(folder / "otto/otto-recsys-train.jsonl", jsonl_of(sessions))
    return Log(STORY, "otto/otto-recsys-train.jsonl", titles={"10": "10"})


def yoochoose(folder: Path) -> Log:
    acts = [replace(act, kind="view" if act.kind == "cart" else act.kind) for act in STORY]
    when = {act: f"{act.at:%Y-%m-%dT%H:%M:%S}.277Z" for act in acts}
    clicks = [(act.user, when[act], act.item, "S") for act in acts if act.kind == "view"]
    buys = [(act.user, when[act], act.item, 12462, 1) for act in acts if act.kind == "purchase"]
    write(folder / "yoochoose/yoochoose-clicks.dat", csv_of("", clicks))
    write(folder / "yoochoose/yoochoose-buys.dat", csv_of("", buys))
    acts = [replace(act, at=act.at + timedelta(milliseconds=277)) for act in acts]
    return Log(acts, "yoochoose/yoochoose-clicks.dat")


def beauty(folder: Path) -> Log:
    place = folder / "beauty"
    place.mkdir()
    rows = [(f"A{act.user}", f"B{act.item}", "review", round(act.at.timestamp()), i) for i, act in enumerate(PURCHASES)]
    columns = ["user_id", "item_id", "event_type", "timestamp", "position"]
    pd.DataFrame(rows, columns=columns).to_parquet(place / "events.parquet")
    items = {"item_id": [f"B{item}" for item in range(10, 17)], "title": "Polish", "category": "Makeup > Nails"}
    pd.DataFrame(items).to_parquet(place / "items.parquet")
    return Log(PURCHASES, "beauty/events.parquet", "beauty/items.parquet", "A{}".format, "B{}".format)


def online_retail_parquet(folder: Path) -> Log:
    place = folder / "online_retail"
    place.mkdir()
    rows = [(act.user, f"85{act.item}A", "purchase", round(act.at.timestamp()), 6, 2.55) for act in PURCHASES]
    rows.append((100, "8510A", "return", round(START.timestamp()), -6, 2.55))
    columns = ["user_id", "item_id", "event_type", "timestamp", "quantity", "price"]
    pd.DataFrame(rows, columns=columns).to_parquet(place / "events.parquet")
    items = {"item_id": [f"85{item}A" for item in range(10, 17)], "title": "MUG", "is_merch": True}
    pd.DataFrame(items).to_parquet(place / "items.parquet")
    return Log(
        PURCHASES,
        "online_retail/events.parquet",
        "online_retail/items.parquet",
        item="85{}A".format,
        quarantined={"dropped_event_type": 1},
    )


def rees46(folder: Path) -> Log:
    place = folder / "rees46"
    place.mkdir()
    begin = datetime(2019, 10, 1, tzinfo=UTC)
    acts = [replace(act, at=begin + timedelta(minutes=3 * i)) for i, act in enumerate(STORY)]
    rows = [(act.user, act.item, act.kind, round(act.at.timestamp()), 2.5, f"s{act.user}") for act in acts]
    columns = ["user_id", "item_id", "event_type", "timestamp", "price", "session_id"]
    pd.DataFrame(rows, columns=columns).to_parquet(place / "events.parquet")
    items = {"item_id": range(10, 17), "category": "electronics.smartphone", "title": "phone"}
    pd.DataFrame(items).to_parquet(place / "items.parquet")
    return Log(acts, "rees46/events.parquet", "rees46/items.parquet", categories={"10": "electronics > smartphone"})


LOGS: dict[str, Callable[[Path], Log]] = {
    "amazon_reviews_2023": amazon_reviews_2023,
    "beauty": beauty,
    "hm": hm,
    "movielens": movielens,
    "online_retail": online_retail_parquet,
    "online_retail_2": partial(
        online_retail,
        place="online_retail_2/*.csv",
        columns="Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country",
        layout="%Y-%m-%d %H:%M:%S",
        user="{}.0",
        encoding="utf-8",
        n_files=2,
    ),
    "online_retail_csv": partial(
        online_retail,
        place="online_retail/data.csv",
        columns="InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country",
        layout="%m/%d/%Y %H:%M",
        user="{}",
        encoding="latin-1",
        n_files=1,
    ),
    "otto": otto,
    "rees46": rees46,
    "rees46_full": rees46_full,
    "retailrocket": retailrocket,
    "yoochoose": yoochoose,
}


def run(config: PipelineConfig, out: Path, data: Path) -> Dataset:
    return ingest(config.ingest, out, data=data, runtime=Runtime(threads=1, progress=False))


def histories(dataset: Dataset) -> dict[str, list[tuple[str, str, int]]]:
    """Each user's events: item, type and microseconds since 1970."""
    sequences = dataset.sequences
    users, items = (table.column(1).to_pylist() for table in (dataset.users, dataset.items))
    return {
        user: [
            (items[sequences.item_idx[i]], dataset.event_types[sequences.event_type[i]], int(sequences.timestamp[i]))
            for i in range(sequences.offsets[u], sequences.offsets[u + 1])
        ]
        for u, user in enumerate(users)
    }


def expected(log: Log) -> dict[str, list[tuple[str, str, int]]]:
    found: dict[str, list[tuple[str, str, int]]] = {}
    for act in sorted(log.acts, key=lambda act: act.at):
        event = (log.item(act.item), act.kind, round(act.at.timestamp() * 1_000_000))
        found.setdefault(log.user(act.user), []).append(event)
    return found


def test_every_pipeline_that_reads_a_public_log_is_tested_here() -> None:
    assert {path.stem for path in PIPELINES.glob("*.toml")} - {"sample"} == set(LOGS)


@pytest.mark.parametrize("name", LOGS)
def test_a_public_log_is_ingested_as_it_comes(name: str, tmp_path: Path) -> None:
    log = LOGS[name](tmp_path)
    config = load_config(PIPELINES / f"{name}.toml", env={})
    dataset = run(config, tmp_path / "out", tmp_path)
    assert histories(dataset) == expected(log)
    assert dataset.counts["quarantined"] == log.quarantined
    assert dataset.counts["rows_in"] == len(log.acts) + sum(log.quarantined.values())
    items = {item["item_id"]: item for item in dataset.items.to_pylist()}
    assert set(items) == {log.item(item) for item in range(10, 17)}
    assert {item: items[item]["title"] for item in log.titles} == log.titles
    assert {item: items[item]["category"] for item in log.categories} == log.categories


# What no look at a log can tell: that a low rating is no purchase, that a second kind of file belongs to the first, or
# that a return is to be ignored. That a clock is not UTC is no more than hinted at.
@pytest.mark.parametrize("name", [name for name in LOGS if name not in ("movielens", "yoochoose", "online_retail")])
def test_inspect_finds_the_same_of_a_public_log_without_being_told(name: str, tmp_path: Path) -> None:
    log = LOGS[name](tmp_path)
    path = tmp_path / "first.toml"
    path.write_text(inspect(tmp_path / log.events, tmp_path / log.items if log.items else None), encoding="utf-8")
    config = load_config(path, env={})
    found, wanted = histories(run(config, tmp_path / "out", config.data)), expected(log)
    if name.startswith("online_retail"):  # its summer time is an hour off
        found, wanted = (
            {user: [event[:2] for event in events] for user, events in each.items()} for each in (found, wanted)
        )
    assert found == wanted
