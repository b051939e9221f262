# SPDX-License-Identifier: Apache-2.0
"""Each observer against the same choice by brute force, on values instead of histograms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stormrt.calibration.histogram import BINS
from stormrt.calibration.observers import UNUSED_AMAX, check_percentile, entropy_range, range_of
from stormrt.calibration.statistics import TensorStatistics
from stormrt.errors import InputError

SHAPES = ("normal", "heavy tail", "gelu", "uniform", "one outlier", "mostly zero", "one value")


def draw(rng: np.random.Generator, shape: str) -> np.ndarray:
    """[4, 5, 40, 25] values of a distribution, at a random scale."""
    size = (4, 5, 40, 25)
    x = rng.normal(size=size)
    if shape == "heavy tail":
        x = rng.standard_t(3, size)
    elif shape == "gelu":
        x = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    elif shape == "uniform":
        x = rng.uniform(-1, 1, size)
    elif shape == "one outlier":
        x[1, 2, 3, 4] = 40.0
    elif shape == "mostly zero":
        x = np.where(rng.uniform(size=size) < 0.9, 0.0, x)
    elif shape == "one value":
        x = np.full(size, 0.7)
    return (x * np.exp(rng.normal(0, 3))).astype(np.float32)


def statistics_of(values: np.ndarray) -> TensorStatistics:
    statistics = TensorStatistics.empty(values.shape[1])
    for image in values:
        statistics.observe(image[None])
    return statistics


@pytest.fixture(params=SHAPES)
def values(request, rng) -> np.ndarray:
    return draw(rng, request.param)


def test_min_max_is_the_largest_value(values):
    assert range_of(statistics_of(values), "min-max") == np.abs(values).max()


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.99, 100.0])
def test_percentile_holds_that_share_and_hardly_more(values, percentile):
    """NumPy's own percentile is as far away as a bin is wide."""
    magnitudes = np.abs(values).astype(np.float64)
    found = range_of(statistics_of(values), "percentile", percentile)
    assert (magnitudes <= found).mean() * 100 >= percentile - 1e-9
    exact = np.percentile(magnitudes, percentile, method="inverted_cdf")
    assert exact <= found <= exact + magnitudes.max() * 2 / BINS


def squared_error(values: np.ndarray, amax: float) -> float:
    """Of symmetric INT8: what QuantizeLinear and DequantizeLinear do with zero-point 0."""
    x, scale = values.astype(np.float64), amax / 127
    return float(((np.clip(np.rint(x / scale), -127, 127) * scale - x) ** 2).sum())


def test_mse_has_the_least_error_of_a_fine_grid(values):
    """On values that have only a few magnitudes a histogram cannot see which of two ranges
    happens to have an integer there; those are told apart by half a step of the scale."""
    found = range_of(statistics_of(values), "mse")
    largest = float(np.abs(values).max())
    error = squared_error(values, found)
    if np.unique(values).size < 10:
        assert found >= largest * 0.98
        return
    best = min(squared_error(values, largest * share) for share in np.geomspace(1 / 100, 1, 500))
    # The least of 500 errors of 2,000 values or more is smaller than what one can expect.
    assert error <= best * 1.1
    assert error <= squared_error(values, largest) * 1.05


def entropy_by_the_slides(values: np.ndarray) -> float:
    """The pseudo-code of NVIDIA's slides, step by step; bins over [0, 2^e), as ours are."""
    magnitudes = np.abs(values).astype(np.float64)
    limit = 2.0 ** math.frexp(magnitudes.max())[1]
    bins, _ = np.histogram(magnitudes, 2048, (0, limit))
    last = int(magnitudes.max() / limit * 2048) + 1
    best, threshold = math.inf, 0.0
    for i in range(128, last + 1):
        p = bins[:i].astype(np.float64)
        p[-1] += bins[i:].sum()
        level = np.arange(i) * 128 // i
        of_level = np.bincount(level, bins[:i], 128)
        filled = np.bincount(level, p > 0, 128)
        q = np.array([of_level[k] / filled[k] if p[j] else 0.0 for j, k in enumerate(level)])
        if ((p > 0) & (q == 0)).any():
            continue
        p, q = p[p > 0] / p.sum(), q[p > 0] / q.sum()
        divergence = float((p * np.log(p / q)).sum())
        if divergence < best - 1e-12:
            best, threshold = divergence, (i + 0.5) * limit / 2048
    return min(threshold, float(magnitudes.max()))


@pytest.mark.parametrize("shape", ["heavy tail", "gelu", "one outlier"])
def test_entropy_is_the_range_of_the_slides(rng, shape):
    values = draw(rng, shape)[:1, :, :20]
    found = range_of(statistics_of(values), "entropy")
    assert found == pytest.approx(entropy_by_the_slides(values), rel=1e-9)


@pytest.mark.parametrize("observer", ["percentile", "entropy", "mse"])
def test_a_range_is_never_beyond_the_largest_value_and_scales_with_the_values(
    values, observer, rng
):
    found = range_of(statistics_of(values), observer)
    assert 0 < found <= np.abs(values).max()
    power = int(rng.integers(-9, 9))
    scaled = range_of(statistics_of(values * np.float32(2.0**power)), observer)
    assert scaled == pytest.approx(found * 2.0**power, rel=1e-12)


def test_an_outlier_is_clipped_by_percentile_and_entropy(rng):
    values = draw(rng, "normal")
    usual = np.abs(values).max()
    values[0, 0, 0, 0] = 5 * usual
    statistics = statistics_of(values)
    assert range_of(statistics, "min-max") == 5 * usual
    assert range_of(statistics, "percentile", 99.9) < 1.01 * usual
    assert range_of(statistics, "entropy") < 1.1 * usual


def test_mse_clips_an_outlier_where_its_error_is_less_than_that_of_the_coarser_scale(rng):
    """One of 20,000 values is worth a scale four times as coarse, one of 8,000,000 is not."""
    values = draw(rng, "normal")
    usual = np.abs(values).max()
    values.flat[0] = 4 * usual
    assert range_of(statistics_of(values), "mse") > 3 * usual
    many = np.tile(values, (400, 1, 1, 1))
    many[1:, 0, 0, 0] = 0
    assert range_of(statistics_of(many), "mse") < 1.5 * usual


@pytest.mark.parametrize("observer", ["min-max", "percentile", "entropy", "mse"])
def test_a_tensor_that_was_always_zero_has_a_range_all_the_same(observer):
    assert range_of(statistics_of(np.zeros((2, 3, 4, 4), np.float32)), observer) == UNUSED_AMAX


def test_values_too_small_for_the_histogram_have_a_range():
    tiny = statistics_of(np.full((1, 2, 2, 2), 1e-30, np.float32))
    assert entropy_range(tiny.histogram) > 0
    for observer in ("percentile", "entropy", "mse"):
        assert 0 < range_of(tiny, observer) <= np.float32(1e-30)


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.1, math.nan])
def test_what_is_no_percentile_is_refused(percentile):
    with pytest.raises(InputError, match="out of range"):
        check_percentile(percentile)
