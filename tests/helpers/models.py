# SPDX-License-Identifier: Apache-2.0
"""Small models with the structure of the published ones, and random images."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from stormrt.storm.variants import Variant, get_variant
from stormrt.storm.vmamba import VMamba

SMALL = dataclasses.replace(
    get_variant("vmamba_tiny_s1l8"), name="small", dims=(8, 16, 32, 64), depths=(2, 1, 3, 1)
)
"""VMamba v2: not gated, N = 1, overlapping patches."""

SMALL_VANILLA = dataclasses.replace(
    get_variant("vanilla_vmamba_tiny"),
    name="small_vanilla",
    dims=(8, 16, 32, 64),
    depths=(2, 1, 3, 1),
    state=4,
)
"""Vanilla VMamba: gated, N > 1, patches that do not overlap, no MLP."""


def lively(variant: Variant, seed: int, num_classes: int = 5) -> VMamba:
    """A model in evaluation mode whose every parameter matters.

    Fresh weights are so small, and biases so zero, that a mistake in them would not show.
    """
    torch.manual_seed(seed)
    model = VMamba(variant, num_classes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def random_images(rng: np.random.Generator, batch: int, height: int, width: int) -> Tensor:
    """Images [B, 3, H, W] with smooth structure, so that tokens differ in what they are worth."""
    coarse = torch.from_numpy(rng.normal(size=(batch, 3, 5, 6))).float()
    fine = torch.from_numpy(rng.normal(size=(batch, 3, height, width))).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return smooth + 0.3 * fine
