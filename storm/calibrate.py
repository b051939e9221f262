# SPDX-License-Identifier: Apache-2.0
"""A plan whose lines are the same for every image, chosen from calibration images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from stormrt.errors import InputError
from stormrt.storm.lines import LineSelector
from stormrt.storm.plan import Reduction, StormPlan
from stormrt.storm.vmamba import VMamba

_BATCH = 32
"""Images a call, where they come in one tensor."""


def calibrate_selection(
    model: VMamba, plan: StormPlan, images: Tensor | Sequence[Tensor]
) -> StormPlan:
    """Fix each reduction to the lines that are kept most often.

    In every stratum the line that the fewest images keep leaves (or that the most keep stays), so
    that the local constraint holds; of equals the first is taken. Reductions are fixed in the
    network's order, each with those before it fixed already, as it will meet them.

    Args:
        model: The model, in evaluation mode; its own plan does not matter.
        plan: What to fix; it must fit the images (``plan.check_plan``). Lines that it fixes
            already stay.
        images: [n, 3, H, W], or batches of them.

    Returns:
        The same plan with ``rows`` and ``cols``. A graph exported with it has no scores.

    Raises:
        InputError: There are no images, or windows choose, whose choice cannot be fixed.
    """
    batches = list(images.split(_BATCH)) if isinstance(images, Tensor) else list(images)
    if not sum(len(batch) for batch in batches):
        raise InputError("there are no images to choose lines by")
    if any(r.unit != "line" for r in plan.reductions):
        raise InputError(
            "only lines can be fixed",
            got=plan.describe(),
            expected="reductions of unit line",
            fix="leave windows to choose for each image",
        )
    fixed = sorted(plan.reductions, key=lambda r: (r.stage, r.block))
    for index, reduction in enumerate(fixed):
        if reduction.rows is not None:
            continue
        reduced = model.with_plan(StormPlan(tuple(fixed[: index + 1])))
        rows, cols = _most_kept(reduced, reduction, batches)
        fixed[index] = dataclasses.replace(reduction, rows=rows, cols=cols)
    return StormPlan(tuple(fixed))


def _most_kept(
    model: VMamba, reduction: Reduction, batches: Sequence[Tensor]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows and columns that a reduction of a model keeps most often."""
    by_row: list[Tensor] = []
    by_col: list[Tensor] = []
    with torch.inference_mode():
        for batch in batches:
            for kept in model.kept_tokens(batch):
                if kept.reduction == reduction:
                    by_row.append(_times_kept(kept.rows[:, :, 0], kept.height))
                    by_col.append(_times_kept(kept.cols[:, 0], kept.width))
    if not by_row:  # it keeps every line
        return tuple(range(reduction.height)), tuple(range(reduction.width))
    return _choose(by_row, reduction.height), _choose(by_col, reduction.width)


def _times_kept(kept: Tensor, lines: int) -> Tensor:
    """Kept lines [B, keep] -> how many images keep each line, [lines], on the CPU."""
    return torch.bincount(kept.flatten().cpu(), minlength=lines)


def _choose(counts: Sequence[Tensor], keep: int) -> tuple[int, ...]:
    """Counts of batches -> the lines of the largest sums, stratum by stratum."""
    total = torch.stack(list(counts)).sum(0)
    kept: list[int] = LineSelector(len(total), keep)(total[None].float())[0].tolist()
    return tuple(kept)
