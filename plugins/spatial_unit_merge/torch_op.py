# SPDX-License-Identifier: Apache-2.0
"""``torch.ops.stormrt.spatial_unit_merge``, with its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stormrt.plugins.derive import torch_op
from stormrt.plugins.spatial_unit_merge import SPEC


def _members(starts: Tensor, lines: int) -> Tensor:
    """Starts [B, H'] -> [B, H', H], whether a line is in a cell."""
    line = torch.arange(lines, dtype=starts.dtype, device=starts.device)
    # The last cell ends with the map; no line is as far as that.
    ends = torch.cat([starts[:, 1:], torch.full_like(starts[:, :1], lines)], dim=1)
    return (line >= starts[:, :, None]) & (line < ends[:, :, None])


def _shares(starts: Tensor, weights: Tensor) -> Tensor:
    """Starts [B, H'] and weights [B, H] -> each line's share of its cell's weight, [B, H', H].

    Dividing first gives a line alone in its cell the share 1 exactly, whatever its weight.
    """
    inside = torch.where(_members(starts, weights.shape[1]), weights[:, None, :], 0)
    total = inside.sum(dim=2, keepdim=True)
    return torch.where(total > 0, inside / total, 0)


def _forward(
    x: Tensor, row_starts: Tensor, col_starts: Tensor, row_weights: Tensor, col_weights: Tensor
) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = _shares(row_starts, row_weights.to(wide))[:, None]
    cols = _shares(col_starts, col_weights.to(wide))[:, None]
    return (rows @ x.to(wide) @ cols.mT).to(x.dtype)


def _weight_gradient(
    grad_shares: Tensor, shares: Tensor, starts: Tensor, weights: Tensor
) -> Tensor:
    """Gradient of shares [B, H', H] -> gradient of weights [B, H]."""
    members = _members(starts, weights.shape[1])
    total = torch.where(members, weights[:, None, :], 0).sum(dim=2, keepdim=True)
    # d(w_r / t) = dw_r / t - share_r dt / t. A cell without weight stays 0 and has no gradient.
    spread = (grad_shares * shares).sum(dim=2, keepdim=True)
    grad = torch.where(members & (total > 0), (grad_shares - spread) / total, 0)
    return grad.sum(dim=1)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # Any: untyped context
    x, row_starts, col_starts, row_weights, col_weights = ctx.saved_tensors
    wide = torch.promote_types(x.dtype, torch.float32)
    wide_rows, wide_cols = row_weights.to(wide), col_weights.to(wide)
    rows, cols = _shares(row_starts, wide_rows), _shares(col_starts, wide_cols)
    grad = grad_y.to(wide)
    grad_x = rows.mT[:, None] @ grad @ cols[:, None]
    grad_rows = (grad @ (x.to(wide) @ cols.mT[:, None]).mT).sum(dim=1)
    grad_cols = (grad.mT @ (rows[:, None] @ x.to(wide))).sum(dim=1)
    return (
        grad_x.to(x.dtype),
        None,
        None,
        _weight_gradient(grad_rows, rows, row_starts, wide_rows).to(row_weights.dtype),
        _weight_gradient(grad_cols, cols, col_starts, wide_cols).to(col_weights.dtype),
    )


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_op = torch_op.define(SPEC, _forward)
_op.register_autograd(_backward, setup_context=_save_inputs)


def spatial_unit_merge(
    x: Tensor, row_starts: Tensor, col_starts: Tensor, row_weights: Tensor, col_weights: Tensor
) -> Tensor:
    """Merge neighbouring rows and columns of each image into their weighted means.

    Args:
        x: [B, C, H, W], FP32 or FP16, finite.
        row_starts: [B, H'], INT32, the first row of each cell, strictly increasing from 0. A cell
            ends where the next one starts, the last one with the map.
        col_starts: [B, W'], INT32, the same for columns.
        row_weights: [B, H], FP32, not negative.
        col_weights: [B, W], FP32, not negative.

    Returns:
        y [B, C, H', W'], type of ``x``; summed in FP32 (FP64 for FP64 inputs). A cell without
        lines, or without weight, is 0.

    Raises:
        InputError: Shapes or types that do not fit the contract.
    """
    y: Tensor = torch.ops.stormrt.spatial_unit_merge(
        x, row_starts, col_starts, row_weights, col_weights
    )
    return y
