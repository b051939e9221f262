# SPDX-License-Identifier: Apache-2.0
"""``torch.ops.stormrt.spatial_unit_gather``, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stormrt.plugins.derive import torch_op
from stormrt.plugins.spatial_unit_gather import SPEC


def _flat_positions(rows: Tensor, cols: Tensor, width: int) -> Tensor:
    """[B, H'] and [B, W'] -> [B, 1, H'*W'], positions in the flattened H x W map, INT64."""
    return (rows.long()[:, :, None] * width + cols.long()[:, None, :]).flatten(1)[:, None]


def copy_lines(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """y[b, c, i, j] = x[b, c, rows[b, i], cols[b, j]], in PyTorch's own operators.

    Args:
        x: [B, C, H, W], any type.
        rows: [B, H'], any integers in [0, H).
        cols: [B, W'], any integers in [0, W).

    Returns:
        y [B, C, H', W'], type of ``x``.

    Raises:
        RuntimeError: An index outside the map (PyTorch's own check).
    """
    # One axis after the other: each index is checked against its own side of the map.
    batch, channels, _, width = x.shape
    by_row = rows.long()[:, None, :, None].expand(batch, channels, -1, width)
    by_col = cols.long()[:, None, None, :].expand(batch, channels, rows.shape[1], -1)
    return x.gather(2, by_row).gather(3, by_col)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:  # Any: untyped context
    rows, cols = ctx.saved_tensors
    batch, channels, height, width = ctx.map_shape
    positions = _flat_positions(rows, cols, width).expand(-1, channels, -1)
    flat = grad_y.new_zeros((batch, channels, height * width))
    return flat.scatter_(2, positions, grad_y.flatten(2)).view(ctx.map_shape), None, None


def _save_lines(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, rows, cols = inputs
    ctx.map_shape = tuple(x.shape)
    ctx.save_for_backward(rows, cols)


_op = torch_op.define(SPEC, copy_lines)
_op.register_autograd(_backward, setup_context=_save_lines)


def spatial_unit_gather(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Keep the crossings of the given rows and columns of each image.

    Args:
        x: [B, C, H, W], FP32 or FP16.
        rows: [B, H'], INT32, strictly increasing, each in [0, H).
        cols: [B, W'], INT32, strictly increasing, each in [0, W).

    Returns:
        y [B, C, H', W'], type of ``x``.

    Raises:
        InputError: Shapes or types that do not fit the contract.
        RuntimeError: An index outside the map (PyTorch's own check).
    """
    y: Tensor = torch.ops.stormrt.spatial_unit_gather(x, rows, cols)
    return y
