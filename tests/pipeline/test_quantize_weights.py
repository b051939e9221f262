# SPDX-License-Identifier: Apache-2.0
"""Weights as integers, scales, and the correction of biases.

What can go wrong: a scale that FP16 rounds after the weights were rounded to it, a channel of tiny
weights whose scale is 0, an axis mixed up, a mean that moves.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stormrt.errors import InputError
from stormrt.pipeline.quantize.bias import bias_correction
from stormrt.pipeline.quantize.weights import CLIPPING, activation_scale, quantise_weight


def is_fp16(values) -> bool:
    return bool((np.asarray(values, np.float16).astype(np.float64) == np.asarray(values)).all())


def squared_error(row: np.ndarray, scale: float) -> float:
    rounded = np.clip(np.rint(row / scale), -127, 127) * scale
    return float(((rounded - row) ** 2).sum())


def heavy_tailed(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) * np.exp(rng.standard_normal(shape))).astype(np.float32)


def test_each_channels_scale_is_the_best_of_the_candidates(rng):
    weight = heavy_tailed(rng, 6, 5, 3, 3)
    found = quantise_weight(weight, 0, "w")
    for row, scale in zip(weight.reshape(6, -1).astype(np.float64), found.scales, strict=True):
        tried = [float(np.float16(np.abs(row).max() * share / 127)) for share in CLIPPING]
        best = min(squared_error(row, s) for s in tried)
        assert squared_error(row, float(scale)) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_a_long_channels_scale_is_nearly_the_best_of_all_scales(rng, tails):
    shape = (3, 4000)
    weight = heavy_tailed(rng, *shape) if tails == "heavy" else rng.standard_normal(shape)
    weight = weight.astype(np.float32)
    found = quantise_weight(weight, 0, "w")
    for row, scale in zip(weight.astype(np.float64), found.scales, strict=True):
        every = np.abs(row).max() / 127 * np.linspace(0.05, 1.1, 1000)
        best = min(squared_error(row, s) for s in every)
        assert squared_error(row, float(scale)) <= 1.1 * best


def test_an_outlier_is_clipped_where_that_costs_less_than_a_coarse_scale(rng):
    row = rng.uniform(-1, 1, 100_000).astype(np.float32)
    row[0] = 1.5
    found = quantise_weight(row[None], 0, "w")
    assert found.scales[0] < 1.4 / 127
    assert found.values[0, 0] == 127


@pytest.mark.parametrize("axis", [0, 1])
def test_integers_and_scales_give_the_weight_back_within_half_a_step(rng, axis):
    weight = rng.uniform(-1, 1, (5, 7)).astype(np.float32) * rng.uniform(0.01, 3, (5, 7)).max(
        axis=1 - axis, keepdims=True
    ).astype(np.float32)
    found = quantise_weight(weight, axis, "w")
    assert found.values.dtype == np.int8
    assert found.values.shape == weight.shape
    assert found.scales.shape == (weight.shape[axis],)
    steps = np.expand_dims(found.scales, 1 - axis)
    kept = np.abs(weight) <= 127.5 * steps
    assert kept.mean() > 0.9
    assert (np.abs(found.restored() - weight) <= 0.5001 * steps)[kept].all()


@settings(deadline=None, database=None)  # the machine may be busy
@given(st.floats(1e-12, 1e6), st.integers(0, 2**32 - 1))
def test_integers_are_symmetric_and_scales_are_positive_fp16_numbers(size, seed):
    weight = np.random.default_rng(seed).standard_normal((3, 8)).astype(np.float32)
    weight = np.clip(weight * np.float32(size), -8e6, 8e6)
    found = quantise_weight(weight, 0, "w")
    assert np.abs(found.values.astype(int)).max() <= 127
    assert (found.scales > 0).all()
    assert is_fp16(found.scales)


def test_a_channel_of_zeros_stays_zero():
    weight = np.array([[0, 0], [1, -2]], np.float32)
    found = quantise_weight(weight, 0, "w")
    assert found.scales[0] > 0
    np.testing.assert_array_equal(found.restored()[0], [0, 0])


def test_channels_of_small_weights_keep_their_digits(rng):
    weight = rng.uniform(-1e-3, 1e-3, (4, 64)).astype(np.float32)
    restored = quantise_weight(weight, 0, "w").restored()
    assert np.linalg.norm(restored - weight) < 0.006 * np.linalg.norm(weight)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(bad):
    weight = np.ones((2, 2), np.float32)
    weight[1, 0] = bad
    with pytest.raises(InputError, match=r"not finite[\s\S]*layers\.0\.w"):
        quantise_weight(weight, 0, "layers.0.w")


@settings(deadline=None, database=None)
@given(st.floats(1e-9, 6e4))
def test_an_activations_scale_holds_its_range_and_is_an_fp16_number(amax):
    scale = activation_scale(amax)
    assert is_fp16(scale)
    assert 127 * scale >= amax
    assert 127 * scale <= max(amax * 1.001, 127 * 2**-14)
    assert 1 / scale < 65504, "TensorRT-RTX multiplies by the inverse in FP16"


@pytest.mark.parametrize("groups", [1, 4])
def test_the_correction_gives_the_mean_output_back(rng, groups):
    channels, outputs = 8, 12
    x = rng.standard_normal((1000, channels)) + rng.uniform(-2, 2, channels)
    weight = rng.standard_normal((outputs, channels // groups, 1, 1)).astype(np.float32)
    rounded = quantise_weight(weight, 0, "w").restored()

    def output(w: np.ndarray) -> np.ndarray:
        parts = zip(np.split(x, groups, 1), np.split(w[:, :, 0, 0], groups), strict=True)
        return np.concatenate([a @ b.T.astype(np.float64) for a, b in parts], 1)

    correction = bias_correction(
        rounded - weight, x.mean(0).tolist(), axis=0, groups=groups, where="x"
    )
    shift = output(rounded).mean(0) - output(weight).mean(0)
    assert np.abs(shift).max() > 1e-4, "there is something to correct"
    np.testing.assert_allclose(correction, -shift, atol=1e-6)


def test_the_correction_knows_where_a_gemm_has_its_output_channels(rng):
    error = rng.standard_normal((3, 5)).astype(np.float32)
    mean = rng.standard_normal(3)
    correction = bias_correction(error, mean.tolist(), axis=1, groups=1, where="x")
    np.testing.assert_allclose(correction, -(mean @ error), rtol=1e-5, atol=1e-6)


def test_the_correction_of_a_kernel_counts_each_of_its_places():
    error = np.full((1, 1, 3, 3), 0.5, np.float32)
    assert bias_correction(error, [2.0], axis=0, groups=1, where="x") == pytest.approx(-9.0)


@pytest.mark.parametrize(
    ("mean", "says"), [([1.0], "1 channels"), ([1.0, np.nan], "not finite"), ([], "0 channels")]
)
def test_a_mean_of_another_tensor_is_refused(mean, says):
    with pytest.raises(InputError, match=says) as caught:
        bias_correction(np.zeros((4, 2, 1, 1), np.float32), mean, axis=0, groups=1, where="a/x")
    assert caught.value.where == "a/x"
    assert caught.value.expected == "2 channels"
