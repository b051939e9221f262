# SPDX-License-Identifier: Apache-2.0
"""Gather, scatter and merge on a GPU through ``torch.ops.stormrt``, against NumPy and float64.

What can go wrong: a path for other widths or for the last channels, which only some shapes take;
an index that leaves the map; a position that is not written; PyTorch's operators that run
in place of the kernels; a launch that a CUDA graph does not record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

torch = pytest.importorskip("torch")

# Imported only where the packages above are: these import them.
from stormrt.plugins.spatial_unit_gather.torch_op import spatial_unit_gather  # noqa: E402
from stormrt.plugins.spatial_unit_merge.torch_op import spatial_unit_merge  # noqa: E402
from stormrt.plugins.spatial_unit_scatter.torch_op import spatial_unit_scatter  # noqa: E402
from tests.helpers.merges import merge_inputs, merge_reference  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no CUDA GPU here"),
    pytest.mark.usefixtures("launched"),
]

SIZES = (  # batch, channels, height and width of the full grid, kept rows and columns
    (2, 16, 56, 56, 48, 48),  # full groups of channels, even widths
    (3, 5, 7, 11, 4, 9),  # no full group, odd widths
    (1, 8, 14, 15, 14, 15),  # every line
    (2, 19, 9, 1, 3, 1),  # full groups and some channels left
    (2, 9, 1, 37, 1, 2),
    (1, 1, 1, 1, 1, 1),
    (70001, 1, 2, 3, 1, 2),  # more images than a grid has rows
)
EXTREMES = np.array([-(2**31), -1, 2**31 - 1], np.int32)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float16"])
SHAPES = pytest.mark.parametrize("size", SIZES, ids=str)

Size = tuple[int, ...]


def on_gpu(arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(a).cuda() for a in arrays]


def poisoned(op: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> np.ndarray:
    """The result in memory that held NaNs: PyTorch's allocator gives back what was freed last."""
    shape, dtype = op(*inputs).shape, inputs[0].dtype
    torch.cuda.synchronize()
    torch.full(shape, float("nan"), dtype=dtype, device="cuda")
    y = op(*inputs)
    assert y.shape == shape
    return y.cpu().numpy()


def copied(x: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """The definition that the gather and the scatter share, indices clamped to the map."""
    rows, cols = rows.clip(0, x.shape[2] - 1), cols.clip(0, x.shape[3] - 1)
    image, channel = np.ogrid[: x.shape[0], : x.shape[1]]
    return x[
        image[..., None, None],
        channel[..., None, None],
        rows[:, None, :, None],
        cols[:, None, None, :],
    ]


def lines(rng: np.random.Generator, batch: int, side: int, keep: int) -> np.ndarray:
    """Kept lines of each image, [batch, keep]."""
    order = np.argsort(rng.random((batch, side)), axis=1)[:, :keep]
    return np.sort(order, axis=1).astype(np.int32)


def gather_inputs(rng: np.random.Generator, size: Size, dtype: str) -> list[np.ndarray]:
    batch, channels, height, width, rows, cols = size
    x = rng.normal(size=(batch, channels, height, width)).astype(dtype)
    return [x, lines(rng, batch, height, rows), lines(rng, batch, width, cols)]


def scatter_inputs(rng: np.random.Generator, size: Size, dtype: str) -> list[np.ndarray]:
    batch, channels, height, width, rows, cols = size
    x = rng.normal(size=(batch, channels, rows, cols)).astype(dtype)
    row_of, col_of = (
        np.sort(rng.integers(kept, size=(batch, side)), axis=1).astype(np.int32)
        for kept, side in ((rows, height), (cols, width))
    )
    return [x, row_of, col_of]


COPIES = pytest.mark.parametrize(
    ("op", "make", "name"),
    [
        (spatial_unit_gather, gather_inputs, "SpatialUnitGather"),
        (spatial_unit_scatter, scatter_inputs, "SpatialUnitScatter"),
    ],
    ids=["gather", "scatter"],
)


@COPIES
@DTYPES
@SHAPES
def test_lines_are_copied_to_the_bit(
    op, make, name: str, size: Size, dtype: str, launched: list[str], rng: np.random.Generator
):
    inputs = make(rng, size, dtype)
    np.testing.assert_array_equal(poisoned(op, on_gpu(inputs)), copied(*inputs))
    assert launched == [name, name]


@COPIES
@DTYPES
@pytest.mark.parametrize("size", SIZES[:2], ids=str)
def test_an_index_outside_the_map_is_clamped_to_it(
    op, make, name: str, size: Size, dtype: str, rng: np.random.Generator
):
    inputs = make(rng, size, dtype)
    for indices in inputs[1:]:
        indices[:, [0, 1, -1]] = EXTREMES
        indices[-1, 2] = 1000
    np.testing.assert_array_equal(poisoned(op, on_gpu(inputs)), copied(*inputs))


@COPIES
def test_every_bit_pattern_passes_nan_and_infinity_among_them(
    op, make, name: str, rng: np.random.Generator
):
    inputs = make(rng, (1, 8, 256, 256, 256, 256), "float16")
    patterns = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    inputs[0][:] = patterns
    y = op(*on_gpu(inputs)).cpu().numpy()
    np.testing.assert_array_equal(y.view(np.uint16), copied(*inputs).view(np.uint16))


@COPIES
def test_tensors_that_begin_in_the_middle_of_an_allocation_are_taken(
    op, make, name: str, rng: np.random.Generator
):
    inputs = make(rng, (2, 9, 12, 10, 8, 6), "float16")

    def shifted(tensor: torch.Tensor) -> torch.Tensor:
        storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device="cuda")
        return storage[1:].view(tensor.shape).copy_(tensor)

    y = op(*(shifted(t) for t in on_gpu(inputs)))
    np.testing.assert_array_equal(y.cpu().numpy(), copied(*inputs))


@DTYPES
def test_a_gather_undoes_a_scatter(dtype: str, rng: np.random.Generator):
    x, rows, cols = on_gpu(gather_inputs(rng, (2, 24, 28, 26, 21, 19), dtype))
    kept = spatial_unit_gather(x, rows, cols)
    row_of, col_of = (
        # The last kept line up to each line, the first one before it.
        (torch.searchsorted(k, torch.arange(n, device="cuda").int().repeat(2, 1), right=True) - 1)
        .clamp(min=0)
        .int()
        for k, n in ((rows, 28), (cols, 26))
    )
    full = spatial_unit_scatter(kept, row_of, col_of)
    assert torch.equal(spatial_unit_gather(full, rows, cols), kept)


# --- Merge -------------------------------------------------------------------------------------

ABSOLUTE = {"float32": 4e-6, "float16": 4e-3}
"""Of means of values of size 1: rounding of sums in FP32, and of the result in FP16."""


@DTYPES
@pytest.mark.parametrize("size", [*SIZES[:-1], (2, 10, 56, 54, 28, 3)], ids=str)
def test_each_cell_becomes_its_weighted_mean(
    size: Size, dtype: str, launched: list[str], rng: np.random.Generator
):
    inputs = merge_inputs(rng, size, dtype)
    y = poisoned(spatial_unit_merge, on_gpu(list(inputs.values())))
    assert y.dtype == dtype
    expected = merge_reference(inputs)
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=1e-6, atol=ABSOLUTE[dtype])
    assert launched == ["SpatialUnitMerge"] * 2


@DTYPES
def test_more_images_than_a_grid_has_rows_are_merged(dtype: str, rng: np.random.Generator):
    batch = 70001
    inputs = merge_inputs(rng, (8, 1, 2, 3, 1, 2), dtype)
    expected = merge_reference(inputs)
    which = np.arange(batch) % 8
    y = spatial_unit_merge(*on_gpu([value[which] for value in inputs.values()]))
    np.testing.assert_allclose(
        y.cpu().numpy().astype(np.float64), expected[which], rtol=1e-6, atol=ABSOLUTE[dtype]
    )


@DTYPES
def test_a_merge_changes_nothing_where_every_line_is_a_cell_whatever_the_weights(
    dtype: str, rng: np.random.Generator
):
    inputs = merge_inputs(rng, (2, 11, 14, 9, 14, 9), dtype)
    for name in ("row_weights", "col_weights"):
        inputs[name] = rng.uniform(1e-3, 1e3, inputs[name].shape).astype(np.float32)
    y = poisoned(spatial_unit_merge, on_gpu(list(inputs.values())))
    np.testing.assert_array_equal(y, inputs["x"])


@DTYPES
def test_a_cell_without_weight_is_zero_even_over_infinities(dtype: str, rng: np.random.Generator):
    inputs = merge_inputs(rng, (2, 9, 12, 10, 6, 5), dtype)
    begin, end = inputs["row_starts"][0, 2:4]
    inputs["row_weights"][0, begin:end] = 0
    expected = merge_reference(inputs)
    inputs["x"][0, :, begin:end] = np.inf
    y = poisoned(spatial_unit_merge, on_gpu(list(inputs.values())))
    assert not y[0, :, 2].any()
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=1e-6, atol=ABSOLUTE[dtype])


@pytest.mark.parametrize(
    "starts",
    [[-5, 2, 4], [3, 3, 3], [0, 9, 1000], [5, 2, 0], EXTREMES.tolist(), [2**31 - 1, 0, 0]],
    ids=str,
)
def test_bad_starts_are_clamped_to_the_map(starts: list[int], rng: np.random.Generator):
    inputs = merge_inputs(rng, (2, 9, 7, 5, 3, 3), "float32")
    inputs["row_starts"][1] = starts
    inputs["col_starts"][0] = starts
    y = poisoned(spatial_unit_merge, on_gpu(list(inputs.values())))
    np.testing.assert_allclose(y, merge_reference(inputs), rtol=1e-6, atol=ABSOLUTE["float32"])


def test_two_runs_of_a_merge_give_the_same_bits(rng: np.random.Generator):
    inputs = on_gpu(list(merge_inputs(rng, (4, 32, 28, 28, 12, 13), "float16").values()))
    first = spatial_unit_merge(*inputs)
    assert all(torch.equal(spatial_unit_merge(*inputs), first) for _ in range(3))


# --- CUDA graphs -------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("name", ["gather", "scatter", "merge"])
def test_a_cuda_graph_replays_on_new_inputs_into_poisoned_memory(
    name: str, dtype: str, rng: np.random.Generator
):
    size = (2, 12, 14, 15, 12, 11)

    def merge_values(rng: np.random.Generator, size: Size, dtype: str) -> list[np.ndarray]:
        return list(merge_inputs(rng, size, dtype).values())

    op, make = {
        "gather": (spatial_unit_gather, gather_inputs),
        "scatter": (spatial_unit_scatter, scatter_inputs),
        "merge": (spatial_unit_merge, merge_values),
    }[name]
    held = on_gpu(make(rng, size, dtype))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        op(*held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = op(*held)
    for _ in range(3):
        fresh = on_gpu(make(rng, size, dtype))
        for held_tensor, fresh_tensor in zip(held, fresh, strict=True):
            held_tensor.copy_(fresh_tensor)
        y.fill_(float("nan"))
        graph.replay()
        assert torch.equal(y, op(*fresh))
