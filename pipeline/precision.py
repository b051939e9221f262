# SPDX-License-Identifier: Apache-2.0
"""``ExportedGraph`` -> ``QuantizedGraph``: precision is written into the graph, as casts.

FP16 by onnxruntime's converter. What stays in FP32, and why:

- normalisations: the sum of squares of FP16 features overflows 65504;
- the scan's state, exponentials and softplus: inside the operator, whose own contract says so;
- STORM's scores: a rounded score can change which line leaves.
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx

from stormrt.pipeline.artifacts import QuantizedGraph
from stormrt.pipeline.onnx_file import load_onnx, save_onnx
from stormrt.pipeline.rewrite.schedule import AFTER_PRECISION, run_passes
from stormrt.plugins.spec import DOMAIN
from stormrt.targets import Precision

_FP32_OPS = ("LayerNormalization", "ReduceMean", "ReduceSum", "GlobalAveragePool")
_FP32_MODULES = re.compile(
    r"(^|\.)(reductions\.\d+(\.(score|rows|cols))?|step_size|clipped_output|whole)/"
)
"""Nodes of STORM's scores, selection and weights, by the module they come from. Those that only
move tokens (``tokens``) are not among them."""


def to_fp16(model: onnx.ModelProto) -> int:
    """Convert in place; inputs and outputs of the graph stay FP32.

    Returns:
        The number of standard nodes that stay in FP32.
    """
    from onnxruntime.transformers.float16 import (
        DEFAULT_OP_BLOCK_LIST,
        convert_float_to_float16,
    )

    custom = [n.name for n in model.graph.node if n.domain == DOMAIN]
    kept = [
        n.name
        for n in model.graph.node
        if n.domain != DOMAIN and (n.op_type in _FP32_OPS or _FP32_MODULES.search(n.name))
    ]
    # The functions are of FP32 nodes; the schedule attaches those of FP16 again.
    del model.functions[:]
    # The converter takes a weight with a recorded type for a value that some node computes, and
    # casts it where it is read.
    weights = {i.name for i in model.graph.initializer}
    computed = [v for v in model.graph.value_info if v.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(computed)
    converted = convert_float_to_float16(
        model,
        keep_io_types=True,
        disable_shape_infer=True,  # the exporter has recorded every type
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FP32_OPS],
        node_block_list=[*custom, *kept],
    )
    model.CopyFrom(converted)
    run_passes(model, AFTER_PRECISION)
    return len(kept)


def set_precision(source: Path, precision: Precision, out: Path) -> QuantizedGraph:
    """Write the graph in the precision asked for.

    Args:
        source: The exported graph's file.
        precision: ``fp32`` leaves it as it is.
        out: File to write.

    Raises:
        InputError: The file is damaged, or the folder cannot be written.
    """
    model = load_onnx(source)
    kept = to_fp16(model) if precision == "fp16" else len(model.graph.node)
    file = save_onnx(model, out)
    return QuantizedGraph(file, precision, len(model.graph.node), kept)
