# SPDX-License-Identifier: Apache-2.0
"""Invariants that hold after every pass."""

from __future__ import annotations

from collections import Counter

import onnx

from stormrt.errors import InputError
from stormrt.pipeline.rewrite.values import DTYPE_NAMES, ValueType, value_types
from stormrt.plugins.derive.onnx_schema import register_schema
from stormrt.plugins.registry import all_plugins
from stormrt.plugins.spec import DOMAIN

FORBIDDEN_OPS = ("Loop", "Scan", "If", "ScatterND", "ScatterElements", "CumSum")
"""Ops that TensorRT runs as a loop, refuses, or computes unstably for a selective scan."""

Interface = tuple[tuple[str, ValueType], ...]
"""Names and types of a graph's inputs and outputs."""


class GraphInvariantError(InputError):
    """A graph breaks an invariant: a damaged file, or a defect of a pass."""


def interface(model: onnx.ModelProto) -> Interface:
    """Inputs, then outputs."""
    types = value_types(model.graph)
    return tuple((v.name, types[v.name]) for v in (*model.graph.input, *model.graph.output))


def verify(model: onnx.ModelProto, *, after: str, expected: Interface | None = None) -> None:
    """Check a graph.

    Checks that the ONNX checker accepts it (acyclic, no dangling values, schemas obeyed), that
    names are unique, that every node of our domain fits its ``PluginSpec``, that no forbidden op
    is in it, and that its inputs and outputs are what they were.

    Args:
        model: The graph.
        after: Name of the pass or file, for messages.
        expected: Inputs and outputs before the pass.

    Raises:
        GraphInvariantError: All that is wrong, together.
    """
    specs = all_plugins()
    for spec in specs.values():
        register_schema(spec)
    problems: list[str] = []
    try:
        onnx.checker.check_model(model, full_check=False)
    except onnx.checker.ValidationError as error:
        problems.append(str(error).strip().splitlines()[0])
    names = Counter(node.name for node in model.graph.node)
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        problems.append(f"node names are not unique: {', '.join(repeated[:3])}")
    types = value_types(model.graph)
    for node in model.graph.node:
        if node.op_type in FORBIDDEN_OPS and not node.domain:
            problems.append(f"node {node.name!r} is a {node.op_type}")
        if node.domain == DOMAIN:
            problems += _marker_problems(node, types)
        elif node.domain:
            problems.append(f"node {node.name!r} has the unknown domain {node.domain!r}")
    if expected is not None and interface(model) != expected:
        problems.append(
            "inputs or outputs changed from "
            f"{[f'{n}: {t}' for n, t in expected]} to "
            f"{[f'{n}: {t}' for n, t in interface(model)]}"
        )
    if problems:
        raise GraphInvariantError(
            "the graph is not valid", where=f"after {after}", got="\n            ".join(problems)
        )


def _marker_problems(node: onnx.NodeProto, types: dict[str, ValueType]) -> list[str]:
    spec = all_plugins().get(node.op_type)
    if spec is None:
        return [f"node {node.name!r}: stormrt has no operator {node.op_type!r}"]
    attributes = {a.name: a.s.decode() for a in node.attribute}
    problems = []
    if attributes != spec.attributes():
        problems.append(
            f"node {node.name!r}: attributes {attributes}, expected {spec.attributes()}"
        )
    for what, found_count, count in (
        ("inputs", len(node.input), len(spec.inputs)),
        ("outputs", len(node.output), len(spec.outputs)),
    ):
        if found_count != count:
            return [*problems, f"node {node.name!r}: {found_count} {what}, not {count}"]
    io_types = set()
    shapes: list[tuple[int | str, ...]] = []
    declared = zip((*spec.inputs, *spec.outputs), (*node.input, *node.output), strict=True)
    for tensor, value in declared:
        found = types.get(value)
        if found is None or found.shape is None:
            return [*problems, f"node {node.name!r}: the type of {value!r} is not known"]
        dtype = DTYPE_NAMES.get(found.dtype, str(found.dtype))
        if tensor.dtype == "T":
            io_types.add(dtype)
        elif dtype != tensor.dtype:
            problems.append(
                f"node {node.name!r}: {tensor.name} is {dtype}, expected {tensor.dtype}"
            )
        shapes.append(found.shape)
    if len(io_types) != 1 or not io_types <= set(spec.io_dtypes):
        problems.append(
            f"node {node.name!r}: mixed or unsupported types {sorted(io_types)}; "
            f"one of {', '.join(spec.io_dtypes)} for all maps"
        )
    try:
        bound = spec.bind(shapes[: len(spec.inputs)])
        outputs = [tuple(s) for s in spec.output_shapes(bound)]
        if outputs != shapes[len(spec.inputs) :]:
            problems.append(f"node {node.name!r}: outputs {shapes[-1]}, expected {outputs}")
    except InputError as error:
        problems.append(f"node {node.name!r}: {error}")
    return problems
