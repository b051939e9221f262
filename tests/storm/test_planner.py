# SPDX-License-Identifier: Apache-2.0
"""Budgets become plans that fit them, as nearly as whole lines allow, or are refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stormrt.errors import InputError
from stormrt.storm.flops import count_flops, flops_share
from stormrt.storm.ladder import Ladder
from stormrt.storm.plan import StormPlan, check_plan, keep_plan
from stormrt.storm.planner import (
    Target,
    is_target,
    parse_target,
    plan_for_flops,
    plan_for_latency,
    plan_for_target,
)
from stormrt.storm.policies import POLICIES
from stormrt.storm.variants import VARIANTS, Variant, get_variant

ROOT = Path(__file__).resolve().parents[2]
TINY = get_variant("vmamba_tiny_s1l8")
NAMES = tuple(VARIANTS)


def some_variant(rng: np.random.Generator) -> tuple[Variant, int, int]:
    height, width = (int(side) for side in rng.integers(32, 300, 2))
    return VARIANTS[NAMES[rng.integers(len(NAMES))]], height, width


# --- FLOPs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_target_is_met_and_one_line_more_would_miss_it(policy, rng):
    met = 0
    for _ in range(30):
        variant, height, width = some_variant(rng)
        steps, share = int(rng.integers(1, 4)), float(rng.uniform(0.2, 1.0))
        where = f"{variant.name} {height}x{width} flops={share},steps={steps}"
        try:
            choice = plan_for_flops(variant, height, width, share, steps=steps, policy=policy)
        except InputError:
            ladder = Ladder(variant, height, width, POLICIES[policy], steps)
            least = min(flops_share(variant, height, width, ladder[len(ladder) - 1]), 1.0)
            assert least > share, where
            continue
        met += 1
        check_plan(choice.plan, variant, height, width)
        assert choice.share <= share, where
        assert choice.share == flops_share(variant, height, width, choice.plan), where
        ladder = Ladder(variant, height, width, POLICIES[policy], steps)
        rung = ladder.first_within(share * choice.dense_flops)
        assert ladder[rung] == choice.plan, where
        assert rung == 0 or ladder.flops(rung - 1) > share * choice.dense_flops, where
    assert met > 5


@pytest.mark.parametrize("policy", POLICIES)
def test_a_ladder_leads_from_dense_to_one_line_and_never_up(policy, rng):
    for steps in (1, 2, 3):
        variant, height, width = some_variant(rng)
        ladder = Ladder(variant, height, width, POLICIES[policy], steps)
        plans = [ladder[rung] for rung in range(len(ladder))]
        assert plans[0] == StormPlan()
        assert {(r.height, r.width) for r in plans[-1].reductions} <= {(1, 1)}
        costs = [count_flops(variant, height, width, plan).total for plan in plans]
        assert all(a >= b for a, b in itertools.pairwise(costs))
        for plan in plans:
            check_plan(plan, variant, height, width)
        # From rung to rung a place loses one line at most.
        sizes = [{(r.stage, r.block): (r.height, r.width) for r in p.reductions} for p in plans]
        for before, after in itertools.pairwise(sizes):
            for place in before.keys() & after.keys():
                lost = np.subtract(before[place], after[place])
                assert lost.min() >= 0
                assert lost.sum() <= 1


def test_a_larger_budget_keeps_no_less(rng):
    for _ in range(5):
        variant, height, width = some_variant(rng)
        shares = np.sort(rng.uniform(0.4, 1.0, 8))
        flops = [plan_for_flops(variant, height, width, float(s), steps=2).flops for s in shares]
        assert flops == sorted(flops)


def test_the_whole_budget_is_the_dense_model_and_plans_are_repeatable():
    for steps in (1, 3):
        assert plan_for_flops(TINY, 224, 224, 1.0, steps=steps).plan == StormPlan()
        two = [plan_for_flops(TINY, 224, 224, 0.7, steps=steps) for _ in range(2)]
        assert two[0] == two[1]
        assert len(two[0].plan.reductions) == steps
        assert "% of the dense FLOPs" in two[0].describe()


def test_steps_are_spread_over_the_flops_and_each_keeps_the_same_share():
    ladder = Ladder(TINY, 224, 224, POLICIES["early"], 2)
    after = count_flops(TINY, 224, 224).by_block()
    rest = [sum(f for at, f in after.items() if at >= place) for place in ladder.places]
    assert ladder.places[0] == (0, 1)
    assert rest[1] / rest[0] == pytest.approx(0.5, abs=0.05)
    first, second = ladder[ladder.first_within(0.7 * ladder.dense_flops)].reductions
    share = first.height / 56
    assert second.height / 14 == pytest.approx(share**2, abs=1 / 14)


def test_a_policy_is_data_that_can_be_replaced():
    preferences = POLICIES["early"].stages
    heavier = dataclasses.replace(preferences[2], weight=3.0, host="step_size")
    policy = dataclasses.replace(
        POLICIES["early"], stages=(*preferences[:2], heavier, preferences[3])
    )
    plain = plan_for_flops(TINY, 224, 224, 0.7, steps=2).plan.reductions
    changed = plan_for_flops(TINY, 224, 224, 0.7, steps=2, policy=policy).plan.reductions
    assert changed[0].height > plain[0].height
    assert changed[1].height < plain[1].height
    assert changed[1].host == "step_size"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flops=0", "out of range"),
        ("flops=1.1", "out of range"),
        ("flops=nan", "out of range"),
        ("flops=0.01", r"no plan costs as little(.|\n)*0.104 or more"),
        ("flops=0.2,policy=late", r"no plan(.|\n)*policy=early"),
        ("flops=0.7,policy=never", "early, middle, late"),
        ("flops=0.7,steps=99", "1 to 11"),
        ("flops=0.7,steps=0", "1 to 11"),
    ],
)
def test_impossible_budgets_are_refused_in_one_message(text, message):
    with pytest.raises(InputError, match=message):
        plan_for_target(text, TINY, 224, 224)


# --- latency -------------------------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path):
    """Times of VMamba-T: the dense model is faster than a slight reduction, as on a real GPU."""
    rows = [
        {"model": TINY.name, "size": 224, "batch": 1, "plan": plan, "ms": ms}
        for plan, ms in (("keep=1", 1.3), ("keep=0.75", 1.4), ("keep=0.5", 1.2), ("keep=0.25", 0.8))
    ]
    rows.append({**rows[0], "batch": 64, "ms": 20.0})
    rows.append({**rows[0], "model": "vmamba_nano_scenes", "size": [128, 96]})
    path = tmp_path / "times.json"
    path.write_text(json.dumps({"environment": "ignored", "latency": rows}))
    return path


@pytest.mark.parametrize(
    ("bound", "keep", "ms"),
    [(5.0, 1.0, 1.3), (1.4, 1.0, 1.3), (1.3, 1.0, 1.3), (1.2, 0.5, 1.2), (0.8, 0.25, 0.8)],
)
def test_a_measured_plan_that_is_fast_enough_is_taken_as_it_is(measured, bound, keep, ms):
    choice = plan_for_latency(TINY, 224, 224, bound, measured)
    assert choice.plan == keep_plan(TINY, 224, 224, keep)
    assert choice.ms == ms
    assert choice.measured
    assert "measured)" in choice.describe()


def test_between_measured_plans_of_one_shape_time_goes_with_the_flops(measured):
    slower, faster = (keep_plan(TINY, 224, 224, keep) for keep in (0.5, 0.25))
    choice = plan_for_latency(TINY, 224, 224, 1.0, measured)
    assert not choice.measured
    assert "interpolated" in choice.describe()
    assert choice.ms is not None
    assert 0.95 < choice.ms <= 1.0
    ends = [count_flops(TINY, 224, 224, plan).total for plan in (faster, slower)]
    assert choice.flops <= sum(ends) / 2
    assert choice.flops > sum(ends) / 2 - 0.02 * choice.dense_flops
    (own,), (low,), (high,) = (p.reductions for p in (choice.plan, faster, slower))
    assert low.height < own.height < high.height
    assert dataclasses.replace(own, height=0, width=0) == dataclasses.replace(
        low, height=0, width=0
    )


def test_a_larger_bound_keeps_no_less(measured, rng):
    bounds = np.sort(rng.uniform(0.8, 1.6, 40))
    choices = [plan_for_latency(TINY, 224, 224, float(b), measured) for b in bounds]
    flops = [c.flops for c in choices]
    assert flops == sorted(flops)
    assert all(c.ms <= b for c, b in zip(choices, bounds, strict=True))


def test_nothing_is_guessed_beyond_the_measured(measured, tmp_path):
    with pytest.raises(InputError, match=r"no measured plan is as fast(.|\n)*0.8 ms or more"):
        plan_for_latency(TINY, 224, 224, 0.79, measured)
    with pytest.raises(InputError, match=r"nothing was measured(.|\n)*batch 64"):
        plan_for_latency(TINY, 224, 224, 1.0, measured, batch=2)
    with pytest.raises(InputError, match=r"nothing was measured(.|\n)*128x96"):
        plan_for_latency(TINY, 128, 96, 1.0, measured)
    for bad in ("nothing", "[]", '{"latency": [{"model": "x"}]}', '{"latency": 3}'):
        path = tmp_path / "bad.json"
        path.write_text(bad)
        with pytest.raises(InputError, match="could not be read"):
            plan_for_latency(TINY, 224, 224, 1.0, path)
    with pytest.raises(InputError, match="could not be read"):
        plan_for_latency(TINY, 224, 224, 1.0, tmp_path / "absent.json")
    for bad_bound in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="no positive number"):
            plan_for_latency(TINY, 224, 224, bad_bound, measured)


def test_plans_of_other_places_are_no_neighbours(tmp_path):
    plans = (keep_plan(TINY, 224, 224, 0.75), keep_plan(TINY, 224, 224, 0.25, stage=1))
    rows = [
        {"model": TINY.name, "size": 224, "batch": 1, "plan": json.loads(p.to_json()), "ms": ms}
        for p, ms in zip(plans, (2.0, 1.0), strict=True)
    ]
    path = tmp_path / "times.json"
    path.write_text(json.dumps({"latency": rows}))
    assert plan_for_latency(TINY, 224, 224, 1.5, path).plan == plans[1]


def test_fixed_lines_come_back_from_the_file_as_they_were(tmp_path):
    fixed = dataclasses.replace(
        keep_plan(TINY, 224, 224, 0.5).reductions[0],
        height=2, width=2, rows=(1, 5), cols=(0, 3), mode="merge",
    )  # fmt: skip
    plan = StormPlan((fixed,))
    row = {"model": TINY.name, "size": 224, "batch": 1, "plan": json.loads(plan.to_json()), "ms": 1}
    path = tmp_path / "times.json"
    path.write_text(json.dumps({"latency": [row]}))
    assert plan_for_latency(TINY, 224, 224, 1.5, path).plan == plan


def test_plans_are_made_without_pytorch():
    code = (
        "import sys; from stormrt.storm import planner, variants\n"
        "v = variants.get_variant('vmamba_tiny_s1l8')\n"
        "planner.plan_for_target('flops=0.5,steps=2', v, 224, 224)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# --- text ----------------------------------------------------------------------------------------


def test_budgets_are_told_from_other_plans_and_read():
    assert is_target("flops=0.5")
    assert is_target("latency<=3,file=x.json")
    assert not is_target("keep=0.5")
    assert not is_target("plan.json")
    assert parse_target("flops=0.75, steps=2,policy=late") == Target(
        "flops", 0.75, steps=2, policy="late"
    )
    target = parse_target("latency <= 3.5,file=a/b.json,batch=64")
    assert (target.kind, target.value, target.batch) == ("latency", 3.5, 64)
    assert str(target.file) == "a/b.json"


def test_a_latency_in_words_reads_its_file(measured):
    choice = plan_for_target(f"latency<=1.25,file={measured},batch=1", TINY, 224, 224)
    assert choice == plan_for_latency(TINY, 224, 224, 1.25, measured)


@pytest.mark.parametrize(
    "text",
    [
        "flops<=0.5", "flops", "flops=", "flops=half", "flops=0.5,steps=two", "latency=3,file=x",
        "flops=0.5,steps", "flops=0.5,steps=2,steps=3", "flops=0.5,batch=2", "latency<=,file=x",
        "flops=0.5,", "flopsy=0.5",
    ],
)  # fmt: skip
def test_what_is_no_budget_is_refused_with_the_forms(text):
    with pytest.raises(InputError, match=r"not understood(.|\n)*flops=F"):
        parse_target(text)


def test_a_latency_without_times_is_told_what_to_add():
    with pytest.raises(InputError, match="file=PATH"):
        parse_target("latency<=3")
