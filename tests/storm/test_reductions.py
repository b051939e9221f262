# SPDX-License-Identifier: Apache-2.0
"""Units, modes and restores, alone and in a model, against loops over windows and cells.

What can go wrong: a token that leaves its window, a merge that forgets what a token stands for, a
map that is put together wrongly when it gets its size back, images of a batch that mix.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from stormrt.storm.grid import GridTrace
from stormrt.storm.hosts import host_names
from stormrt.storm.lines import selection_bounds
from stormrt.storm.plan import MODES, RESTORES, UNITS, WEIGHTS, Reduction, StormPlan, check_plan
from stormrt.storm.reductions import make_reduction
from stormrt.storm.vmamba import VMamba, forced_selections
from tests.helpers.models import SMALL, SMALL_VANILLA, lively, random_images
from tests.helpers.reductions import run_by_hand
from tests.helpers.scans import relative_l2
from tests.helpers.seeds import SEED

VARIANTS = (SMALL, SMALL_VANILLA)
HEIGHT, WIDTH = 96, 72
"""Of the images; the first map is 24 x 18."""

KINDS = list(itertools.product(UNITS, MODES))
ALL = list(itertools.product(host_names(), UNITS, MODES, RESTORES))


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda v: v.name)
def model(request: pytest.FixtureRequest) -> VMamba:
    return lively(request.param, SEED)


@pytest.fixture(autouse=True)
def _no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def a_plan(
    rng: np.random.Generator, host: str, unit: str, mode: str, restore: str, **more: object
) -> StormPlan:
    """Three reductions of one kind in two stages, the first to a random size."""

    def at(stage: int, block: int, height: int, width: int) -> Reduction:
        return Reduction(stage, block, height, width, host, unit, mode, restore, **more)

    first = at(0, 1, int(rng.integers(7, 24)), int(rng.integers(7, 18)))
    plan = StormPlan((first, at(2, 1, 2, 2), at(2, 2, 2, 1)))
    check_plan(plan, SMALL, HEIGHT, WIDTH)
    return plan


# --- the whole network -------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "unit", "mode", "restore"), ALL)
def test_a_reduced_model_is_what_cutting_it_down_by_hand_gives(
    host: str, unit: str, mode: str, restore: str, model: VMamba, rng: np.random.Generator
) -> None:
    more = {"weights": WEIGHTS[rng.integers(2)], "dt_grows": bool(rng.integers(2))}
    plan = a_plan(rng, host, unit, mode, restore, **(more if mode == "merge" else {}))
    print(plan)
    x = random_images(rng, 2, HEIGHT, WIDTH)
    reduced = model.with_plan(plan)
    found = [*reduced.forward_features(x), reduced(x)]
    for got, expected in zip(found, run_by_hand(model, x, plan), strict=True):
        assert got.shape == expected.shape
        assert relative_l2(got, expected) < 1e-5
    assert relative_l2(found[-1], model(x)) > 1e-3  # the plan does something


@pytest.mark.parametrize(("host", "unit", "mode", "restore"), ALL)
def test_keeping_every_unit_is_the_dense_model_to_the_bit(
    host: str, unit: str, mode: str, restore: str, model: VMamba, rng: np.random.Generator
) -> None:
    plan = StormPlan(
        tuple(
            Reduction(stage, block, *side, host, unit, mode, restore)
            for stage, block, side in ((0, 1, (13, 17)), (2, 1, (4, 5)), (2, 2, (4, 5)))
        )
    )
    if not model.variant.overlapping:
        plan = StormPlan((Reduction(0, 1, 12, 16, host, unit, mode, restore),))
    check_plan(plan, model.variant, 50, 67)
    x = random_images(rng, 2, 50, 67)
    assert torch.equal(model.with_plan(plan)(x), model(x))


@pytest.mark.parametrize(
    ("unit", "mode", "restore"), list(itertools.product(*[UNITS, MODES, RESTORES]))
)
def test_keeping_every_row_or_every_column_reduces_the_other_axis_alone(
    unit: str, mode: str, restore: str, model: VMamba, rng: np.random.Generator
) -> None:
    x = random_images(rng, 2, HEIGHT, WIDTH)
    for size in ((24, 11), (9, 18)):
        plan = StormPlan((Reduction(0, 1, *size, "feature_norm", unit, mode, restore),))
        reduced = model.with_plan(plan)(x)
        assert relative_l2(reduced, run_by_hand(model, x, plan)[-1]) < 1e-5


@pytest.mark.parametrize(
    ("host", "unit", "mode"), list(itertools.product(host_names(), *[UNITS, MODES]))
)
def test_permuting_a_batch_permutes_its_outputs(
    host: str, unit: str, mode: str, model: VMamba, rng: np.random.Generator
) -> None:
    reduced = model.with_plan(a_plan(rng, host, unit, mode, RESTORES[rng.integers(3)]))
    x = random_images(rng, 3, HEIGHT, WIDTH)
    together = reduced(x)
    order = torch.from_numpy(rng.permutation(3))
    assert relative_l2(reduced(x[order]), together[order]) < 1e-5
    alone = torch.cat([reduced(x[i : i + 1]) for i in range(3)])
    assert relative_l2(alone, together) < 1e-4


@pytest.mark.parametrize(("unit", "mode"), KINDS)
def test_an_image_of_no_numbers_spoils_only_itself(
    unit: str, mode: str, model: VMamba, rng: np.random.Generator
) -> None:
    reduced = model.with_plan(a_plan(rng, "dissimilarity", unit, mode, "stage"))
    x = random_images(rng, 3, HEIGHT, WIDTH)
    clean = reduced(x)
    x[1] = torch.nan
    spoilt = reduced(x)
    assert spoilt[1].isnan().all()
    assert torch.equal(spoilt[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize(("unit", "mode"), KINDS)
def test_a_gradient_reaches_every_parameter(unit: str, mode: str, rng: np.random.Generator) -> None:
    model = lively(SMALL, SEED).train()
    r = Reduction(0, 1, 15, 13, "feature_norm", unit, mode, "stage")
    logits = model.with_plan(StormPlan((r,)))(random_images(rng, 2, HEIGHT, WIDTH))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3])).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("restore", RESTORES)
def test_reductions_of_several_kinds_work_together(
    restore: str, model: VMamba, rng: np.random.Generator
) -> None:
    plan = StormPlan(
        (
            Reduction(0, 0, 21, 17, "dissimilarity", "window", "merge", "no"),
            Reduction(0, 1, 9, 16, "step_size", "line", "merge", "end", dt_grows=True),
            Reduction(1, 0, 5, 7, "uniform", "line", "drop", "stage"),
            Reduction(2, 1, 2, 3, "clipped_output", "window", "drop", "end"),
            Reduction(2, 2, 2, 2, "feature_norm", "line", "merge", "stage", weights="distance"),
            Reduction(3, 0, 1, 1, "random", "line", "merge", "end" if restore == "no" else restore),
        )
    )
    check_plan(plan, model.variant, HEIGHT, WIDTH)
    x = random_images(rng, 2, HEIGHT, WIDTH)
    reduced = model.with_plan(plan)
    found = [*reduced.forward_features(x), reduced(x)]
    for got, expected in zip(found, run_by_hand(model, x, plan), strict=True):
        assert got.shape == expected.shape
        assert relative_l2(got, expected) < 1e-5


# --- one reduction -----------------------------------------------------------------------------


def some_maps(rng: np.random.Generator, height: int, width: int) -> Tensor:
    """[2, 6, height, width]: its row and its column are the first channels of each token."""
    x = rng.normal(size=(2, 6, height, width))
    x[:, 0], x[:, 1] = np.indices((height, width))
    return torch.from_numpy(x).float()


def sizes(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """H, W, H', W'."""
    height, width = (int(v) for v in rng.integers(2, 30, 2))
    return height, width, int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))


def run_one(r: Reduction, x: Tensor) -> tuple[Tensor, GridTrace]:
    trace = GridTrace(StormPlan((r,)), kept=[])
    return make_reduction(r)(x, None, trace), trace


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("host", ["dissimilarity", "uniform", "random"])
def test_no_token_leaves_its_window_and_the_order_of_neighbours_stays(
    unit: str, host: str, rng: np.random.Generator
) -> None:
    for _ in range(30):
        height, width, rows, cols = sizes(rng)
        x = some_maps(rng, height, width)
        y, _ = run_one(Reduction(0, 0, rows, cols, host, unit), x)
        for axis, (lines, keep) in enumerate(((height, rows), (width, cols))):
            origin = y[:, axis].long()
            assert (origin.diff(dim=axis + 1) > 0).all()
            bounds = torch.tensor(selection_bounds(lines, keep)[1:])
            stratum = (origin[..., None] >= bounds).sum(-1)
            # Every line of the result is of one stratum, the same for all windows and images.
            side = stratum.transpose(1, axis + 1).flatten(2)
            assert (side == side[:1, :, :1]).all()


@pytest.mark.parametrize("unit", UNITS)
def test_what_is_kept_is_told(unit: str, rng: np.random.Generator) -> None:
    for _ in range(20):
        height, width, rows, cols = sizes(rng)
        x = some_maps(rng, height, width)
        y, trace = run_one(Reduction(0, 0, rows, cols, "feature_norm", unit), x)
        if (rows, cols) == (height, width):
            assert trace.kept == []
            continue
        (kept,) = trace.kept or []
        assert (kept.height, kept.width) == (height, width)
        assert torch.equal(kept.rows, y[:, 0].long())
        assert torch.equal(kept.cols, y[:, 1].long())


def test_windows_choose_each_for_itself_and_lines_do_not(rng: np.random.Generator) -> None:
    x = some_maps(rng, 24, 24)
    by_window, _ = run_one(Reduction(0, 0, 18, 18, "feature_norm", "window"), x)
    by_line, _ = run_one(Reduction(0, 0, 18, 18, "feature_norm", "line"), x)
    assert (by_line[:, 0] == by_line[:, 0, :, :1]).all()
    assert (by_window[:, 0] != by_window[:, 0, :, :1]).any()


@pytest.mark.parametrize("mode", MODES)
def test_windows_that_score_alike_are_lines(mode: str, rng: np.random.Generator) -> None:
    for _ in range(20):
        height, width, rows, cols = sizes(rng)
        x = some_maps(rng, height, width)
        results = [run_one(Reduction(0, 0, rows, cols, "uniform", u, mode), x)[0] for u in UNITS]
        torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("unit", "mode"), KINDS)
@pytest.mark.parametrize("restore", ["stage", "end"])
def test_restoring_and_reducing_again_gives_the_same_to_the_bit(
    unit: str, mode: str, restore: str, rng: np.random.Generator
) -> None:
    for _ in range(20):
        height, width, rows, cols = sizes(rng)
        x = some_maps(rng, height, width)
        r = Reduction(0, 0, rows, cols, "dissimilarity", unit, mode, restore)
        y, trace = run_one(r, x)
        whole = trace.undo(y, restore)
        assert whole.shape == x.shape
        if (rows, cols) == (height, width):
            assert whole is x
            continue
        (kept,) = trace.kept or []
        flat = (kept.rows * width + kept.cols).flatten(1)[:, None].expand(-1, 6, -1)
        assert torch.equal(whole.flatten(2).gather(2, flat).view_as(y), y)
        # Every token has the values of one that stayed, and of its own stratum.
        places = {tuple(t) for t in y.permute(0, 2, 3, 1).flatten(0, 2).tolist()}
        assert {tuple(t) for t in whole.permute(0, 2, 3, 1).flatten(0, 2).tolist()} == places
        for axis, (lines, keep) in enumerate(((height, rows), (width, cols))):
            bounds = torch.tensor(selection_bounds(lines, keep)[1:])
            from_stratum = (whole[:, axis, ..., None] >= bounds).sum(-1)
            if mode == "drop":
                assert torch.equal(from_stratum, (x[:, axis, ..., None] >= bounds).sum(-1))


@pytest.mark.parametrize("unit", UNITS)
def test_merging_keeps_the_sum_of_all_tokens_however_often(
    unit: str, rng: np.random.Generator
) -> None:
    for _ in range(10):
        height, width, rows, cols = sizes(rng)
        first = Reduction(0, 0, rows, cols, "feature_norm", unit, "merge")
        second = Reduction(0, 1, -(-rows // 2), -(-cols // 2), "uniform", unit, "merge")
        trace = GridTrace(StormPlan((first, second)))
        x = some_maps(rng, height, width)
        y = make_reduction(second)(make_reduction(first)(x, None, trace), None, trace)
        size = torch.ones(y.shape[2:])[None]
        for axis, of_axis in enumerate((trace.rows.sizes, trace.cols.sizes)):
            if of_axis is not None:
                size = size * of_axis.unsqueeze(2 - axis)
        torch.testing.assert_close(
            size.sum((1, 2)).expand(2), torch.full((2,), height * width * 1.0)
        )
        if unit == "line":  # of windows, sizes are means over them
            torch.testing.assert_close(
                (y * size[:, None]).sum((2, 3)), x.sum((2, 3)), rtol=1e-4, atol=1e-3
            )


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_merging_equal_tokens_changes_nothing(
    unit: str, weights: str, rng: np.random.Generator
) -> None:
    for _ in range(10):
        height, width, rows, cols = sizes(rng)
        x = torch.full((2, 3, height, width), 0.7)
        r = Reduction(0, 0, rows, cols, "random", unit, "merge", weights=weights)
        y, _ = run_one(r, x)
        torch.testing.assert_close(y, torch.full_like(y, 0.7))


def test_by_distance_what_is_merged_counts_half_of_what_it_is_merged_into() -> None:
    x = torch.tensor([[5.0, 1.0, 5.0, 5.0]]).view(1, 1, 4, 1)
    r = Reduction(0, 0, 3, 1, "feature_norm", "line", "merge", weights="distance")
    for unit in UNITS:
        y, _ = run_one(Reduction(0, 0, 3, 1, "feature_norm", unit, "merge", weights="distance"), x)
        torch.testing.assert_close(y.flatten(), torch.tensor([(5 + 1 / 2) / 1.5, 5.0, 5.0]))
    plain, _ = run_one(Reduction(0, 0, 3, 1, "feature_norm", "line", "merge"), x)
    torch.testing.assert_close(plain.flatten(), torch.tensor([3.0, 5.0, 5.0]))
    assert r.weights == "distance"


# --- steps that grow ---------------------------------------------------------------------------


def test_small_steps_grow_by_the_number_of_tokens_that_a_merged_one_stands_for(
    rng: np.random.Generator,
) -> None:
    op = lively(SMALL, SEED).layers[0].blocks[0].op
    op.dt_projs_bias.fill_(-9.0)  # softplus is exp down here
    x = torch.from_numpy(rng.normal(size=(1, 8, 4, 5))).float() * 0.01
    _, plain = op(x, measure="step_size")
    _, grown = op(x, measure="step_size", log_size=torch.full((1, 1, 4, 5), 3.0).log())
    torch.testing.assert_close(grown, 3 * plain, rtol=1e-3, atol=0)


def test_steps_grow_from_a_merge_that_asks_for_it_until_the_map_is_restored(
    model: VMamba, rng: np.random.Generator
) -> None:
    x = random_images(rng, 1, HEIGHT, WIDTH)
    given: list[Tensor | None] = []
    for stage in model.layers:
        for block in stage.blocks:
            block.register_forward_pre_hook(
                lambda _block, _inputs, options: given.append(options["log_size"]),
                with_kwargs=True,
            )
    for restore, ends in (("stage", 2), ("no", 7)):
        given.clear()
        r = Reduction(0, 1, 12, 9, mode="merge", restore=restore, dt_grows=True)
        model.with_plan(StormPlan((r,)))(x)
        assert [log_size is not None for log_size in given] == [0 < i < ends for i in range(7)]
        assert given[1].shape == (1, 1, 12, 9)
        torch.testing.assert_close(given[1].exp().sum(), torch.tensor(24.0 * 18.0))


# --- a fixed selection -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_fixed_lines_are_those_that_a_choice_forced_to_them_keeps(
    mode: str, model: VMamba, rng: np.random.Generator
) -> None:
    x = random_images(rng, 2, HEIGHT, WIDTH)
    for size in ((17, 14), (7, 5)):
        free = Reduction(0, 1, *size, "feature_norm", "line", mode, "stage")
        reduced = model.with_plan(StormPlan((free,)))
        (kept,) = reduced.kept_tokens(x[:1])
        rows, cols = kept.rows[0, :, 0], kept.cols[0, 0]
        fixed = Reduction(
            0, 1, *size, "feature_norm", "line", mode, "stage",
            tuple(rows.tolist()), tuple(cols.tolist()),
        )  # fmt: skip
        plan = StormPlan((fixed,))
        check_plan(plan, model.variant, HEIGHT, WIDTH)
        module = "layers.0.reductions.1"
        forced = {
            f"{module}.rows": rows.int().expand(2, -1), f"{module}.cols": cols.int().expand(2, -1),
        }  # fmt: skip
        with forced_selections(reduced, forced):
            expected = reduced(x)
        assert torch.equal(model.with_plan(plan)(x), expected)


@pytest.mark.parametrize("mode", MODES)
def test_fixed_lines_need_not_keep_to_the_strata(
    mode: str, model: VMamba, rng: np.random.Generator
) -> None:
    x = random_images(rng, 2, HEIGHT, WIDTH)
    rows, cols = ((0, 1, 2, 3, 20, 23), (5, 6, 17))
    r = Reduction(0, 0, 6, 3, "feature_norm", "line", mode, "end", rows, cols)
    reduced = model.with_plan(StormPlan((r,)))
    found = reduced.forward_features(x)
    for got, expected in zip(found, run_by_hand(model, x, StormPlan((r,)))[:4], strict=True):
        assert relative_l2(got, expected) < 1e-5


def test_fixed_lines_are_not_scored(model: VMamba, rng: np.random.Generator) -> None:
    r = Reduction(0, 0, 2, 2, "step_size", rows=(3, 4), cols=(0, 9))  # at block 0: no step size
    reduced = model.with_plan(StormPlan((r,)))
    module = reduced.layers[0].reductions["0"]
    module.score.register_forward_hook(lambda *_: pytest.fail("it was scored"))
    assert module.needs is None
    assert reduced(random_images(rng, 1, HEIGHT, WIDTH)).isfinite().all()
