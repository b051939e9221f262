# SPDX-License-Identifier: Apache-2.0
"""Running a built engine: ``Engine`` loads one, infers, and refuses one that does not fit here.

Importing this loads NumPy and no GPU library: TensorRT and pycuda are imported when an engine is
loaded. The same for C++ is ``include/stormrt/engine.hpp``.
"""

if not __name__.startswith("stormrt."):
    raise ImportError(
        "import stormrt.runtime, not runtime: under two names every registry would "
        "exist twice (docs/adr/0001)"
    )

from pathlib import Path

from stormrt.runtime.arrays import DeviceArray
from stormrt.runtime.engine import Engine

CPP_INCLUDE = Path(__file__).resolve().parent / "include"
"""The folder to give to a C++ compiler: ``-I``, for ``#include <stormrt/engine.hpp>``."""

__all__ = ["CPP_INCLUDE", "DeviceArray", "Engine"]
