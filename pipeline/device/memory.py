# SPDX-License-Identifier: Apache-2.0
"""How much scratch memory the builder may give to a layer, by what is free."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stormrt.errors import StormrtError
from stormrt.pipeline.device.board import Board
from stormrt.pipeline.device.report import Number

_SHARE = 2
"""Of free memory half: the builder needs the rest for weights and for what it compares."""
_LEAST_MIB = 64


@dataclass(frozen=True, slots=True)
class Workspace:
    """The limit, and what it follows from."""

    limit_mib: int
    recipe_mib: int
    free_mib: Number
    """Of GPU and host the less."""


def workspace(board: Board, runtime: str) -> Workspace:
    """The recipe's limit, or less where too little memory is free.

    TensorRT-RTX tries nothing on a GPU when it builds: for it the recipe's limit stands, and the
    same graph gives the same bytes.
    """
    known = [mib for mib in (host_free_mib(), gpu_free_mib()) if mib != "unknown"]
    free: Number = min(known) if known else "unknown"
    recipe = board.build.workspace_mib
    if runtime != "tensorrt" or free == "unknown":
        return Workspace(recipe, recipe, free)
    return Workspace(max(_LEAST_MIB, min(recipe, int(free) // _SHARE)), recipe, free)


def host_free_mib(root: Path = Path("/")) -> int | Literal["unknown"]:
    """Memory that programs can have without swapping (MemAvailable), in MiB."""
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return "unknown"
    found = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) >> 10 if found else "unknown"


def gpu_free_mib() -> int | Literal["unknown"]:
    """Memory of the first GPU that nobody uses, in MiB; on a Jetson a part of the host's."""
    from stormrt.runtime.driver_device import DriverDevice

    try:
        device = DriverDevice(0)
        with device.active():
            return device.free_memory_mib()
    except StormrtError:
        return "unknown"
