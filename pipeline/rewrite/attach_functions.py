# SPDX-License-Identifier: Apache-2.0
"""Gives every custom node its meaning in standard ops, as an ONNX local function."""

from __future__ import annotations

from typing import cast

import onnx

from stormrt.pipeline.rewrite.raise_opset import raise_function
from stormrt.pipeline.rewrite.values import DTYPE_NAMES, value_types
from stormrt.plugins.registry import all_plugins, plugin_module
from stormrt.plugins.spec import DOMAIN

_IR_WITH_OVERLOADS = 10
"""First ONNX IR version in which functions of one name may differ by ``overload``."""


def attach_functions(model: onnx.ModelProto) -> int:
    """Attach in place, replacing functions that are there.

    A function's body depends on the node's shapes (a scan over 3,136 positions takes more steps
    than one over 49), so that there is one for each combination of shapes and type, and the
    node's ``overload`` names it.

    Before::

        SelectiveScan2D(x, dt, ...) -> y

    After::

        SelectiveScan2D[d96_h56_w56_n1_f32](x, dt, ...) -> y
        and a function stormrt::SelectiveScan2D[d96_h56_w56_n1_f32]

    Returns:
        The number of nodes that have a function.
    """
    graph = model.graph
    types = value_types(graph)
    functions: dict[tuple[str, str], onnx.FunctionProto] = {}
    opset = next(o.version for o in model.opset_import if not o.domain)
    nodes = [n for n in graph.node if n.domain == DOMAIN]
    for node in nodes:
        spec = all_plugins()[node.op_type]
        shapes = [types[name].shape or () for name in node.input]
        bound = spec.bind(shapes)
        dtype = DTYPE_NAMES[types[node.output[0]].dtype]
        module = plugin_module(spec, "onnx_function")
        function = cast("onnx.FunctionProto", module.function_for(bound, dtype))
        # The node carries these attributes, and a function must declare what its calls carry.
        function.attribute[:] = list(spec.attributes())
        raise_function(function, opset)
        node.overload = function.overload
        functions[(function.name, function.overload)] = function
    del model.functions[:]
    model.functions.extend(functions[key] for key in sorted(functions))
    if functions:
        model.ir_version = max(model.ir_version, _IR_WITH_OVERLOADS)
    return len(nodes)
