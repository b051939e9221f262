# SPDX-License-Identifier: Apache-2.0
"""Modules that cut a map down before a block: score, choose, and gather or merge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stormrt.plugins.spatial_unit_gather.torch_op import spatial_unit_gather
from stormrt.plugins.spatial_unit_merge.torch_op import spatial_unit_merge
from stormrt.plugins.spatial_unit_scatter.torch_op import spatial_unit_scatter
from stormrt.storm.grid import Axis, AxisChoice, GridTrace, KeptTokens, Undo
from stormrt.storm.hosts import Host, Measure, get_host
from stormrt.storm.lines import evenly_spaced, fixed_lines, line_scores, line_selector
from stormrt.storm.plan import Reduction, StormPlan
from stormrt.storm.windows import Segments, TokenCopy, segments, take


class HostScore(nn.Module):
    """A host's score. A module, so that its nodes can be found by name and stay in FP32."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host

    def forward(self, x: Tensor, measured: Tensor | None) -> Tensor:
        """X [B, C, H, W] and what the block before measured [B, H, W] -> [B, H, W], FP32."""
        return self.host.score(x, measured).float()


class LineChoice(nn.Module):
    """Chooses the lines of one axis that stay. Has no parameters.

    A module of its own, so that the choice can be found by name in an exported graph and be forced
    here (``forced_selections``).
    """

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep
        self.forced: Tensor | None = None
        """A choice to follow instead of the scores."""

    def choose(self, scores: Tensor) -> Tensor:
        """Scores [..., lines], FP32 -> kept lines [..., keep], INT32, strictly increasing."""
        return line_selector(scores.shape[-1], self.keep, scores.device)(scores)

    def forward(self, scores: Tensor) -> Tensor:
        """The same, or what it is forced to."""
        return self.choose(scores) if self.forced is None else self.forced


class UnitReduction(nn.Module, ABC):
    """Cuts a map down to H' x W'. Has no parameters.

    What units are, subclasses say; [B, ...] is as in ``AxisChoice``.
    """

    def __init__(self, reduction: Reduction) -> None:
        super().__init__()
        self.reduction = reduction
        host = get_host(reduction.host)
        self.is_fixed = reduction.rows is not None or host.spaced
        self.needs: Measure | None = None if self.is_fixed else host.needs
        """What the block before has to measure."""
        self.score = HostScore(host)
        self.rows = LineChoice(reduction.height)
        self.cols = LineChoice(reduction.width)

    def forward(self, x: Tensor, measured: Tensor | None, trace: GridTrace | None = None) -> Tensor:
        """[B, C, H, W] -> [B, C, H', W'].

        Args:
            x: The map.
            measured: [B, H, W] of the block before, for hosts that need it.
            trace: Of the pass; notes the reduction. None: nobody will restore or merge again.
        """
        r = self.reduction
        trace = trace or GridTrace(StormPlan((r,)))
        if x.shape[2:] == (r.height, r.width):
            # Every unit stays; a copy in another memory layout would round differently.
            return x
        before = trace.rows, trace.cols, trace.dt_grows
        rows, cols = self._fixed(x) if self.is_fixed else self._chosen(x, measured)
        if trace.kept is not None:
            trace.kept.append(self._kept(x, rows, cols))
        # The map comes last: an exported graph's value of this name is what its last node makes.
        trace.reduce(r, rows, cols)
        if r.restore != "no":
            trace.undos.append(Undo(r.restore, self._undo(rows, cols), *before))
        if r.mode == "drop":
            return self._drop(x, rows, cols)
        return self._merge(x, rows, cols, before[:2])

    def _fixed(self, x: Tensor) -> tuple[AxisChoice, AxisChoice]:
        r = self.reduction
        choices = []
        for lines, keep, chosen, lanes in zip(
            x.shape[2:], (r.height, r.width), (r.rows, r.cols), self._lanes(x), strict=True
        ):
            cells = fixed_lines(lines, chosen or evenly_spaced(lines, keep), x.device)
            choices.append(AxisChoice(lines, cells, cells.kept(x.shape[0], *lanes)))
        return choices[0], choices[1]

    def _chosen(self, x: Tensor, measured: Tensor | None) -> tuple[AxisChoice, AxisChoice]:
        choices = []
        by_axis = self._line_scores(self.score(x, measured))
        for choice, scores in zip((self.rows, self.cols), by_axis, strict=True):
            lines = scores.shape[-1]
            cells = line_selector(lines, choice.keep, x.device)
            choices.append(AxisChoice(lines, cells, choice(scores)))
        return choices[0], choices[1]

    @abstractmethod
    def _lanes(self, x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How many choices of rows there are in one image, and of columns; () is one."""

    @abstractmethod
    def _line_scores(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Token scores [B, H, W] -> those of rows [B, ..., H] and of columns [B, ..., W]."""

    @abstractmethod
    def _kept(self, x: Tensor, rows: AxisChoice, cols: AxisChoice) -> KeptTokens:
        """What stays, for those who want to know."""

    @abstractmethod
    def _drop(self, x: Tensor, rows: AxisChoice, cols: AxisChoice) -> Tensor:
        """[B, C, H, W] -> what stays of it, [B, C, H', W']."""

    @abstractmethod
    def _merge(
        self, x: Tensor, rows: AxisChoice, cols: AxisChoice, sizes: tuple[Axis, Axis]
    ) -> Tensor:
        """[B, C, H, W] -> weighted means of cells, [B, C, H', W']; ``sizes`` are x's."""

    @abstractmethod
    def _undo(self, rows: AxisChoice, cols: AxisChoice) -> Callable[[Tensor], Tensor]:
        """What gives [B, C, H', W'] its size back: each token takes its cell's."""


class LineReduction(UnitReduction):
    """The unit is a line: whole rows and whole columns leave, each image's own."""

    def _lanes(self, x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (), ()

    def _line_scores(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        return line_scores(scores)

    def _kept(self, x: Tensor, rows: AxisChoice, cols: AxisChoice) -> KeptTokens:
        r = self.reduction
        by_row = rows.kept.long()[:, :, None].expand(-1, -1, r.width)
        by_col = cols.kept.long()[:, None, :].expand(-1, r.height, -1)
        return KeptTokens(r, x.shape[2], x.shape[3], by_row, by_col)

    def _drop(self, x: Tensor, rows: AxisChoice, cols: AxisChoice) -> Tensor:
        return spatial_unit_gather(x, rows.kept, cols.kept)

    def _merge(
        self, x: Tensor, rows: AxisChoice, cols: AxisChoice, sizes: tuple[Axis, Axis]
    ) -> Tensor:
        by_row, by_col = (
            self._weights(choice, axis) for choice, axis in zip((rows, cols), sizes, strict=True)
        )
        return spatial_unit_merge(x, rows.starts(), cols.starts(), by_row, by_col)

    def _weights(self, choice: AxisChoice, axis: Axis) -> Tensor:
        """What each line counts in its cell, [B, lines], FP32."""
        weights = axis.sizes_of(choice)
        if self.reduction.weights == "size":
            return weights
        lines = torch.arange(choice.lines, dtype=torch.int32, device=weights.device)
        kept = choice.kept.gather(1, choice.cell_of().long())
        return weights / (1.0 + (lines - kept).abs().float())

    def _undo(self, rows: AxisChoice, cols: AxisChoice) -> Callable[[Tensor], Tensor]:
        return lambda x: spatial_unit_scatter(x, rows.cell_of(), cols.cell_of())


class WindowReduction(UnitReduction):
    """The unit is a window, a crossing of strata: each gives up rows and columns of its own."""

    def __init__(self, reduction: Reduction) -> None:
        super().__init__(reduction)
        self.tokens = TokenCopy()

    def _segments(self, height: int, width: int, device: torch.device) -> tuple[Segments, Segments]:
        """Rows of windows, and columns of windows."""
        r = self.reduction
        return segments(height, r.height, device), segments(width, r.width, device)

    def _lanes(self, x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        of_rows, of_cols = self._segments(x.shape[2], x.shape[3], x.device)
        return (of_cols.count,), (of_rows.count,)

    def _line_scores(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        of_rows, of_cols = self._segments(scores.shape[1], scores.shape[2], scores.device)
        return of_cols.means(scores), of_rows.means(scores.transpose(1, 2))

    def _kept(self, x: Tensor, rows: AxisChoice, cols: AxisChoice) -> KeptTokens:
        by_row, by_col = self._places(rows, cols)
        by_col = by_col.long()
        by_row = by_row.long().gather(2, by_col)
        return KeptTokens(self.reduction, rows.lines, cols.lines, by_row, by_col)

    def _places(self, rows: AxisChoice, cols: AxisChoice) -> tuple[Tensor, Tensor]:
        """Kept rows at each column of the map [B, H', W], kept columns at each kept row."""
        of_rows, of_cols = self._segments(rows.lines, cols.lines, rows.kept.device)
        return (
            _at_columns(rows.kept, of_cols.of_lines),
            _at_rows(cols.kept, of_rows.of_kept),
        )

    def _drop(self, x: Tensor, rows: AxisChoice, cols: AxisChoice) -> Tensor:
        out: Tensor = self.tokens(x, *self._places(rows, cols))
        return out

    def _merge(
        self, x: Tensor, rows: AxisChoice, cols: AxisChoice, sizes: tuple[Axis, Axis]
    ) -> Tensor:
        of_rows, of_cols = self._segments(rows.lines, cols.lines, x.device)
        # First along the columns of every window, then along its rows; a cell has few members.
        members, shares = self._shares(rows, sizes[0])
        half = torch.stack(
            [
                take(x.float(), _at_columns(members[..., m], of_cols.of_lines), 2)
                * _at_columns(shares[..., m], of_cols.of_lines)[:, None]
                for m in range(rows.cells.most)
            ]
        ).sum(0)
        members, shares = self._shares(cols, sizes[1])
        merged = torch.stack(
            [
                take(half, _at_rows(members[..., m], of_rows.of_kept), 3)
                * _at_rows(shares[..., m], of_rows.of_kept)[:, None]
                for m in range(cols.cells.most)
            ]
        ).sum(0)
        return merged.to(x.dtype)

    def _shares(self, choice: AxisChoice, axis: Axis) -> tuple[Tensor, Tensor]:
        """The lines of each cell and what each counts in it, [B, lanes, keep, most]."""
        members, inside = choice.members()
        sizes = choice.at_members(axis.sizes_of(choice), members)
        weights = torch.where(inside, sizes, 0.0)
        if self.reduction.weights == "distance":
            weights = weights / (1.0 + (members - choice.kept[..., None]).abs().float())
        return members, weights / weights.sum(-1, keepdim=True)

    def _undo(self, rows: AxisChoice, cols: AxisChoice) -> Callable[[Tensor], Tensor]:
        def apply(x: Tensor) -> Tensor:
            of_rows, of_cols = self._segments(rows.lines, cols.lines, x.device)
            by_row = _at_columns(rows.cell_of(), of_cols.of_kept)
            by_col = _at_rows(cols.cell_of(), of_rows.of_lines)
            out: Tensor = self.tokens(x, by_row, by_col)
            return out

        return apply


def _at_columns(by_lane: Tensor, columns: Tensor) -> Tensor:
    """What is known of rows [B, lanes, n], at columns of the map by lane: [B, n, columns]."""
    return by_lane.index_select(1, columns).transpose(1, 2)


def _at_rows(by_lane: Tensor, rows: Tensor) -> Tensor:
    """What is known of columns [B, lanes, n], at rows of the map by lane: [B, rows, n]."""
    return by_lane.index_select(1, rows)


def make_reduction(reduction: Reduction) -> UnitReduction:
    """The module for one reduction of a plan.

    Raises:
        InputError: Its host is not known.
    """
    return (LineReduction if reduction.unit == "line" else WindowReduction)(reduction)
