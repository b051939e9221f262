# SPDX-License-Identifier: Apache-2.0
"""Explicit Q/DQ in the graph, by onnx-graphsurgeon.

Q/DQ is on the inputs of linear nodes, not on their outputs, and right before them: behind a STORM
gather, behind a normalisation and its transpositions, so that TensorRT fuses the rounding into what
makes the value, and the integers into the node. Weights are integers with a DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs  # type: ignore[import-untyped]  # published without types
from numpy.typing import NDArray

from stormrt.pipeline.quantize.weights import QuantisedWeight


@dataclass(frozen=True, slots=True)
class PlacedNode:
    """What a linear node gets."""

    name: str
    weight: QuantisedWeight
    bias: NDArray[np.float32] | None
    """[C_out] that replaces its bias; None leaves it as it is, or absent."""


def place_qdq(
    model: onnx.ModelProto,
    nodes: Sequence[PlacedNode],
    adds: Sequence[str],
    scales: Mapping[str, float],
) -> int:
    """Place in place.

    Before::

        Conv(a, w, b) -> y; Sigmoid(a) -> z

    After::

        QuantizeLinear(a, s) -> q; DequantizeLinear(q, s) -> d; DequantizeLinear(w8, ws) -> v
        Conv(d, v, b) -> y; Sigmoid(a) -> z

    Args:
        model: FP32, without functions.
        nodes: Linear nodes: their activation and weight carry Q/DQ.
        adds: Names of additions both of whose inputs carry Q/DQ.
        scales: By activation.

    Returns:
        The number of activations that carry Q/DQ.
    """
    graph = gs.import_onnx(model)
    by_name = {node.name: node for node in graph.nodes}
    placed: dict[str, gs.Variable] = {}

    def quantised(tensor: gs.Variable) -> gs.Variable:
        if tensor.name not in placed:
            placed[tensor.name] = _pair(graph, tensor, scales[tensor.name])
        return placed[tensor.name]

    for plan in nodes:
        node = by_name[plan.name]
        # Whoever else reads the activation goes on reading it in float.
        node.inputs[0] = quantised(node.inputs[0])
        node.inputs[1] = _dequantised(graph, node, plan.weight)
        if plan.bias is not None:
            bias = gs.Constant(f"{node.name}/bias", plan.bias)
            node.inputs = [*node.inputs[:2], bias]
    for name in adds:
        node = by_name[name]
        node.inputs = [quantised(tensor) for tensor in node.inputs]
    graph.cleanup().toposort()
    exported = gs.export_onnx(graph)
    model.CopyFrom(exported)
    return len(placed)


def _pair(graph: gs.Graph, tensor: gs.Variable, scale: float) -> gs.Variable:
    step = gs.Constant(f"{tensor.name}/scale", np.array(scale, np.float32))
    zero = gs.Constant(f"{tensor.name}/zero", np.array(0, np.int8))
    names = [f"{tensor.name}/{op}" for op in ("QuantizeLinear", "DequantizeLinear")]
    q = gs.Variable(names[0], np.int8, tensor.shape)
    dq = gs.Variable(names[1], np.float32, tensor.shape)
    graph.nodes.append(gs.Node("QuantizeLinear", names[0], None, [tensor, step, zero], [q]))
    graph.nodes.append(gs.Node("DequantizeLinear", names[1], None, [q, step, zero], [dq]))
    return dq


def _dequantised(graph: gs.Graph, node: gs.Node, weight: QuantisedWeight) -> gs.Variable:
    base = f"{node.name}/weight"
    values = gs.Constant(base, weight.values)
    step = gs.Constant(f"{base}/scale", weight.scales)
    zero = gs.Constant(f"{base}/zero", np.zeros(len(weight.scales), np.int8))
    name = f"{base}/DequantizeLinear"
    dq = gs.Variable(name, np.float32, weight.values.shape)
    inputs, attributes = [values, step, zero], {"axis": weight.axis}
    graph.nodes.append(gs.Node("DequantizeLinear", name, attributes, inputs, [dq]))
    return dq
