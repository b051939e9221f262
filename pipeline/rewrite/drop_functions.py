# SPDX-License-Identifier: Apache-2.0
"""The plugin lowering: custom nodes stay, their functions go."""

from __future__ import annotations

import onnx

from stormrt.plugins.spec import DOMAIN


def drop_functions(model: onnx.ModelProto) -> int:
    """Drop functions and overloads in place.

    TensorRT's parser imports a node it does not know as the plugin of the same name, version and
    namespace; a function of that name would be taken instead.

    Returns:
        The number of custom nodes.
    """
    markers = [node for node in model.graph.node if node.domain == DOMAIN]
    for node in markers:
        node.ClearField("overload")
    del model.functions[:]
    return len(markers)
