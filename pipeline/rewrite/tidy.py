# SPDX-License-Identifier: Apache-2.0
"""Order, leftovers and constants of a graph, by the passes of onnx_ir."""

from __future__ import annotations

import onnx
import onnx_ir
from onnx_ir.passes import common


def tidy(model: onnx.ModelProto) -> int:
    """Sort nodes, turn Constant nodes into shared initialisers, drop what nothing reads; in place.

    The local functions are left alone. Initialisers of graphs that the same weights give are
    merged, so that a model of equal normalisation layers stores one.

    Returns:
        The number of nodes removed.
    """
    before = len(model.graph.node)
    graph = onnx_ir.serde.deserialize_model(model)
    for graph_pass in (
        common.TopologicalSortPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.DeduplicateInitializersPass(),
        common.RemoveUnusedOpsetsPass(process_functions=False),
    ):
        graph_pass(graph)
    model.CopyFrom(onnx_ir.serde.serialize_model(graph))
    return before - len(model.graph.node)
