# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a model under a plan, by stage, block and part, counted from the sizes alone.

The convention is the one by which VMamba's authors state theirs: fvcore's counts, with a formula of
their own for the scan (``classification/models/csms6s.py`` of github.com/MzeroMiko/VMamba). One
multiply-accumulate is one FLOP; a layer normalisation with weights is 5 per element; a selective
scan is 9 N + 1 per channel, direction and position; the average before the head is 1 per element.
Biases, activations, residual sums and products with a gate are nothing. ``Flops.uncounted`` has
what STORM itself does, which this convention counts as nothing, too. Needs no PyTorch.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from stormrt.errors import InputError
from stormrt.plugins.selective_scan_2d import NUM_DIRECTIONS
from stormrt.storm.hosts import get_host
from stormrt.storm.plan import Reduction, StormPlan
from stormrt.storm.variants import Variant

Grid = tuple[int, int]

OUTSIDE = -1
"""The block of what is in no block, and the stage of what comes before the stages."""

_NORM = 5
"""Per element of a layer normalisation with weight and bias (fvcore's ``norm_flop_counter``)."""
_SCAN_STATE, _SCAN_SKIP = 9, 1
"""Per channel and position of a scan: for each state component, and once for D x (upstream)."""
_SHRINKS = 8
"""The last stage's map has an eighth of the sides of the first one's."""
_SCORED: dict[str, int] = {"uniform": 0, "random": 0, "dissimilarity": 3}
"""Operations of a host's score for each element of the map; 1 if it is not named here. Hosts that
read the block before instead: see ``_reduction_items``."""


@dataclass(frozen=True, slots=True)
class Item:
    """FLOPs of one part of the network, for one image."""

    stage: int
    """-1: before the stages; the number of stages: after them."""
    block: int
    """-1: in no block."""
    part: str
    flops: int


@dataclass(frozen=True, slots=True)
class Flops:
    """What one image costs."""

    items: tuple[Item, ...]
    uncounted: tuple[Item, ...]
    """Elementwise operations and copies of STORM. No part of ``total``."""

    @property
    def total(self) -> int:
        """All that the convention counts."""
        return sum(item.flops for item in self.items)

    def by_part(self) -> dict[str, int]:
        """Sums by part, over the whole network."""
        sums: Counter[str] = Counter()
        for item in self.items:
            sums[item.part] += item.flops
        return dict(sums)

    def by_block(self) -> dict[tuple[int, int], int]:
        """Sums by stage and block; block -1 is what is in none."""
        sums: Counter[tuple[int, int]] = Counter()
        for item in self.items:
            sums[item.stage, item.block] += item.flops
        return dict(sums)

    def by_stage(self) -> dict[int, int]:
        """Sums by stage; -1 is what comes before the stages, their number what comes after."""
        sums: Counter[int] = Counter()
        for (stage, _), flops in self.by_block().items():
            sums[stage] += flops
        return dict(sums)


def count_flops(
    variant: Variant,
    height: int,
    width: int,
    plan: StormPlan | None = None,
    *,
    num_classes: int | None = None,
) -> Flops:
    """Count the FLOPs of one image.

    Args:
        variant: The model.
        height: Image height in pixels.
        width: Image width in pixels.
        plan: What STORM does; it must fit (``plan.check_plan``). None: the dense model.
        num_classes: Outputs of the head; as many as the published weights have, if not given.

    Returns:
        The count by parts.

    Raises:
        InputError: The image is too small for four stages.
    """
    classes = variant.num_classes if num_classes is None else num_classes
    items = list(_patch_embed(variant, height, width))
    uncounted: list[Item] = []
    grid = first_grid(variant, height, width)
    last = len(variant.depths) - 1
    ahead = {(r.stage, r.block): r for r in plan.reductions} if plan else {}
    for stage, depth in enumerate(variant.depths):
        before: Grid | None = None  # the map to which the end of the stage restores
        for block in range(depth):
            reduction = ahead.get((stage, block))
            if reduction is not None:
                uncounted += _reduction_items(variant, reduction, grid)
                if reduction.restore == "stage":
                    before = before or grid
                grid = (reduction.height, reduction.width)
            items += [Item(stage, block, *part) for part in block_parts(variant, stage, grid)]
        if before is not None:
            uncounted.append(_copied(variant, stage, before))
            grid = before
        if stage < last:
            grid = _halved(grid)
            items.append(Item(stage, OUTSIDE, "downsample", _downsample(variant, stage, grid)))
    if any(r.restore == "end" for r in ahead.values()):
        grid = _without_ends(variant, height, width, plan)
        uncounted.append(_copied(variant, last, grid))
    final = variant.dims[-1] * grid[0] * grid[1]
    head = (_NORM + 1) * final + variant.dims[-1] * classes
    items.append(Item(last + 1, OUTSIDE, "head", head))
    return Flops(tuple(items), tuple(uncounted))


def flops_share(variant: Variant, height: int, width: int, plan: StormPlan) -> float:
    """FLOPs under a plan over those of the dense model."""
    dense = count_flops(variant, height, width).total
    return count_flops(variant, height, width, plan).total / dense


def first_grid(variant: Variant, height: int, width: int) -> Grid:
    """The map of stage 0.

    Unlike ``plan.stage_grids`` this takes any image that leaves the last stage a whole token: 16
    pixels a side with patches of 2.

    Raises:
        InputError: The image is smaller.
    """
    smallest = _SHRINKS * variant.patch
    if min(height, width) < smallest:
        raise InputError(
            "the image is too small for four stages",
            got=f"{height}x{width} pixels",
            expected=f"{smallest} pixels or more on each side of {variant.name}",
        )
    if not variant.overlapping:
        return height // variant.patch, width // variant.patch
    grid = _stem_grid(variant, height, width)
    return _halved(grid)


def _halved(grid: Grid) -> Grid:
    return ceil(grid[0] / 2), ceil(grid[1] / 2)


def _without_ends(variant: Variant, height: int, width: int, plan: StormPlan | None) -> Grid:
    """The last map at the size that ``restore: end`` gives it."""
    grid = first_grid(variant, height, width)
    for stage in range(len(variant.depths)):
        grid = grid if stage == 0 else _halved(grid)
        for reduction in plan.reductions if plan else ():
            if reduction.stage == stage and reduction.restore == "no":
                grid = (reduction.height, reduction.width)
    return grid


def _copied(variant: Variant, stage: int, grid: Grid) -> Item:
    return Item(stage, OUTSIDE, "restore", variant.dims[stage] * grid[0] * grid[1])


def _stem_grid(variant: Variant, height: int, width: int) -> Grid:
    """After the first convolution of the patch embedding, whose stride is half a patch."""
    stride = variant.patch // 2
    return ceil(height / stride), ceil(width / stride)


def _patch_embed(variant: Variant, height: int, width: int) -> list[Item]:
    channels = variant.dims[0]
    rows, cols = first_grid(variant, height, width)
    flops = _NORM * rows * cols * channels
    if variant.overlapping:
        stem = _stem_grid(variant, height, width)
        half = channels // 2
        flops += stem[0] * stem[1] * half * (9 * 3 + _NORM) + rows * cols * channels * 9 * half
    else:
        flops += rows * cols * channels * 3 * variant.patch**2
    return [Item(OUTSIDE, OUTSIDE, "patch_embed", flops)]


@lru_cache(maxsize=4096)  # a planner asks for the same few sizes thousands of times
def block_parts(variant: Variant, stage: int, grid: Grid) -> tuple[tuple[str, int], ...]:
    """FLOPs of one block by part, on a map of a size.

    Args:
        variant: The model.
        stage: Which stage's blocks.
        grid: H, W.

    Returns:
        Part and FLOPs, in the order in which the block computes them.
    """
    positions = grid[0] * grid[1]
    d, inner = variant.dims[stage], variant.inner(stage)
    n, r, k = variant.state, variant.dt_rank(stage), NUM_DIRECTIONS
    norms = d + inner + (d if variant.mlp_ratio else 0)
    each = {
        "norms": _NORM * norms,
        "in_proj": d * inner * (2 if variant.gated else 1),
        "dwconv": 9 * inner,
        "x_proj": inner * k * (r + 2 * n),
        "dt_proj": k * inner * r,
        "scan": k * inner * (_SCAN_STATE * n + _SCAN_SKIP),
        "out_proj": inner * d,
        "mlp": 2 * d * variant.mlp_ratio * d,
    }
    return tuple((part, positions * flops) for part, flops in each.items())


def _downsample(variant: Variant, stage: int, to: Grid) -> int:
    d, positions = variant.dims[stage], to[0] * to[1]
    if variant.overlapping:
        return positions * (9 * d * 2 * d + _NORM * 2 * d)
    return positions * (4 * d * 2 * d + _NORM * 4 * d)  # 2x2 neighbours, normalised, projected


def _reduction_items(variant: Variant, reduction: Reduction, grid: Grid) -> list[Item]:
    positions, channels = grid[0] * grid[1], variant.dims[reduction.stage]
    if reduction.rows is not None:
        each = 0  # the lines are known
    elif (needs := get_host(reduction.host).needs) is not None:
        directions = NUM_DIRECTIONS if needs == "step_size" else 1
        each = directions * variant.inner(reduction.stage)
    else:
        each = _SCORED.get(reduction.host, 1) * channels
    moved = positions if reduction.mode == "merge" else reduction.height * reduction.width
    work = {"score": positions * each, "lines": 2 * positions, "gather": moved * channels}
    return [Item(reduction.stage, reduction.block, part, flops) for part, flops in work.items()]
