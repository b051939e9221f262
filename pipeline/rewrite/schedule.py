# SPDX-License-Identifier: Apache-2.0
"""The passes of each stage, in order, and the one function that runs them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import onnx

from stormrt.pipeline.rewrite.absorb_casts import absorb_casts
from stormrt.pipeline.rewrite.attach_functions import attach_functions
from stormrt.pipeline.rewrite.drop_functions import drop_functions
from stormrt.pipeline.rewrite.graph_pass import GraphPass, PassReport
from stormrt.pipeline.rewrite.inline_functions import inline_functions
from stormrt.pipeline.rewrite.join_fp32 import join_fp32
from stormrt.pipeline.rewrite.name_by_module import name_by_module
from stormrt.pipeline.rewrite.tidy import tidy
from stormrt.pipeline.rewrite.verify import interface, verify

_NAME = GraphPass(
    "name_by_module",
    "node and value names of the exporter tell nothing and change with its version",
    name_by_module,
)
_JOIN = GraphPass(
    "join_fp32",
    "the converter rounds to FP16 between neighbours that both stay in FP32: scores overflow",
    join_fp32,
)
_ATTACH = GraphPass(
    "attach_functions",
    "without a body for the custom nodes no standard runtime can run the graph",
    attach_functions,
)
_INLINE = GraphPass(
    "inline_functions", "TensorRT's parser does not read local functions", inline_functions
)
_DROP = GraphPass(
    "drop_functions", "TensorRT must see custom nodes as plugins, not as functions", drop_functions
)
_TIDY = GraphPass(
    "tidy", "converters append nodes out of order and leave constants and leftovers behind", tidy
)

AFTER_EXPORT: tuple[GraphPass, ...] = (_NAME, _TIDY, _ATTACH)
LOWER_NATIVE: tuple[GraphPass, ...] = (_INLINE, _TIDY)
LOWER_PLUGIN: tuple[GraphPass, ...] = (_DROP,)


def after_precision(fp32_nodes: Collection[str] = ()) -> tuple[GraphPass, ...]:
    """The passes behind the converter to FP16.

    Args:
        fp32_nodes: Names of custom nodes that stay in FP32.
    """
    absorb = GraphPass(
        "absorb_casts",
        "the converter surrounds custom nodes with casts that their FP16 I/O makes needless",
        partial(absorb_casts, fp32_nodes=fp32_nodes),
    )
    return (_TIDY, absorb, _JOIN, _TIDY, _ATTACH)


def run_passes(model: onnx.ModelProto, passes: Sequence[GraphPass]) -> tuple[PassReport, ...]:
    """Run passes in place, verifying the graph after each.

    Raises:
        GraphInvariantError: A pass broke an invariant.
    """
    expected = interface(model)
    reports = []
    for graph_pass in passes:
        changed = graph_pass.run(model)
        verify(model, after=f"pass {graph_pass.name}", expected=expected)
        reports.append(PassReport(graph_pass.name, changed))
    return tuple(reports)
