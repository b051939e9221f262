# SPDX-License-Identifier: Apache-2.0
"""What the builder reads of a recipe: ``targets.Target`` has it, and so has a bundle's copy."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Protocol

_OPERATORS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


class DeviceFacts(Protocol):
    """The board's GPU."""

    @property
    def gpu(self) -> str:
        """Its name, for people."""

    @property
    def sm(self) -> int:
        """Compute capability times ten."""


class BuildOptions(Protocol):
    """How the engine is built."""

    @property
    def workspace_mib(self) -> int:
        """Most scratch memory that a layer may use, in MiB."""

    @property
    def builder_optimization_level(self) -> int:
        """From 0 (shortest build) to 5 (longest)."""


class RuntimeFacts(Protocol):
    """A package that builds engines for the board."""

    @property
    def version(self) -> str:
        """The versions of it that are supported, such as ``>=10.3,<12``."""


class Board(Protocol):
    """A recipe, as far as an engine's build needs it."""

    @property
    def id(self) -> str:
        """The recipe's name."""

    @property
    def device(self) -> DeviceFacts:
        """Its GPU."""

    @property
    def build(self) -> BuildOptions:
        """How engines are built for it."""

    def runtime(self, name: str) -> RuntimeFacts:
        """One of its runtimes; InputError where it has not that one."""


def version_in(version: str, specifier: str) -> bool:
    """Whether a version lies in a recipe's range, by its release numbers alone.

    A release candidate counts as the release: JetPack's packages are sometimes called so. Recipes
    are checked by ``packaging`` where they are written; boards need not have that.

    Args:
        version: Such as ``10.16.2.10``.
        specifier: As Python packages write it, without ``===``.

    Raises:
        ValueError: One of them is none.

    Example:
        >>> version_in("10.16.2.10", ">=10.3,<12,!=11.0.*")
        True
    """
    release = _release(version)
    return all(_holds(release, part.strip()) for part in specifier.split(","))


def _holds(release: tuple[int, ...], clause: str) -> bool:
    match = re.fullmatch(r"(>=|<=|==|!=|~=|>|<)\s*(\d+(?:\.\d+)*)(\.\*)?", clause)
    if match is None or (match[3] and match[1] not in ("==", "!=")):
        raise ValueError(f"{clause!r} is not a range of versions such as '>=10.3'")
    sign, bound = match[1], _release(match[2])
    if match[3]:
        return (_filled(release, len(bound))[: len(bound)] == bound) == (sign == "==")
    if sign == "~=":
        if len(bound) == 1:
            raise ValueError(f"{clause!r} needs two numbers at least")
        same = _filled(release, len(bound))[: len(bound) - 1] == bound[:-1]
        return same and _holds(release, f">={match[2]}")
    width = max(len(release), len(bound))
    return _OPERATORS[sign](_filled(release, width), _filled(bound, width))


def _filled(release: tuple[int, ...], width: int) -> tuple[int, ...]:
    return release + (0,) * (width - len(release))


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    if found is None:
        raise ValueError(f"{version!r} is not a version")
    return tuple(map(int, found[0].split(".")))
