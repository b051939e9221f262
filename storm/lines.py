# SPDX-License-Identifier: Apache-2.0
"""Lines of one axis: which stay, under the local constraint, and where the others go.

Our reading of STORM's "spatial units under localized constraints" (docs/storm.md): the lines of a
grid are cut into contiguous strata, and every stratum gives up (or keeps) exactly one line. No
kept line moves further than its stratum, and the count of lines is the same for every image, so
that the graph's shapes are static. No sort is needed: which stratum an output line comes from is
known beforehand, and only its offset within the stratum depends on the image.

Every line that leaves belongs to the nearest kept line of its stratum, the earlier of two. A kept
line and the lines that belong to it are a cell; cells are contiguous and cover the axis. Merging
averages cells, and restoring gives each line what its cell became.
"""

from __future__ import annotations

import itertools
from typing import Protocol

import torch
from torch import Tensor

from stormrt.errors import InputError
from stormrt.storm.constants import made_once


def strata_bounds(lines: int, strata: int) -> list[int]:
    """Cut ``lines`` lines into ``strata`` contiguous strata whose sizes differ by one at most.

    Returns:
        strata + 1 bounds, from 0 to ``lines``.
    """
    return [(i * lines + strata // 2) // strata for i in range(strata)] + [lines]


def selection_bounds(lines: int, keep: int) -> list[int]:
    """Bounds of the strata when ``keep`` of ``lines`` lines stay; one stratum if all of them do.

    Raises:
        InputError: The map has fewer lines than are to stay, or none is to.
    """
    if not 1 <= keep <= lines:
        raise InputError(
            "the plan does not fit the map",
            got=f"{keep} of {lines} lines to keep",
            expected=f"1 to {lines}",
            fix="make the plan for the size of the images in use",
        )
    leave = lines - keep
    return strata_bounds(lines, min(leave, keep)) if leave else [0, lines]


def evenly_spaced(lines: int, keep: int) -> tuple[int, ...]:
    """The lines that stay if the middle line of each stratum leaves (or stays)."""
    bounds = selection_bounds(lines, keep)
    if keep == lines:
        return tuple(range(lines))
    middles = [(s + e - 1) // 2 for s, e in itertools.pairwise(bounds)]
    if lines - keep > keep:
        return tuple(middles)
    leaving = set(middles)
    return tuple(line for line in range(lines) if line not in leaving)


class Lines(Protocol):
    """Kept lines and their cells; tensors on one device."""

    most: int
    """Lines that a cell has at most."""

    def starts(self, kept: Tensor) -> Tensor:
        """Kept lines [..., keep] -> the first line of each one's cell, [..., keep], INT32."""

    def cell_of(self, kept: Tensor) -> Tensor:
        """Kept lines [..., keep] -> the cell of each line, [..., lines], INT32."""


class LineSelector:
    """Chooses ``keep`` of ``lines`` lines from their scores, one stratum at a time.

    With at most half the lines leaving there is a stratum for each line that leaves, otherwise
    one for each line that stays.

    Args:
        lines: H (or W).
        keep: H' (or W'), 1 <= keep <= lines.
        device: Where the scores will be.

    Raises:
        InputError: The map has fewer lines than are to stay, or none is to.
    """

    def __init__(self, lines: int, keep: int, device: torch.device | None = None) -> None:
        self.lines, self.keep = lines, keep
        self.bounds = selection_bounds(lines, keep)
        self.drops = lines - keep <= keep
        starts, ends = self.bounds[:-1], self.bounds[1:]
        width = max(e - s for s, e in zip(starts, ends, strict=True))
        self.most = 1 if keep == lines else 2 if self.drops else width
        # Short strata are padded by repeating their last line: argmin and argmax take the first
        # of equals, so that a repeated line never wins over itself.
        members = [
            [min(s + i, e - 1) for i in range(width)] for s, e in zip(starts, ends, strict=True)
        ]
        self._members = torch.tensor(members, device=device)
        self._strata = torch.tensor(starts, device=device)
        # Where each output line comes from if its stratum's first line leaves, and its stratum.
        stratum_of, base = [], []
        for j, (s, e) in enumerate(zip(starts, ends, strict=True)):
            stratum_of += [j] * (e - s - 1)
            base += list(range(s, e - 1))
        self._stratum_of = torch.tensor(stratum_of, device=device)
        self._base = torch.tensor(base, device=device)
        # The first cell of a stratum starts where the stratum does, whichever line is kept.
        floor = [b if b in starts else lines for b in base]
        self._first_starts = torch.tensor(floor, dtype=torch.int32, device=device)
        # A line's cell if no line before it in its stratum has left.
        cells: list[int] = []
        for s, e in zip(starts, ends, strict=True):
            first = len(set(cells))
            cells += [first + min(i, e - s - 2) for i in range(e - s)]
        self._cells = torch.tensor(cells, device=device)
        self._numbers = torch.arange(lines, dtype=torch.int32, device=device)
        strata = [j for j, (s, e) in enumerate(zip(starts, ends, strict=True)) for _ in range(s, e)]
        self._strata_of_lines = torch.tensor(strata, dtype=torch.int32, device=device)

    def __call__(self, scores: Tensor) -> Tensor:
        """Choose lines.

        Args:
            scores: [..., lines], FP32, on the selector's device.

        Returns:
            Kept lines [..., keep], INT32, strictly increasing.
        """
        if self.keep == self.lines:
            return self._numbers.expand(*scores.shape[:-1], -1)
        members = self._members
        by_stratum = scores.index_select(-1, members.flatten()).unflatten(-1, members.shape)
        if not self.drops:
            staying: Tensor = by_stratum.argmax(-1) + self._strata
            return staying.to(torch.int32)
        leaving: Tensor = by_stratum.argmin(-1) + self._strata  # [..., strata]
        past = self._base >= leaving.index_select(-1, self._stratum_of)
        kept: Tensor = self._base + past
        return kept.to(torch.int32)

    def starts(self, kept: Tensor) -> Tensor:
        """Kept lines [..., keep] -> the first line of each one's cell, [..., keep], INT32."""
        if self.keep == self.lines:
            return kept
        if not self.drops:
            return self._strata.to(torch.int32).expand(*kept.shape[:-1], -1)
        return torch.minimum(kept, self._first_starts)

    def cell_of(self, kept: Tensor) -> Tensor:
        """Kept lines [..., keep] -> the cell of each line, [..., lines], INT32."""
        if self.keep == self.lines:
            return kept
        if not self.drops:
            return self._strata_of_lines.expand(*kept.shape[:-1], -1)
        # The cell that would start at this line starts after it if a line before it has left.
        late = self.starts(kept).index_select(-1, self._cells) > self._numbers
        return self._cells.to(torch.int32) - late.to(torch.int32)


class FixedLines:
    """Lines that stay in every image, and their cells, known when a graph is built.

    Args:
        lines: H (or W).
        chosen: The lines that stay, rising. They need not keep to the strata; a line whose stratum
            keeps none belongs to the nearest of all.
        device: Where the maps will be.

    Raises:
        InputError: The map has fewer lines.
    """

    def __init__(
        self, lines: int, chosen: tuple[int, ...], device: torch.device | None = None
    ) -> None:
        if not chosen or chosen[-1] >= lines:
            raise InputError(
                "the plan does not fit the map",
                got=f"line {chosen[-1] if chosen else 'none'} of {lines} to keep",
                fix="make the plan for the size of the images in use",
            )
        bounds = selection_bounds(lines, len(chosen))
        stratum = [sum(line >= b for b in bounds[1:]) for line in range(lines)]
        cells = []
        for line in range(lines):
            near = [c for c in chosen if stratum[c] == stratum[line]] or chosen
            nearest = min(near, key=lambda c: (abs(c - line), c))
            cells.append(chosen.index(nearest))
        starts = [cells.index(cell) for cell in range(len(chosen))]
        self.most = max(cells.count(cell) for cell in range(len(chosen)))
        self._kept, self._starts, self._cells = (
            torch.tensor(values, dtype=torch.int32, device=device)
            for values in (chosen, starts, cells)
        )

    def kept(self, *shape: int) -> Tensor:
        """The lines that stay, [*shape, keep], INT32."""
        return self._kept.expand(*shape, -1)

    def starts(self, kept: Tensor) -> Tensor:
        """The first line of each cell, [..., keep], INT32."""
        return self._starts.expand(*kept.shape[:-1], -1)

    def cell_of(self, kept: Tensor) -> Tensor:
        """The cell of each line, [..., lines], INT32."""
        return self._cells.expand(*kept.shape[:-1], -1)


line_selector = made_once(LineSelector)
"""``LineSelector``, made once for its lines and device."""

fixed_lines = made_once(FixedLines)
"""``FixedLines``, made once for its lines and device."""


def line_scores(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Token scores [B, H, W] -> mean score of each row [B, H] and of each column [B, W]."""
    return scores.mean(2), scores.mean(1)


def cell_members(lines: int, starts: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The lines of each cell, as a table of static width.

    Args:
        lines: H (or W).
        starts: First line of each cell [..., keep], INT32.
        most: Lines that a cell has at most.

    Returns:
        Line numbers [..., keep, most], INT64, in range, and whether each is in its cell.
    """
    following, floor, offsets, last = _cell_tables(lines, starts.shape[-1], most, starts.device)
    stops = torch.maximum(starts.index_select(-1, following), floor)
    members = starts[..., None] + offsets
    inside = members < stops[..., None]
    return torch.minimum(members, last).long(), inside


@made_once
def _cell_tables(lines: int, keep: int, most: int, device: torch.device) -> tuple[Tensor, ...]:
    """Constants of ``cell_members``."""
    # Each cell's next start, and for the last cell, whose next is the first, the end of the axis.
    following = torch.tensor([*range(1, keep), 0], device=device)
    floor = torch.tensor([0] * (keep - 1) + [lines], dtype=torch.int32, device=device)
    offsets = torch.arange(most, dtype=torch.int32, device=device)
    last = torch.tensor(lines - 1, dtype=torch.int32, device=device)
    return following, floor, offsets, last
