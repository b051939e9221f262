# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for training: the selective scan and the depthwise convolution, with gradients.

Maps are tokens [B, L, C], channels last, L = H * W: then projections are plain matrix products,
and a row of a tile is contiguous memory in every scan direction. N = 1 only.

The scan runs over tiles of ``TILE`` visited positions by ``BLOCK`` channels. Within a tile it is an
associative scan of (decay, drive), Blelloch's way; between tiles the state is carried. Tiles are
read in visiting order, so that every scan runs forwards: Triton's reverse scan has open reports of
wrong results (triton-lang/triton issues 4362 and 8412). One program takes a direction and its
reverse, one after the other, and adds the second's result to the first's; row-major and
column-major results stay apart, for the caller to add where it reads them anyway.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Triton's language gives the arguments their types, and its constants are upper case by custom.
# Triton compiles these functions: parameters have no Python types, constants are capitals.
# ruff: noqa: ANN001, ANN201, ANN202, D403, N803, N806
# mypy: ignore-errors


@triton.jit
def _combine(decay0, state0, decay1, state1):
    """Two steps of h -> decay h + drive, as one."""
    return decay0 * decay1, state1 + decay1 * state0


@triton.jit
def _softplus(z):
    """log(1 + exp(z)), to FP32's precision where z is very negative too."""
    u = tl.exp(tl.minimum(z, 20.0))
    series = u * (1.0 - u * (0.5 - u * 0.3333333333))
    return tl.where(z > 20.0, z, tl.where(u < 0.01, series, tl.log(1.0 + u)))


@triton.jit
def _sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def _position(t, by_columns, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Where in the row-major map the t-th position of a direction lies."""
    return tl.where(by_columns == 1, (t % HEIGHT) * WIDTH + t // HEIGHT, t)


@triton.jit
def scan_forward(
    x_ptr, p_ptr, a_ptr, bias_ptr, y_ptr, h_ptr, batch,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr, KEEP_STATES: tl.constexpr,
):  # fmt: skip
    """y of a direction and its reverse.

    x [B, L, D]; p [B, L, 4*D + 8], columns dt | b | c, each by direction; a, bias [4*D];
    y [2, B, L, D], rows and columns apart; h [B, L, 4, D], every state, for the gradients.
    """
    LENGTH: tl.constexpr = HEIGHT * WIDTH
    PITCH: tl.constexpr = 4 * D + 8
    BLOCKS: tl.constexpr = (D + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    block = program % BLOCKS
    by_columns = (program // BLOCKS) % 2
    image = program // (2 * BLOCKS)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    has_channel = channel < D
    row = tl.arange(0, TILE)
    x_ptr += image * LENGTH * D
    p_ptr += image * LENGTH * PITCH
    h_ptr += image * LENGTH * 4 * D
    y_ptr += (by_columns * batch + image) * LENGTH * D
    for reverse in tl.static_range(2):
        k = by_columns + 2 * reverse
        a = tl.load(a_ptr + k * D + channel, mask=has_channel, other=0.0)
        bias = tl.load(bias_ptr + k * D + channel, mask=has_channel, other=0.0)
        state = tl.zeros([BLOCK], tl.float32)
        for start in range(0, LENGTH, TILE):
            s = start + row
            inside = s < LENGTH
            t = (LENGTH - 1 - s) if reverse else s
            position = _position(t, by_columns, HEIGHT, WIDTH)
            mask = inside[:, None] & has_channel[None, :]
            at = position[:, None] * D + channel[None, :]
            p_row = position * PITCH
            x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
            raw = tl.load(
                p_ptr + p_row[:, None] + (k * D + channel)[None, :], mask=mask, other=0.0
            ).to(tl.float32)
            b = tl.load(p_ptr + p_row + 4 * D + k, mask=inside, other=0.0).to(tl.float32)
            c = tl.load(p_ptr + p_row + 4 * D + 4 + k, mask=inside, other=0.0).to(tl.float32)
            delta = _softplus(raw + bias[None, :])
            decay = tl.exp(delta * a[None, :])
            drive = delta * x * b[:, None]
            total, own = tl.associative_scan((decay, drive), 0, _combine)
            h = own + total * state[None, :]
            # Past the end of the map the last tile has no state that anything reads.
            state = tl.sum(tl.where((row == TILE - 1)[:, None], h, 0.0), 0)
            y = h * c[:, None]
            if reverse:
                y += tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
            tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)
            if KEEP_STATES:
                h_at = (position * 4 + k)[:, None] * D + channel[None, :]
                tl.store(h_ptr + h_at, h.to(h_ptr.dtype.element_ty), mask=mask)
        # The reverse direction reads what other threads of this program wrote.
        tl.debug_barrier()


@triton.jit
def scan_backward(
    grad_ptr, x_ptr, p_ptr, a_ptr, bias_ptr, h_ptr,
    grad_x_ptr, grad_p_ptr, grad_bc_ptr, grad_a_ptr, grad_bias_ptr, batch,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients by the adjoint recurrence g_t = c_t grad_t + decay_(t+1) g_(t+1).

    grad [B, L, D], of both rows' and columns' y; grad_x [2, B, L, D]; grad_p [B, L, 4*D + 8], of
    which only the columns of dt are written; grad_bc [BLOCKS, B, L, 8], b | c, one share for each
    block of channels; grad_a, grad_bias [B, 4, D], one share for each image.
    """
    LENGTH: tl.constexpr = HEIGHT * WIDTH
    PITCH: tl.constexpr = 4 * D + 8
    BLOCKS: tl.constexpr = (D + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    block = program % BLOCKS
    by_columns = (program // BLOCKS) % 2
    image = program // (2 * BLOCKS)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    has_channel = channel < D
    row = tl.arange(0, TILE)
    x_ptr += image * LENGTH * D
    grad_ptr += image * LENGTH * D
    p_ptr += image * LENGTH * PITCH
    grad_p_ptr += image * LENGTH * PITCH
    h_ptr += image * LENGTH * 4 * D
    grad_x_ptr += (by_columns * batch + image) * LENGTH * D
    grad_bc_ptr += (block * batch + image) * LENGTH * 8
    for reverse in tl.static_range(2):
        k = by_columns + 2 * reverse
        a = tl.load(a_ptr + k * D + channel, mask=has_channel, other=0.0)
        bias = tl.load(bias_ptr + k * D + channel, mask=has_channel, other=0.0)
        adjoint = tl.zeros([BLOCK], tl.float32)
        grad_a = tl.zeros([TILE, BLOCK], tl.float32)
        grad_bias = tl.zeros([TILE, BLOCK], tl.float32)
        for start in range(0, LENGTH, TILE):
            s = start + row  # the visit backwards
            inside = s < LENGTH
            t = s if reverse else (LENGTH - 1 - s)
            position = _position(t, by_columns, HEIGHT, WIDTH)
            following = _position(t - 1 if reverse else t + 1, by_columns, HEIGHT, WIDTH)
            mask = inside[:, None] & has_channel[None, :]
            has_following = (inside & (s > 0))[:, None] & has_channel[None, :]
            at = position[:, None] * D + channel[None, :]
            p_row = position * PITCH
            dt_at = p_row[:, None] + (k * D + channel)[None, :]
            dt_following = (following * PITCH)[:, None] + (k * D + channel)[None, :]
            h_at = (position * 4 + k)[:, None] * D + channel[None, :]
            x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
            grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
            raw = tl.load(p_ptr + dt_at, mask=mask, other=0.0).to(tl.float32)
            raw_following = tl.load(p_ptr + dt_following, mask=has_following, other=0.0)
            h = tl.load(h_ptr + h_at, mask=mask, other=0.0).to(tl.float32)
            b = tl.load(p_ptr + p_row + 4 * D + k, mask=inside, other=0.0).to(tl.float32)
            c = tl.load(p_ptr + p_row + 4 * D + 4 + k, mask=inside, other=0.0).to(tl.float32)
            decay_following = tl.exp(
                _softplus(raw_following.to(tl.float32) + bias[None, :]) * a[None, :]
            )
            total, own = tl.associative_scan((decay_following, grad * c[:, None]), 0, _combine)
            g = own + total * adjoint[None, :]
            adjoint = tl.sum(tl.where((row == TILE - 1)[:, None], g, 0.0), 0)
            raw += bias[None, :]
            delta = _softplus(raw)
            drive = delta * x * b[:, None]
            through_decay = g * (h - drive)  # h_t - drive_t = decay_t h_(t-1)
            grad_delta = through_decay * a[None, :] + g * x * b[:, None]
            grad_raw = tl.where(mask, grad_delta * _sigmoid(raw), 0.0)
            grad_a += tl.where(mask, through_decay * delta, 0.0)
            grad_bias += grad_raw
            tl.store(grad_p_ptr + dt_at, grad_raw.to(grad_p_ptr.dtype.element_ty), mask=mask)
            bc_at = grad_bc_ptr + position * 8 + k
            # Channels that there are none of have x = h = 0 and grad = 0, and add nothing.
            tl.store(bc_at, tl.sum(g * delta * x, 1), mask=inside)
            tl.store(bc_at + 4, tl.sum(grad * h, 1), mask=inside)
            grad_x = g * delta * b[:, None]
            if reverse:
                grad_x += tl.load(grad_x_ptr + at, mask=mask, other=0.0).to(tl.float32)
            tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)
        share = (image * 4 + k) * D + channel
        tl.store(grad_a_ptr + share, tl.sum(grad_a, 0), mask=has_channel)
        tl.store(grad_bias_ptr + share, tl.sum(grad_bias, 0), mask=has_channel)
        tl.debug_barrier()


@triton.jit
def conv_forward(
    x_ptr, w_ptr, y_ptr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr, FLIP: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """3x3 depthwise convolution, and SiLU of it.

    x, y [B, L, D]; w [9, D]. With FLIP the taps are mirrored: the gradient of the input.
    """
    LENGTH: tl.constexpr = HEIGHT * WIDTH
    BLOCKS: tl.constexpr = (D + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    channel = (program % BLOCKS) * BLOCK + tl.arange(0, BLOCK)
    TILES: tl.constexpr = (LENGTH + TILE - 1) // TILE
    position = ((program // BLOCKS) % TILES) * TILE + tl.arange(0, TILE)
    image = program // (BLOCKS * TILES)
    has_channel = channel < D
    h, w = position // WIDTH, position % WIDTH
    x_ptr += image * LENGTH * D
    total = tl.zeros([TILE, BLOCK], tl.float32)
    for tap in tl.static_range(9):
        dh = (1 - tap // 3) if FLIP else (tap // 3 - 1)
        dw = (1 - tap % 3) if FLIP else (tap % 3 - 1)
        there = (h + dh >= 0) & (h + dh < HEIGHT) & (w + dw >= 0) & (w + dw < WIDTH)
        mask = there[:, None] & has_channel[None, :]
        at = (position + dh * WIDTH + dw)[:, None] * D + channel[None, :]
        value = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(w_ptr + tap * D + channel, mask=has_channel, other=0.0)
        total += value * weight[None, :].to(tl.float32)
    if SILU:
        total = total * _sigmoid(total)
    mask = (position < LENGTH)[:, None] & has_channel[None, :]
    at = image * LENGTH * D + position[:, None] * D + channel[None, :]
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def conv_backward(
    grad_ptr, x_ptr, w_ptr, inner_ptr, grad_w_ptr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From the gradient of SiLU(conv) to the convolution's, and to the weights'.

    grad, x, inner [B, L, D]; w [9, D]; grad_w [B, 9, D], one share for each image. ``inner`` is the
    gradient before SiLU; ``conv_forward`` with FLIP makes the input's gradient of it.
    """
    LENGTH: tl.constexpr = HEIGHT * WIDTH
    BLOCKS: tl.constexpr = (D + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    channel = (program % BLOCKS) * BLOCK + tl.arange(0, BLOCK)
    image = program // BLOCKS
    has_channel = channel < D
    row = tl.arange(0, TILE)
    x_ptr += image * LENGTH * D
    grad_ptr += image * LENGTH * D
    inner_ptr += image * LENGTH * D
    # Nine accumulators by name: Triton has no arrays of tiles.
    sums = (
        tl.zeros([TILE, BLOCK], tl.float32), tl.zeros([TILE, BLOCK], tl.float32),
        tl.zeros([TILE, BLOCK], tl.float32), tl.zeros([TILE, BLOCK], tl.float32),
        tl.zeros([TILE, BLOCK], tl.float32), tl.zeros([TILE, BLOCK], tl.float32),
        tl.zeros([TILE, BLOCK], tl.float32), tl.zeros([TILE, BLOCK], tl.float32),
        tl.zeros([TILE, BLOCK], tl.float32),
    )  # fmt: skip
    for start in range(0, LENGTH, TILE):
        position = start + row
        h, w = position // WIDTH, position % WIDTH
        total = tl.zeros([TILE, BLOCK], tl.float32)
        for tap in tl.static_range(9):
            dh = tap // 3 - 1
            dw = tap % 3 - 1
            there = (h + dh >= 0) & (h + dh < HEIGHT) & (w + dw >= 0) & (w + dw < WIDTH)
            mask = there[:, None] & has_channel[None, :]
            at = (position + dh * WIDTH + dw)[:, None] * D + channel[None, :]
            value = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
            weight = tl.load(w_ptr + tap * D + channel, mask=has_channel, other=0.0)
            total += value * weight[None, :].to(tl.float32)
        mask = (position < LENGTH)[:, None] & has_channel[None, :]
        at = position[:, None] * D + channel[None, :]
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        gate = _sigmoid(total)
        inner = grad * gate * (1.0 + total * (1.0 - gate))
        tl.store(inner_ptr + at, inner.to(inner_ptr.dtype.element_ty), mask=mask)
        grown = ()
        for tap in tl.static_range(9):
            dh = tap // 3 - 1
            dw = tap % 3 - 1
            there = (h + dh >= 0) & (h + dh < HEIGHT) & (w + dw >= 0) & (w + dw < WIDTH)
            mask = there[:, None] & has_channel[None, :]
            at = (position + dh * WIDTH + dw)[:, None] * D + channel[None, :]
            value = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
            grown = grown + (sums[tap] + inner * value,)  # noqa: RUF005  # Triton has no stars
        sums = grown
    for tap in tl.static_range(9):
        at = (image * 9 + tap) * D + channel
        tl.store(grad_w_ptr + at, tl.sum(sums[tap], 0), mask=has_channel)
