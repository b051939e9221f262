# SPDX-License-Identifier: Apache-2.0
"""The scan's kernel against FP64: every combination of sizes, and every tactic of some."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from typing import Any

import torch

from benchmarks.operator_bench.operands import (
    LIMITS,
    REGIMES,
    count_tactics,
    launch,
    relative_l2,
    scan_inputs,
)
from benchmarks.operator_bench.timing import capture
from stormrt.errors import InputError
from stormrt.plugins.selective_scan_2d.torch_op import selective_scan_2d

SIZES = ((7, 7), (14, 14), (28, 28), (56, 56), (128, 128), (1, 1), (1, 37), (31, 5), (56, 40),
         (10, 12))  # fmt: skip
CHANNELS = (8, 96, 100, 768)
BATCHES = (1, 3, 16)
STATES = (1, 2, 16)
TACTIC_SHAPES = (
    (2, 96, 56, 56), (2, 192, 28, 28), (2, 100, 14, 14), (2, 768, 7, 7), (1, 8, 128, 128),
    (3, 24, 31, 5), (2, 96, 48, 48), (1, 10, 10, 12), (2, 8, 1, 37), (1, 4, 200, 200),
)  # fmt: skip
"""B, D, H, W: the stages, sizes that no vector fits, and a map larger than shared memory."""
SHOWN = 20


def check(seconds: float, seed: int) -> dict[str, Any]:
    """Compare every combination with FP64, as long as there is time.

    Outputs are poisoned with NaN first; a second call must give the same bits, a permuted batch
    the permuted bits, and a graph's replay the same as both.
    """
    generator = torch.Generator("cuda").manual_seed(seed)
    combinations = list(itertools.product(STATES, SIZES, CHANNELS, BATCHES, REGIMES, LIMITS))
    # Small ones first, so that what time allows covers the most.
    combinations.sort(key=lambda c: c[0] * c[1][0] * c[1][1] * c[2] * c[3])
    worst = {str(dtype): 0.0 for dtype in LIMITS}
    failures: list[str] = []
    start, done = time.perf_counter(), 0
    for state, (height, width), channels, batch, regime, dtype in combinations:
        if time.perf_counter() - start > seconds:
            break
        name = f"N={state} {height}x{width} D={channels} B={batch} {regime} {dtype}"
        tensors = scan_inputs(batch, channels, height, width, state, regime, dtype, generator)
        # In FP64 the operator is PyTorch's own arithmetic, which tests hold to a sequential loop.
        reference = selective_scan_2d(*(t.double() for t in tensors))
        outputs = [torch.full_like(tensors[0], float("nan")) for _ in range(4)]
        launch(tensors, outputs[0])
        launch(tensors, outputs[1])
        error = relative_l2(outputs[0], reference)
        worst[str(dtype)] = max(worst[str(dtype)], error)
        if not error < LIMITS[dtype]:
            failures.append(f"{name}: relative L2 {error:.2e}")
        if not torch.equal(outputs[0], outputs[1]):
            failures.append(f"{name}: a second call differs")
        order = torch.randperm(batch, generator=generator, device="cuda")
        permuted = [*(t[order].contiguous() for t in tensors[:4]), *tensors[4:]]
        launch(permuted, outputs[2])
        if not torch.equal(outputs[2], outputs[0][order]):
            failures.append(f"{name}: a permuted batch differs")
        graph = capture(lambda t=tensors, y=outputs[3]: launch(t, y))
        outputs[3].fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        if not torch.equal(outputs[3], outputs[0]):
            failures.append(f"{name}: a graph's replay differs")
        done += 1
    print(f"check: {done} of {len(combinations)} combinations, {len(failures)} failures, {worst}")
    for failure in failures[:SHOWN]:
        print("  ", failure)
    return {
        "seed": seed,
        "combinations": len(combinations),
        "checked": done,
        "failures": failures,
        "worst_relative_l2": worst,
    }


def check_tactics(seed: int) -> dict[str, Any]:
    """Run every tactic of some shapes, for both types and one or several states, against FP64.

    A tactic may refuse a shape that it cannot run, with a message and without a launch: those are
    counted. One that runs must be right, on an output poisoned with NaN, and twice with the same
    bits. Tactic 0, the default, may refuse nothing.
    """
    generator = torch.Generator("cuda").manual_seed(seed)
    counts: Counter[str] = Counter()
    failures: list[str] = []
    worst = {str(dtype): 0.0 for dtype in LIMITS}
    refusals: Counter[str] = Counter()
    for shape, state, dtype in itertools.product(TACTIC_SHAPES, (1, 3), LIMITS):
        tensors = scan_inputs(*shape, state, "mid", dtype, generator)
        reference = selective_scan_2d(*(t.double() for t in tensors))
        outputs = [torch.empty_like(tensors[0]) for _ in range(2)]
        for tactic in range(count_tactics(tensors, outputs[0]) + 1):
            name = f"{shape} N={state} {dtype} tactic {tactic}"
            for y in outputs:
                y.fill_(float("nan"))
            try:
                for y in outputs:
                    launch(tensors, y, tactic)
                torch.cuda.synchronize()
            except InputError as error:
                counts["refused"] += 1
                refusals[str(error).splitlines()[0]] += 1
                if tactic == 0:
                    failures.append(f"{name}: {error}")
                continue
            counts["ran"] += 1
            error_l2 = relative_l2(outputs[0], reference)
            worst[str(dtype)] = max(worst[str(dtype)], error_l2)
            if not error_l2 < LIMITS[dtype]:
                failures.append(f"{name}: relative L2 {error_l2:.2e}")
            if not torch.equal(*outputs):
                failures.append(f"{name}: a second call differs")
    print(f"tactics: {dict(counts)}, {len(failures)} failures, {worst}, refusals {dict(refusals)}")
    for failure in failures[:SHOWN]:
        print("  ", failure)
    return {
        "seed": seed,
        "shapes": [list(shape) for shape in TACTIC_SHAPES],
        "ran": counts["ran"],
        "refused": counts["refused"],
        "failures": failures,
        "worst_relative_l2": worst,
    }
