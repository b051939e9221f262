# SPDX-License-Identifier: Apache-2.0
"""``random``: a table of random scores, one a position, the same for every image.

The table depends on the map's size and a seed and on nothing else: neither on the batch nor on
PyTorch's generators, so that a graph exported today chooses as a model run tomorrow. A host of
another seed is ``register_host("random_7", with_seed(7))``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stormrt.storm.hosts.host import Host, Score

if TYPE_CHECKING:
    from torch import Tensor


def with_seed(seed: int) -> Score:
    """The score whose table is drawn from a seed."""

    def score(x: Tensor, measured: Tensor | None) -> Tensor:
        """Map [B, C, H, W] -> [B, H, W], FP32."""
        # It imports PyTorch, which plans must do without.
        from stormrt.storm.hosts.random_table import table_on

        height, width = x.shape[2:]
        return table_on(height, width, seed, x.device).expand(x.shape[0], -1, -1)

    return score


HOST = Host("random", with_seed(0))
