# SPDX-License-Identifier: Apache-2.0
"""SelectiveScan2D in standard ONNX ops: the meaning of the operator where no plugin runs.

The form, chosen by measurement (docs/adr/0005): a blocked scan over channels-last sequences.

1. Each input map becomes two sequences, row-major and column-major, [B, L, ..., D]. A position is
   one contiguous run of channels, so permuting, splitting and joining positions moves long runs.
   The two reverse directions keep the order of their forward twins and are walked from the end.
2. L is cut into blocks of Q. All blocks advance together, one position at a time: Q - 1
   multiply-adds for the local states, and Q - 1 products for the decay since the block began.
3. The blocks' last (decay, state) pairs are a sequence Q times shorter, scanned in the same way,
   and by doubling once it is short. Its states, one block late, are what each block inherits.

Steps 2 and 3 are reduce-then-scan (G. Blelloch, "Prefix Sums and Their Applications", 1990) with
W. D. Hillis and G. Steele's doubling ("Data Parallel Algorithms", 1986) at the top, on the
associative operator (p1, h1) o (p2, h2) = (p1 p2, p2 h1 + h2). Decays are only ever multiplied:
every factor is in (0, 1], nothing is divided, and a decay that underflows to 0 is right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from stormrt.plugins.derive.onnx_function import OPSET, FunctionBody, doubling_scan, function_of
from stormrt.plugins.selective_scan_2d import NUM_DIRECTIONS, SPEC

BLOCK_LENGTHS = (7, 8, 6, 5, 4, 3)
"""Q, best first. Longer blocks cost nodes, 6 a position; shorter ones leave more to doubling."""
_DOUBLING_LENGTH = 64
"""Up to here doubling takes at most 6 steps and fewer nodes than more blocks would."""
_SOFTPLUS_LINEAR_FROM = 20.0
"""softplus(z) - z < 3e-9 from here on, below half a unit in the last place of FP32."""


def function_for(symbols: Mapping[str, int | str], dtype: str) -> onnx.FunctionProto:
    """The function for one node's shapes.

    Args:
        symbols: The solved symbols of ``SPEC``; D, H, W and N must be numbers, B need not be.
        dtype: ``float32`` or ``float16``, that of x, dt, b, c and y.

    Returns:
        The function, its ``overload`` naming the shapes and the type.
    """
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype is {dtype!r}; SelectiveScan2D takes 'float32' or 'float16'")
    return build_function(
        channels=int(symbols["D"]),
        height=int(symbols["H"]),
        width=int(symbols["W"]),
        state=int(symbols["N"]),
        dtype="float16" if dtype == "float16" else "float32",
    )


def build_function(
    *,
    channels: int,
    height: int,
    width: int,
    state: int,
    dtype: Literal["float32", "float16"],
    opset: int = OPSET,
    block_lengths: Sequence[int] = BLOCK_LENGTHS,
) -> onnx.FunctionProto:
    """SelectiveScan2D for one shape, as a function of standard ops. The batch stays free.

    Its inputs are x [B, D, H, W], dt [B, K*D, H, W], b and c [B, K*N, H, W], all ``dtype``, and
    a [K*D, N], d and dt_bias [K*D], FP32; its output is y [B, D, H, W], ``dtype``. Everything
    between the casts at both ends is FP32: decays near 1 do not survive FP16.

    Args:
        channels: D.
        height: H.
        width: W.
        state: N.
        dtype: Of x, dt, b, c and y.
        opset: Of the default domain; 18 is the lowest with what is used here.
        block_lengths: Q, best first: the first that divides H * W is taken. Shorter
            sequences, higher up, take the one that leaves the least to pad.

    Returns:
        The function, ``overload`` being for example ``d96_h56_w56_n1_f32``.
    """
    sizes = {"channels": channels, "height": height, "width": width, "state": state}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
    if opset < OPSET:
        raise ValueError(f"opset is {opset}; Split and Pad as used here need {OPSET} or later")
    body = FunctionBody()
    scan = _Scan(body, channels, height, width, state, block_lengths)
    if dtype == "float32":
        scan.emit("x", "dt", "b", "c", out="y")
    else:
        maps = [
            body.op("Cast", name, out=f"{name}_f32", to=TensorProto.FLOAT)
            for name in ("x", "dt", "b", "c")
        ]
        total = scan.emit(*maps, out="y_f32")
        body.op("Cast", total, out="y", to=TensorProto.FLOAT16)
    bits = {"float32": "f32", "float16": "f16"}[dtype]
    overload = f"d{channels}_h{height}_w{width}_n{state}_{bits}"
    return function_of(SPEC, body, overload, opset=opset)


def softplus(body: FunctionBody, z: str) -> str:
    """log(1 + exp(z)), of any shape, FP32, without overflow.

    Not the operator Softplus, whose kernel in onnxruntime is slow enough to make the whole function
    1.5 times as slow. Clipping keeps exp below 5e8; above the clip, max returns z itself.
    The absolute error is that of 1 + exp(z), 6e-8: nothing to a decay, and something to a drive
    only in a channel whose every delta is near 0.001 or below.
    """
    limit = body.constant(_SOFTPLUS_LINEAR_FROM, np.float32)
    low = body.op("Clip", z, "", limit, out="z_clipped")
    one_plus = body.op(
        "Add", body.op("Exp", low, out="z_exp"), body.constant(1.0, np.float32), out="one_plus_exp"
    )
    return body.op("Max", z, body.op("Log", one_plus, out="log_one_plus_exp"), out="delta")


def _dividing_block(length: int, choices: Sequence[int]) -> int:
    """Q for the maps, which are not padded: the whole of a short one, 1 where nothing divides."""
    if length <= max(choices):
        return length
    return next((q for q in choices if length % q == 0), 1)


def _padded_block(length: int, choices: Sequence[int]) -> int:
    """Q for what is left of the maps: what leaves the least to pad."""
    return min(choices, key=lambda q: -length % q)


def _serial_scan(
    body: FunctionBody,
    decays: Sequence[str],
    drives: Sequence[str],
    *,
    name: str,
    inherits: bool = True,
) -> tuple[list[str], list[str]]:
    """Decay since the start, and state with nothing inherited, at each of a few positions.

    Without ``inherits`` nothing comes before the start, and the decays are not worked out.
    """
    products, states = [decays[0]], [drives[0]]
    for decay, drive in zip(decays[1:], drives[1:], strict=True):
        states.append(body.multiply_add(decay, states[-1], drive, out=f"{name}_state"))
        if inherits:
            products.append(body.op("Mul", decay, products[-1], out=f"{name}_product"))
    return products, states


def _blocked_scan(
    body: FunctionBody,
    decay: str,
    drive: str,
    *,
    length: int,
    tail: tuple[int, ...],
    choices: Sequence[int],
) -> str:
    """States of h_t = decay_t h_(t-1) + drive_t along axis 1 of [B, length, 1, *tail]."""
    rank = 3 + len(tail)
    if length <= _DOUBLING_LENGTH:
        return doubling_scan(body, decay, drive, axis=1, length=length, rank=rank)
    q = _padded_block(length, choices)
    blocks = math.ceil(length / q)
    padded = blocks * q
    columns = []
    for value, name in ((decay, "block_decay"), (drive, "block_drive")):
        if padded > length:  # what follows the end reaches nobody
            pads = [0] * (2 * rank)
            pads[rank + 1] = padded - length
            value = body.op("Pad", value, body.ints(*pads), out=f"{name}_padded")
        value = body.reshape(value, 0, blocks, q, *tail, out=name)
        columns.append(body.split(value, axis=2, parts=q, out=name))
    products, states = _serial_scan(body, *columns, name="block")
    ends = _blocked_scan(body, products[-1], states[-1], length=blocks, tail=tail, choices=choices)
    inherited = body.shift(ends, axis=1, by=1, rank=rank, out="block_inherited")
    state = body.multiply_add(
        body.op("Concat", *products, out="block_products", axis=2),
        inherited,
        body.op("Concat", *states, out="block_states", axis=2),
        out="block_total",
    )
    flat = body.reshape(state, 0, padded, 1, *tail, out="scanned")
    if padded > length:
        bounds = (body.ints(0), body.ints(length), body.ints(1))
        flat = body.op("Slice", flat, *bounds, out="scanned_cut")
    return flat


class _Scan:
    """One shape's function body. Sequences are [B, P, Q, ways, orders, *per position].

    P blocks of Q positions hold the L positions of one visiting order. "Orders" are row-major and
    column-major, "ways" forward and backward: direction k = 2 * way + order, which is how dt, b,
    c, a, d and dt_bias are laid out already. Per position there are D channels, or N states of D
    channels; the axis of length 1 that N = 1 would be is left out.
    """

    def __init__(
        self,
        body: FunctionBody,
        channels: int,
        height: int,
        width: int,
        state: int,
        block_lengths: Sequence[int],
    ) -> None:
        self.body = body
        self.channels = channels
        self.height = height
        self.width = width
        self.state = state
        self.length = height * width
        self.choices = block_lengths
        self.block = _dividing_block(self.length, block_lengths)
        self.blocks = self.length // self.block
        self.one_channel = (1,) if state == 1 else (state, 1)
        self.one_state = (channels,) if state == 1 else (1, channels)
        self.full = (channels,) if state == 1 else (state, channels)

    def emit(self, x: str, dt: str, b: str, c: str, *, out: str) -> str:
        """Appends the whole operator on FP32 maps; returns y, [B, D, H, W], FP32."""
        body = self.body
        x_positions = self._positions(x, self.channels, name="x")
        dt_positions = self._positions(dt, NUM_DIRECTIONS * self.channels, name="dt")
        z = body.op("Add", dt_positions, "dt_bias", out="z")
        delta = softplus(body, self._sequences(z, ways=2, tail=self.one_state, name="delta"))
        x_blocked = (0, self.blocks, self.block, 1, 1, *self.one_state)
        x_rows = body.reshape(x_positions, *x_blocked, out="x_rows")
        x_orders = self._both_orders(x_rows, x_positions, ways=1, tail=self.one_state, name="x")
        # b and c share what each would otherwise do in eight small nodes of its own.
        bc = body.op("Concat", b, c, out="bc", axis=1)
        bc = self._positions(bc, 2 * NUM_DIRECTIONS * self.state, name="bc")
        bc = self._sequences(bc, ways=4, tail=self.one_channel, name="bc")
        b_ways = body.ints(2, 1, 1)
        names = ["b_sequence", "c_forward", "c_backward"]
        body.nodes.append(helper.make_node("Split", [bc, b_ways], names, "bc_split", axis=3))

        decay = body.op("Exp", body.op("Mul", delta, self._a(), out="log_decay"), out="decay")
        step = body.op("Mul", delta, x_orders, out="delta_x")
        drive = body.op("Mul", step, "b_sequence", out="drive")
        y = self._read_out(decay, drive, "c_forward", "c_backward")
        y_rows, y_columns = self._unordered(y)

        d = body.reshape("d", NUM_DIRECTIONS, self.channels, out="d_directions")
        # All four directions add d x at the same position.
        d = body.op("ReduceSum", d, body.ints(0), out="d_total", keepdims=0)
        skip = body.op("Mul", x_positions, d, out="skip")
        y = body.op("Add", body.op("Add", y_rows, y_columns, out="y_scans"), skip, out="y_sum")
        y = body.op("Transpose", y, out="y_channels_first", perm=[0, 2, 1])
        return body.reshape(y, 0, self.channels, self.height, self.width, out=out)

    def _positions(self, value: str, channels: int, *, name: str) -> str:
        """[B, C, H, W] -> [B, L, C]."""
        flat = self.body.reshape(value, 0, channels, self.length, out=f"{name}_flat")
        return self.body.op("Transpose", flat, out=f"{name}_positions", perm=[0, 2, 1])

    def _sequences(self, value: str, *, ways: int, tail: tuple[int, ...], name: str) -> str:
        """[B, L, ways * 2 * tail] -> [B, P, Q, ways, 2, *tail]."""
        blocked = (0, self.blocks, self.block, ways, 2, *tail)
        value = self.body.reshape(value, *blocked, out=f"{name}_orders")
        rows, columns = self.body.split(value, axis=4, parts=2, out=f"{name}_order")
        return self._both_orders(rows, columns, ways=ways, tail=tail, name=name)

    def _both_orders(
        self, rows: str, columns: str, *, ways: int, tail: tuple[int, ...], name: str
    ) -> str:
        """Joins ``rows``, in sequence, and ``columns``, still row by row, on the orders' axis."""
        body = self.body
        inner = ways * math.prod(tail)
        columns = body.reshape(columns, 0, self.height, self.width, inner, out=f"{name}_map")
        columns = body.op("Transpose", columns, out=f"{name}_map_turned", perm=[0, 2, 1, 3])
        blocked = (0, self.blocks, self.block, ways, 1, *tail)
        columns = body.reshape(columns, *blocked, out=f"{name}_columns")
        return body.op("Concat", rows, columns, out=f"{name}_sequence", axis=4)

    def _a(self) -> str:
        """The input a, [K*D, N] -> [2, 2, D], or [2, 2, N, D]."""
        if self.state == 1:
            return self.body.reshape("a", 2, 2, self.channels, out="a_directions")
        by_direction = self.body.reshape("a", 2, 2, self.channels, self.state, out="a_directions")
        return self.body.op("Transpose", by_direction, out="a_states_first", perm=[0, 1, 3, 2])

    def _read_out(self, decay: str, drive: str, c_forward: str, c_backward: str) -> str:
        """Scans both ways and sums <c, h> over them: [B, P, Q, 1, 2, D]."""
        body = self.body
        pieces = []
        for value, name in ((decay, "decay"), (drive, "drive")):
            # Position and way on one axis: a single Split serves both ways.
            value = body.reshape(
                value, 0, self.blocks, 2 * self.block, 1, 2, *self.full, out=f"{name}_by_way"
            )
            pieces.append(body.split(value, axis=2, parts=2 * self.block, out=f"{name}_at"))
        decays, drives = pieces
        several = self.blocks > 1
        forward = _serial_scan(body, decays[0::2], drives[0::2], name="forward", inherits=several)
        backward = _serial_scan(
            body, decays[-1::-2], drives[-1::-2], name="backward", inherits=several
        )
        inherited: tuple[str | None, str | None] = (None, None)
        if several:
            inherited = self._inherited(
                (forward[0][-1], forward[1][-1]), (backward[0][-1], backward[1][-1])
            )
        read = []
        for (products, states), carry, c, step, name in (
            (forward, inherited[0], c_forward, 1, "forward"),
            (backward, inherited[1], c_backward, -1, "backward"),
        ):
            h = body.op("Concat", *states[::step], out=f"{name}_local", axis=2)
            if carry is not None:
                decay_since = body.op("Concat", *products[::step], out=f"{name}_decay", axis=2)
                h = body.multiply_add(decay_since, carry, h, out=f"{name}_h")
            read.append(body.op("Mul", c, h, out=f"{name}_y"))
        y = body.op("Add", *read, out="y_ways")
        if self.state > 1:
            y = body.op("ReduceSum", y, body.ints(5), out="y_states", keepdims=0)
        return y

    def _inherited(self, forward: tuple[str, str], backward: tuple[str, str]) -> tuple[str, str]:
        """The states that blocks begin with, from (decay, state) over each: [B, P, 1, 1, 2, ...].

        This is 1/Q of the data, so the backward way is flipped and both are scanned as one.
        """
        body = self.body
        ends = []
        for first, second, name in (
            (forward[0], backward[0], "end_decay"),
            (forward[1], backward[1], "end_state"),
        ):
            flipped = body.flip(second, axis=1, out=f"{name}_flipped")
            ends.append(body.op("Concat", first, flipped, out=f"{name}s", axis=3))
        ended = _blocked_scan(
            body, *ends, length=self.blocks, tail=(2, 2, *self.full), choices=self.choices
        )
        rank = 5 + len(self.full)
        begun = body.shift(ended, axis=1, by=1, rank=rank, out="inherited")
        forward_begun, backward_begun = body.split(begun, axis=3, parts=2, out="inherited_way")
        return forward_begun, body.flip(backward_begun, axis=1, out="inherited_backward")

    def _unordered(self, y: str) -> tuple[str, str]:
        """[B, P, Q, 1, 2, D] -> the two visiting orders as two maps [B, L, D]."""
        body = self.body
        rows, columns = body.split(y, axis=4, parts=2, out="y_order")
        rows = body.reshape(rows, 0, self.length, self.channels, out="y_rows")
        columns = body.reshape(columns, 0, self.width, self.height, self.channels, out="y_turned")
        columns = body.op("Transpose", columns, out="y_map", perm=[0, 2, 1, 3])
        return rows, body.reshape(columns, 0, self.length, self.channels, out="y_columns")
