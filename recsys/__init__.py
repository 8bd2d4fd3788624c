"""recsys: an end-to-end recommender for online shops.

>>> import recsys
>>> run = recsys.open_run("runs/sample")  # doctest: +SKIP
>>> run.recommend(history=["P00121", "P01875"], k=5)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys.api import Run, open_run
    from recsys.config import PipelineConfig, load_config

__version__ = "0.1.0"
__all__ = ["PipelineConfig", "Run", "__version__", "load_config", "open_run"]

_HOMES = {
    "Run": "recsys.api",
    "open_run": "recsys.api",
    "PipelineConfig": "recsys.config",
    "load_config": "recsys.config",
}


def __getattr__(name: str) -> Any:
    # Looked up when it is first used (PEP 562), so that `import recsys` costs nothing.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'recsys' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
