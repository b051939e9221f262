# SPDX-License-Identifier: Apache-2.0
"""The histogram counts what NumPy counts, whatever came first and however it was cut up."""

from __future__ import annotations

import numpy as np
import pytest

from stormrt.calibration.histogram import BINS, LOWEST_EXPONENT, Histogram


def observed(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        magnitudes = np.abs(part)
        histogram.observe(magnitudes, float(magnitudes.max()))
    return histogram


def same(a: Histogram, b: Histogram) -> bool:
    return a.exponent == b.exponent and np.array_equal(a.counts, b.counts)


@pytest.fixture
def parts(rng) -> list[np.ndarray]:
    """Six parts whose largest values differ by powers of ten."""
    return [
        (rng.standard_t(3, int(rng.integers(1, 3000))) * 10.0**power).astype(np.float32)
        for power in rng.permutation(np.arange(-3, 3))
    ]


def test_the_counts_are_those_of_numpy_over_a_power_of_two(parts):
    values = np.abs(np.concatenate(parts)).astype(np.float64)
    histogram = observed(*parts)
    limit = 2.0**histogram.exponent
    assert limit / 2 <= values.max() < limit
    expected, _ = np.histogram(values, bins=BINS, range=(0.0, limit))
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.width == limit / BINS
    assert histogram.total == len(values)


def test_the_order_of_the_parts_does_not_matter(parts, rng):
    shuffled = [parts[i] for i in rng.permutation(len(parts))]
    assert same(observed(*parts), observed(*shuffled))
    assert same(observed(*parts), observed(np.concatenate(parts)))


@pytest.mark.parametrize("cut", range(7))
def test_merging_two_is_observing_all(parts, cut):
    """An empty one among them, and in both directions: the smaller range joins the larger."""
    first, second = observed(*parts[:cut]), observed(*parts[cut:])
    whole = observed(*parts)
    first.merge(second)
    assert same(first, whole)
    first, second = observed(*parts[:cut]), observed(*parts[cut:])
    second.merge(first)
    assert same(second, whole)


@pytest.mark.parametrize(
    "largest",
    [1e-45, 2.0**-60, 0.5, 1.0, np.nextafter(np.float32(2), np.float32(1)), 2.0, 3.0e38],
)
def test_a_value_lies_in_its_bin_however_large_it_is(largest):
    """Powers of two begin a bin; the largest FP32 numbers and the smallest have one, too."""
    value = np.float32(largest)
    histogram = observed(np.array([value, -value, 0.0], np.float32))
    (bins,) = np.nonzero(histogram.counts)
    assert histogram.total == 3
    for index in bins:
        assert index == 0 or index * histogram.width <= value < (index + 1) * histogram.width
    if value >= 2.0 ** (LOWEST_EXPONENT - 1):
        assert bins.tolist() == [0, int(value / histogram.width)]


def test_zeros_are_counted_and_have_no_range():
    histogram = observed(np.zeros(5, np.float32))
    assert histogram.exponent == LOWEST_EXPONENT
    assert histogram.counts[0] == histogram.total == 5
    histogram.merge(observed(np.ones(2, np.float32)))
    assert (histogram.counts[0], histogram.counts[BINS // 2]) == (5, 2)
