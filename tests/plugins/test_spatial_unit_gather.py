# SPDX-License-Identifier: Apache-2.0
"""The gather of whole lines, in PyTorch and in ONNX, against NumPy's indexing."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from stormrt.errors import InputError
from stormrt.plugins.spatial_unit_gather import SPEC
from stormrt.plugins.spatial_unit_gather.torch_op import spatial_unit_gather
from tests.helpers.lines import cut

SIZES = (  # batch, channels, H, W, H', W'
    (3, 5, 7, 11, 4, 9),
    (2, 4, 11, 7, 11, 1),
    (1, 3, 1, 9, 1, 5),
    (2, 1, 9, 1, 3, 1),
    (2, 2, 6, 6, 6, 6),
)


def lines(rng: np.random.Generator, batch: int, side: int, keep: int) -> np.ndarray:
    """Kept lines of each image, its own."""
    return np.sort([rng.permutation(side)[:keep] for _ in range(batch)]).astype(np.int32)


def inputs(
    rng: np.random.Generator, size: tuple[int, ...], dtype: str = "float32"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    batch, channels, height, width, rows, cols = size
    x = rng.normal(size=(batch, channels, height, width)).astype(dtype)
    return x, lines(rng, batch, height, rows), lines(rng, batch, width, cols)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_keeps_the_crossings_of_each_images_lines_to_the_bit(
    size: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    x, rows, cols = inputs(rng, size, dtype)
    y = spatial_unit_gather(*(torch.from_numpy(v) for v in (x, rows, cols)))
    assert y.numpy().dtype == dtype
    np.testing.assert_array_equal(y, cut(x, rows.tolist(), cols.tolist()))


def test_takes_a_map_that_is_not_contiguous(rng: np.random.Generator) -> None:
    x, rows, cols = (torch.from_numpy(v) for v in inputs(rng, SIZES[0]))
    expected = spatial_unit_gather(x, rows, cols)
    other = x.to(memory_format=torch.channels_last)
    assert not other.is_contiguous()
    assert torch.equal(spatial_unit_gather(other, rows, cols), expected)


def test_gradients_agree_with_finite_differences(rng: np.random.Generator) -> None:
    x, rows, cols = (torch.from_numpy(v) for v in inputs(rng, (2, 3, 4, 5, 3, 2)))
    x = x.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: spatial_unit_gather(x, rows, cols), [x])


def test_a_gradient_goes_to_the_kept_crossings_and_nowhere_else() -> None:
    x = torch.zeros(1, 2, 3, 4, requires_grad=True)
    rows, cols = torch.tensor([[0, 2]]).int(), torch.tensor([[1, 3]]).int()
    spatial_unit_gather(x, rows, cols).sum().backward()
    expected = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]]).float()
    assert torch.equal(x.grad, expected.expand(1, 2, 3, 4))


@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "training"])
def test_keeps_pytorchs_contract_for_operators(gradient: bool, rng: np.random.Generator) -> None:
    x, rows, cols = (torch.from_numpy(v) for v in inputs(rng, SIZES[0]))
    arguments = (x.requires_grad_(gradient), rows, cols)
    torch.library.opcheck(torch.ops.stormrt.spatial_unit_gather.default, arguments)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("x", torch.zeros(2, 3, 4, 5).int(), "wrong type"),
        ("x", torch.zeros(2, 3, 4, 5).bfloat16(), "wrong type"),
        ("rows", torch.zeros(2, 2).long(), "wrong type"),
        ("cols", torch.zeros(2, 2), "wrong type"),
        ("x", torch.zeros(3, 4, 5), "wrong rank"),
        ("rows", torch.zeros(2).int(), "wrong rank"),
        ("cols", torch.zeros(1, 2).int(), "axis 0, B"),
    ],
)
def test_a_wrong_input_is_refused_by_name(name: str, value: torch.Tensor, named: str) -> None:
    good = {
        "x": torch.zeros(2, 3, 4, 5),
        "rows": torch.tensor([[0, 1]] * 2).int(),
        "cols": torch.tensor([[0, 1]] * 2).int(),
    }
    spatial_unit_gather(**good)
    with pytest.raises(InputError, match=named) as caught:
        spatial_unit_gather(**good | {name: value})
    assert f"input {name!r}" in str(caught.value)


@pytest.mark.parametrize(("rows", "cols"), [([0, 4], [0]), ([-1, 0], [0])])
def test_an_index_outside_the_map_is_refused(rows: list[int], cols: list[int]) -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        spatial_unit_gather(
            torch.zeros(1, 1, 4, 1), torch.tensor([rows]).int(), torch.tensor([cols]).int()
        )


def test_a_column_outside_the_map_does_not_reach_into_the_next_row() -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4)
    for cols in ([4], [-1]):
        with pytest.raises(RuntimeError, match="out of bounds"):
            spatial_unit_gather(x, torch.tensor([[1]]).int(), torch.tensor([cols]).int())


# --- ONNX --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_onnx_function_keeps_the_same_crossings_for_any_batch(
    size: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from tests.helpers.functions import FunctionSession

    first = inputs(rng, size, dtype)
    run = FunctionSession(SPEC, [v.shape for v in first], dtype)
    for x, rows, cols in (first, inputs(rng, (size[0] + 2, *size[1:]), dtype)):
        y = run({"x": x, "rows": rows, "cols": cols})
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, cut(x, rows.tolist(), cols.tolist()))
