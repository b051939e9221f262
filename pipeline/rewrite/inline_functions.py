# SPDX-License-Identifier: Apache-2.0
"""The native lowering: custom nodes become the standard ops that they mean."""

from __future__ import annotations

import onnx
import onnx.inliner

from stormrt.plugins.spec import DOMAIN


def inline_functions(model: onnx.ModelProto) -> int:
    """Inline in place, with ONNX's own inliner.

    Returns:
        The number of custom nodes replaced.
    """
    markers: int = sum(node.domain == DOMAIN for node in model.graph.node)
    inlined = onnx.inliner.inline_local_functions(model)
    _make_names_unique(inlined.graph)
    model.CopyFrom(inlined)
    return markers


def _make_names_unique(graph: onnx.GraphProto) -> None:
    seen: set[str] = set()
    for node in graph.node:
        # Every value has one producer, so a node's first output names it uniquely.
        if not node.name or node.name in seen:
            node.name = f"{node.output[0]}/{node.op_type}"
        seen.add(node.name)
