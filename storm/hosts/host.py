# SPDX-License-Identifier: Apache-2.0
"""What a host is. Free of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Measure = Literal["step_size", "clipped_output"]
"""What a block can measure of itself while it runs: one number a token (``layers.SS2D``)."""

Score = Callable[["Tensor", "Tensor | None"], "Tensor"]
"""(map [B, C, H, W], what the block before measured [B, H, W] or None) -> [B, H, W], FP32."""


@dataclass(frozen=True, slots=True)
class Host:
    """A named score of tokens; higher is kept."""

    name: str
    score: Score
    needs: Measure | None = None
    """What the block before has to measure; a host that needs it has no score before block 0."""
    spaced: bool = False
    """Every token scores the same: lines are evenly spaced, known when the graph is built."""
