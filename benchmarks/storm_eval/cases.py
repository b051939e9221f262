# SPDX-License-Identifier: Apache-2.0
"""The rows of the table: method x where x keep, the planner's choices, and equals in FLOPs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from benchmarks.storm_baselines import matching, resample, scan_only, small_input, tokens
from benchmarks.storm_baselines.segments import Where
from stormrt.errors import InputError
from stormrt.storm.flops import count_flops
from stormrt.storm.hosts import get_host, host_names
from stormrt.storm.plan import (
    MODES,
    UNITS,
    Reduction,
    StormPlan,
    check_plan,
    stage_grids,
)
from stormrt.storm.planner import Choice, plan_for_flops
from stormrt.storm.policies import DEFAULT_POLICY, POLICIES, Policy, Preference
from stormrt.storm.variants import Variant
from stormrt.storm.vmamba import VMamba

Network = Callable[[Tensor], Tensor]
"""Normalised images [B, 3, H, W] -> logits [B, classes]."""

KEEPS = (0.9, 0.75, 0.6, 0.5, 0.35)
WHERES: tuple[Where, ...] = ((0, 1), (1, 1), (2, 1))
TARGETS = (0.75, 0.5)
"""Shares of the dense FLOPs for which the planner is asked."""

# What is searched for the planner's default policy.
FIRSTS: tuple[Where, ...] = ((0, 1), (1, 0), (1, 1), (2, 0), (2, 1))
STEPS = (1, 2, 3, 4)
PROFILES = {"even": (1.0, 1.0, 1.0), "late": (0.5, 1.0, 1.5)}
"""Weights of the stages' steps (``planner.Preference``)."""
METHODS = {
    "dissimilarity:drop": Preference(1.0, "dissimilarity", "drop"),
    "dissimilarity:merge": Preference(1.0, "dissimilarity", "merge"),
    "dissimilarity:merge by distance": Preference(
        1.0, "dissimilarity", "merge", weights="distance"
    ),
    "feature_norm:merge": Preference(1.0, "feature_norm", "merge"),
    "uniform:drop": Preference(1.0, "uniform", "drop"),
    "uniform:merge": Preference(1.0, "uniform", "merge"),
    "windows of dissimilarity:merge": Preference(1.0, "dissimilarity", "merge", "window"),
    "dissimilarity, then uniform:merge": None,  # as a pilot suggested: another score a stage
}

TOKEN_HOSTS = ("step_size", "clipped_output", "feature_norm", "dissimilarity")
"""Scores for pruning single tokens: MTR's and ToP-ViM's in our reading first."""
WINDOW_HOSTS = ("dissimilarity", "feature_norm", "uniform")
"""The best of the pilot, a plain one, and none."""


@dataclass(frozen=True)
class Case:
    """One row: what runs, and what is known of it before it has run."""

    method: str
    where: str
    """``s0b1``: before block 1 of stage 0; ``flops=0.75``: a plan for that budget."""
    keep: float | None
    """Share of the tokens, or of the dense FLOPs, that was asked for."""
    flops: int
    """For one image."""
    build: Callable[[VMamba], Network]
    plan: StormPlan | None = None
    """Of STORM's rows."""
    size: tuple[int, int] | None = None
    """H', W', or the side of a smaller input; None where there are several."""
    place: Where | None = None
    """Before which block a baseline cuts the map: rows of one place share what comes before."""
    headline: bool = False
    """Repeated for every training seed."""
    search: bool = False
    """Of the search for a default policy: last in time."""

    @property
    def key(self) -> tuple[str, str, float | None]:
        """What names a row."""
        return self.method, self.where, self.keep

    @property
    def work(self) -> tuple[object, ...]:
        """What runs: rows with equal work have equal results."""
        if self.plan is not None:
            return (self.plan,)
        place = "" if self.method.startswith("smaller input") else self.where.split(" ")[-1]
        return self.method, self.size, place


def cases(variant: Variant) -> list[Case]:
    """All rows of a model at the image size that it was trained for, the headline rows first."""
    rows = [_dense(variant), *_table(variant), *_planned(variant), *_searched(variant)]
    unique = {row.key: row for row in rows}
    assert len(unique) == len(rows), "two rows of one name"
    return sorted(rows, key=lambda row: (not row.headline, row.search))


def name_of(where: Where) -> str:
    """``s0b1``."""
    return f"s{where[0]}b{where[1]}"


def _dense(variant: Variant) -> Case:
    flops = count_flops(variant, variant.image, variant.image).total
    return Case("dense", "dense", None, flops, lambda model: model, StormPlan(), headline=True)


def _table(variant: Variant) -> Iterator[Case]:
    """Every method at every place and share of the tokens."""
    for where in WHERES:
        if where[1] >= variant.depths[where[0]]:
            continue
        rows, cols = stage_grids(variant, variant.image, variant.image)[where[0]]
        for keep in KEEPS:
            size = (max(1, round(rows * math.sqrt(keep))), max(1, round(cols * math.sqrt(keep))))
            headline = where == WHERES[0] and keep in (0.9, 0.75, 0.5)
            yield from _methods(variant, where, size, name_of(where), keep, headline=headline)


def _methods(
    variant: Variant,
    where: Where,
    size: tuple[int, int],
    label: str,
    keep: float,
    *,
    headline: bool,
) -> Iterator[Case]:
    """Every method for one place and size."""
    side = variant.image
    plain = StormPlan((Reduction(*where, *size),))
    flops = count_flops(variant, side, side, plain).total
    for name, plan in storm_plans(variant, where, size).items():
        own = count_flops(variant, side, side, plan).total
        yield Case(
            name, label, keep, own, partial(_with_plan, plan=plan), plan, size, headline=headline
        )
    baselines: dict[str, Callable[[VMamba], Network]] = {
        f"tokens:{host}": partial(_tokens, where=where, size=size, host=host)
        for host in TOKEN_HOSTS
        if where[1] > 0 or get_host(host).needs is None
    }
    baselines["matching"] = partial(_matching, where=where, size=size)
    for how in resample.RESAMPLERS:
        baselines[how] = partial(_resampled, where=where, size=size, how=how)
    for name, build in baselines.items():
        yield Case(name, label, keep, flops, build, None, size, where, headline=headline)
    yield Case(
        "scan only", label, keep, scan_only.flops(variant, where, *size),
        partial(_scan_only, where=where, size=size), None, size, headline=headline,
    )  # fmt: skip
    yield from _smaller_inputs(variant, flops, label, keep, headline=headline)


def _smaller_inputs(
    variant: Variant, flops: int, label: str, keep: float, *, headline: bool
) -> Iterator[Case]:
    try:
        side = small_input.side_for(variant, variant.image, flops)
    except InputError:
        return  # no image is as small
    own = count_flops(variant, side, side).total
    for mode in ("bicubic", "bilinear"):
        yield Case(
            f"smaller input:{mode}", label, keep, own,
            partial(_smaller_input, side=side, mode=mode), None, (side, side), headline=headline,
        )  # fmt: skip


def storm_plans(
    variant: Variant, where: Where, size: tuple[int, int], side: int | None = None
) -> dict[str, StormPlan]:
    """STORM's plans for one place and size, by names: unit, host, mode, restoration.

    What does not fit the place or the size (windows that do not divide a map) is left out.
    """
    side = variant.image if side is None else side
    forms: dict[str, Reduction] = {}
    for unit in UNITS:
        for host in host_names() if unit == "line" else WINDOW_HOSTS:
            for mode in MODES:
                forms[f"{unit}s:{host}:{mode}"] = Reduction(*where, *size, host, unit, mode)
    best = f"lines:{WINDOW_HOSTS[0]}"
    merged = forms[f"{best}:merge"]
    forms[f"{best}:merge by distance"] = replace(merged, weights="distance")
    forms[f"{best}:merge, steps grow"] = replace(merged, dt_grows=True)
    for mode in MODES:
        forms[f"{best}:{mode}, restored per stage"] = replace(
            forms[f"{best}:{mode}"], restore="stage"
        )
    plans: dict[str, StormPlan] = {}
    for name, reduction in forms.items():
        plan = StormPlan((reduction,))
        try:
            check_plan(plan, variant, side, side)
        except InputError:
            continue
        plans[name] = plan
    return plans


def _planned(variant: Variant) -> Iterator[Case]:
    """The planner's default for a budget, and every method with a budget's FLOPs."""
    side = variant.image
    dense = count_flops(variant, side, side).total
    for share in TARGETS:
        label = f"flops={share:g}"
        choice = plan_for_flops(variant, side, side, share)
        yield _planner_case("planner", label, share, choice, headline=True)
        yield from _smaller_inputs(variant, int(share * dense), label, share, headline=True)
        for policy in POLICIES:
            try:
                single = plan_for_flops(variant, side, side, share, steps=1, policy=policy)
            except InputError:
                continue  # so late in the network there is not as much to save
            for reduction in single.plan.reductions[:1]:
                where = (reduction.stage, reduction.block)
                size = (reduction.height, reduction.width)
                for case in _methods(
                    variant, where, size, f"{label} {name_of(where)}", share, headline=False
                ):
                    if not case.method.startswith("smaller input"):
                        yield replace(case, headline=policy == DEFAULT_POLICY)


def _searched(variant: Variant) -> Iterator[Case]:
    """What the planner could do instead: first place, steps, their weights, and method."""
    side = variant.image
    for share, first, steps in itertools.product(TARGETS, FIRSTS, STEPS):
        for (profile, weights), (method, how) in itertools.product(
            PROFILES.items(), METHODS.items()
        ):
            if steps == 1 and profile != "even":
                continue  # with one step there is nothing to share out
            policy = _policy(first, weights, how)
            try:
                choice = plan_for_flops(variant, side, side, share, steps=steps, policy=policy)
            except InputError:
                continue  # so late in the network there is not as much to save
            name = f"planner ({name_of(first)}, steps={steps}, {profile}, {method})"
            yield _planner_case(name, f"flops={share:g}", share, choice, search=True)


def _policy(first: Where, weights: tuple[float, float, float], how: Preference | None) -> Policy:
    kept = POLICIES["late"].stages if how is None else (how,) * 4
    stages = (
        replace(kept[0], weight=weights[0]),
        replace(kept[1], weight=weights[1]),
        replace(kept[2], weight=weights[2]),
        replace(kept[3], weight=0.0),
    )
    return Policy(first, stages, "searched")


def _planner_case(
    method: str,
    label: str,
    share: float,
    choice: Choice,
    *,
    headline: bool = False,
    search: bool = False,
) -> Case:
    build = partial(_with_plan, plan=choice.plan)
    return Case(
        method, label, share, choice.flops, build, choice.plan, headline=headline, search=search
    )


# Functions and not lambdas: each binds its own arguments.


def _with_plan(model: VMamba, plan: StormPlan) -> Network:
    return model.with_plan(plan)


def _tokens(model: VMamba, where: Where, size: tuple[int, int], host: str) -> Network:
    return tokens.apply(model, where, *size, host=host)


def _matching(model: VMamba, where: Where, size: tuple[int, int]) -> Network:
    return matching.apply(model, where, *size)


def _resampled(model: VMamba, where: Where, size: tuple[int, int], how: str) -> Network:
    return resample.apply(model, where, *size, how=how)


def _scan_only(model: VMamba, where: Where, size: tuple[int, int]) -> Network:
    return scan_only.apply(model, where, *size)


def _smaller_input(model: VMamba, side: int, mode: str) -> Network:
    return small_input.apply(model, side, mode=mode)
