# SPDX-License-Identifier: Apache-2.0
"""The VMamba models that upstream publishes and ours, by one name each, in one typed table.

Source: Liu et al., "VMamba: Visual State Space Model" (NeurIPS 2024), and the configuration files
of its authors' repository (github.com/MzeroMiko/VMamba, ``classification/configs/vssm``). The
``vmamba_nano`` models are this project's (``benchmarks/train_demo_models.py``).
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from stormrt.errors import InputError


@dataclass(frozen=True, slots=True)
class Variant:
    """Hyper-parameters of one VMamba model."""

    name: str
    dims: tuple[int, int, int, int]
    """Channels d of the four stages."""
    depths: tuple[int, int, int, int]
    """Blocks in each stage."""
    ssm_ratio: int
    """D / d: inner channels of SS2D over channels of the stage."""
    state: int
    """N: state components for each channel."""
    mlp_ratio: int
    """Hidden channels of the MLP over d; 0: blocks without an MLP."""
    gated: bool
    """SS2D multiplies its output by SiLU of a second projection (vanilla VMamba)."""
    overlapping: bool
    """Patch embedding and downsampling by overlapping 3x3 convolutions (VMamba v2); otherwise by
    4x4 patches and 2x2 patch merging (vanilla VMamba)."""
    conv_bias: bool
    """The depthwise convolution of SS2D has a bias."""
    checkpoint: str
    """File name of the published weights, for messages and documentation."""
    patch: int = 4
    """Pixels between the tokens of stage 0: 4, or 2 for small images."""
    image: int = 224
    """Side in pixels of the images that it was trained for."""
    num_classes: int = 1000
    """Classes of the published weights."""

    def inner(self, stage: int) -> int:
        """D, the inner channels of SS2D in a stage."""
        return self.dims[stage] * self.ssm_ratio

    def dt_rank(self, stage: int) -> int:
        """R = ceil(d / 16), the rank of the step size's projection."""
        return math.ceil(self.dims[stage] / 16)


def _v2(
    name: str, dim: int, depths: tuple[int, int, int, int], ssm_ratio: int, checkpoint: str
) -> Variant:
    return Variant(
        name=name,
        dims=(dim, 2 * dim, 4 * dim, 8 * dim),
        depths=depths,
        ssm_ratio=ssm_ratio,
        state=1,
        mlp_ratio=4,
        gated=False,
        overlapping=True,
        conv_bias=False,
        checkpoint=checkpoint,
    )


def _vanilla(name: str, dim: int, blocks: int, checkpoint: str) -> Variant:
    return Variant(
        name=name,
        dims=(dim, 2 * dim, 4 * dim, 8 * dim),
        depths=(2, 2, blocks, 2),
        ssm_ratio=2,
        state=16,
        mlp_ratio=0,
        gated=True,
        overlapping=False,
        conv_bias=True,
        checkpoint=checkpoint,
    )


def _nano(
    name: str, depths: tuple[int, int, int, int], *, patch: int, image: int, num_classes: int
) -> Variant:
    """A demo model: small enough for its weights to be committed.

    MLPs are half as wide as upstream's: at the same size the network is deeper, and its widest
    maps, which bound its speed, are half as large.
    """
    return Variant(
        name=name,
        dims=(48, 96, 192, 384),
        depths=depths,
        ssm_ratio=1,
        state=1,
        mlp_ratio=2,
        gated=False,
        overlapping=True,
        conv_bias=False,
        checkpoint=f"{name}.safetensors",
        patch=patch,
        image=image,
        num_classes=num_classes,
    )


VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        _v2("vmamba_tiny_s1l8", 96, (2, 2, 8, 2), 1, "vssm1_tiny_0230s_ckpt_epoch_264.pth"),
        _v2("vmamba_tiny_s2l5", 96, (2, 2, 5, 2), 2, "vssm_tiny_0230_ckpt_epoch_262.pth"),
        _v2("vmamba_small_s2l15", 96, (2, 2, 15, 2), 2, "vssm_small_0229_ckpt_epoch_222.pth"),
        _v2("vmamba_small_s1l20", 96, (2, 2, 20, 2), 1, "vssm1_small_0229s_ckpt_epoch_240.pth"),
        _v2("vmamba_base_s2l15", 128, (2, 2, 15, 2), 2, "vssm_base_0229_ckpt_epoch_237.pth"),
        _v2("vmamba_base_s1l20", 128, (2, 2, 20, 2), 1, "vssm1_base_0229s_ckpt_epoch_225.pth"),
        _vanilla("vanilla_vmamba_tiny", 96, 9, "vssmtiny_dp01_ckpt_epoch_292.pth"),
        _vanilla("vanilla_vmamba_small", 96, 27, "vssmsmall_dp03_ckpt_epoch_238.pth"),
        _vanilla("vanilla_vmamba_base", 128, 27, "vssmbase_dp06_ckpt_epoch_241.pth"),
        _nano("vmamba_nano_scenes", (2, 2, 8, 1), patch=4, image=128, num_classes=6),
        # 32-pixel images have most of their detail in the early, larger maps.
        _nano("vmamba_nano_cifar10", (3, 5, 6, 1), patch=2, image=32, num_classes=10),
    )
}
"""Every variant by name."""


def get_variant(name: str) -> Variant:
    """Look a variant up.

    Raises:
        InputError: No variant has this name; the message suggests the nearest.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    near = difflib.get_close_matches(name, VARIANTS, n=1, cutoff=0.0)[0]
    raise InputError(
        f"unknown model {name!r}",
        expected=", ".join(VARIANTS),
        fix=f"did you mean {near!r}?",
    )
