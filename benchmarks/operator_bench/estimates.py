# SPDX-License-Identifier: Apache-2.0
"""Bounds for boards that nobody here has: computed from documented figures, never measured.

Three times below which a scan cannot go, each as if it were alone: its operands once at the
memory's nominal bandwidth (the targets' recipes); its exponentials and logarithms at the rate of
the special-function units; its instructions at one a cycle and scheduler. Instructions of a scan
element are those that were counted on another GPU: other machine code, the same sources.
"""

from __future__ import annotations

from dataclasses import dataclass

from stormrt.targets import load_target

SPECIAL_FUNCTIONS = 3
"""Of a scan element: 2^x and log2 for softplus, 2^x for the decay (arithmetic.cuh)."""
SPECIAL_RATE = 16
"""Results a cycle and multiprocessor, 7.5 and 8.7 (CUDA C++ Programming Guide, arithmetic
instructions)."""
SCHEDULERS = 4
"""Of a multiprocessor, 7.5 and 8.7: one warp instruction a cycle each (the same guide)."""
LANES = 32
CLOCKS_GHZ = {"t4": 1.59, "orin-agx-64g": 1.3}
"""Highest clocks: vendor datasheets, not re-checked here. A T4 at 70 W does not hold its own."""
STAGES = ((96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7))
"""D, H, W of VMamba-T at 224 x 224."""
BATCHES = (1, 16)
HALF_BYTES = 2
SINGLE_BYTES = 4


def scan_bytes(batch: int, channels: int, positions: int, element: int = HALF_BYTES) -> int:
    """Bytes of a scan's operands once, N = 1: x, dt, B, C, y, and a, d, bias in FP32."""
    maps = (channels + 4 * channels + 8 + channels) * positions * batch * element
    return maps + 3 * 4 * channels * SINGLE_BYTES


@dataclass(frozen=True, slots=True)
class Bounds:
    """Lower bounds of one call in microseconds."""

    memory: float
    special: float
    issue: float

    @property
    def largest(self) -> str:
        """The bound that binds."""
        times = {"memory": self.memory, "special functions": self.special, "issue": self.issue}
        return max(times, key=lambda name: times[name])


def bounds(target: str, batch: int, channels: int, positions: int, instructions: float) -> Bounds:
    """Bounds of one FP16 scan with N = 1 on a target.

    Args:
        target: A key of ``CLOCKS_GHZ``.
        batch: B.
        channels: D.
        positions: H * W.
        instructions: Of a scan element, idle lanes included.
    """
    device = load_target(target).device
    cycles_per_us = CLOCKS_GHZ[target] * 1e3 * device.sm_count
    elements = 4 * batch * channels * positions
    return Bounds(
        memory=scan_bytes(batch, channels, positions) / (device.bandwidth_gb_s * 1e3),
        special=elements * SPECIAL_FUNCTIONS / SPECIAL_RATE / cycles_per_us,
        issue=elements * instructions / LANES / SCHEDULERS / cycles_per_us,
    )
