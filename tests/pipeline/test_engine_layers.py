# SPDX-License-Identifier: Apache-2.0
"""The builder's lines are read as they are, and what they do not tell is said.

What can go wrong: a fused kernel taken for the convolution, a type of a weight for that of a map.
"""

from __future__ import annotations

from stormrt.pipeline.engine_layers import describe, multiplied_in, parse_layers


def part(name: str, *types: str) -> str:
    tensors = ", ".join(
        f"{{ Name: {name}{i}, Dimensions: [1,3,8,8], Datatype: {t}, Format: (Linear) Row major }}"
        for i, t in enumerate(types)
    )
    return f"[ {tensors}]" if types else "[]"


def line(name: str, kind: str, inputs: list[str], weights: list[str], nodes: list[str]) -> str:
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: {part('i', *inputs)}, "
        f"Constants: {part('c', *weights)}, Outputs: {part('o', 'Float')}, TacticName: t, "
        f"StreamId: 0, Metadata: {''.join(f'[ONNX Layer: {n}]' for n in nodes)}"
    )


LINES = (
    line("fused_0", "kgen", ["Float", "Half"], [], ["norm", "a/Conv", "a/QuantizeLinear"]),
    line("a_1", "correlation", ["Int8"], ["Int8", "Float"], ["a/Conv", "a/DequantizeLinear"]),
    line("b_2", "correlation", ["Half"], ["Int8"], ["b/Conv"]),
    line("c, d_3", "runtime_fusion", ["Half"], ["Half"], ["c/Conv"]),
    line("constant_4", "correlation", [], ["Half"], ["d/Conv"]),
)


def test_lines_become_layers_with_types_and_nodes():
    fused, first, *_, last = parse_layers(LINES)
    assert (fused.kind, fused.inputs, fused.constants) == ("kgen", ("float", "half"), ())
    assert (first.name, first.inputs, first.constants) == ("a_1", ("int8",), ("int8", "float"))
    assert first.outputs == ("float",)
    assert first.nodes == ("a/Conv", "a/DequantizeLinear")
    assert last.inputs == ()
    assert len(parse_layers(LINES)) == len(LINES)


def test_what_is_no_such_line_is_left_out():
    assert parse_layers(["", "Layer(Myelin): x", "Name: x, LayerType: kgen", "Bindings:"]) == ()


def test_a_node_is_computed_in_the_type_of_the_map_that_its_kernel_reads():
    """Not of its weights, nor of what is fused before it."""
    nodes = ["a/Conv", "b/Conv", "c/Conv", "d/Conv", "e/Conv"]
    found = multiplied_in(parse_layers(LINES), nodes)
    assert found == {"a/Conv": "int8", "b/Conv": "half", "c/Conv": "half"}
    assert describe(found, len(nodes)) == (
        "of 5 Conv, Gemm and MatMul the builder's list has 2 in half, 1 in int8; of 2 it does not "
        "tell"
    )
    assert "does not tell" in describe({}, 3)
