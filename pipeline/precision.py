# SPDX-License-Identifier: Apache-2.0
"""``ExportedGraph`` -> ``QuantizedGraph``: precision is written into the graph, as casts and Q/DQ.

FP16 by onnxruntime's converter. What stays in FP32, and why:

- normalisations: the sum of squares of FP16 features overflows 65504;
- the scan's state, exponentials and softplus: inside the operator, whose own contract says so;
- STORM's scores: a rounded score can change which line leaves;
- nodes around values that calibration saw come near 65504 (``quantize.overflow``).

INT8 is Q/DQ around linear nodes (``quantize``), then the same FP16 for all else.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import onnx

from stormrt.calibration.table import CalibrationTable
from stormrt.errors import InputError
from stormrt.pipeline.artifacts import QuantizedGraph
from stormrt.pipeline.onnx_file import load_onnx, save_onnx
from stormrt.pipeline.quantize.int8 import QuantizationSummary, insert_qdq
from stormrt.pipeline.quantize.overflow import search_overflow
from stormrt.pipeline.quantize.policy import DEFAULT_POLICY, STORM_SCORES, QuantizationPolicy
from stormrt.pipeline.rewrite.schedule import after_precision, run_passes
from stormrt.plugins.spec import DOMAIN
from stormrt.targets import Precision

_FP32_OPS = ("LayerNormalization", "ReduceMean", "ReduceSum", "GlobalAveragePool")
_FP32_MODULES = re.compile(STORM_SCORES)


def to_fp16(model: onnx.ModelProto, fp32_nodes: Collection[str] = ()) -> int:
    """Convert in place; inputs and outputs of the graph stay FP32.

    Args:
        model: The exported graph, perhaps with Q/DQ of FP32.
        fp32_nodes: More nodes that stay in FP32, custom ones too (``quantize.overflow``).

    Returns:
        The number of standard nodes that stay in FP32.

    Raises:
        InputError: The graph has no node of a name in ``fp32_nodes``.
    """
    from onnxruntime.transformers.float16 import (
        DEFAULT_OP_BLOCK_LIST,
        convert_float_to_float16,
    )

    unknown = set(fp32_nodes) - {n.name for n in model.graph.node}
    if unknown:
        raise InputError(
            "a node that shall stay in FP32 is not in the graph", got=", ".join(sorted(unknown))
        )
    custom = [n.name for n in model.graph.node if n.domain == DOMAIN]
    kept = [
        n.name
        for n in model.graph.node
        if n.domain != DOMAIN
        and (n.op_type in _FP32_OPS or _FP32_MODULES.search(n.name) or n.name in fp32_nodes)
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
    run_passes(model, after_precision(fp32_nodes))
    return len(kept)


def to_int8(
    model: onnx.ModelProto,
    table: CalibrationTable,
    policy: QuantizationPolicy = DEFAULT_POLICY,
) -> QuantizationSummary:
    """Convert in place: Q/DQ by the table and the policy, FP16 for all else.

    Args:
        model: The exported graph that the table was made of.
        table: From calibration.
        policy: What stays in float.

    Returns:
        What became INT8.

    Raises:
        InputError: The table is not of this graph, or a pattern of the policy matches nothing.
    """
    islands = search_overflow(model, table, smoothed=True).islands
    summary = insert_qdq(model, table, policy, islands)
    return replace(summary, kept_fp32=to_fp16(model, islands))


def set_precision(
    source: Path,
    precision: Precision,
    out: Path,
    table: CalibrationTable | None = None,
    policy: QuantizationPolicy = DEFAULT_POLICY,
) -> QuantizedGraph:
    """Write the graph in the precision asked for.

    Args:
        source: The exported graph's file.
        precision: ``fp32`` leaves it as it is; ``fp16``; ``int8``.
        out: File to write.
        table: Needed for INT8; FP16 takes from it where values are too large. Whether it is of this
            model, the caller has checked (``calibration.check``).
        policy: Of INT8: what stays in float.

    Raises:
        InputError: The file is damaged, or the folder cannot be written; INT8 without a table; a
            table that lacks tensors of the graph; a pattern of the policy matches nothing.
    """
    model = load_onnx(source)
    if precision == "int8":
        if table is None:
            raise InputError(
                "INT8 needs a calibration table", fix="run `stormrt calibrate` for this build"
            )
        kept = to_int8(model, table, policy).kept_fp32
    elif precision == "fp16":
        kept = to_fp16(model, search_overflow(model, table, smoothed=False).islands)
    else:
        kept = len(model.graph.node)
    file = save_onnx(model, out)
    return QuantizedGraph(file, precision, len(model.graph.node), kept)
