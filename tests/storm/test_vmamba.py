# SPDX-License-Identifier: Apache-2.0
"""The whole model, dense and reduced, on small variants with the published ones' structure."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from stormrt.errors import InputError
from stormrt.storm.grid import GridTrace
from stormrt.storm.plan import Reduction, StormPlan, parse_plan, stage_grids
from stormrt.storm.reductions import LineChoice
from stormrt.storm.variants import Variant
from stormrt.storm.vmamba import VMamba, build_vmamba, forced_selections
from tests.helpers.lines import cut, kept_lines
from tests.helpers.models import SMALL, SMALL_VANILLA, lively, random_images
from tests.helpers.scans import relative_l2
from tests.helpers.seeds import SEED

VARIANTS = (SMALL, SMALL_VANILLA)
HOSTS = ("feature_norm", "step_size")
"""One that scores the map, and one that needs the block before."""


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda v: v.name)
def model(request: pytest.FixtureRequest) -> VMamba:
    return lively(request.param, SEED)


@pytest.fixture(autouse=True)
def _no_gradients(request: pytest.FixtureRequest):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def a_plan(host: str = "feature_norm") -> StormPlan:
    """Two reductions of the 24 x 18 map of a 96 x 72 image: most lines stay, few lines stay."""
    return StormPlan((Reduction(0, 1, 19, 16, host), Reduction(2, 2, 3, 2, host)))


# --- sizes -------------------------------------------------------------------------------------


def test_every_size_from_32_pixels_gives_logits_and_maps_of_the_predicted_sizes(
    model: VMamba, rng: np.random.Generator
) -> None:
    sizes = [(32, 32), (33, 47), (64, 35), *rng.integers(32, 90, (6, 2)).tolist()]
    for height, width in sizes:
        maps = model.forward_features(random_images(rng, 1, height, width))
        grids = stage_grids(model.variant, height, width)
        assert [tuple(m.shape) for m in maps] == [
            (1, d, *grid) for d, grid in zip(model.variant.dims, grids, strict=True)
        ]
        logits = model.classifier(maps[-1])
        assert logits.shape == (1, 5)
        assert logits.isfinite().all()


@pytest.mark.parametrize("coarse", VARIANTS, ids=lambda v: v.name)
def test_patches_of_two_pixels_give_maps_of_the_predicted_sizes(
    coarse: Variant, rng: np.random.Generator
) -> None:
    fine = lively(dataclasses.replace(coarse, patch=2), SEED)
    for height, width in [(32, 32), (33, 47)]:
        maps = fine.forward_features(random_images(rng, 1, height, width))
        grids = [tuple(m.shape[2:]) for m in maps]
        assert grids == stage_grids(fine.variant, height, width)
        assert grids[0] != stage_grids(coarse, height, width)[0]


def test_reduced_maps_have_the_sizes_that_the_plan_predicts(
    model: VMamba, rng: np.random.Generator
) -> None:
    for _ in range(4):
        height, width = rng.integers(40, 90, 2).tolist()
        keep = float(rng.uniform(0.1, 0.9))
        plan = parse_plan(f"keep={keep},stage=0,block=1", model.variant, height, width)
        maps = model.with_plan(plan).forward_features(random_images(rng, 1, height, width))
        (r,) = plan.reductions
        after = stage_grids(model.variant, height, width, plan)[1:]
        assert [tuple(m.shape[2:]) for m in maps] == [(r.height, r.width), *after]


@pytest.mark.parametrize("size", [(17, 17), (31, 200), (200, 31)], ids=str)
def test_an_image_too_small_for_four_stages_is_refused(
    model: VMamba, size: tuple[int, int]
) -> None:
    with pytest.raises(InputError, match=f"{size[0]}x{size[1]} pixels"):
        model(torch.zeros(1, 3, *size))


def test_a_published_model_runs_on_a_map_that_is_not_square(rng: np.random.Generator) -> None:
    torch.manual_seed(SEED)
    model = build_vmamba("vmamba_tiny_s1l8").eval()
    logits = model(random_images(rng, 1, 40, 67))
    assert logits.shape == (1, 1000)
    assert logits.isfinite().all()
    assert logits.std() > 0


# --- images of a batch -------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
def test_images_of_a_batch_do_not_mix(host: str, rng: np.random.Generator, model: VMamba) -> None:
    reduced = model.with_plan(a_plan(host))
    x = random_images(rng, 3, 96, 72)
    together = reduced(x)
    alone = torch.cat([reduced(x[i : i + 1]) for i in range(3)])
    assert relative_l2(alone, together) < 1e-4
    assert relative_l2(reduced(x.flip(0)).flip(0), together) < 1e-4


def test_an_image_of_no_numbers_spoils_only_itself(model: VMamba, rng: np.random.Generator) -> None:
    reduced = model.with_plan(a_plan())
    x = random_images(rng, 3, 96, 72)
    clean = reduced(x)
    x[1] = torch.nan
    spoilt = reduced(x)
    assert spoilt[1].isnan().all()
    assert torch.equal(spoilt[[0, 2]], clean[[0, 2]])


# --- plans -------------------------------------------------------------------------------------


def by_hand(model: VMamba, x: Tensor, plan: StormPlan) -> Tensor:
    """The reduced model from the dense one's blocks, with the choice and the cut in NumPy."""
    places = {(r.stage, r.block): r for r in plan.reductions}
    x = model.patch_embed(x)
    for i, stage in enumerate(model.layers):
        step: Tensor | None = None
        for j, block in enumerate(stage.blocks):
            if (i, j) in places:
                r = places[i, j]
                maps = x.numpy()
                if r.host == "feature_norm":
                    scores = np.linalg.norm(maps.astype(np.float64), axis=1)
                else:
                    assert step is not None
                    scores = step.double().numpy()
                rows = [kept_lines(s.mean(axis=1), r.height) for s in scores]
                cols = [kept_lines(s.mean(axis=0), r.width) for s in scores]
                x = torch.from_numpy(cut(maps, rows, cols))
            x, step = block(x, measure="step_size")
        last, x = x, stage.downsample(x)
    return model.classifier(last)


@pytest.mark.parametrize("host", HOSTS)
def test_a_reduced_model_equals_blocks_run_by_hand_with_lines_cut_by_hand(
    host: str, model: VMamba, rng: np.random.Generator
) -> None:
    x = random_images(rng, 2, 96, 72)
    reduced = model.with_plan(a_plan(host))
    assert relative_l2(reduced(x), by_hand(model, x, a_plan(host))) < 1e-5
    assert relative_l2(reduced(x), model(x)) > 1e-3  # the plan does something


def test_hosts_choose_differently(model: VMamba, rng: np.random.Generator) -> None:
    x = random_images(rng, 2, 96, 72)
    by_norm, by_step = (model.with_plan(a_plan(host))(x) for host in HOSTS)
    assert not torch.allclose(by_norm, by_step)


def test_keep_1_is_the_dense_model_to_the_bit(model: VMamba, rng: np.random.Generator) -> None:
    x = random_images(rng, 2, 50, 67)
    plan = parse_plan("keep=1", model.variant, 50, 67)
    assert torch.equal(model.with_plan(plan)(x), model(x))


@pytest.mark.parametrize("host", HOSTS)
def test_a_plan_that_keeps_every_line_is_the_dense_model_to_the_bit(
    host: str, model: VMamba, rng: np.random.Generator
) -> None:
    x = random_images(rng, 2, 50, 67)
    grids = stage_grids(model.variant, 50, 67)
    plan = StormPlan((Reduction(0, 1, *grids[0], host), Reduction(2, 2, *grids[2], host)))
    assert torch.equal(model.with_plan(plan)(x), model(x))


def test_a_plan_leaves_the_model_it_was_given_as_it_was(
    model: VMamba, rng: np.random.Generator
) -> None:
    x = random_images(rng, 1, 96, 72)
    before = model(x)
    reduced = model.with_plan(a_plan())
    assert torch.equal(model(x), before)
    assert model.plan == StormPlan()
    assert reduced.plan == a_plan()
    assert torch.equal(reduced.with_plan(StormPlan())(x), before)


@pytest.mark.parametrize("host", HOSTS)
def test_shapes_of_a_reduced_model_do_not_depend_on_what_it_sees(
    host: str, model: VMamba, rng: np.random.Generator
) -> None:
    reduced = model.with_plan(a_plan(host))
    shapes = [m.shape for m in reduced.forward_features(random_images(rng, 2, 96, 72))]
    # On the meta device there are no values that a shape could depend on.
    with torch.device("meta"):
        shapeless = VMamba(model.variant).with_plan(a_plan(host)).freeze()
        assert [m.shape for m in shapeless.forward_features(torch.empty(2, 3, 96, 72))] == shapes


def test_a_plan_for_larger_images_is_refused_when_it_runs(model: VMamba) -> None:
    reduced = model.with_plan(StormPlan((Reduction(0, 1, 20, 20),)))
    with pytest.raises(InputError, match="20 of 8 lines to keep"):
        reduced(torch.zeros(1, 3, 32, 96))


def test_a_choice_can_be_forced_and_is_free_again_afterwards(
    model: VMamba, rng: np.random.Generator
) -> None:
    plan = StormPlan((Reduction(0, 1, 5, 3),))
    reduced = model.with_plan(plan)
    names = [n for n, m in reduced.named_modules() if isinstance(m, LineChoice)]
    assert names == ["layers.0.reductions.1.rows", "layers.0.reductions.1.cols"]
    x = random_images(rng, 2, 40, 36)  # maps of 10 x 9
    free = reduced(x)
    rows, cols = (
        np.sort([rng.permutation(side)[:keep] for _ in range(2)])
        for side, keep in ((10, 5), (9, 3))
    )
    forced = tuple(torch.from_numpy(lines).int() for lines in (rows, cols))
    with forced_selections(reduced, dict(zip(names, forced, strict=True))):
        got = reduced(x)
    stage = model.layers[0]
    maps, _ = stage.blocks[0](model.patch_embed(x))
    maps = torch.from_numpy(cut(maps.numpy(), rows.tolist(), cols.tolist()))
    maps = stage.downsample(stage.blocks[1](maps)[0])
    for later in list(model.layers)[1:]:
        last = later(maps, GridTrace(StormPlan()))
        maps = later.downsample(last)
    assert relative_l2(got, model.classifier(last)) < 1e-5
    assert torch.equal(reduced(x), free)


def test_forcing_a_choice_that_the_model_has_not_fails_and_forces_nothing(model: VMamba) -> None:
    reduced = model.with_plan(StormPlan((Reduction(0, 1, 5, 3),)))
    lines = torch.zeros(1, 5).int()
    forcing = forced_selections(
        reduced, {"layers.0.reductions.1.rows": lines, "layers.1.reductions.0.rows": lines}
    )
    with pytest.raises(KeyError, match=r"layers\.1\.reductions\.0"), forcing:
        pass
    assert reduced.layers[0].reductions["1"].rows.forced is None


# --- freezing and sharing ----------------------------------------------------------------------


def memory_of(model: VMamba) -> dict[str, int]:
    return {name: p.data_ptr() for name, p in model.named_parameters()}


@pytest.mark.parametrize("plan", [StormPlan(), a_plan("step_size")], ids=["dense", "reduced"])
def test_a_frozen_model_computes_the_same(
    plan: StormPlan, model: VMamba, rng: np.random.Generator
) -> None:
    x = random_images(rng, 2, 96, 72)
    expected = model.with_plan(plan)(x)
    torch.testing.assert_close(model.with_plan(plan).freeze()(x), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(model.with_plan(plan).freeze()(x), model.freeze().with_plan(plan)(x))


def test_copies_share_their_parameters_memory(model: VMamba) -> None:
    frozen = model.freeze()
    assert memory_of(frozen) == memory_of(model)
    reduced = model.with_plan(a_plan())
    assert all(p is q for p, q in zip(reduced.parameters(), model.parameters(), strict=True))
    again = frozen.with_plan(a_plan())
    assert [b.data_ptr() for b in again.buffers()] == [b.data_ptr() for b in frozen.buffers()]


def test_a_frozen_model_has_no_linear_layer_and_is_in_evaluation_mode() -> None:
    model = lively(SMALL, SEED).train()
    frozen = model.freeze()
    linear = [n for n, m in frozen.named_modules() if isinstance(m, torch.nn.Linear)]
    assert linear == []
    assert any(isinstance(m, torch.nn.Linear) for m in model.modules())
    assert not any(m.training for m in frozen.modules())
    assert all(m.training for m in model.modules())
    assert not any(m.is_frozen for m in model.modules() if hasattr(m, "is_frozen"))


# --- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_a_gradient_reaches_every_parameter_of_a_reduced_model(
    variant: Variant, rng: np.random.Generator
) -> None:
    model = lively(variant, SEED).train()
    plan = StormPlan((Reduction(0, 1, 15, 13), Reduction(2, 2, 3, 3)))  # the last map is 2 x 2
    logits = model.with_plan(plan)(random_images(rng, 2, 70, 80))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3])).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_drop_path_rises_linearly_to_its_rate_at_the_last_block() -> None:
    with torch.device("meta"):
        model = VMamba(SMALL, drop_path=0.3)
    rates = [block.drop_path.rate for stage in model.layers for block in stage.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.3, 7))
