# SPDX-License-Identifier: Apache-2.0
"""What a pass is, and what it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx


@dataclass(frozen=True, slots=True)
class PassReport:
    """What one pass did."""

    name: str
    changed: int
    """Nodes changed, added or removed."""


@dataclass(frozen=True, slots=True)
class GraphPass:
    """A named change of a graph, made in place."""

    name: str
    why: str
    """One line: what would go wrong without it."""
    run: Callable[[onnx.ModelProto], int]
    """Changes the model and returns how many nodes it changed."""
