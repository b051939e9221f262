# SPDX-License-Identifier: Apache-2.0
"""The type stubs of full TensorRT, repaired so that they can be read."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest

from tests.helpers.native import TOOLS

FOLDER = TOOLS / "tensorrt-stubs"
"""By themselves: beside TensorRT-RTX they would look like an installed ``tensorrt``."""

_EXTENTS = "Dims | typing.Sequence[int]"
_UNSAID = (
    # Dims has a length and takes an index, with which Python goes through it.
    ("class Dims:\n", "class Dims:\n    def __iter__(self) -> typing.Iterator[int]: ...\n"),
    # pybind11 makes a Dims of any tuple or list (py::implicitly_convertible in pyCore.cpp).
    (
        "def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims)",
        f"def set_shape(self, input: str, min: {_EXTENTS}, opt: {_EXTENTS}, max: {_EXTENTS})",
    ),
)
"""What pybind11's stubs do not say, and the real package does."""


def stub_file() -> Path:
    """The stubs of the bindings; skips the test where they are not."""
    path = FOLDER / "tensorrt_bindings/tensorrt.pyi"
    if not path.is_file():
        pytest.skip(f"tensorrt-stubs is not in {FOLDER}: run make setup")
    return path


def repaired_stubs(out: Path) -> Path:
    """Copy the stubs, with the few signatures that are no Python left open.

    pybind11 has named parameters ``in``, and left one default value out. None of these methods is
    called by us.
    """
    stub_file()
    for package in ("tensorrt", "tensorrt_bindings"):
        shutil.copytree(FOLDER / package, out / package)
    path = out / "tensorrt_bindings/tensorrt.pyi"
    lines, open_ones = path.read_text().splitlines(), 0
    while True:
        try:
            ast.parse("\n".join(lines))
            break
        except SyntaxError as error:
            place = (error.lineno or 0) - 1
            broken = re.match(r"( *)def (\w+)\(self", lines[place])
            if broken is None:
                raise
            # Of a parent's method other types may be said, so that an Any suffices.
            signature = "(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:"
            lines[place] = f"{broken[1]}def {broken[2]}{signature}"
            open_ones += 1
    assert open_ones <= 5
    text = "\n".join(lines) + "\n"
    for before, after in _UNSAID:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    # tensorrt.bool is a data type, for which the stubs' own `bool` would be taken.
    path.write_text(re.sub(r"^bool: .*$", "", text, flags=re.MULTILINE))
    # The version is set where the package is made.
    with (out / "tensorrt/__init__.pyi").open("a") as file:
        file.write("__version__: str\n")
    return out
