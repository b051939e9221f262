# SPDX-License-Identifier: Apache-2.0
"""What the scan would launch, for many sizes, on GPUs that nobody has here; no GPU is needed.

What can go wrong: a block asks for more threads or shared memory than the kernel or the GPU takes,
so that a launch fails that no test on the one GPU at hand makes; a tactic that does not fit some
sizes is launched all the same; a default needs more shared memory than every GPU gives.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.operator_bench.scan_launches import Facts, ScanCall, ScanLaunch, ScanLaunches
from tests.helpers.scans import KERNEL_SIZES

T4, ORIN, H100 = Facts(40, 64 * 1024), Facts(16, 163 * 1024), Facts(132, 227 * 1024)
EVERY_GPU = 48 * 1024
"""Shared memory that a block gets on every GPU without asking for more."""
INVALID_VALUE = 1
MOST_ELEMENTS = 2**31 - 1

# Of both kernels: the threads of their launch bounds, and their static shared memory.
MOST_THREADS = {"staged": 448, "banded": 512}
STATIC_BYTES = {"staged": 0, "banded": 512}

SAMPLES = 20_000

DEVICES = pytest.mark.parametrize("facts", [T4, ORIN, H100], ids=["t4", "orin", "h100"])


def random_calls(rng: np.random.Generator, count: int) -> list[ScanCall]:
    """Calls of the default tactic, a quarter of them from an address that loads must mind."""
    return [
        ScanCall(
            batch=int(rng.integers(1, 65)),
            channels=int(rng.integers(1, 801)),
            height=int(rng.integers(1, 131)),
            width=int(rng.integers(1, 131)),
            state=int(rng.choice([1, 1, 2, 16])),
            half=bool(rng.random() < 0.7),
            offset=int(rng.choice([0, 0, 0, 4])),
        )
        for _ in range(count)
    ]


def check(call: ScanCall, launch: ScanLaunch | int, facts: Facts) -> None:
    """A launch is one that the kernel and the GPU take."""
    if 4 * call.batch * call.channels * call.height * call.width > MOST_ELEMENTS:
        assert launch == INVALID_VALUE, call
        return
    assert isinstance(launch, ScanLaunch), (call, launch)
    told = f"{call} on {facts}: {launch}"
    assert launch.variant.startswith(f"{launch.kernel}Scan<"), told
    assert 32 <= launch.threads <= MOST_THREADS[launch.kernel], told
    assert launch.threads % 64 == 0, told  # two groups of whole warps
    # Blocks share images evenly, and none is without a channel.
    blocks_an_image, rest = divmod(launch.blocks, call.batch)
    assert rest == 0, told
    assert 1 <= blocks_an_image <= call.channels, told
    assert launch.shared_bytes >= 0, told
    assert STATIC_BYTES[launch.kernel] + launch.shared_bytes <= facts.shared_bytes, told
    if launch.kernel == "staged":
        assert call.half, told
        assert call.state == 1, told
        assert call.offset == 0, told


@DEVICES
def test_default_launches_are_ones_that_the_gpu_takes(
    scan_launches: ScanLaunches, facts: Facts, rng: np.random.Generator
):
    calls = random_calls(rng, SAMPLES)
    for call, launch in zip(calls, scan_launches(calls, facts), strict=True):
        check(call, launch, facts)


@DEVICES
def test_every_tactic_launches_what_the_gpu_takes_whatever_the_sizes(
    scan_launches: ScanLaunches, facts: Facts, rng: np.random.Generator
):
    count = {
        both: scan_launches.count_tactics(ScanCall(1, 1, 1, 1, state=both[0], half=both[1]))
        for both in ((1, True), (1, False), (2, True), (2, False), (16, True), (16, False))
    }
    assert count[1, True] > count[1, False] == count[2, True] > 0
    calls = [
        dataclasses.replace(call, tactic=int(rng.integers(1, count[call.state, call.half] + 1)))
        for call in random_calls(rng, SAMPLES)
    ]
    found = scan_launches(calls, facts)
    for call, launch in zip(calls, found, strict=True):
        check(call, launch, facts)
    kernels = [launch.kernel for launch in found if isinstance(launch, ScanLaunch)]
    assert {"staged", "banded"} <= set(kernels)


@pytest.mark.parametrize("facts", [T4, ORIN], ids=["t4", "orin"])
def test_by_default_a_block_takes_no_more_shared_memory_than_every_gpu_gives(
    scan_launches: ScanLaunches, facts: Facts, rng: np.random.Generator
):
    calls = random_calls(rng, SAMPLES)
    for call, launch in zip(calls, scan_launches(calls, facts), strict=True):
        if isinstance(launch, int):
            continue  # too many elements
        # A block has one channel at least, whose sum in FP32 a large map makes larger than that.
        one_channel = launch.blocks == call.batch * call.channels
        if launch.kernel == "banded" and one_channel and call.height * call.width > 8192:
            continue
        total = STATIC_BYTES[launch.kernel] + launch.shared_bytes
        assert total <= EVERY_GPU, f"{call}: {launch}"


@pytest.mark.parametrize("half", [True, False])
def test_of_maps_as_large_as_there_are_no_tactic_counts_past_31_bits(
    scan_launches: ScanLaunches, half: bool
):
    shapes = [(1, 1, 2**29 - 1), (1, 1024, 2**19 - 1), (2, 1792, 2**17), (3, 37, 2**22 - 1)]
    count = scan_launches.count_tactics(ScanCall(1, *shapes[0], half=half))
    calls = [ScanCall(1, *s, half=half, tactic=t) for s in shapes for t in range(count + 1)]
    for call, launch in zip(calls, scan_launches(calls, H100), strict=True):
        check(call, launch, H100)
        assert isinstance(launch, ScanLaunch)
        # The sum is in y itself: no block has room for it.
        assert launch.variant.endswith(", false>>"), (call, launch)


def test_the_sizes_of_the_tests_on_a_gpu_reach_every_variant_for_fp16(scan_launches: ScanLaunches):
    count = scan_launches.count_tactics(ScanCall(1, 1, 1, 1))
    calls = [
        ScanCall(3, *size, offset=offset, tactic=tactic)
        for size in (*KERNEL_SIZES, (2, 250, 251))
        for offset in (0, 2)
        for tactic in range(count + 1)
    ]
    ran = {x.variant for x in scan_launches(calls, H100) if isinstance(x, ScanLaunch)}
    assert ran == {
        variant
        for variant in scan_launches.variants
        if variant.startswith(("stagedScan<", "bandedScan<Cut<__half, true,"))
        or variant == "bandedScan<Cut<__half, false, 1, 8, 8, 1, false, false>>"
    }


def test_vmambas_smaller_maps_run_on_the_staged_kernel_everywhere(scan_launches: ScanLaunches):
    calls = [ScanCall(b, *shape) for b in (1, 16) for shape in ((384, 14, 14), (768, 7, 7))]
    for facts in (T4, ORIN, H100):
        assert {launch.kernel for launch in scan_launches(calls, facts)} == {"staged"}


@pytest.mark.parametrize(
    "changed",
    [{"height": 1793}, {"state": 17}, {"state": 0}, {"batch": 0}, {"width": 0}, {"channels": 0}],
    ids=str,
)
def test_sizes_that_no_kernel_takes_are_refused(
    scan_launches: ScanLaunches, changed: dict[str, int]
):
    call = dataclasses.replace(ScanCall(2, 24, 28, 28), **changed)
    assert scan_launches([call], H100) == [INVALID_VALUE]
    assert scan_launches.count_tactics(call) == 0


def test_tactics_are_those_that_are_counted(scan_launches: ScanLaunches):
    for half in (True, False):
        call = ScanCall(2, 24, 28, 28, half=half)
        count = scan_launches.count_tactics(call)
        calls = [dataclasses.replace(call, tactic=t) for t in (-1, 0, 1, count, count + 1)]
        answers = [isinstance(answer, ScanLaunch) for answer in scan_launches(calls, H100)]
        assert answers == [False, True, True, True, False]
