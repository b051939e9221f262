# SPDX-License-Identifier: Apache-2.0
"""What STORM does to a model: a plan is data, hashable, and free of PyTorch."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass, fields
from math import sqrt
from pathlib import Path
from typing import Literal, TypeVar, get_args

from stormrt.errors import InputError
from stormrt.reading import parse_json, read_small
from stormrt.storm.hosts import get_host, host_names
from stormrt.storm.variants import Variant

Unit = Literal["line", "window"]
Mode = Literal["drop", "merge"]
Restore = Literal["no", "stage", "end"]
Weights = Literal["size", "distance"]

UNITS: tuple[Unit, ...] = get_args(Unit)
MODES: tuple[Mode, ...] = get_args(Mode)
RESTORES: tuple[Restore, ...] = get_args(Restore)
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
"""Values of a reduction's fields, the default first."""

MIN_IMAGE_SIDE = 32
"""Smallest image side, in pixels: below it the last stage has no whole token."""

_DEFAULT_STAGE, _DEFAULT_BLOCK = 0, 1
"""Where ``keep=R`` reduces: after the first block, so that every later block is cheaper and one
block has already mixed neighbours and measured a step size."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """Before block ``block`` of stage ``stage`` the map is cut down to height x width."""

    stage: int
    block: int
    height: int
    """H', rows that stay."""
    width: int
    """W', columns that stay."""
    host: str = "feature_norm"
    """Whose scores decide (``hosts.host_names``)."""
    unit: Unit = "line"
    """Whole rows and columns leave, or each window gives up rows and columns of its own."""
    mode: Mode = "drop"
    """What leaves is dropped, or merged into the nearest of its stratum that stays."""
    restore: Restore = "no"
    """The map gets its size back, each place from the nearest unit that stayed: never, before the
    stage's downsampling, or in the maps that the network returns."""
    rows: tuple[int, ...] | None = None
    """These rows stay in every image, whatever their scores (``calibrate_selection``)."""
    cols: tuple[int, ...] | None = None
    """The same for columns: both are given, or neither."""
    weights: Weights = "size"
    """What merges counts by how many tokens it stands for, or by that and by how near it is."""
    dt_grows: bool = False
    """Step sizes of merged tokens grow with the number of tokens that they stand for."""


@dataclass(frozen=True, slots=True)
class StormPlan:
    """Reductions in the order in which the network meets them. Empty: the dense model."""

    reductions: tuple[Reduction, ...] = ()

    def to_json(self) -> str:
        """JSON that ``parse_plan`` reads back from a file, without fields at their defaults."""
        items = [
            {k: v for k, v in asdict(r).items() if k in _PLACE or v != _DEFAULTS[k]}
            for r in self.reductions
        ]
        return json.dumps({"reductions": items}, sort_keys=True)

    def describe(self) -> str:
        """One line for reports."""
        if not self.reductions:
            return "dense"
        return "; ".join(
            f"stage {r.stage} block {r.block}: {_describe(r)}" for r in self.reductions
        )


_DEFAULTS = {f.name: f.default for f in fields(Reduction)}
_PLACE = ("stage", "block", "height", "width", "host")
"""Fields that are always written."""


def _describe(r: Reduction) -> str:
    parts = [f"{r.height}x{r.width} {'lines' if r.unit == 'line' else 'in windows'} by {r.host}"]
    if r.rows is not None:
        parts.append("the same in every image")
    if r.mode == "merge":
        parts.append("merged" if r.weights == "size" else "merged by distance")
    if r.dt_grows:
        parts.append("steps grow")
    if r.restore != "no":
        parts.append(f"restored at the {'end' if r.restore == 'end' else 'end of the stage'}")
    return ", ".join(parts)


def stage_grids(
    variant: Variant, height: int, width: int, plan: StormPlan | None = None
) -> list[tuple[int, int]]:
    """Map sizes at the start of the four stages.

    Args:
        variant: The model.
        height: Image height in pixels.
        width: Image width in pixels.
        plan: Reductions, whose effect later stages see.

    Returns:
        Four (H, W).

    Raises:
        InputError: The image is smaller than 32 pixels on a side.
    """
    if min(height, width) < MIN_IMAGE_SIDE:
        raise InputError(
            "the image is too small for four stages",
            got=f"{height}x{width} pixels",
            expected=f"{MIN_IMAGE_SIDE} pixels or more on each side",
        )

    def half(size: int) -> int:
        return -(-size // 2)  # whole numbers of any length

    if variant.overlapping:
        grid = (half(height), half(width))
        if variant.patch == 4:
            grid = (half(grid[0]), half(grid[1]))
    else:
        grid = (height // variant.patch, width // variant.patch)
    grids = []
    for stage in range(len(variant.depths)):
        grids.append(grid)
        restored: tuple[int, int] | None = None
        for reduction in plan.reductions if plan else ():
            if reduction.stage == stage:
                if reduction.restore == "stage":
                    restored = restored or grid
                grid = (reduction.height, reduction.width)
        grid = restored or grid
        grid = (half(grid[0]), half(grid[1]))
    return grids


def keep_plan(
    variant: Variant,
    height: int,
    width: int,
    keep: float,
    *,
    stage: int = _DEFAULT_STAGE,
    block: int = _DEFAULT_BLOCK,
    host: str = "feature_norm",
    unit: Unit = "line",
    mode: Mode = "drop",
    restore: Restore = "no",
) -> StormPlan:
    """The shorthand ``keep=R``: one reduction to about a share R of the tokens.

    Each side keeps round(side * sqrt(R)) lines; with R = 1 the plan is empty.

    Raises:
        InputError: ``keep`` is not in (0, 1], or the model has no such stage, block or host.
    """
    if not 0.0 < keep <= 1.0:
        raise InputError(
            "the share of tokens to keep is out of range",
            where="--storm keep=",
            got=f"{keep:g}",
            expected="more than 0 and at most 1 (1 is the dense model)",
            fix="for instance --storm keep=0.75",
        )
    rows, cols = stage_grids(variant, height, width)[_checked_stage(stage, variant)]
    kept = (max(1, round(rows * sqrt(keep))), max(1, round(cols * sqrt(keep))))
    plan = StormPlan((Reduction(stage, block, *kept, host, unit, mode, restore),))
    check_plan(plan, variant, height, width)
    return StormPlan() if kept == (rows, cols) else plan


_SHORTHAND = "keep=R[,host=NAME][,stage=S][,block=B][,unit=U][,mode=M][,restore=R]"
_Value = TypeVar("_Value", bound=str)


def parse_plan(text: str, variant: Variant, height: int, width: int) -> StormPlan:
    """Read a shorthand, or the path of a plan's JSON file.

    The shorthand is ``keep=R[,host=NAME][,stage=S][,block=B][,unit=U][,mode=M][,restore=R]``, or a
    budget that ``planner.plan_for_target`` reads, such as ``flops=0.75``.

    Raises:
        InputError: Unknown keys, values out of range, or a plan that does not fit the model.
    """
    from stormrt.storm import planner  # it makes plans, and imports this module

    if "=" in text and planner.is_target(text):
        return planner.plan_for_target(text, variant, height, width).plan
    if "=" not in text or text.endswith(".json"):
        return _load_plan(Path(text), variant, height, width)
    parts = text.split(",")
    options: dict[str, str] = {}
    for part in parts:
        key, _, value = part.partition("=")
        options[key.strip()] = value.strip()
    unknown = set(options) - {"keep", "host", "stage", "block", "unit", "mode", "restore"}
    if unknown or "keep" not in options or len(options) < len(parts):
        raise InputError(
            "the STORM shorthand was not understood",
            where="--storm",
            got=text,
            expected=f"{_SHORTHAND}, or the path of a plan file",
        )

    def number(key: str, default: str, kind: type[int] | type[float]) -> float:
        try:
            return kind(options.get(key, default))
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise InputError(f"{key} is not {what}", where="--storm", got=options[key]) from None

    def one_of(key: str, values: tuple[_Value, ...]) -> _Value:
        given = options.get(key, values[0])
        for value in values:
            if given == value:
                return value
        raise InputError(
            f"unknown {key} {given!r}", where="--storm", got=text, expected=", ".join(values)
        )

    return keep_plan(
        variant,
        height,
        width,
        number("keep", "", float),
        stage=int(number("stage", str(_DEFAULT_STAGE), int)),
        block=int(number("block", str(_DEFAULT_BLOCK), int)),
        host=options.get("host", "feature_norm"),
        unit=one_of("unit", UNITS),
        mode=one_of("mode", MODES),
        restore=one_of("restore", RESTORES),
    )


def _checked_stage(stage: int, variant: Variant) -> int:
    if not 0 <= stage < len(variant.depths):
        raise InputError(
            "no such stage",
            where="stage",
            got=str(stage),
            expected=f"0 to {len(variant.depths) - 1}",
        )
    return stage


def _load_plan(path: Path, variant: Variant, height: int, width: int) -> StormPlan:
    try:
        raw = parse_json(read_small(path))
        if not isinstance(raw, dict) or set(raw) != {"reductions"}:
            raise ValueError('the file must hold {"reductions": [...]} and nothing else')
        reductions = [_read_reduction(item) for item in raw["reductions"]]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            "the STORM plan could not be read",
            where=str(path),
            got=str(error),
            fix="write keep=R for the shorthand, or check the file",
        ) from error
    plan = StormPlan(tuple(sorted(reductions, key=lambda r: (r.stage, r.block))))
    check_plan(plan, variant, height, width)
    return plan


def _read_reduction(item: object) -> Reduction:
    """Read one reduction strictly as to keys and types; values are for ``check_plan``."""
    if not isinstance(item, dict) or not set(item) <= set(_DEFAULTS):
        raise ValueError(f"a reduction has the keys {', '.join(_DEFAULTS)}; got {item}")
    if any(type(item.get(k)) is not int for k in _PLACE[:4]):  # true is no line count
        raise ValueError(f"stage, block, height, width must be integers; got {item}")
    if type(item.get("dt_grows", False)) is not bool:
        raise ValueError(f"dt_grows must be true or false; got {item}")
    lines = {key: item[key] for key in ("rows", "cols") if item.get(key) is not None}
    for key, value in lines.items():
        if type(value) is not list or any(type(line) is not int for line in value):
            raise ValueError(f"{key} must be a list of integers; got {value}")
    return Reduction(**item | {key: tuple(value) for key, value in lines.items()})


_MOST_PROBLEMS = 20
"""How many a message lists."""


def check_plan(plan: StormPlan, variant: Variant, height: int, width: int) -> None:
    """Check that a plan fits a model and an image size.

    Raises:
        InputError: All that is wrong, together.
    """
    problems: list[str] = []
    places = [(r.stage, r.block) for r in plan.reductions]
    if len(set(places)) != len(places):
        problems.append("two reductions stand before the same block")
    # Of places that are there, no two alike: a file of a million reductions takes no time.
    for r in dict(zip(places, plan.reductions, strict=True)).values():
        if len(problems) >= _MOST_PROBLEMS:
            problems.append("...")
            break
        name = f"stage {r.stage} block {r.block}"
        if not 0 <= r.stage < len(variant.depths):
            problems.append(f"{name}: {variant.name} has stages 0 to {len(variant.depths) - 1}")
            continue
        if not 0 <= r.block < variant.depths[r.stage]:
            last = variant.depths[r.stage] - 1
            problems.append(f"{name}: stage {r.stage} of {variant.name} has blocks 0 to {last}")
        earlier = StormPlan(
            tuple(p for p in plan.reductions if (p.stage, p.block) < (r.stage, r.block))
        )
        grid = stage_grids(variant, height, width, earlier)[r.stage]
        for previous in earlier.reductions:
            if previous.stage == r.stage:
                grid = (previous.height, previous.width)
        found = [*_size_problems(r, grid), *_option_problems(r), *_order_problems(r, earlier)]
        problems += [f"{name}: {problem}" for problem in found]
    if problems:
        raise InputError(
            f"the STORM plan does not fit {variant.name} at {height}x{width}",
            got="\n            ".join(problems),
        )


def _size_problems(r: Reduction, grid: tuple[int, int]) -> list[str]:
    if not (1 <= r.height <= grid[0] and 1 <= r.width <= grid[1]):
        return [f"cannot keep {r.height}x{r.width} lines of a {grid[0]}x{grid[1]} map"]
    if (r.rows is None) != (r.cols is None):
        return ["rows and cols are both given, or neither is"]
    problems = []
    for what, chosen, keep, lines in (
        ("rows", r.rows, r.height, grid[0]),
        ("cols", r.cols, r.width, grid[1]),
    ):
        if chosen is None:
            continue
        rising = all(a < b for a, b in itertools.pairwise(chosen))
        if len(chosen) != keep or not rising or chosen[0] < 0 or chosen[-1] >= lines:
            problems.append(f"{what} must be {keep} rising numbers from 0 to {lines - 1}")
    return problems


def _option_problems(r: Reduction) -> list[str]:
    problems = []
    for what, value, known in (
        ("unit", r.unit, UNITS),
        ("mode", r.mode, MODES),
        ("restore", r.restore, RESTORES),
        ("weights", r.weights, WEIGHTS),
        ("host", r.host, host_names()),
    ):
        if value not in known:
            problems.append(f"unknown {what} {value!r}; there are {', '.join(known)}")
    if problems:
        return problems
    if r.mode != "merge" and (r.dt_grows or r.weights != "size"):
        problems.append("weights and dt_grows are of merged tokens; use mode merge")
    if r.unit == "window" and r.rows is not None:
        problems.append("windows choose for each image; rows and cols are for unit line")
    if get_host(r.host).needs is not None and r.block == 0 and r.rows is None:
        problems.append(
            f"{r.host} scores by the block before, and block 0 has none in its stage; use "
            "feature_norm or a later block"
        )
    return problems


def _order_problems(r: Reduction, earlier: StormPlan) -> list[str]:
    """A map is restored from the inside out: what was reduced last gets its size back first."""
    for previous in earlier.reductions:
        same_stage = previous.stage == r.stage
        if (previous.restore == "stage" and same_stage and r.restore != "stage") or (
            previous.restore == "end" and r.restore == "no"
        ):
            problem = (
                f"restore {r.restore!r} cannot follow restore {previous.restore!r} of stage "
                f"{previous.stage} block {previous.block}: what is reduced later must be restored "
                "no later"
            )
            return [problem]
    return []
