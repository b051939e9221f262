# SPDX-License-Identifier: Apache-2.0
"""Plans: read from text and files, fitted to a model and an image size, refused when they are not.

Needs no PyTorch.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from stormrt.errors import InputError
from stormrt.storm.plan import (
    Reduction,
    StormPlan,
    check_plan,
    keep_plan,
    parse_plan,
    stage_grids,
)
from stormrt.storm.planner import plan_for_target
from stormrt.storm.variants import VARIANTS, get_variant

TINY = get_variant("vmamba_tiny_s1l8")
VANILLA = get_variant("vanilla_vmamba_tiny")


def plan_file(folder: Path, content: object) -> str:
    path = folder / "plan.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def reduction(**changes: object) -> dict[str, object]:
    return {"stage": 0, "block": 1, "height": 40, "width": 30} | changes


def fixed(**changes: object) -> dict[str, object]:
    return reduction(rows=list(range(40)), cols=list(range(30))) | changes


def test_maps_of_a_224_image_are_56_28_14_and_7_wide() -> None:
    for variant in VARIANTS.values():
        if variant.patch == 4:
            assert stage_grids(variant, 224, 224) == [(56, 56), (28, 28), (14, 14), (7, 7)]


def test_patches_of_two_pixels_make_maps_twice_as_wide() -> None:
    variant = get_variant("vmamba_nano_cifar10")
    assert stage_grids(variant, 32, 32) == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert stage_grids(variant, 33, 50) == [(17, 25), (9, 13), (5, 7), (3, 4)]
    without_overlap = dataclasses.replace(VANILLA, patch=2)
    assert stage_grids(without_overlap, 33, 50) == [(16, 25), (8, 13), (4, 7), (2, 4)]


def test_overlapping_convolutions_round_odd_sides_up_and_patches_cut_them_off() -> None:
    assert stage_grids(TINY, 33, 250) == [(9, 63), (5, 32), (3, 16), (2, 8)]
    assert stage_grids(VANILLA, 33, 250) == [(8, 62), (4, 31), (2, 16), (1, 8)]


def test_later_stages_see_what_a_plan_takes_away() -> None:
    plan = StormPlan((Reduction(0, 1, 49, 41), Reduction(2, 0, 9, 10), Reduction(2, 3, 5, 8)))
    assert stage_grids(TINY, 224, 224, plan) == [(56, 56), (25, 21), (13, 11), (3, 4)]


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (17, 17), (0, 32), (-5, 224)])
def test_an_image_below_32_pixels_is_refused_with_its_size(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"{size[0]}x{size[1]} pixels") as caught:
        stage_grids(TINY, *size)
    assert "32 pixels or more" in str(caught.value)


def test_keep_reduces_after_the_first_block_by_feature_norm_unless_told_otherwise() -> None:
    assert parse_plan("keep=0.75", TINY, 224, 224).reductions == (Reduction(0, 1, 48, 48),)
    text = " keep = 0.5 , host = step_size , stage = 2 , block = 3 "
    assert parse_plan(text, TINY, 224, 224).reductions == (Reduction(2, 3, 10, 10, "step_size"),)


def test_keep_1_is_the_empty_plan_and_so_is_a_share_that_rounds_to_every_line() -> None:
    assert parse_plan("keep=1", TINY, 224, 96) == StormPlan()
    assert parse_plan("keep=0.999", TINY, 224, 96) == StormPlan()
    assert StormPlan().describe() == "dense"


def test_keep_keeps_about_its_share_of_the_tokens_in_both_directions(
    rng: np.random.Generator,
) -> None:
    for _ in range(200):
        height, width = (int(v) for v in rng.integers(32, 600, 2))
        stage, keep = int(rng.integers(4)), float(rng.uniform(0.02, 1))
        plan = keep_plan(TINY, height, width, keep, stage=stage, block=1)
        rows, cols = stage_grids(TINY, height, width)[stage]
        kept = [(r.height, r.width) for r in plan.reductions] or [(rows, cols)]
        # At most half a line of rounding on each side, but never less than one line.
        exact = [side * math.sqrt(keep) for side in (rows, cols)]
        for got, want in zip(kept[0], exact, strict=True):
            assert got >= 1
            assert abs(got - max(1, want)) <= 0.5
        if min(exact) >= 1:
            share = kept[0][0] * kept[0][1] / (rows * cols)
            assert abs(share - keep) <= (0.5 * sum(exact) + 0.25) / (rows * cols) + 1e-12


def test_the_smallest_share_still_keeps_one_line_of_each_direction() -> None:
    assert parse_plan("keep=1e-9", TINY, 224, 224).reductions == (Reduction(0, 1, 1, 1),)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("keep=0", "more than 0 and at most 1"),
        ("keep=-0.5", "more than 0 and at most 1"),
        ("keep=1.5", "more than 0 and at most 1"),
        ("keep=nan", "more than 0 and at most 1"),
        ("keep=inf", "more than 0 and at most 1"),
        ("keep=abc", "keep is not a number"),
        ("keep=", "keep is not a number"),
        ("keep=0.5,stage=one", "stage is not a whole number"),
        ("keep=0.5,block=1.5", "block is not a whole number"),
        ("keep=0.5,hots=step_size", "was not understood"),
        ("keep=0.5,", "was not understood"),
        ("keep=0.5,keep=0.6", "was not understood"),
        ("host=step_size", "was not understood"),
        ("keep=0.5,host=attention", "unknown host 'attention'"),
        ("keep=1,host=attention", "unknown host 'attention'"),
        ("keep=0.5,stage=4", "0 to 3"),
        ("keep=0.5,stage=-1", "0 to 3"),
        ("keep=0.5,block=2", "stage 0 of vmamba_tiny_s1l8 has blocks 0 to 1"),
        ("keep=0.5,block=-1", "has blocks 0 to 1"),
        ("keep=1,block=9", "has blocks 0 to 1"),
        ("keep=0.5,host=step_size,block=0", "block 0 has none"),
        ("keep=0.5,host=clipped_output,block=0", "block 0 has none"),
        ("keep=0.5,unit=token", "unknown unit 'token'"),
        ("keep=0.5,unit=", "expected: line, window"),
        ("keep=0.5,mode=average", "expected: drop, merge"),
        ("keep=0.5,restore=yes", "expected: no, stage, end"),
        ("keep=0.5,weights=size", "was not understood"),
    ],
)
def test_a_bad_shorthand_is_refused_naming_what_is_wrong(text: str, named: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_plan(text, TINY, 224, 224)
    assert named in str(caught.value)


@pytest.mark.parametrize("stage", [-1, 4])
def test_keep_plan_refuses_a_stage_that_the_model_has_not(stage: int) -> None:
    with pytest.raises(InputError, match="no such stage"):
        keep_plan(TINY, 224, 224, 0.5, stage=stage)


def test_a_plan_survives_its_file_and_comes_back_in_the_networks_order(tmp_path: Path) -> None:
    late, early = Reduction(2, 4, 7, 9, "step_size"), Reduction(0, 0, 50, 33)
    written = StormPlan((late, early)).to_json()
    read = parse_plan(plan_file(tmp_path, written), TINY, 224, 224)
    assert read == StormPlan((early, late))
    assert read.describe() == (
        "stage 0 block 0: 50x33 lines by feature_norm; stage 2 block 4: 7x9 lines by step_size"
    )
    assert hash(read) == hash(StormPlan((early, late)))


def test_the_shorthand_names_unit_mode_and_restore() -> None:
    text = "keep=0.5,unit=window,mode=merge,restore=end,host=dissimilarity"
    (r,) = parse_plan(text, TINY, 224, 224).reductions
    assert r == Reduction(0, 1, 40, 40, "dissimilarity", "window", "merge", "end")
    assert parse_plan("keep=0.5,unit=line,mode=drop,restore=no", TINY, 224, 224) == parse_plan(
        "keep=0.5", TINY, 224, 224
    )


def test_a_budget_becomes_the_planners_plan(tmp_path: Path) -> None:
    plan = parse_plan("flops=0.7", TINY, 224, 224)
    assert plan == plan_for_target("flops=0.7", TINY, 224, 224).plan
    assert plan.reductions
    with pytest.raises(InputError, match="budget was not understood"):
        parse_plan("flops=much", TINY, 224, 224)
    path = tmp_path / "flops.json"
    path.write_text(plan.to_json())
    assert parse_plan(str(path), TINY, 224, 224) == plan


def test_every_field_survives_a_plans_file(tmp_path: Path) -> None:
    every = Reduction(
        0, 1, 3, 2, "dissimilarity", "line", "merge", "end", (1, 4, 50), (0, 55), "distance", True
    )
    plan = StormPlan((every, Reduction(1, 0, 1, 1, "random", "window", restore="stage")))
    read = parse_plan(plan_file(tmp_path, plan.to_json()), TINY, 224, 224)
    assert read == plan
    assert hash(read) == hash(plan)
    assert read.describe() == (
        "stage 0 block 1: 3x2 lines by dissimilarity, the same in every image, merged by distance, "
        "steps grow, restored at the end; "
        "stage 1 block 0: 1x1 in windows by random, restored at the end of the stage"
    )


def test_a_file_of_a_plain_plan_is_what_it_always_was() -> None:
    assert StormPlan((Reduction(0, 1, 48, 47),)).to_json() == (
        '{"reductions": [{"block": 1, "height": 48, "host": "feature_norm", "stage": 0, '
        '"width": 47}]}'
    )
    assert '"rows": null' not in StormPlan((Reduction(0, 1, 3, 3, mode="merge"),)).to_json()


def test_lines_of_a_file_may_be_null(tmp_path: Path) -> None:
    path = plan_file(tmp_path, {"reductions": [reduction(rows=None, cols=None)]})
    assert parse_plan(path, TINY, 224, 224).reductions == (Reduction(0, 1, 40, 30),)


def test_fixed_lines_need_no_block_before() -> None:
    r = Reduction(0, 0, 2, 2, "step_size", rows=(0, 1), cols=(0, 1))
    check_plan(StormPlan((r,)), TINY, 224, 224)


def test_a_stage_that_restores_hands_on_the_map_it_was_given() -> None:
    inside = (Reduction(0, 0, 20, 30, restore="stage"), Reduction(0, 1, 10, 9, restore="stage"))
    assert stage_grids(TINY, 224, 224, StormPlan(inside)) == stage_grids(TINY, 224, 224)
    after = (Reduction(0, 0, 40, 30), Reduction(0, 1, 10, 9, restore="stage"))
    assert stage_grids(TINY, 224, 224, StormPlan(after))[1] == (20, 15)
    late = (Reduction(0, 1, 40, 30, restore="end"), Reduction(1, 0, 3, 3, restore="stage"))
    assert stage_grids(TINY, 224, 224, StormPlan(late)) == [(56, 56), (20, 15), (10, 8), (5, 4)]


@pytest.mark.parametrize(
    ("earlier", "later", "same_stage", "fits"),
    [
        ("no", "no", True, True),
        ("no", "stage", True, True),
        ("no", "end", True, True),
        ("stage", "no", True, False),
        ("stage", "end", True, False),
        ("stage", "stage", True, True),
        ("stage", "no", False, True),
        ("stage", "end", False, True),
        ("end", "no", True, False),
        ("end", "no", False, False),
        ("end", "stage", True, True),
        ("end", "end", False, True),
    ],
)
def test_what_is_reduced_later_must_be_restored_no_later(
    earlier: str, later: str, same_stage: bool, fits: bool
) -> None:
    place = (0, 1) if same_stage else (2, 3)
    plan = StormPlan(
        (Reduction(0, 0, 40, 40, restore=earlier), Reduction(*place, 5, 5, restore=later))
    )
    if fits:
        check_plan(plan, TINY, 224, 224)
        return
    with pytest.raises(InputError, match=f"restore '{later}' cannot follow restore '{earlier}'"):
        check_plan(plan, TINY, 224, 224)


def test_a_file_in_a_folder_with_an_equals_sign_is_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "keep=0.5"
    folder.mkdir()
    path = plan_file(folder, {"reductions": [reduction()]})
    assert parse_plan(path, TINY, 224, 224).reductions == (Reduction(0, 1, 40, 30),)


def test_a_plan_file_may_be_empty_of_reductions(tmp_path: Path) -> None:
    assert parse_plan(plan_file(tmp_path, {"reductions": []}), TINY, 224, 224) == StormPlan()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "keep",
        "{",
        "[]",
        "null",
        {},
        {"reductions": None},
        {"reductions": 3},
        {"reductions": {"stage": 0}},
        {"reductions": ["stage 0"]},
        {"reductions": [], "version": 2},
        {"reductions": [reduction(colour="red")]},
        {"reductions": [{"stage": 0, "block": 1, "height": 40}]},
        {"reductions": [reduction(height="40")]},
        {"reductions": [reduction(height=40.5)]},
        {"reductions": [reduction(stage=True)]},
        {"reductions": [reduction(block=None)]},
        {"reductions": [reduction(dt_grows=1)]},
        {"reductions": [reduction(dt_grows="no")]},
        {"reductions": [reduction(rows=3)]},
        {"reductions": [reduction(rows="0123")]},
        {"reductions": [reduction(rows=[0, True])]},
        {"reductions": [reduction(cols=[0, 1.0])]},
    ],
    ids=json.dumps,
)
def test_a_malformed_file_is_refused_naming_the_file(tmp_path: Path, content: object) -> None:
    path = plan_file(tmp_path, content)
    with pytest.raises(InputError, match="could not be read") as caught:
        parse_plan(path, TINY, 224, 224)
    assert path in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b'{"reductions": \x80}'])
def test_a_file_that_is_not_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="could not be read"):
        parse_plan(str(path), TINY, 224, 224)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="could not be read"):
            parse_plan(str(path), TINY, 224, 224)


@pytest.mark.parametrize(
    ("item", "named"),
    [
        (reduction(stage=4), "has stages 0 to 3"),
        (reduction(stage=-1), "has stages 0 to 3"),
        (reduction(block=2), "stage 0 of vmamba_tiny_s1l8 has blocks 0 to 1"),
        (reduction(height=0), "cannot keep 0x30 lines of a 56x56 map"),
        (reduction(width=57), "cannot keep 40x57 lines of a 56x56 map"),
        (reduction(stage=3, height=8), "cannot keep 8x30 lines of a 7x7 map"),
        (reduction(host="attention"), "there are feature_norm, step_size"),
        (reduction(host=5), "unknown host 5"),
        (reduction(host="step_size", block=0), "use feature_norm or a later block"),
        (reduction(host=["step_size"]), "unknown host ['step_size']"),
        (reduction(unit="token"), "unknown unit 'token'; there are line, window"),
        (reduction(mode=3), "unknown mode 3; there are drop, merge"),
        (reduction(restore=True), "unknown restore True; there are no, stage, end"),
        (reduction(mode="merge", weights="near"), "there are size, distance"),
        (reduction(weights="distance"), "use mode merge"),
        (reduction(dt_grows=True), "use mode merge"),
        (reduction(rows=list(range(40))), "rows and cols are both given, or neither"),
        (fixed(rows=[*range(39)]), "rows must be 40 rising numbers from 0 to 55"),
        (fixed(rows=[*range(39), 38]), "rows must be 40 rising"),
        (fixed(rows=[*range(39), 56]), "rows must be 40 rising"),
        (fixed(cols=[-1, *range(29)]), "cols must be 30 rising"),
        (fixed(cols=[]), "cols must be 30 rising"),
        (fixed(unit="window"), "windows choose for each image"),
    ],
)
def test_a_file_that_does_not_fit_the_model_is_refused_naming_the_place(
    tmp_path: Path, item: dict[str, object], named: str
) -> None:
    with pytest.raises(InputError, match="does not fit vmamba_tiny_s1l8 at 224x224") as caught:
        parse_plan(plan_file(tmp_path, {"reductions": [item]}), TINY, 224, 224)
    assert named in str(caught.value)
    assert f"stage {item['stage']} block {item['block']}" in str(caught.value)


def test_a_second_reduction_can_keep_only_what_the_first_left() -> None:
    first = Reduction(0, 0, 40, 40)
    check_plan(StormPlan((first, Reduction(0, 1, 40, 39))), TINY, 224, 224)
    with pytest.raises(InputError, match="cannot keep 41x39 lines of a 40x40 map"):
        check_plan(StormPlan((first, Reduction(0, 1, 41, 39))), TINY, 224, 224)
    with pytest.raises(InputError, match="cannot keep 21x20 lines of a 20x20 map"):
        check_plan(StormPlan((first, Reduction(1, 0, 21, 20))), TINY, 224, 224)


def test_all_that_is_wrong_with_a_plan_is_said_at_once() -> None:
    plan = StormPlan((Reduction(0, 9, 5, 5), Reduction(0, 9, 5, 5), Reduction(7, 0, 1, 1)))
    with pytest.raises(InputError) as caught:
        check_plan(plan, TINY, 224, 224)
    for part in ("before the same block", "blocks 0 to 1", "stages 0 to 3"):
        assert part in str(caught.value)
