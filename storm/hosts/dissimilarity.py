# SPDX-License-Identifier: Apache-2.0
"""``dissimilarity``: how little a token resembles its neighbours on the grid.

Minus the sum of the cosine similarities with the four neighbours; a neighbour outside the map
counts 0, so that tokens of the border, which have fewer, score higher.

Source: the measure of "Token Merging" (ToMe, Bolya et al., arXiv 2210.09461) and of R-MeeTo (arXiv
2412.12496), cosine similarity. They take it of attention keys and of hidden states, and match
tokens from anywhere; features of the block's input, and grid neighbours alone, are our reading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stormrt.storm.hosts.host import Host

if TYPE_CHECKING:
    from torch import Tensor

_SMALLEST = 1e-12
"""Product of two norms below which a similarity is 0 and not 0 / 0."""


def score(x: Tensor, measured: Tensor | None) -> Tensor:
    """Map [B, C, H, W] -> [B, H, W], FP32."""
    from torch.nn.functional import pad  # a plan must be readable without PyTorch

    x = x.float()
    norm = (x * x).sum(1).sqrt()
    similar = norm * 0.0
    if x.shape[3] > 1:  # a side of one line has no neighbours, and would give empty tensors
        dot = (x[..., 1:] * x[..., :-1]).sum(1)
        cosine = dot / (norm[..., 1:] * norm[..., :-1]).clamp(min=_SMALLEST)
        similar = similar + pad(cosine, (0, 1)) + pad(cosine, (1, 0))
    if x.shape[2] > 1:
        dot = (x[:, :, 1:] * x[:, :, :-1]).sum(1)
        cosine = dot / (norm[:, 1:] * norm[:, :-1]).clamp(min=_SMALLEST)
        similar = similar + pad(cosine, (0, 0, 0, 1)) + pad(cosine, (0, 0, 1, 0))
    return -similar


HOST = Host("dissimilarity", score)
