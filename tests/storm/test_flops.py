# SPDX-License-Identifier: Apache-2.0
"""FLOPs from sizes alone are those of the operators that the model runs, and those published."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch.utils.flop_counter import FlopCounterMode

from stormrt.errors import InputError
from stormrt.storm.flops import OUTSIDE, block_parts, count_flops, first_grid, flops_share
from stormrt.storm.hosts import host_names
from stormrt.storm.plan import (
    MODES,
    RESTORES,
    UNITS,
    Reduction,
    StormPlan,
    check_plan,
    keep_plan,
    stage_grids,
)
from stormrt.storm.variants import VARIANTS, Variant, get_variant
from stormrt.storm.vmamba import VMamba
from tests.helpers.models import SMALL, SMALL_VANILLA, lively

PATCH_2 = dataclasses.replace(SMALL, name="patch_2", patch=2)
MODELS = {v.name: v for v in (SMALL, SMALL_VANILLA, PATCH_2)}

# The convention, written once more from the operators' side. PyTorch's counter takes a
# multiply-accumulate for two, so that everything else is doubled here, too.


def _norm_flops(x, shape, weight, bias, *_, **__):
    assert weight is not None
    return 2 * 5 * int(np.prod(x))


def _scan_flops(x, dt, b, c, a, *_, **__):
    batch, _, height, width = x
    channels, state = a
    return 2 * batch * height * width * channels * (9 * state + 1)


def _mean_flops(x, dims, *_, **__):
    # Only the mean before the head is over a map; fvcore counts upstream's pooling layer there.
    return 2 * int(np.prod(x)) if len(x) == 4 and tuple(dims) == (2, 3) else 0


def _nothing(*_, **__):
    return 0


OPERATORS = {
    torch.ops.aten.native_layer_norm: _norm_flops,
    torch.ops.stormrt.selective_scan_2d: _scan_flops,
    torch.ops.aten.mean: _mean_flops,
    # STORM's own operators move and average elements: no multiply-accumulates by the convention.
    torch.ops.stormrt.spatial_unit_merge: _nothing,
}


def run_and_count(model: VMamba, height: int, width: int) -> dict[str, int]:
    """FLOPs of each module, by its path, as the operators of one image's pass give them."""
    counter = FlopCounterMode(display=False, custom_mapping=OPERATORS)
    # The counter's hooks would follow gradients of parameters that modules hand on.
    with torch.no_grad(), counter:
        model.requires_grad_(False)(torch.randn(1, 3, height, width))
    counts: Mapping[str, Mapping[object, int]] = counter.get_flop_counts()
    totals = {name: sum(ops.values()) for name, ops in counts.items()}
    assert all(total % 2 == 0 for total in totals.values())
    return {name.removeprefix("VMamba").lstrip("."): n // 2 for name, n in totals.items()}


def random_plan(rng: np.random.Generator, variant: Variant, height: int, width: int) -> StormPlan:
    """Up to three reductions anywhere, of any kind, each to any size that fits."""
    places = [(s, b) for s, depth in enumerate(variant.depths) for b in range(depth)]
    while True:
        chosen = sorted(rng.permutation(len(places))[: rng.integers(1, 4)])
        reductions: list[Reduction] = []
        for stage, block in (places[i] for i in chosen):
            grid = stage_grids(variant, height, width, StormPlan(tuple(reductions)))[stage]
            for r in reductions:
                grid = (r.height, r.width) if r.stage == stage else grid
            size = tuple(int(rng.integers(max(1, side // 2), side + 1)) for side in grid)
            host, unit, mode, restore = (
                values[rng.integers(len(values))]
                for values in (host_names(), UNITS, MODES, RESTORES)
            )
            reductions.append(Reduction(stage, block, *size, host, unit, mode, restore))
        plan = StormPlan(tuple(reductions))
        try:
            check_plan(plan, variant, height, width)
        except InputError:
            continue
        return plan


@pytest.mark.parametrize("frozen", [False, True], ids=["plain", "frozen"])
@pytest.mark.parametrize("name", MODELS)
def test_the_count_is_that_of_the_operators_that_run(name, frozen, rng, seed):
    variant = MODELS[name]
    for plan in (StormPlan(), *[None] * 5):
        height, width = (int(side) for side in rng.integers(32, 90, 2))
        plan = random_plan(rng, variant, height, width) if plan is None else plan
        model = lively(variant, seed).with_plan(plan)
        ran = run_and_count(model.freeze() if frozen else model, height, width)
        counted = count_flops(variant, height, width, plan, num_classes=5)
        where = f"{height}x{width}, {plan.describe()}"
        assert counted.total == ran[""], where
        for (stage, block), flops in counted.by_block().items():
            if stage == -1:
                assert flops == ran["patch_embed"], where
            elif stage == len(variant.depths):
                assert flops == ran["classifier"], where
            elif block == OUTSIDE:
                assert flops == ran[f"layers.{stage}.downsample"], where
            else:
                assert flops == ran[f"layers.{stage}.blocks.{block}"], where


@pytest.mark.parametrize("name", MODELS)
def test_parts_of_a_block_are_those_of_its_modules(name, seed):
    variant = MODELS[name]
    ran = run_and_count(lively(variant, seed), 40, 56)
    parts = dict(block_parts(variant, 2, stage_grids(variant, 40, 56)[2]))
    prefix = "layers.2.blocks.1"
    assert parts["in_proj"] == ran[f"{prefix}.op.in_proj"]
    assert parts["dwconv"] == ran[f"{prefix}.op.conv2d"]
    assert parts["out_proj"] == ran[f"{prefix}.op.out_proj"]
    norms = sum(
        n for m, n in ran.items() if m.startswith(prefix) and "norm" in m.rpartition(".")[2]
    )
    assert parts["norms"] == norms
    assert parts["mlp"] == ran.get(f"{prefix}.mlp", 0)
    inside = ("in_proj", "dwconv", "x_proj", "dt_proj", "scan", "out_proj")
    assert sum(parts[p] for p in inside) + ran[f"{prefix}.op.out_norm"] == ran[f"{prefix}.op"]


# GFLOPs as published in upstream's performance table; that of vmamba_tiny_s2l5 as fvcore printed
# it to somebody who ran upstream's code (github.com/HaoKun-Li/VMamba_onnx, run.sh).
PUBLISHED = {
    "vmamba_tiny_s1l8": (4.9, 1),
    "vmamba_tiny_s2l5": (4.85774, 5),
    "vmamba_small_s2l15": (8.7, 1),
    "vmamba_small_s1l20": (8.6, 1),
    "vmamba_base_s2l15": (15.4, 1),
    "vmamba_base_s1l20": (15.2, 1),
    "vanilla_vmamba_tiny": (5.6, 1),
    "vanilla_vmamba_small": (11.2, 1),
    "vanilla_vmamba_base": (18.0, 1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_are_the_published_ones(name):
    gflops, digits = PUBLISHED[name]
    assert round(count_flops(VARIANTS[name], 224, 224).total / 1e9, digits) == gflops


def test_sums_agree_and_what_storm_does_stands_beside():
    variant = get_variant("vmamba_tiny_s1l8")
    plan = keep_plan(variant, 224, 224, 0.75)
    count = count_flops(variant, 224, 224, plan)
    for sums in (count.by_part(), count.by_block(), count.by_stage()):
        assert sum(sums.values()) == count.total
    assert not count_flops(variant, 224, 224).uncounted
    work = {item.part: item.flops for item in count.uncounted}
    assert work == {"score": 96 * 56 * 56, "lines": 2 * 56 * 56, "gather": 96 * 48 * 48}
    assert flops_share(variant, 224, 224, plan) == count.total / 4905609984


def test_an_image_too_small_is_refused_by_the_models_own_patches():
    assert first_grid(PATCH_2, 16, 17) == (8, 9)
    with pytest.raises(InputError, match="16 pixels or more"):
        count_flops(PATCH_2, 16, 15)
    with pytest.raises(InputError, match="32 pixels or more"):
        count_flops(SMALL, 31, 64)


@pytest.mark.parametrize("name", [*MODELS, *PUBLISHED])
def test_the_first_map_is_the_plans(name, rng):
    variant = MODELS.get(name) or VARIANTS[name]
    for height, width in rng.integers(32, 300, (20, 2)).tolist():
        assert first_grid(variant, height, width) == stage_grids(variant, height, width)[0]
