# SPDX-License-Identifier: Apache-2.0
"""Versions as numbers. The package `packaging` may be the very thing that is missing."""

from __future__ import annotations

import re


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's leading numbers.

    Example:
        >>> numbers("10.3.0.30-1+cuda12.5")
        (10, 3, 0, 30)
    """
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def agree(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two versions are equal as far as both are told: 10.3.0 and 10.3.0.30 are."""
    return all(a == b for a, b in zip(one, other, strict=False))
