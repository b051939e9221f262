# SPDX-License-Identifier: Apache-2.0
"""Random inputs of SpatialUnitMerge, and its definition as loops, in float64."""

from __future__ import annotations

import itertools

import numpy as np

Inputs = dict[str, np.ndarray]


def merge_inputs(rng: np.random.Generator, size: tuple[int, ...], dtype: str = "float32") -> Inputs:
    """Inputs by name; ``size`` is B, C, H, W, H', W'. Some weights are 0, few cells' sums."""
    batch, channels, height, width, rows, cols = size

    def starts(lines: int, cells: int) -> np.ndarray:
        later = [1 + np.sort(rng.permutation(lines - 1)[: cells - 1]) for _ in range(batch)]
        return np.stack([np.r_[0, chosen] for chosen in later]).astype(np.int32)

    def weights(lines: int) -> np.ndarray:
        drawn = rng.uniform(0.1, 5, (batch, lines)) * (rng.uniform(size=(batch, lines)) < 0.9)
        return drawn.astype(np.float32)

    return {
        "x": rng.normal(size=(batch, channels, height, width)).astype(dtype),
        "row_starts": starts(height, rows),
        "col_starts": starts(width, cols),
        "row_weights": weights(height),
        "col_weights": weights(width),
    }


def merge_reference(inputs: Inputs) -> np.ndarray:
    """The definition, cell by cell: [B, C, H', W'], float64."""
    x = inputs["x"].astype(np.float64)
    batch, channels, height, width = x.shape
    y = np.zeros((batch, channels, inputs["row_starts"].shape[1], inputs["col_starts"].shape[1]))
    for b in range(batch):
        row_cells = _cells(inputs["row_starts"][b], height)
        col_cells = _cells(inputs["col_starts"][b], width)
        row_weights, col_weights = (
            inputs[name][b].astype(np.float64) for name in ("row_weights", "col_weights")
        )
        for (i, rows), (j, cols) in itertools.product(enumerate(row_cells), enumerate(col_cells)):
            total = sum(row_weights[r] for r in rows) * sum(col_weights[w] for w in cols)
            if total > 0:
                for r, w in itertools.product(rows, cols):
                    y[b, :, i, j] += row_weights[r] * col_weights[w] * x[b, :, r, w]
                y[b, :, i, j] /= total
    return y


def _cells(starts: np.ndarray, lines: int) -> list[range]:
    """The lines of each cell; what lies outside the map is cut off."""
    bounds = [min(max(int(s), 0), lines) for s in starts] + [lines]
    return [range(begin, end) for begin, end in itertools.pairwise(bounds)]
