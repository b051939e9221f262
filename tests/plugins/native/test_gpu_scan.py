# SPDX-License-Identifier: Apache-2.0
"""The scan on a GPU, through ``torch.ops.stormrt`` and with each tactic, against float64.

What can go wrong: a cut of the maps into runs, which only some sizes take; positions that no
thread has, or two have; FP16's fast softplus where it overflows, and the second pass that repairs
it; wide loads from addresses that they may not have; a launch that a CUDA graph does not record.
The reference is the operator in PyTorch's own operations, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

# Imported only where the packages above are: these import them.
from benchmarks.operator_bench.scan_launches import (  # noqa: E402
    Facts,
    ScanCall,
    ScanLaunch,
    ScanLaunches,
)
from stormrt.plugins.builder import BuildResult  # noqa: E402
from stormrt.plugins.native import DeviceTensor, load_library  # noqa: E402
from stormrt.plugins.selective_scan_2d import SPEC  # noqa: E402
from stormrt.plugins.selective_scan_2d.torch_op import selective_scan_2d  # noqa: E402
from tests.helpers.scans import KERNEL_SIZES, relative_l2, scan_inputs  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no CUDA GPU here"),
    pytest.mark.usefixtures("launched"),
]

LIMIT = {torch.float16: 2e-3, torch.float32: 2e-5}
"""Of an element's error, in the element and the root mean square of its channel."""
SMALL_CHANNEL = 0.05
"""Of the middle channel: what a channel's root mean square counts as at least."""
BATCH = 3
FIRST_STAGE_LIKE = (8, 56, 56)
TACTIC_SHAPES = ((24, 28, 28), (10, 31, 5))

Operands = list[torch.Tensor]
Size = tuple[int, int, int]
Plan = Callable[[Size], dict[str, dict[ScanLaunch, int]]]


@pytest.fixture(scope="module")
def facts() -> Facts:
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Facts(found.multi_processor_count, found.shared_memory_per_block_optin)


@pytest.fixture
def plan(scan_launches: ScanLaunches, facts: Facts) -> Plan:
    """What there is to launch for FP16 and a size: by kernel, each with a tactic that does."""

    def plan(size: Size) -> dict[str, dict[ScanLaunch, int]]:
        call = ScanCall(BATCH, *size)
        tactics = range(1, scan_launches.count_tactics(call) + 1)
        found: dict[str, dict[ScanLaunch, int]] = {"banded": {}}
        calls = [replace(call, tactic=tactic) for tactic in tactics]
        for tactic, launch in zip(tactics, scan_launches(calls, facts), strict=True):
            assert isinstance(launch, ScanLaunch)
            found.setdefault(launch.kernel, {}).setdefault(launch, tactic)
        return found

    return plan


@pytest.fixture
def run(gpu_library: BuildResult):
    """Runs a tactic into an output that held NaNs, and that may begin anywhere."""

    def run(operands: Operands, tactic: int = 0, *, offset: int = 0) -> torch.Tensor:
        x = operands[0]
        storage = torch.full((x.numel() + offset,), float("nan"), dtype=x.dtype, device="cuda")
        y = storage[offset:].view(x.shape)
        load_library(gpu_library.core).launch(
            SPEC,
            [DeviceTensor(t.data_ptr(), tuple(t.shape)) for t in operands],
            [DeviceTensor(y.data_ptr(), tuple(y.shape))],
            io_dtype="float16" if x.dtype == torch.float16 else "float32",
            stream=torch.cuda.current_stream().cuda_stream,
            tactic=tactic,
        )
        return y

    return run


def operands_of(
    rng: np.random.Generator, size: Size, *, batch: int = BATCH, dtype=torch.float16, **options
) -> Operands:
    named = scan_inputs(rng, (*size, 1), batch=batch, dtype=dtype, **options)
    return [named[t.name].cuda() for t in SPEC.inputs]


def reference(operands: Operands) -> torch.Tensor:
    return selective_scan_2d(*(t.double() for t in operands))


def assert_close(y: torch.Tensor, expected: torch.Tensor, told: object = "") -> None:
    """Each element by itself: a single wrong one in a large map is found."""
    sizes = expected.square().mean((2, 3), keepdim=True).sqrt()
    limit = LIMIT[y.dtype] * (expected.abs() + sizes.clamp(min=SMALL_CHANNEL * sizes.median()))
    excess = ((y.double() - expected).abs() / limit).nan_to_num(float("inf"))
    where = np.unravel_index(int(excess.argmax()), excess.shape)
    assert excess.max() < 1, f"{told}: {float(excess.max()):.3g} times the limit at {where}"


def chosen(plan: Plan, size: Size) -> list[int]:
    """The default, and of each kernel the first tactic, the last, and some between."""
    tactics = [0]
    for launches in plan(size).values():
        of = list(launches.values())
        tactics += [of[i] for i in {0, len(of) // 3, len(of) * 2 // 3, len(of) - 1}]
    return tactics


# --- Sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", KERNEL_SIZES, ids=str)
def test_the_default_and_both_kernels_agree_with_float64(
    size: Size, plan: Plan, run, launched: list[str], rng: np.random.Generator
):
    operands = operands_of(rng, size)
    expected = reference(operands)
    assert launched == []  # the reference is not the kernel
    assert_close(selective_scan_2d(*operands), expected)
    assert launched == [SPEC.name]
    for tactic in chosen(plan, size):
        assert_close(run(operands, tactic), expected, f"tactic {tactic}")


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize("size", TACTIC_SHAPES, ids=str)
def test_every_tactic_agrees_with_float64_and_with_itself(
    size: Size, dtype: torch.dtype, scan_launches: ScanLaunches, run, rng: np.random.Generator
):
    operands = operands_of(rng, size, dtype=dtype)
    expected = reference(operands)
    half = dtype == torch.float16
    count = scan_launches.count_tactics(ScanCall(BATCH, *size, half=half))
    assert count >= 80
    for tactic in range(count + 1):
        y = run(operands, tactic)
        assert_close(y, expected, f"tactic {tactic}")
        assert torch.equal(run(operands, tactic), y), f"tactic {tactic}"


def test_a_map_whose_sum_no_block_has_room_for_is_summed_in_y(run, rng: np.random.Generator):
    operands = operands_of(rng, (2, 250, 251), batch=1)
    # In FP16 each of four sums is rounded.
    assert relative_l2(run(operands), reference(operands)) < 2e-3


@pytest.mark.parametrize("regime", ["init", "mid", "hot"])
def test_every_regime_of_the_step_size_agrees_with_float64(regime, run, rng: np.random.Generator):
    for size in (FIRST_STAGE_LIKE, (48, 14, 14)):
        operands = operands_of(rng, size, regime=regime)
        assert_close(run(operands), reference(operands), size)


# --- Steps past softplus' overflow ---------------------------------------------------------------

OVERFLOWING = pytest.mark.parametrize(
    "size", [FIRST_STAGE_LIKE, (12, 28, 28), (48, 14, 14), (64, 7, 7), (3, 64, 70)], ids=str
)


@OVERFLOWING
def test_steps_that_are_all_far_past_softplus_overflow_agree_with_float64(
    size: Size, run, rng: np.random.Generator
):
    operands = operands_of(rng, size)
    # x is small, so that steps of hundreds leave y in FP16's range.
    operands[0] *= 0.01
    operands[1] *= 200
    assert operands[1].max() > 150
    expected = reference(operands)
    assert expected.abs().max() < 60000
    assert_close(run(operands), expected)


@OVERFLOWING
@pytest.mark.parametrize("direction", range(4))
def test_one_step_that_overflows_in_one_direction_of_the_last_channel_agrees_with_float64(
    size: Size, direction: int, plan: Plan, run, rng: np.random.Generator
):
    channels, height, width = size
    operands = operands_of(rng, size)
    operands[0] *= 0.01
    row, column = int(rng.integers(height)), int(rng.integers(width))
    operands[1][BATCH - 1, direction * channels + channels - 1, row, column] = 60000
    operands[1][0, direction * channels, row, column] = -60000
    expected = reference(operands)
    assert expected.abs().max() < 60000
    # The default, and blocks of as many channels as there are: then it comes in a later step.
    fewest = [min(of.items(), key=lambda item: item[0].blocks)[1] for of in plan(size).values()]
    for tactic in (0, *fewest):
        assert_close(run(operands, tactic), expected, f"tactic {tactic}")


@OVERFLOWING
def test_steps_around_the_overflow_agree_with_float64(size: Size, run, rng: np.random.Generator):
    operands = operands_of(rng, size)
    operands[0] *= 0.01
    # 2^z overflows from dt + dt_bias = 88.72 on; FP16's spacing here is 1/16.
    steps = torch.linspace(86, 91, operands[1].numel(), device="cuda")
    operands[1].copy_(steps[torch.randperm(steps.numel(), device="cuda")].view_as(operands[1]))
    operands[6].zero_()
    assert_close(run(operands), reference(operands))


@OVERFLOWING
def test_blocks_that_start_again_give_the_same_bits_in_every_run(
    size: Size, plan: Plan, run, rng: np.random.Generator
):
    # A race would show in some of many runs, while other work moves the warps' times about.
    operands = operands_of(rng, size)
    operands[0] *= 0.01
    operands[1] *= 200
    fewest = [min(of.items(), key=lambda item: item[0].blocks)[1] for of in plan(size).values()]
    busy = torch.randn(1024, 1024, device="cuda")
    other = torch.cuda.Stream()
    for tactic in (0, *fewest):
        first = run(operands, tactic)
        assert_close(first, reference(operands), f"tactic {tactic}")
        differing = torch.zeros((), dtype=torch.int64, device="cuda")
        for _ in range(300):
            with torch.cuda.stream(other):
                busy @ busy
            differing += (run(operands, tactic) != first).sum()
        assert differing == 0, f"tactic {tactic}"


# --- Addresses -----------------------------------------------------------------------------------


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, contiguous, from an odd element on."""
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device="cuda")
    return storage[1:].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("size", [FIRST_STAGE_LIKE, (24, 14, 14), (5, 31, 5)], ids=str)
@pytest.mark.parametrize("dtype", LIMIT, ids=str)
def test_tensors_that_begin_in_the_middle_of_an_allocation_are_taken(
    size: Size, dtype: torch.dtype, run, rng: np.random.Generator
):
    operands = operands_of(rng, size, dtype=dtype)
    expected = reference(operands)
    for which in range(len(operands)):
        some = [shifted(t) if i == which else t for i, t in enumerate(operands)]
        assert some[which].is_contiguous()
        assert_close(selective_scan_2d(*some), expected, SPEC.inputs[which].name)
    assert_close(run(operands, offset=1), expected, "y")
    assert_close(run([shifted(t) for t in operands], offset=1), expected, "all")


@pytest.mark.parametrize("offset", [1, 2, 4])
def test_no_tactic_needs_aligned_tensors(offset: int, plan: Plan, run, rng: np.random.Generator):
    size = TACTIC_SHAPES[0]
    operands = [shifted(t) for t in operands_of(rng, size)]
    expected = reference(operands)
    for tactic in chosen(plan, size):
        assert_close(run(operands, tactic, offset=offset), expected, f"tactic {tactic}")


# --- What is not finite --------------------------------------------------------------------------


def spoilt(operands: Operands, value: float, *, image: int, channel: int) -> Operands:
    """A value in x in the middle of one channel of one image."""
    x = operands[0].clone()
    x[image, channel, x.shape[2] // 2, x.shape[3] // 2] = value
    return [x, *operands[1:]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("size", [FIRST_STAGE_LIKE, (96, 14, 14)], ids=str)
def test_what_is_not_finite_stays_in_its_image_and_fills_its_channel(
    size: Size,
    value: float,
    plan: Plan,
    run,
    rng: np.random.Generator,
):
    operands = operands_of(rng, size)
    bad = spoilt(operands, value, image=1, channel=3)
    for tactic in chosen(plan, size):
        y, clean = run(bad, tactic), run(operands, tactic)
        assert torch.equal(y[[0, 2]], clean[[0, 2]]), f"tactic {tactic}"
        # A position is before or after any other in one of two directions.
        assert not y[1, 3].isfinite().any(), f"tactic {tactic}"


@pytest.mark.xfail(
    strict=True,
    reason="known issue (README): a decay of 0 cuts channels of a block apart, and 0 times what is"
    " not finite is NaN",
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("kernel", ["staged", "banded"])
def test_what_is_not_finite_leaves_the_bits_of_all_other_channels(
    kernel: str,
    value: float,
    plan: Plan,
    run,
    rng: np.random.Generator,
):
    size = (96, 14, 14)
    # Several channels to a block.
    tactic = next(t for x, t in plan(size)[kernel].items() if 8 * x.blocks <= BATCH * size[0])
    operands = operands_of(rng, size)
    y, clean = run(spoilt(operands, value, image=1, channel=3), tactic), run(operands, tactic)
    others = [c for c in range(size[0]) if c != 3]
    assert torch.equal(y[1, others], clean[1, others])


# --- CUDA graphs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
def test_a_cuda_graph_of_a_loop_of_calls_replays_on_new_inputs(
    dtype: torch.dtype, launched: list[str], rng: np.random.Generator
):
    sizes = (FIRST_STAGE_LIKE, (24, 14, 14), (5, 31, 5))
    held = [operands_of(rng, size, dtype=dtype) for size in sizes]

    def loop(groups: list[Operands]) -> list[torch.Tensor]:
        """Each call twice, the second one on the result of the first."""
        results = []
        for x, *others in groups:
            y = selective_scan_2d(x, *others)
            results += [y, selective_scan_2d(y * 0.1, *others)]
        return results

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        loop(held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = loop(held)
    calls = len(launched)
    for _ in range(3):
        fresh = [operands_of(rng, size, dtype=dtype) for size in sizes]
        for held_group, fresh_group in zip(held, fresh, strict=True):
            for held_tensor, fresh_tensor in zip(held_group, fresh_group, strict=True):
                held_tensor.copy_(fresh_tensor)
        for y in recorded:
            y.fill_(float("nan"))
        graph.replay()
        assert len(launched) == calls  # the graph launches, not the operator
        for y, expected in zip(recorded, loop(fresh), strict=True):
            assert torch.equal(y, expected)
        calls = len(launched)
