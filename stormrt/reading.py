# SPDX-License-Identifier: Apache-2.0
"""Reading small text files that anybody may have written."""

from __future__ import annotations

import errno
import json
from pathlib import Path

MOST_BYTES = 64 << 20
"""No plan, recipe, manifest or table is as large as this."""

_PIECE = 1 << 20


def read_small(path: Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of a file, unless it is too large: a device such as /dev/zero never ends.

    Args:
        path: The file.
        most: How many bytes it may have.

    Raises:
        OSError: It cannot be read, or has more.
    """
    content = bytearray()
    with path.open("rb") as file:
        # Piece by piece: Python reserves as much as it is asked to read.
        while piece := file.read(_PIECE):
            content += piece
            if len(content) > most:
                raise OSError(errno.EFBIG, f"the file is larger than {most >> 20} MiB", str(path))
    return bytes(content)


def parse_json(content: bytes) -> object:
    """What a JSON text holds.

    Raises:
        ValueError: It is no JSON, not UTF-8, or nested more deeply than can be read.
    """
    try:
        value: object = json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value
