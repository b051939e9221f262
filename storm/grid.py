# SPDX-License-Identifier: Apache-2.0
"""What a forward pass has done to its map so far: needed to merge again, and to restore."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stormrt.storm.lines import Lines, cell_members
from stormrt.storm.plan import Reduction, Restore, StormPlan


@dataclass(frozen=True, slots=True)
class AxisChoice:
    """The kept lines of one axis.

    ``[B, ...]`` below is [B] where an image has one choice, and [B, lanes] where every window
    chooses: a lane is a column of windows for rows, and a row of windows for columns.
    """

    lines: int
    """H (or W), before."""
    cells: Lines
    kept: Tensor
    """[B, ..., keep], INT32."""

    def starts(self) -> Tensor:
        """First line of each cell, [B, ..., keep], INT32."""
        return self.cells.starts(self.kept)

    def cell_of(self) -> Tensor:
        """The cell of each line, [B, ..., lines], INT32."""
        return self.cells.cell_of(self.kept)

    def members(self) -> tuple[Tensor, Tensor]:
        """The lines of each cell [B, ..., keep, most], INT64, and whether each is one of it."""
        return cell_members(self.lines, self.starts(), self.cells.most)

    def at_members(self, per_line: Tensor, members: Tensor) -> Tensor:
        """What is known of lines [B, lines] -> of members, [B, ..., keep, most]."""
        return self._gather(per_line, members.flatten(-2)).reshape(members.shape)

    def at_kept(self, per_line: Tensor) -> Tensor:
        """What is known of lines [B, lines] -> of kept lines, [B, ..., keep]."""
        return self._gather(per_line, self.kept.long())

    def mean(self, per_lane: Tensor) -> Tensor:
        """[B, ..., keep] -> mean over lanes, [B, keep]."""
        return per_lane if per_lane.dim() == 2 else per_lane.mean(1)

    def middle(self, per_lane: Tensor) -> Tensor:
        """[B, ..., keep] -> the middle lane's, [B, keep]."""
        return per_lane if per_lane.dim() == 2 else per_lane[:, per_lane.shape[1] // 2]

    def _gather(self, per_line: Tensor, index: Tensor) -> Tensor:
        """What is known of lines [B, lines], the same for each lane -> at index [B, ..., n]."""
        if self.kept.dim() == 2:  # axes are positive: the exporter cannot fold -1
            return per_line.gather(1, index)
        return per_line[:, None].expand(-1, self.kept.shape[1], -1).gather(2, index)


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of the map."""

    sizes: Tensor | None = None
    """Lines of the full grid that each line stands for, [B, lines], FP32; None: one each."""
    places: Tensor | None = None
    """Where each line lies on the full axis, [B, lines], FP32; None: every line is there."""
    full: int = 0
    """Lines of the full axis; of no meaning without ``places``."""

    def reduced(self, choice: AxisChoice, *, merge: bool, follow: bool) -> Axis:
        """After a reduction.

        Args:
            choice: The lines that stay.
            merge: The others are merged into them, so that they stand for more.
            follow: Keep track of places.
        """
        axis = self
        if merge:
            members, inside = choice.members()
            sizes = choice.at_members(self.sizes_of(choice), members)
            sizes = choice.mean(torch.where(inside, sizes, 0.0).sum(-1))
            axis = dataclasses.replace(axis, sizes=sizes)
        elif self.sizes is not None:
            axis = dataclasses.replace(axis, sizes=choice.mean(choice.at_kept(self.sizes)))
        if follow:
            places, full = choice.kept.float(), choice.lines
            if self.places is not None:
                places, full = choice.at_kept(self.places), self.full
            # Not a mean: its rounding would decide which of two lines is nearer.
            axis = dataclasses.replace(axis, places=choice.middle(places), full=full)
        return axis

    def sizes_of(self, choice: AxisChoice) -> Tensor:
        """Sizes [B, lines], FP32, ones if nothing was merged yet."""
        if self.sizes is not None:
            return self.sizes
        return torch.ones(choice.kept.shape[0], choice.lines, device=choice.kept.device)

    def halved(self) -> Axis:
        """After a stage's downsampling: a line lies where the first of its two lay.

        It stands for the mean of what they stood for: weights are relative.
        """
        if self.sizes is None and self.places is None:
            return self
        sizes, places = self.sizes, self.places
        if sizes is not None:
            if sizes.shape[1] % 2:
                sizes = torch.cat([sizes, sizes[:, -1:]], dim=1)
            sizes = (sizes[:, ::2] + sizes[:, 1::2]) * 0.5
        if places is not None:
            places = places[:, ::2] * 0.5
        return Axis(sizes, places, (self.full + 1) // 2)


@dataclass(frozen=True, slots=True)
class Undo:
    """How a map gets the size back that it had before a reduction."""

    restore: Restore
    apply: Callable[[Tensor], Tensor]
    """[B, C, H', W'] -> [B, C, H, W]."""
    rows: Axis
    """As it was before."""
    cols: Axis
    dt_grows: bool


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """What one reduction kept of the map that it was given."""

    reduction: Reduction
    height: int
    """H of that map."""
    width: int
    rows: Tensor
    """Row in that map of every kept token, [B, H', W'], INT64."""
    cols: Tensor


@dataclass(slots=True)
class GridTrace:
    """The state of one forward pass; reductions, stages and restores change it."""

    plan: StormPlan
    rows: Axis = Axis()
    cols: Axis = Axis()
    dt_grows: bool = False
    undos: list[Undo] = field(default_factory=list)
    """Of the stage that runs, in the order of its reductions."""
    kept: list[KeptTokens] | None = None
    """What reductions kept, where somebody asked."""

    def counts_sizes(self) -> bool:
        """Whether it will matter how many tokens a merged one stands for."""
        merges = [r for r in self.plan.reductions if r.mode == "merge"]
        return len(merges) > 1 or any(r.dt_grows for r in merges)

    def reduce(self, reduction: Reduction, rows: AxisChoice, cols: AxisChoice) -> None:
        """Note a reduction."""
        merge = reduction.mode == "merge" and self.counts_sizes()
        follow = reduction.restore == "end"
        self.rows = self.rows.reduced(rows, merge=merge, follow=follow)
        self.cols = self.cols.reduced(cols, merge=merge, follow=follow)
        self.dt_grows = self.dt_grows or reduction.dt_grows

    def log_size(self) -> Tensor | None:
        """Log of the number of tokens that each one stands for, [B, 1, H, W], FP32.

        None where step sizes are not to grow by it, or nothing was merged.
        """
        rows, cols = self.rows.sizes, self.cols.sizes
        if not self.dt_grows or rows is None or cols is None:
            return None
        return rows.log()[:, None, :, None] + cols.log()[:, None, None, :]

    def undo(self, x: Tensor, restore: Restore) -> Tensor:
        """Undo this stage's last reductions of a kind."""
        while self.undos and self.undos[-1].restore == restore:
            last = self.undos.pop()
            x = last.apply(x)
            self.rows, self.cols, self.dt_grows = last.rows, last.cols, last.dt_grows
        return x

    def next_stage(self) -> None:
        """The map has been downsampled."""
        self.undos = []
        self.rows, self.cols = self.rows.halved(), self.cols.halved()
