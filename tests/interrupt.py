"""A runtime that ends a stage's work as a kill would, at a named moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from recsys.runtime import Runtime, T


@dataclass(frozen=True)
class Interrupted(Runtime):
    """Raises where work whose label holds `at` is begun, or after so many of its steps."""

    at: str = ""
    after: int = 0

    def track(self, work: Iterable[T], *, label: str, **options: Any) -> Iterator[T]:
        """Iterate over `work` until it is time to die."""
        for done, step in enumerate(super().track(work, label=label, **options)):
            if self.at in label and done == self.after:
                raise KeyboardInterrupt
            yield step
