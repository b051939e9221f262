# SPDX-License-Identifier: Apache-2.0
"""The slow, obvious SelectiveScan2D: one position after the other, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from stormrt.plugins.selective_scan_2d import NUM_DIRECTIONS


def visiting_order(direction: int, height: int, width: int) -> list[tuple[int, int]]:
    """Positions (row, column) in the order in which a direction visits them."""
    by_rows = [(h, w) for h in range(height) for w in range(width)]
    by_columns = [(h, w) for w in range(width) for h in range(height)]
    return [by_rows, by_columns, by_rows[::-1], by_columns[::-1]][direction]


def reference(
    x: Tensor, dt: Tensor, b: Tensor, c: Tensor, a: Tensor, d: Tensor, dt_bias: Tensor
) -> Tensor:
    """Sequential selective scan, for tests.

    The recurrence of Gu and Dao, "Mamba" (2023), equation 2, with the zero-order hold for A and
    the Euler rule for B, run along the four paths of Liu et al., "VMamba" (2024).

    Args:
        x: [B, D, H, W].
        dt: [B, K*D, H, W].
        b: [B, K*N, H, W].
        c: [B, K*N, H, W].
        a: [K*D, N].
        d: [K*D].
        dt_bias: [K*D].

    Returns:
        y [B, D, H, W], float64, on the CPU.
    """
    x, dt, b, c, a, d, dt_bias = (t.detach().double().cpu() for t in (x, dt, b, c, a, d, dt_bias))
    batch, channels, height, width = x.shape
    state = a.shape[1]
    dt = dt.view(batch, NUM_DIRECTIONS, channels, height, width)
    b = b.view(batch, NUM_DIRECTIONS, state, height, width)
    c = c.view(batch, NUM_DIRECTIONS, state, height, width)
    a = a.view(NUM_DIRECTIONS, channels, state)
    d = d.view(NUM_DIRECTIONS, channels)
    dt_bias = dt_bias.view(NUM_DIRECTIONS, channels)
    y = torch.zeros_like(x)
    for k in range(NUM_DIRECTIONS):
        h = torch.zeros(batch, channels, state, dtype=torch.float64)
        for row, col in visiting_order(k, height, width):
            u = x[:, :, row, col]  # [B, D]
            raw = dt[:, k, :, row, col] + dt_bias[k]
            delta = torch.logaddexp(raw, torch.zeros_like(raw))  # softplus without a threshold
            decay = torch.exp(delta[:, :, None] * a[k])  # [B, D, N]
            drive = (delta * u)[:, :, None] * b[:, k, None, :, row, col]
            h = decay * h + drive
            y[:, :, row, col] += (h * c[:, k, None, :, row, col]).sum(-1) + d[k] * u
    return y
