# SPDX-License-Identifier: Apache-2.0
"""SpatialUnitMerge in standard ONNX ops.

Not by matrix products, which TensorRT-RTX does not have in FP32 on Turing: the values, times their
lines' shares, are summed along each axis by a doubling scan that begins anew in each cell, and the
sums are read off where cells end. Where starts increase strictly, a cell has at most H - H' + 1
lines, which bounds the steps; where every line is kept there are none, and values pass unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from stormrt.plugins.derive.onnx_function import (
    FunctionBody,
    copy_lines,
    doubling_scan,
    function_of,
)
from stormrt.plugins.spatial_unit_merge import SPEC


def function_for(symbols: Mapping[str, int | str], dtype: str) -> onnx.FunctionProto:
    """The function for one node's shapes.

    Args:
        symbols: The solved symbols of ``SPEC``; all but B must be numbers.
        dtype: ``float32`` or ``float16``, that of x and y; sums are FP32.

    Returns:
        The function, its ``overload`` naming the shapes and the type.
    """
    channels, height, width, kept_rows, kept_cols = (
        int(symbols[s]) for s in ("C", "H", "W", "H'", "W'")
    )
    half = dtype == "float16"
    body = FunctionBody()
    rows = _side(body, "row", lines=height, cells=kept_rows)
    cols = _side(body, "col", lines=width, cells=kept_cols)
    value = body.op("Cast", "x", out="x_f32", to=TensorProto.FLOAT) if half else "x"
    value = _sum_cells(body, value, rows, axis=2)
    value = _sum_cells(body, value, cols, axis=3)
    shape, out = (channels, height, width), "y_f32" if half else "y"
    value = copy_lines(body, value, rows.ends, cols.ends, shape=shape, out=out)
    if half:
        body.op("Cast", value, out="y", to=TensorProto.FLOAT16)
    bits = "f16" if half else "f32"
    overload = f"c{channels}_h{height}_w{width}_to_h{kept_rows}_w{kept_cols}_{bits}"
    return function_of(SPEC, body, overload)


@dataclass(frozen=True, slots=True)
class _Side:
    """One axis of the map, its lines sorted into cells."""

    shares: str
    """Of each line in its cell's weight, [B, H], FP32."""
    goes_on: str
    """1 where a line is in the cell of the line before it, else 0; [B, H], FP32."""
    ends: str
    """Last line of each cell, [B, H'], INT64, in the map."""
    most_lines: int
    """That a cell can have."""


def _side(body: FunctionBody, name: str, *, lines: int, cells: int) -> _Side:
    starts = body.op("Cast", f"{name}_starts", out=f"{name}_starts64", to=TensorProto.INT64)
    # Each cell's next start, and for the last cell, whose next is the first, the end of the map.
    following = body.op(
        "Gather", starts, body.ints(*range(1, cells), 0), out=f"{name}_following", axis=1
    )
    floor = body.ints(*[0] * (cells - 1), lines)
    stops = body.op("Max", following, floor, out=f"{name}_stops")
    line = body.ints(*range(lines))
    first = body.op("Unsqueeze", starts, body.ints(2), out=f"{name}_first")
    stop = body.op("Unsqueeze", stops, body.ints(2), out=f"{name}_stop")
    inside = body.op(
        "And",
        body.op("LessOrEqual", first, line, out=f"{name}_has_begun"),
        body.op("Less", line, stop, out=f"{name}_not_ended"),
        out=f"{name}_inside",
    )  # [B, H', H]
    zero, one = body.constant(0.0, np.float32), body.constant(1.0, np.float32)
    weights = body.op("Unsqueeze", f"{name}_weights", body.ints(1), out=f"{name}_weight")
    weights = body.op("Where", inside, weights, zero, out=f"{name}_weight_inside")
    total = body.op("ReduceSum", weights, body.ints(2), out=f"{name}_total", keepdims=1)
    # Without weight every share is 0 / 1.
    some = body.op("Greater", total, zero, out=f"{name}_has_weight")
    total = body.op("Where", some, total, one, out=f"{name}_divisor")
    shares = body.op("Div", weights, total, out=f"{name}_shares_of_cells")
    begins = body.op("Equal", first, line, out=f"{name}_begins")
    begins = body.op("Cast", begins, out=f"{name}_begins_f32", to=TensorProto.FLOAT)
    begins = body.op("ReduceMax", begins, body.ints(1), out=f"{name}_is_first", keepdims=0)
    ends = body.op("Sub", stops, body.ints(1), out=f"{name}_last")
    ends = body.op("Max", ends, body.ints(0), out=f"{name}_last_from_0")
    return _Side(
        shares=body.op("ReduceSum", shares, body.ints(1), out=f"{name}_shares", keepdims=0),
        goes_on=body.op("Sub", one, begins, out=f"{name}_goes_on"),
        ends=body.op("Min", ends, body.ints(lines - 1), out=f"{name}_ends"),
        most_lines=max(1, lines - cells + 1),
    )


def _sum_cells(body: FunctionBody, value: str, side: _Side, *, axis: int) -> str:
    """[B, C, H, W] -> the sum, at each line, of its cell's lines up to it, times their shares."""
    other_axes = body.ints(1, 5 - axis)
    shares = body.op("Unsqueeze", side.shares, other_axes, out="share")
    drive = body.op("Mul", value, shares, out="shared")
    decay = body.op("Unsqueeze", side.goes_on, other_axes, out="goes_on")
    return doubling_scan(body, decay, drive, axis=axis, length=side.most_lines, rank=4)
