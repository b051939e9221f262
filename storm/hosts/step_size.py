# SPDX-License-Identifier: Apache-2.0
"""``step_size``: the mean step size of the preceding block's scan.

A token with a large step overwrites the state with itself; one with a small step is passed over.

Source: "Training-free Token Reduction for Vision Mamba" (MTR, arXiv 2507.14042, 2025), whose
structure-aware score this is in our reading: only the abstract was at hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stormrt.storm.hosts.host import Host

if TYPE_CHECKING:
    from torch import Tensor


def score(x: Tensor, measured: Tensor | None) -> Tensor:
    """The measured step size [B, H, W], FP32: mean over directions and channels (``SS2D``)."""
    if measured is None:
        raise ValueError("step_size needs a block before it in the same stage")
    return measured


HOST = Host("step_size", score, needs="step_size")
