# SPDX-License-Identifier: Apache-2.0
"""The scan alone on a smaller map, restored to the nearest lines; all else on the full map.

Our reading of Chi et al., "QuarterMap" (arXiv 2507.09514), of which the abstract was at hand: it
drops redundant positions before the four-way scan and restores the size after it by
nearest-neighbour upsampling. What is fed to the scan alone (projections of B, C and the step size)
is computed on the smaller map, too.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.storm_baselines.resample import even_lines
from benchmarks.storm_baselines.segments import Where
from stormrt.storm.flops import block_parts, count_flops
from stormrt.storm.layers import SS2D, LayerNorm2d
from stormrt.storm.plan import StormPlan, stage_grids
from stormrt.storm.variants import Variant
from stormrt.storm.vmamba import Stage, VMamba

_CHEAPER = ("x_proj", "dt_proj", "scan")
"""Parts of a block that run on the smaller map."""


class TakeLines(nn.Module):
    """Rows and columns of every image, some of them more than once."""

    def __init__(self, rows: Tensor, cols: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("cols", cols)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, rows, cols]."""
        by_row = x.index_select(2, self.get_buffer("rows"))
        return by_row.index_select(3, self.get_buffer("cols"))


def _sizes(
    variant: Variant, where: Where, height: int, width: int, image: tuple[int, int]
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Full and smaller map of each stage: the same share of the lines as in the first one."""
    grids = stage_grids(variant, *image)
    first = grids[where[0]]
    return [
        (
            grid,
            (
                max(1, round(grid[0] * height / first[0])),
                max(1, round(grid[1] * width / first[1])),
            ),
        )
        for grid in grids
    ]


def _nearest(lines: int, kept: Tensor) -> Tensor:
    """For each line the index of the nearest kept one, the earlier of two."""
    distance = (torch.arange(lines, device=kept.device)[:, None] - kept[None]).abs()
    return distance.argmin(1)


def apply(
    model: VMamba,
    where: Where,
    height: int,
    width: int,
    *,
    image: tuple[int, int] | None = None,
) -> VMamba:
    """Scan on smaller maps from a block on.

    Args:
        model: Dense.
        where: The first stage and block that it holds for.
        height: Rows that the scan sees in that stage; later stages keep the same share.
        width: Columns, likewise.
        image: Height and width of the images, in pixels; those the model was trained for, if not
            given.

    Returns:
        A model over the same weights.
    """
    side = model.variant.image
    sizes = _sizes(model.variant, where, height, width, image or (side, side))
    device = next(model.parameters()).device
    smaller = model.with_plan(StormPlan())  # a copy of the modules, not of the weights
    for index, stage in enumerate(smaller.layers):
        full, part = sizes[index]
        kept = [even_lines(n, k, device) for n, k in zip(full, part, strict=True)]
        back = [_nearest(n, k) for n, k in zip(full, kept, strict=True)]
        for number, block in enumerate(cast("Stage", stage).blocks):
            if (index, number) >= where:
                op = cast("SS2D", block.op)
                # The activation after the convolution works element by element: lines may be
                # taken before it.
                op.conv2d = cast("nn.Conv2d", nn.Sequential(op.conv2d, TakeLines(*kept)))
                op.out_norm = cast("LayerNorm2d", nn.Sequential(TakeLines(*back), op.out_norm))
    return smaller


def flops(
    variant: Variant, where: Where, height: int, width: int, image: tuple[int, int] | None = None
) -> int:
    """FLOPs of what ``apply`` returns."""
    image = image or (variant.image, variant.image)
    total = count_flops(variant, *image).total
    for stage, (full, part) in enumerate(_sizes(variant, where, height, width, image)):
        saved = [
            before - after
            for (name, before), (_, after) in zip(
                block_parts(variant, stage, full), block_parts(variant, stage, part), strict=True
            )
            if name in _CHEAPER
        ]
        blocks = sum((stage, number) >= where for number in range(variant.depths[stage]))
        total -= blocks * sum(saved)
    return total
