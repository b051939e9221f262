# SPDX-License-Identifier: Apache-2.0
"""VMamba's scan with the same operations, unfused, in Triton: copies, one scan a direction, sum.

Written for the comparison alone. The core is a chunked ``tl.associative_scan`` over (decay, drive)
pairs, one program for a few channels of one direction, as fast as a search over tile sizes makes
it; the copies are tiles that read the map once.
"""

# Kernels are compiled from the syntax tree: their arguments have no Python types, and their
# constants are in capitals, as in Triton's own.
# Triton compiles these functions: parameters have no Python types, constants are capitals.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,misc"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

LONGEST_TILE = 4096
TILE_ELEMENTS = (256, 4096)
"""Fewest and most elements of a core's tile."""


@triton.jit
def _after(decay_1, state_1, decay_2, state_2):
    return decay_1 * decay_2, decay_2 * state_1 + state_2


@triton.jit
def _core(
    xs, dts, bs, cs, a, d, bias, ys, channels, length,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(1)
    direction = tl.program_id(0) * CHANNELS // channels
    a_row = tl.load(a + rows)[:, None]
    d_row = tl.load(d + rows)[:, None]
    bias_row = tl.load(bias + rows)[:, None]
    first = (image * 4 * channels + rows)[:, None] * length
    first_n = (image * 4 + direction) * length
    state = tl.zeros([CHANNELS], dtype=tl.float32)
    for start in range(0, length, BLOCK):
        t = start + tl.arange(0, BLOCK)
        inside = (t < length)[None, :]
        x = tl.load(xs + first + t[None, :], mask=inside, other=0.0).to(tl.float32)
        z = tl.load(dts + first + t[None, :], mask=inside, other=0.0).to(tl.float32) + bias_row
        b = tl.load(bs + first_n + t, mask=t < length, other=0.0).to(tl.float32)[None, :]
        c = tl.load(cs + first_n + t, mask=t < length, other=0.0).to(tl.float32)[None, :]
        delta = tl.where(z > 20.0, z, tl.log(1.0 + tl.exp(z)))
        decay = tl.exp(delta * a_row)
        decays, h = tl.associative_scan((decay, delta * b * x), 1, _after)
        h = h + decays * state[:, None]
        y = h * c + d_row * x
        tl.store(ys + first + t[None, :], y.to(ys.dtype.element_ty), mask=inside)
        state = tl.sum(tl.where((t == start + BLOCK - 1)[None, :], h, 0.0), axis=1)


@triton.jit
def _tile(planes, height, width, CHANNELS: tl.constexpr, SIDE: tl.constexpr):
    plane = (tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS))[:, None, None]
    across = (width + SIDE - 1) // SIDE
    row = (tl.program_id(1) // across * SIDE + tl.arange(0, SIDE))[None, :, None]
    column = (tl.program_id(1) % across * SIDE + tl.arange(0, SIDE))[None, None, :]
    inside = (plane < planes) & (row < height) & (column < width)
    return plane, row, column, inside


@triton.jit
def _cross_scan(
    x, xs, planes, channels, height, width,
    CHANNELS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    plane, row, column, inside = _tile(planes, height, width, CHANNELS, SIDE)
    length = height * width
    by_rows = row * width + column
    by_columns = column * height + row
    value = tl.load(x + plane * length + by_rows, mask=inside)
    # [B, D] -> [B, 4, D]
    to = xs + (plane // channels * 4 * channels + plane % channels) * length
    step = channels * length
    tl.store(to + by_rows, value, mask=inside)
    tl.store(to + step + by_columns, value, mask=inside)
    tl.store(to + 2 * step + length - 1 - by_rows, value, mask=inside)
    tl.store(to + 3 * step + length - 1 - by_columns, value, mask=inside)


@triton.jit
def _cross_merge(
    ys, y, planes, channels, height, width,
    CHANNELS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    plane, row, column, inside = _tile(planes, height, width, CHANNELS, SIDE)
    length = height * width
    by_rows = row * width + column
    by_columns = column * height + row
    of = ys + (plane // channels * 4 * channels + plane % channels) * length
    step = channels * length
    total = tl.load(of + by_rows, mask=inside).to(tl.float32)
    total += tl.load(of + step + by_columns, mask=inside).to(tl.float32)
    total += tl.load(of + 2 * step + length - 1 - by_rows, mask=inside).to(tl.float32)
    total += tl.load(of + 3 * step + length - 1 - by_columns, mask=inside).to(tl.float32)
    tl.store(y + plane * length + by_rows, total.to(y.dtype.element_ty), mask=inside)


def _copy_tiles(x: Tensor) -> tuple[int, int, tuple[int, int]]:
    batch, channels, height, width = x.shape
    side = min(32, triton.next_power_of_2(max(height, width)))
    together = max(1, 1024 // (side * side))
    grid = (
        triton.cdiv(batch * channels, together),
        triton.cdiv(height, side) * triton.cdiv(width, side),
    )
    return side, together, grid


def cross_scan(x: Tensor, xs: Tensor) -> None:
    """Copy a map [B, D, H, W] into the four visiting orders, [B, 4, D, L]."""
    batch, channels, height, width = x.shape
    side, together, grid = _copy_tiles(x)
    _cross_scan[grid](
        x, xs, batch * channels, channels, height, width, CHANNELS=together, SIDE=side
    )


def cross_merge(ys: Tensor, y: Tensor) -> None:
    """Sum four visiting orders [B, 4, D, L] into a map [B, D, H, W]."""
    batch, channels, height, width = y.shape
    side, together, grid = _copy_tiles(y)
    _cross_merge[grid](
        ys, y, batch * channels, channels, height, width, CHANNELS=together, SIDE=side
    )


def core_configs(channels: int, length: int) -> list[tuple[int, int, int]]:
    """Tiles worth trying: channels and positions of a program, and its warps."""
    whole = min(LONGEST_TILE, triton.next_power_of_2(length))
    fewest, most = TILE_ELEMENTS
    return [
        (together, block, min(8, max(1, together * block // 512)))
        for block in sorted({min(whole, b) for b in (64, 256, 1024, LONGEST_TILE)})
        for together in (1, 2, 4, 8, 16)
        if channels % together == 0 and fewest <= together * block <= most
    ]


def core(
    operands: tuple[Tensor, ...], ys: Tensor, channels: int, config: tuple[int, int, int]
) -> None:
    """Scan four directions, N = 1, operands in visiting order.

    Args:
        operands: xs [B, 4*D, L], dts [B, 4*D, L], bs and cs [B, 4, 1, L], a [4*D, 1], d [4*D],
            bias [4*D].
        ys: [B, 4*D, L], written.
        channels: D.
        config: One of ``core_configs``.
    """
    together, block, warps = config
    batch, rows, length = operands[0].shape
    _core[(rows // together, batch)](
        *operands, ys, channels, length, CHANNELS=together, BLOCK=block, num_warps=warps
    )


def version() -> str:
    """Triton's version."""
    return str(triton.__version__)
