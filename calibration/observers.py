# SPDX-License-Identifier: Apache-2.0
"""From what was observed of a tensor to the range that INT8 has to hold.

The quantiser is TensorRT's: symmetric, zero-point 0, integers -127 to 127, with the scale
``amax / 127``. All observers read the same histogram, so that another one needs no new run.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stormrt.calibration.histogram import BINS, Histogram
from stormrt.calibration.statistics import TensorStatistics
from stormrt.calibration.table import ObserverName
from stormrt.errors import InputError

LEVELS = 127
"""The largest integer."""

DEFAULT_PERCENTILE = 99.99

UNUSED_AMAX = 1.0
"""Range of a tensor that was always zero: any scale holds it, and this one is no subnormal."""

_ENTROPY_BINS = 2048
_ENTROPY_LEVELS = 128

_MSE_STEPS = 16
"""Candidates an octave: each range is 4 % smaller than the one before; the error is flat there."""
_MSE_OCTAVES = 7
"""The smallest candidate is 1/128 of the largest value."""


def range_of(
    statistics: TensorStatistics, observer: ObserverName, percentile: float = DEFAULT_PERCENTILE
) -> float:
    """The range ``amax`` of a tensor by an observer: above 0, and at most the largest value.

    Args:
        statistics: What was observed.
        observer: Which.
        percentile: Share of the values to hold, in per cent; of ``percentile`` alone.

    Raises:
        InputError: The percentile is none.
    """
    check_percentile(percentile)
    largest = statistics.largest
    if largest == 0:
        return UNUSED_AMAX
    histogram = statistics.histogram
    choose: dict[ObserverName, Callable[[], float]] = {
        "min-max": lambda: largest,
        "percentile": lambda: percentile_range(histogram, percentile),
        "entropy": lambda: entropy_range(histogram),
        "mse": lambda: mse_range(histogram, largest),
    }
    return min(choose[observer](), largest)


def check_percentile(percentile: float) -> None:
    """Refuse what is no percentile.

    Raises:
        InputError: It is not above 0 and at most 100.
    """
    if not 0 < percentile <= 100:
        raise InputError(
            "the percentile is out of range",
            where="--percentile",
            got=str(percentile),
            expected="above 0 and at most 100, such as 99.99",
        )


def percentile_range(histogram: Histogram, percentile: float) -> float:
    """The smallest range that holds a share of the values, up to the width of a bin."""
    held = np.cumsum(histogram.counts)
    # held >= p total / 100, without the rounding of the quotient.
    index = int(np.argmax(held * 100.0 >= percentile * float(held[-1])))
    return (index + 1) * histogram.width


def mse_range(histogram: Histogram, largest: float) -> float:
    """The range with the smallest expected squared error of rounding and clipping.

    A grid over ranges, from the largest value down. Values are taken to be spread evenly within
    their bin, over which the error is integrated exactly.
    """
    edges = np.arange(BINS + 1, dtype=np.float64) * histogram.width
    occupied = np.flatnonzero(histogram.counts)
    candidates = largest * 2.0 ** (-np.arange(_MSE_STEPS * _MSE_OCTAVES + 1) / _MSE_STEPS)
    errors = []
    for amax in candidates:
        below = _error_below(edges, amax / LEVELS)
        errors.append((histogram.counts[occupied] * np.diff(below)[occupied]).sum())
    return float(candidates[int(np.argmin(errors))])


def _error_below(x: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """Integral from 0 to x of the squared error of quantising, for x >= 0.

    Each integer n stands for the values within half a scale of n s, the last one for all beyond
    it too; a whole such part adds s^3 / 12.
    """
    nearest = np.minimum(np.floor(x / scale + 0.5), LEVELS)
    cubed: NDArray[np.float64] = (x - nearest * scale) ** 3 / 3 + nearest * scale**3 / 12
    return cubed


def entropy_range(histogram: Histogram) -> float:
    """The range whose clipped and quantised distribution is nearest, by Kullback-Leibler.

    Method: Migacz, "8-bit Inference with TensorRT" (NVIDIA, GTC 2017), with 2048 bins over the
    histogram's range and 128 levels. Exact zeros count as what they are; later tools of NVIDIA
    leave them out, for networks with ReLU. A range ends within a bin that holds values, and has
    at least 128 bins: an outlier beyond 16 times what is usual can keep the whole range.
    """
    counts = histogram.counts.reshape(_ENTROPY_BINS, -1).sum(1).astype(np.float64)
    width = histogram.width * (BINS // _ENTROPY_BINS)
    last = int(np.flatnonzero(counts)[-1]) + 1
    beyond = counts.sum() - np.cumsum(counts)
    sizes = range(min(_ENTROPY_LEVELS, last), last + 1)
    divergences = [_divergence(counts[:size], beyond[size - 1]) for size in sizes]
    return (sizes[int(np.argmin(divergences))] + 0.5) * width


def _divergence(counts: NDArray[np.float64], beyond: float) -> float:
    """Divergence of what ``size`` bins become in 128 levels from what they hold.

    Args:
        counts: [size] values in each bin.
        beyond: Values that are clipped into the last bin.
    """
    reference = counts.copy()
    reference[-1] += beyond
    levels = min(_ENTROPY_LEVELS, len(counts))
    starts = -(-np.arange(levels) * len(counts) // levels)
    sizes = np.diff(np.append(starts, len(counts)))
    occupied = reference > 0
    # A level's values are spread over those of its bins that hold any.
    holding = np.maximum(np.add.reduceat(occupied, starts, dtype=np.int64), 1)
    candidate = np.repeat(np.add.reduceat(counts, starts) / holding, sizes)[occupied]
    total = candidate.sum()
    if total == 0 or not candidate.all():
        return np.inf
    p = reference[occupied] / reference.sum()
    return float((p * np.log(p * total / candidate)).sum())
