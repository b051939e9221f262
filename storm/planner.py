# SPDX-License-Identifier: Apache-2.0
"""From a budget to a plan: ``flops=0.75``, or ``latency<=3.0`` against measured times.

A ladder of plans leads from the dense model down, one line at a time; a budget takes the first
rung that fits, so that one line more would not. Where lines leave, and how, is data: ``POLICIES``.
Needs no PyTorch.

A file of measured times is JSON with a list ``latency`` (what stands beside it is ignored):

    {"latency": [{"model": "vmamba_tiny_s1l8", "size": [224, 224], "batch": 1, "ms": 1.29,
                  "plan": {"reductions": []}}]}

``plan`` is what a plan's file holds, or a shorthand such as ``keep=0.75``.
``benchmarks/results/storm_accuracy.json`` is such a file.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stormrt.errors import InputError
from stormrt.storm.flops import count_flops
from stormrt.storm.plan import (
    Mode,
    Reduction,
    Restore,
    StormPlan,
    Unit,
    Weights,
    check_plan,
    parse_plan,
    stage_grids,
)
from stormrt.storm.variants import Variant


@dataclass(frozen=True, slots=True)
class Preference:
    """How a stage's map is cut down, if it is."""

    weight: float
    """The share of lines that a step here keeps is r ** weight, with one r for all steps; 0: no
    steps in this stage."""
    host: str
    mode: Mode
    unit: Unit = "line"
    restore: Restore = "no"
    weights: Weights = "size"
    dt_grows: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """Where and how a planner cuts."""

    first: tuple[int, int]
    """Stage and block of the first step; further steps share out what is computed after it."""
    stages: tuple[Preference, Preference, Preference, Preference]
    source: str
    """What it rests on."""


_PILOT = (
    "a pilot on a 5.2 M VMamba, CIFAR-10 up-sampled to 96 px and scenes at 128 px, one seed: in "
    "stages 0 and 1 lines that differ from their neighbours are worth keeping and merging the "
    "others gains 0 to 5 points; on maps of 8 x 8 and below averaging is as good as any choice"
)
_STAGES = (
    Preference(1.0, "dissimilarity", "merge"),
    Preference(1.0, "dissimilarity", "merge"),
    Preference(1.0, "uniform", "merge"),
    Preference(0.0, "uniform", "merge"),
)

POLICIES: dict[str, Policy] = {
    "early": Policy((0, 1), _STAGES, _PILOT),
    "middle": Policy((1, 1), _STAGES, _PILOT),
    "late": Policy((2, 1), _STAGES, _PILOT),
}
"""Policies by name. Early steps make more blocks cheaper, so that fewer lines must leave; late ones
cut maps that have been looked at longer."""

DEFAULT_POLICY = "early"


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan that fits a budget."""

    plan: StormPlan
    flops: int
    dense_flops: int
    ms: float | None = None
    """For a latency: measured, or interpolated between two measured plans."""
    measured: bool = False

    @property
    def share(self) -> float:
        """FLOPs over those of the dense model."""
        return self.flops / self.dense_flops

    def describe(self) -> str:
        """One line for reports."""
        text = f"{self.plan.describe()} ({self.share:.1%} of the dense FLOPs"
        if self.ms is not None:
            how = "measured" if self.measured else "interpolated between measured plans"
            text += f"; {self.ms:.3g} ms, {how}"
        return text + ")"


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


def plan_for_flops(
    variant: Variant,
    height: int,
    width: int,
    share: float,
    *,
    steps: int = 1,
    policy: Policy | str = DEFAULT_POLICY,
) -> Choice:
    """The plan whose FLOPs are nearest to a share of the dense ones, from below.

    Args:
        variant: The model.
        height: Image height in pixels.
        width: Image width in pixels.
        share: Of the dense model's FLOPs, more than 0 and at most 1.
        steps: How many reductions, over the depth.
        policy: Where and how lines leave, or its name.

    Returns:
        The plan, and the share that it reaches: with one line more it would cost too much.

    Raises:
        InputError: The share is out of range, or below what the policy can reach.
    """
    if not 0.0 < share <= 1.0:
        raise InputError(
            "the share of the dense FLOPs is out of range",
            where="flops=",
            got=f"{share:g}",
            expected="more than 0 and at most 1 (1 is the dense model)",
            fix="for instance flops=0.75",
        )
    name = policy if isinstance(policy, str) else "the policy given"
    ladder = Ladder(variant, height, width, _policy(policy), steps)
    rung = ladder.first_within(share * ladder.dense_flops)
    if rung == len(ladder):
        least = ladder.flops(len(ladder) - 1) / ladder.dense_flops
        earlier = "" if ladder.places[0] <= (0, 1) else "reduce earlier (policy=early), or "
        raise InputError(
            "no plan costs as little as that",
            where=f"{variant.name} at {height}x{width}, policy {name}, steps={steps}",
            got=f"flops={share:g}",
            expected=f"{math.ceil(least * 1000) / 1000:g} or more: with one line left "
            f"{least:.2%} of the dense FLOPs remain",
            fix=f"{earlier}take a smaller model",
        )
    plan = ladder[rung]
    check_plan(plan, variant, height, width)
    return Choice(plan, ladder.flops(rung), ladder.dense_flops)


@dataclass(frozen=True, slots=True)
class Measured:
    """The time of one plan."""

    plan: StormPlan
    flops: int
    ms: float


def plan_for_latency(
    variant: Variant,
    height: int,
    width: int,
    milliseconds: float,
    benchmark: Path,
    *,
    batch: int = 1,
) -> Choice:
    """The plan that keeps most FLOPs of those that are fast enough.

    Times are those of a benchmark's file. Between two measured plans that differ in their line
    counts alone, and are neighbours by FLOPs, time is taken to grow linearly with the FLOPs;
    beyond the measured plans nothing is guessed. The dense model is no such neighbour: without
    reductions it also runs without their cost.

    Args:
        variant: The model.
        height: Image height in pixels.
        width: Image width in pixels.
        milliseconds: The bound, in ms for a whole batch.
        benchmark: The file of measured times (see the module).
        batch: Images a batch.

    Returns:
        The plan and its time.

    Raises:
        InputError: The bound is no positive number, the file is bad, has no row for this model,
            size and batch, or none that is as fast.
    """
    if not 0.0 < milliseconds < math.inf:
        raise InputError(
            "the latency is no positive number", where="latency<=", got=f"{milliseconds:g}"
        )
    rows = read_measured(benchmark, variant, height, width, batch)
    dense = count_flops(variant, height, width).total
    choices = [Choice(r.plan, r.flops, dense, r.ms, True) for r in rows if r.ms <= milliseconds]
    if not choices:
        fastest = min(rows, key=lambda r: r.ms)
        raise InputError(
            "no measured plan is as fast as that",
            where=f"{variant.name} at {height}x{width}, batch {batch}, in {benchmark}",
            got=f"latency<={milliseconds:g}",
            expected=f"{fastest.ms:g} ms or more: {fastest.plan.describe()}",
            fix="measure plans that keep less, or take a smaller model",
        )
    for smaller, larger in _neighbours(rows):
        if smaller.ms <= milliseconds < larger.ms:
            part = (milliseconds - smaller.ms) / (larger.ms - smaller.ms)
            budget = smaller.flops + part * (larger.flops - smaller.flops)
            plan = _between(variant, height, width, smaller.plan, larger.plan, budget)
            flops = count_flops(variant, height, width, plan).total
            if flops > smaller.flops:
                slope = (larger.ms - smaller.ms) / (larger.flops - smaller.flops)
                time = smaller.ms + slope * (flops - smaller.flops)
                choices.append(Choice(plan, flops, dense, time))
    # Of plans that cost the same, the faster; of those, always the same one.
    best = max(choices, key=lambda c: (c.flops, c.measured, -(c.ms or 0.0), c.plan.to_json()))
    check_plan(best.plan, variant, height, width)
    return best


def read_measured(
    benchmark: Path, variant: Variant, height: int, width: int, batch: int
) -> list[Measured]:
    """Rows of a benchmark's file for one model, image size and batch.

    Raises:
        InputError: The file is missing or bad, or has no such row; the message says which it has.
    """
    try:
        content = json.loads(benchmark.read_text())
        rows = content["latency"]
        found = sorted({(r["model"], _size(r["size"]), int(r["batch"])) for r in rows})
        wanted = (variant.name, (height, width), batch)
        own = [r for r in rows if (r["model"], _size(r["size"]), int(r["batch"])) == wanted]
        measured = [_measured(r, variant, height, width) for r in own]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "the measured times could not be read",
            where=str(benchmark),
            got=f"{type(error).__name__}: {error}",
            expected='{"latency": [{"model", "size", "batch", "plan", "ms"}, ...]}',
        ) from error
    if not measured:
        has = "; ".join(f"{m} at {s[0]}x{s[1]}, batch {b}" for m, s, b in found)
        raise InputError(
            "nothing was measured for this model, image size and batch",
            where=str(benchmark),
            got=f"{variant.name} at {height}x{width}, batch {batch}",
            expected=has or "(the file has no rows)",
            fix="measure it, or give another file=",
        )
    return measured


def is_target(text: str) -> bool:
    """Whether a text is a budget, which ``plan_for_target`` reads."""
    return text.lstrip().startswith(("flops", "latency"))


@dataclass(frozen=True, slots=True)
class Target:
    """A budget: ``flops=F`` or ``latency<=X``, with its options."""

    kind: str
    """``flops`` or ``latency``."""
    value: float
    steps: int = 1
    policy: str = DEFAULT_POLICY
    file: Path | None = None
    batch: int = 1


_FORMS = "flops=F[,steps=N][,policy=NAME], or latency<=MS,file=BENCHMARK.json[,batch=B]"
_OPTIONS = {"flops": {"steps", "policy"}, "latency": {"file", "batch"}}


def parse_target(text: str) -> Target:
    """Read ``flops=F[,steps=N][,policy=NAME]`` or ``latency<=MS,file=PATH[,batch=B]``.

    Raises:
        InputError: It is neither, has unknown options, or a number that is none.
    """
    head, *rest = (part.strip() for part in text.split(","))
    for kind, sign in (("flops", "="), ("latency", "<=")):
        if head.startswith(kind) and head[len(kind) :].lstrip().startswith(sign):
            value = head[len(kind) :].lstrip()[len(sign) :].strip()
            break
    else:
        raise _not_understood(text)
    options = {key.strip(): value.strip() for key, _, value in (p.partition("=") for p in rest)}
    if not set(options) <= _OPTIONS[kind] or len(options) < len(rest) or "" in options.values():
        raise _not_understood(text)
    if kind == "latency" and "file" not in options:
        raise InputError(
            "a latency needs measured times",
            where="--storm",
            got=text,
            expected=_FORMS,
            fix="add file=PATH, for instance file=benchmarks/results/storm_accuracy.json",
        )
    try:
        return Target(
            kind,
            float(value),
            steps=int(options.get("steps", "1")),
            policy=options.get("policy", DEFAULT_POLICY),
            file=Path(options["file"]) if "file" in options else None,
            batch=int(options.get("batch", "1")),
        )
    except ValueError as error:
        raise _not_understood(text) from error


def plan_for_target(text: str, variant: Variant, height: int, width: int) -> Choice:
    """Read a budget and make the plan that fits it.

    Raises:
        InputError: As ``parse_target``, ``plan_for_flops`` and ``plan_for_latency``.
    """
    target = parse_target(text)
    if target.file is not None:
        return plan_for_latency(
            variant, height, width, target.value, target.file, batch=target.batch
        )
    return plan_for_flops(
        variant, height, width, target.value, steps=target.steps, policy=target.policy
    )


def _not_understood(text: str) -> InputError:
    return InputError("the budget was not understood", where="--storm", got=text, expected=_FORMS)


def _policy(policy: Policy | str) -> Policy:
    if isinstance(policy, Policy):
        return policy
    if policy not in POLICIES:
        raise InputError(f"unknown policy {policy!r}", expected=", ".join(POLICIES))
    return POLICIES[policy]


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


def _size(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def _measured(row: dict[str, Any], variant: Variant, height: int, width: int) -> Measured:
    raw = row["plan"]
    if isinstance(raw, str):
        plan = parse_plan(raw, variant, height, width)
    else:
        items: list[dict[str, Any]] = [  # Any: JSON
            {key: tuple(v) if isinstance(v, list) else v for key, v in item.items()}
            for item in raw["reductions"]
        ]
        plan = StormPlan(tuple(Reduction(**item) for item in items))
        check_plan(plan, variant, height, width)
    ms = float(row["ms"])
    if not 0.0 < ms < math.inf:
        raise ValueError(f"a time of {ms} ms")
    return Measured(plan, count_flops(variant, height, width, plan).total, ms)


def _shape(plan: StormPlan) -> tuple[Reduction, ...]:
    """A plan without its line counts: plans of one shape differ in nothing else."""
    return tuple(dataclasses.replace(r, height=0, width=0) for r in plan.reductions)


def _neighbours(rows: Sequence[Measured]) -> list[tuple[Measured, Measured]]:
    """Measured plans of one shape that follow each other by FLOPs, the smaller first."""
    pairs: list[tuple[Measured, Measured]] = []
    for shape in dict.fromkeys(_shape(row.plan) for row in rows):
        if not shape:
            continue
        alike = sorted((r for r in rows if _shape(r.plan) == shape), key=lambda r: r.flops)
        for smaller, larger in itertools.pairwise(alike):
            couples = zip(smaller.plan.reductions, larger.plan.reductions, strict=True)
            if all(s.height <= g.height and s.width <= g.width for s, g in couples):
                pairs.append((smaller, larger))
    return pairs


def _between(
    variant: Variant, height: int, width: int, smaller: StormPlan, larger: StormPlan, budget: float
) -> StormPlan:
    """The first plan within a budget of FLOPs, from the larger to the smaller line by line."""
    counts = [[r.height, r.width] for r in larger.reductions]
    differences = [
        (place, axis, high - low)
        for place, (s, g) in enumerate(zip(smaller.reductions, larger.reductions, strict=True))
        for axis, (high, low) in enumerate(((g.height, s.height), (g.width, s.width)))
    ]
    leaving = sorted(
        ((n + 0.5) / lines, -place, axis)
        for place, axis, lines in differences
        for n in range(lines)
    )
    plan = larger
    for _, place, axis in leaving:
        if count_flops(variant, height, width, plan).total <= budget:
            break
        counts[-place][axis] -= 1
        plan = StormPlan(
            tuple(
                dataclasses.replace(r, height=rows, width=cols)
                for r, (rows, cols) in zip(larger.reductions, counts, strict=True)
            )
        )
    return plan
