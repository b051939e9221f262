# SPDX-License-Identifier: Apache-2.0
"""Correction of biases (Nagel et al. 2019): rounded weights move no layer's mean output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stormrt.errors import InputError


def bias_correction(
    error: NDArray[np.float32], mean: Sequence[float], *, axis: int, groups: int, where: str
) -> NDArray[np.float32]:
    """What to add to a bias: -(rounded weight - weight) . E[x].

    Padding is not a part of the mean: at a map's border the correction of a 3x3 Conv is a little
    too large.

    Args:
        error: Rounded weight less weight: Conv [C_out, C_in / groups, kH, kW]; Gemm [C_in, C_out],
            or transposed.
        mean: [C_in] of the activation.
        axis: Of output channels.
        groups: Of a Conv, else 1.
        where: The activation's name, for messages.

    Returns:
        [C_out], FP32.

    Raises:
        InputError: The mean is of another number of channels, or not finite.
    """
    moved = np.moveaxis(error, axis, 0).astype(np.float64)
    outputs, inputs = moved.shape[:2]
    expected = np.asarray(mean, np.float64)
    if expected.shape != (inputs * groups,) or not np.isfinite(expected).all():
        raise InputError(
            "the mean of a tensor in the calibration table does not fit the graph",
            where=where,
            got=f"{expected.size} channels"
            if expected.size != inputs * groups
            else "values that are not finite",
            expected=f"{inputs * groups} channels",
            fix="calibrate again, with this model and STORM plan",
        )
    by_channel = moved.reshape(outputs, inputs, -1).sum(axis=2)
    by_group = np.repeat(expected.reshape(groups, inputs), outputs // groups, axis=0)
    shift: NDArray[np.float64] = (by_channel * by_group).sum(axis=1)
    return (-shift).astype(np.float32)
