# SPDX-License-Identifier: Apache-2.0
"""``torch.ops.stormrt.spatial_unit_scatter``, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stormrt.plugins.derive import torch_op
from stormrt.plugins.spatial_unit_gather.torch_op import copy_lines
from stormrt.plugins.spatial_unit_scatter import SPEC


def _clamped(row_of: Tensor, col_of: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    return row_of.clamp(0, shape[2] - 1), col_of.clamp(0, shape[3] - 1)


def _forward(x: Tensor, row_of: Tensor, col_of: Tensor) -> Tensor:
    return copy_lines(x, *_clamped(row_of, col_of, x.shape))


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:  # Any: untyped context
    row_of, col_of = ctx.saved_tensors
    row_of, col_of = _clamped(row_of, col_of, ctx.map_shape)
    batch, channels, kept_rows, kept_cols = ctx.map_shape
    # A kept line is the sum of its copies; in FP16 a sum of many would lose its last ones.
    grad = grad_y.to(torch.promote_types(grad_y.dtype, torch.float32))
    to_col = col_of.long()[:, None, None, :].expand_as(grad)
    grad = grad.new_zeros((*grad.shape[:3], kept_cols)).scatter_add_(3, to_col, grad)
    to_row = row_of.long()[:, None, :, None].expand_as(grad)
    grad = grad.new_zeros((batch, channels, kept_rows, kept_cols)).scatter_add_(2, to_row, grad)
    return grad.to(grad_y.dtype), None, None


def _save_lines(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, row_of, col_of = inputs
    ctx.map_shape = x.shape
    ctx.save_for_backward(row_of, col_of)


_op = torch_op.define(SPEC, _forward)
_op.register_autograd(_backward, setup_context=_save_lines)


def spatial_unit_scatter(x: Tensor, row_of: Tensor, col_of: Tensor) -> Tensor:
    """Give each line of the full grid the values of a kept line.

    Args:
        x: [B, C, H', W'], FP32 or FP16.
        row_of: [B, H], INT32, for each row of the result the row of ``x`` that it copies; clamped
            to [0, H').
        col_of: [B, W], INT32, the same for columns; clamped to [0, W').

    Returns:
        y [B, C, H, W], type of ``x``.

    Raises:
        InputError: Shapes or types that do not fit the contract.
    """
    y: Tensor = torch.ops.stormrt.spatial_unit_scatter(x, row_of, col_of)
    return y
