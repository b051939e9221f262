# SPDX-License-Identifier: Apache-2.0
"""The return to the full grid, in PyTorch and in ONNX, against loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from stormrt.errors import InputError
from stormrt.plugins.spatial_unit_gather.torch_op import spatial_unit_gather
from stormrt.plugins.spatial_unit_scatter import SPEC
from stormrt.plugins.spatial_unit_scatter.torch_op import spatial_unit_scatter

SIZES = (  # batch, channels, H', W', H, W
    (3, 5, 4, 9, 7, 11),
    (2, 4, 11, 1, 11, 7),
    (1, 3, 1, 5, 1, 9),
    (2, 1, 3, 1, 9, 1),
    (2, 2, 6, 6, 6, 6),
)
DTYPES = ("float32", "float16")


def inputs(
    rng: np.random.Generator, size: tuple[int, ...], dtype: str = "float32"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    batch, channels, rows, cols, height, width = size

    def sources(lines: int, kept: int) -> np.ndarray:
        return np.sort(rng.integers(kept, size=(batch, lines)), axis=1).astype(np.int32)

    x = rng.normal(size=(batch, channels, rows, cols)).astype(dtype)
    return x, sources(height, rows), sources(width, cols)


def restored(x: np.ndarray, row_of: np.ndarray, col_of: np.ndarray) -> np.ndarray:
    """The definition, position by position."""
    height, width = row_of.shape[1], col_of.shape[1]
    y = np.full((*x.shape[:2], height, width), np.nan, x.dtype)
    for b, h, w in itertools.product(range(len(x)), range(height), range(width)):
        row = min(max(row_of[b, h], 0), x.shape[2] - 1)
        col = min(max(col_of[b, w], 0), x.shape[3] - 1)
        y[b, :, h, w] = x[b, :, row, col]
    return y


def tensors(*arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(a) for a in arrays)


def nearest(kept: torch.Tensor, lines: int) -> torch.Tensor:
    """Kept lines [B, H'] -> for each line of the grid the last kept one up to it, or the first."""
    before = kept[:, None, :] <= torch.arange(lines, dtype=torch.int32)[None, :, None]
    return (before.sum(dim=2) - 1).clamp(min=0).int()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_each_line_takes_the_values_of_its_kept_line_to_the_bit(
    size: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    x, row_of, col_of = inputs(rng, size, dtype)
    y = spatial_unit_scatter(*tensors(x, row_of, col_of))
    assert y.numpy().dtype == dtype
    np.testing.assert_array_equal(y, restored(x, row_of, col_of))


def test_takes_a_map_that_is_not_contiguous(rng: np.random.Generator) -> None:
    x, row_of, col_of = tensors(*inputs(rng, SIZES[0]))
    other = x.to(memory_format=torch.channels_last)
    assert not other.is_contiguous()
    expected = spatial_unit_scatter(x, row_of, col_of)
    assert torch.equal(spatial_unit_scatter(other, row_of, col_of), expected)


def test_an_index_outside_the_map_is_clamped_to_it(rng: np.random.Generator) -> None:
    x, row_of, col_of = inputs(rng, SIZES[0])
    extremes = np.array([-(2**31), -1, 2**31 - 1], np.int32)
    row_of[:, [0, 1, -1]], col_of[:, [0, 1, -1]] = extremes, extremes
    row_of[0, 2] = x.shape[2]
    np.testing.assert_array_equal(
        spatial_unit_scatter(*tensors(x, row_of, col_of)), restored(x, row_of, col_of)
    )


def test_images_do_not_depend_on_each_other(rng: np.random.Generator) -> None:
    given = tensors(*inputs(rng, (4, *SIZES[0][1:])))
    order = torch.from_numpy(rng.permutation(4))
    permuted = spatial_unit_scatter(*(t[order] for t in given))
    assert torch.equal(permuted, spatial_unit_scatter(*given)[order])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_changes_where_every_line_is_kept(dtype: str, rng: np.random.Generator) -> None:
    (x,) = tensors(rng.normal(size=(2, 3, 5, 7)).astype(dtype))
    rows, cols = (torch.arange(n).int().repeat(2, 1) for n in (5, 7))
    assert torch.equal(spatial_unit_scatter(spatial_unit_gather(x, rows, cols), rows, cols), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gather_undoes_a_scatter_and_kept_lines_survive_both(
    dtype: str, rng: np.random.Generator
) -> None:
    batch, height, width = 3, 11, 8
    x = torch.from_numpy(rng.normal(size=(batch, 4, height, width)).astype(dtype))
    rows, cols = (
        torch.from_numpy(np.sort([rng.permutation(n)[:k] for _ in range(batch)])).int()
        for n, k in ((height, 6), (width, 5))
    )
    kept = spatial_unit_gather(x, rows, cols)
    full = spatial_unit_scatter(kept, nearest(rows, height), nearest(cols, width))
    assert full.shape == x.shape
    assert torch.equal(spatial_unit_gather(full, rows, cols), kept)
    for b in range(batch):
        crossings = (slice(None), rows[b].long()[:, None], cols[b].long())
        assert torch.equal(full[b][crossings], x[b][crossings])


def test_gradients_agree_with_finite_differences(rng: np.random.Generator) -> None:
    x, row_of, col_of = tensors(*inputs(rng, (2, 3, 3, 2, 5, 4)))
    row_of[0, -1] = 99  # clamped: its gradient goes to the last line
    x = x.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: spatial_unit_scatter(x, row_of, col_of), [x])


def test_a_gradient_counts_the_copies_of_each_kept_line_without_loss_in_fp16() -> None:
    lines = 4099  # FP16 cannot count to it one by one: it stays at 2048
    x = torch.zeros(1, 1, 1, 2, dtype=torch.float16, requires_grad=True)
    col_of = torch.tensor([[0] * lines + [1]]).int()
    spatial_unit_scatter(x, torch.tensor([[0]]).int(), col_of).sum().backward()
    expected = torch.tensor([[[[lines, 1.0]]]]).half()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "training"])
def test_keeps_pytorchs_contract_for_operators(gradient: bool, rng: np.random.Generator) -> None:
    x, row_of, col_of = tensors(*inputs(rng, SIZES[0]))
    arguments = (x.requires_grad_(gradient), row_of, col_of)
    torch.library.opcheck(torch.ops.stormrt.spatial_unit_scatter.default, arguments)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("x", torch.zeros(2, 3, 4, 5).int(), "wrong type"),
        ("x", torch.zeros(2, 3, 4, 5).bfloat16(), "wrong type"),
        ("row_of", torch.zeros(2, 6).long(), "wrong type"),
        ("col_of", torch.zeros(2, 6), "wrong type"),
        ("x", torch.zeros(3, 4, 5), "wrong rank"),
        ("row_of", torch.zeros(6).int(), "wrong rank"),
        ("col_of", torch.zeros(2, 6, 1).int(), "wrong rank"),
        ("row_of", torch.zeros(3, 6).int(), "axis 0, B"),
        ("col_of", torch.zeros(1, 6).int(), "axis 0, B"),
    ],
)
def test_a_wrong_input_is_refused_by_name(name: str, value: torch.Tensor, named: str) -> None:
    good = {
        "x": torch.zeros(2, 3, 4, 5),
        "row_of": torch.zeros(2, 6).int(),
        "col_of": torch.zeros(2, 7).int(),
    }
    assert spatial_unit_scatter(**good).shape == (2, 3, 6, 7)
    for device in ("cpu", "meta"):  # meta: as when a graph is traced
        with pytest.raises(InputError, match=named) as caught:
            spatial_unit_scatter(**{k: v.to(device) for k, v in (good | {name: value}).items()})
        assert f"SpatialUnitScatter: input {name!r}" in str(caught.value)


# --- ONNX --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_onnx_function_takes_the_same_lines_for_any_batch(
    size: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from tests.helpers.functions import FunctionSession

    first = inputs(rng, size, dtype)
    run = FunctionSession(SPEC, [v.shape for v in first], dtype)
    for x, row_of, col_of in (first, inputs(rng, (size[0] + 2, *size[1:]), dtype)):
        row_of[0, 0], row_of[0, -1], col_of[-1, 0], col_of[-1, -1] = -3, 2**31 - 1, -(2**31), 99
        y = run({"x": x, "row_of": row_of, "col_of": col_of})
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, spatial_unit_scatter(*tensors(x, row_of, col_of)))


def test_an_exported_gather_and_scatter_give_what_pytorch_gives(rng: np.random.Generator) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from tests.helpers.functions import exported, run_model

    class RoundTrip(torch.nn.Module):
        def forward(self, x, rows, cols, row_of, col_of):
            return spatial_unit_scatter(spatial_unit_gather(x, rows, cols) + 1, row_of, col_of)

    x = torch.from_numpy(rng.normal(size=(2, 3, 7, 5))).float()
    rows, cols = torch.tensor([[0, 2, 5], [1, 3, 6]]).int(), torch.tensor([[0, 4], [1, 2]]).int()
    arguments = (x, rows, cols, nearest(rows, 7), nearest(cols, 5))
    (y,) = run_model(exported(RoundTrip(), arguments), arguments)
    np.testing.assert_array_equal(y, RoundTrip()(*arguments))
