# SPDX-License-Identifier: Apache-2.0
"""Means of merged lines, in PyTorch and in ONNX, against loops in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from stormrt.errors import InputError
from stormrt.plugins.spatial_unit_gather.torch_op import spatial_unit_gather
from stormrt.plugins.spatial_unit_merge import SPEC
from stormrt.plugins.spatial_unit_merge.torch_op import spatial_unit_merge
from tests.helpers.merges import Inputs, merge_inputs, merge_reference

SIZES = (  # batch, channels, H, W, H', W'
    (3, 5, 7, 11, 4, 9),
    (2, 4, 11, 7, 11, 1),
    (1, 3, 1, 9, 1, 5),
    (2, 1, 9, 1, 3, 1),
    (2, 2, 6, 6, 6, 6),
    (1, 2, 37, 16, 2, 15),
)
TOLERANCE = {"float32": 1e-6, "float16": 1e-3}
"""Absolute, of means of values of size 1: rounding of sums in FP32, and of the result in FP16."""
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)


def merged(inputs: Inputs) -> torch.Tensor:
    return spatial_unit_merge(**{name: torch.from_numpy(value) for name, value in inputs.items()})


def check(y: torch.Tensor | np.ndarray, inputs: Inputs, dtype: str) -> None:
    assert str(y.dtype).removeprefix("torch.") == dtype
    np.testing.assert_allclose(
        np.asarray(y, np.float64), merge_reference(inputs), rtol=1e-6, atol=4 * TOLERANCE[dtype]
    )


@DTYPES
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_each_cell_becomes_its_weighted_mean(
    size: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    inputs = merge_inputs(rng, size, dtype)
    check(merged(inputs), inputs, dtype)


def test_two_lines_of_weights_1_and_3_meet_at_three_quarters() -> None:
    y = spatial_unit_merge(
        torch.tensor([0.0, 4.0]).view(1, 1, 2, 1),
        *(torch.zeros(1, 1).int() for _ in range(2)),
        torch.tensor([[1.0, 3.0]]),
        torch.tensor([[5.0]]),
    )
    assert y.item() == 3


@DTYPES
def test_nothing_changes_where_every_line_is_a_cell_whatever_the_weights(
    dtype: str, rng: np.random.Generator
) -> None:
    inputs = merge_inputs(rng, (2, 3, 6, 9, 6, 9), dtype)
    for name in ("row_weights", "col_weights"):
        inputs[name] = rng.uniform(1e-3, 1e3, inputs[name].shape).astype(np.float32)
    np.testing.assert_array_equal(merged(inputs), inputs["x"])


@DTYPES
def test_is_a_gather_where_each_cell_has_one_line_with_weight(
    dtype: str, rng: np.random.Generator
) -> None:
    inputs = merge_inputs(rng, (2, 3, 9, 8, 5, 4), dtype)
    kept = {}
    for side in ("row", "col"):
        starts, weights = inputs[f"{side}_starts"], inputs[f"{side}_weights"]
        ends = np.c_[starts[:, 1:], np.full(2, weights.shape[1])]
        chosen = rng.integers(starts, ends).astype(np.int32)
        weights[:] = 0
        np.put_along_axis(weights, chosen, rng.uniform(0.1, 9, chosen.shape), axis=1)
        kept[side] = torch.from_numpy(chosen)
    expected = spatial_unit_gather(torch.from_numpy(inputs["x"]), kept["row"], kept["col"])
    assert torch.equal(merged(inputs), expected)


@DTYPES
def test_a_cell_without_weight_is_zero_and_its_neighbours_are_not_touched(
    dtype: str, rng: np.random.Generator
) -> None:
    inputs = merge_inputs(rng, (2, 3, 7, 5, 3, 2), dtype)
    begin, end = inputs["row_starts"][0, 1:3]
    inputs["row_weights"][:] = 1
    inputs["row_weights"][0, begin:end] = 0
    inputs["col_weights"][:] = 1
    y = merged(inputs)
    assert torch.count_nonzero(y[0, :, 1]) == 0
    assert torch.count_nonzero(y) == y.numel() - y[0, :, 1].numel()
    check(y, inputs, dtype)


def test_images_do_not_depend_on_each_other(rng: np.random.Generator) -> None:
    inputs = merge_inputs(rng, (4, *SIZES[0][1:]))
    order = rng.permutation(4)
    permuted = merged({name: value[order] for name, value in inputs.items()})
    torch.testing.assert_close(permuted, merged(inputs)[order], rtol=1e-6, atol=1e-6)


def test_all_weights_may_be_scaled_alike(rng: np.random.Generator) -> None:
    inputs = merge_inputs(rng, SIZES[0])
    expected = merged(inputs)
    inputs["row_weights"] *= 8  # a power of two: exact
    assert torch.equal(merged(inputs), expected)


@pytest.mark.parametrize(
    "starts",
    [[-5, 2, 4], [3, 3, 3], [0, 9, 11], [5, 2, 0], [-(2**31), 2**31 - 1, 0], [0, 7, 7]],
    ids=str,
)
def test_bad_starts_are_clamped_to_the_map(starts: list[int], rng: np.random.Generator) -> None:
    inputs = merge_inputs(rng, (2, 3, 7, 5, 3, 2))
    inputs["row_starts"][1] = starts
    check(merged(inputs), inputs, "float32")


def test_takes_a_map_that_is_not_contiguous(rng: np.random.Generator) -> None:
    inputs = {k: torch.from_numpy(v) for k, v in merge_inputs(rng, SIZES[0]).items()}
    expected = spatial_unit_merge(**inputs)
    other = inputs["x"].to(memory_format=torch.channels_last)
    assert not other.is_contiguous()
    torch.testing.assert_close(spatial_unit_merge(**inputs | {"x": other}), expected)


# --- Gradients ---------------------------------------------------------------------------------


def test_gradients_of_map_and_weights_agree_with_finite_differences(
    rng: np.random.Generator,
) -> None:
    inputs = {k: torch.from_numpy(v) for k, v in merge_inputs(rng, (2, 2, 5, 4, 3, 2)).items()}
    inputs["row_weights"] += 0.1  # all cells have weight: a difference quotient at 0 has a jump
    inputs["col_weights"] += 0.1
    names = ("x", "row_weights", "col_weights")
    leaves = [inputs[name].double().requires_grad_() for name in names]

    def merge(*values: torch.Tensor) -> torch.Tensor:
        return spatial_unit_merge(**inputs | dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(merge, leaves)


def test_gradients_are_finite_in_cells_without_weight(rng: np.random.Generator) -> None:
    inputs = {k: torch.from_numpy(v) for k, v in merge_inputs(rng, (1, 2, 4, 4, 2, 2)).items()}
    inputs["row_starts"][0] = torch.tensor([0, 2])
    inputs["row_weights"][0] = torch.tensor([0.0, 0.0, 1.0, 2.0])
    inputs["col_weights"][:] = 1
    names = ("x", "row_weights", "col_weights")
    leaves = {name: inputs[name].requires_grad_() for name in names}
    spatial_unit_merge(**inputs).square().sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in leaves.values())
    assert torch.count_nonzero(leaves["x"].grad[:, :, :2]) == 0
    assert torch.count_nonzero(leaves["row_weights"].grad[:, :2]) == 0
    assert torch.count_nonzero(leaves["x"].grad[:, :, 2:]) > 0


def test_gradients_have_their_inputs_types(rng: np.random.Generator) -> None:
    inputs = {k: torch.from_numpy(v) for k, v in merge_inputs(rng, SIZES[0], "float16").items()}
    leaves = [inputs[k].requires_grad_() for k in ("x", "row_weights", "col_weights")]
    spatial_unit_merge(**inputs).float().sum().backward()
    assert [t.grad.dtype for t in leaves] == [torch.float16, torch.float32, torch.float32]


@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "training"])
def test_keeps_pytorchs_contract_for_operators(gradient: bool, rng: np.random.Generator) -> None:
    inputs = {k: torch.from_numpy(v) for k, v in merge_inputs(rng, (2, 3, 5, 4, 3, 2)).items()}
    for name in ("x", "row_weights", "col_weights"):
        inputs[name].requires_grad_(gradient)
    torch.library.opcheck(torch.ops.stormrt.spatial_unit_merge.default, tuple(inputs.values()))


# --- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("x", torch.zeros(2, 3, 4, 5).int(), "wrong type"),
        ("x", torch.zeros(2, 3, 4, 5).bfloat16(), "wrong type"),
        ("row_starts", torch.zeros(2, 2).long(), "wrong type"),
        ("col_starts", torch.zeros(2, 2), "wrong type"),
        ("row_weights", torch.zeros(2, 4).half(), "wrong type"),
        ("col_weights", torch.zeros(2, 5).int(), "wrong type"),
        ("x", torch.zeros(3, 4, 5), "wrong rank"),
        ("row_starts", torch.zeros(2).int(), "wrong rank"),
        ("col_weights", torch.zeros(5), "wrong rank"),
        ("col_starts", torch.zeros(1, 2).int(), "axis 0, B"),
        ("row_weights", torch.zeros(3, 4), "axis 0, B"),
        ("row_weights", torch.zeros(2, 5), "axis 1, H"),
        ("col_weights", torch.zeros(2, 4), "axis 1, W"),
    ],
)
def test_a_wrong_input_is_refused_by_name(name: str, value: torch.Tensor, named: str) -> None:
    good = {
        "x": torch.zeros(2, 3, 4, 5),
        "row_starts": torch.tensor([[0, 1]] * 2).int(),
        "col_starts": torch.tensor([[0, 1, 3]] * 2).int(),
        "row_weights": torch.ones(2, 4),
        "col_weights": torch.ones(2, 5),
    }
    assert spatial_unit_merge(**good).shape == (2, 3, 2, 3)
    for device in ("cpu", "meta"):  # meta: as when a graph is traced
        with pytest.raises(InputError, match=named) as caught:
            spatial_unit_merge(**{k: v.to(device) for k, v in (good | {name: value}).items()})
        assert f"SpatialUnitMerge: input {name!r}" in str(caught.value)


# --- ONNX --------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_onnx_function_gives_the_same_means_for_any_batch(
    size: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from tests.helpers.functions import FunctionSession

    first = merge_inputs(rng, size, dtype)
    run = FunctionSession(SPEC, [v.shape for v in first.values()], dtype)
    for inputs in (first, merge_inputs(rng, (size[0] + 2, *size[1:]), dtype)):
        inputs["row_weights"][0, : size[2] // 2] = 0  # cells without weight, where cells are small
        y = run(inputs)
        check(y, inputs, dtype)
        np.testing.assert_allclose(
            y.astype(np.float64), merged(inputs).double(), rtol=0, atol=4 * TOLERANCE[dtype]
        )


@DTYPES
def test_the_onnx_function_changes_nothing_where_every_line_is_a_cell(
    dtype: str, rng: np.random.Generator
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from tests.helpers.functions import FunctionSession

    inputs = merge_inputs(rng, (2, 3, 6, 9, 6, 9), dtype)
    for name in ("row_weights", "col_weights"):
        inputs[name] = rng.uniform(1e-3, 1e3, inputs[name].shape).astype(np.float32)
    run = FunctionSession(SPEC, [v.shape for v in inputs.values()], dtype)
    np.testing.assert_array_equal(run(inputs), inputs["x"])


def test_the_onnx_function_has_no_matrix_product_and_nothing_that_is_forbidden() -> None:
    pytest.importorskip("onnx")
    from stormrt.pipeline.rewrite.verify import FORBIDDEN_OPS
    from stormrt.plugins.spatial_unit_merge.onnx_function import function_for

    sizes = {"B": 1, "C": 96, "H": 56, "W": 56, "H'": 48, "W'": 48}
    ops = {node.op_type for node in function_for(sizes, "float16").node}
    assert not ops & {"MatMul", "Gemm", "Einsum", *FORBIDDEN_OPS}


def test_an_exported_merge_gives_what_pytorch_gives(rng: np.random.Generator) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from tests.helpers.functions import exported, run_model

    class Merge(torch.nn.Module):
        def forward(self, x, row_starts, col_starts, row_weights, col_weights):
            y = spatial_unit_merge(x * 2, row_starts, col_starts, row_weights, col_weights)
            return y + 1

    inputs = merge_inputs(rng, SIZES[0])
    arguments = tuple(torch.from_numpy(v) for v in inputs.values())
    (y,) = run_model(exported(Merge(), arguments), arguments)
    expected = 2 * merge_reference(inputs) + 1
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@DTYPES
def test_the_native_graph_builds_for_a_t4(
    dtype: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    # Its TensorRT-RTX has no FP32 matrix product, and says so only when it builds.
    pytest.importorskip("tensorrt_rtx")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from stormrt.pipeline.engine import build_engine
    from stormrt.targets import load_target
    from tests.helpers.functions import exported

    class Merge(torch.nn.Module):
        def forward(self, x, row_starts, col_starts, row_weights, col_weights):
            y = spatial_unit_merge(x.relu(), row_starts, col_starts, row_weights, col_weights)
            return y.relu()

    inputs = merge_inputs(rng, (2, 8, 14, 13, 11, 10), dtype)
    path, plan = tmp_path / "merge.onnx", tmp_path / "engine.plan"
    onnx.save(exported(Merge(), tuple(torch.from_numpy(v) for v in inputs.values())), path)
    build_engine(path, runtime="tensorrt_rtx", target=load_target("t4"), out=plan)
    assert plan.stat().st_size > 0
