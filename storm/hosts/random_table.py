# SPDX-License-Identifier: Apache-2.0
"""The table of the host ``random``: numbers by size and seed, the same on every machine.

Source: SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
OOPSLA 2014).
"""

from __future__ import annotations

import torch
from torch import Tensor

from stormrt.storm.constants import made_once

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
"""SplitMix64's increment."""


def _mixed(state: int) -> int:
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
    return state ^ (state >> 31)


def table(height: int, width: int, seed: int) -> tuple[tuple[float, ...], ...]:
    """Random numbers in [0, 1), height x width, by size and seed."""
    start = _mixed((seed * _GOLDEN + height * 65_537 + width) & _MASK)
    numbers = [
        # 24 bits, so that FP32 holds them exactly.
        (_mixed((start + (i + 1) * _GOLDEN) & _MASK) >> 40) / 2**24
        for i in range(height * width)
    ]
    return tuple(tuple(numbers[h * width : (h + 1) * width]) for h in range(height))


@made_once
def table_on(height: int, width: int, seed: int, device: torch.device) -> Tensor:
    """The table [height, width], FP32, on a device."""
    return torch.tensor(table(height, width, seed), dtype=torch.float32, device=device)
