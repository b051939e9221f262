# SPDX-License-Identifier: Apache-2.0
"""From an exported graph and a table to the Q/DQ graph that is lowered.

What can go wrong: a node of the policy's list that is rounded all the same, or another that is not;
a zero-point, a scale of another tensor; float readers that read rounded values; a custom node that
reads INT8's rounding; a graph that a runtime or a lowering refuses; a table of another graph.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stormrt.calibration.table import CalibrationTable, TensorRange
from stormrt.errors import InputError
from stormrt.pipeline.onnx_file import save_onnx
from stormrt.pipeline.precision import set_precision, to_fp16, to_int8
from stormrt.pipeline.quantize.int8 import OPSET, insert_qdq
from stormrt.pipeline.quantize.policy import (
    QuantizationPolicy,
    kept_nodes,
    quantised_nodes,
)
from stormrt.pipeline.rewrite.schedule import LOWER_NATIVE, LOWER_PLUGIN, run_passes
from stormrt.pipeline.rewrite.values import consumers, producers, value_types
from stormrt.pipeline.rewrite.verify import verify
from stormrt.plugins.spec import DOMAIN
from tests.helpers.seeds import generator
from tests.pipeline.support import GATED, Graphs, ops, relative, run_onnx, small_variants
from tests.pipeline.tables import calibrated, table_of


def images_for(graphs: Graphs) -> np.ndarray:
    spec = graphs.spec
    shape = (spec.batch if spec.name == GATED else 1, 3, spec.height, spec.width)
    return generator("images").standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Made:
    """A model's INT8 graph, and what it was made from. To change one, copy it first."""

    graphs: Graphs
    table: CalibrationTable
    model: onnx.ModelProto


def make(graphs: Graphs) -> Made:
    table, model = calibrated(graphs.exported, images_for(graphs)), deepcopy(graphs.exported)
    to_int8(model, table)
    return Made(graphs, table, model)


@pytest.fixture(scope="module", params=["dense", "reduced", "gated"])
def made(request: pytest.FixtureRequest) -> Made:
    with small_variants():
        return make(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def dense_int8(dense: Graphs) -> Made:
    with small_variants():
        return make(dense)


def with_residuals(made: Made) -> onnx.ModelProto:
    model = deepcopy(made.graphs.exported)
    to_int8(model, made.table, QuantizationPolicy(residuals=True))
    return model


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


class TestPlacement:
    def test_every_linear_node_outside_the_policys_list_reads_dq_on_both_inputs(self, made):
        graphs, model = made.graphs, made.model
        made_by = producers(model.graph)
        kept = {node.name for node in kept_nodes(graphs.exported)}
        for conv in ops(model, "Conv"):
            makers = [made_by.get(name) for name in conv.input[:2]]
            rounded = [m is not None and m.op_type == "DequantizeLinear" for m in makers]
            assert rounded == [conv.name not in kept] * 2, conv.name

    def test_scales_are_positive_and_zero_points_are_zero(self, made):
        model = made.model
        stored = constants(model)
        pairs = ops(model, "QuantizeLinear") + ops(model, "DequantizeLinear")
        assert pairs
        for node in pairs:
            _, scale, zero = node.input
            assert stored[scale].dtype == np.float16
            assert (stored[scale] > 0).all()
            assert np.isfinite(1 / stored[scale]).all()
            assert stored[zero].dtype == np.int8
            assert not stored[zero].any()

    def test_activations_have_one_scale_and_weights_one_an_output_channel(self, made):
        model = made.model
        stored, made_by = constants(model), producers(model.graph)
        for conv in ops(model, "Conv"):
            activation, weight = (made_by.get(name) for name in conv.input[:2])
            if weight is None or weight.op_type != "DequantizeLinear":
                continue
            assert stored[activation.input[1]].shape == ()
            assert stored[weight.input[0]].dtype == np.int8
            assert stored[weight.input[1]].shape == stored[weight.input[0]].shape[:1]
            assert {a.name: a.i for a in weight.attribute} == {"axis": 0}

    def test_a_tensor_carries_one_pair_whoever_reads_it(self, made):
        graphs, model = made.graphs, made.model
        by_input = consumers(model.graph)
        rounded = [node.input[0] for node in ops(model, "QuantizeLinear")]
        assert len(rounded) == len(set(rounded))
        activations = {node.activation for node in quantised_nodes(graphs.exported)}
        assert len(rounded) == len(activations)
        for node in ops(model, "QuantizeLinear"):
            assert [n.op_type for n in by_input[node.output[0]]] == ["DequantizeLinear"]

    def test_only_int8_nodes_read_rounded_values(self, made):
        graphs, model = made.graphs, made.model
        by_input = consumers(model.graph)
        quantised = {node.name for node in quantised_nodes(graphs.exported)}
        for node in ops(model, "DequantizeLinear"):
            assert {reader.name for reader in by_input[node.output[0]]} <= quantised

    def test_the_ranges_are_those_of_the_table(self, made):
        graphs, model, table = made.graphs, made.model, made.table
        stored, made_by = constants(model), producers(model.graph)
        for node in quantised_nodes(graphs.exported):
            conv = next(n for n in model.graph.node if n.name == node.name)
            scale = stored[made_by[conv.input[0]].input[1]]
            amax = table.tensors[node.activation].amax
            assert amax <= 127 * float(scale) < max(1.001 * amax, 127 * 2**-13)

    def test_no_float_copy_of_a_rounded_weight_is_left(self, made):
        graphs, model = made.graphs, made.model
        sizes = {node.weight for node in quantised_nodes(graphs.exported)}
        assert not sizes & set(constants(model))
        assert model.ByteSize() < graphs.fp16.ByteSize() < graphs.exported.ByteSize()

    def test_both_lowerings_are_valid_and_onnxruntime_is_near_fp32(self, made):
        graphs, model, images = made.graphs, made.model, images_for(made.graphs)
        native, plugin = deepcopy(model), deepcopy(model)
        run_passes(native, LOWER_NATIVE)
        run_passes(plugin, LOWER_PLUGIN)
        verify(native, after="native")
        verify(plugin, after="plugin")
        assert not any(node.domain for node in native.graph.node)
        assert any(node.domain == DOMAIN for node in plugin.graph.node)
        outputs = run_onnx(native, images)
        np.testing.assert_allclose(outputs, run_onnx(model, images), rtol=1e-3, atol=1e-3)
        if graphs.spec.plan.reductions:
            return  # of random weights: which of two equal lines stays is chance
        expected = run_onnx(graphs.exported, images)
        # Above what FP16 does: something was rounded to 8 bits.
        fp16 = relative(run_onnx(graphs.native_fp16, images), expected)
        assert fp16 < relative(outputs, expected) < 0.1

    def test_the_graph_and_its_functions_are_of_one_opset(self, made):
        graphs, model = made.graphs, made.model
        found = {o.version for o in model.opset_import if not o.domain}
        for function in model.functions:
            found |= {o.version for o in function.opset_import if not o.domain}
        assert found == {OPSET}
        assert {o.version for o in graphs.fp16.opset_import if not o.domain} == {18}

    def test_custom_nodes_compute_on_fp16_maps(self, made):
        model = made.model
        types = value_types(model.graph)
        scans = ops(model, "SelectiveScan2D")
        assert scans
        assert {types[node.input[0]].dtype for node in scans} == {TensorProto.FLOAT16}


def test_the_rounding_is_behind_a_gather_and_not_before_it(reduced: Graphs):
    with small_variants():
        model = with_residuals(make(reduced))
    made_by, by_input = producers(model.graph), consumers(model.graph)
    for gather in ops(model, "SpatialUnitGather"):
        assert made_by[gather.input[0]].op_type != "DequantizeLinear"
        readers = by_input[gather.output[0]]
        casts = [node for node in readers if node.op_type == "Cast"]
        behind = [*readers, *(n for cast in casts for n in by_input[cast.output[0]])]
        assert "QuantizeLinear" in {node.op_type for node in behind}


def test_residual_additions_read_dq_on_both_inputs_where_the_policy_wants_it(dense_int8: Made):
    model = with_residuals(dense_int8)
    made_by = producers(model.graph)
    adds = [node for node in ops(model, "Add") if node.name.split("/")[0].count("blocks") == 1]
    adds = [node for node in adds if ".mlp" not in node.name and ".op" not in node.name]
    assert len(adds) == 10
    for add in adds:
        assert [made_by[name].op_type for name in add.input] == ["DequantizeLinear"] * 2


def test_values_that_are_read_in_float_stay_as_they_are(dense_int8: Made):
    model = dense_int8.model
    # The end of a stage goes to the downsampling Conv, which is INT8, and in stage 2 to a block's
    # normalisation and addition, which are not.
    by_input = consumers(model.graph)
    readers = [n.op_type for n in by_input["layers.2.blocks.0"]]
    assert "QuantizeLinear" not in readers
    assert [n.op_type for n in by_input["layers.2.blocks.1"]] == ["QuantizeLinear"]


def test_the_summary_tells_what_was_done(dense_int8: Made):
    dense = dense_int8.graphs
    model = deepcopy(dense.exported)
    summary = to_int8(model, dense_int8.table)
    nodes = quantised_nodes(dense.exported)
    assert summary.quantised == tuple(node.name for node in nodes)
    assert summary.kept == kept_nodes(dense.exported)
    assert summary.activations == len({node.activation for node in nodes})
    assert summary.smoothed == 15
    assert summary.corrected == sum(node.bias is not None for node in nodes)
    assert summary.kept_fp32 == to_fp16(deepcopy(dense.exported))


def test_the_same_graph_and_table_give_the_same_bytes(dense_int8: Made, tmp_path: Path):
    dense = dense_int8.graphs
    save_onnx(deepcopy(dense.exported), tmp_path / "in.onnx")
    made = [
        set_precision(tmp_path / "in.onnx", "int8", tmp_path / name, dense_int8.table)
        for name in ("a.onnx", "b.onnx")
    ]
    assert made[0].file.sha256 == made[1].file.sha256
    assert made[0].precision == "int8"
    assert made[0].kept_fp32 > 0
    assert made[0].node_count == len(onnx.load(tmp_path / "a.onnx").graph.node)


def test_gemm_and_matmul_are_rounded_along_their_output_channels(rng):
    """x [4, 6] -> Gemm -> MatMul; both weights are [inputs, outputs]."""
    weights = {"w": (6, 5), "v": (5, 3)}
    stored = {n: rng.standard_normal(s).astype(np.float32) for n, s in weights.items()}
    stored["w"][:, 0] *= 100  # one channel's scale must not be all channels'
    stored["v"][0] += np.copysign(1.0, stored["v"][0])  # and it must be seen at the output
    stored["b"] = rng.standard_normal(5).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["images", "w", "b"], ["h"], "gemm"),
            helper.make_node("MatMul", ["h", "v"], ["y"], "matmul"),
        ],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 3])],
        [numpy_helper.from_array(v, n) for n, v in stored.items()],
        value_info=[helper.make_tensor_value_info("h", TensorProto.FLOAT, [4, 5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    images = rng.standard_normal((4, 6)).astype(np.float32)
    expected = run_onnx(model, images)
    hidden = images @ stored["w"] + stored["b"]
    ranges = {
        name: TensorRange(
            amax=float(np.abs(x).max()), largest=float(np.abs(x).max()), mean=tuple(x.mean(0))
        )
        for name, x in (("images", images), ("h", hidden))
    }
    insert_qdq(model, table_of(ranges), QuantizationPolicy(rules=()))
    assert len(ops(model, "DequantizeLinear")) == 4
    scales = constants(model)["gemm/weight/scale"]
    assert scales.shape == (5,)
    assert scales[0] > 20 * scales[1:].max()
    assert relative(run_onnx(model, images), expected) < 0.03


class TestRefusals:
    def refused(self, made: Made, table: CalibrationTable) -> InputError:
        with pytest.raises(InputError) as caught:
            to_int8(deepcopy(made.graphs.exported), table)
        assert caught.value.fix is not None
        return caught.value

    def test_a_table_that_lacks_a_tensor(self, dense_int8: Made):
        table = dense_int8.table
        tensors = dict(table.tensors)
        del tensors["layers.1.blocks.0.norm2/Transpose_2"]
        error = self.refused(dense_int8, table.model_copy(update={"tensors": tensors}))
        assert "lacks tensors" in error.what
        assert "layers.1.blocks.0.norm2/Transpose_2" in str(error.got)

    @pytest.mark.parametrize("amax", [float("nan"), float("inf"), 0.0, -1.0])
    def test_a_range_that_is_no_positive_number(self, dense_int8: Made, amax):
        table = dense_int8.table
        name = "layers.1.blocks.0.norm2/Transpose_2"
        bad = table.tensors[name].model_copy(update={"amax": amax})  # checks nothing
        error = self.refused(
            dense_int8, table.model_copy(update={"tensors": {**table.tensors, name: bad}})
        )
        assert error.where == name

    def test_a_table_of_other_tensors(self, dense_int8: Made, gated: Graphs):
        error = self.refused(dense_int8, calibrated(gated.exported, images_for(gated)))
        assert "table" in error.what or "fit the graph" in error.what

    def test_a_table_of_other_channels(self, dense_int8: Made):
        table = dense_int8.table
        name = "layers.1.blocks.0.mlp.act/Mul_2"
        bad = table.tensors[name].model_copy(update={"mean": (0.0,) * 3})
        error = self.refused(
            dense_int8, table.model_copy(update={"tensors": {**table.tensors, name: bad}})
        )
        assert (error.where, error.got, error.expected) == (name, "3", "64")

    def test_smoothing_of_a_tensor_that_the_graph_cannot_smooth(self, dense_int8: Made):
        table = dense_int8.table.model_copy(update={"smoothing": {"images": (1.0, 1.0, 1.0)}})
        assert self.refused(dense_int8, table).where == "images"

    def test_int8_without_a_table(self, dense_int8: Made, tmp_path: Path):
        save_onnx(deepcopy(dense_int8.graphs.exported), tmp_path / "in.onnx")
        with pytest.raises(InputError, match="needs a calibration table"):
            set_precision(tmp_path / "in.onnx", "int8", tmp_path / "out.onnx")
        assert not (tmp_path / "out.onnx").exists()
