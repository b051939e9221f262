# SPDX-License-Identifier: Apache-2.0
"""The image's best tokens, wherever they are, repacked row by row into a rectangle.

What token pruning for sequences (MTR, ToP-ViM) does to a map: the order of the row-major scan is
kept, columns and neighbourhoods are not.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.storm_baselines.segments import Prefix, Reduced, Where, check_size
from stormrt.storm.hosts import get_host
from stormrt.storm.vmamba import VMamba


def repack_best(x: Tensor, scores: Tensor, height: int, width: int) -> Tensor:
    """Keep the height * width tokens of highest score, in row-major order.

    Args:
        x: [B, C, H, W].
        scores: [B, H, W].
        height: H'.
        width: W'.

    Returns:
        [B, C, H', W'].
    """
    check_size(x, height, width)
    best = scores.flatten(1).topk(height * width, sorted=False).indices.sort().values
    kept = x.flatten(2).gather(2, best[:, None].expand(-1, x.shape[1], -1))
    return kept.reshape(*x.shape[:2], height, width)


def apply(
    model: VMamba, where: Where, height: int, width: int, *, host: str = "step_size"
) -> Reduced:
    """Prune single tokens before a block, by the scores of any of STORM's hosts.

    ``step_size`` is MTR's, ``clipped_output`` ToP-ViM's (``storm/hosts``).
    """
    scored = get_host(host)

    def transform(before: Prefix) -> Tensor:
        measured = before.measured.get(scored.needs) if scored.needs else None
        return repack_best(before.x, scored.score(before.x, measured), height, width)

    return Reduced(model, where, transform)
