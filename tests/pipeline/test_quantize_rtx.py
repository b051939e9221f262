# SPDX-License-Identifier: Apache-2.0
"""TensorRT-RTX and INT8 graphs.

What can go wrong: a graph that onnxruntime runs and TensorRT refuses, a Conv that is called INT8
and computes in FP16.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from stormrt.calibration.table import TensorRange
from stormrt.pipeline import probe
from stormrt.pipeline.engine import build_engine
from stormrt.pipeline.engine_layers import multiplied_in, parse_layers
from stormrt.pipeline.onnx_file import save_onnx
from stormrt.pipeline.precision import to_int8
from stormrt.pipeline.quantize.policy import QuantizationPolicy
from stormrt.pipeline.rewrite.schedule import LOWER_NATIVE, run_passes
from stormrt.targets import load_target
from tests.pipeline.support import Graphs
from tests.pipeline.tables import calibrated, table_of

needs_rtx = pytest.mark.skipif(
    probe.installed_version("tensorrt-rtx") is None,
    reason="tensorrt_rtx is not installed: no engine can be built",
)


@needs_rtx
def test_tensorrt_rtx_builds_the_int8_graph_for_a_t4(gated: Graphs, tmp_path: Path, rng):
    images = rng.standard_normal((2, 3, 33, 47)).astype(np.float32)
    model = deepcopy(gated.exported)
    to_int8(model, calibrated(gated.exported, images))
    run_passes(model, LOWER_NATIVE)
    save_onnx(model, tmp_path / "native.onnx")
    built = build_engine(
        tmp_path / "native.onnx",
        runtime="tensorrt_rtx",
        target=load_target("t4"),
        out=tmp_path / "m.plan",
    )
    assert built.size_bytes > 0
    assert built.layers


@needs_rtx
@pytest.mark.parametrize(("target", "type_"), [("rtx-3090", "int8"), ("t4", "half")])
def test_what_tensorrt_rtx_makes_of_a_quantised_conv_is_what_the_docs_say(
    tmp_path, rng, target, type_
):
    """On Ampere the integers go into the Conv; on Turing they are made FP16 before it."""
    weight = rng.standard_normal((32, 16, 1, 1)).astype(np.float32)
    shapes = {"x": [1, 16, 8, 8], "y": [1, 32, 8, 8]}
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items())
    conv = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    graph = helper.make_graph([conv], "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    ranges = {"x": TensorRange(amax=3.0, largest=3.0, mean=(0.0,) * 16)}
    to_int8(model, table_of(ranges), QuantizationPolicy(rules=()))
    save_onnx(model, tmp_path / "m.onnx")
    built = build_engine(
        tmp_path / "m.onnx",
        runtime="tensorrt_rtx",
        target=load_target(target),
        out=tmp_path / "m.plan",
    )
    assert multiplied_in(parse_layers(built.layers), ["conv", "no such"]) == {"conv": type_}
