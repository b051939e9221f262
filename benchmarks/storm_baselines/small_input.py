# SPDX-License-Identifier: Apache-2.0
"""Just a smaller picture: the image downscaled to the side that costs as much as the plan."""

from __future__ import annotations

import bisect
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from benchmarks.storm_baselines.segments import finish, prefix
from stormrt.errors import InputError
from stormrt.storm.flops import count_flops
from stormrt.storm.variants import Variant
from stormrt.storm.vmamba import VMamba


def side_for(variant: Variant, side: int, flops: int) -> int:
    """The largest side that costs no more.

    Args:
        variant: The model.
        side: Of the full image, in pixels.
        flops: The budget.

    Returns:
        A side in pixels, at most ``side``.

    Raises:
        InputError: Even the smallest image that leaves the last stage a token costs more.
    """
    sides = range(8 * variant.patch, side + 1)
    # FLOPs never fall as the side grows.
    found = bisect.bisect_right(sides, flops, key=lambda s: count_flops(variant, s, s).total)
    if found == 0:
        raise InputError(
            "no image is as cheap as that",
            got=f"{flops} FLOPs",
            expected=f"{count_flops(variant, sides[0], sides[0]).total} or more",
        )
    return sides[found - 1]


def apply(model: VMamba, side: int, *, mode: str = "bicubic") -> Callable[[Tensor], Tensor]:
    """Downscale images with antialiasing, then run the dense model.

    Args:
        model: Dense.
        side: Of the smaller image, in pixels.
        mode: ``bicubic`` or ``bilinear``.

    Returns:
        Images [B, 3, H, W] -> logits.
    """

    def run(images: Tensor) -> Tensor:
        if images.shape[2:] != (side, side):
            small = F.interpolate(images.float(), (side, side), mode=mode, antialias=True)
            images = small.to(images.dtype)
        # In two parts, which take smaller images than the model does at once.
        return finish(model, prefix(model, images, (0, 0)).x, (0, 0))

    return run
