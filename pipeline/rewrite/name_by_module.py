# SPDX-License-Identifier: Apache-2.0
"""Names nodes and values after the modules they come from, and drops the exporter's metadata."""

from __future__ import annotations

import ast
import re
from collections import Counter

import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"
_BOUNDARY = re.compile(
    r"patch_embed|layers\.\d+\.(blocks\.\d+|reductions\.\d+|restore|whole|downsample)|"
    r"classifier\.norm"
)
"""Modules whose output value takes the module's own name, so that a graph can be compared with
the PyTorch model layer by layer (``layers.2.blocks.4``)."""

_CHOICE = re.compile(r"layers\.\d+\.reductions\.\d+\.(rows|cols)")
"""Modules that choose lines; the kept lines' values take their names, too."""


def name_by_module(model: onnx.ModelProto) -> int:
    """Rename in place.

    Before::

        node_Conv_812(permute_5, layers.0.blocks.0.op.in_proj.weight) -> conv2d_2

    After::

        layers.0.blocks.0.op.in_proj/Conv(...) -> layers.0.blocks.0.op.in_proj/Conv

    Metadata is dropped because it holds stack traces with paths of the building machine.

    Returns:
        The number of nodes renamed.
    """
    graph = model.graph
    kept = {v.name for v in (*graph.input, *graph.output)} | {i.name for i in graph.initializer}
    scopes: list[tuple[str, ...]] = []
    for node in graph.node:
        path = _module_path(node)
        # A node that an optimiser made carries no scope: it belongs where its neighbour does.
        scopes.append(path if path is not None else (scopes[-1] if scopes else ()))
    boundary_node: dict[str, int] = {}
    for index, path in enumerate(scopes):
        for module in path:
            if _BOUNDARY.fullmatch(module) or _CHOICE.fullmatch(module):
                boundary_node[module] = index
    boundary_of = {index: module for module, index in boundary_node.items()}

    used: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    for index, (node, path) in enumerate(zip(graph.node, scopes, strict=True)):
        scope = path[-1] if path else ""
        base = f"{scope}/{node.op_type}" if scope else node.op_type
        used[base] += 1
        node.name = base if used[base] == 1 else f"{base}_{used[base]}"
        for position, value in enumerate(node.output):
            if value in kept or not value:
                continue
            name = node.name if len(node.output) == 1 else f"{node.name}:{position}"
            renamed[value] = boundary_of.get(index, name)
    _rename_values(graph, renamed)
    for holder in (model, graph, *graph.node, *graph.input, *graph.output):
        del holder.metadata_props[:]
    for value_info in (*graph.value_info, *graph.initializer):
        del value_info.metadata_props[:]
    model.doc_string = graph.doc_string = ""
    graph.name = "stormrt"
    return len(graph.node)


def selection_values(graph: onnx.GraphProto) -> list[str]:
    """Lines that the graph chooses for each image: values named after the module that chooses.

    Lines that are the same for every image are constants, and have none.
    """
    return sorted(o for node in graph.node for o in node.output if _CHOICE.fullmatch(o))


def boundary_values(graph: onnx.GraphProto) -> list[str]:
    """Values named after a module, in the order of the graph."""
    return [o for node in graph.node for o in node.output if _BOUNDARY.fullmatch(o)]


def _module_path(node: onnx.NodeProto) -> tuple[str, ...] | None:
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = ast.literal_eval(entry.value)
            # The first entry is the model itself, the last the traced operation.
            return tuple(scopes[1:-1])
    return None


def _rename_values(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    for node in graph.node:
        node.doc_string = ""
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    for info in graph.value_info:
        info.name = renamed.get(info.name, info.name)
