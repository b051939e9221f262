# SPDX-License-Identifier: Apache-2.0
"""A real ONNX parser on the plugin lowering of a real model.

TensorRT-RTX is the only TensorRT with a parser that runs without a GPU. It runs no plugins: it
creates the first one and then aborts its process. So one process is spent on the whole graph, and
one on each of its plugin nodes alone. What can go wrong: TensorRT's
parser does not find the creators by what the nodes carry, or the creators refuse the attributes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx")
onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")

# Imported only where the packages above are: these import them.
from stormrt.plugins.builder import BuildResult  # noqa: E402
from stormrt.plugins.spec import DOMAIN  # noqa: E402
from tests.helpers.native import ROOT  # noqa: E402

PARSE = """
import sys
import tensorrt_rtx as trt

logger = trt.Logger(trt.Logger.VERBOSE)
assert trt.get_plugin_registry().load_library(sys.argv[1])
network = trt.Builder(logger).create_network(0)
parser = trt.OnnxParser(network, logger)
parser.parse_from_file(sys.argv[2])
for i in range(parser.num_errors):
    print("parser error:", parser.get_error(i).desc(), flush=True)
"""


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """A small model with STORM, as it would go to a board."""
    from stormrt.storm.plan import Reduction, StormPlan
    from tests.pipeline.support import SMALL, make_graphs, model_spec, small_variants

    plan = StormPlan((Reduction(stage=0, block=0, height=12, width=10),))
    with small_variants():
        return make_graphs(model_spec(SMALL, plan=plan)).plugin_fp16


def parse(library: BuildResult, model: onnx.ModelProto, folder: Path) -> str:
    path = folder / "model.onnx"
    onnx.save(model, path)
    done = subprocess.run(
        [sys.executable, "-c", PARSE, library.core, path],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    log = done.stdout + done.stderr
    assert "parser error" not in log, log[-3000:]
    return log


def plugin_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.domain == DOMAIN]


def test_the_parser_reaches_the_first_plugin_of_a_real_model_and_creates_it(
    library: BuildResult, model: onnx.ModelProto, tmp_path: Path
):
    first = plugin_nodes(model)[0]
    log = parse(library, model, tmp_path)
    assert f"Static check for parsing node: {first.name} [{first.op_type}]" in log
    assert f"Found registered plugin: {first.op_type}." in log
    assert f"Successfully created plugin: {first.op_type}" in log


def test_the_parser_creates_a_plugin_from_every_node_of_a_real_model(
    library: BuildResult, model: onnx.ModelProto, tmp_path: Path
):
    nodes = plugin_nodes(model)
    assert {node.op_type for node in nodes} == {"SelectiveScan2D", "SpatialUnitGather"}
    for node in nodes:
        log = parse(library, alone(model, node), tmp_path)
        assert f"Parsing node: {node.name} [{node.op_type}]" in log
        assert f"Successfully created plugin: {node.op_type}" in log
        assert "stormrt: " not in log
        assert "not found in plugin node" not in log


def alone(model: onnx.ModelProto, node: onnx.NodeProto) -> onnx.ModelProto:
    """The graph of one node, its inputs those of the graph."""
    known = onnx.shape_inference.infer_shapes(model).graph
    infos = {v.name: v for v in (*known.value_info, *known.input, *known.output)}
    weights = [w for w in model.graph.initializer if w.name in node.input]
    names = {w.name for w in weights}
    graph = onnx.helper.make_graph(
        [node],
        "alone",
        [infos[name] for name in node.input if name not in names],
        [infos[name] for name in node.output],
        weights,
    )
    return onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )
