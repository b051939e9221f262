# SPDX-License-Identifier: Apache-2.0
"""The errors that a user can meet, and the exit codes that go with them."""

from __future__ import annotations

EXIT_OK = 0
"""Everything asked for was done."""
EXIT_VERDICT = 1
"""The work was done and its result is below a threshold."""
EXIT_INPUT = 2
"""Bad usage or bad input: an argument, a file, a recipe."""
EXIT_ENVIRONMENT = 3
"""Something that the work needs is not on this machine."""


class StormrtError(Exception):
    """An error with a remedy: what failed, where, what was got and expected, how to fix it.

    Args:
        what: One sentence: what failed.
        where: The file, key, node or argument that it is about.
        got: What was found there.
        expected: What would have been right.
        fix: What to type or change.
    """

    exit_code: int = EXIT_INPUT

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        got: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.got = got
        self.expected = expected
        self.fix = fix
        parts = [what]
        for label, text in (("where", where), ("got", got), ("expected", expected), ("fix", fix)):
            if text is not None:
                parts.append(f"  {label + ':':<10}{text}")
        super().__init__("\n".join(parts))


class InputError(StormrtError):
    """Bad usage or bad input (exit code 2)."""


class EnvironmentMissingError(StormrtError):
    """A package, device or tool that the work needs is missing (exit code 3)."""

    exit_code = EXIT_ENVIRONMENT
