# SPDX-License-Identifier: Apache-2.0
"""Custom nodes take and give FP16 themselves, instead of casts around them."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import TensorProto

from stormrt.pipeline.rewrite.values import casts_to, consumers, producers, value_types
from stormrt.plugins.registry import all_plugins
from stormrt.plugins.spec import DOMAIN


def absorb_casts(model: onnx.ModelProto, fp32_nodes: Collection[str] = ()) -> int:
    """Absorb in place.

    Before::

        Cast(x16) -> x32; Op(x32, ..., a32) -> y32; Cast(y32) -> y16

    After::

        Op(x16, ..., a32) -> y16

    A node is changed only if all of its maps (the tensors of type ``T``) come from FP16 and one
    cast to FP16 is all that reads its result; one that computes scores in FP32 stays as it is.

    Args:
        model: The graph.
        fp32_nodes: Names of nodes that stay as they are, since FP16 cannot hold their values.

    Returns:
        The number of custom nodes changed.
    """
    graph = model.graph
    by_output, by_input = producers(graph), consumers(graph)
    types = value_types(graph)
    results = {value.name for value in graph.output}
    absorbed: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.domain != DOMAIN or node.output[0] in results or node.name in fp32_nodes:
            continue
        spec = all_plugins()[node.op_type]
        maps = [i for i, tensor in enumerate(spec.inputs) if tensor.dtype == "T"]
        casts = [by_output.get(node.input[i]) for i in maps]
        readers = by_input[node.output[0]]
        if not all(c is not None and casts_to(c, TensorProto.FLOAT) for c in casts):
            continue
        if not all(types[c.input[0]].dtype == TensorProto.FLOAT16 for c in casts if c):
            continue
        if len(readers) != 1 or not casts_to(readers[0], TensorProto.FLOAT16):
            continue
        for i, cast in zip(maps, casts, strict=True):
            if cast is not None:
                node.input[i] = cast.input[0]
        # The cast's result has the type that the node gives now, and the name that the model
        # knows: the converter gave the node's own result another one.
        node.output[0] = readers[0].output[0]
        absorbed.append(readers[0])
    for cast in absorbed:
        graph.node.remove(cast)
    return len(absorbed)
