# SPDX-License-Identifier: Apache-2.0
"""The parts of a package: its files, and the templates that some of them come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from stormrt.pipeline.at_template import AtTemplate

Host = Literal["isaac-ros", "triton", "deepstream", "plain"]
"""What runs the engine."""


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One file of a package: copied from somewhere, or with this content."""

    path: str
    """Below the package's folder."""
    content: bytes | Path
    is_program: bool = False
    """Whether it is made executable."""


def template(name: str, values: Mapping[str, str]) -> bytes:
    """Fill in a file of ``templates/``.

    Args:
        name: Its path there.
        values: What stands for each ``@{name}``.

    Raises:
        KeyError: The template has a name that is not among the values.
    """
    root = resources.files("stormrt.pipeline.package") / "templates"
    text = root.joinpath(name).read_text(encoding="utf-8")
    return AtTemplate(text).substitute(values).encode()


def text(path: str, content: str, *, is_program: bool = False) -> PackageFile:
    """A file with a text."""
    return PackageFile(path, content.encode(), is_program)
