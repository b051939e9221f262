# SPDX-License-Identifier: Apache-2.0
"""FP32 islands: nodes around values that FP16 cannot hold, and only those."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from stormrt.errors import InputError
from stormrt.pipeline.rewrite.values import consumers, producers

FP16_LARGEST = 65504.0

MARGIN = 0.25
"""Share of FP16's range that calibration may use: other images reach further."""


@dataclass(frozen=True, slots=True)
class OverflowRisk:
    """A value that FP16 may not hold."""

    tensor: str
    largest: float
    """Largest absolute value seen."""
    nodes: tuple[str, ...]
    """What has to compute in FP32: the node that makes it, and those that read it."""


def overflow_risks(
    model: onnx.ModelProto, largest: Mapping[str, float], margin: float = MARGIN
) -> tuple[OverflowRisk, ...]:
    """Find the values of a graph that are too large for FP16, constants among them.

    Args:
        model: An exported graph, FP32.
        largest: By tensor, the largest absolute value seen; of as many tensors as were observed.
        margin: Share of 65504 above which a value is a risk. Constants are known, and risk nothing
            up to 65504.

    Returns:
        The risks, in the order of the graph: constants, then what nodes make.

    Raises:
        InputError: A largest value is not finite, or of a tensor that the graph has not.
    """
    graph = model.graph
    by_output, by_input = producers(graph), consumers(graph)
    inputs = [value.name for value in graph.input]
    limits: dict[str, tuple[float, float]] = {}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = np.abs(numpy_helper.to_array(tensor))
            limits[tensor.name] = (float(values.max(initial=0.0)), FP16_LARGEST)
    known = {*inputs, *by_output}
    for name, value in largest.items():
        if name not in known or not math.isfinite(value):
            raise InputError(
                "the largest value of a tensor does not fit the graph",
                where=name,
                got=str(value) if name in known else "a tensor that the graph has not",
                expected="a finite number",
                fix="calibrate again, with this model and STORM plan",
            )
    for name in (*inputs, *by_output):
        if name in largest:
            limits[name] = (largest[name], FP16_LARGEST * margin)
    found = []
    for name, (value, limit) in limits.items():
        if value > limit:
            maker = by_output.get(name)
            around = [maker] if maker is not None else []
            nodes = dict.fromkeys(node.name for node in (*around, *by_input[name]))
            found.append(OverflowRisk(name, value, tuple(nodes)))
    return tuple(found)


def fp32_islands(risks: Iterable[OverflowRisk]) -> frozenset[str]:
    """Names of all nodes that have to compute in FP32."""
    return frozenset(name for risk in risks for name in risk.nodes)
