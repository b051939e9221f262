# SPDX-License-Identifier: Apache-2.0
"""Each pass over the graph, on graphs small enough to be read: before and after.

What can go wrong: a pass that changes what a graph computes, one that changes a graph in which it
has nothing to do, one that cannot be run twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stormrt.pipeline.comparison import open_session
from stormrt.pipeline.rewrite.absorb_casts import absorb_casts
from stormrt.pipeline.rewrite.attach_functions import attach_functions
from stormrt.pipeline.rewrite.drop_functions import drop_functions
from stormrt.pipeline.rewrite.graph_pass import GraphPass
from stormrt.pipeline.rewrite.inline_functions import inline_functions
from stormrt.pipeline.rewrite.join_fp32 import join_fp32
from stormrt.pipeline.rewrite.name_by_module import (
    boundary_values,
    name_by_module,
    selection_values,
)
from stormrt.pipeline.rewrite.raise_opset import raise_opset
from stormrt.pipeline.rewrite.schedule import run_passes
from stormrt.pipeline.rewrite.tidy import tidy
from stormrt.pipeline.rewrite.verify import GraphInvariantError, verify

F32, F16, I32 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32
MARKER = {"domain": "stormrt", "plugin_version": "1", "plugin_namespace": "stormrt"}
"""What every custom node carries."""


def node(op: str, inputs: str, outputs: str, name: str = "", **attributes) -> onnx.NodeProto:
    """A node whose inputs and outputs are given as words."""
    return helper.make_node(op, inputs.split(), outputs.split(), name or op, **attributes)


def value(name: str, shape: Sequence[int | str], dtype: int = F32) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    *,
    inner: Sequence[onnx.ValueInfoProto] = (),
    constants: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers, value_info=inner)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("stormrt", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def gather(inputs: str, output: str, name: str) -> onnx.NodeProto:
    return node("SpatialUnitGather", inputs, output, name, **MARKER)


LINES = {"rows": np.array([[0, 2]], np.int32), "cols": np.array([[1, 2, 4]], np.int32)}


def one_gather(dtype: int = F32) -> onnx.ModelProto:
    """x [1, 3, 4, 5] -> the crossings of rows 0, 2 and columns 1, 2, 4."""
    return model(
        [gather("x rows cols", "y", "g0")],
        [value("x", [1, 3, 4, 5], dtype)],
        [value("y", [1, 3, 2, 3], dtype)],
        constants=LINES,
    )


def relu_only() -> onnx.ModelProto:
    """A graph in which no pass has anything to do."""
    return model([node("Relu", "x", "y")], [value("x", [2, 3])], [value("y", [2, 3])])


def run(proto: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    return open_session(proto.SerializeToString(), "test graph").run(None, inputs)[0]


def op_types(proto: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in proto.graph.node]


@pytest.mark.parametrize(
    "graph_pass",
    [tidy, attach_functions, drop_functions, inline_functions, absorb_casts, join_fp32],
)
def test_a_pass_with_nothing_to_do_changes_nothing(graph_pass):
    proto = relu_only()
    before = deepcopy(proto.graph)
    assert graph_pass(proto) == 0
    assert proto.graph.node == before.node
    assert proto.graph.initializer == before.initializer
    assert (proto.graph.input, proto.graph.output) == (before.input, before.output)
    assert not proto.functions


class TestNameByModule:
    SCOPES = "pkg.torch.onnx.name_scopes"

    def scoped(self, op: str, inputs: str, outputs: str, path: list[str]) -> onnx.NodeProto:
        name = f"node_{op}_{outputs}"  # as the exporter names nodes
        made = node(op, inputs, outputs, name, doc_string="File /home/me/model.py")
        made.metadata_props.add(key=self.SCOPES, value=repr(["", *path, "conv2d"]))
        made.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File /home/me/x.py")
        return made

    def graph(self) -> onnx.ModelProto:
        block = ["layers.0", "layers.0.blocks.0"]
        return model(
            [
                self.scoped("Relu", "images", "v1", [*block, "layers.0.blocks.0.op"]),
                node("Neg", "v1", "v2"),  # made by an optimiser: it has no scope
                self.scoped("Relu", "v2", "v3", [*block, "layers.0.blocks.0.op"]),
                self.scoped("Add", "v3 w", "v4", block),
                self.scoped("Abs", "v4", "logits", ["classifier"]),
            ],
            [value("images", [2])],
            [value("logits", [2])],
            inner=[value(f"v{i}", [2]) for i in (1, 2, 3, 4)],
            constants={"w": np.ones(2, np.float32)},
        )

    def test_nodes_are_named_after_their_modules_and_counted(self):
        proto = self.graph()
        assert name_by_module(proto) == 5
        assert [n.name for n in proto.graph.node] == [
            "layers.0.blocks.0.op/Relu",
            "layers.0.blocks.0.op/Neg",
            "layers.0.blocks.0.op/Relu_2",
            "layers.0.blocks.0/Add",
            "classifier/Abs",
        ]

    def test_the_last_value_of_a_block_takes_the_blocks_name_in_nodes_and_types_alike(self):
        proto = self.graph()
        name_by_module(proto)
        assert boundary_values(proto.graph) == ["layers.0.blocks.0"]
        assert proto.graph.node[4].input[:] == ["layers.0.blocks.0"]
        assert [v.name for v in proto.graph.value_info] == [
            "layers.0.blocks.0.op/Relu",
            "layers.0.blocks.0.op/Neg",
            "layers.0.blocks.0.op/Relu_2",
            "layers.0.blocks.0",
        ]
        verify(proto, after="name_by_module")

    def test_inputs_outputs_and_weights_keep_their_names(self):
        proto = self.graph()
        name_by_module(proto)
        assert proto.graph.node[0].input[:] == ["images"]
        assert proto.graph.node[3].input[1] == "w"
        assert proto.graph.node[4].output[:] == ["logits"]

    def test_paths_of_the_building_machine_are_dropped(self):
        proto = self.graph()
        proto.doc_string = proto.graph.doc_string = "File /home/me/model.py"
        proto.graph.value_info[0].metadata_props.add(key="k", value="/home/me")
        proto.graph.initializer[0].metadata_props.add(key="k", value="/home/me")
        proto.metadata_props.add(key="k", value="/home/me")
        name_by_module(proto)
        assert b"/home/me" not in proto.SerializeToString()

    def test_the_computation_is_the_same(self):
        before, after = self.graph(), self.graph()
        name_by_module(after)
        x = np.array([-1.5, 2.0], np.float32)
        np.testing.assert_array_equal(run(after, images=x), run(before, images=x))

    def test_a_graph_without_scopes_is_named_by_its_operators(self):
        proto = relu_only()
        name_by_module(proto)
        assert [n.name for n in proto.graph.node] == ["Relu"]
        assert boundary_values(proto.graph) == []

    def test_outputs_of_one_node_are_numbered(self):
        proto = model(
            [
                self.scoped("Split", "images", "a b", ["patch_embed"]),
                self.scoped("Add", "a b", "logits", ["classifier"]),
            ],
            [value("images", [2])],
            [value("logits", [1])],
        )
        proto.graph.node[0].attribute.append(helper.make_attribute("num_outputs", 2))
        proto.graph.node[0].metadata_props[0].value = repr(["", "stem", "split"])
        name_by_module(proto)
        assert proto.graph.node[0].output[:] == ["stem/Split:0", "stem/Split:1"]

    def test_kept_lines_are_named_after_the_modules_that_choose_them(self):
        path = ["layers.0", "layers.0.reductions.1"]

        def placed(made: onnx.NodeProto, *within: str) -> onnx.NodeProto:
            made.metadata_props.add(key=self.SCOPES, value=repr(["", *path, *within, "op"]))
            return made

        module = "layers.0.reductions.1"
        rows, cols = f"{module}.rows", f"{module}.cols"
        proto = model(
            [
                placed(node("Identity", "rows", "r0", "i0"), rows),
                placed(node("Identity", "r0", "r", "i1"), rows),
                placed(node("Identity", "cols", "c", "i2"), cols),
                placed(gather("x r c", "y", "node_812")),
            ],
            [value("x", [1, 3, 4, 5]), value("rows", [1, 2], I32), value("cols", [1, 3], I32)],
            [value("y", [1, 3, 2, 3])],
            inner=[value(name, [1, n], I32) for name, n in (("r0", 2), ("r", 2), ("c", 3))],
        )
        name_by_module(proto)
        assert selection_values(proto.graph) == [cols, rows]
        assert [v.name for v in proto.graph.value_info] == [f"{rows}/Identity", rows, cols]
        assert boundary_values(proto.graph) == []  # y is an output of the graph


class TestTidy:
    def test_nodes_that_were_appended_out_of_order_are_sorted(self):
        proto = model(
            [node("Neg", "a", "y"), node("Relu", "x", "a")],
            [value("x", [2])],
            [value("y", [2])],
        )
        tidy(proto)
        assert op_types(proto) == ["Relu", "Neg"]
        verify(proto, after="tidy")

    def test_constants_become_initialisers_and_equal_ones_are_stored_once(self):
        two = numpy_helper.from_array(np.full(3, 2.0, np.float32))
        proto = model(
            [
                node("Constant", "", "c0", "c0", value=two),
                node("Mul", "x c0", "a", "mul"),
                node("Add", "a w", "y", "add"),
            ],
            [value("x", [3])],
            [value("y", [3])],
            constants={"w": np.full(3, 2.0, np.float32)},
        )
        x = np.array([1, 2, 3], np.float32)
        before = run(proto, x=x)
        assert tidy(proto) == 1
        assert op_types(proto) == ["Mul", "Add"]
        assert len(proto.graph.initializer) == 1
        np.testing.assert_array_equal(run(proto, x=x), before)

    def test_what_nothing_reads_identities_and_repeated_work_go(self):
        proto = model(
            [
                node("Identity", "x", "i", "identity"),
                node("Relu", "i", "a", "relu"),
                node("Relu", "x", "b", "relu_again"),
                node("Neg", "x", "unread", "neg"),
                node("Add", "a b", "y", "add"),
            ],
            [value("x", [3])],
            [value("y", [3])],
            constants={"unread_weight": np.ones(3, np.float32)},
        )
        assert tidy(proto) == 3
        assert op_types(proto) == ["Relu", "Add"]
        x = np.array([-1, 0, 2], np.float32)
        np.testing.assert_array_equal(run(proto, x=x), np.maximum(x, 0) * 2)

    def test_twice_is_once(self):
        proto = model(
            [node("Neg", "a", "y"), node("Identity", "b", "a"), node("Relu", "x", "b")],
            [value("x", [2])],
            [value("y", [2])],
        )
        assert tidy(proto) == 1
        once = proto.SerializeToString(deterministic=True)
        assert tidy(proto) == 0
        assert proto.SerializeToString(deterministic=True) == once

    def test_functions_stay(self):
        proto = one_gather()
        attach_functions(proto)
        before = [f.SerializeToString(deterministic=True) for f in proto.functions]
        tidy(proto)
        assert [f.SerializeToString(deterministic=True) for f in proto.functions] == before
        assert proto.graph.node[0].overload == proto.functions[0].overload


class TestAttachAndDropFunctions:
    def test_a_graph_with_functions_runs_and_computes_what_the_operator_means(self, rng):
        proto = one_gather()
        assert attach_functions(proto) == 1
        verify(proto, after="attach")
        x = rng.standard_normal((1, 3, 4, 5)).astype(np.float32)
        np.testing.assert_array_equal(run(proto, x=x), x[:, :, [0, 2]][:, :, :, [1, 2, 4]])

    def test_equal_shapes_share_a_function_and_others_have_their_own(self):
        proto = model(
            [
                gather("x rows cols", "a", "g0"),
                gather("x rows cols", "b", "g1"),
                gather("a rows cols0", "y", "g2"),
                node("Add", "a b", "z"),
            ],
            [value("x", [1, 3, 4, 5])],
            [value("y", [1, 3, 2, 2]), value("z", [1, 3, 2, 3])],
            inner=[value("a", [1, 3, 2, 3]), value("b", [1, 3, 2, 3])],
            constants={
                "rows": np.array([[0, 1]], np.int32),
                "cols": LINES["cols"],
                "cols0": np.array([[0, 1]], np.int32),
            },
        )
        assert attach_functions(proto) == 3
        assert len(proto.functions) == 2
        first, second, third = (n.overload for n in proto.graph.node[:3])
        assert first == second
        assert third not in ("", first)
        assert {f.overload for f in proto.functions} == {first, third}
        assert proto.ir_version >= 10, "overloads came with IR version 10"

    def test_functions_declare_the_attributes_that_their_calls_carry(self):
        proto = one_gather()
        attach_functions(proto)
        assert set(proto.functions[0].attribute) == {"plugin_version", "plugin_namespace"}

    def test_attaching_twice_is_attaching_once(self):
        proto = one_gather()
        attach_functions(proto)
        once = proto.SerializeToString(deterministic=True)
        attach_functions(proto)
        assert proto.SerializeToString(deterministic=True) == once

    def test_dropping_undoes_attaching_and_keeps_what_tensorrt_reads(self):
        proto = one_gather()
        before = deepcopy(proto.graph)
        attach_functions(proto)
        assert drop_functions(proto) == 1
        assert not proto.functions
        assert not proto.graph.node[0].HasField("overload")
        assert proto.graph == before
        assert drop_functions(proto) == 1
        assert proto.graph == before


class TestInlineFunctions:
    def test_custom_nodes_become_standard_ones_with_unique_names(self, rng):
        proto = model(
            [
                gather("x rows cols", "a", "g0"),
                gather("x rows cols", "b", "g1"),
                node("Sub", "a b", "y"),
            ],
            [value("x", [1, 3, 4, 5])],
            [value("y", [1, 3, 2, 3])],
            inner=[value("a", [1, 3, 2, 3]), value("b", [1, 3, 2, 3])],
            constants=LINES,
        )
        attach_functions(proto)
        assert inline_functions(proto) == 2
        assert not proto.functions
        assert {n.domain for n in proto.graph.node} == {""}
        names = [n.name for n in proto.graph.node]
        assert len(names) > 20
        assert len(set(names)) == len(names)
        verify(proto, after="inline")
        x = rng.standard_normal((1, 3, 4, 5)).astype(np.float32)
        np.testing.assert_array_equal(run(proto, x=x), np.zeros((1, 3, 2, 3)))

    def test_inlining_twice_is_inlining_once(self):
        proto = one_gather()
        attach_functions(proto)
        inline_functions(proto)
        once = deepcopy(proto.graph)
        assert inline_functions(proto) == 0
        assert proto.graph == once


class TestAbsorbCasts:
    """The graphs are what the FP16 converter leaves: FP32 nodes between casts."""

    def graph(self, *, reader: str = "Cast") -> onnx.ModelProto:
        last = (
            node("Cast", "y32", "y", "after", to=F16)
            if reader == "Cast"
            else node("Abs", "y32", "y")
        )
        return model(
            [
                node("Cast", "x", "x32", "before", to=F32),
                gather("x32 rows cols", "y32", "g0"),
                last,
            ]
            + ([node("Abs", "y", "z", "abs")] if reader == "Cast" else []),
            [value("x", [1, 3, 4, 5], F16)],
            [value("z", [1, 3, 2, 3], F16) if reader == "Cast" else value("y", [1, 3, 2, 3])],
            inner=[value("x32", [1, 3, 4, 5]), value("y32", [1, 3, 2, 3])]
            + ([value("y", [1, 3, 2, 3], F16)] if reader == "Cast" else []),
            constants=LINES,
        )

    def test_a_node_between_casts_takes_and_gives_fp16_itself(self, rng):
        proto = self.graph()
        assert absorb_casts(proto) == 1
        custom = proto.graph.node[1]
        assert custom.input[:] == ["x", "rows", "cols"]
        assert custom.output[:] == ["y"], "the name that the model knows"
        tidy(proto)
        assert op_types(proto) == ["SpatialUnitGather", "Abs"]
        attach_functions(proto)
        verify(proto, after="absorb")
        x = rng.standard_normal((1, 3, 4, 5)).astype(np.float16)
        expected = np.abs(x[:, :, [0, 2]][:, :, :, [1, 2, 4]])
        np.testing.assert_array_equal(run(proto, x=x), expected)

    def test_twice_is_once(self):
        proto = self.graph()
        absorb_casts(proto)
        once = deepcopy(proto.graph)
        assert absorb_casts(proto) == 0
        assert proto.graph == once

    def test_a_node_of_an_island_stays_in_fp32(self):
        proto = self.graph()
        custom = next(n for n in proto.graph.node if n.domain)
        before = deepcopy(proto.graph)
        assert absorb_casts(proto, [custom.name]) == 0
        assert proto.graph == before

    def test_a_node_read_in_fp32_stays_in_fp32(self):
        proto = self.graph(reader="Abs")
        before = deepcopy(proto.graph)
        assert absorb_casts(proto) == 0
        assert proto.graph == before

    def test_a_node_whose_map_is_fp32_from_the_start_stays_in_fp32(self):
        proto = self.graph()
        proto.graph.node[0].CopyFrom(node("Abs", "x", "x32", "before"))
        proto.graph.input[0].type.tensor_type.elem_type = F32
        before = deepcopy(proto.graph)
        assert absorb_casts(proto) == 0
        assert proto.graph == before

    def test_a_node_whose_fp32_result_leaves_the_graph_stays_in_fp32(self):
        proto = self.graph()
        proto.graph.output.append(value("y32", [1, 3, 2, 3]))
        del proto.graph.value_info[1]
        before = deepcopy(proto.graph)
        assert absorb_casts(proto) == 0
        assert proto.graph == before

    def test_custom_nodes_in_a_row_are_all_absorbed(self):
        proto = model(
            [
                node("Cast", "x", "x32", "c0", to=F32),
                gather("x32 rows cols", "a32", "g0"),
                node("Cast", "a32", "a16", "c1", to=F16),
                node("Cast", "a16", "b32", "c2", to=F32),
                gather("b32 rows0 cols0", "y32", "g1"),
                node("Cast", "y32", "y16", "c3", to=F16),
                node("Abs", "y16", "y"),
            ],
            [value("x", [1, 3, 4, 5], F16)],
            [value("y", [1, 3, 1, 1], F16)],
            inner=[
                value("x32", [1, 3, 4, 5]),
                value("a32", [1, 3, 2, 3]),
                value("a16", [1, 3, 2, 3], F16),
                value("b32", [1, 3, 2, 3]),
                value("y32", [1, 3, 1, 1]),
                value("y16", [1, 3, 1, 1], F16),
            ],
            constants={
                **LINES,
                "rows0": np.array([[1]], np.int32),
                "cols0": np.array([[0]], np.int32),
            },
        )
        assert absorb_casts(proto) == 2
        tidy(proto)
        assert op_types(proto) == ["SpatialUnitGather", "SpatialUnitGather", "Abs"]
        verify(proto, after="absorb")


class TestJoinFp32:
    def graph(self, source: str) -> onnx.ModelProto:
        """A value that is rounded to FP16 and read in FP32 again; squared 300 overflows FP16."""
        first = node("Mul", "x x", "a32", "mul") if source == "Mul" else node(source, "x", "a32")
        return model(
            [
                first,
                node("Cast", "a32", "a16", "forth", to=F16),
                node("Cast", "a16", "b32", "back", to=F32),
                node("Sqrt", "b32", "y"),
                node("Abs", "a16", "z"),
            ],
            [value("x", [2])],
            [value("y", [2]), value("z", [2], F16)],
            inner=[value("a32", [2]), value("a16", [2], F16), value("b32", [2])],
        )

    def test_fp32_neighbours_read_each_other_without_rounding(self):
        proto, x = self.graph("Mul"), np.array([300.0, 0.1], np.float32)
        assert np.isinf(run(proto, x=x)[0])
        assert join_fp32(proto) == 1
        tidy(proto)
        verify(proto, after="join")
        assert sorted(op_types(proto)) == ["Abs", "Cast", "Mul", "Sqrt"]
        np.testing.assert_allclose(run(proto, x=x), x, rtol=1e-6)

    def test_who_wants_fp16_still_gets_fp16(self):
        proto = self.graph("Mul")
        join_fp32(proto)
        assert next(n for n in proto.graph.node if n.op_type == "Abs").input[:] == ["a16"]

    def test_twice_is_once(self):
        proto = self.graph("Mul")
        join_fp32(proto)
        once = deepcopy(proto.graph)
        assert join_fp32(proto) == 0
        assert proto.graph == once

    def test_a_cast_of_an_fp16_value_stays(self):
        proto = model(
            [
                node("Abs", "x", "a16"),
                node("Cast", "a16", "b32", "back", to=F32),
                node("Sqrt", "b32", "y"),
            ],
            [value("x", [2], F16)],
            [value("y", [2])],
            inner=[value("a16", [2], F16), value("b32", [2])],
        )
        before = deepcopy(proto.graph)
        assert join_fp32(proto) == 0
        assert proto.graph == before


class TestRaiseOpset:
    def graph(self) -> onnx.ModelProto:
        """Reshape-19 takes more types than Reshape-18, and means the same."""
        return model(
            [node("Reshape", "x shape", "a"), node("Abs", "a", "y")],
            [value("x", [2, 3])],
            [value("y", [6])],
            inner=[value("a", [6])],
            constants={"shape": np.array([6], np.int64)},
        )

    def opsets(self, proto: onnx.ModelProto) -> list[int]:
        held = [proto, *proto.functions]
        return [o.version for h in held for o in h.opset_import if not o.domain]

    def test_the_graph_says_the_later_opset_and_computes_the_same(self, rng):
        proto, x = self.graph(), rng.standard_normal((2, 3)).astype(np.float32)
        before = run(proto, x=x)
        assert raise_opset(proto, 19) == 1
        assert self.opsets(proto) == [19]
        verify(proto, after="raise_opset")
        np.testing.assert_array_equal(run(proto, x=x), before)

    def test_functions_are_raised_with_their_graph(self):
        proto = one_gather()
        attach_functions(proto)
        assert raise_opset(proto, 19) == 2
        assert self.opsets(proto) == [19, 19]
        verify(proto, after="raise_opset")

    def test_functions_are_attached_in_the_opset_of_the_graph(self):
        proto = one_gather()
        raise_opset(proto, 19)
        attach_functions(proto)
        assert self.opsets(proto) == [19, 19]
        verify(proto, after="attach_functions")

    def test_twice_is_once(self):
        proto = self.graph()
        raise_opset(proto, 19)
        assert raise_opset(proto, 19) == 0
        assert raise_opset(proto, 18) == 0
        assert self.opsets(proto) == [19]

    def test_a_step_in_which_an_operator_means_something_else_is_refused(self):
        pooled = model([node("AveragePool", "x", "y")], [value("x", [2])], [value("y", [2])])
        with pytest.raises(ValueError, match="AveragePool of opset 19"):
            raise_opset(pooled, 19)
        assert self.opsets(pooled) == [18]

    def test_a_step_that_nobody_has_read_the_changes_of_is_refused(self):
        with pytest.raises(ValueError, match="Reshape of opset 21"):
            raise_opset(self.graph(), 21)


class TestSchedule:
    def test_reports_tell_how_many_nodes_each_pass_changed(self):
        proto = one_gather()
        reports = run_passes(
            proto,
            [GraphPass("attach", "why", attach_functions), GraphPass("tidy", "why", tidy)],
        )
        assert [(r.name, r.changed) for r in reports] == [("attach", 1), ("tidy", 0)]

    def test_a_pass_that_breaks_the_graph_is_named(self):
        def dangle(proto: onnx.ModelProto) -> int:
            proto.graph.node[0].input[0] = "nowhere"
            return 1

        with pytest.raises(GraphInvariantError, match="after pass dangle"):
            run_passes(relu_only(), [GraphPass("dangle", "why", dangle)])

    def test_a_pass_that_changes_an_output_is_refused(self):
        def widen(proto: onnx.ModelProto) -> int:
            proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 99
            return 1

        with pytest.raises(GraphInvariantError, match="inputs or outputs changed"):
            run_passes(relu_only(), [GraphPass("widen", "why", widen)])


class TestVerify:
    def refused(self, proto: onnx.ModelProto) -> str:
        with pytest.raises(GraphInvariantError) as caught:
            verify(proto, after="the test")
        assert caught.value.where == "after the test"
        assert caught.value.got
        return caught.value.got

    @pytest.mark.parametrize("dtype", [F32, F16])
    def test_a_good_graph_passes(self, dtype):
        verify(one_gather(dtype), after="the test")

    def test_a_cycle_is_refused(self):
        proto = model(
            [node("Add", "x b", "a", "add"), node("Relu", "a", "b"), node("Neg", "b", "y")],
            [value("x", [2])],
            [value("y", [2])],
        )
        assert "sorted" in self.refused(proto)

    def test_nodes_out_of_order_are_refused(self):
        proto = model(
            [node("Neg", "a", "y"), node("Relu", "x", "a")], [value("x", [2])], [value("y", [2])]
        )
        assert "sorted" in self.refused(proto)

    def test_an_input_from_nowhere_is_refused(self):
        proto = relu_only()
        proto.graph.node[0].input[0] = "nowhere"
        assert "nowhere" in self.refused(proto)

    def test_repeated_node_names_are_refused(self):
        proto = model(
            [node("Relu", "x", "a", "twin"), node("Neg", "a", "y", "twin")],
            [value("x", [2])],
            [value("y", [2])],
        )
        assert "not unique: twin" in self.refused(proto)

    def test_an_unknown_domain_is_refused(self):
        proto = relu_only()
        proto.graph.node[0].domain = "com.example"
        proto.opset_import.append(helper.make_opsetid("com.example", 1))
        assert "unknown domain 'com.example'" in self.refused(proto)

    def test_an_unknown_operator_of_ours_is_refused(self):
        proto = one_gather()
        proto.graph.node[0].op_type = "SpatialUnitNowhere"
        assert "no operator 'SpatialUnitNowhere'" in self.refused(proto)

    @pytest.mark.parametrize("name", ["plugin_version", "plugin_namespace"])
    def test_a_wrong_attribute_is_refused(self, name):
        proto = one_gather()
        for attribute in proto.graph.node[0].attribute:
            if attribute.name == name:
                attribute.s = b"2"
        assert name in self.refused(proto)

    def test_a_missing_attribute_is_refused(self):
        proto = one_gather()
        del proto.graph.node[0].attribute[:]
        assert "attributes {}" in self.refused(proto)

    def test_mixed_types_of_maps_are_refused(self):
        proto = one_gather()
        proto.graph.output[0].type.tensor_type.elem_type = F16
        assert "['float16', 'float32']" in self.refused(proto)

    def test_an_unsupported_type_of_maps_is_refused(self):
        assert "unsupported types" in self.refused(one_gather(TensorProto.DOUBLE))

    def test_indices_of_another_type_are_refused(self):
        proto = one_gather()
        proto.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(LINES["rows"].astype(np.int64), "rows")
        )
        assert "rows is int64, expected int32" in self.refused(proto)

    def test_a_wrong_output_shape_is_refused(self):
        proto = one_gather()
        proto.graph.output[0].CopyFrom(value("y", [1, 3, 2, 4]))
        assert "expected [(1, 3, 2, 3)]" in self.refused(proto)

    def test_inputs_that_do_not_fit_each_other_are_refused(self):
        proto = one_gather()
        proto.graph.input[0].CopyFrom(value("x", [2, 3, 4, 5]))
        assert "does not fit the others" in self.refused(proto)

    def test_a_map_of_another_rank_is_refused(self):
        proto = one_gather()
        proto.graph.input[0].CopyFrom(value("x", [1, 3, 4, 5, 6]))
        assert "wrong rank" in self.refused(proto)

    def test_a_value_of_unknown_type_is_refused(self):
        proto = one_gather()
        proto.graph.node.append(node("Relu", "y", "z"))
        proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = "untyped"
        proto.graph.output[0].name = "z"
        assert "type of 'untyped' is not known" in self.refused(proto)

    @pytest.mark.parametrize(("inputs", "outputs"), [("x rows", "y"), ("x rows cols", "y z")])
    def test_a_wrong_count_of_inputs_or_outputs_is_refused(self, inputs, outputs):
        proto = one_gather()
        proto.graph.node[0].CopyFrom(node("SpatialUnitGather", inputs, outputs, "g0", **MARKER))
        assert "'g0'" in self.refused(proto)

    def test_a_batch_that_is_a_symbol_passes_and_two_symbols_do_not(self):
        def graph(batch_of_rows: str) -> onnx.ModelProto:
            return model(
                [gather("x r c", "y", "g0")],
                [
                    value("x", ["batch", 3, 4, 5]),
                    value("r", [batch_of_rows, 2], I32),
                    value("c", ["batch", 3], I32),
                ],
                [value("y", ["batch", 3, 2, 3])],
            )

        verify(graph("batch"), after="the test")
        assert "does not fit the others" in self.refused(graph("other"))

    @pytest.mark.parametrize(
        ("op", "inputs", "attributes", "constants"),
        [
            ("CumSum", "x axis", {}, {"axis": np.array(0, np.int64)}),
            (
                "ScatterND",
                "x indices x",
                {},
                {"indices": np.array([[0], [1]], np.int64)},
            ),
            (
                "ScatterElements",
                "x indices x",
                {},
                {"indices": np.array([[0, 0, 0], [1, 1, 1]], np.int64)},
            ),
        ],
    )
    def test_an_operator_that_tensorrt_cannot_take_is_refused(
        self, op, inputs, attributes, constants
    ):
        proto = model(
            [node(op, inputs, "y", **attributes)],
            [value("x", [2, 3])],
            [value("y", [2, 3])],
            constants=constants,
        )
        onnx.checker.check_model(proto)
        assert f"is a {op}" in self.refused(proto)

    def test_control_flow_is_refused(self):
        branch = helper.make_graph([node("Neg", "x", "z")], "branch", [], [value("z", [2, 3])])
        proto = model(
            [node("If", "condition", "y", then_branch=branch, else_branch=branch)],
            [value("x", [2, 3]), value("condition", [], TensorProto.BOOL)],
            [value("y", [2, 3])],
        )
        onnx.checker.check_model(proto)
        assert "is a If" in self.refused(proto)

    def test_all_that_is_wrong_is_told_at_once(self):
        proto = one_gather()
        proto.graph.output[0].CopyFrom(value("y", [1, 3, 2, 4], F16))
        del proto.graph.node[0].attribute[:]
        message = self.refused(proto)
        assert "attributes {}" in message
        assert "mixed" in message
        assert "expected [(1, 3, 2, 3)]" in message
