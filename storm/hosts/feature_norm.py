# SPDX-License-Identifier: Apache-2.0
"""``feature_norm``: the L2 norm of a token's features.

Source: none; magnitude is the plain measure of saliency in pruning, and for tokens it is our choice
of a default that needs nothing but the map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stormrt.storm.hosts.host import Host

if TYPE_CHECKING:
    from torch import Tensor


def score(x: Tensor, measured: Tensor | None) -> Tensor:
    """Map [B, C, H, W] -> [B, H, W], FP32."""
    x = x.float()
    return (x * x).sum(1).sqrt()


HOST = Host("feature_norm", score)
