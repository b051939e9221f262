# SPDX-License-Identifier: Apache-2.0
"""PlainMamba is what its published code computes, step by step, and STORM cuts it down."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import torch.nn.functional as F
from torch import Tensor

from stormrt.errors import InputError
from stormrt.storm.hosts import host_names
from stormrt.storm.plainmamba import (
    PLAIN_VARIANTS,
    PlainMamba,
    PlainMamba2D,
    load_plainmamba,
    serpentine,
    step_directions,
)
from stormrt.storm.plan import MODES, UNITS, Reduction, StormPlan
from tests.helpers.models import random_images
from tests.helpers.scans import relative_l2

SMALL = dataclasses.replace(
    PLAIN_VARIANTS["plainmamba_l1"],
    name="small", channels=24, layers=3, local=(0,), image=48, patch=8, state=3,
)  # fmt: skip


def lively(seed: int) -> PlainMamba:
    """A model whose every parameter and statistic matters."""
    torch.manual_seed(seed)
    model = PlainMamba(SMALL, num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer), alpha=0.5)
    return model


@pytest.fixture
def images(rng: np.random.Generator) -> Tensor:
    return random_images(rng, 2, SMALL.image, SMALL.image)


# --- the obvious way, position by position -------------------------------------------------------


def path_of(number: int, height: int, width: int) -> list[tuple[int, int]]:
    """Positions in the order in which one of the four paths visits them."""
    if number < 2:
        path = [
            (h, w if h % 2 == 0 else width - 1 - w) for h in range(height) for w in range(width)
        ]
    else:
        path = [
            (h if w % 2 == 0 else height - 1 - h, w) for w in range(width) for h in range(height)
        ]
    return path[::-1] if number % 2 else path


MOVES = {(0, 1): 1, (0, -1): 2, (-1, 0): 3, (1, 0): 4}


def obvious_layer(layer: PlainMamba2D, x: Tensor) -> Tensor:
    """[B, d, H, W] -> [B, d, H, W], float64, one step after the other."""
    weights = {name: value.detach().double() for name, value in layer.state_dict().items()}

    def linear(name: str, values: Tensor) -> Tensor:
        return F.linear(values, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    batch, _, height, width = x.shape
    tokens = x.double().permute(0, 2, 3, 1)
    inner, z = linear("in_proj", tokens).chunk(2, dim=3)
    maps = inner.permute(0, 3, 1, 2)
    conv = F.conv2d(
        maps, weights["conv2d.weight"], weights["conv2d.bias"], padding=3, groups=maps.shape[1]
    )
    u = F.silu(conv).permute(0, 2, 3, 1)
    rank, n = layer.dt_rank, layer.state
    dt, b, c = (t.flatten(1, 2) for t in linear("x_proj", u).split([rank, n, n], dim=3))
    bias = weights["dt_proj.bias"]
    delta = F.softplus(linear("dt_proj", dt) + bias)  # the bias is in dt_proj, too
    a = -weights["A_log"].exp()
    total = torch.zeros_like(u)
    for number in range(4):
        state = torch.zeros(batch, *a.shape, dtype=torch.float64)
        before = None
        for t, (h, w) in enumerate(path_of(number, height, width)):
            move = 0 if before is None else MOVES[h - before[0], w - before[1]]
            before = (h, w)
            # The step size, B and C are the t-th in row-major order; x alone follows the path.
            own_b = b[:, t] + weights["direction_Bs"][move]
            step = delta[:, t, :, None]
            state = torch.exp(step * a) * state + step * u[:, h, w, :, None] * own_b[:, None]
            total[:, h, w] += (state * c[:, t, None]).sum(2) + weights["D"] * u[:, h, w]
    return linear("out_proj", total * F.silu(z)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (4, 3), (5, 2), (1, 4), (4, 1), (1, 1)], ids=str)
@torch.no_grad()
def test_a_layer_is_the_recurrence_along_its_four_paths(size, seed, rng):
    layer = lively(seed).backbone.layers[1].mamba
    x = torch.from_numpy(rng.normal(size=(2, SMALL.channels, *size))).float()
    got, _ = layer(x)
    assert relative_l2(got, obvious_layer(layer, x)) < 1e-5


@pytest.mark.parametrize("size", [(3, 4), (4, 3), (5, 5), (1, 3), (2, 1)], ids=str)
def test_steps_are_those_of_the_paths(size):
    for number, steps in enumerate(step_directions(*size)):
        path = path_of(number, *size)
        moves = [MOVES[b[0] - a[0], b[1] - a[1]] for a, b in itertools.pairwise(path)]
        assert list(steps) == [0, *moves]


def test_a_serpentine_path_is_the_row_major_one_of_the_flipped_map():
    places = torch.arange(12.0).reshape(1, 1, 3, 4)
    rows, cols = (serpentine(places, columns=columns) for columns in (False, True))
    assert rows.flatten().tolist() == [h * 4 + w for h, w in path_of(0, 3, 4)]
    assert cols[0, 0].T.flatten().tolist() == [h * 4 + w for h, w in path_of(2, 3, 4)]
    assert torch.equal(serpentine(rows, columns=False), places)


@torch.no_grad()
def test_the_model_is_its_parts(images, seed):
    model = lively(seed)
    weights = model.state_dict()
    prefix = "backbone.patch_embed"

    def normalised(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            weights[f"{name}.{key}"][:, None, None]
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = F.conv2d(images, weights[f"{prefix}.stem.0.weight"], stride=2, padding=3)
    x = normalised(x, f"{prefix}.stem.1").relu()
    x = F.conv2d(x, weights[f"{prefix}.convs.0.weight"], padding=1)
    x = normalised(x, f"{prefix}.convs.1").relu()
    projection = weights[f"{prefix}.projection.weight"]
    x = F.conv2d(x, projection, weights[f"{prefix}.projection.bias"], stride=4)
    tokens = x.flatten(2).transpose(1, 2) + weights["backbone.pos_embed"]
    for index in range(SMALL.layers):
        name = f"backbone.layers.{index}"
        norm = weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"]
        maps = F.layer_norm(tokens, (24,), *norm).transpose(1, 2).reshape(2, 24, 6, 6)
        mixed = obvious_layer(model.backbone.layers[index].mamba, maps).float()
        tokens = tokens + mixed.flatten(2).transpose(1, 2)
        if index in SMALL.local:
            maps = tokens.transpose(1, 2).reshape(2, 24, 6, 6)
            maps = F.conv2d(maps, weights[f"{name}.dw.0.weight"], padding=1, groups=24)
            maps = F.gelu(normalised(maps, f"{name}.dw.1"))
            tokens = maps.flatten(2).transpose(1, 2)
    ln1 = weights["backbone.ln1.weight"], weights["backbone.ln1.bias"]
    pooled = F.layer_norm(tokens, (24,), *ln1, eps=1e-6).mean(1)
    want = F.linear(pooled, weights["head.fc.weight"], weights["head.fc.bias"])
    assert relative_l2(model(images), want) < 1e-4


def test_other_image_sizes_are_padded_and_their_positions_resized(rng, seed):
    with torch.no_grad():
        assert lively(seed)(random_images(rng, 1, 50, 60)).shape == (1, 5)


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN_VARIANTS)
def test_sizes_are_the_published_ones(name):
    # In millions, cut to tenths, without the head: the only reading that fits all three.
    published = {"plainmamba_l1": 7.3, "plainmamba_l2": 25.7, "plainmamba_l3": 50.5}
    with torch.device("meta"):
        model = PlainMamba(PLAIN_VARIANTS[name])
    count = sum(p.numel() for p in model.backbone.parameters())
    assert math.floor(count / 1e5) / 10 == published[name]


def test_keys_are_those_of_the_published_code():
    keys = set(PlainMamba(SMALL, 5).state_dict())
    scan = ("in_proj.weight", "in_proj.bias", "conv2d.weight", "conv2d.bias", "x_proj.weight",
            "dt_proj.weight", "dt_proj.bias", "A_log", "D", "out_proj.weight", "out_proj.bias",
            "direction_Bs")  # fmt: skip
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    stem = "backbone.patch_embed"
    wanted = {f"{stem}.{key}" for key in ("stem.0.weight", "convs.0.weight")}
    wanted |= {f"{stem}.{part}.1.{key}" for part in ("stem", "convs") for key in norm}
    wanted |= {f"{stem}.projection.weight", f"{stem}.projection.bias", "backbone.pos_embed"}
    wanted |= {f"backbone.layers.{i}.mamba.{key}" for i in range(3) for key in scan}
    wanted |= {f"backbone.layers.{i}.norm.{key}" for i in range(3) for key in ("weight", "bias")}
    wanted |= {"backbone.layers.0.dw.0.weight"}
    wanted |= {f"backbone.layers.0.dw.1.{key}" for key in norm}
    wanted |= {
        f"{name}.{key}" for name in ("backbone.ln1", "head.fc") for key in ("weight", "bias")
    }
    assert keys == wanted


def test_a_checkpoint_is_loaded_strictly(tmp_path, images, seed):
    model = lively(seed)
    path = tmp_path / "small.pth"
    torch.save({"state_dict": model.state_dict(), "meta": {"epoch": 300}}, path)
    loaded = load_plainmamba(PlainMamba(SMALL, 5), path)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    with pytest.raises(InputError, match=r"not of small(.|\n)*head\.fc\.bias"):
        load_plainmamba(PlainMamba(SMALL, 6), path)


# --- STORM ---------------------------------------------------------------------------------------


def plan(height: int, width: int, **options) -> StormPlan:
    return StormPlan((Reduction(0, 1, height, width, **options),))


@pytest.mark.parametrize("host", ["feature_norm", "step_size", "clipped_output", "uniform"])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_a_plan_that_keeps_everything_is_the_dense_model_to_the_bit(host, unit, mode, images, seed):
    model = lively(seed)
    whole = model.with_plan(plan(6, 6, host=host, unit=unit, mode=mode))
    assert torch.equal(whole(images), model(images))


@pytest.mark.parametrize("host", host_names())
@torch.no_grad()
def test_a_reduced_model_runs_on_the_lines_that_stay(host, images, seed, rng):
    model = lively(seed)
    reduced = model.with_plan(plan(4, 5, host=host))
    sizes = []
    hook = reduced.backbone.layers[2].register_forward_hook(
        lambda _m, inputs, _o: sizes.append(tuple(inputs[0].shape[2:]))
    )
    logits = reduced(images)
    assert sizes == [(4, 5)]
    hook.remove()
    assert relative_l2(logits, model(images)) > 1e-4
    order = torch.from_numpy(rng.permutation(2))
    assert relative_l2(reduced(images[order]), logits[order]) < 1e-5


@torch.no_grad()
def test_reduced_layers_are_those_of_the_map_cut_by_hand(images, seed):
    model = lively(seed)
    rows, cols = (0, 2, 3, 5), (1, 2, 3, 4, 5)
    fixed = plan(4, 5, rows=rows, cols=cols)
    seen = []
    layers = model.backbone.layers
    hook = layers[1].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    model(images)
    hook.remove()
    # Positional embeddings were added before, and left with their lines.
    x = seen[0][:, :, list(rows)][:, :, :, list(cols)]
    for layer in (layers[1], layers[2]):
        x, _ = layer(x)
    want = model.head(model.backbone.ln1(x))
    assert relative_l2(model.with_plan(fixed)(images), want) < 1e-5


@pytest.mark.parametrize("restore", ["stage", "end"])
@torch.no_grad()
def test_a_restored_map_has_its_size_back(restore, images, seed):
    model = lively(seed).with_plan(plan(3, 4, restore=restore, mode="merge"))
    assert model.backbone(images, model.plan).shape[2:] == (6, 6)


@torch.no_grad()
def test_a_reduced_model_runs_as_a_graph_of_standard_operators(images, seed):
    pytest.importorskip("onnxruntime")
    from tests.helpers.functions import exported, run_model

    model = lively(seed).with_plan(plan(4, 5, host="dissimilarity", mode="merge"))
    graph = exported(model, (images,))
    (logits,) = run_model(graph, (images,))
    assert relative_l2(torch.from_numpy(logits), model(images)) < 1e-4


def test_a_plan_that_does_not_fit_is_refused(seed):
    for bad in (plan(7, 6), StormPlan((Reduction(1, 0, 3, 3),)), plan(3, 3, host="none")):
        with pytest.raises(InputError, match="does not fit small"):
            lively(seed).with_plan(bad)
