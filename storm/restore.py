# SPDX-License-Identifier: Apache-2.0
"""Maps get their size back: each place takes the nearest unit that stayed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stormrt.plugins.spatial_unit_scatter.torch_op import spatial_unit_scatter
from stormrt.storm.grid import Axis, GridTrace


class RestoreStage(nn.Module):
    """Undoes the reductions of a stage that are to be undone before its downsampling."""

    def forward(self, x: Tensor, trace: GridTrace) -> Tensor:
        """[B, d, H', W'] -> [B, d, H, W]; the trace is as it was before these reductions."""
        return trace.undo(x, "stage")


class RestoreEnd(nn.Module):
    """A map of the network at the size that it would have without reductions ``restore: end``.

    The network goes on with the reduced map. Reductions of the stage itself are undone exactly;
    what earlier stages took away is filled in from the line whose place is nearest.
    """

    def forward(self, x: Tensor, trace: GridTrace) -> Tensor:
        """[B, d, H', W'] -> [B, d, H, W]; the trace stays as it is."""
        undone = GridTrace(trace.plan, trace.rows, trace.cols, trace.dt_grows, list(trace.undos))
        x = undone.undo(x, "end")
        rows, cols = (_nearest(axis) for axis in (undone.rows, undone.cols))
        if rows is None or cols is None:
            return x
        return spatial_unit_scatter(x, rows, cols)


def _nearest(axis: Axis) -> Tensor | None:
    """The line nearest to each line of the full axis, the earlier of two; [B, full], INT32."""
    if axis.places is None:
        return None
    full = torch.arange(axis.full, dtype=torch.float32, device=axis.places.device)
    distances = (axis.places[:, None, :] - full[:, None]).abs()
    return distances.argmin(2).to(torch.int32)
