# SPDX-License-Identifier: Apache-2.0
"""``torch.ops.stormrt.selective_scan_2d``: exact, vectorised, differentiable.

Time is cut into blocks; the positions of all blocks advance together, so that one PyTorch call
moves thousands of recurrences by one step, and the blocks' totals are scanned the same way. This
takes O(L) work and about 2 * B * log_B(L) calls of block length B, never divides, and never takes
the exponential of a positive number: every factor lies in (0, 1].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stormrt.plugins.derive import torch_op
from stormrt.plugins.selective_scan_2d import NUM_DIRECTIONS, SPEC

_BLOCK_LENGTH = 16
_SOFTPLUS_LINEAR_FROM = 80.0
"""softplus(z) = z from here on, even in FP64; exp(z) is still finite in FP32."""


def linear_recurrence_(decay: Tensor, drive: Tensor, *, reverse: bool = False) -> Tensor:
    """Solve h_t = decay_t h_(t-1) + drive_t along the first axis, in place.

    Args:
        decay: [L, ...], overwritten.
        drive: [L, ...], same shape, overwritten with h.
        reverse: Run from the last position to the first.

    Returns:
        h [L, ...], which is ``drive``.
    """
    length = drive.shape[0]
    if length <= _BLOCK_LENGTH:
        order = range(length - 2, -1, -1) if reverse else range(1, length)
        before = 1 if reverse else -1
        for t in order:
            drive[t].addcmul_(decay[t], drive[t + before])
        return drive
    blocks, rest = divmod(length, _BLOCK_LENGTH)
    # The blocks are whole; what is left over is a short tail on the far side of the direction.
    split = rest if reverse else blocks * _BLOCK_LENGTH
    if reverse:
        tail_decay, tail_drive, decay_in, drive_in = (
            decay[:split],
            drive[:split],
            decay[split:],
            drive[split:],
        )
    else:
        tail_decay, tail_drive, decay_in, drive_in = (
            decay[split:],
            drive[split:],
            decay[:split],
            drive[:split],
        )
    shape = (blocks, _BLOCK_LENGTH, *drive.shape[1:])
    p, h = decay_in.view(shape), drive_in.view(shape)
    order = range(_BLOCK_LENGTH - 2, -1, -1) if reverse else range(1, _BLOCK_LENGTH)
    before = 1 if reverse else -1
    for t in order:
        h[:, t].addcmul_(p[:, t], h[:, t + before])
        p[:, t].mul_(p[:, t + before])
    end = 0 if reverse else -1
    carry = linear_recurrence_(p[:, end].clone(), h[:, end].clone(), reverse=reverse)
    if reverse:
        h[:-1].addcmul_(p[:-1], carry[1:, None])
    else:
        h[1:].addcmul_(p[1:], carry[:-1, None])
    if rest:
        near = -1 if reverse else 0
        tail_drive[near].addcmul_(tail_decay[near], carry[0 if reverse else -1])
        linear_recurrence_(tail_decay, tail_drive, reverse=reverse)
    return drive


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _softplus(z: Tensor) -> Tensor:
    """log(1 + exp(z)), rounded alike wherever in the tensor a value stands.

    ``F.softplus`` on a CPU rounds the last, unvectorised values differently, so that an image's
    result would depend on its place in the batch.
    """
    return z.clamp(max=_SOFTPLUS_LINEAR_FROM).exp_().log1p_().maximum(z)


def _to_sequence(maps: Tensor, *, by_columns: bool) -> Tensor:
    """[B, C, H, W] -> [L, B, C] in the visiting order of direction 0, or of direction 1."""
    axes = (3, 2, 0, 1) if by_columns else (2, 3, 0, 1)
    return maps.permute(axes).flatten(0, 1)


def _to_map(sequence: Tensor, height: int, width: int, *, by_columns: bool) -> Tensor:
    """Inverse of ``_to_sequence``: [L, B, C] -> [B, C, H, W]."""
    _, batch, channels = sequence.shape
    if by_columns:
        return sequence.reshape(width, height, batch, channels).permute(2, 3, 1, 0)
    return sequence.reshape(height, width, batch, channels).permute(2, 3, 0, 1)


class _Direction:
    """The operands of one scan direction as sequences, in the type of the computation.

    Sequences are [L, B, D] (x, delta, raw) and [L, B, N] (b, c); a is [D, N], d and bias are [D].
    """

    def __init__(self, k: int, tensors: tuple[Tensor, ...]) -> None:
        x, dt, b, c, a, d, dt_bias = tensors
        dtype = _compute_dtype(x)
        channels, state = x.shape[1], a.shape[1]
        self.by_columns = k in (1, 3)
        self.reverse = k in (2, 3)
        self.rows_d = slice(k * channels, (k + 1) * channels)
        self.rows_n = slice(k * state, (k + 1) * state)

        def sequence(maps: Tensor) -> Tensor:
            return _to_sequence(maps, by_columns=self.by_columns).to(dtype)

        self.x = sequence(x)
        self.raw = sequence(dt[:, self.rows_d]) + dt_bias[self.rows_d].to(dtype)
        self.delta = _softplus(self.raw)
        self.b = sequence(b[:, self.rows_n])
        self.c = sequence(c[:, self.rows_n])
        self.a = a[self.rows_d].to(dtype)
        self.d = d[self.rows_d].to(dtype)

    def states(self, n: int) -> tuple[Tensor, Tensor]:
        """Decay and state h of state component n, both [L, B, D]."""
        decay = torch.exp(self.delta * self.a[:, n])
        drive = self.delta * self.x * self.b[:, :, n, None]
        h = linear_recurrence_(decay.clone(), drive, reverse=self.reverse)
        return decay, h


def _forward(*tensors: Tensor) -> Tensor:
    x, _, _, _, a, _, _ = tensors
    height, width = x.shape[2:]
    total: Tensor | None = None
    for k in range(NUM_DIRECTIONS):
        direction = _Direction(k, tensors)
        y = direction.d * direction.x
        for n in range(a.shape[1]):
            _, h = direction.states(n)
            y.addcmul_(h, direction.c[:, :, n, None])
        part = _to_map(y, height, width, by_columns=direction.by_columns)
        total = part if total is None else total + part
    assert total is not None  # NUM_DIRECTIONS > 0: for the type checker
    return total.to(x.dtype).contiguous()


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:  # Any: autograd's context is untyped
    """Gradients by the adjoint recurrence: g_t = c_t grad_y_t + decay_(t+1) g_(t+1)."""
    tensors: tuple[Tensor, ...] = ctx.saved_tensors
    x, a = tensors[0], tensors[4]
    dtype = _compute_dtype(x)
    height, width = x.shape[2:]
    grads = [torch.zeros(t.shape, dtype=dtype, device=t.device) for t in tensors]
    grad_x, grad_dt, grad_b, grad_c, grad_a, grad_d, grad_bias = grads
    for k in range(NUM_DIRECTIONS):
        direction = _Direction(k, tensors)
        rows = direction.rows_d
        gy = _to_sequence(grad_y, by_columns=direction.by_columns).to(dtype)
        gx = direction.d * gy
        gdelta = torch.zeros_like(gx)
        grad_d[rows] = (gy * direction.x).sum((0, 1))

        def to_map(sequence: Tensor, by_columns: bool = direction.by_columns) -> Tensor:
            return _to_map(sequence, height, width, by_columns=by_columns)

        for n in range(a.shape[1]):
            decay, h = direction.states(n)
            b_n, c_n = direction.b[:, :, n, None], direction.c[:, :, n, None]
            previous, following = torch.zeros_like(h), torch.zeros_like(decay)
            if direction.reverse:
                previous[:-1], following[1:] = h[1:], decay[:-1]
            else:
                previous[1:], following[:-1] = h[:-1], decay[1:]
            g = linear_recurrence_(following, gy * c_n, reverse=not direction.reverse)
            row_n = direction.rows_n.start + n
            grad_c[:, row_n] = to_map((gy * h).sum(-1, keepdim=True))[:, 0]
            grad_b[:, row_n] = to_map((g * direction.delta * direction.x).sum(-1, keepdim=True))[
                :, 0
            ]
            through_decay = g * previous * decay
            grad_a[rows, n] = (through_decay * direction.delta).sum((0, 1))
            gdelta += through_decay * direction.a[:, n] + g * direction.x * b_n
            gx += g * direction.delta * b_n
        graw = gdelta * torch.sigmoid(direction.raw)
        grad_bias[rows] = graw.sum((0, 1))
        grad_dt[:, rows] = to_map(graw)
        grad_x += to_map(gx)
    return tuple(g.to(t.dtype) for g, t in zip(grads, tensors, strict=True))


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_op = torch_op.define(SPEC, _forward)
_op.register_autograd(_backward, setup_context=_save_inputs)


def selective_scan_2d(
    x: Tensor, dt: Tensor, b: Tensor, c: Tensor, a: Tensor, d: Tensor, dt_bias: Tensor
) -> Tensor:
    """Four-direction selective scan over a map; the contract is ``SPEC``.

    Args:
        x: [B, D, H, W], FP32 or FP16.
        dt: [B, K*D, H, W], type of ``x``; before bias and softplus.
        b: [B, K*N, H, W], type of ``x``.
        c: [B, K*N, H, W], type of ``x``.
        a: [K*D, N], FP32, negative.
        d: [K*D], FP32.
        dt_bias: [K*D], FP32.

    Returns:
        y [B, D, H, W], type of ``x``. The arithmetic inside is FP32 (FP64 for FP64 inputs).

    Raises:
        InputError: Shapes or types that do not fit the contract.

    Source:
        Liu et al., "VMamba: Visual State Space Model" (2024); the block scan is Blelloch's
        ("Prefix sums and their applications", 1990) with serial blocks.
    """
    y: Tensor = torch.ops.stormrt.selective_scan_2d(x, dt, b, c, a, d, dt_bias)
    return y
