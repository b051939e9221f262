# SPDX-License-Identifier: Apache-2.0
"""The variants: sizes to the parameter, and names and shapes of upstream's weights."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from stormrt.errors import InputError
from stormrt.storm.variants import VARIANTS, get_variant
from stormrt.storm.vmamba import VMamba, build_vmamba

PARAMETERS = {
    "vmamba_tiny_s1l8": 30_249_064,
    "vmamba_tiny_s2l5": 30_705_832,
    "vmamba_small_s2l15": 50_147_752,
    "vmamba_small_s1l20": 49_012_840,
    "vmamba_base_s2l15": 88_557_800,
    "vmamba_base_s1l20": 86_614_504,
}
VANILLA_MILLIONS = {
    "vanilla_vmamba_tiny": 23,
    "vanilla_vmamba_small": 44,
    "vanilla_vmamba_base": 76,
}
DEMO_CLASSES = {"vmamba_nano_scenes": 6, "vmamba_nano_cifar10": 10}


def empty_model(name: str, num_classes: int = 1000) -> VMamba:
    with torch.device("meta"):
        return build_vmamba(name, num_classes)


def shapes_of(model: VMamba) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in model.state_dict().items()}


def size_of(model: VMamba) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_variant_has_upstreams_number_of_parameters(name: str) -> None:
    assert size_of(empty_model(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", VANILLA_MILLIONS)
def test_a_vanilla_variant_has_upstreams_millions_of_parameters(name: str) -> None:
    assert round(size_of(empty_model(name)) / 1e6) == VANILLA_MILLIONS[name]


def test_every_variant_is_counted_here() -> None:
    assert set(VARIANTS) == set(PARAMETERS) | set(VANILLA_MILLIONS) | set(DEMO_CLASSES)


@pytest.mark.parametrize(("name", "classes"), DEMO_CLASSES.items())
def test_a_demo_model_has_its_own_classes_and_is_small_enough_to_be_committed(
    name: str, classes: int
) -> None:
    with torch.device("meta"):
        model = build_vmamba(name)
    assert model.num_classes == model.classifier.head.out_features == classes
    assert 3_500_000 < size_of(model) <= 4_000_000
    assert 2 * size_of(model) < 8 * 2**20  # bytes in FP16


def test_upstreams_models_have_imagenets_classes_unless_others_are_asked_for() -> None:
    with torch.device("meta"):
        assert build_vmamba("vmamba_tiny_s1l8").num_classes == 1000
        assert build_vmamba("vmamba_nano_scenes", 1).num_classes == 1


def v2_table(
    dims: tuple[int, ...], depths: tuple[int, ...], ratio: int, mlp_ratio: int = 4
) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a VMamba v2 checkpoint with N = 1, written from its description."""
    table: dict[str, tuple[int, ...]] = {}

    def layer(key: str, *weight: int, bias: int | None) -> None:
        table[f"{key}.weight"] = weight
        if bias is not None:
            table[f"{key}.bias"] = (bias,)

    first = dims[0]
    layer("patch_embed.0", first // 2, 3, 3, 3, bias=first // 2)
    layer("patch_embed.2", first // 2, bias=first // 2)
    layer("patch_embed.5", first, first // 2, 3, 3, bias=first)
    layer("patch_embed.7", first, bias=first)
    for i, (d, depth) in enumerate(zip(dims, depths, strict=True)):
        inner, rank = ratio * d, -(-d // 16)
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            layer(f"{block}.norm", d, bias=d)
            layer(f"{block}.op.in_proj", inner, d, bias=None)
            layer(f"{block}.op.conv2d", inner, 1, 3, 3, bias=None)
            table[f"{block}.op.x_proj_weight"] = (4, rank + 2, inner)
            table[f"{block}.op.dt_projs_weight"] = (4, inner, rank)
            table[f"{block}.op.dt_projs_bias"] = (4, inner)
            table[f"{block}.op.A_logs"] = (4 * inner, 1)
            table[f"{block}.op.Ds"] = (4 * inner,)
            layer(f"{block}.op.out_norm", inner, bias=inner)
            layer(f"{block}.op.out_proj", d, inner, bias=None)
            layer(f"{block}.norm2", d, bias=d)
            layer(f"{block}.mlp.fc1", mlp_ratio * d, d, bias=mlp_ratio * d)
            layer(f"{block}.mlp.fc2", d, mlp_ratio * d, bias=d)
        if i < 3:
            layer(f"layers.{i}.downsample.1", 2 * d, d, 3, 3, bias=2 * d)
            layer(f"layers.{i}.downsample.3", 2 * d, bias=2 * d)
    layer("classifier.norm", dims[-1], bias=dims[-1])
    layer("classifier.head", 1000, dims[-1], bias=1000)
    return table


@pytest.mark.parametrize(
    ("name", "dims", "depths", "ratio"),
    [
        ("vmamba_tiny_s1l8", (96, 192, 384, 768), (2, 2, 8, 2), 1),
        ("vmamba_tiny_s2l5", (96, 192, 384, 768), (2, 2, 5, 2), 2),
        ("vmamba_base_s2l15", (128, 256, 512, 1024), (2, 2, 15, 2), 2),
    ],
)
def test_weights_have_upstreams_names_and_shapes(
    name: str, dims: tuple[int, ...], depths: tuple[int, ...], ratio: int
) -> None:
    assert shapes_of(empty_model(name)) == v2_table(dims, depths, ratio)


@pytest.mark.parametrize("name", DEMO_CLASSES)
def test_demo_models_have_the_structure_of_upstreams(name: str) -> None:
    variant = get_variant(name)
    table = v2_table(variant.dims, variant.depths, 1, mlp_ratio=2)
    assert shapes_of(empty_model(name)) == table


def test_the_vanilla_network_has_a_gate_16_states_and_no_mlp() -> None:
    shapes = shapes_of(empty_model("vanilla_vmamba_tiny"))
    op = "layers.1.blocks.0.op"
    assert shapes[f"{op}.in_proj.weight"] == (2 * 2 * 192, 192)
    assert shapes[f"{op}.conv2d.bias"] == (384,)
    assert shapes[f"{op}.x_proj_weight"] == (4, 12 + 2 * 16, 384)
    assert shapes[f"{op}.A_logs"] == (4 * 384, 16)
    assert shapes[f"{op}.out_proj.weight"] == (192, 384)
    assert shapes["patch_embed.0.weight"] == (96, 3, 4, 4)
    assert shapes["layers.1.downsample.reduction.weight"] == (384, 768)
    assert shapes["layers.1.downsample.norm.weight"] == (768,)
    assert not any("mlp" in k or "norm2" in k for k in shapes)


def test_no_two_variants_have_the_same_weights_so_that_a_file_names_its_variant() -> None:
    tables = {name: frozenset(shapes_of(empty_model(name)).items()) for name in VARIANTS}
    assert len(set(tables.values())) == len(VARIANTS)


def test_a_misspelt_variant_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="did you mean 'vmamba_tiny_s1l8'") as caught:
        get_variant("vmamba-tiny-s1l8")
    assert all(name in str(caught.value) for name in VARIANTS)
