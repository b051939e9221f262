# SPDX-License-Identifier: Apache-2.0
"""FP32 islands around values that FP16 cannot hold.

What can go wrong: a value that turns infinite all the same, because one neighbour still rounds it;
an island that is larger than it must be; a custom node that takes its maps in FP16 nonetheless.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from stormrt.errors import InputError
from stormrt.pipeline.comparison import open_session
from stormrt.pipeline.onnx_file import load_onnx, save_onnx
from stormrt.pipeline.precision import set_precision, to_fp16, to_int8
from stormrt.pipeline.quantize.overflow import (
    fp16_values,
    fp32_islands,
    overflow_risks,
    search_overflow,
)
from stormrt.pipeline.quantize.smooth import smoothing_factors
from stormrt.pipeline.rewrite.values import value_types
from tests.pipeline.support import Graphs, relative, run_onnx
from tests.pipeline.tables import calibrated, table_of, values_of

MARKER = {"plugin_version": "1", "plugin_namespace": "stormrt"}


def chain(*nodes: onnx.NodeProto, shape: tuple[int, ...] = (1, 3, 4, 5)) -> onnx.ModelProto:
    """A graph of maps of one shape, x -> ... -> y; a gather that keeps all lines keeps it, too."""
    inner = [o for node in nodes for o in node.output if o != "y"]
    lines = {"rows": np.arange(4, dtype=np.int32)[None], "cols": np.arange(5, dtype=np.int32)[None]}
    numbers = {"thousand": 1000.0, "thousandth": 0.001}
    stored = {**lines, **{n: np.array(v, np.float32) for n, v in numbers.items()}}
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(v, n) for n, v in stored.items() if n in read],
        value_info=[helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in inner],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("stormrt", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], f"{output}/{op}", **attributes)


def gather(value: str, output: str) -> onnx.NodeProto:
    inputs = f"{value} rows cols"
    return node("SpatialUnitGather", inputs, output, domain="stormrt", **MARKER)


def there_and_back() -> onnx.ModelProto:
    """Up by 1,000, and by 1,000 again, and down."""
    return chain(
        node("Abs", "x", "a"),
        node("Mul", "a thousand", "b"),
        node("Mul", "b thousand", "c"),
        node("Mul", "c thousandth", "d"),
        node("Abs", "d", "y"),
    )


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return open_session(model.SerializeToString(), "test").run(None, {"x": x})[0]


def test_what_makes_a_large_value_and_what_reads_it_are_the_island():
    risks = overflow_risks(there_and_back(), {"a": 1.0, "b": 1e3, "c": 1e6, "d": 1e3})
    assert [(risk.tensor, risk.largest) for risk in risks] == [("c", 1e6)]
    assert risks[0].nodes == ("c/Mul", "d/Mul")
    assert fp32_islands(risks) == {"c/Mul", "d/Mul"}


@pytest.mark.parametrize(("largest", "found"), [(16_000.0, 0), (17_000.0, 1)])
def test_a_quarter_of_the_range_is_used_at_most(largest, found):
    assert len(overflow_risks(there_and_back(), {"c": largest})) == found
    assert len(overflow_risks(there_and_back(), {"c": largest}, margin=1.0)) == 0


def test_no_large_value_no_island():
    assert overflow_risks(there_and_back(), {"a": 1.0}) == ()
    assert fp32_islands(()) == frozenset()


def test_a_constant_that_fp16_cannot_hold_makes_an_island_too():
    model = there_and_back()
    for tensor in model.graph.initializer:
        if tensor.name == "thousand":
            tensor.CopyFrom(numpy_helper.from_array(np.array(1e5, np.float32), "thousand"))
    risks = overflow_risks(model, {})
    assert [(risk.tensor, risk.nodes) for risk in risks] == [("thousand", ("b/Mul", "c/Mul"))]


@pytest.mark.parametrize(
    ("largest", "says"),
    [
        ({"c": float("nan")}, "nan"),
        ({"c": float("inf")}, "inf"),
        ({"z": 1.0}, "a tensor that the graph has not"),
    ],
)
def test_numbers_of_another_graph_are_refused(largest, says):
    with pytest.raises(InputError, match="does not fit the graph") as caught:
        overflow_risks(there_and_back(), largest)
    assert caught.value.got == says


def test_an_island_keeps_a_value_finite_and_the_rest_is_fp16():
    x = np.linspace(0.5, 1.5, 60, dtype=np.float32).reshape(1, 3, 4, 5)
    whole, island = there_and_back(), there_and_back()
    to_fp16(whole)
    to_fp16(island, fp32_islands(overflow_risks(island, {"c": 1.5e6})))
    # onnxruntime on a CPU multiplies in FP32 and does not round in between; NumPy does.
    with np.errstate(over="ignore"):
        rounded, exact = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (whole, island))
    assert np.isinf(rounded).all()
    np.testing.assert_allclose(exact, 1000 * x, rtol=3e-3)
    types = value_types(island.graph)
    by_name = {n.name: n for n in island.graph.node}
    assert types[by_name["b/Mul"].output[0]].dtype == TensorProto.FLOAT16
    assert types[by_name["c/Mul"].output[0]].dtype == TensorProto.FLOAT


def test_custom_nodes_in_an_island_take_their_maps_in_fp32():
    x = np.linspace(0.5, 1.5, 60, dtype=np.float32).reshape(1, 3, 4, 5)
    model = chain(
        node("Abs", "x", "a"),
        node("Mul", "a thousand", "b"),
        node("Mul", "b thousand", "c"),
        gather("c", "e"),
        gather("e", "f"),
        node("Mul", "f thousandth", "d"),
        gather("d", "g"),
        node("Abs", "g", "y"),
    )
    risks = overflow_risks(model, dict.fromkeys("cef", 1.5e6))
    assert [risk.tensor for risk in risks] == ["c", "e", "f"]
    to_fp16(model, fp32_islands(risks))
    np.testing.assert_allclose(run(model, x), 1000 * x, rtol=3e-3)
    types = value_types(model.graph)
    maps = [types[n.input[0]].dtype for n in model.graph.node if n.domain]
    assert maps == [TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT16]


def test_a_node_that_is_not_there_cannot_stay_in_fp32():
    with pytest.raises(InputError, match="is not in the graph") as caught:
        to_fp16(there_and_back(), ["nowhere/Mul", "c/Mul"])
    assert caught.value.got == "nowhere/Mul"


class TestSearch:
    """What a table says of the whole graph."""

    def test_the_largest_of_all_is_named_and_each_risk(self):
        table = table_of({}, largest={"a": 1.0, "b": 1e3, "c": 1e6, "d": 1e3})
        found = search_overflow(there_and_back(), table, smoothed=False)
        assert (found.values, found.tensor, found.largest) == (4, "c", 1e6)
        assert found.islands == {"c/Mul", "d/Mul"}
        assert "the largest of 4 values is 1e+06 at c" in found.describe()
        assert "2 nodes stay in FP32 for c (1e+06)" in found.describe()

    def test_small_values_need_nothing(self):
        table = table_of({}, largest={"a": 655.04})
        found = search_overflow(there_and_back(), table, smoothed=True)
        assert found.islands == frozenset()
        assert "1.00% of FP16's 65504; no node stays in FP32" in found.describe()
        assert search_overflow(there_and_back(), None, smoothed=False).values == 0

    def test_a_table_of_another_graph_is_refused(self):
        with pytest.raises(InputError, match="does not fit the graph"):
            search_overflow(there_and_back(), table_of({}, largest={"z": 1.0}), smoothed=False)

    def test_every_value_that_fp16_holds_is_looked_at_and_no_score(self, reduced: Graphs):
        names = fp16_values(reduced.exported)
        assert len(names) == len(set(names))
        scans = [n for n in reduced.exported.graph.node if n.op_type.startswith("SelectiveScan")]
        assert scans
        assert {o for n in scans for o in n.output} <= set(names)
        assert "logits" in names
        inner = {
            name
            for node in reduced.exported.graph.node
            if ".reductions.0.score/" in node.name
            for name in node.input
            if ".reductions.0.score/" in name
        }
        assert inner
        assert not inner & set(names)
        types = value_types(reduced.fp16.graph)
        half = {n for n, t in types.items() if t.dtype == TensorProto.FLOAT16}
        made = {o for node in reduced.exported.graph.node for o in node.output}
        assert half & made <= set(names)

    def test_without_smoothing_what_it_divided_is_larger_by_that(
        self, dense: Graphs, rng, tmp_path
    ):
        """From the normalisation to the linear node behind it."""
        images = rng.standard_normal((1, 3, 64, 48)).astype(np.float32)
        table = calibrated(dense.exported, images)
        tensor, scale = next(iter(table.smoothing.items()))
        factors = smoothing_factors(dense.exported, {tensor: scale})
        assert set(factors.values()) == {max(scale)}
        assert tensor in factors
        makers = {o: n.op_type for n in dense.exported.graph.node for o in n.output}
        assert "LayerNormalization" in {makers[value] for value in factors}
        # Over a quarter of 65504 only once the smoothing is taken back.
        divisors = tuple(max(s, 2.0) for s in scale)
        seen = table.tensors[tensor].model_copy(update={"largest": 16_500.0 / max(divisors)})
        changes = {"tensors": {**table.tensors, tensor: seen}, "smoothing": {tensor: divisors}}
        table = table.model_copy(update=changes)
        assert not search_overflow(dense.exported, table, smoothed=True).risks
        (risk,) = search_overflow(dense.exported, table, smoothed=False).risks
        assert risk.tensor == tensor
        save_onnx(deepcopy(dense.exported), tmp_path / "exported.onnx")
        set_precision(tmp_path / "exported.onnx", "fp16", tmp_path / "fp16.onnx", table)
        fp16 = load_onnx(tmp_path / "fp16.onnx")
        types, by_name = value_types(fp16.graph), {n.name: n for n in fp16.graph.node}
        (reader,) = (n.name for n in dense.exported.graph.node if tensor in n.input)
        assert types[by_name[reader].output[0]].dtype == TensorProto.FLOAT


class TestVMamba:
    """A first layer 1e5 times as large, which the normalisation behind it takes back."""

    def loud(self, graphs: Graphs) -> onnx.ModelProto:
        model = deepcopy(graphs.exported)
        for tensor in model.graph.initializer:
            if tensor.name.startswith("patch_embed.0."):
                values = numpy_helper.to_array(tensor) * np.float32(1e5)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return model

    def test_fp16_needs_the_island_and_has_it_by_the_largest_values(self, dense: Graphs, rng):
        images = rng.standard_normal((1, 3, 64, 48)).astype(np.float32)
        loud = self.loud(dense)
        expected = run_onnx(loud, images)
        names = [v.name for v in loud.graph.value_info if v.type.tensor_type.elem_type == 1]
        made = {o for node in loud.graph.node for o in node.output}
        seen = values_of(loud, [n for n in names if n in made], images)
        risks = overflow_risks(loud, {n: float(np.abs(v).max()) for n, v in seen.items()})
        assert {risk.tensor.split("/")[0] for risk in risks} == {"patch_embed.0", "patch_embed.2"}
        plain, island = deepcopy(loud), deepcopy(loud)
        to_fp16(plain)
        kept = to_fp16(island, fp32_islands(risks))
        # LayerNormalization is among the island's nodes, and in FP32 already.
        assert kept == to_fp16(deepcopy(dense.exported)) + 2
        assert not np.isfinite(run_onnx(plain, images)).all()
        assert relative(run_onnx(island, images), expected) < 1e-2

    def test_a_linear_node_beside_such_a_value_does_not_become_int8(self, dense: Graphs, rng):
        images = rng.standard_normal((1, 3, 64, 48)).astype(np.float32)
        loud = self.loud(dense)
        expected = run_onnx(loud, images)
        table = calibrated(loud, images)
        table = table.model_copy(update={"largest": {"patch_embed.0/Conv": 1e5}})
        summary = to_int8(loud, table)
        reasons = {node.name: node.reason for node in summary.kept}
        assert "FP16" in reasons["patch_embed.0/Conv"]
        assert "patch_embed.5/Conv" in summary.quantised
        assert relative(run_onnx(loud, images), expected) < 0.2
