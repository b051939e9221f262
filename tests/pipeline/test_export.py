# SPDX-License-Identifier: Apache-2.0
"""Export, precision and lowering of small models: the graphs compute what PyTorch computes.

What can go wrong: a batch or a size baked into the graph, an operator computed in FP16 that must
not be, a graph that differs from one process to the next or tells where it was made.
"""

from __future__ import annotations

import hashlib
import os
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from stormrt.errors import InputError
from stormrt.pipeline.artifacts import PluginUse
from stormrt.pipeline.export import OPSET, export
from stormrt.pipeline.lower import lower
from stormrt.pipeline.onnx_file import load_onnx, plugin_uses, save_onnx
from stormrt.pipeline.precision import set_precision
from stormrt.pipeline.rewrite.name_by_module import boundary_values, selection_values
from stormrt.pipeline.rewrite.values import consumers, producers, value_types
from stormrt.pipeline.rewrite.verify import FORBIDDEN_OPS, verify
from tests.pipeline.support import (
    CLASSES,
    ROOT,
    SMALL,
    model_spec,
    ops,
    relative,
    run_onnx,
    run_torch,
    small_variants,
)

FP32_TOLERANCE, FP16_TOLERANCE = 1e-4, 1e-2
NAMES = ("dense", "reduced", "gated")


@pytest.fixture(params=NAMES)
def graphs(request):
    return request.getfixturevalue(request.param)


def images(rng, spec, count):
    return rng.standard_normal((count, 3, spec.height, spec.width)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_graph_of_a_dynamic_batch_takes_every_batch_up_to_its_most(dense, rng, batch):
    x = images(rng, dense.spec, batch)
    expected = run_torch(dense.spec, x)
    assert relative(run_onnx(dense.native, x), expected) < FP32_TOLERANCE
    assert relative(run_onnx(dense.native_fp16, x), expected) < FP16_TOLERANCE


def test_a_dynamic_batch_is_a_symbol_in_inputs_and_outputs_alike(dense):
    for model in (dense.exported, dense.native, dense.plugin_fp16):
        (image,), (logits,) = model.graph.input, model.graph.output
        shapes = [v.type.tensor_type.shape.dim for v in (image, logits)]
        assert shapes[0][0].dim_param
        assert shapes[0][0].dim_param == shapes[1][0].dim_param
        assert [d.dim_value for d in shapes[0][1:]] == [3, 64, 48]
        assert [d.dim_value for d in shapes[1][1:]] == [CLASSES]


def test_a_fixed_batch_of_two_of_a_gated_model_at_an_odd_size_agrees_with_pytorch(gated, rng):
    x = images(rng, gated.spec, 2)
    expected = run_torch(gated.spec, x)
    assert relative(run_onnx(gated.native, x), expected) < FP32_TOLERANCE
    assert relative(run_onnx(gated.native_fp16, x), expected) < FP16_TOLERANCE


def test_a_fixed_batch_refuses_another_batch(gated, rng):
    with pytest.raises(Exception, match=r"(?i)dimension"):
        run_onnx(gated.native, images(rng, gated.spec, 1))


def test_a_reduced_model_agrees_with_pytorch_in_fp32(reduced, rng):
    x = images(rng, reduced.spec, 1)
    assert relative(run_onnx(reduced.native, x), run_torch(reduced.spec, x)) < FP32_TOLERANCE


def test_images_of_one_batch_do_not_influence_each_other(dense, rng):
    x = images(rng, dense.spec, 3)
    together = run_onnx(dense.native, x)
    alone = np.concatenate([run_onnx(dense.native, image[None]) for image in x])
    assert relative(together, alone) < 1e-5


def test_the_interface_is_the_documented_one_in_fp32_whatever_the_precision(graphs):
    for model in (graphs.exported, graphs.fp16, graphs.native_fp16, graphs.plugin_fp16):
        (image,), (logits,) = model.graph.input, model.graph.output
        assert (image.name, logits.name) == ("images", "logits")
        for value in (image, logits):
            assert value.type.tensor_type.elem_type == TensorProto.FLOAT
        assert {o.domain: o.version for o in model.opset_import}[""] == OPSET


def test_every_graph_holds_the_invariants(graphs):
    for model in (graphs.exported, graphs.fp16, graphs.native, graphs.plugin_fp16):
        verify(model, after="the test")


def test_nothing_in_a_graph_tells_where_it_was_made(graphs):
    for model in (graphs.exported, graphs.fp16, graphs.native, graphs.plugin_fp16):
        holders = (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output)
        assert not any(h.metadata_props for h in (*holders, *model.graph.value_info))
        content = model.SerializeToString()
        for trace in (str(ROOT), sys.prefix, ".py", "stack_trace", os.sep + "tmp"):
            assert trace.encode() not in content, f"the graph holds {trace!r}"


def test_nodes_are_named_after_the_modules_of_the_model(dense):
    names = [n.name for n in dense.exported.graph.node]
    assert "patch_embed.0/Conv" in names
    assert "layers.2.blocks.1.op/SelectiveScan2D" in names
    modules = {name.partition("/")[0] for name in names if "/" in name}
    assert len(modules) > 40
    for module in modules:
        assert module.startswith(("patch_embed", "layers.", "classifier")), module


def test_a_dense_graph_gathers_nothing_and_asks_no_shapes(dense):
    found = {n.op_type for n in dense.exported.graph.node}
    assert not found & {"Gather", "GatherND", "Range", "Shape", "Expand"}


def test_every_module_boundary_has_a_typed_value_in_the_native_graph(reduced):
    blocks = ["layers.0.blocks.0", "layers.1.blocks.0", "layers.2.blocks.0", "layers.2.blocks.1"]
    for model in (reduced.native, reduced.native_fp16):
        found = boundary_values(model.graph)
        typed = value_types(model.graph)
        assert {*blocks, "layers.0.reductions.0", "layers.0.downsample"} <= set(found)
        assert all(typed[name].shape for name in found)
        assert len(found) == len(set(found))


def test_the_kept_lines_are_values_of_the_native_graph_in_every_precision(reduced):
    modules = ("layers.0.reductions.0", "layers.2.reductions.1")
    for model in (reduced.native, reduced.native_fp16):
        names = selection_values(model.graph)
        assert names == [f"{module}.{axis}" for module in modules for axis in ("cols", "rows")]
        types = value_types(model.graph)
        kept = [types[name] for name in names]
        assert [t.shape[1] for t in kept] == [9, 12, 2, 2]
        assert {t.dtype for t in kept} == {TensorProto.INT32}


class TestPrecision:
    def test_custom_nodes_have_fp16_maps_and_fp32_weights(self, graphs):
        types = value_types(graphs.plugin_fp16.graph)
        scans = ops(graphs.plugin_fp16, "SelectiveScan2D")
        assert scans
        for scan in scans:
            dtypes = [types[name].dtype for name in (*scan.input, *scan.output)]
            maps, weights = [*dtypes[:4], dtypes[7]], dtypes[4:7]
            assert maps == [TensorProto.FLOAT16] * 5, scan.name
            assert weights == [TensorProto.FLOAT] * 3, scan.name

    def test_gathers_move_fp16_maps(self, reduced):
        types = value_types(reduced.plugin_fp16.graph)
        gathers = ops(reduced.plugin_fp16, "SpatialUnitGather")
        assert len(gathers) == 2
        for gather in gathers:
            assert types[gather.input[0]].dtype == TensorProto.FLOAT16
            assert types[gather.output[0]].dtype == TensorProto.FLOAT16

    def test_normalisations_are_in_fp32(self, graphs):
        types = value_types(graphs.fp16.graph)
        norms = ops(graphs.fp16, "LayerNormalization")
        assert norms
        for norm in norms:
            assert {types[v].dtype for v in (*norm.input, *norm.output)} == {TensorProto.FLOAT}

    def test_scores_and_selections_of_storm_are_in_fp32(self, reduced):
        types = value_types(reduced.fp16.graph)
        scoring = [
            n
            for n in reduced.fp16.graph.node
            if ".reductions." in n.name and not n.domain and n.op_type != "Cast"
        ]
        assert {"ReduceMean", "ArgMin"} <= {n.op_type for n in scoring}
        for n in scoring:
            dtypes = {types[v].dtype for v in (*n.input, *n.output) if v in types}
            assert TensorProto.FLOAT16 not in dtypes, n.name

    def test_convolutions_and_matrix_products_are_in_fp16(self, graphs):
        types = value_types(graphs.fp16.graph)
        heavy = [n for n in graphs.fp16.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
        assert len(heavy) > 10
        for n in heavy:
            if "step_size" not in n.name:
                assert types[n.output[0]].dtype == TensorProto.FLOAT16, n.name

    def test_no_cast_reads_a_cast(self, graphs):
        """Such a pair rounds a value that both its maker and its reader have in FP32."""
        for model in (graphs.fp16, graphs.plugin_fp16):
            by_output = producers(model.graph)
            for cast in ops(model, "Cast"):
                before = by_output.get(cast.input[0])
                assert before is None or before.op_type != "Cast", cast.name

    def test_custom_nodes_have_no_casts_round_them_but_for_neighbours_in_fp32(self, graphs):
        graph = graphs.plugin_fp16.graph
        by_output, by_input = producers(graph), consumers(graph)
        for n in graph.node:
            if n.domain != "stormrt":
                continue
            for name in n.input[: 4 if n.op_type == "SelectiveScan2D" else 1]:
                assert by_output[name].op_type != "Cast", f"{n.name} reads a cast"
            for reader in by_input[n.output[0]]:
                if reader.op_type == "Cast":
                    assert not [r for r in by_input[reader.output[0]] if r.domain], reader.name

    def test_weights_of_fp32_nodes_are_not_rounded(self, graphs):
        stored = {i.name: i.data_type for i in graphs.plugin_fp16.graph.initializer}
        read = [name for n in ops(graphs.plugin_fp16, "SelectiveScan2D") for name in n.input[4:]]
        read += [n for x in ops(graphs.plugin_fp16, "LayerNormalization") for n in x.input[1:]]
        assert len(read) > 20
        for name in read:
            assert stored[name] == TensorProto.FLOAT, name

    def test_boundaries_keep_their_names(self, graphs):
        for model in (graphs.fp16, graphs.plugin_fp16, graphs.native_fp16):
            assert boundary_values(model.graph) == boundary_values(graphs.exported.graph)

    def test_weights_take_half_the_space(self, dense):
        def weights(model: onnx.ModelProto) -> int:
            return sum(len(i.raw_data) for i in model.graph.initializer)

        assert weights(dense.fp16) < 0.7 * weights(dense.exported)

    def test_fp32_leaves_the_graph_as_it_is(self, dense, tmp_path):
        file = save_onnx(deepcopy(dense.exported), tmp_path / "in.onnx")
        made = set_precision(tmp_path / "in.onnx", "fp32", tmp_path / "out.onnx")
        assert made.file.sha256 == file.sha256
        assert made.kept_fp32 == made.node_count == len(dense.exported.graph.node)

    def test_the_record_of_fp16_counts_what_stays_in_fp32(self, dense, tmp_path):
        save_onnx(deepcopy(dense.exported), tmp_path / "in.onnx")
        made = set_precision(tmp_path / "in.onnx", "fp16", tmp_path / "out.onnx")
        norms = len(ops(dense.exported, "LayerNormalization"))
        assert norms <= made.kept_fp32 < made.node_count / 2


class TestLowering:
    def test_the_native_graph_has_standard_operators_only(self, graphs):
        for model in (graphs.native, graphs.native_fp16):
            assert {n.domain for n in model.graph.node} == {""}
            assert {o.domain for o in model.opset_import} == {""}
            assert not model.functions
            assert not plugin_uses(model)
            assert not {n.op_type for n in model.graph.node} & set(FORBIDDEN_OPS)

    def test_plugin_nodes_carry_what_tensorrt_looks_for_and_nothing_else(self, graphs):
        assert not graphs.plugin_fp16.functions
        custom = [n for n in graphs.plugin_fp16.graph.node if n.domain]
        assert custom
        for n in custom:
            assert n.domain == "stormrt"
            assert not n.HasField("overload")
            attributes = {a.name: a.s for a in n.attribute}
            assert attributes == {"plugin_version": b"1", "plugin_namespace": b"stormrt"}

    def test_a_plan_with_two_reductions_has_two_gathers(self, reduced):
        assert plugin_uses(reduced.plugin_fp16) == (
            PluginUse("SelectiveScan2D", "1", 5),
            PluginUse("SpatialUnitGather", "1", 2),
        )

    def test_a_dense_model_has_none(self, dense):
        assert plugin_uses(dense.plugin_fp16) == (PluginUse("SelectiveScan2D", "1", 5),)

    def test_both_lowerings_are_written_where_both_are_wanted(self, reduced, tmp_path):
        save_onnx(deepcopy(reduced.fp16), tmp_path / "q.onnx")
        native, plugin = tmp_path / "native.onnx", tmp_path / "plugin.onnx"
        made = lower(tmp_path / "q.onnx", native, plugin)
        assert made.plugin is not None
        assert (made.native.lowering, made.plugin.lowering) == ("native", "plugin")
        assert len(load_onnx(native).graph.node) == made.native.node_count
        assert made.native.plugins == ()
        assert made.plugin.plugins == plugin_uses(reduced.plugin_fp16)
        assert hashlib.sha256(plugin.read_bytes()).hexdigest() == made.plugin.file.sha256

    def test_only_the_native_graph_is_written_where_only_it_is_wanted(self, dense, tmp_path):
        save_onnx(deepcopy(dense.fp16), tmp_path / "q.onnx")
        made = lower(tmp_path / "q.onnx", tmp_path / "native.onnx", None)
        assert made.plugin is None
        assert sorted(p.name for p in tmp_path.iterdir()) == ["native.onnx", "q.onnx"]


class TestFiles:
    def test_equal_graphs_are_equal_bytes(self, reduced, tmp_path):
        first = save_onnx(deepcopy(reduced.native), tmp_path / "a.onnx")
        second = save_onnx(load_onnx(tmp_path / "a.onnx"), tmp_path / "b.onnx")
        assert first.sha256 == second.sha256
        assert first.size_bytes == (tmp_path / "a.onnx").stat().st_size

    @pytest.mark.parametrize(
        ("content", "message"),
        [(None, "does not exist"), (b"\xff\xff not ONNX", "not an ONNX"), (b"", "no nodes")],
    )
    def test_what_is_not_an_onnx_model_is_refused(self, tmp_path, content, message):
        path = tmp_path / "m.onnx"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            load_onnx(path)
        assert str(path) in str(caught.value)

    def test_a_graph_that_was_cut_off_is_refused(self, dense, tmp_path):
        content = dense.native.SerializeToString()
        (tmp_path / "m.onnx").write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError):
            load_onnx(tmp_path / "m.onnx")


def test_exporting_tells_the_file_its_nodes_and_its_plugins(tmp_path, reduced):
    with small_variants():
        made = export(model_spec(SMALL, 32, 32), tmp_path / "new" / "exported.onnx")
    written = load_onnx(tmp_path / "new" / "exported.onnx")
    assert made.opset == OPSET
    assert made.node_count == len(written.graph.node)
    assert made.plugins == (PluginUse("SelectiveScan2D", "1", 5),)
    assert made.file.name == "exported.onnx"
    assert Path(tmp_path / "new" / made.file.name).stat().st_size == made.file.size_bytes
