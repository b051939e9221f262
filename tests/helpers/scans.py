# SPDX-License-Identifier: Apache-2.0
"""Random inputs of SelectiveScan2D, spread as in real networks, and how far two results are."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Regime = Literal["init", "mid", "hot"]

# (mean of delta over channels: low, high; spread of dt before softplus; a: low, high)
REGIMES: dict[Regime, tuple[float, float, float, float, float]] = {
    "init": (1e-3, 0.1, 0.2, -1.0, -1.0),  # as a fresh model
    "mid": (0.02, 0.6, 1.3, -3.0, -0.3),  # as a trained one
    "hot": (0.1, 2.0, 2.3, -3.0, -0.3),  # steps so large that decays vanish
}

KERNEL_SIZES = (
    # D, H, W: what VMamba has, single lines, odd sizes, and maps too large for the staged kernel.
    (5, 1, 1),
    (6, 1, 37),
    (7, 31, 5),
    (13, 56, 56),
    (11, 28, 28),
    (50, 14, 14),
    (70, 7, 7),
    (5, 42, 42),
    (3, 54, 56),
    (9, 33, 8),
    (4, 64, 70),
    (2, 130, 130),
    # The rest of that kernel's cuts: runs of 8, 10 and 12, by matrix loads or not, with or without
    # runs that reach past the map's end.
    (9, 15, 16),
    (9, 16, 24),
    (9, 29, 24),
    (9, 32, 8),
    (9, 9, 26),
    (9, 20, 12),
    (9, 40, 24),
    (9, 24, 30),
    (9, 45, 32),
    (9, 48, 24),
)
"""Sizes that the scan's kernels treat differently: each of their variants for FP16 and N = 1."""

MAPS = ("x", "dt", "b", "c")
"""Inputs that are maps, with a batch; the others are the same for every image."""


def scan_inputs(
    rng: np.random.Generator,
    shape: tuple[int, int, int, int],
    *,
    batch: int = 1,
    regime: Regime = "mid",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Inputs whose step size is spread as in a regime.

    Args:
        rng: Source of randomness.
        shape: D, H, W, N.
        batch: B.
        regime: A key of ``REGIMES``.
        dtype: Of the maps; the parameters are FP32 (FP64 for FP64 maps).
    """
    channels, height, width, state = shape
    low, high, spread, a_low, a_high = REGIMES[regime]
    delta = np.exp(rng.uniform(np.log(low), np.log(high), 4 * channels))

    def normal(rows: int) -> np.ndarray:
        return rng.normal(size=(batch, rows, height, width))

    maps = {
        "x": normal(channels),
        "dt": normal(4 * channels) * spread,
        "b": normal(4 * state),
        "c": normal(4 * state),
    }
    parameters = {
        "a": rng.uniform(a_low, a_high, (4 * channels, state)),
        # Small: d x would hide an error in the scan.
        "d": rng.normal(size=4 * channels) * 0.01,
        "dt_bias": np.log(np.expm1(delta)),
    }
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {k: torch.from_numpy(v).to(dtype) for k, v in maps.items()} | {
        k: torch.from_numpy(v).to(wide) for k, v in parameters.items()
    }


def images(inputs: dict[str, Tensor], which: object) -> dict[str, Tensor]:
    """The same inputs with only some images, or with the images in another order."""
    return {k: v[which] if k in MAPS else v for k, v in inputs.items()}


def relative_l2(got: Tensor, expected: Tensor) -> float:
    """|got - expected| / |expected|; not a number stays one, and compares as too large."""
    got, expected = got.detach().double(), expected.detach().double()
    assert got.shape == expected.shape
    return float((got - expected).norm() / expected.norm())
