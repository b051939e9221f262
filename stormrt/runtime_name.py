# SPDX-License-Identifier: Apache-2.0
"""What builds and runs engines."""

from __future__ import annotations

from typing import Literal

RuntimeName = Literal["tensorrt", "tensorrt_rtx"]
"""By the Python package of NVIDIA's."""
