"""The pipeline's configuration: the stages' own configs, composed; TOML in, resolved TOML kept beside every run.

A value is taken, the later the stronger, from the config class's default, the TOML file, the environment
(`RECSYS_DATA=…`, `RECSYS_DISTILL__EPOCHS=3`) and `--set distill.epochs=3`.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from recsys.errors import InputError
from recsys.evaluation.config import EvaluateConfig, TuningConfig
from recsys.ingest.config import IngestConfig
from recsys.nightly.config import NightlyConfig
from recsys.ranking.config import RankConfig, RecommendConfig
from recsys.retrieval.config import IndexConfig
from recsys.runtime import Runtime
from recsys.student.config import DistillConfig
from recsys.teacher.config import ScoreConfig, TeachConfig

# The stages in their order, each with the artifact that it writes: a folder of the run folder.
STAGES: Final[Mapping[str, str]] = {
    "ingest": "dataset",
    "teach": "teacher",
    "score": "soft_labels",
    "distill": "student",
    "index": "index",
    "rank": "ranker",
    "recommend": "recommendations",
    "evaluate": "report",
}

CONFIG_FILE: Final = "config.toml"
# The link in a shop's run folder to the night that is served; see `recsys.nightly.night`.
LIVE: Final = "live"
ENV_PREFIX: Final = "RECSYS_"
# Variables of this prefix that are switches of the command line and not config keys.
ENV_SWITCHES: Final = frozenset({"RECSYS_DEBUG"})

_DEFAULTS = Runtime()

M = TypeVar("M", bound=BaseModel)


class PipelineConfig(BaseModel):
    """A whole run: where the data lies, where the artifacts go, and every stage's config.

    Relative paths are taken from the working directory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="what the run is called; the TOML file's name where it is not given", min_length=1)
    data: Path = Field(description="folder of the shop's logs and catalogue; paths in [ingest] start here")
    run_dir: Path = Field(description="folder that the artifacts are written to; runs/<name> where it is not given")
    seed: int = Field(_DEFAULTS.seed, description="decides every random choice", ge=0, lt=2**63)
    device: str = Field(
        _DEFAULTS.device,
        description='"auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1"',
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description='what models compute in; "auto" is bf16 where the hardware multiplies it'
    )
    threads: int = Field(_DEFAULTS.threads, description="CPU threads; 0 takes all", ge=0)
    memory_limit: str = Field(
        _DEFAULTS.memory_limit,
        description='how much ingestion may hold before it spills to disk, e.g. "2GB"',
        pattern=r"^\d+(\.\d+)? ?([KMGT]i?B)$",
    )
    use_teacher: bool = Field(True, description="false leaves out teach and score: the student learns from the log")
    use_ranker: bool = Field(True, description="false leaves out rank: lists are the student's, in its order")

    ingest: IngestConfig = Field(default_factory=IngestConfig, description="logs and catalogue to a dataset")
    teach: TeachConfig = Field(default_factory=TeachConfig, description="fine-tuning of the cross-encoder")
    score: ScoreConfig = Field(default_factory=ScoreConfig, description="the teacher's scores, kept as soft labels")
    distill: DistillConfig = Field(default_factory=DistillConfig, description="training of the two-tower student")
    index: IndexConfig = Field(default_factory=IndexConfig, description="the item index")
    rank: RankConfig = Field(default_factory=RankConfig, description="sources of candidates, and what orders them")
    recommend: RecommendConfig = Field(default_factory=RecommendConfig, description="the lists that are written")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="the report")
    baselines: TuningConfig = Field(
        default_factory=TuningConfig, description="the search for the baselines' best parameters (`recsys baselines`)"
    )
    nightly: NightlyConfig = Field(default_factory=NightlyConfig, description="the nightly job (`recsys nightly`)")

    def runtime(self, *, progress: bool = True) -> Runtime:
        """The options that every stage takes."""
        return Runtime(
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            threads=self.threads,
            memory_limit=self.memory_limit,
            progress=progress,
        )

    def stages(self) -> list[str]:
        """Names of the stages that this config runs, in order."""
        left_out = {
            *(() if self.use_teacher else ("teach", "score")),
            *(() if self.use_ranker else ("rank",)),
        }
        return [stage for stage in STAGES if stage not in left_out]


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, env: Mapping[str, str] | None = None
) -> PipelineConfig:
    """Read a config: the TOML file, then the environment, then `overrides`, the later the stronger.

    Args:
        path: a TOML file with the keys of `PipelineConfig` and one table per stage.
        overrides: `key=value` or `stage.key=value`; a value that is TOML is taken as that, any other as a string.
        env: the environment; `os.environ` by default.

    Raises:
        InputError: the file cannot be read, a key is unknown, or a value does not fit; it names the key and where it
            was set.
    """
    tree, origins = _read_toml(Path(path)), {}
    for keys, value, origin in [*_from_env(os.environ if env is None else env), *map(_parse_override, overrides)]:
        _insert(tree, keys, value)
        origins[keys] = origin
    tree.setdefault("name", Path(path).stem)
    tree.setdefault("run_dir", f"runs/{tree['name']}")
    return validated(PipelineConfig, tree, source=str(path), origins=origins)


def validated(
    model: type[M], tree: dict[str, Any], *, source: str, origins: Mapping[tuple[str, ...], str] | None = None
) -> M:
    """Make a config from plain values; what does not fit is said in the words of someone who wrote them.

    Args:
        model: the config class.
        tree: keys and values, tables as dicts.
        source: where the values stood, for messages.
        origins: for keys that were set elsewhere, where.

    Raises:
        InputError: a key is unknown or missing, or a value does not fit.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = _explain(error, model, tree, source, origins or {})
    if len(problems) == 1:
        raise problems[0]
    raise InputError(f"{source}: {len(problems)} keys cannot be used\n" + "\n".join(map(str, problems)))


def to_toml(config: PipelineConfig) -> str:
    """Every key with its value as TOML, from which `load_config` makes the same config again."""
    import tomli_w

    # TOML has no null: a key that is None is left out, which reads as its default.
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def write_config(config: PipelineConfig, path: Path) -> None:
    """Write `to_toml(config)`, so that `path` holds the old config or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(to_toml(config), encoding="utf-8")
    temporary.replace(path)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"the config {path} cannot be read: {error.strerror}",
            expected="a TOML file, such as pipelines/sample.toml",
            do="correct the path given by -c",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not TOML: {error}", expected="lines like `key = value` under [stage] headings", do="correct it"
        ) from None


def _from_env(env: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    for variable, text in sorted(env.items()):
        if variable.startswith(ENV_PREFIX) and variable not in ENV_SWITCHES:
            keys = tuple(variable.removeprefix(ENV_PREFIX).lower().split("__"))
            yield keys, _parse_value(text), f"the environment variable {variable}"


def _variable(dotted: str) -> str:
    return ENV_PREFIX + dotted.replace(".", "__").upper()


def _parse_override(override: str) -> tuple[tuple[str, ...], Any, str]:
    key, equals, text = override.partition("=")
    keys = tuple(part.strip() for part in key.split("."))
    if not equals or not all(keys):
        raise InputError(
            f"--set {override!r} has no key and value",
            expected="key=value or stage.key=value, e.g. --set distill.epochs=3",
            do="write it so",
        )
    return keys, _parse_value(text), f"--set {override}"


def _parse_value(text: str) -> Any:
    """A TOML value where the text is one, else the text itself: `3`, `true`, `[1, 2]` and `"3"`, but also `runs/a`."""
    try:
        parsed = tomllib.loads(f"value = {text.strip()}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _insert(tree: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}  # where a plain value stood, validation says what the key should have been
        tree = tree[key]
    tree[keys[-1]] = value


def _explain(
    error: ValidationError,
    model: type[BaseModel],
    tree: dict[str, Any],
    source: str,
    origins: Mapping[tuple[str, ...], str],
) -> list[InputError]:
    problems: dict[tuple[str | int, ...], InputError] = {}
    for detail in error.errors(include_url=False):
        location = detail["loc"] if detail["type"] == "missing" else _part_in(tree, detail["loc"])
        origin = next((where for keys, where in origins.items() if _same_branch(keys, location)), source)
        problems.setdefault(location, _explain_one(detail, model, location, origin))
    return list(problems.values())


def _part_in(tree: Any, location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The part of pydantic's location that the user wrote: beyond it stands the union's member that was tried."""
    for depth, key in enumerate(location):
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            return location[:depth]
    return location


def _same_branch(keys: tuple[str, ...], location: tuple[str | int, ...]) -> bool:
    depth = min(len(keys), len(location))
    return keys[:depth] == location[:depth]


def _explain_one(
    detail: ErrorDetails, root: type[BaseModel], location: tuple[str | int, ...], origin: str
) -> InputError:
    *parents, key = location
    table = ".".join(map(str, parents))
    dotted = ".".join(map(str, location))
    model = _model_at(root, parents)
    known = sorted(model.model_fields) if model else []
    where = f"in [{table}]" if table else "at the top level"
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(key), known, n=1)
        return InputError(
            f"unknown key {key!r} {where} ({origin})",
            expected=f"one of {', '.join(known)}",
            do=f"did you mean {near[0]!r}?" if near else "remove it, or correct its name",
        )
    field = model.model_fields.get(str(key)) if model else None
    if detail["type"] == "missing":
        return InputError(
            f"the key {key!r} is missing {where} ({origin})",
            expected=field.description or "" if field else "",
            do=f"add it to the file, or set it by --set {dotted}=… or {_variable(dotted)}=…",
        )
    reason = detail["msg"].removeprefix("Value error, ")
    value = f"[{dotted}]" if isinstance(detail["input"], dict) else f"{dotted} = {detail['input']!r}"
    return InputError(
        f"{value} cannot be used ({origin}): {reason[:1].lower()}{reason[1:]}",
        expected=(field.description or "") if field else "",
        do="correct the value",
    )


def _model_at(root: type[BaseModel], keys: Sequence[str | int]) -> type[BaseModel] | None:
    """The config class whose keys stand under `keys`, None where they lead to a plain value."""
    model: type[BaseModel] | None = root
    named: type[BaseModel] | None = None  # in a dict of models, the one that stands under any name
    for key in keys:
        if named:
            model, named = named, None
            continue
        field = model.model_fields.get(str(key)) if model else None
        types = (field.annotation, *get_args(field.annotation)) if field else ()
        found = next((each for each in types if isinstance(each, type) and issubclass(each, BaseModel)), None)
        model, named = (None, found) if field and get_origin(field.annotation) is dict else (found, None)
    return model
