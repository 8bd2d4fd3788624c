"""Configs: where a value comes from, and what is said when it does not fit."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from recsys.config import STAGES, PipelineConfig, _parse_value, load_config, to_toml, write_config
from recsys.errors import InputError

TOML = """
name = "corner-shop"
data = "/mnt/shop"
seed = 3

[ingest]
events = "log.parquet"

[ingest.event_types]
addtocart = "cart"

[distill]
epochs = 7
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "corner.toml"
    path.write_text(TOML)
    return path


def test_the_file_is_read_over_the_defaults(file: Path) -> None:
    config = load_config(file, env={})
    assert config.name == "corner-shop"
    assert config.distill.epochs == 7
    assert config.ingest.event_types == {"addtocart": "cart"}
    assert config.distill.dim == PipelineConfig.model_fields["distill"].annotation().dim  # type: ignore[misc]


def test_name_and_run_folder_follow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "corner.toml"
    path.write_text('data = "x"\n')
    config = load_config(path, env={})
    assert (config.name, config.run_dir) == ("corner", Path("runs/corner"))
    assert load_config(path, ["name=kiosk"], env={}).run_dir == Path("runs/kiosk")


def test_the_environment_is_stronger_than_the_file_and_set_is_stronger_than_both(file: Path) -> None:
    env = {"RECSYS_DISTILL__EPOCHS": "5", "RECSYS_DATA": "/elsewhere", "PATH": "/bin", "RECSYS_DEBUG": "1"}
    config = load_config(file, env=env)
    assert (config.distill.epochs, config.data, config.seed) == (5, Path("/elsewhere"), 3)
    config = load_config(file, ["distill.epochs=2", "seed=9", "distill.epochs=4"], env=env)
    assert (config.distill.epochs, config.data, config.seed) == (4, Path("/elsewhere"), 9)


def test_the_real_environment_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_SEED", "11")
    assert load_config(file).seed == 11


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1.5e-3", -1.5e-3),
        ("true", True),
        ("[5, 10]", [5, 10]),
        ('"3"', "3"),
        ("runs/a b", "runs/a b"),
        ("", ""),
        ("a = 3", "a = 3"),
        ("1\nother = 2", "1\nother = 2"),
        ("True", "True"),
    ],
)
def test_a_value_is_toml_where_it_can_be(text: str, value: Any) -> None:
    parsed = _parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


toml_values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(toml_values)
def test_every_toml_value_can_be_given_by_set(value: Any) -> None:
    import tomli_w

    text = tomli_w.dumps({"value": value}).removeprefix("value = ").removesuffix("\n")
    assert _parse_value(text) == value


@given(st.text())
def test_no_text_given_by_set_is_an_error_or_sets_another_key(text: str) -> None:
    parsed = _parse_value(text)
    if parsed is not text:
        assert tomllib.loads(f"value = {text.strip()}") == {"value": parsed}


UNFIT = {
    "unknown key": (["distill.epoch=3"], ["unknown key 'epoch' in [distill]", "--set distill.epoch=3", "'epochs'"]),
    "unknown table": (["distil.epochs=3"], ["unknown key 'distil' at the top level", "did you mean 'distill'?"]),
    "unknown key in a table of a table": (["ingest.columns.usr_id=u"], ["'usr_id' in [ingest.columns]", "'user_id'"]),
    "unknown key in a table by name": (
        ["distill.losses.listwise_kl.wieght=1"],
        ["'wieght' in [distill.losses.listwise_kl]", "'weight'"],
    ),
    "nothing near": (
        ["distill.xyzzy=1"],
        ["unknown key 'xyzzy'", "one of batch_positions, by_segment, confidence", "remove it"],
    ),
    "wrong type": (["distill.epochs=many"], ["distill.epochs = 'many' cannot be used", "integer"]),
    "out of bounds": (["distill.epochs=0"], ["distill.epochs = 0 cannot be used", "greater than or equal to 1"]),
    "a value for a table": (["distill=3"], ["distill = 3 cannot be used"]),
    "a table for a value": (["distill.epochs.x=3"], ["[distill.epochs] cannot be used", "integer"]),
    "wrong choice": (["precision=fp8"], ["precision = 'fp8' cannot be used", "'bf16'"]),
    "wrong map": (["ingest.event_types.click=viewed"], ["ingest.event_types.click = 'viewed'", "'view'"]),
    "keys that do not go together": (["ingest.train_until=2026-01-01"], ["[ingest] cannot be used", "together"]),
    "no key and value": (["distill.epochs"], ["--set 'distill.epochs' has no key and value"]),
    "no key": (["=3"], ["has no key and value"]),
    "device": (["device=tpu"], ["device = 'tpu' cannot be used", '"cuda:1"']),
    "memory": (["memory_limit=lots"], ["memory_limit = 'lots'", '"2GB"']),
    "two at once": (["distill.epoch=3", "seed=x"], ["2 keys cannot be used", "'epoch'", "seed = 'x'"]),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_named_with_its_place(file: Path, case: str) -> None:
    overrides, said = UNFIT[case]
    with pytest.raises(InputError) as caught:
        load_config(file, overrides, env={})
    for words in said:
        assert words in str(caught.value)


def test_a_fault_is_laid_to_where_it_was_set(file: Path) -> None:
    file.write_text(TOML + "\n[index]\ntyp = 3\n")
    with pytest.raises(InputError, match=rf"unknown key 'typ' in \[index\] \({file}\)"):
        load_config(file, env={})
    file.write_text(TOML)
    with pytest.raises(InputError, match="the environment variable RECSYS_DISTIL__EPOCHS"):
        load_config(file, env={"RECSYS_DISTIL__EPOCHS": "3"})
    with pytest.raises(InputError, match="the environment variable RECSYS_SEED"):
        load_config(file, env={"RECSYS_SEED": "x"})


def test_a_missing_key_is_named_with_the_ways_to_give_it(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("seed = 1\n")
    with pytest.raises(InputError, match=r"the key 'data' is missing[^$]*--set data=…[^$]*RECSYS_DATA=…"):
        load_config(path, env={})


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_config(tmp_path / "nothing.toml", env={})
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_config(tmp_path, env={})
    broken = tmp_path / "broken.toml"
    broken.write_text("data = \n")
    with pytest.raises(InputError, match=r"is not TOML: .*line 1"):
        load_config(broken, env={})
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not TOML"):
        load_config(broken, env={})


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["use_teacher=false", "seed=5"],
        ["ingest.train_until=2026-04-01", "ingest.valid_until=2026-04-05T12:00:00+02:00"],
        ['recommend.exclude_seen=["purchase"]', 'recommend.users=["u1"]', "recommend.as_of=2026-05-01T00:00:00Z"],
        ['ingest.positive=["quantity"]', "ingest.merchandise=is_product", "evaluate.ks=[1, 10]"],
    ],
)
def test_the_resolved_config_reads_as_the_same_config(file: Path, tmp_path: Path, overrides: list[str]) -> None:
    config = load_config(file, overrides, env={})
    write_config(config, tmp_path / "run" / "config.toml")
    assert load_config(tmp_path / "run" / "config.toml", env={}) == config
    assert tomllib.loads(to_toml(config)).keys() >= {"name", "data", "run_dir", *STAGES}


def stage_configs(model: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [
        each
        for field in model.model_fields.values()
        for each in (field.annotation, *get_args(field.annotation))
        if isinstance(each, type) and issubclass(each, BaseModel)
    ]
    return [model, *(found for each in inner for found in stage_configs(each))]


@pytest.mark.parametrize("model", stage_configs(PipelineConfig), ids=lambda model: model.__name__)
def test_every_config_is_frozen_refuses_unknown_keys_and_describes_its_keys(model: type[BaseModel]) -> None:
    assert model.model_config.get("extra") == "forbid"
    assert model.model_config.get("frozen") is True
    assert [name for name, field in model.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "pipelines").glob("*.toml")), ids=lambda p: p.name
)
def test_the_pipelines_that_come_with_recsys_are_valid(path: Path) -> None:
    assert load_config(path, ["data=/mnt/shop"], env={}).data == Path("/mnt/shop")


def test_configs_need_no_heavy_import() -> None:
    code = "import sys, recsys.config; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "ibis", "duckdb", "faiss", "pandas", "pyarrow", "numpy"} & set(loaded)
