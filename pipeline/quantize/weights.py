# SPDX-License-Identifier: Apache-2.0
"""Weights as INT8: symmetric, one scale an output channel, -127 to 127."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stormrt.errors import InputError

LEVELS = 127
"""Largest integer. -128 is not used, so that a range is symmetric."""

CLIPPING = tuple(float(x) for x in np.linspace(1.0, 0.7, 31))
"""Shares of a channel's largest weight that are tried as its range."""

_SMALLEST_SCALE = float(np.finfo(np.float16).tiny)
"""2^-14: TensorRT-RTX multiplies activations by 1 / scale in FP16, which overflows below 2^-16."""
_SMALLEST_WEIGHT_SCALE = 2.0**-20
"""Weights are multiplied by their scale, which FP16 holds to 3 % there; 2^-20 * 127 is 1e-4."""


@dataclass(frozen=True, slots=True)
class QuantisedWeight:
    """A weight in integers."""

    values: NDArray[np.int8]
    """Of the weight's shape."""
    scales: NDArray[np.float32]
    """[C_out], above 0, each of them an FP16 number, so that conversion rounds nothing."""
    axis: int
    """Of output channels."""

    def restored(self) -> NDArray[np.float32]:
        """What the integers stand for, FP32."""
        return self.values.astype(np.float32) * _along(self.scales, self.values.ndim, self.axis)


def quantise_weight(weight: NDArray[np.float32], axis: int, where: str) -> QuantisedWeight:
    """Round a weight; each channel's range is the candidate of the least squared error.

    Args:
        weight: FP32.
        axis: Of output channels.
        where: Its name, for messages.

    Raises:
        InputError: A weight is NaN or infinite.
    """
    if not np.isfinite(weight).all():
        raise InputError(
            "a weight is not finite", where=where, fix="use another checkpoint: this one is damaged"
        )
    moved = np.moveaxis(weight, axis, 0)
    rows = moved.reshape(len(moved), -1)
    largest = np.abs(rows).max(axis=1)
    best = np.full(len(rows), np.inf)
    scales = np.zeros(len(rows), np.float32)
    for share in CLIPPING:
        tried = np.maximum(largest * (share / LEVELS), _SMALLEST_WEIGHT_SCALE)
        tried = tried.astype(np.float16).astype(np.float32)
        rest = _rounded(rows, tried)
        rest *= tried[:, None]
        rest -= rows
        error = np.einsum("ij,ij->i", rest, rest)
        better = error < best
        best = np.where(better, error, best)
        scales = np.where(better, tried, scales)
    values = _rounded(rows, scales).astype(np.int8).reshape(moved.shape)
    return QuantisedWeight(np.ascontiguousarray(np.moveaxis(values, 0, axis)), scales, axis)


def activation_scale(amax: float) -> float:
    """The scale of an activation whose range is ``amax``: the FP16 number not below amax / 127."""
    exact = max(amax / LEVELS, _SMALLEST_SCALE)
    scale = np.float16(exact)
    if float(scale) < exact:
        scale = np.nextafter(scale, np.float16(np.inf))
    return float(scale)


def _rounded(rows: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    # To the even neighbour at ties, as QuantizeLinear rounds.
    rounded: NDArray[np.float32] = rows / scales[:, None]
    np.rint(rounded, out=rounded)
    return np.clip(rounded, -LEVELS, LEVELS, out=rounded)


def _along(scales: NDArray[np.float32], rank: int, axis: int) -> NDArray[np.float32]:
    shape = [1] * rank
    shape[axis] = -1
    return scales.reshape(shape)
