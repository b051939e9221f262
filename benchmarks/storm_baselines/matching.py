# SPDX-License-Identifier: Apache-2.0
"""Tokens merged into the most similar ones, and the rest repacked row by row into a rectangle.

Source: Bolya et al., "Token Merging: Your ViT But Faster" (ToMe, arXiv 2210.09461), section 3, on
the block's features instead of attention keys, which VMamba has none of; and the restored order of
Shi et al., "Faster Vision Mamba is Rebuilt in Minutes via Merged Token Re-training" (R-MeeTo, arXiv
2412.12496).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.storm_baselines.segments import Prefix, Reduced, Where, check_size
from stormrt.storm.vmamba import VMamba


def merge_once(tokens: Tensor, sizes: Tensor, places: Tensor, merged: int) -> tuple[Tensor, ...]:
    """Merge some tokens of even place into their most similar ones of odd place.

    Args:
        tokens: [B, L, C].
        sizes: [B, L, 1], how many tokens each stands for.
        places: [B, L], where each came from, increasing.
        merged: How many disappear, at most L // 2.

    Returns:
        The same three with ``merged`` tokens less, in the order of their places.
    """
    unit = F.normalize(tokens, dim=2)
    similar, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(2)
    order = similar.argsort(dim=1, descending=True, stable=True)
    leaving, staying = order[:, :merged, None], order[:, merged:, None]
    target = partner.gather(1, order[:, :merged])[..., None]

    def even(values: Tensor, index: Tensor) -> Tensor:
        return values[:, ::2].gather(1, index.expand(-1, -1, values.shape[2]))

    def combined(values: Tensor) -> Tensor:
        moved = even(values, leaving)
        whole = values[:, 1::2].scatter_add(1, target.expand_as(moved), moved)
        return torch.cat([even(values, staying), whole], 1)

    sums, counts = combined(tokens * sizes), combined(sizes)
    left = torch.cat([even(places[..., None], staying), places[:, 1::2, None]], 1)
    order = left.argsort(dim=1)
    sums, counts, left = (t.gather(1, order.expand_as(t)) for t in (sums, counts, left))
    return sums / counts, counts, left[..., 0]


def merge_and_repack(x: Tensor, height: int, width: int) -> Tensor:
    """[B, C, H, W] -> [B, C, H', W'] by bipartite matching, at most half of the tokens a round."""
    check_size(x, height, width)
    tokens = x.float().flatten(2).transpose(1, 2)
    batch, length, channels = tokens.shape
    sizes = tokens.new_ones(batch, length, 1)
    places = torch.arange(length, device=x.device).expand(batch, -1)
    while (length := tokens.shape[1]) > height * width:
        merged = min(length - height * width, length // 2)
        tokens, sizes, places = merge_once(tokens, sizes, places, merged)
    return tokens.transpose(1, 2).reshape(batch, channels, height, width).to(x.dtype)


def apply(model: VMamba, where: Where, height: int, width: int) -> Reduced:
    """Merge single tokens before a block."""

    def transform(before: Prefix) -> Tensor:
        return merge_and_repack(before.x, height, width)

    return Reduced(model, where, transform)
