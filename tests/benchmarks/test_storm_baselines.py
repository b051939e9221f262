# SPDX-License-Identifier: Apache-2.0
"""The baselines do what their sources say, and nothing to a map that keeps its size."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.storm_baselines import matching, resample, scan_only, small_input, tokens
from benchmarks.storm_baselines.segments import Prefix, Reduced, finish, prefix
from stormrt.errors import InputError
from stormrt.storm import layers
from stormrt.storm.flops import count_flops
from stormrt.storm.plan import Reduction, StormPlan, stage_grids
from stormrt.storm.variants import get_variant
from stormrt.storm.vmamba import VMamba
from tests.helpers.models import SMALL, SMALL_VANILLA, lively, random_images
from tests.helpers.scans import relative_l2

HEIGHT, WIDTH = 64, 96
WHERES = ((0, 1), (1, 0), (2, 2))
TOKEN_HOSTS = ("step_size", "clipped_output", "feature_norm", "dissimilarity")
PATCH_2 = dataclasses.replace(SMALL, name="patch_2", patch=2)

Apply = Callable[[VMamba, tuple[int, int], int, int], Callable[[Tensor], Tensor]]


def _tokens(host: str) -> Apply:
    return lambda model, where, h, w: tokens.apply(model, where, h, w, host=host)


def _resample(how: str) -> Apply:
    return lambda model, where, h, w: resample.apply(model, where, h, w, how=how)


METHODS: dict[str, Apply] = {
    **{f"tokens:{host}": _tokens(host) for host in TOKEN_HOSTS},
    "matching": matching.apply,
    **{how: _resample(how) for how in resample.RESAMPLERS},
    "scan_only": lambda *a: scan_only.apply(*a, image=(HEIGHT, WIDTH)),
}
WITH_BLOCK_BEFORE = ("tokens:step_size", "tokens:clipped_output")


def sizes(where: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The full map before a block, and one with about half the tokens."""
    full = stage_grids(SMALL, HEIGHT, WIDTH)[where[0]]
    return full, (round(full[0] * 0.7), round(full[1] * 0.7))


def fits(name: str, where: tuple[int, int]) -> bool:
    return where[1] > 0 or name not in WITH_BLOCK_BEFORE


CASES = [(n, w) for n, w in itertools.product(METHODS, WHERES) if fits(n, w)]


@pytest.fixture
def images(rng: np.random.Generator) -> Tensor:
    return random_images(rng, 4, HEIGHT, WIDTH)


# --- what all have in common ---------------------------------------------------------------------


@pytest.mark.parametrize("variant", [SMALL, SMALL_VANILLA], ids=lambda v: v.name)
@torch.no_grad()
def test_the_two_parts_of_a_model_are_the_model(variant, images, seed):
    model = lively(variant, seed)
    dense = model(images)
    for stage, depth in enumerate(variant.depths):
        for block in range(depth):
            before = prefix(model, images, (stage, block))
            assert torch.equal(finish(model, before.x, (stage, block)), dense)
    with pytest.raises(InputError, match="no such block"):
        prefix(model, images, (1, 7))


@pytest.mark.parametrize(("name", "where"), CASES, ids=str)
@torch.no_grad()
def test_a_map_that_keeps_its_size_is_the_same_to_the_bit(name, where, images, seed):
    model = lively(SMALL, seed)
    whole = METHODS[name](model, where, *sizes(where)[0])
    if isinstance(whole, Reduced):
        before = prefix(model, images, where)
        assert torch.equal(whole.transform(before), before.x)
    # A copy may lie otherwise in memory, and then convolutions round otherwise.
    assert relative_l2(whole(images), model(images)) < 1e-5


@pytest.mark.parametrize(("name", "where"), CASES, ids=str)
@torch.no_grad()
def test_a_smaller_map_gives_other_logits_image_by_image(name, where, images, seed, rng):
    model = lively(SMALL, seed)
    reduced = METHODS[name](model, where, *sizes(where)[1])
    logits = reduced(images)
    assert logits.shape == (4, 5)
    assert relative_l2(logits, model(images)) > 1e-3
    order = torch.from_numpy(rng.permutation(4))
    assert relative_l2(reduced(images[order]), logits[order]) < 1e-5
    assert relative_l2(reduced(images[:1]), logits[:1]) < 1e-5
    if isinstance(reduced, Reduced):
        before = prefix(model, images, where)
        parts = [reduced.from_prefix(part) for part in before.split(3)]
        assert relative_l2(torch.cat(parts), logits) < 1e-5
        small = reduced.transform(before)
        assert small.shape[2:] == sizes(where)[1]
        assert small.dtype == before.x.dtype


@pytest.mark.parametrize(("name", "where"), CASES, ids=str)
@torch.no_grad()
def test_frozen_models_are_taken_too(name, where, images, seed):
    model = lively(SMALL, seed)
    size = sizes(where)[1]
    plain, frozen = (METHODS[name](m, where, *size)(images) for m in (model, model.freeze()))
    assert relative_l2(frozen, plain) < 1e-4


@pytest.mark.parametrize("name", [n for n in METHODS if n != "scan_only"])
@torch.no_grad()
def test_the_rest_of_the_network_costs_what_a_plan_of_that_size_costs(name, seed):
    from tests.storm.test_flops import OPERATORS, FlopCounterMode

    where, (rows, cols) = (1, 0) if name not in WITH_BLOCK_BEFORE else (2, 1), (5, 6)
    full = stage_grids(SMALL, HEIGHT, WIDTH)[where[0]]
    rows, cols = min(rows, full[0]), min(cols, full[1])
    plan = StormPlan((Reduction(*where, rows, cols),))
    reduced = METHODS[name](lively(SMALL, seed), where, rows, cols)
    assert isinstance(reduced, Reduced)
    before = prefix(reduced.model, torch.zeros(1, 3, HEIGHT, WIDTH), where)
    small = reduced.transform(before)
    with FlopCounterMode(display=False, custom_mapping=OPERATORS) as counter:
        finish(reduced.model, small, where)
    counted = count_flops(SMALL, HEIGHT, WIDTH, plan, num_classes=5).by_block()
    rest = sum(n for (s, b), n in counted.items() if (s, b) >= where or (b < 0 and s >= where[0]))
    assert counter.get_total_flops() == 2 * rest


# --- single tokens -------------------------------------------------------------------------------


def coded(batch: int, height: int, width: int) -> Tensor:
    """A map whose tokens tell their place: channel 0 is 1 + h * W + w."""
    place = 1.0 + torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
    return torch.cat([place, place.sin()], 1).expand(batch, -1, -1, -1)


def test_the_best_tokens_of_each_image_stay_in_row_major_order(rng):
    x = coded(3, 5, 7)
    scores = torch.from_numpy(rng.normal(size=(3, 5, 7))).float()
    kept = tokens.repack_best(x, scores, 3, 4)
    for image in range(3):
        best = np.sort(np.argsort(-scores[image].flatten().numpy())[:12])
        assert kept[image, 0].flatten().int().tolist() == (1 + best).tolist()
        assert torch.equal(kept[image, 1], kept[image, 0].sin())


@pytest.mark.parametrize("variant", [SMALL, SMALL_VANILLA], ids=lambda v: v.name)
@torch.no_grad()
def test_scores_are_read_off_the_scan_of_the_block_before(variant, images, seed, monkeypatch):
    calls = []
    scan = layers.selective_scan_2d

    def spy(x, dt, b, c, a, d, dt_bias):
        y = scan(x, dt, b, c, a, d, dt_bias)
        calls.append((F.softplus(dt + dt_bias[:, None, None]).mean(1), y.clamp(min=0).mean(1)))
        return y

    monkeypatch.setattr(layers, "selective_scan_2d", spy)
    measured = prefix(lively(variant, seed), images, (2, 1)).measured
    assert relative_l2(measured["step_size"], calls[-1][0]) < 1e-5
    assert relative_l2(measured["clipped_output"], calls[-1][1]) < 1e-6
    assert not prefix(lively(variant, seed), images, (2, 0)).measured


# --- matching ------------------------------------------------------------------------------------


def obvious_matching(x: np.ndarray, count: int) -> np.ndarray:
    """One image [C, L], token by token, in float64 -> [C, count]."""
    places = [(place, 1.0, x[:, place]) for place in range(x.shape[1])]
    while len(places) > count:
        merged = min(len(places) - count, len(places) // 2)
        even, odd = places[::2], places[1::2]

        def cosine(a: np.ndarray, b: np.ndarray) -> float:
            return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

        edges = []
        for i, (_, _, a) in enumerate(even):
            similar = [cosine(a, b) for _, _, b in odd]
            edges.append((max(similar), i, int(np.argmax(similar))))
        edges.sort(key=lambda e: -e[0])
        total = {j: [size, size * value] for j, (_, size, value) in enumerate(odd)}
        for _, i, j in edges[:merged]:
            total[j][0] += even[i][1]
            total[j][1] = total[j][1] + even[i][1] * even[i][2]
        left = [even[i] for _, i, _ in edges[merged:]]
        left += [(odd[j][0], size, value / size) for j, (size, value) in total.items()]
        places = sorted(left, key=lambda t: t[0])
    return np.stack([value for _, _, value in places], 1)


@pytest.mark.parametrize("size", [(5, 6), (4, 5), (2, 3), (1, 2)], ids=str)
def test_matching_is_the_obvious_one(rng, size):
    x = rng.normal(size=(2, 8, 5, 6))
    merged = matching.merge_and_repack(torch.from_numpy(x).float(), *size)
    for image in range(2):
        want = obvious_matching(x[image].reshape(8, -1), size[0] * size[1])
        np.testing.assert_allclose(merged[image].flatten(1).numpy(), want, rtol=1e-4, atol=1e-5)


def test_merging_keeps_the_sum_of_all_tokens(rng):
    values = torch.from_numpy(rng.normal(size=(2, 15, 3)))
    sizes_ = torch.ones(2, 15, 1, dtype=torch.float64)
    left, sizes_after, places = matching.merge_once(
        values, sizes_, torch.arange(15).expand(2, -1), 4
    )
    assert left.shape == (2, 11, 3)
    torch.testing.assert_close((left * sizes_after).sum(1), values.sum(1))
    assert (sizes_after.sum(1) == 15).all()
    assert (places.diff(dim=1) > 0).all()


# --- resampling ----------------------------------------------------------------------------------


def test_a_stride_takes_evenly_spaced_lines():
    x = coded(1, 8, 9)
    small = resample.stride(x, 4, 3)[0, 0].int() - 1
    assert small[0].tolist() == [1 * 9 + c for c in (1, 4, 7)]
    assert (small[:, 0] // 9).tolist() == [1, 3, 5, 7]
    for lines, keep in itertools.product(range(1, 20), range(1, 20)):
        if keep <= lines:
            kept = resample.even_lines(lines, keep, torch.device("cpu"))
            gaps = {int(g) for g in kept.diff()}
            assert len(gaps) <= 2
            assert int(kept[0]) >= 0
            assert int(kept[-1]) < lines


def test_pooling_averages_and_interpolation_keeps_ramps():
    x = coded(1, 8, 8)[:, :1]
    pooled = resample.average(x, 4, 4)
    assert torch.equal(pooled, F.avg_pool2d(x, 2))
    smooth = resample.bilinear(x, 4, 4)
    torch.testing.assert_close(smooth[..., 1:-1, 1:-1], pooled[..., 1:-1, 1:-1])
    assert resample.bilinear(x.half(), 4, 4).dtype == torch.float16


def test_a_map_does_not_grow():
    before = Prefix(coded(1, 4, 4), {})
    for how in resample.RESAMPLERS:
        with pytest.raises(InputError, match="at most 4x4"):
            resample.apply(lively(SMALL, 0), (0, 1), 5, 4, how=how).transform(before)
    with pytest.raises(InputError, match="at most 4x4"):
        tokens.repack_best(before.x, before.x[:, 0], 3, 5)
    with pytest.raises(InputError, match="at most 4x4"):
        matching.merge_and_repack(before.x, 4, 5)


# --- the scan alone ------------------------------------------------------------------------------


@torch.no_grad()
def test_only_the_scans_from_the_block_on_see_a_smaller_map(images, seed, monkeypatch):
    seen = []
    scan = layers.selective_scan_2d

    def spy(x, *operands):
        seen.append((x.shape[2], x.shape[3]))
        return scan(x, *operands)

    monkeypatch.setattr(layers, "selective_scan_2d", spy)
    model = lively(SMALL, seed)
    grids = stage_grids(SMALL, HEIGHT, WIDTH)
    smaller = scan_only.apply(model, (1, 0), 4, 6, image=(HEIGHT, WIDTH))
    smaller(images)
    assert grids[1] == (8, 12)
    halves = [(2, 3)] * 3 + [(1, 2)]
    assert seen == [grids[0]] * 2 + [(4, 6), *halves]
    seen.clear()
    model(images)
    assert seen == [g for g, depth in zip(grids, SMALL.depths, strict=True) for _ in range(depth)]


@pytest.mark.parametrize("variant", [SMALL, SMALL_VANILLA], ids=lambda v: v.name)
@torch.no_grad()
def test_flops_of_the_scan_alone_are_those_that_run(variant, seed):
    from tests.storm.test_flops import run_and_count

    model = lively(variant, seed, num_classes=1000)
    smaller = scan_only.apply(model, (0, 1), 9, 13, image=(HEIGHT, WIDTH))
    counted = scan_only.flops(variant, (0, 1), 9, 13, (HEIGHT, WIDTH))
    assert counted == run_and_count(smaller, HEIGHT, WIDTH)[""]
    assert counted < count_flops(variant, HEIGHT, WIDTH).total


# --- a smaller input -----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [SMALL, PATCH_2, get_variant("vmamba_nano_cifar10")])
def test_the_side_is_the_largest_that_costs_no_more(variant, rng):
    side = variant.patch * 24
    dense = count_flops(variant, side, side).total
    assert small_input.side_for(variant, side, dense) == side
    for share in rng.uniform(0.3, 1.0, 10):
        found = small_input.side_for(variant, side, int(share * dense))
        assert count_flops(variant, found, found).total <= share * dense
        if found < side:
            assert count_flops(variant, found + 1, found + 1).total > share * dense
    with pytest.raises(InputError, match="no image is as cheap"):
        small_input.side_for(variant, side, 1)


@torch.no_grad()
def test_a_smaller_image_runs_through_the_dense_model(rng, seed):
    model = lively(PATCH_2, seed)
    images = random_images(rng, 2, 32, 32)
    assert torch.equal(small_input.apply(model, 32)(images), model(images))
    for mode in ("bicubic", "bilinear"):
        assert small_input.apply(model, 20, mode=mode)(images).shape == (2, 5)
    large = random_images(rng, 2, 80, 80)
    small = F.interpolate(large, (48, 48), mode="bicubic", antialias=True)
    assert torch.equal(small_input.apply(model, 48)(large), model(small))
