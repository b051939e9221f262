# SPDX-License-Identifier: Apache-2.0
"""Layers against slow ones written from VMamba's description, in float64.

What can go wrong: SS2D projects before it scans, upstream scans before it projects; a row of a
projection may end up with another direction, B with C, a column-major sequence with the width of
a row-major one.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import torch.nn.functional as F
from torch import Tensor

from stormrt.storm.layers import SS2D, DropPath, LayerNorm2d, Linear2d, MeanStepSize, downsample
from tests.helpers.scans import relative_l2


def literal_ss2d(op: SS2D, x: Tensor) -> tuple[Tensor, Tensor]:
    """SS2D in upstream's order: cross scan, grouped projections, sequential scan, cross merge.

    Returns:
        y [B, d, H, W], and the step sizes' mean [B, H, W], in float64.
    """
    w = {k: v.detach().double() for k, v in op.state_dict().items()}
    r, n, inner = op.dt_rank, op.state, op.inner
    batch, _, height, width = x.shape
    length = height * width
    x = torch.einsum("oc,bchw->bohw", w["in_proj.weight"], x.double())
    if op.gated:
        x, z = x[:, :inner], x[:, inner:]
    x = F.conv2d(x, w["conv2d.weight"], w.get("conv2d.bias"), padding=1, groups=inner)
    x = x * torch.sigmoid(x)
    # Cross scan to [B, 4, D, L]; sequences 1 and 3 run over a map of width H and height W.
    rows, cols = x.flatten(2), x.transpose(2, 3).flatten(2)
    xs = torch.stack([rows, cols, rows.flip(-1), cols.flip(-1)], dim=1)
    flat = xs.reshape(batch, 4 * inner, length)
    x_proj = w["x_proj_weight"].reshape(4 * (r + 2 * n), inner, 1)
    projected = F.conv1d(flat, x_proj, groups=4).reshape(batch, 4, r + 2 * n, length)
    dts, bs, cs = projected[:, :, :r], projected[:, :, r : r + n], projected[:, :, r + n :]
    dt_proj = w["dt_projs_weight"].reshape(4 * inner, r, 1)
    dts = F.conv1d(dts.reshape(batch, 4 * r, length), dt_proj, groups=4)
    dts = dts.reshape(batch, 4, inner, length) + w["dt_projs_bias"][:, :, None]
    delta = torch.log1p(dts.exp())
    a = -w["A_logs"].exp().reshape(4, inner, n)
    skip = w["Ds"].reshape(4, inner)
    h = torch.zeros(batch, 4, inner, n, dtype=torch.float64)
    ys = torch.empty_like(xs)
    for t in range(length):
        step = delta[..., t, None]
        h = torch.exp(step * a) * h + step * bs[:, :, None, :, t] * xs[..., t, None]
        ys[..., t] = (h * cs[:, :, None, :, t]).sum(-1) + skip * xs[..., t]

    def merged(of: Tensor) -> Tensor:  # [B, 4, C, L] -> [B, C, H, W]
        by_rows = of[:, 0] + of[:, 2].flip(-1)
        by_cols = (of[:, 1] + of[:, 3].flip(-1)).unflatten(-1, (width, height)).transpose(2, 3)
        return by_rows.unflatten(-1, (height, width)) + by_cols

    y = merged(ys).permute(0, 2, 3, 1)
    y = (y - y.mean(-1, keepdim=True)) / torch.sqrt(y.var(-1, correction=0, keepdim=True) + 1e-5)
    y = (y * w["out_norm.weight"] + w["out_norm.bias"]).permute(0, 3, 1, 2)
    if op.gated:
        y = y * z * torch.sigmoid(z)
    return torch.einsum("oc,bchw->bohw", w["out_proj.weight"], y), merged(delta).mean(1) / 4


def lively_ss2d(seed: int, *, state: int, gated: bool, inner: int = 10) -> SS2D:
    """Weights far from their initial values, so that each one matters."""
    torch.manual_seed(seed)
    op = SS2D(6, inner, state, 3, gated=gated, conv_bias=gated)
    with torch.no_grad():
        for name, parameter in op.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3 if name == "A_logs" else 0.5)
    return op


@pytest.mark.parametrize("gated", [False, True], ids=["no_gate", "gate"])
@pytest.mark.parametrize("state", [1, 4, 16])
@pytest.mark.parametrize("size", [(7, 5), (3, 11), (1, 9), (9, 1), (1, 1), (6, 6)], ids=str)
def test_projecting_before_the_scan_equals_upstreams_scan_before_the_projection(
    size: tuple[int, int], state: int, gated: bool, rng: np.random.Generator, seed: int
) -> None:
    op = lively_ss2d(seed, state=state, gated=gated)
    x = torch.from_numpy(rng.normal(size=(2, 6, *size))).float()
    y, step = op(x, measure="step_size")
    expected_y, expected_step = literal_ss2d(op, x)
    assert relative_l2(y, expected_y) < 1e-5
    assert step.shape == (2, *size)
    assert relative_l2(step, expected_step) < 1e-5


@pytest.mark.parametrize("gated", [False, True], ids=["no_gate", "gate"])
def test_a_frozen_ss2d_computes_the_same_and_keeps_its_state_dict(
    gated: bool, rng: np.random.Generator, seed: int
) -> None:
    op = lively_ss2d(seed, state=4, gated=gated)
    x = torch.from_numpy(rng.normal(size=(2, 6, 5, 8))).float()
    expected, keys = op(x, measure="step_size"), list(op.state_dict())
    op.freeze()
    for got, want in zip(op(x, measure="step_size"), expected, strict=True):
        assert torch.equal(got, want)
    assert list(op.state_dict()) == keys


def test_the_step_size_is_returned_only_when_asked_for(seed: int) -> None:
    op = lively_ss2d(seed, state=1, gated=False)
    x = torch.ones(1, 6, 4, 3)
    y, nothing = op(x)
    assert nothing is None
    assert torch.equal(y, op(x, measure="step_size")[0])


def test_a_fresh_ss2d_starts_from_mambas_initialisation(seed: int) -> None:
    torch.manual_seed(seed)
    op = SS2D(96, 400, 16, 6, gated=False, conv_bias=False)
    assert torch.equal(op.Ds, torch.ones(1600))
    torch.testing.assert_close(op.A_logs.exp(), torch.arange(1.0, 17.0).expand(1600, -1))
    step = F.softplus(op.dt_projs_bias.detach())
    assert 0.99e-3 <= step.min() < 1.5e-3
    assert 0.08 < step.max() <= 0.101
    # Log-uniform: the median is near the geometric mean of the ends.
    assert float(step.median()) == pytest.approx(1e-2, rel=0.4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_mean_step_size_is_fp32_whatever_the_maps_are(
    dtype: torch.dtype, rng: np.random.Generator
) -> None:
    dt = torch.from_numpy(rng.normal(size=(2, 12, 3, 4))).to(dtype)
    bias = torch.from_numpy(rng.normal(size=12)).float()
    step = MeanStepSize()(dt, bias)
    assert step.dtype == torch.float32
    expected = torch.log1p((dt.double() + bias.double()[:, None, None]).exp()).mean(1)
    assert relative_l2(step, expected) < 1e-6


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_over_channels_equals_its_convolution_over_the_same_memory(
    bias: bool, rng: np.random.Generator, seed: int
) -> None:
    torch.manual_seed(seed)
    linear = Linear2d(5, 7, bias=bias)
    x = torch.from_numpy(rng.normal(size=(2, 5, 3, 4))).float()
    conv = linear.as_convolution()
    assert conv.weight.data_ptr() == linear.weight.data_ptr()
    assert torch.equal(conv(x), linear(x))
    by_position = F.linear(x.permute(0, 2, 3, 1), linear.weight, linear.bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(linear(x), by_position, rtol=1e-5, atol=1e-6)


def test_layer_norm_normalises_the_channels_of_each_position(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 6, 3, 4)) * 5 + 2
    norm = LayerNorm2d(6)
    y = norm(torch.from_numpy(x).float()).detach().numpy()
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (5, 7), (1, 1)], ids=str)
def test_patch_merging_joins_two_by_two_neighbours_padded_with_zeros(
    size: tuple[int, int], rng: np.random.Generator, seed: int
) -> None:
    torch.manual_seed(seed)
    merge = downsample(3, overlapping=False)
    height, width = size
    x = torch.from_numpy(rng.normal(size=(2, 3, height, width))).float()
    padded = torch.zeros(2, 3, height + height % 2, width + width % 2)
    padded[:, :, :height, :width] = x
    y = merge(x)
    assert y.shape == (2, 6, padded.shape[2] // 2, padded.shape[3] // 2)
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            top, left = 2 * i, 2 * j
            corners = [(top, left), (top + 1, left), (top, left + 1), (top + 1, left + 1)]
            joined = torch.cat([padded[:, :, r, c] for r, c in corners], dim=1)
            expected = F.layer_norm(joined, (12,)) @ merge.reduction.weight.T
            torch.testing.assert_close(y[:, :, i, j], expected, rtol=1e-4, atol=1e-5)


def test_drop_path_leaves_branches_out_for_whole_images_and_keeps_their_mean(seed: int) -> None:
    torch.manual_seed(seed)
    drop = DropPath(0.25)
    kept = drop(torch.ones(4000, 2, 1, 3)).flatten(1)
    assert (kept == kept[:, :1]).all()
    np.testing.assert_allclose(kept[:, 0].unique(), [0, 1 / 0.75], rtol=1e-6)
    assert kept.mean() == pytest.approx(1, abs=0.06)  # over six standard deviations


def test_drop_path_is_the_identity_in_evaluation_and_at_rate_zero() -> None:
    x = torch.ones(50, 2, 1, 1)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0)(x) is x
