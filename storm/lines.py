# SPDX-License-Identifier: Apache-2.0
"""Line units: which whole rows and columns stay, under the local constraint, at static shapes.

Our reading of STORM's "spatial units under localized constraints" (docs/storm.md): the lines of a
grid are cut into contiguous strata, and every stratum gives up (or keeps) exactly one line. No
kept line moves further than its stratum, and the count of lines is the same for every image, so
that the graph's shapes are static. No sort is needed: which stratum an output line comes from is
known beforehand, and only its offset within the stratum depends on the image.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from stormrt.errors import InputError


def strata_bounds(lines: int, strata: int) -> list[int]:
    """Cut ``lines`` lines into ``strata`` contiguous strata whose sizes differ by one at most.

    Returns:
        strata + 1 bounds, from 0 to ``lines``.
    """
    return [(i * lines + strata // 2) // strata for i in range(strata)] + [lines]


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
        if not 1 <= keep <= lines:
            raise InputError(
                "the plan does not fit the map",
                got=f"{keep} of {lines} lines to keep",
                expected=f"1 to {lines}",
                fix="make the plan for the size of the images in use",
            )
        self.lines, self.keep = lines, keep
        leave = lines - keep
        self.drops = leave <= keep
        strata = leave if self.drops else keep
        bounds = strata_bounds(lines, strata) if strata else [0, lines]
        starts, ends = bounds[:-1], bounds[1:]
        width = max(e - s for s, e in zip(starts, ends, strict=True))
        # Short strata are padded by repeating their last line: argmin and argmax take the first
        # of equals, so that a repeated line never wins over itself.
        members = [
            [min(s + i, e - 1) for i in range(width)] for s, e in zip(starts, ends, strict=True)
        ]
        self._members = torch.tensor(members, device=device)
        self._starts = torch.tensor(starts, device=device)
        # Where each output line comes from if its stratum's first line leaves, and its stratum.
        stratum_of, base = [], []
        for j, (s, e) in enumerate(zip(starts, ends, strict=True)):
            stratum_of += [j] * (e - s - 1)
            base += list(range(s, e - 1))
        self._stratum_of = torch.tensor(stratum_of, device=device)
        self._base = torch.tensor(base, device=device)

    def __call__(self, scores: Tensor) -> Tensor:
        """Choose lines.

        Args:
            scores: [B, lines], FP32, on the selector's device.

        Returns:
            Kept lines [B, keep], INT32, strictly increasing.
        """
        if self.keep == self.lines:
            every = torch.arange(self.lines, dtype=torch.int32, device=scores.device)
            return every.expand(scores.shape[0], -1)
        members = self._members
        by_stratum = scores.index_select(1, members.flatten()).reshape(-1, *members.shape)
        if not self.drops:
            staying: Tensor = by_stratum.argmax(-1) + self._starts
            return staying.to(torch.int32)
        leaving: Tensor = by_stratum.argmin(-1) + self._starts  # [B, strata]
        past = self._base >= leaving.index_select(1, self._stratum_of)
        kept: Tensor = self._base + past
        return kept.to(torch.int32)


@lru_cache(maxsize=256)
def _known_selector(lines: int, keep: int, device: torch.device) -> LineSelector:
    # What is kept must serve training too, where a tensor of inference mode may not be saved.
    with torch.inference_mode(False):
        return LineSelector(lines, keep, device)


def line_selector(lines: int, keep: int, device: torch.device) -> LineSelector:
    """A selector whose constants lie on a device, made once: a CUDA graph may not copy them there.

    Raises:
        InputError: As ``LineSelector``.
    """
    if torch.compiler.is_compiling():
        # While a graph is traced tensors are not real, and must not be kept for later.
        return LineSelector(lines, keep, device)
    return _known_selector(lines, keep, device)


def line_scores(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Token scores [B, H, W] -> mean score of each row [B, H] and of each column [B, W]."""
    return scores.mean(2), scores.mean(1)
