# SPDX-License-Identifier: Apache-2.0
"""Every host, unit, mode and restore as a graph: it runs, it is PyTorch's, and T4 takes it.

Each graph has three reductions of one host, unit and mode: one that stays, one that is restored
after its stage, one that is restored at the end. Of each host two of the four pairs of unit and
mode are tried, other hosts have the others; ``STORMRT_EVERY_COMBINATION=1`` tries all of them.
"""

from __future__ import annotations

import itertools
import os
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from stormrt.pipeline import probe
from stormrt.pipeline.artifacts import ModelSpec, PluginUse
from stormrt.pipeline.comparison import first_diverging_layer, run_onnxruntime
from stormrt.pipeline.engine import build_engine
from stormrt.pipeline.onnx_file import plugin_uses, save_onnx
from stormrt.pipeline.rewrite.name_by_module import boundary_values, selection_values
from stormrt.pipeline.rewrite.values import value_types
from stormrt.storm.hosts import get_host, host_names, register_host, unregister_host
from stormrt.storm.plan import MODES, RESTORES, UNITS, Reduction, StormPlan, check_plan
from stormrt.storm.variants import VARIANTS, Variant
from stormrt.targets import load_target
from tests.pipeline.support import Graphs, make_graphs, model_spec, ops, run_onnx, run_torch

DEEP = Variant(
    name="deep_for_tests",
    dims=(8, 16, 32, 64),
    depths=(2, 2, 2, 1),
    ssm_ratio=1,
    state=1,
    mlp_ratio=0,
    gated=False,
    overlapping=True,
    conv_bias=False,
    checkpoint="deep_for_tests.pth",
)
"""A block before every reduction, and no MLPs, which would only take time."""

EVERY = "STORMRT_EVERY_COMBINATION"
KINDS = [
    (host, UNITS[u], MODES[m])
    for (h, host), u, m in itertools.product(
        enumerate(host_names()), range(len(UNITS)), range(len(MODES))
    )
    if os.environ.get(EVERY) or (h + u + m) % 2 == 0
]
FP32_TOLERANCE, FP16_TOLERANCE = 1e-4, 1e-2

needs_rtx = pytest.mark.skipif(
    probe.installed_version("tensorrt-rtx") is None,
    reason="tensorrt_rtx is not installed: no engine can be built",
)


@pytest.fixture(autouse=True)
def _deep(_small_variants) -> None:
    VARIANTS[DEEP.name] = DEEP  # _small_variants takes it away again


def plan_of(host: str, unit: str, mode: str, **more: object) -> StormPlan:
    """For 64 x 48 images, whose maps are 16 x 12, then 7 x 5 and 4 x 3."""
    places = [(0, 1, 13, 9), (1, 1, 5, 4), (2, 1, 2, 2)]
    plan = StormPlan(
        tuple(
            Reduction(*place, host, unit, mode, restore, **more)
            for place, restore in zip(places, ("no", "stage", "end"), strict=True)
        )
    )
    check_plan(plan, DEEP, 64, 48)
    return plan


def spec_of(plan: StormPlan, **options: object) -> ModelSpec:
    return model_spec(DEEP.name, plan=plan, **options)


def images(rng: np.random.Generator, count: int = 2) -> np.ndarray:
    return rng.standard_normal((count, 3, 64, 48)).astype(np.float32)


def build_t4(graphs: Graphs, folder: Path) -> None:
    save_onnx(deepcopy(graphs.native_fp16), folder / "m.onnx")
    build_engine(
        folder / "m.onnx", runtime="tensorrt_rtx", target=load_target("t4"), out=folder / "m.plan"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("host", "unit", "mode"), KINDS)
def test_every_host_unit_mode_and_restore_runs_as_a_graph_and_is_built_for_t4(
    host, unit, mode, rng, tmp_path
):
    assert {r.restore for r in plan_of(host, unit, mode).reductions} == set(RESTORES)
    spec = spec_of(plan_of(host, unit, mode))
    graphs = make_graphs(spec)
    x = images(rng)
    logits = run_torch(spec, x)
    for model, tolerance in (
        (graphs.native, FP32_TOLERANCE), (graphs.native_fp16, FP16_TOLERANCE),
    ):  # fmt: skip
        path = tmp_path / "native.onnx"
        save_onnx(deepcopy(model), path)
        found = run_onnxruntime(path, spec, x, logits)
        assert found.metrics.rel_l2 < tolerance
        if host == "uniform":
            assert found.selection_agreement is None
        elif selection_values(model.graph):
            assert found.selection_agreement is not None
            assert found.selection_agreement > 0.5
    save_onnx(deepcopy(graphs.native), tmp_path / "native.onnx")
    assert first_diverging_layer(spec, tmp_path / "native.onnx", x, 1e-3) is None
    if probe.installed_version("tensorrt-rtx") is not None:
        build_t4(graphs, tmp_path)


def test_the_chosen_kinds_have_every_host_with_every_unit_and_every_mode():
    assert {(host, unit) for host, unit, _ in KINDS} == set(itertools.product(host_names(), UNITS))
    assert {(host, mode) for host, _, mode in KINDS} == set(itertools.product(host_names(), MODES))
    assert {(unit, mode) for _, unit, mode in KINDS} == set(itertools.product(UNITS, MODES))


@pytest.fixture(scope="module")
def merged_windows() -> Graphs:
    """Merged windows by a host that needs the block before, with a batch of 1 to 3."""
    VARIANTS[DEEP.name] = DEEP
    try:
        return make_graphs(
            spec_of(plan_of("clipped_output", "window", "merge"), batch=3, dynamic=True)
        )
    finally:
        del VARIANTS[DEEP.name]


@pytest.fixture(scope="module")
def merged_lines() -> Graphs:
    """Merged lines by weights of both kinds, and steps that grow."""
    VARIANTS[DEEP.name] = DEEP
    try:
        plan = plan_of("dissimilarity", "line", "merge", weights="distance", dt_grows=True)
        return make_graphs(spec_of(plan))
    finally:
        del VARIANTS[DEEP.name]


@pytest.mark.parametrize("count", [1, 3])
def test_a_dynamic_batch_is_cut_down_image_by_image(merged_windows, rng, count, tmp_path):
    x = images(rng, count)
    save_onnx(deepcopy(merged_windows.native), tmp_path / "m.onnx")
    spec = merged_windows.spec
    found = run_onnxruntime(tmp_path / "m.onnx", spec, x, run_torch(spec, x))
    assert found.metrics.rel_l2 < FP32_TOLERANCE
    assert found.selection_agreement is not None
    assert found.selection_agreement > 0.9
    together = run_onnx(merged_windows.native, x)
    np.testing.assert_allclose(
        run_onnx(merged_windows.native, x[::-1].copy())[::-1], together, rtol=1e-4, atol=1e-5
    )


def test_windows_choices_are_values_of_the_graph_one_for_each_lane(merged_windows):
    for model in (merged_windows.native, merged_windows.native_fp16):
        types = value_types(model.graph)
        chosen = {name: types[name].shape for name in selection_values(model.graph)}
        assert chosen["layers.0.reductions.1.rows"][1:] == (3, 13)  # 12 columns, 3 leave
        assert chosen["layers.0.reductions.1.cols"][1:] == (3, 9)  # 16 rows, 3 leave


def test_restored_maps_are_values_of_the_graph(merged_lines):
    for model in (merged_lines.native, merged_lines.native_fp16, merged_lines.plugin_fp16):
        types = value_types(model.graph)
        shapes = {name: types[name].shape[2:] for name in boundary_values(model.graph)}
        assert shapes["layers.0.reductions.1"] == (13, 9)
        assert shapes["layers.1.reductions.1"] == (5, 4)
        assert shapes["layers.1.restore"] == (7, 5)
        assert shapes["layers.3.whole"] == (2, 2)
        assert "layers.0.restore" not in shapes


def test_lines_are_merged_and_restored_by_our_operators(merged_lines):
    uses = {use.name: use for use in plugin_uses(merged_lines.plugin_fp16)}
    assert uses["SpatialUnitMerge"] == PluginUse("SpatialUnitMerge", "1", 3)
    assert uses["SpatialUnitScatter"].count == 2
    assert "SpatialUnitGather" not in uses


def test_weights_and_steps_that_grow_are_in_the_graph(merged_lines, rng, tmp_path):
    x = images(rng)
    spec = merged_lines.spec
    for model, tolerance in (
        (merged_lines.native, FP32_TOLERANCE), (merged_lines.native_fp16, FP16_TOLERANCE),
    ):  # fmt: skip
        save_onnx(deepcopy(model), tmp_path / "m.onnx")
        found = run_onnxruntime(tmp_path / "m.onnx", spec, x, run_torch(spec, x))
        assert found.metrics.rel_l2 < tolerance


@needs_rtx
@pytest.mark.slow
def test_merges_with_all_options_and_a_dynamic_batch_are_built_for_t4(
    merged_lines, merged_windows, tmp_path
):
    build_t4(merged_lines, tmp_path)
    save_onnx(deepcopy(merged_windows.native_fp16), tmp_path / "m.onnx")
    build_engine(
        tmp_path / "m.onnx",
        runtime="tensorrt_rtx",
        target=load_target("t4"),
        out=tmp_path / "m.plan",
        max_batch=3,
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_fixed_selection_is_constants_and_no_scores(mode, rng, tmp_path):
    r = Reduction(0, 1, 4, 3, "step_size", "line", mode, "stage", (0, 5, 9, 15), (2, 3, 11))
    spec = spec_of(StormPlan((r,)))
    graphs = make_graphs(spec)
    for model in (graphs.native, graphs.native_fp16):
        assert not selection_values(model.graph)
        assert not ops(model, "ArgMin") + ops(model, "ArgMax")
        assert not [n for n in model.graph.node if "step_size" in n.name]
    x = images(rng)
    save_onnx(deepcopy(graphs.native), tmp_path / "m.onnx")
    found = run_onnxruntime(tmp_path / "m.onnx", spec, x, run_torch(spec, x))
    assert found.selection_agreement is None
    assert found.metrics == found.end_to_end
    assert found.metrics.rel_l2 < FP32_TOLERANCE


def test_a_plan_with_all_fields_survives_the_manifest():
    plan = plan_of("dissimilarity", "line", "merge", weights="distance", dt_grows=True)
    fixed = Reduction(0, 0, 2, 1, rows=(0, 5), cols=(3,), restore="stage")
    spec = spec_of(StormPlan((fixed, *plan.reductions[1:])))
    adapter = TypeAdapter(ModelSpec)
    read = adapter.validate_json(adapter.dump_json(spec))
    assert read == spec
    assert hash(read) == hash(spec)


def test_a_manifest_of_before_units_and_modes_is_still_read():
    adapter = TypeAdapter(ModelSpec)
    written = adapter.dump_python(spec_of(StormPlan((Reduction(0, 1, 9, 9),))), mode="json")
    (reduction,) = written["plan"]["reductions"]
    for field in ("unit", "mode", "restore", "rows", "cols", "weights", "dt_grows"):
        del reduction[field]
    assert adapter.validate_python(written).plan.reductions == (Reduction(0, 1, 9, 9),)


def test_what_only_moves_tokens_is_in_the_graphs_precision(rng):
    spec = spec_of(plan_of("feature_norm", "window", "drop"))
    model = make_graphs(spec).fp16
    types = value_types(model.graph)
    moves = [n for n in ops(model, "GatherElements") if ".tokens/" in n.name]
    assert moves
    assert {types[n.output[0]].dtype for n in moves} == {10}  # FLOAT16


def test_a_host_of_ones_own_is_exported_like_any_other(rng, tmp_path):
    register_host("mine", lambda x, measured: x.float().amax(1))
    try:
        assert get_host("mine").needs is None
        spec = spec_of(plan_of("mine", "line", "drop"))
        x = images(rng)
        save_onnx(deepcopy(make_graphs(spec).native), tmp_path / "m.onnx")
        found = run_onnxruntime(tmp_path / "m.onnx", spec, x, run_torch(spec, x))
        assert found.metrics.rel_l2 < FP32_TOLERANCE
    finally:
        unregister_host("mine")
