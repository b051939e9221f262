# SPDX-License-Identifier: Apache-2.0
"""A histogram of absolute values that grows with them and merges without loss.

Its range is [0, 2^e), always a power of two. A larger value doubles the range until it fits, and
neighbouring bins are joined. As floor(floor(y) / 2) = floor(y / 2), and as a product with a power
of two is exact, the counts depend on nothing but the values: not on their order, and not on how
they were cut into parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BINS = 8192
"""Bins of the whole range. The largest value lies in its upper half, so that at least half of them
are used: a range read from them is exact to 1/4096 of the largest value."""

LOWEST_EXPONENT = -60
"""e before anything was seen. Smaller values than 2^-60 are as good as zero."""


def _no_counts() -> NDArray[np.int64]:
    return np.zeros(BINS, np.int64)


@dataclass(slots=True)
class Histogram:
    """How often |x| lay in each bin."""

    counts: NDArray[np.int64] = field(default_factory=_no_counts)
    """[BINS]; bin i is [i, i + 1) times ``width``."""
    exponent: int = LOWEST_EXPONENT
    """e: the range is [0, 2^e)."""

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2.0**self.exponent / BINS

    @property
    def total(self) -> int:
        """How many values were observed."""
        return int(self.counts.sum())

    def observe(self, magnitudes: NDArray[np.float32], largest: float) -> None:
        """Count values.

        Args:
            magnitudes: |x|, finite, FP32, of any shape. It is overwritten.
            largest: The largest of them.
        """
        # frexp: largest = m 2^e with m in [0.5, 1), so that 2^e is the first power beyond it.
        self._grow(int(np.frexp(largest)[1]) if largest > 0 else LOWEST_EXPONENT)
        magnitudes *= np.float32(2.0**-self.exponent * BINS)
        bins = magnitudes.ravel().astype(np.int32)
        self.counts += np.bincount(bins, minlength=BINS)

    def merge(self, other: Histogram) -> None:
        """Add what another one has counted."""
        self._grow(other.exponent)
        self.counts += _joined(other.counts, self.exponent - other.exponent)

    def _grow(self, exponent: int) -> None:
        """Make the range reach at least to 2^exponent."""
        if exponent > self.exponent:
            self.counts = _joined(self.counts, exponent - self.exponent)
            self.exponent = exponent


def _joined(counts: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """Counts [BINS] over a range that is 2^doublings times as large."""
    joined = np.zeros_like(counts)
    each = min(2**doublings, BINS)
    joined[: BINS // each] = counts.reshape(-1, each).sum(1)
    return joined
