# SPDX-License-Identifier: Apache-2.0
"""Calls of the library's kernels for compute-sanitizer: small maps, every kernel, both types.

    compute-sanitizer --tool racecheck python -m benchmarks.sanitized_calls

Prints each call before it is made, so that what the tool says can be told apart. Needs a GPU and
STORMRT_PLUGIN_LIB. Results are compared elsewhere (``benchmarks/plugins.py``).
"""

from __future__ import annotations

import itertools

import torch

from benchmarks.operator_bench.gather import came_from, kept_lines
from benchmarks.operator_bench.operands import Shape, launch, scan_inputs
from stormrt.plugins.spatial_unit_gather.torch_op import spatial_unit_gather
from stormrt.plugins.spatial_unit_scatter.torch_op import spatial_unit_scatter

SCANS: tuple[Shape, ...] = (
    (1, 33, 14, 14), (2, 33, 7, 7), (1, 9, 56, 56), (1, 5, 28, 28),
    (1, 4, 31, 5), (1, 3, 56, 40), (1, 3, 33, 8), (1, 2, 1, 1),
)  # fmt: skip
BANDED = (0, 33)
"""The default, and a tactic of the general kernel."""
STAGED = (83, 100, 112)
"""Tactics of the kernel for FP16 and N = 1: blocks of one and of several steps."""
STEEP = 200
"""A factor of dt that makes the staged kernel start again with its form for any step."""
MOVES = (
    ((2, 5, 14, 14), (12, 12)), ((1, 3, 31, 5), (7, 3)),
    ((2, 8, 56, 56), (48, 48)), ((3, 2, 9, 16), (8, 8)),
)  # fmt: skip


def begin(call: str) -> None:
    """Name the call that comes next, to which what the tool says until the next name belongs."""
    torch.cuda.synchronize()
    print(call, flush=True)


def scans(generator: torch.Generator) -> int:
    """Launch every scan; returns how many there were."""
    count = 0
    for shape, state, dtype in itertools.product(SCANS, (1, 2), (torch.float16, torch.float32)):
        staged = STAGED if state == 1 and dtype == torch.float16 else ()
        for tactic, steep in itertools.product((*BANDED, *staged), (1, STEEP)):
            tensors = scan_inputs(*shape, state, "mid", dtype, generator)
            tensors[1] = tensors[1] * steep
            begin(f"scan {shape}, N {state}, {dtype}, tactic {tactic}, dt x {steep}")
            launch(tensors, torch.empty_like(tensors[0]), tactic)
            count += 1
    torch.cuda.synchronize()
    return count


def moves(generator: torch.Generator) -> int:
    """Gather and scatter; returns how many calls there were."""
    count = 0
    for dtype, (shape, kept) in itertools.product((torch.float16, torch.float32), MOVES):
        x = torch.randn(shape, device="cuda", generator=generator).to(dtype)
        rows, cols = (kept_lines(shape[0], shape[2 + a], kept[a], generator) for a in (0, 1))
        begin(f"gather and scatter {shape} to {kept}, {dtype}")
        y = spatial_unit_gather(x, rows, cols)
        spatial_unit_scatter(y, came_from(rows, shape[2]), came_from(cols, shape[3]))
        count += 2
    torch.cuda.synchronize()
    return count


if __name__ == "__main__":
    random = torch.Generator("cuda").manual_seed(0)
    print(f"{scans(random)} scans, {moves(random)} moves")
