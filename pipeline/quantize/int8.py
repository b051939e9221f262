# SPDX-License-Identifier: Apache-2.0
"""An exported graph and its calibration table become a Q/DQ graph, whose float part is FP16."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from stormrt.calibration.table import CalibrationTable, TensorRange
from stormrt.errors import InputError
from stormrt.pipeline.quantize.bias import bias_correction
from stormrt.pipeline.quantize.constants import Constants
from stormrt.pipeline.quantize.placement import PlacedNode, place_qdq
from stormrt.pipeline.quantize.policy import (
    DEFAULT_POLICY,
    KeptNode,
    QuantisedNode,
    QuantizationPolicy,
    calibrated_tensors,
    kept_nodes,
    quantised_nodes,
    residual_adds,
)
from stormrt.pipeline.quantize.smooth import fold_smoothing
from stormrt.pipeline.quantize.weights import activation_scale, quantise_weight
from stormrt.pipeline.rewrite.raise_opset import raise_opset
from stormrt.pipeline.rewrite.values import value_types
from stormrt.pipeline.rewrite.verify import verify

OPSET = 19
"""The first whose QuantizeLinear takes FP16. TensorRT 10.3 reads it."""


@dataclass(frozen=True, slots=True)
class QuantizationSummary:
    """What became INT8."""

    quantised: tuple[str, ...]
    """Linear nodes."""
    kept: tuple[KeptNode, ...]
    """Linear nodes that stay in float, with the reason."""
    activations: int
    """Tensors that carry Q/DQ."""
    smoothed: int
    """Tensors that smoothing was folded into."""
    corrected: int
    """Biases that were corrected."""
    kept_fp32: int = 0
    """Standard nodes that stay in FP32, once all else is FP16."""


def insert_qdq(
    model: onnx.ModelProto,
    table: CalibrationTable,
    policy: QuantizationPolicy = DEFAULT_POLICY,
    fp32_nodes: Collection[str] = (),
) -> QuantizationSummary:
    """Smooth, round and place Q/DQ, in place. What is float stays FP32; functions are dropped.

    Args:
        model: The exported graph that the table was made of.
        table: Ranges, means and smoothing.
        policy: What stays in float.
        fp32_nodes: Nodes around values that FP16 cannot hold; they stay in float too.

    Raises:
        InputError: The table lacks a tensor, or is of other tensors, or holds numbers that are
            none; a pattern of the policy matches nothing.
    """
    candidates = [node.name for node in quantised_nodes(model, policy)]
    candidates += [node.name for node in residual_adds(model, policy)]
    overflowing = sorted(set(candidates) & set(fp32_nodes))
    policy = policy.keeping_nodes(overflowing, "a value beside it overflows FP16")
    nodes, kept = quantised_nodes(model, policy), kept_nodes(model, policy)
    adds = [node.name for node in residual_adds(model, policy)]
    ranges = _ranges(model, calibrated_tensors(model, policy), table)
    del model.functions[:]
    for node in model.graph.node:
        node.ClearField("overload")
    smoothing = {
        tensor: np.asarray(scales, np.float32) for tensor, scales in table.smoothing.items()
    }
    smoothed = fold_smoothing(model, smoothing)
    # Folding may have given nodes weights of their own.
    placed = _placed(model, quantised_nodes(model, policy), ranges)
    scales = {tensor: activation_scale(found.amax) for tensor, found in ranges.items()}
    activations = place_qdq(model, placed, adds, scales)
    raise_opset(model, OPSET)
    verify(model, after="placing Q/DQ")
    corrected = sum(node.bias is not None for node in placed)
    return QuantizationSummary(
        tuple(node.name for node in nodes), kept, activations, smoothed, corrected
    )


def _placed(
    model: onnx.ModelProto, nodes: Iterable[QuantisedNode], ranges: dict[str, TensorRange]
) -> list[PlacedNode]:
    constants = Constants(model.graph)
    placed = []
    for node in nodes:
        weight = constants.read(node.weight)
        rounded = quantise_weight(weight, node.weight_axis, node.weight)
        bias: NDArray[np.float32] | None = None
        # A node gets no new bias: it did not bring logits nearer (docs/adr/0012).
        if node.bias is not None and node.bias in constants:
            correction = bias_correction(
                rounded.restored() - weight,
                ranges[node.activation].mean,
                axis=node.weight_axis,
                groups=node.groups,
                where=node.activation,
            )
            bias = constants.read(node.bias) + correction
        placed.append(PlacedNode(node.name, rounded, bias))
    return placed


def _ranges(
    model: onnx.ModelProto, tensors: tuple[str, ...], table: CalibrationTable
) -> dict[str, TensorRange]:
    missing = [name for name in tensors if name not in table.tensors]
    if missing:
        raise InputError(
            "the calibration table lacks tensors of this graph",
            got=f"{len(missing)} of {len(tensors)} are missing, such as {missing[0]}",
            fix="calibrate again, with this model, STORM plan and policy",
        )
    types = value_types(model.graph)
    for name in tensors:
        channels, seen = (types[name].shape or ())[1], len(table.tensors[name].mean)
        if seen != channels:
            raise InputError(
                "a tensor has other channels in the calibration table than in this graph",
                where=name,
                got=str(seen),
                expected=str(channels),
                fix="calibrate again, with this model and STORM plan",
            )
        amax = table.tensors[name].amax
        if not math.isfinite(amax) or amax <= 0:
            raise InputError(
                "a range in the calibration table is no positive number",
                where=name,
                got=str(amax),
                fix="calibrate again: the activations of this model or of an image are not finite",
            )
    return {name: table.tensors[name] for name in tensors}
