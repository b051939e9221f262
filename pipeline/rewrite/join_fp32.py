# SPDX-License-Identifier: Apache-2.0
"""Nodes that stay in FP32 read each other's results in FP32."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from stormrt.pipeline.rewrite.values import casts_to, producers, value_types


def join_fp32(model: onnx.ModelProto) -> int:
    """Join in place. The casts that nothing reads any more are left for ``tidy``.

    Before::

        Mul(x, x) -> a32; Cast(a32) -> a16; Cast(a16) -> b32; ReduceSum(b32) -> y32

    After::

        Mul(x, x) -> a32; ReduceSum(a32) -> y32

    Returns:
        The number of nodes that read an FP32 value instead of its FP16 rounding.
    """
    graph = model.graph
    by_output, types = producers(graph), value_types(graph)
    exact: dict[str, str] = {}
    for back in graph.node:
        forth = by_output.get(back.input[0]) if casts_to(back, TensorProto.FLOAT) else None
        if forth is None or not casts_to(forth, TensorProto.FLOAT16):
            continue
        if types[forth.input[0]].dtype == TensorProto.FLOAT:
            exact[back.output[0]] = forth.input[0]
    changed = 0
    for node in graph.node:
        names = [exact.get(name, name) for name in node.input]
        if names != list(node.input):
            node.input[:] = names
            changed += 1
    return changed
