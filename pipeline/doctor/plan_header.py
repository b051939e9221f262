# SPDX-License-Identifier: Apache-2.0
"""What the first bytes of an engine's file tell without TensorRT.

A plan begins with a tag, the number of its layout, and for layout 0 the four numbers of the version
that built it in bytes 24 to 27 (``printPlanVersion`` in samples/common/sampleEngines.cpp of
NVIDIA/TensorRT). TensorRT-RTX's plans have another tag and the version in the same place: read from
plans that 1.7.1.116 built.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["tensorrt", "tensorrt_rtx", "ultralytics", "pointer", "empty", "other"]

_TAGS: dict[bytes, Kind] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
_HEADER = 28
_VERSION_AT = 24
_LAYOUT = 0
_MOST_METADATA = 1 << 20
_LFS = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class PlanHeader:
    """What a file says that it is."""

    kind: Kind
    """``ultralytics``: metadata before the plan; ``pointer``: Git LFS's text instead of a plan."""
    version: tuple[int, int, int, int] | None
    """Of the library that built it; None where the header does not tell."""


def read_plan_header(path: Path) -> PlanHeader:
    """Read what a file says that it is.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_HEADER)
        if not start:
            return PlanHeader("empty", None)
        if start[:4] in _TAGS:
            return PlanHeader(_TAGS[start[:4]], _version(start))
        if start.startswith(_LFS):
            return PlanHeader("pointer", None)
        # Ultralytics: length of a JSON text, 4 bytes, little-endian; the text; the plan.
        if len(start) > 4 and start[4:5] == b"{":
            (length,) = struct.unpack("<I", start[:4])
            if length <= _MOST_METADATA:
                file.seek(4 + length)
                inner = file.read(_HEADER)
                if inner[:4] in _TAGS or inner[1:4] == b"trt":
                    return PlanHeader("ultralytics", _version(inner))
        return PlanHeader("other", None)


def _version(start: bytes) -> tuple[int, int, int, int] | None:
    if len(start) < _HEADER or struct.unpack("<I", start[4:8])[0] != _LAYOUT:
        return None
    major, minor, patch, build = start[_VERSION_AT:_HEADER]
    return major, minor, patch, build
