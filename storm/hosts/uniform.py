# SPDX-License-Identifier: Apache-2.0
"""``uniform``: no token matters more than another; lines are evenly spaced.

The middle line of each stratum leaves (or stays), the same for every image, so that an exported
graph holds the lines as constants. This is plain strided subsampling at any ratio: the baseline
that every score has to beat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stormrt.storm.hosts.host import Host

if TYPE_CHECKING:
    from torch import Tensor


def score(x: Tensor, measured: Tensor | None) -> Tensor:
    """Map [B, C, H, W] -> ones [B, H, W], FP32."""
    return x.new_ones((x.shape[0], *x.shape[2:])).float()


HOST = Host("uniform", score, spaced=True)
