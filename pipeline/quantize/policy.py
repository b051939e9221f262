# SPDX-License-Identifier: Apache-2.0
"""Which nodes become INT8, and which stay in float and why."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import onnx
from onnx import TensorProto

from stormrt.errors import InputError
from stormrt.pipeline.rewrite.values import producers, value_types

STORM_SCORES = r"(^|\.)(reductions\.\d+(\.(score|rows|cols))?|step_size|clipped_output|whole)/"
"""Nodes of STORM's scores, selection and weights, by the module they come from. Those that only
move tokens (``tokens``) are not among them."""

_LINEAR_OPS = ("Conv", "Gemm", "MatMul")
_FACTORS = ("alpha", "beta")
"""Of a Gemm: with other factors than 1 its bias is not what is added."""


@dataclass(frozen=True, slots=True)
class KeepRule:
    """Nodes that stay in float."""

    pattern: str
    """Regular expression, searched for in node names (``layers.2.blocks.4.op.in_proj/Conv``)."""
    reason: str
    required: bool = True
    """Whether it is an error that the pattern matches nothing."""


DEFAULT_RULES: tuple[KeepRule, ...] = (
    KeepRule(
        r"\.op/Conv(_2)?$",
        "x_proj and dt_proj make the step size, which the scan exponentiates; they are small",
    ),
    KeepRule(
        r"\.op\.conv2d/",
        "depthwise: bound by memory, and TensorRT-RTX pads each group to four channels for INT8",
    ),
    KeepRule(r"^classifier\.head/", "its rounding is in the logits, and it takes no time"),
    KeepRule(
        STORM_SCORES,
        "STORM's scores: a rounded score can change which line leaves",
        required=False,
    ),
)
"""The project's choice; docs/adr/0012 has what it was measured against."""


@dataclass(frozen=True, slots=True)
class QuantizationPolicy:
    """What stays in float, and whether residual additions read INT8."""

    rules: tuple[KeepRule, ...] = DEFAULT_RULES
    residuals: bool = False
    """Both inputs of an Add behind an INT8 node carry Q/DQ."""

    def keeping(
        self, patterns: Iterable[str], reason: str = "the recipe says so"
    ) -> QuantizationPolicy:
        """The same, with more patterns of nodes that stay in float."""
        more = tuple(KeepRule(pattern, reason) for pattern in patterns)
        return replace(self, rules=(*self.rules, *more))

    def keeping_nodes(self, names: Iterable[str], reason: str) -> QuantizationPolicy:
        """The same, with more nodes that stay in float, by their full names."""
        return self.keeping((f"^{re.escape(name)}$" for name in names), reason)


DEFAULT_POLICY = QuantizationPolicy()


@dataclass(frozen=True, slots=True)
class QuantisedNode:
    """A linear node, by the names of its values."""

    name: str
    op_type: str
    activation: str
    """[B, C_in, ...], FP32; [..., C_in] of a MatMul."""
    weight: str
    """FP32 initialiser: Conv [C_out, C_in / groups, kH, kW]; Gemm, MatMul [C_in, C_out], or
    transposed."""
    bias: str | None
    weight_axis: int
    """The weight's axis of output channels."""
    groups: int


@dataclass(frozen=True, slots=True)
class KeptNode:
    """A linear node or residual addition that stays in float."""

    name: str
    reason: str


def linear_nodes(model: onnx.ModelProto) -> tuple[QuantisedNode, ...]:
    """All Conv, Gemm and MatMul nodes of FP32 activations with constant weights, in order.

    A Gemm only where it is x W + b.
    """
    types = value_types(model.graph)
    weights = {i.name for i in model.graph.initializer if i.data_type == TensorProto.FLOAT}
    found = []
    for node in model.graph.node:
        if node.domain or node.op_type not in _LINEAR_OPS:
            continue
        activation, weight = node.input[:2]
        known = types.get(activation)
        if weight not in weights or activation in weights:
            continue
        if known is None or known.dtype != TensorProto.FLOAT:
            continue
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        attributes = {a.name: a.i for a in node.attribute}
        if attributes.get("transA") or any(a.name in _FACTORS and a.f != 1 for a in node.attribute):
            continue
        if node.op_type == "Conv" or attributes.get("transB", 0):
            axis = 0
        else:
            axis = len(types[weight].shape or ()) - 1
        groups = attributes.get("group", 1)
        found.append(QuantisedNode(node.name, node.op_type, activation, weight, bias, axis, groups))
    return tuple(found)


def quantised_nodes(
    model: onnx.ModelProto, policy: QuantizationPolicy = DEFAULT_POLICY
) -> tuple[QuantisedNode, ...]:
    """Linear nodes that become INT8, in the order of the graph.

    Args:
        model: An exported graph.
        policy: What stays in float.

    Raises:
        InputError: A pattern is no regular expression, or matches no node.
    """
    kept = {node.name for node in kept_nodes(model, policy)}
    return tuple(node for node in linear_nodes(model) if node.name not in kept)


def kept_nodes(
    model: onnx.ModelProto, policy: QuantizationPolicy = DEFAULT_POLICY
) -> tuple[KeptNode, ...]:
    """Linear nodes, and residual additions where the policy has any, that stay in float.

    Raises:
        InputError: A pattern is no regular expression, or matches no node.
    """
    names = [node.name for node in linear_nodes(model)]
    if policy.residuals:
        names += [node.name for node in _residual_adds(model, set(names))]
    reasons: dict[str, str] = {}
    for rule in policy.rules:
        matched = [name for name in names if _compiled(rule).search(name)]
        if rule.required and not matched:
            raise InputError(
                "a pattern of nodes that stay in float matches nothing",
                got=rule.pattern,
                expected=f"names such as {', '.join(names[:3])}",
                fix="correct the pattern, or leave it out",
            )
        for name in matched:
            reasons.setdefault(name, rule.reason)
    return tuple(KeptNode(name, reasons[name]) for name in names if name in reasons)


def residual_adds(
    model: onnx.ModelProto, policy: QuantizationPolicy = DEFAULT_POLICY
) -> tuple[onnx.NodeProto, ...]:
    """Additions whose inputs carry Q/DQ: those of two maps, one straight from an INT8 node.

    Raises:
        InputError: As ``quantised_nodes``.
    """
    if not policy.residuals:
        return ()
    kept = {node.name for node in kept_nodes(model, policy)}
    linear = {node.name for node in quantised_nodes(model, policy)}
    return tuple(node for node in _residual_adds(model, linear) if node.name not in kept)


def calibrated_tensors(
    model: onnx.ModelProto, policy: QuantizationPolicy = DEFAULT_POLICY
) -> tuple[str, ...]:
    """Names of the tensors whose ranges ``to_int8`` needs, in the order of the graph.

    Raises:
        InputError: As ``quantised_nodes``.
    """
    wanted = {node.activation for node in quantised_nodes(model, policy)}
    wanted.update(name for add in residual_adds(model, policy) for name in add.input)
    graph = model.graph
    made = (name for node in graph.node for name in node.output)
    return tuple(n for n in (*(v.name for v in graph.input), *made) if n in wanted)


def _residual_adds(model: onnx.ModelProto, linear: set[str]) -> list[onnx.NodeProto]:
    types, by_output = value_types(model.graph), producers(model.graph)
    constants = {i.name for i in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type != "Add" or constants & set(node.input):
            continue
        one, other = (types.get(name) for name in node.input)
        if one is None or one != other or one.dtype != TensorProto.FLOAT:
            continue
        made_by = [by_output.get(name) for name in node.input]
        if any(maker is not None and maker.name in linear for maker in made_by):
            found.append(node)
    return found


def _compiled(rule: KeepRule) -> re.Pattern[str]:
    try:
        return re.compile(rule.pattern)
    except re.error as error:
        raise InputError(
            "a pattern of nodes that stay in float is no regular expression",
            got=rule.pattern,
            expected=f"a regular expression on node names ({error})",
        ) from error
