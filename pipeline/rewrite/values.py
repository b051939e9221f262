# SPDX-License-Identifier: Apache-2.0
"""Types and shapes of a graph's values."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import onnx
from onnx import TensorProto

DTYPE_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT8: "int8",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
}


@dataclass(frozen=True, slots=True)
class ValueType:
    """Type and shape of one value; a symbolic dimension is its name."""

    dtype: int
    """``TensorProto`` element type."""
    shape: tuple[int | str, ...] | None
    """None where the rank is unknown."""

    def __str__(self) -> str:
        shape = "?" if self.shape is None else ", ".join(map(str, self.shape))
        return f"{DTYPE_NAMES.get(self.dtype, self.dtype)} [{shape}]"


def value_types(graph: onnx.GraphProto) -> dict[str, ValueType]:
    """Declared type of every input, output, initialiser and inner value that has one."""
    found: dict[str, ValueType] = {}
    for info in (*graph.value_info, *graph.output, *graph.input):
        tensor = info.type.tensor_type
        shape = None
        if tensor.HasField("shape"):
            shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
        found[info.name] = ValueType(tensor.elem_type, shape)
    for initializer in graph.initializer:
        found[initializer.name] = ValueType(initializer.data_type, tuple(initializer.dims))
    return found


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Value -> the node that makes it."""
    return {name: node for node in graph.node for name in node.output}


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Value -> the nodes that read it."""
    found: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            found[name].append(node)
    return found


def casts_to(node: onnx.NodeProto, dtype: int) -> bool:
    """Whether a node casts to a type."""
    return node.op_type == "Cast" and any(a.name == "to" and a.i == dtype for a in node.attribute)
