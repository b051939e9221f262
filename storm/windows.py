# SPDX-License-Identifier: Apache-2.0
"""Windows: the crossings of the strata of rows and the strata of columns.

Where lines are the unit, every stratum of rows gives up one row through the whole map. Where
windows are, it gives up one row in each window, which may be another row in the next window:
tokens shift against those of the next window, but never leave their own. Every window of a stratum
keeps as many rows and as many columns, so that what stays is a dense map again.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from stormrt.storm.constants import made_once
from stormrt.storm.lines import selection_bounds


class Segments:
    """The strata of one axis, as segments of the lines that cross it.

    Args:
        lines: H (or W).
        keep: H' (or W').
        device: Of the maps.

    Raises:
        InputError: The map has fewer lines than are to stay.
    """

    def __init__(self, lines: int, keep: int, device: torch.device) -> None:
        bounds = selection_bounds(lines, keep)
        sizes = [e - s for s, e in itertools.pairwise(bounds)]
        self.count = len(sizes)
        width = max(sizes)
        members = [[min(s + i, lines - 1) for i in range(width)] for s in bounds[:-1]]
        shares = [[1.0 / size if i < size else 0.0 for i in range(width)] for size in sizes]
        self._members = torch.tensor(members, device=device)
        self._shares = torch.tensor(shares, device=device)
        # With every line kept a segment keeps all of its own; else all but one, or one.
        leave = lines - keep
        kept = [lines] if not leave else [n - 1 for n in sizes] if leave <= keep else [1] * keep
        self.of_lines = _repeated(sizes, device)
        """The segment of each line, [lines], INT64."""
        self.of_kept = _repeated(kept, device)
        """The segment of each kept line, [keep], INT64."""

    def means(self, scores: Tensor) -> Tensor:
        """Scores [B, n, lines] -> mean over each segment, [B, segments, n], FP32."""
        parts = scores.index_select(2, self._members.flatten())
        parts = parts.reshape(-1, scores.shape[1], *self._members.shape)
        return (parts * self._shares).sum(3).transpose(1, 2)


def _repeated(counts: list[int], device: torch.device) -> Tensor:
    return torch.tensor([i for i, n in enumerate(counts) for _ in range(n)], device=device)


segments = made_once(Segments)
"""``Segments``, made once for its lines and device."""


class TokenCopy(nn.Module):
    """Copies tokens by the row, then the column, that each place takes. Has no parameters.

    In standard operators, since SpatialUnitGather takes whole lines. A module of its own, so that
    its nodes can be found by name in an exported graph and move FP16 there.
    """

    def forward(self, x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Copy rows, then columns of the result.

        z[b, c, i, w] = x[b, c, rows[b, i, w], w], and y[b, c, i, j] = z[b, c, i, cols[b, i, j]].

        Args:
            x: [B, C, H, W].
            rows: [B, H', W], integers in [0, H).
            cols: [B, H', W'], integers in [0, W).

        Returns:
            y [B, C, H', W'], type of ``x``.
        """
        return take(take(x, rows, 2), cols, 3)


def take(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """``x.gather`` along a side of the map, the same for every channel.

    Args:
        x: [B, C, H, W].
        index: [B, H', W'], integers; equal to x's in the other side.
        dim: 2 or 3.

    Returns:
        [B, C, H', W'], type of ``x``.
    """
    return x.gather(dim, index.long()[:, None].expand(-1, x.shape[1], -1, -1))
