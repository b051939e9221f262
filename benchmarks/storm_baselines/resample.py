# SPDX-License-Identifier: Apache-2.0
"""Maps made smaller as one makes pictures smaller: every so many lines, averages, interpolation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.storm_baselines.segments import Prefix, Reduced, Where, check_size
from stormrt.storm.vmamba import VMamba


def even_lines(lines: int, keep: int, device: torch.device) -> Tensor:
    """Middles of ``keep`` equal parts of ``lines`` lines: [keep], increasing."""
    return (2 * torch.arange(keep, device=device) + 1) * lines // (2 * keep)


def stride(x: Tensor, height: int, width: int) -> Tensor:
    """Evenly spaced rows and columns, the same for every image."""
    rows = even_lines(x.shape[2], height, x.device)
    cols = even_lines(x.shape[3], width, x.device)
    return x.index_select(2, rows).index_select(3, cols)


def average(x: Tensor, height: int, width: int) -> Tensor:
    """Adaptive average pooling."""
    return F.adaptive_avg_pool2d(x, (height, width))


def bilinear(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear interpolation with antialiasing: a triangle filter as wide as the reduction."""
    y = F.interpolate(x.float(), (height, width), mode="bilinear", antialias=True)
    return y.to(x.dtype)


RESAMPLERS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "stride": stride,
    "average": average,
    "bilinear": bilinear,
}


def apply(model: VMamba, where: Where, height: int, width: int, *, how: str = "average") -> Reduced:
    """Resample the map before a block; ``how`` is a key of ``RESAMPLERS``."""
    resampler = RESAMPLERS[how]

    def transform(before: Prefix) -> Tensor:
        check_size(before.x, height, width)
        return resampler(before.x, height, width)

    return Reduced(model, where, transform)
