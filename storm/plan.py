# SPDX-License-Identifier: Apache-2.0
"""What STORM does to a model: a plan is data, hashable, and free of PyTorch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import ceil, sqrt
from pathlib import Path

from stormrt.errors import InputError
from stormrt.storm.variants import Variant

HOST_NAMES = ("feature_norm", "step_size")
"""Scores that a plan can name."""

MIN_IMAGE_SIDE = 32
"""Smallest image side, in pixels: below it the last stage has no whole token."""

_DEFAULT_STAGE, _DEFAULT_BLOCK = 0, 1
"""Where ``keep=R`` reduces: after the first block, so that every later block is cheaper and one
block has already mixed neighbours and measured a step size."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """Before block ``block`` of stage ``stage`` the map is cut down to height x width lines."""

    stage: int
    block: int
    height: int
    """H', rows that stay."""
    width: int
    """W', columns that stay."""
    host: str = "feature_norm"


@dataclass(frozen=True, slots=True)
class StormPlan:
    """Reductions in the order in which the network meets them. Empty: the dense model."""

    reductions: tuple[Reduction, ...] = ()

    def to_json(self) -> str:
        """JSON that ``parse_plan`` reads back from a file."""
        return json.dumps({"reductions": [asdict(r) for r in self.reductions]}, sort_keys=True)

    def describe(self) -> str:
        """One line for reports."""
        if not self.reductions:
            return "dense"
        return "; ".join(
            f"stage {r.stage} block {r.block}: {r.height}x{r.width} lines by {r.host}"
            for r in self.reductions
        )


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
        return ceil(size / 2)

    if variant.overlapping:
        grid = (half(half(height)), half(half(width)))
    else:
        grid = (height // 4, width // 4)
    grids = []
    for stage in range(len(variant.depths)):
        grids.append(grid)
        for reduction in plan.reductions if plan else ():
            if reduction.stage == stage:
                grid = (reduction.height, reduction.width)
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
    plan = StormPlan((Reduction(stage, block, *kept, host),))
    check_plan(plan, variant, height, width)
    return StormPlan() if kept == (rows, cols) else plan


def parse_plan(text: str, variant: Variant, height: int, width: int) -> StormPlan:
    """Read ``keep=R[,host=NAME][,stage=S][,block=B]``, or the path of a plan's JSON file.

    Raises:
        InputError: Unknown keys, values out of range, or a plan that does not fit the model.
    """
    if "=" not in text or text.endswith(".json"):
        return _load_plan(Path(text), variant, height, width)
    parts = text.split(",")
    options: dict[str, str] = {}
    for part in parts:
        key, _, value = part.partition("=")
        options[key.strip()] = value.strip()
    unknown = set(options) - {"keep", "host", "stage", "block"}
    if unknown or "keep" not in options or len(options) < len(parts):
        raise InputError(
            "the STORM shorthand was not understood",
            where="--storm",
            got=text,
            expected="keep=R[,host=NAME][,stage=S][,block=B], or the path of a plan file",
        )

    def number(key: str, default: str, kind: type[int] | type[float]) -> float:
        try:
            return kind(options.get(key, default))
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise InputError(f"{key} is not {what}", where="--storm", got=options[key]) from None

    return keep_plan(
        variant,
        height,
        width,
        number("keep", "", float),
        stage=int(number("stage", str(_DEFAULT_STAGE), int)),
        block=int(number("block", str(_DEFAULT_BLOCK), int)),
        host=options.get("host", "feature_norm"),
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
    fields = ("stage", "block", "height", "width", "host")
    try:
        raw = json.loads(path.read_text())
        if not isinstance(raw, dict) or set(raw) != {"reductions"}:
            raise ValueError('the file must hold {"reductions": [...]} and nothing else')
        reductions = []
        for item in raw["reductions"]:
            if not isinstance(item, dict) or not set(item) <= set(fields):
                raise ValueError(f"a reduction has the keys {', '.join(fields)}; got {item}")
            if any(type(item.get(k)) is not int for k in fields[:4]):  # true is no line count
                raise ValueError(f"stage, block, height, width must be integers; got {item}")
            reductions.append(Reduction(**item))
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


def check_plan(plan: StormPlan, variant: Variant, height: int, width: int) -> None:
    """Check that a plan fits a model and an image size.

    Raises:
        InputError: All that is wrong, together.
    """
    problems: list[str] = []
    places = [(r.stage, r.block) for r in plan.reductions]
    if len(set(places)) != len(places):
        problems.append("two reductions stand before the same block")
    for r in plan.reductions:
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
        if not (1 <= r.height <= grid[0] and 1 <= r.width <= grid[1]):
            problems.append(
                f"{name}: cannot keep {r.height}x{r.width} lines of a {grid[0]}x{grid[1]} map"
            )
        if r.host not in HOST_NAMES:
            problems.append(f"{name}: unknown host {r.host!r}; there are {', '.join(HOST_NAMES)}")
        if r.host == "step_size" and r.block == 0:
            problems.append(
                f"{name}: step_size scores by the block before, and block 0 has none in its "
                "stage; use feature_norm or a later block"
            )
    if problems:
        raise InputError(
            f"the STORM plan does not fit {variant.name} at {height}x{width}",
            got="\n            ".join(problems),
        )
