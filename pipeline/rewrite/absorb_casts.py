# SPDX-License-Identifier: Apache-2.0
"""Custom nodes take and give FP16 themselves, instead of casts around them."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from stormrt.pipeline.rewrite.values import consumers, producers, value_types
from stormrt.plugins.registry import all_plugins
from stormrt.plugins.spec import DOMAIN


def absorb_casts(model: onnx.ModelProto) -> int:
    """Absorb in place.

    Before::

        Cast(x16) -> x32; Op(x32, ..., a32) -> y32; Cast(y32) -> y16

    After::

        Op(x16, ..., a32) -> y16

    A node is changed only if all of its maps (the tensors of type ``T``) come from and go to
    FP16; one that computes scores in FP32 stays as it is.

    Returns:
        The number of custom nodes changed.
    """
    graph = model.graph
    by_output, by_input = producers(graph), consumers(graph)
    types = value_types(graph)
    changed = 0
    for node in graph.node:
        if node.domain != DOMAIN:
            continue
        spec = all_plugins()[node.op_type]
        maps = [i for i, tensor in enumerate(spec.inputs) if tensor.dtype == "T"]
        casts = [by_output.get(node.input[i]) for i in maps]
        readers = by_input[node.output[0]]
        if not all(c is not None and _casts(c, TensorProto.FLOAT) for c in casts):
            continue
        if not all(types[c.input[0]].dtype == TensorProto.FLOAT16 for c in casts if c):
            continue
        if not readers or not all(_casts(r, TensorProto.FLOAT16) for r in readers):
            continue
        for i, cast in zip(maps, casts, strict=True):
            if cast is not None:
                node.input[i] = cast.input[0]
        # The node's output keeps its name, now in FP16; its casts' readers read it directly.
        for reader in readers:
            for second in by_input[reader.output[0]]:
                second.input[:] = [
                    node.output[0] if name == reader.output[0] else name for name in second.input
                ]
        for info in graph.value_info:
            if info.name == node.output[0]:
                info.type.tensor_type.elem_type = TensorProto.FLOAT16
        changed += 1
    return changed


def _casts(node: onnx.NodeProto, to: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == to for a in node.attribute)
