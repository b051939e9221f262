# SPDX-License-Identifier: Apache-2.0
"""``clipped_output``: how much of a token the preceding block's scan lets through.

What is read: the output y [B, D, H, W] of the selective scan of the block before, all four
directions summed, with the skip D x, before ``out_norm``, gate and ``out_proj``. The score is the
mean over the D channels of max(y, 0).

Source: "Exploring Token Pruning in Vision State Space Models" (ToP-ViM, arXiv 2409.18962, NeurIPS
2024), which aggregates the clipped output of the SSM branch over channels. That the branch is read
before its normalisation, and that the four directions are summed first, is our reading: ToP-ViM is
of backbones with two directions, and its published code reads one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stormrt.storm.hosts.host import Host

if TYPE_CHECKING:
    from torch import Tensor


def score(x: Tensor, measured: Tensor | None) -> Tensor:
    """The measured output [B, H, W], FP32 (``layers.ClippedOutput``)."""
    if measured is None:
        raise ValueError("clipped_output needs a block before it in the same stage")
    return measured


HOST = Host("clipped_output", score, needs="clipped_output")
