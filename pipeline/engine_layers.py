# SPDX-License-Identifier: Apache-2.0
"""TensorRT-RTX's list of an engine's layers: in which type each Conv, Gemm and MatMul multiplies.

At ``ProfilingVerbosity.DETAILED`` the builder logs one line a kernel: what kind it is, the types of
what it reads and writes, and the ONNX nodes that it stands for. The engine inspector would need the
engine loaded, which takes the GPU. The list does not tell the kernel itself, which is chosen on the
GPU, nor the type that it sums in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), ")
_TYPE = re.compile(r"Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_PARTS = ("Inputs: [", "Constants: [", "Outputs: [")

_POINTWISE = "kgen"
"""Kind of a kernel that multiplies no matrices: what is fused before and behind those that do."""


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """One kernel of an engine."""

    name: str
    kind: str
    """TensorRT-RTX's word: ``correlation`` (convolutions, and Gemm), ``kgen`` ..."""
    inputs: tuple[str, ...]
    """Types of the maps that it reads, in lower case: ``int8``, ``half``, ``float``."""
    constants: tuple[str, ...]
    """Types of the weights and factors that it reads."""
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]
    """Names of ONNX nodes that it is a part of."""


def parse_layers(lines: Iterable[str]) -> tuple[EngineLayer, ...]:
    """Read the builder's lines (``EngineBuildResult.layers``); what is no layer is left out.

    Full TensorRT writes other lines, of which none is read.
    """
    found = []
    for line in lines:
        match = _LINE.match(line)
        if match is None or not all(part in line for part in _PARTS):
            continue
        inputs, rest = line.split(_PARTS[0], 1)[1].split(_PARTS[1], 1)
        constants, rest = rest.split(_PARTS[2], 1)
        outputs = rest.split("TacticName:", 1)[0]
        types = [tuple(t.lower() for t in _TYPE.findall(s)) for s in (inputs, constants, outputs)]
        nodes = tuple(_NODE.findall(line))
        found.append(EngineLayer(match["name"], match["kind"], types[0], types[1], types[2], nodes))
    return tuple(found)


def multiplied_in(layers: Iterable[EngineLayer], nodes: Iterable[str]) -> dict[str, str]:
    """By linear node, the type of the map that its kernel reads; nodes that are not told, are not.

    Args:
        layers: Of one engine.
        nodes: Names of Conv, Gemm and MatMul nodes of its graph.
    """
    wanted = set(nodes)
    return {
        node: layer.inputs[0]
        for layer in layers
        if layer.kind != _POINTWISE and layer.inputs
        for node in layer.nodes
        if node in wanted
    }


def describe(types: dict[str, str], nodes: int) -> str:
    """What ``multiplied_in`` found of so many nodes, in a sentence."""
    if not types:
        return (
            f"in which type the {nodes} Conv, Gemm and MatMul multiply, the builder does not tell"
        )
    counts = ", ".join(
        f"{count} in {kind}" for kind, count in Counter(types.values()).most_common()
    )
    untold = nodes - len(types)
    text = f"of {nodes} Conv, Gemm and MatMul the builder's list has {counts}"
    return f"{text}; of {untold} it does not tell" if untold else text
