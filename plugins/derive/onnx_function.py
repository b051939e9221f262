# SPDX-License-Identifier: Apache-2.0
"""``PluginSpec`` -> the frame of its ONNX function, and what several operators' functions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import helper, numpy_helper

from stormrt.plugins.spec import DOMAIN, PluginSpec

OPSET = 18
"""Of the default domain, in the functions and in the graphs that hold them."""


class FunctionBody:
    """Nodes of a function under construction; names are unique, equal constants are shared."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._uses: dict[str, int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, op_type: str, *inputs: str, out: str, **attributes: Any) -> str:
        """Appends a node with one output, named after ``out``, and returns the output's name."""
        name = self._unique(out)
        self.nodes.append(helper.make_node(op_type, inputs, [name], name, **attributes))
        return name

    def split(self, value: str, *, axis: int, parts: int, out: str) -> list[str]:
        """Cuts ``value`` into equal parts."""
        names = [self._unique(f"{out}_{i}") for i in range(parts)]
        node = helper.make_node(
            "Split", [value], names, self._unique(f"{out}_split"), axis=axis, num_outputs=parts
        )
        self.nodes.append(node)
        return names

    def reshape(self, value: str, *shape: int, out: str) -> str:
        """Reshapes; a 0 keeps the input's size there (the batch), so that no B is baked in."""
        return self.op("Reshape", value, self.ints(*shape), out=out)

    def flip(self, value: str, *, axis: int, out: str) -> str:
        """Reverses one axis."""
        first = np.iinfo(np.int64).min
        ends = (self.ints(-1), self.ints(first), self.ints(axis), self.ints(-1))
        return self.op("Slice", value, *ends, out=out)

    def shift(self, value: str, *, axis: int, by: int, rank: int, out: str) -> str:
        """Moves entries ``by`` places along an axis, zeros entering where they leave room."""
        pads = [0] * (2 * rank)
        pads[axis], pads[rank + axis] = by, -by
        return self.op("Pad", value, self.ints(*pads), out=out)

    def multiply_add(self, factor: str, value: str, addend: str, *, out: str) -> str:
        """``factor * value + addend``."""
        return self.op("Add", self.op("Mul", factor, value, out=f"{out}_part"), addend, out=out)

    def ints(self, *values: int) -> str:
        """A 1-D INT64 constant."""
        return self.constant(values, np.int64)

    def constant(self, values: float | Sequence[int], dtype: DTypeLike) -> str:
        """A constant, shared by all who ask for the same one."""
        array = np.asarray(values, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._unique("const")
            tensor = numpy_helper.from_array(array)
            self.nodes.append(helper.make_node("Constant", [], [name], name, value=tensor))
            self._constants[key] = name
        return self._constants[key]

    def _unique(self, hint: str) -> str:
        uses = self._uses.get(hint, 0)
        self._uses[hint] = uses + 1
        return f"{hint}__{uses}" if uses else hint


def function_of(
    spec: PluginSpec, body: FunctionBody, overload: str, *, opset: int = OPSET
) -> onnx.FunctionProto:
    """The function of an operator, from its nodes.

    Args:
        spec: The operator; its inputs and outputs have their names in the body.
        body: The nodes.
        overload: Names the shapes that the nodes are for.
        opset: Of the default domain.
    """
    return helper.make_function(
        DOMAIN,
        spec.name,
        [t.name for t in spec.inputs],
        [t.name for t in spec.outputs],
        body.nodes,
        [helper.make_opsetid("", opset)],
        overload=overload,
        doc_string=spec.doc,
    )


def doubling_scan(
    body: FunctionBody,
    decay: str,
    drive: str,
    *,
    axis: int,
    length: int,
    rank: int,
    way: Literal[1, -1] = 1,
) -> str:
    """States of h_t = decay_t h_(t-1) + drive_t, h_(-1) = 0, in ceil(log2(length)) steps.

    Hillis and Steele (1986). After the step of distance s, each entry sums up the 2s entries that
    end there. Zeros enter in place of what would lie before the start, where states are 0.

    Args:
        body: Where the nodes go.
        decay: FP32, ``length`` along ``axis``.
        drive: Of the same shape.
        axis: The sequence.
        length: Its length.
        rank: Number of axes.
        way: -1 starts at the end of the axis.

    Returns:
        The states, of the same shape.
    """
    distance = 1
    while distance < length:
        by = way * distance
        earlier = body.shift(drive, axis=axis, by=by, rank=rank, out="earlier_state")
        drive = body.multiply_add(decay, earlier, drive, out="doubled_state")
        if 2 * distance < length:  # the last step's decays are not used
            earlier = body.shift(decay, axis=axis, by=by, rank=rank, out="earlier_decay")
            decay = body.op("Mul", decay, earlier, out="doubled_decay")
        distance *= 2
    return drive


def copy_lines(
    body: FunctionBody, x: str, rows: str, cols: str, *, shape: tuple[int, int, int], out: str
) -> str:
    """Appends y[b, c, i, j] = x[b, c, rows[b, i], cols[b, j]].

    Positions in the flattened map are gathered by one GatherND over channels-last data, so that
    each position is one contiguous copy of C values.

    Args:
        body: Where the nodes go.
        x: [B, C, H, W], of any type.
        rows: [B, H'], INT64, each in [0, H).
        cols: [B, W'], INT64, each in [0, W).
        shape: C, H and W.
        out: Name of the result.

    Returns:
        y [B, C, H', W'], type of ``x``.
    """
    channels, height, width = shape
    starts = body.op("Mul", rows, body.ints(width), out="row_offsets")
    starts = body.op("Unsqueeze", starts, body.ints(2), out="row_positions")
    offsets = body.op("Unsqueeze", cols, body.ints(1), out="col_positions")
    positions = body.op("Add", starts, offsets, out="positions")
    indices = body.op("Unsqueeze", positions, body.ints(3), out="indices")
    flat = body.reshape(x, 0, channels, height * width, out="flat")
    tokens = body.op("Transpose", flat, out="tokens", perm=[0, 2, 1])
    kept = body.op("GatherND", tokens, indices, out="kept", batch_dims=1)
    return body.op("Transpose", kept, out=out, perm=[0, 3, 1, 2])
