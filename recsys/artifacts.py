"""A stage's output folder: written whole or not at all, fingerprinted, opened by type.

An artifact is a folder of Parquet, safetensors, FAISS and JSON files beside a `manifest.json`. Its `Recipe` says all
that decides its content (config, inputs, seed, code); the recipe's fingerprint tells whether the folder on disk is
still the right one. A build happens in `<run>/work/<name>-<fingerprint>/`, which survives a kill, so that a long
stage can resume there. When it is done the folder is renamed to `<run>/versions/` and the symbolic link
`<run>/<name>` is swapped to it in one step: a reader sees the old artifact or the new one, never a mix.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel

from recsys import __version__, distributed
from recsys.errors import InputError, RecsysError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MANIFEST = "manifest.json"
# Raised when files of any artifact, or what stands in them, change so that this code cannot read earlier ones.
FORMAT_VERSION = 2


def hash_file(path: Path) -> str:
    """Content hash of one file, read in blocks (blake2b, 16 bytes, hex)."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@cache
def code_version(*modules: str) -> str:
    """Hash of the source of the named modules and packages, without importing them.

    A change in any of them makes the artifacts that they wrote stale; a change elsewhere does not.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(modules):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise RecsysError(f"no source found for module {name!r}")
        origin = Path(spec.origin)
        files = sorted(origin.parent.glob("*.py")) if origin.name == "__init__.py" else [origin]
        for file in files:
            digest.update(f"{name}/{file.name}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Recipe:
    """Everything that decides an artifact's content.

    Attributes:
        kind: what the artifact is ("dataset", "teacher", …); `Artifact` subclasses open only their own kind.
        config: the stage's config, resolved.
        inputs: fingerprint of each input, by name.
        seed: the run's seed.
        modules: the modules and packages whose source made it.
    """

    kind: str
    config: BaseModel
    inputs: Mapping[str, str]
    seed: int
    modules: Sequence[str]

    @property
    def fingerprint(self) -> str:
        """Hex digest that is equal exactly when everything above is equal."""
        content = {
            "format": FORMAT_VERSION,
            "kind": self.kind,
            "config": self.config.model_dump(mode="json"),
            "inputs": dict(sorted(self.inputs.items())),
            "seed": self.seed,
            "code": self.code,
        }
        text = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def code(self) -> str:
        """Digest of the source that makes it."""
        return code_version("recsys.schema", *self.modules)

    def is_current(self, out: Path) -> bool:
        """Whether `out` holds an artifact that this recipe would only make again."""
        try:
            manifest = json.loads((out / MANIFEST).read_text())
        except (OSError, ValueError):
            return False
        return bool(manifest.get("fingerprint") == self.fingerprint)

    @contextmanager
    def build(self, out: Path) -> Iterator[Draft]:
        """Write the artifact: yields a `Draft`, publishes its folder at `out` when the block ends without an error.

        After an error or a kill, `out` is as it was and the draft's folder stays, so that the same recipe can resume.
        Where several processes build together (`recsys.distributed`), the first one's draft is published; the others
        read its scratch folder, write to a folder that is thrown away, and leave when it is published.
        """
        work_root, versions = out.parent / "work", out.parent / "versions"
        folder = work_root / f"{out.name}-{self.fingerprint[:16]}"
        if distributed.rank():
            with tempfile.TemporaryDirectory(prefix="recsys-") as thrown_away:
                yield Draft(Path(thrown_away), shared=folder / "scratch")
                distributed.barrier()
            return
        folder.mkdir(parents=True, exist_ok=True)
        versions.mkdir(exist_ok=True)
        draft = Draft(folder)
        with _locked(work_root / f"{out.name}.lock", out):
            for leftover in folder.iterdir():  # of a killed build; only its scratch folder is worth keeping
                if leftover != draft.scratch:
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            started = time.perf_counter()
            yield draft
            if draft.scratch.exists():
                shutil.rmtree(draft.scratch)
            manifest = {
                "kind": self.kind,
                "fingerprint": self.fingerprint,
                "format": FORMAT_VERSION,
                "recsys": __version__,
                "code": self.code,
                "seed": self.seed,
                "config": self.config.model_dump(mode="json"),
                "inputs": dict(self.inputs),
                "counts": draft.counts,
                "info": draft.info,
                "seconds": round(time.perf_counter() - started, 3),
                "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "files": {
                    str(path.relative_to(folder)): path.stat().st_size
                    for path in sorted(folder.rglob("*"))
                    if path.is_file()
                },
            }
            write_json(folder / MANIFEST, manifest)
            _sync_tree(folder)
            _publish(folder, out, versions)
            # Drafts of other fingerprints were left by configs that no longer stand.
            for stale in work_root.glob(f"{out.name}-*"):
                shutil.rmtree(stale, ignore_errors=True)
        distributed.barrier()


@dataclass
class Draft:
    """An artifact while it is written.

    Attributes:
        path: the folder to write files into.
        counts: numbers that the manifest keeps (rows, users, …).
        info: anything else, JSON-able, that the manifest keeps.
        shared: the scratch folder of the process that publishes, where that is another one.
    """

    path: Path
    counts: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    shared: Path | None = None

    @property
    def scratch(self) -> Path:
        """Folder for checkpoints and spill files: kept while the stage can be resumed, never published."""
        return self.shared or self.path / "scratch"


class Artifact:
    """A published artifact, opened read-only. Subclasses name their `kind` and add typed access to the files."""

    kind: ClassVar[str]
    stage: ClassVar[str]  # the verb that writes it, for error messages

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the artifact at `path`.

        Raises:
            InputError: nothing is there, the files are not those that the manifest lists, or it is of another kind or
                format.
        """
        # Resolved once, so that all files read later belong to one version even when the link is swapped meanwhile.
        folder = Path(path).resolve()
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
        except FileNotFoundError:
            raise InputError(
                f"no {cls.kind} at {path}",
                expected=f"a folder that `recsys {cls.stage}` wrote",
                do=f"run `recsys {cls.stage}` (or `recsys run`) first, or correct the path",
            ) from None
        except ValueError as error:
            raise InputError(
                f"{path}/{MANIFEST} is not JSON: {error}",
                expected="the manifest as it was written",
                do=f"write the artifact again: `recsys run --from {cls.stage}`",
            ) from None
        if manifest.get("kind") != cls.kind:
            raise InputError(
                f"{path} holds a {manifest.get('kind')!r} artifact",
                expected=f"a {cls.kind!r} artifact",
                do="correct the path",
            )
        if manifest.get("format") != FORMAT_VERSION:
            raise InputError(
                f"{path} was written in format {manifest.get('format')}, by recsys {manifest.get('recsys')}",
                expected=f"format {FORMAT_VERSION}, which recsys {__version__} reads and writes",
                do=f"write the artifact again: `recsys run --from {cls.stage}`",
            )
        for name, size in manifest["files"].items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != size:
                raise InputError(
                    f"{path}/{name} is missing or truncated",
                    expected=f"{size} bytes",
                    do=f"write the artifact again: `recsys run --from {cls.stage}`",
                )
        return cls(folder, manifest)

    @property
    def fingerprint(self) -> str:
        """Digest of all that made this artifact."""
        return str(self.manifest["fingerprint"])

    @property
    def counts(self) -> dict[str, Any]:
        """The numbers that the stage counted."""
        return dict(self.manifest["counts"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {self.counts})"


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that `path` holds the old content or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def create_npy(path: Path, *, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.memmap[Any, Any]:
    """A `.npy` file of zeros, opened to be filled in place; larger than memory if need be.

    Raises:
        OSError: the disk has no room for it. Room is taken at once, because the kernel kills a process (SIGBUS) that
            writes to a memory map for which there is none.
    """
    import numpy as np

    array = np.lib.format.open_memmap(path, mode="w+", shape=shape, dtype=dtype)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def save_npy(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as `.npy`; `np.save` says of a full disk only that fewer numbers were written.

    Raises:
        OSError: the disk has no room for it.
    """
    target = create_npy(path, shape=array.shape, dtype=array.dtype)
    target[...] = array
    target.flush()


@contextmanager
def _locked(path: Path, out: Path) -> Iterator[None]:
    """Hold the only right to write `out`. The kernel drops the lock with the process, so it is never stale."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecsysError(
                f"another process is writing {out}\n  to do:    wait until it ends, or write to another folder"
            ) from None
        yield


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _publish(folder: Path, out: Path, versions: Path) -> None:
    """Rename the finished folder into `versions`, swap the link, then drop all but it and the version before it.

    The version before stays for readers that resolved the link just before the swap.
    """
    if out.exists() and not out.is_symlink():
        raise InputError(
            f"{out} is a folder that recsys did not write",
            expected="nothing there, or an earlier artifact's link",
            do="move it away, or write to another folder",
        )
    target = versions / folder.name
    previous = out.resolve() if out.is_symlink() else None
    if target.exists():  # a forced rebuild of the same recipe
        target = versions / f"{folder.name}-{time.time_ns():x}"
    folder.rename(target)
    link = out.with_name(f".{out.name}.{os.getpid()}.link")
    link.unlink(missing_ok=True)
    link.symlink_to(target.relative_to(out.parent))
    link.replace(out)
    for version in versions.glob(f"{out.name}-*"):
        if version.name not in (target.name, previous and previous.name):
            shutil.rmtree(version, ignore_errors=True)
