"""What went wrong, in words that a user can act on, and the exit code that a script can test."""

from __future__ import annotations


class RecsysError(Exception):
    """Any failure that recsys foresaw. The CLI prints its message without a traceback.

    Attributes:
        exit_code: what the `recsys` command exits with.
    """

    exit_code = 1


class InputError(RecsysError):
    """Something that the user gave (a file, a config, an option) cannot be used.

    Args:
        came: what was found, with the name of the file, column or key.
        expected: what would have been accepted.
        do: what to change.
    """

    exit_code = 2

    def __init__(self, came: str, *, expected: str = "", do: str = "") -> None:
        self.came, self.expected, self.do = came, expected, do
        lines = [came]
        if expected:
            lines.append(f"  expected: {expected}")
        if do:
            lines.append(f"  to do:    {do}")
        super().__init__("\n".join(lines))


class MissingExtraError(RecsysError):
    """An optional part was used whose package is not installed.

    Args:
        package: the import that failed.
        extra: the extra of recsys that brings it.
    """

    exit_code = 2

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed\n  to do:    pip install 'recsys[{extra}]'"
        )


class AlreadyRunningError(RecsysError):
    """A nightly job of this shop is running."""

    exit_code = 5
