# SPDX-License-Identifier: Apache-2.0
"""The scan and the depthwise convolution over tokens [B, H, W, C], differentiable.

On a GPU with Triton these are ``triton_kernels``; elsewhere they are the project's own operator and
PyTorch's convolution, to which the kernels are held by tests.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stormrt.plugins.selective_scan_2d import NUM_DIRECTIONS
from stormrt.plugins.selective_scan_2d.torch_op import selective_scan_2d

K = NUM_DIRECTIONS
EXTRA = 2 * K
"""Columns of b and c beside those of the step sizes in a scan's operands."""

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter runs the kernels on the CPU, for tests."""

LAUNCHES = {
    "scan_forward": (32, 16, 1),
    "scan_backward": (32, 16, 1),
    "conv_forward": (64, 16, 2),
    "conv_backward": (32, 16, 2),
}
"""Tile of positions, block of channels, warps. A scan in one warp needs no barriers between warps;
16 channels are rows of 32 bytes in FP16 or BF16, the unit in which memory is read."""


def uses_kernels(tensor: Tensor) -> bool:
    """Whether operators on this tensor run Triton kernels."""
    return HAS_TRITON and (tensor.is_cuda or INTERPRETED)


def _blocks(channels: int, block: int) -> int:
    return -(-channels // block)


def _tile(length: int, most: int) -> int:
    """The smallest power of two that holds the map, within reason."""
    tile = 8
    while tile < min(length, most):
        tile *= 2
    return tile


@torch.library.custom_op("stormrt_training::scan", mutates_args=())
def _scan(
    x: Tensor, p: Tensor, a: Tensor, bias: Tensor, keep_states: bool
) -> tuple[Tensor, Tensor]:
    """(y [2, B, H, W, D], states [B, L, 4, D], empty unless kept); see ``scan_forward``."""
    from benchmarks.training import triton_kernels

    batch, height, width, channels = x.shape
    x, p = x.contiguous(), p.contiguous()
    most, block, warps = LAUNCHES["scan_forward"]
    y = x.new_empty(2, batch, height, width, channels)
    rows = height * width if keep_states else 0
    states = x.new_empty(batch, rows, K, channels)
    triton_kernels.scan_forward[(batch * 2 * _blocks(channels, block),)](
        x, p, a.contiguous(), bias.contiguous(), y, states, batch,
        HEIGHT=height, WIDTH=width, D=channels, TILE=_tile(height * width, most),
        BLOCK=block, KEEP_STATES=keep_states, num_warps=warps,
    )  # fmt: skip
    return y, states


@_scan.register_fake
def _(x: Tensor, p: Tensor, a: Tensor, bias: Tensor, keep_states: bool) -> tuple[Tensor, Tensor]:
    batch, height, width, channels = x.shape
    rows = height * width if keep_states else 0
    return (
        x.new_empty(2, batch, height, width, channels),
        x.new_empty(batch, rows, K, channels),
    )


@torch.library.custom_op("stormrt_training::scan_backward", mutates_args=())
def _scan_backward(
    grad: Tensor, x: Tensor, p: Tensor, a: Tensor, bias: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x [2, B, H, W, D] (in two shares), p, a and bias [B, 4, D] (shares)."""
    from benchmarks.training import triton_kernels

    batch, height, width, channels = x.shape
    x, p, grad = x.contiguous(), p.contiguous(), grad.contiguous()
    most, block, warps = LAUNCHES["scan_backward"]
    blocks = _blocks(channels, block)
    grad_x = x.new_empty(2, batch, height, width, channels)
    grad_p = torch.empty_like(p)
    grad_bc = x.new_empty(blocks, batch, height, width, EXTRA, dtype=torch.float32)
    grad_a = x.new_empty(batch, K, channels, dtype=torch.float32)
    grad_bias = torch.empty_like(grad_a)
    triton_kernels.scan_backward[(batch * 2 * blocks,)](
        grad, x, p, a.contiguous(), bias.contiguous(), states,
        grad_x, grad_p, grad_bc, grad_a, grad_bias, batch,
        HEIGHT=height, WIDTH=width, D=channels, TILE=_tile(height * width, most),
        BLOCK=block, num_warps=warps,
    )  # fmt: skip
    grad_p[..., K * channels :] = grad_bc.sum(0)
    return grad_x, grad_p, grad_a, grad_bias


@_scan_backward.register_fake
def _(
    grad: Tensor, x: Tensor, p: Tensor, a: Tensor, bias: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, height, width, channels = x.shape
    shares = x.new_empty(batch, K, channels, dtype=torch.float32)
    return (
        x.new_empty(2, batch, height, width, channels),
        p.new_empty(p.shape),
        shares,
        torch.empty_like(shares),
    )


def _scan_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, p, a, bias, _ = inputs  # Any: autograd's context and inputs are untyped
    ctx.save_for_backward(x, p, a, bias, output[1])
    ctx.mark_non_differentiable(output[1])


def _scan_gradients(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, p, a, bias, states = ctx.saved_tensors
    # Rows' and columns' results are added by the caller, so that both halves are the same.
    grad_x, grad_p, grad_a, grad_bias = _scan_backward(grad[0], x, p, a, bias, states)
    return (
        grad_x[0] + grad_x[1],
        grad_p,
        grad_a.sum(0).flatten(),
        grad_bias.sum(0).flatten(),
        None,
    )


_scan.register_autograd(_scan_gradients, setup_context=_scan_setup)


def scan(x: Tensor, p: Tensor, a: Tensor, d: Tensor, dt_bias: Tensor) -> Tensor:
    """Four-direction selective scan over tokens, N = 1; ``selective_scan_2d`` but for the layout.

    Args:
        x: [B, H, W, D].
        p: [B, H, W, 4*D + 8], type of ``x``: columns dt | b | c, each by direction.
        a: [4*D], FP32, negative.
        d: [4*D], FP32.
        dt_bias: [4*D], FP32.

    Returns:
        y [B, H, W, D], FP32 from the kernels, else the type of ``x``.
    """
    channels = x.shape[-1]
    if uses_kernels(x):
        y, _ = _scan(x, p, a, dt_bias, torch.is_grad_enabled())
        # The skip is the same sum in every direction; the compiler fuses all of this into a
        # normalisation that follows. Only a sum over the axis may follow: see _scan_gradients.
        total: Tensor = y.float().sum(0) + x * d.view(K, channels).sum(0)
        return total
    maps = x.permute(0, 3, 1, 2)
    dt, b, c = p.permute(0, 3, 1, 2).split([K * channels, K, K], dim=1)
    return selective_scan_2d(maps, dt, b, c, a[:, None], d, dt_bias).permute(0, 2, 3, 1)


@torch.library.custom_op("stormrt_training::conv_silu", mutates_args=())
def _conv_silu(x: Tensor, weight: Tensor) -> Tensor:
    """SiLU of the 3x3 depthwise convolution; x [B, H, W, D], weight [9, D]."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch_conv(x, weight, y, flip=False, silu=True)
    return y


@_conv_silu.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _launch_conv(x: Tensor, weight: Tensor, y: Tensor, *, flip: bool, silu: bool) -> None:
    from benchmarks.training import triton_kernels

    batch, height, width, channels = x.shape
    most, block, warps = LAUNCHES["conv_forward"]
    tile = _tile(height * width, most)
    tiles = -(-height * width // tile)
    triton_kernels.conv_forward[(batch * tiles * _blocks(channels, block),)](
        x.contiguous(), weight.contiguous(), y,
        HEIGHT=height, WIDTH=width, D=channels, TILE=tile, BLOCK=block,
        FLIP=flip, SILU=silu, num_warps=warps,
    )  # fmt: skip


@torch.library.custom_op("stormrt_training::conv_silu_backward", mutates_args=())
def _conv_silu_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of the weight in shares [B, 9, D]."""
    from benchmarks.training import triton_kernels

    batch, height, width, channels = x.shape
    x, weight = x.contiguous(), weight.contiguous()
    most, block, warps = LAUNCHES["conv_backward"]
    inner = torch.empty_like(x)
    grad_x = torch.empty_like(x)
    grad_weight = x.new_empty(batch, 9, channels, dtype=torch.float32)
    triton_kernels.conv_backward[(batch * _blocks(channels, block),)](
        grad.contiguous(), x, weight, inner, grad_weight,
        HEIGHT=height, WIDTH=width, D=channels, TILE=_tile(height * width, most),
        BLOCK=block, num_warps=warps,
    )  # fmt: skip
    _launch_conv(inner, weight, grad_x, flip=True, silu=False)
    return grad_x, grad_weight


@_conv_silu_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        x.new_empty(x.shape[0], 9, x.shape[3], dtype=torch.float32),
    )


def _conv_setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)  # Any: autograd's context is untyped


def _conv_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    grad_x, grad_weight = _conv_silu_backward(grad, x, weight)
    return grad_x, grad_weight.sum(0)


_conv_silu.register_autograd(_conv_gradients, setup_context=_conv_setup)


def conv_silu(x: Tensor, weight: Tensor) -> Tensor:
    """SiLU of the 3x3 depthwise convolution over tokens.

    Args:
        x: [B, H, W, D].
        weight: [D, 1, 3, 3], FP32.

    Returns:
        [B, H, W, D], type of ``x``.
    """
    if uses_kernels(x):
        activated: Tensor = _conv_silu(x, weight.flatten(1).t().contiguous())
        return activated
    y = F.conv2d(x.permute(0, 3, 1, 2), weight.to(x.dtype), padding=1, groups=x.shape[-1])
    return F.silu(y).permute(0, 2, 3, 1)
