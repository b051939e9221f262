# SPDX-License-Identifier: Apache-2.0
"""Says of a graph that it is of a later opset, where that changes nothing."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import defs

_ONLY_MORE_TYPES = {
    # Pad's new mode and Cast's new attribute (of 8-bit floats) have the old ones as defaults.
    19: {
        "Cast",
        "Constant",
        "DequantizeLinear",
        "Equal",
        "Identity",
        "Pad",
        "QuantizeLinear",
        "Reshape",
        "Shape",
    }
}
"""By opset, operators that it gave more types and changed in nothing else that a graph of the
opset before can say; read in ONNX's changelog."""


def raise_opset(model: onnx.ModelProto, opset: int) -> int:
    """Raise in place, functions included.

    ONNX's own converter would do, but for graphs with custom nodes and functions.

    Returns:
        The number of graphs and functions raised.

    Raises:
        ValueError: An operator's meaning changed in between.
    """
    raised = _raise(model.opset_import, model.graph.node, opset)
    return raised + sum(_raise(f.opset_import, f.node, opset) for f in model.functions)


def raise_function(function: onnx.FunctionProto, opset: int) -> int:
    """Raise one function in place. Arguments, result and errors as ``raise_opset``."""
    return _raise(function.opset_import, function.node, opset)


def _raise(
    imports: Iterable[onnx.OperatorSetIdProto], nodes: Iterable[onnx.NodeProto], opset: int
) -> int:
    raised = 0
    for entry in imports:
        if entry.domain or entry.version >= opset:
            continue
        for step in range(entry.version + 1, opset + 1):
            _check(nodes, step)
        entry.version = opset
        raised += 1
    return raised


def _check(nodes: Iterable[onnx.NodeProto], opset: int) -> None:
    for op_type in {node.op_type for node in nodes if not node.domain}:
        changed = defs.get_schema(op_type, opset).since_version == opset
        if changed and op_type not in _ONLY_MORE_TYPES.get(opset, ()):
            raise ValueError(f"{op_type} of opset {opset} may mean something else than before")
