# SPDX-License-Identifier: Apache-2.0
"""Reads an npz file that anybody may have written: no pickles, and no more memory than it is worth.

A deflated entry can be a thousand times as large as the file, and an array's header can claim any
shape. Both are looked at before anything is read. Needs NumPy alone.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

FREE_BYTES = 256 << 20
"""Arrays may take this much, whatever the file's size."""
MOST_RATIO = 32
"""Beyond that, no more than this many times the file's size: real images pack far less."""

_SUFFIX = ".npy"


def read_npz(
    path: Path, wanted: Collection[str] | None = None
) -> tuple[dict[str, NDArray[np.generic]], tuple[str, ...]]:
    """Read arrays of an npz file.

    Args:
        path: The file.
        wanted: Names of arrays; those that are not there are left out. None: all of them.

    Returns:
        The arrays by their names, and the names of all that the file has.

    Raises:
        Exception: The file cannot be read, is no npz, is damaged, holds objects, or would take
            more memory than ``FREE_BYTES`` and ``MOST_RATIO`` allow. zipfile and NumPy raise many
            kinds; callers turn them into their own message.
    """
    most = max(FREE_BYTES, MOST_RATIO * path.stat().st_size)
    arrays: dict[str, NDArray[np.generic]] = {}
    with zipfile.ZipFile(path) as archive:
        entries = {i.filename.removesuffix(_SUFFIX): i for i in archive.infolist()}
        chosen = [name for name in entries if wanted is None or name in wanted]
        if sum(entries[name].file_size for name in chosen) > most:
            raise ValueError(
                f"its arrays would take more than {most >> 20} MiB, which a file of "
                f"{path.stat().st_size} bytes has no use for"
            )
        for name in chosen:
            if not entries[name].filename.endswith(_SUFFIX):
                raise ValueError(f"{name} is no array")
            with archive.open(entries[name]) as file:
                _check_header(file, name, entries[name].file_size)
            with archive.open(entries[name]) as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays, tuple(entries)


def _check_header(file: IO[bytes], name: str, size: int) -> None:
    """Check that an array is as large as its header says, before it is allocated."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:  # later ones are for names of fields, which nothing here has
        raise ValueError(f"{name} is in version {version} of the format")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds objects, which would have to be executed")
    if any(extent < 0 for extent in shape) or (
        file.tell() + math.prod(shape) * dtype.itemsize != size
    ):
        raise ValueError(f"{name} has another size than its header says: {dtype} {shape}")
