# SPDX-License-Identifier: Apache-2.0
"""Measured times of plans, and what lies between them. Needs no PyTorch.

A file of measured times is JSON with a list ``latency`` (what stands beside it is ignored):

    {"latency": [{"model": "vmamba_tiny_s1l8", "size": [224, 224], "batch": 1, "ms": 1.29,
                  "plan": {"reductions": []}}]}

``plan`` is what a plan's file holds, or a shorthand such as ``keep=0.75``.
``benchmarks/results/storm_accuracy.json`` is such a file.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stormrt.errors import InputError
from stormrt.reading import parse_json, read_small
from stormrt.storm.flops import count_flops
from stormrt.storm.plan import Reduction, StormPlan, check_plan, parse_plan
from stormrt.storm.variants import Variant


@dataclass(frozen=True, slots=True)
class Measured:
    """The time of one plan."""

    plan: StormPlan
    flops: int
    ms: float


def read_measured(
    benchmark: Path, variant: Variant, height: int, width: int, batch: int
) -> list[Measured]:
    """Rows of a benchmark's file for one model, image size and batch.

    Raises:
        InputError: The file is missing or bad, or has no such row; the message says which it has.
    """
    try:
        content: Any = parse_json(read_small(benchmark))  # JSON
        rows = content["latency"]
        found = sorted({(r["model"], _size(r["size"]), int(r["batch"])) for r in rows})
        wanted = (variant.name, (height, width), batch)
        own = [r for r in rows if (r["model"], _size(r["size"]), int(r["batch"])) == wanted]
        measured = [_measured(r, variant, height, width) for r in own]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
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


def _shape(plan: StormPlan) -> tuple[Reduction, ...]:
    """A plan without its line counts: plans of one shape differ in nothing else."""
    return tuple(dataclasses.replace(r, height=0, width=0) for r in plan.reductions)


def neighbours(rows: Sequence[Measured]) -> list[tuple[Measured, Measured]]:
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


def plan_between(
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
