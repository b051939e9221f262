# SPDX-License-Identifier: Apache-2.0
"""SelectiveScan2D as an ONNX function, against a sequential float64 reference.

What can go wrong: a direction walked in the wrong order (seen on maps that are not square), a
block that inherits another block's or nothing, sequences that no block length divides, the
batch baked into a shape, an axis of N mixed up with D, FP16 inside, a decay that under- or
overflows. d is small in most inputs here, because d x would hide an error in the scan.

Needs onnx, onnxruntime and PyTorch, and TensorRT-RTX for the last test.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx.inliner")
ort = pytest.importorskip("onnxruntime")

# Imported only where the packages above are: these import them.
from onnx import TensorProto, helper  # noqa: E402
from torch import Tensor  # noqa: E402

from stormrt.plugins.selective_scan_2d.onnx_function import (  # noqa: E402
    build_function,
    function_for,
)
from stormrt.plugins.selective_scan_2d.reference import reference  # noqa: E402
from tests.helpers.scans import REGIMES, Regime, images, relative_l2, scan_inputs  # noqa: E402

FLOAT32_TOLERANCE = 1e-5
FLOAT16_TOLERANCE = 1e-3

DType = Literal["float32", "float16"]

SHAPES = (
    # channels, height, width, state
    (6, 1, 1, 1),
    (6, 1, 37, 1),
    (6, 37, 1, 4),
    (5, 31, 5, 1),
    (3, 2, 3, 16),
    (4, 7, 7, 1),
    (4, 14, 14, 1),
    (3, 11, 13, 4),
    (3, 13, 29, 1),
    (2, 56, 56, 1),
    (2, 9, 10, 16),
)


def model_of(
    *shapes: tuple[int, int, int, int], dtype: DType = "float32", batch: int | str = "batch"
) -> onnx.ModelProto:
    """One call of the function for each shape, side by side; all tensors are graph inputs."""
    element = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[dtype]
    nodes, inputs, outputs, functions = [], [], [], []
    for i, (channels, height, width, state) in enumerate(shapes):
        function = build_function(
            channels=channels, height=height, width=width, state=state, dtype=dtype
        )
        functions.append(function)
        rows = {"x": channels, "dt": 4 * channels, "b": 4 * state, "c": 4 * state}
        parameters = {"a": [4 * channels, state], "d": [4 * channels], "dt_bias": [4 * channels]}
        for name, n in rows.items():
            dims = [batch, n, height, width]
            inputs.append(helper.make_tensor_value_info(f"{name}{i}", element, dims))
        for name, dims in parameters.items():
            inputs.append(helper.make_tensor_value_info(f"{name}{i}", TensorProto.FLOAT, dims))
        dims = [batch, channels, height, width]
        outputs.append(helper.make_tensor_value_info(f"y{i}", element, dims))
        names = [f"{name}{i}" for name in (*rows, *parameters)]
        node = helper.make_node(
            function.name, names, [f"y{i}"], domain=function.domain, overload=function.overload
        )
        nodes.append(node)
    model = helper.make_model(
        helper.make_graph(nodes, "scans", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("stormrt", 1)],
        functions=functions,
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The native lowering: standard ops only."""
    model = onnx.inliner.inline_local_functions(model)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    return model


def run(model: onnx.ModelProto, *feeds: dict[str, Tensor]) -> list[Tensor]:
    """Outputs of onnxruntime on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    named = {f"{k}{i}": v.numpy() for i, feed in enumerate(feeds) for k, v in feed.items()}
    return [torch.from_numpy(np.asarray(y)) for y in session.run(None, named)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_reference(
    shape: tuple[int, int, int, int], rng: np.random.Generator
) -> None:
    feeds = scan_inputs(rng, shape)
    (y,) = run(inlined(model_of(shape)), feeds)
    assert relative_l2(y, reference(**feeds)) < FLOAT32_TOLERANCE


def test_agrees_with_the_sequential_scan_on_random_shapes(rng: np.random.Generator) -> None:
    for _ in range(12):
        channels, height, width = (int(rng.integers(1, high)) for high in (7, 24, 24))
        shape = (channels, height, width, int(rng.choice([1, 4, 16])))
        feeds = scan_inputs(rng, shape)
        (y,) = run(inlined(model_of(shape)), feeds)
        assert relative_l2(y, reference(**feeds)) < FLOAT32_TOLERANCE, shape


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("state", [1, 4])
def test_is_stable_in_every_regime_of_the_step_size(
    regime: Regime, state: int, rng: np.random.Generator
) -> None:
    shape = (12, 28, 27, state)
    feeds = scan_inputs(rng, shape, regime=regime)
    (y,) = run(inlined(model_of(shape)), feeds)
    assert relative_l2(y, reference(**feeds)) < FLOAT32_TOLERANCE


def test_stays_finite_where_decays_underflow_and_softplus_is_linear(
    rng: np.random.Generator,
) -> None:
    shape = (4, 12, 12, 1)
    feeds = scan_inputs(rng, shape, regime="hot")
    feeds["dt"] = torch.from_numpy(rng.choice([300, -300], feeds["dt"].shape).astype(np.float32))
    (y,) = run(inlined(model_of(shape)), feeds)
    assert y.isfinite().all()
    assert relative_l2(y, reference(**feeds)) < FLOAT32_TOLERANCE


def test_loses_few_digits_where_every_step_is_tiny(rng: np.random.Generator) -> None:
    shape = (6, 14, 14, 1)
    feeds = scan_inputs(rng, shape, regime="init")
    feeds["dt_bias"][:] = np.log(np.expm1(1e-3))
    feeds["d"][:] = 0
    (y,) = run(inlined(model_of(shape)), feeds)
    assert relative_l2(y, reference(**feeds)) < 1e-4


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("shape", [(6, 14, 14, 1), (4, 9, 16, 4)], ids=str)
def test_float16_maps_cost_no_more_than_their_own_rounding(
    shape: tuple[int, int, int, int], regime: Regime, rng: np.random.Generator
) -> None:
    feeds = scan_inputs(rng, shape, regime=regime, dtype=torch.float16)
    (y,) = run(inlined(model_of(shape, dtype="float16")), feeds)
    assert y.dtype == torch.float16
    assert relative_l2(y, reference(**feeds)) < FLOAT16_TOLERANCE


def test_one_graph_serves_every_batch_and_images_do_not_mix(rng: np.random.Generator) -> None:
    shape = (4, 8, 6, 4)
    feeds = scan_inputs(rng, shape, batch=3)
    model = inlined(model_of(shape, batch="batch"))
    (together,) = run(model, feeds)
    assert relative_l2(together, reference(**feeds)) < FLOAT32_TOLERANCE
    for i in range(3):
        (alone,) = run(model, images(feeds, slice(i, i + 1)))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-5, atol=1e-6)


def test_runs_without_being_inlined(rng: np.random.Generator) -> None:
    shape = (4, 8, 6, 1)
    feeds = scan_inputs(rng, shape)
    (y,) = run(model_of(shape), feeds)
    assert relative_l2(y, reference(**feeds)) < FLOAT32_TOLERANCE


def test_two_shapes_in_one_graph_are_two_overloads(rng: np.random.Generator) -> None:
    shapes = ((4, 8, 6, 1), (3, 5, 5, 4))
    model = model_of(*shapes)
    assert [f.overload for f in model.functions] == ["d4_h8_w6_n1_f32", "d3_h5_w5_n4_f32"]
    feeds = [scan_inputs(rng, shape) for shape in shapes]
    for y, feed in zip(run(inlined(model), *feeds), feeds, strict=True):
        assert relative_l2(y, reference(**feed)) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("shape", [*SHAPES, (96, 56, 56, 1), (384, 14, 14, 1)], ids=str)
def test_uses_only_operators_that_every_runtime_has(shape: tuple[int, int, int, int]) -> None:
    channels, height, width, state = shape
    function = build_function(
        channels=channels, height=height, width=width, state=state, dtype="float16"
    )
    known = {"Add", "Cast", "Clip", "Concat", "Constant", "Exp", "Log", "Max", "Mul", "Pad"}
    known |= {"ReduceSum", "Reshape", "Slice", "Split", "Transpose"}
    assert {node.op_type for node in function.node} <= known
    assert all(node.name for node in function.node)


@pytest.mark.parametrize(
    ("shape", "limit"),
    [((96, 56, 56, 1), 165), ((192, 28, 28, 1), 155), ((384, 14, 14, 1), 130)],
    ids=str,
)
def test_stays_within_its_node_budget(shape: tuple[int, int, int, int], limit: int) -> None:
    counts = Counter(node.op_type for node in inlined(model_of(shape)).graph.node)
    assert counts.total() - counts["Constant"] <= limit
    assert counts["Constant"] <= 40


def test_every_node_is_used() -> None:
    for channels, height, width, state in SHAPES:
        if height * width == 1:
            continue  # a single position inherits nothing: its decay is not read
        function = build_function(
            channels=channels, height=height, width=width, state=state, dtype="float32"
        )
        read = {name for node in function.node for name in node.input} | set(function.output)
        unread = [n.name for n in function.node if not read & set(n.output)]
        assert not unread, (height, width)


def test_function_for_takes_the_solved_symbols_of_a_node() -> None:
    symbols = {"B": "batch", "D": 4, "H": 8, "W": 6, "N": 2, "K": 4}
    assert function_for(symbols, "float16").overload == "d4_h8_w6_n2_f16"


def test_rejects_what_it_cannot_build() -> None:
    with pytest.raises(ValueError, match="int32"):
        function_for({"D": 4, "H": 8, "W": 6, "N": 1}, "int32")
    with pytest.raises(ValueError, match="width is 0"):
        build_function(channels=4, height=8, width=0, state=1, dtype="float32")
    with pytest.raises(ValueError, match="opset is 17"):
        build_function(channels=4, height=8, width=6, state=1, dtype="float32", opset=17)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("batch", [1, "batch"])
def test_tensorrt_rtx_builds_it_for_a_t4(dtype: DType, batch: int | str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    shapes = ((8, 14, 14, 1), (4, 31, 5, 4), (4, 1, 37, 1))
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    model = inlined(model_of(*shapes, dtype=dtype, batch=batch))
    parsed = parser.parse(model.SerializeToString())
    assert parsed, [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM75, 0)
    if batch != 1:
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            dims = tuple(network.get_input(i).shape)
            if -1 in dims:
                sizes = [(n, *dims[1:]) for n in (1, 2, 8)]
                profile.set_shape(network.get_input(i).name, *sizes)
        config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
