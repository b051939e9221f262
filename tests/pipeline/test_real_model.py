# SPDX-License-Identifier: Apache-2.0
"""What must hold for a published VMamba at its own size, and not only for small ones.

VMamba tiny (s1l8) with seeded weights at 224x224 is exported once; the graphs are then run on all
packaged photographs.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stormrt.pipeline.artifacts import PluginUse
from stormrt.pipeline.export import export_model
from stormrt.pipeline.metrics import compare
from stormrt.pipeline.model_source import build_model
from stormrt.pipeline.onnx_file import plugin_uses
from stormrt.pipeline.photographs import packaged_photographs, preprocess_all
from stormrt.pipeline.rewrite.schedule import LOWER_PLUGIN, run_passes
from stormrt.pipeline.rewrite.verify import FORBIDDEN_OPS, verify
from stormrt.storm.plan import keep_plan
from stormrt.storm.variants import get_variant
from tests.pipeline.support import make_graphs, model_spec, run_onnx

NAME = "vmamba_tiny_s1l8"
MOST_NODES = 3_000

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny():
    return make_graphs(model_spec(NAME, 224, 224, batch=9, dynamic=True, classes=1000))


@pytest.fixture(scope="module")
def golden(tiny):
    """All packaged photographs and PyTorch's logits for them."""
    images = preprocess_all(packaged_photographs(), 224, 224)
    model = build_model(tiny.spec)
    with torch.inference_mode():
        return images, model(torch.from_numpy(images)).numpy()


def run_in_batches(model, images):
    return np.concatenate([run_onnx(model, images[:9]), run_onnx(model, images[9:])])


def test_the_native_graph_is_small_and_has_no_operator_that_tensorrt_cannot_take(tiny):
    assert 1_000 < len(tiny.native.graph.node) <= MOST_NODES
    found = {n.op_type for n in tiny.native.graph.node}
    assert not found & {*FORBIDDEN_OPS, "Loop", "Scan", "If", "ScatterND", "CumSum"}
    assert {n.domain for n in tiny.native.graph.node} == {""}
    verify(tiny.native, after="lowering")


def test_the_plugin_graph_has_a_scan_for_each_block_and_no_gather(tiny):
    assert plugin_uses(tiny.plugin_fp16) == (PluginUse("SelectiveScan2D", "1", 14),)
    verify(tiny.plugin_fp16, after="lowering")


def test_a_reduced_model_has_one_gather_more():
    variant = get_variant(NAME)
    spec = model_spec(NAME, 224, 224, plan=keep_plan(variant, 224, 224, 0.75), classes=1000)
    graph = export_model(build_model(spec), spec)
    run_passes(graph, LOWER_PLUGIN)
    assert plugin_uses(graph) == (
        PluginUse("SelectiveScan2D", "1", 14),
        PluginUse("SpatialUnitGather", "1", 1),
    )


def test_fp32_agrees_with_pytorch_on_every_photograph(tiny, golden):
    images, logits = golden
    assert len(images) >= 18
    found = compare(run_in_batches(tiny.native, images), logits)
    assert found.rel_l2 < 1e-4
    assert found.rel_l2_worst < 1e-4
    assert found.argmax_agreement == 1.0


def test_fp16_agrees_with_pytorch(tiny, golden):
    images, logits = (array[:4] for array in golden)
    found = compare(run_onnx(tiny.native_fp16, images), logits)
    assert found.rel_l2 < 1e-2
    assert found.argmax_agreement == 1.0
    assert found.rel_l2 > 1e-6, "an FP16 graph that computes in FP32 would be of no use"
