# SPDX-License-Identifier: Apache-2.0
"""Host scores: how much each token matters, [B, H, W], higher is kept.

A host is a function of the map and of the step size of the block before; STORM turns any such
score into a choice of spatial units. All scores are FP32, so that FP16 graphs choose as FP32 ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def feature_norm(x: Tensor, step_size: Tensor | None) -> Tensor:
    """L2 norm of each token's features. x [B, C, H, W] -> [B, H, W]."""
    x = x.float()
    return (x * x).sum(1).sqrt()


def step_size(x: Tensor, step_size: Tensor | None) -> Tensor:
    """Mean step size of the preceding block's scan, [B, H, W].

    A token with a large step overwrites the state with itself; one with a small step is passed
    over. This is our reading of the structure-aware score of "Training-free Token Reduction for
    Vision Mamba" (MTR, 2025), of which only the abstract was at hand.
    """
    if step_size is None:
        raise ValueError("step_size needs a block before it in the same stage")
    return step_size


@dataclass(frozen=True, slots=True)
class Host:
    """A named score."""

    name: str
    score: Callable[[Tensor, Tensor | None], Tensor]
    needs_step_size: bool


HOSTS: dict[str, Host] = {
    "feature_norm": Host("feature_norm", feature_norm, needs_step_size=False),
    "step_size": Host("step_size", step_size, needs_step_size=True),
}
"""Every host by the name that a plan uses (``plan.HOST_NAMES`` lists the same without PyTorch)."""
