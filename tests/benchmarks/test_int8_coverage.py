# SPDX-License-Identifier: Apache-2.0
"""Every Conv, Gemm and MatMul carries Q/DQ or has its reason, of a model as small as CI can take.

What can go wrong: a node that is forgotten and counted as kept, a reason for a node that is
quantised all the same, an error read from the same graph twice.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import onnx
import pytest

from benchmarks import int8_coverage_report as report
from benchmarks.int8_coverage import Made, block_errors, linear_coverage, measure
from stormrt.pipeline.lower import lower_model
from stormrt.pipeline.onnx_file import save_onnx
from stormrt.pipeline.precision import to_fp16, to_int8
from stormrt.pipeline.quantize.policy import DEFAULT_POLICY
from tests.helpers.seeds import generator
from tests.pipeline.support import Graphs, make_graphs, model_spec, small_variants
from tests.pipeline.tables import calibrated

SIDE = 32


@pytest.fixture(scope="module")
def graphs() -> Graphs:
    with small_variants():
        return make_graphs(model_spec(height=SIDE, width=SIDE))


@pytest.fixture(scope="module")
def made(graphs, tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    images = generator("covered").standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    table = calibrated(graphs.exported, images[:1])
    fp16, int8 = deepcopy(graphs.exported), deepcopy(graphs.exported)
    to_fp16(fp16)
    to_int8(int8, table)
    for model in (fp16, int8):
        lower_model(model, "native")
    made = Made(graphs.spec, folder, table, images)
    save_onnx(deepcopy(graphs.exported), folder / "exported.onnx")
    for precision, model in (("fp32", graphs.native), ("fp16", fp16), ("int8", int8)):
        save_onnx(deepcopy(model), made.native(precision))
    return made


def lowered(made: Made) -> onnx.ModelProto:
    return onnx.load(made.native("int8"))


def test_every_node_carries_qdq_or_has_a_reason_of_the_policy(graphs, made):
    nodes = linear_coverage(graphs.exported, lowered(made))
    linear = [n.name for n in graphs.native.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    assert [node.name for node in nodes] == linear
    assert all(node.quantised != bool(node.reason) for node in nodes)
    reasons = {rule.reason for rule in DEFAULT_POLICY.rules}
    assert {node.reason for node in nodes if node.reason} <= reasons
    assert sum(node.quantised for node in nodes) > len(nodes) / 3


@pytest.mark.parametrize("operand", [0, 1])
def test_a_node_that_lost_its_rounding_is_found(graphs, made, operand):
    model = lowered(made)
    restored = {n.output[0]: n for n in model.graph.node if n.op_type == "DequantizeLinear"}
    node = [n for n in model.graph.node if n.op_type == "Conv" and n.input[operand] in restored][-1]
    node.input[operand] = restored[node.input[operand]].input[0]
    with pytest.raises(ValueError, match=f"differ at {node.name}"):
        linear_coverage(graphs.exported, model)


def test_a_node_that_is_quantised_against_the_policy_is_found(graphs, made):
    kept = DEFAULT_POLICY.keeping([r"patch_embed\.0/"])
    with pytest.raises(ValueError, match="patch_embed"):
        linear_coverage(graphs.exported, lowered(made), kept)


def test_errors_grow_from_rounding_and_not_from_nothing(made):
    same = dict(block_errors(made.native("fp32"), made.native("fp32"), made.images))
    assert set(same.values()) == {0.0}
    fp16 = dict(block_errors(made.native("fp32"), made.native("fp16"), made.images))
    int8 = dict(block_errors(made.native("fp32"), made.native("int8"), made.images))
    assert list(int8)[-1] == "logits"
    assert "layers.2.blocks.0" in int8
    assert all(0 < fp16[name] < int8[name] < 0.5 for name in int8)


def test_the_tables_show_what_was_measured_and_what_was_not(made):
    row = measure(made, engines=False)
    quantised = [layer for layer in row["layers"] if layer["quantised"]]
    assert all(0 < layer["weight_error"] < 0.1 for layer in quantised)
    assert not any("weight_error" in n for n in row["layers"] if not n["quantised"])
    content = {"rows": [row]}
    cells = [cell.strip() for cell in report.coverage(content).splitlines()[-1].split("|")]
    kept = len(row["layers"]) - len(quantised)
    assert cells[5:8] == [str(len(quantised)), str(kept), "0"]
    assert sum(int(line.split("|")[2]) for line in report.kept(content).splitlines()[2:]) == kept
    assert report.sizes(content).splitlines()[-1].count("not run") == 4
    assert "not run" in report.engines(content)
    worst = max(quantised, key=lambda layer: layer["weight_error"])
    assert f"{100 * worst['weight_error']:.2f} % at {worst['name']}" in report.errors(content)
    for part in (report.coverage, report.kept, report.sizes, report.errors, report.engines):
        assert "not run" in part(None)
