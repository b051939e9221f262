# SPDX-License-Identifier: Apache-2.0
"""FP32 islands: nodes around values that FP16 cannot hold, and only those.

Calibration keeps the largest absolute value of everything that FP16 would hold; what comes near
65504 is computed in FP32. Without a table only constants are known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from stormrt.calibration.table import CalibrationTable
from stormrt.errors import InputError
from stormrt.pipeline.quantize.policy import STORM_SCORES
from stormrt.pipeline.quantize.smooth import smoothing_factors
from stormrt.pipeline.rewrite.values import consumers, producers, value_types

FP16_LARGEST = 65504.0

MARGIN = 0.25
"""Share of FP16's range that calibration may use: other images reach further."""

_SHOWN = 4
"""Values that a sentence names."""


@dataclass(frozen=True, slots=True)
class OverflowRisk:
    """A value that FP16 may not hold."""

    tensor: str
    largest: float
    """Largest absolute value seen."""
    nodes: tuple[str, ...]
    """What has to compute in FP32: the node that makes it, and those that read it."""


@dataclass(frozen=True, slots=True)
class OverflowSearch:
    """What calibration says of FP16's range."""

    values: int
    """Values whose largest is known; constants are not counted."""
    largest: float
    """Largest absolute value of all."""
    tensor: str
    """Where it was seen."""
    risks: tuple[OverflowRisk, ...]

    @property
    def islands(self) -> frozenset[str]:
        """Names of all nodes that have to compute in FP32."""
        return fp32_islands(self.risks)

    def describe(self) -> str:
        """The finding in a sentence."""
        text = (
            f"the largest of {self.values} values is {self.largest:.4g} at {self.tensor}, "
            f"{self.largest / FP16_LARGEST:.2%} of FP16's 65504"
        )
        if not self.risks:
            return f"{text}; no node stays in FP32 for it"
        of = ", ".join(f"{risk.tensor} ({risk.largest:.4g})" for risk in self.risks[:_SHOWN])
        more = "" if len(self.risks) <= _SHOWN else f" and {len(self.risks) - _SHOWN} more"
        return f"{text}; {len(self.islands)} nodes stay in FP32 for {of}{more}"


def fp16_values(model: onnx.ModelProto) -> tuple[str, ...]:
    """Values that an FP16 graph would hold, in the order of an exported FP32 graph.

    What passes from one node of STORM's scores to the next stays in FP32 whatever it is, and is
    left out.
    """
    types, readers = value_types(model.graph), consumers(model.graph)
    scores = re.compile(STORM_SCORES)
    return tuple(
        name
        for node in model.graph.node
        for name in node.output
        if name in types and types[name].dtype == TensorProto.FLOAT
        # The graph's outputs have no readers.
        if not all(scores.search(n.name) for n in (node, *readers[name])) or not readers[name]
    )


def search_overflow(
    model: onnx.ModelProto, table: CalibrationTable | None, *, smoothed: bool
) -> OverflowSearch:
    """Look for what FP16 cannot hold among all that calibration saw.

    Args:
        model: The exported graph, as it was before smoothing.
        table: Its calibration; None: only constants are looked at.
        smoothed: Whether the graph will be smoothed (INT8), as the one was that the table is of.
            Else (FP16) what smoothing divided is as much larger.

    Raises:
        InputError: The table is not of this graph.
    """
    seen: dict[str, float] = {}
    if table is not None:
        seen = {name: found.largest for name, found in table.tensors.items()} | table.largest
        if not smoothed:
            for name, factor in smoothing_factors(model, table.smoothing).items():
                # A bound: the channel that is the largest need not be the one divided most.
                seen[name] = seen.get(name, 0.0) * max(1.0, factor)
    tensor = max(seen, key=lambda name: seen[name], default="")
    return OverflowSearch(len(seen), seen.get(tensor, 0.0), tensor, overflow_risks(model, seen))


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
