# SPDX-License-Identifier: Apache-2.0
"""The slow, obvious choice of lines, in NumPy."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import floor

import numpy as np


def kept_lines(scores: np.ndarray, keep: int) -> list[int]:
    """Lines [lines] of one image -> the ``keep`` lines that stay, in order."""
    lines = len(scores)
    if keep == lines:
        return list(range(lines))
    most_stay = lines - keep <= keep
    strata = lines - keep if most_stay else keep
    bounds = [floor(Fraction(i * lines, strata) + Fraction(1, 2)) for i in range(strata + 1)]
    kept: list[int] = []
    for start, end in itertools.pairwise(bounds):
        members = list(range(start, end))
        if most_stay:
            members.remove(start + int(np.argmin(scores[start:end])))
        else:
            members = [start + int(np.argmax(scores[start:end]))]
        kept += members
    return kept


def cut(maps: np.ndarray, rows: list[list[int]], cols: list[list[int]]) -> np.ndarray:
    """[B, C, H, W] -> the crossings of each image's kept lines, [B, C, H', W']."""
    return np.stack([m[:, r][:, :, c] for m, r, c in zip(maps, rows, cols, strict=True)])
