"""A log that nobody has described: the mapping that `inspect` writes is read, and reads the log."""

from __future__ import annotations

import gzip
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config import PipelineConfig, load_config
from recsys.errors import InputError
from recsys.ingest.dataset import Dataset
from recsys.ingest.ingest import ingest
from recsys.ingest.inspect import event_rule, fold, inspect
from recsys.runtime import Runtime

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("RECSYS_DATA") or ROOT.parent / "shared" / "data")
START = datetime(2021, 2, 3, 8, 5, tzinfo=UTC)


def mapped(events: Path, items: Path | None = None, **options: Any) -> PipelineConfig:
    """The config that the mapping is read to."""
    path = events.parent / "mapping.toml"
    path.write_text(inspect(events, items, **options), encoding="utf-8")
    return load_config(path, env={})


def run(config: PipelineConfig, out: Path) -> Dataset:
    return ingest(config.ingest, out, data=config.data, runtime=Runtime(threads=1, progress=False))


def rows(n: int = 300, step: timedelta = timedelta(hours=7)) -> pd.DataFrame:
    """A log of a few users and items, in the order of time."""
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "user": random.integers(1000, 1040, n),
            "product": random.integers(50, 80, n),
            "when": [START + i * step for i in range(n)],
        }
    )


def with_times(log: pd.DataFrame, layout: str) -> pd.DataFrame:
    return log.assign(when=[moment.strftime(layout) for moment in log["when"]])


# Real shops


def shop(name: str, folder: Path) -> Path:
    if not (DATA / name / "events.parquet").is_file():
        pytest.skip(f"no {name} log in {DATA}")
    for each in ("events.parquet", "items.parquet"):
        (folder / each).symlink_to(DATA / name / each)
    return folder


def test_online_retail_is_mapped_without_a_hand_edit(tmp_path: Path) -> None:
    folder = shop("online_retail", tmp_path)
    config = mapped(folder / "events.parquet", folder / "items.parquet")
    assert config.ingest.merchandise == "is_merch"
    assert config.ingest.positive == ("quantity", "price")
    assert config.ingest.event_types == {"purchase": "purchase", "return": "cancel"}
    assert config.ingest.train_until is None
    counts = run(config, tmp_path / "out").counts
    assert counts["rows_in"] == 541_909
    assert counts["kept"] > 380_000
    assert counts["users"] > 4_300


@pytest.mark.parametrize("iso", [False, True])
def test_online_retail_as_one_csv_is_mapped_without_a_hand_edit(iso: bool, tmp_path: Path) -> None:
    folder = shop("online_retail", tmp_path)
    log = pd.read_parquet(folder / "events.parquet").head(20_000)
    titles = pd.read_parquet(folder / "items.parquet").set_index("item_id")["title"]
    time = pd.to_datetime(log["timestamp"], unit="s")
    days = time.dt.month.astype(str) + "/" + time.dt.day.astype(str) + "/" + time.dt.year.astype(str)
    table = pd.DataFrame(
        {
            "InvoiceNo": log["order_id"],
            "StockCode": log["item_id"],
            "Description": log["item_id"].map(titles),
            "Quantity": log["quantity"],
            "InvoiceDate": time if iso else days + " " + time.dt.hour.astype(str) + time.dt.strftime(":%M"),
            "UnitPrice": log["price"],
            "CustomerID": log["user_id"] if iso else log["user_id"].astype("float64"),
            "Country": log["country"],
        }
    )
    table.to_csv(folder / "retail.csv", index=False, encoding="utf-8" if iso else "cp1252")

    config = mapped(folder / "retail.csv")
    assert config.ingest.event_type == "purchase"
    assert config.ingest.timestamp_format == ("" if iso else "%m/%d/%Y %H:%M")
    assert config.ingest.cancelled is not None
    assert (config.ingest.cancelled.column, config.ingest.cancelled.pattern) == ("InvoiceNo", "^C")
    assert config.ingest.items_from_events
    assert config.ingest.positive == ("Quantity", "UnitPrice")
    assert config.ingest.columns.quantity == "Quantity"

    dataset = run(config, tmp_path / "out")
    reasons = dataset.counts["quarantined"]
    known = log["user_id"].notna()
    assert dataset.counts["rows_in"] == 20_000
    assert reasons["missing_user_id"] == (~known).sum()
    assert reasons["cancellation"] == (known & log["order_id"].str.startswith("C")).sum() - reasons_of_post(log, known)
    assert dataset.counts["kept"] > 10_000
    items = {row["item_id"]: row["title"] for row in dataset.items.to_pylist()}
    assert items["85123A"] == "WHITE HANGING HEART T-LIGHT HOLDER"
    assert not {"POST", "D", "M", "DOT", "BANK CHARGES"} & set(items)


def reasons_of_post(log: pd.DataFrame, known: pd.Series) -> int:
    """Cancellations of what is no merchandise, which are rejected as that."""
    return int((known & log["order_id"].str.startswith("C") & ~log["item_id"].str.contains("[0-9]")).sum())


@pytest.mark.parametrize("with_items", [False, True])
def test_three_hours_of_rees46_are_mapped_without_a_hand_edit(with_items: bool, tmp_path: Path) -> None:
    folder = shop("rees46", tmp_path)
    config = mapped(folder / "events.parquet", folder / "items.parquet" if with_items else None)
    assert config.ingest.columns.session_id == "session_id"
    assert config.ingest.items_from_events is not with_items
    assert config.ingest.category_separator == ("." if with_items else " > ")
    counts = run(config, tmp_path / "out").counts
    assert counts["rows_in"] == 17_434
    assert not counts["quarantined"]
    assert min(counts[part] for part in ("train", "valid", "test")) > 1000


# Times


@pytest.mark.parametrize(
    "layout",
    [
        "%d/%m/%Y %H:%M",
        "%m/%d/%Y %H:%M",
        "%d.%m.%Y %H:%M:%S",
        "%m/%d/%y %H:%M",
        "%d-%b-%y",
        "%Y/%m/%d %H:%M:%S",
        "%m %d, %Y",
        "%Y%m%d",
        "%m/%d/%Y %I:%M:%S %p",
        "%d/%b/%Y:%H:%M:%S %z",
    ],
)
def test_times_are_read_as_they_were_written(layout: str, tmp_path: Path) -> None:
    log = rows()
    written = with_times(log, layout)
    written.to_csv(tmp_path / "log.csv", index=False)
    config = mapped(tmp_path / "log.csv").ingest
    assert config.columns.timestamp == "when"
    read = [datetime.strptime(text, config.timestamp_format) for text in written["when"]]
    assert read == [datetime.strptime(text, layout) for text in written["when"]]


@pytest.mark.parametrize("months", [range(2, 3), range(1, 13)], ids=["in one month", "in a year"])
def test_the_order_of_the_log_tells_days_from_months(months: range, tmp_path: Path) -> None:
    when = [datetime(2021, month, day, tzinfo=UTC) for month in months for day in range(3, 12)]
    log = rows(len(when)).assign(when=when)
    for layout in ("%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M"):
        with_times(log, layout).to_csv(tmp_path / "log.csv", index=False)
        assert mapped(tmp_path / "log.csv").ingest.timestamp_format == layout
        assert "reads it as well" in inspect(tmp_path / "log.csv")


@pytest.mark.parametrize("scale", [1, 10**3, 10**9])
def test_numbers_are_times_by_name_whatever_their_unit(scale: int, tmp_path: Path) -> None:
    log = rows()
    micros = [round(moment.timestamp() * 1e6) for moment in log["when"]]
    log = log.assign(card=1_500_000_000 + log["user"], ts=[each * scale // 10**6 for each in micros])
    log.drop(columns="when").to_parquet(tmp_path / "log.parquet")
    config = mapped(tmp_path / "log.parquet")
    assert config.ingest.columns.timestamp == "ts"
    found = run(config, tmp_path / "out").sequences.timestamp
    assert sorted(found) == micros


def test_a_short_log_is_split_by_its_rows(tmp_path: Path) -> None:
    rows(300, timedelta(minutes=10)).to_csv(tmp_path / "log.csv", index=False)
    config = mapped(tmp_path / "log.csv")
    assert config.ingest.train_until is not None
    counts = run(config, tmp_path / "out").counts
    assert [counts[part] for part in ("train", "valid", "test")] == pytest.approx([240, 30, 30], abs=3)


def test_a_log_of_one_moment_is_not_split_by_time(tmp_path: Path) -> None:
    rows(50, timedelta(0)).to_csv(tmp_path / "log.csv", index=False)
    config = mapped(tmp_path / "log.csv")
    assert config.ingest.protocol == "leave_one_out"
    assert run(config, tmp_path / "out").counts["kept"] > 0


def test_nonsense_times_do_not_stretch_a_short_log(tmp_path: Path) -> None:
    log = rows(300, timedelta(minutes=10))
    log["ts"] = [round(moment.timestamp()) for moment in log.pop("when")]
    log.loc[[3, 4], "ts"] = [0, 4_000_000_000]
    log.to_csv(tmp_path / "log.csv", index=False)
    assert "from 2021-02-03" in inspect(tmp_path / "log.csv")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_end_of_a_long_log_counts_to_its_time(suffix: str, tmp_path: Path) -> None:
    log = rows(2000)
    path = tmp_path / f"log.csv{suffix}"
    log.to_csv(path, index=False)
    text = inspect(path, sample_rows=100)
    assert f"to {log['when'].iloc[-1]:%Y-%m-%d %H:%M} UTC, as sampled" in text


# Columns


@pytest.mark.parametrize(
    "user,item,time,kind",
    [
        ("visitorid", "itemid", "timestamp", "event"),
        ("Customer ID", "Product ID", "Event Time", "Event Type"),
        ("uid", "sku", "ts", "action"),
        ("reviewerID", "asin", "unixReviewTime", "behavior_type"),
        ("shopper", "article_id", "created_at", "type"),
    ],
)
def test_columns_are_known_by_the_names_of_many_shops(
    user: str, item: str, time: str, kind: str, tmp_path: Path
) -> None:
    log = rows().assign(kind=["PageView", "add-to-cart", "orders"] * 100, score=1.5)
    log = log.rename(columns={"user": user, "product": item, "when": time, "kind": kind})
    log.sample(frac=1, axis=1, random_state=1).to_parquet(tmp_path / "log.parquet")
    config = mapped(tmp_path / "log.parquet").ingest
    columns = config.columns
    assert (columns.user_id, columns.item_id, columns.timestamp, columns.event_type) == (user, item, time, kind)
    assert config.event_types == {"PageView": "view", "add-to-cart": "cart", "orders": "purchase"}


@pytest.mark.parametrize(
    "name,rule",
    [
        ("click", "view"),
        ("Product View", "view"),
        ("add_to_basket", "cart"),
        ("carts", "cart"),
        ("transaction", "purchase"),
        ("review", "purchase"),
        ("remove_from_cart", "drop"),
        ("Refunds", "cancel"),
        ("wishlist", "keep"),
        ("heartbeat", None),
        ("", None),
    ],
)
def test_well_known_event_types(name: str, rule: str | None) -> None:
    assert event_rule(name) == rule


def test_an_unknown_event_type_is_kept_and_asked_about(tmp_path: Path) -> None:
    log = rows().assign(event_type=["view"] * 299 + ['say "hi"'])
    log.to_parquet(tmp_path / "log.parquet")
    config = mapped(tmp_path / "log.parquet")
    assert config.ingest.event_types == {"view": "view", 'say "hi"': "keep"}
    assert "1 row; not a well-known name" in inspect(tmp_path / "log.parquet")
    assert run(config, tmp_path / "out").counts["events"]['say "hi"'] == 1


def test_event_types_are_told_by_their_words_where_their_column_has_a_name_of_its_own(tmp_path: Path) -> None:
    rows().assign(what=["view", "cart", "buy"] * 100).to_parquet(tmp_path / "log.parquet")
    assert mapped(tmp_path / "log.parquet").ingest.columns.event_type == "what"


def test_without_event_types_the_log_s_name_and_columns_tell(tmp_path: Path) -> None:
    for name, extra, expected in [
        ("clicks", {}, "view"),
        ("log", {"Quantity": 1}, "purchase"),
        ("log", {}, "view"),
        ("order-lines", {}, "purchase"),
    ]:
        rows().assign(**extra).to_csv(tmp_path / f"{name}.csv", index=False)
        assert mapped(tmp_path / f"{name}.csv").ingest.event_type == expected


def test_the_title_of_a_review_is_not_its_item_s(tmp_path: Path) -> None:
    log = rows().assign(title=[f"My opinion no. {i}" for i in range(300)], brand="Acme")
    log.to_csv(tmp_path / "log.csv", index=False)
    config = mapped(tmp_path / "log.csv")
    assert config.ingest.item_columns.title == "product"
    assert config.ingest.item_columns.brand == "brand"
    run(config, tmp_path / "out")


def test_a_session_takes_the_place_of_a_user_that_is_not_named(tmp_path: Path) -> None:
    rows().rename(columns={"user": "session_id"}).to_csv(tmp_path / "log.csv", index=False)
    config = mapped(tmp_path / "log.csv")
    assert config.ingest.columns.user_id == "session_id"
    assert config.ingest.columns.session_id == ""
    assert run(config, tmp_path / "out").counts["users"] == 40


def test_a_column_by_the_name_that_is_looked_for_but_of_other_content_is_left_out(tmp_path: Path) -> None:
    rows().assign(value="high", price="$ 5").to_csv(tmp_path / "log.csv", index=False)
    config = mapped(tmp_path / "log.csv")
    assert (config.ingest.columns.value, config.ingest.columns.price) == ("", "")
    run(config, tmp_path / "out")


@pytest.mark.parametrize("gone,role", [("user", "user_id"), ("product", "item_id"), ("when", "timestamp")])
def test_a_role_that_nothing_plays_is_said_with_what_was_seen(gone: str, role: str, tmp_path: Path) -> None:
    log = rows().drop(columns=gone).assign(weather="fine", mood=["good", "bad"] * 150)
    if gone == "when":
        log["user"] += 1_500_000_000  # which could be seconds since 1970
    log.to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(InputError) as caught:
        inspect(tmp_path / "log.csv")
    assert role in str(caught.value)
    assert all(column in caught.value.came for column in log.columns)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@settings(max_examples=8, deadline=None)
@given(st.dictionaries(names.filter(lambda name: fold(name) == ""), names, max_size=4))
def test_whatever_else_a_log_has_its_mapping_is_read(
    tmp_path_factory: pytest.TempPathFactory, extra: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    extra = {name: text for name, text in extra.items() if name.casefold() == name}
    rows(60).assign(event=["view", *extra.values()][-1], **extra).to_parquet(folder / "log.parquet")
    columns = mapped(folder / "log.parquet").ingest.columns
    assert (columns.user_id, columns.item_id, columns.timestamp) == ("user", "product", "when")
    assert columns.event_type == "event"


# The catalogue


def write_items(path: Path, **columns: Any) -> Path:
    pd.DataFrame({"sku": range(50, 80), **columns}).to_csv(path, index=False)
    return path


def test_items_are_joined_by_their_values(tmp_path: Path) -> None:
    rows().assign(item_id=range(300)).to_csv(tmp_path / "log.csv", index=False)
    items = write_items(tmp_path / "items.csv", Name=[f"Lamp {i}" for i in range(30)], dept="Home/Light")
    config = mapped(tmp_path / "log.csv", items).ingest
    assert config.columns.item_id == "product"
    assert (config.item_columns.item_id, config.item_columns.title) == ("sku", "Name")
    assert config.items == Path("items.csv")


@pytest.mark.parametrize("separator", [" > ", ">", ".", "|", "/"])
def test_what_splits_a_category_is_seen(separator: str, tmp_path: Path) -> None:
    rows().to_csv(tmp_path / "log.csv", index=False)
    (tmp_path / "shop").mkdir()
    category = separator.join(["Home", "Light", "Lamp"])
    items = write_items(tmp_path / "shop/items.csv", title="A lamp, e.g. a red one", category=category)
    assert mapped(tmp_path / "log.csv", items).ingest.category_separator == separator


def test_a_catalogue_of_other_items_is_refused(tmp_path: Path) -> None:
    rows().to_csv(tmp_path / "log.csv", index=False)
    pd.DataFrame({"sku": ["x", "y"], "title": ["A", "B"]}).to_csv(tmp_path / "items.csv", index=False)
    with pytest.raises(InputError, match="names the items"):
        inspect(tmp_path / "log.csv", tmp_path / "items.csv")


# Files


def test_text_is_read_in_its_encoding_and_by_its_delimiter(tmp_path: Path) -> None:
    log = rows().assign(Description="Café crème")
    log.to_csv(tmp_path / "log.csv", index=False, sep=";", encoding="latin-1")
    config = mapped(tmp_path / "log.csv")
    assert config.ingest.text.encoding == "cp1252"
    assert config.ingest.text.delimiter == ";"
    dataset = run(config, tmp_path / "out")
    assert set(dataset.items["title"].to_pylist()) == {"Café crème"}


def test_a_file_without_a_header_gets_names(tmp_path: Path) -> None:
    rows().to_csv(tmp_path / "u.data.tsv", index=False, header=False, sep="\t")
    config = mapped(tmp_path / "u.data.tsv")
    assert config.ingest.text.header == ("column_1", "column_2", "column_3")
    assert (config.ingest.columns.user_id, config.ingest.columns.item_id) == ("column_1", "column_2")
    assert run(config, tmp_path / "out").counts["rows_in"] == 300


def test_json_lines_with_lists_of_events_are_unfolded(tmp_path: Path) -> None:
    log = rows()
    lines = [
        {
            "visitor": int(user),
            "hits": [{"sku": int(row["product"]), "time": row["when"].isoformat()} for _, row in own.iterrows()],
        }
        for user, own in log.groupby("user")
    ]
    (tmp_path / "log.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    config = mapped(tmp_path / "log.jsonl.gz")
    assert config.ingest.text.explode == "hits"
    assert run(config, tmp_path / "out").counts["rows_in"] == 300


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_folder_and_its_levels_are_read(form: str, tmp_path: Path) -> None:
    log = rows()
    for day, part in log.groupby(log["when"].dt.date):
        folder = tmp_path / "log" / f"dt={day}"
        folder.mkdir(parents=True)
        part = part.drop(columns="when")
        part.to_csv(folder / "part.csv", index=False) if form == "csv" else part.to_parquet(folder / "part.parquet")
    config = mapped(tmp_path / "log")
    assert config.ingest.columns.timestamp == "dt"
    counts = run(config, tmp_path / "out").counts
    assert counts["rows_in"] == 300
    assert not counts["quarantined"]


def test_files_of_several_kinds_are_refused(tmp_path: Path) -> None:
    rows().to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame({"sku": [1], "title": ["A"]}).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(InputError, match="several kinds"):
        inspect(tmp_path / "*.csv")


@pytest.mark.parametrize("name,content", [("log.parquet", b"PAR1"), ("log.csv", b""), ("log.csv.gz", b"no gzip")])
def test_a_file_that_cannot_be_read_is_said(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="log"):
        inspect(tmp_path / name)
    with pytest.raises(InputError, match="is not there"):
        inspect(tmp_path / "other.csv")
