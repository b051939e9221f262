# SPDX-License-Identifier: Apache-2.0
"""Plans of one policy from the dense model down, one line less at a time. Needs no PyTorch."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from functools import cached_property

from stormrt.errors import InputError
from stormrt.storm.flops import count_flops
from stormrt.storm.plan import Reduction, StormPlan, stage_grids
from stormrt.storm.policies import Policy, Preference
from stormrt.storm.variants import Variant


class Ladder:
    """Plans of one policy from the dense model down, one line less at a time.

    All steps keep the same share of the lines, to the power of their stage's weight. Plans are
    ordered by FLOPs: no rung costs more than the one before.

    Args:
        variant: The model.
        height: Image height in pixels.
        width: Image width in pixels.
        policy: Where and how lines leave.
        steps: How many reductions, over the depth.

    Raises:
        InputError: More steps than there are blocks for them, or none.
    """

    def __init__(
        self, variant: Variant, height: int, width: int, policy: Policy, steps: int = 1
    ) -> None:
        self.variant, self.size, self.policy = variant, (height, width), policy
        self.places = _places(variant, height, width, policy, steps)
        grids = stage_grids(variant, height, width)
        full = [grids[stage] for stage, _ in self.places]
        exponents = itertools.accumulate(policy.stages[stage].weight for stage, _ in self.places)
        # With the share r falling from 1 to 0, a place has round(lines * r ** exponent) lines: it
        # has n - 1 instead of n from that r on at which lines * r ** exponent = n - 0.5. Deeper
        # places go first at the same r, since no map may grow.
        leaving = sorted(
            (-(((n - 0.5) / lines) ** (1.0 / exponent)), -place, axis)
            for place, (grid, exponent) in enumerate(zip(full, exponents, strict=True))
            for axis, lines in enumerate(grid)
            for n in range(2, lines + 1)
        )
        self._full = full
        self._leaving = [(-place, axis) for _, place, axis in leaving]

    def __len__(self) -> int:
        return len(self._leaving) + 1

    def __getitem__(self, rung: int) -> StormPlan:
        """The plan after ``rung`` lines have left; 0: the dense model."""
        counts = [list(grid) for grid in self._full]
        for place, axis in self._leaving[:rung]:
            counts[place][axis] -= 1
        reductions: list[Reduction] = []
        for (stage, block), (rows, cols) in zip(self.places, counts, strict=True):
            grid = _grid_at(self.variant, *self.size, reductions, stage)
            kept = (min(rows, grid[0]), min(cols, grid[1]))
            if kept != grid:
                reductions.append(_reduction(stage, block, kept, self.policy.stages[stage]))
        return StormPlan(tuple(reductions))

    @cached_property
    def dense_flops(self) -> int:
        """FLOPs of rung 0."""
        return self.flops(0)

    def flops(self, rung: int) -> int:
        """FLOPs of the plan on a rung."""
        return count_flops(self.variant, *self.size, self[rung]).total

    def first_within(self, flops: float) -> int:
        """The first rung that costs no more; ``len(self)`` if none does."""
        return bisect.bisect_left(range(len(self)), -flops, key=lambda rung: -self.flops(rung))


def _places(
    variant: Variant, height: int, width: int, policy: Policy, steps: int
) -> list[tuple[int, int]]:
    """Blocks before which lines leave: the policy's first, and others evenly after it by FLOPs."""
    blocks = [(s, b) for s, depth in enumerate(variant.depths) for b in range(depth)]
    first = (policy.first[0], min(policy.first[1], variant.depths[policy.first[0]] - 1))
    usable = [p for p in blocks if p >= first and policy.stages[p[0]].weight > 0.0]
    if not 1 <= steps <= len(usable):
        raise InputError(
            "the policy has no place for as many steps",
            where=variant.name,
            got=f"steps={steps}",
            expected=f"1 to {len(usable)}",
        )
    costs = count_flops(variant, height, width).by_block()
    # FLOPs from each place on: what a step there can make cheaper.
    after = {p: sum(f for at, f in costs.items() if at >= p) for p in usable}
    chosen = [usable[0]]
    for step in range(1, steps):
        wanted = after[usable[0]] * (steps - step) / steps
        left = usable[usable.index(chosen[-1]) + 1 : len(usable) - (steps - step - 1)]
        chosen.append(min(left, key=lambda p: (abs(after[p] - wanted), p)))
    return chosen


def _grid_at(
    variant: Variant, height: int, width: int, reductions: Sequence[Reduction], stage: int
) -> tuple[int, int]:
    """The map that a further reduction in a stage meets."""
    grid = stage_grids(variant, height, width, StormPlan(tuple(reductions)))[stage]
    for reduction in reductions:
        if reduction.stage == stage:
            grid = (reduction.height, reduction.width)
    return grid


def _reduction(stage: int, block: int, kept: tuple[int, int], how: Preference) -> Reduction:
    return Reduction(
        stage,
        block,
        *kept,
        how.host,
        how.unit,
        how.mode,
        how.restore,
        weights=how.weights,
        dt_grows=how.dt_grows,
    )
