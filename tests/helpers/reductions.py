# SPDX-License-Identifier: Apache-2.0
"""Token reduction the slow, obvious way: one image, one window, one cell at a time, in NumPy.

Nothing here is shared with ``stormrt.storm`` but plans: strata, cells, choices, weights, places
and the way back are written from docs/storm.md.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from math import floor

import numpy as np
import torch
from torch import Tensor

from stormrt.storm.plan import Reduction, StormPlan
from stormrt.storm.vmamba import VMamba

Places = tuple[np.ndarray, np.ndarray]
"""Where rows and columns are on the full axes."""

Cells = list[tuple[int, list[int]]]
"""Of one stratum or axis: kept line, and the lines of its cell."""


def strata(lines: int, keep: int) -> list[range]:
    """The strata of an axis; one if every line stays."""
    count = min(lines - keep, keep) or 1
    bounds = [floor(Fraction(i * lines, count) + Fraction(1, 2)) for i in range(count + 1)]
    return [range(a, b) for a, b in itertools.pairwise(bounds)]


def stratum_cells(stratum: range, scores: np.ndarray | None, most_stay: bool) -> Cells:
    """Of one stratum with its lines' scores; without scores the middle line leaves or stays."""
    middle = stratum[(len(stratum) - 1) // 2]
    if most_stay:
        leaving = middle if scores is None else stratum[int(np.argmin(scores))]
        kept = [line for line in stratum if line != leaving]
    else:
        kept = [middle if scores is None else stratum[int(np.argmax(scores))]]
    nearest = {line: min(kept, key=lambda k: (abs(k - line), k)) for line in stratum}
    return [(k, [line for line in stratum if nearest[line] == k]) for k in kept]


def axis_cells(lines: int, keep: int, scores: np.ndarray | None) -> Cells:
    """Of a whole axis."""
    if lines == keep:
        return [(line, [line]) for line in range(lines)]
    return [
        cell
        for stratum in strata(lines, keep)
        for cell in stratum_cells(
            stratum, None if scores is None else scores[list(stratum)], lines - keep <= keep
        )
    ]


def window_cells(lines: int, keep: int, scores: np.ndarray | None, at: range) -> Cells:
    """Of the strata of one axis, where only the scores [lines, across] at ``at`` count."""
    return axis_cells(lines, keep, None if scores is None else scores[:, list(at)].mean(1))


def weights_of(cell: tuple[int, list[int]], sizes: np.ndarray, r: Reduction) -> np.ndarray:
    """What each line of a cell counts, summing to 1."""
    kept, lines = cell
    if r.mode == "drop":
        return np.array([float(line == kept) for line in lines])
    weights = np.array([sizes[line] for line in lines])
    if r.weights == "distance":
        weights = weights / (1 + np.abs(np.array(lines) - kept))
    return weights / weights.sum()


def new_sizes(cells: Cells, sizes: np.ndarray, r: Reduction) -> np.ndarray:
    """Lines that each kept line stands for."""
    if r.mode == "drop":
        return np.array([sizes[kept] for kept, _ in cells])
    return np.array([sizes[lines].sum() for _, lines in cells])


@dataclass
class Image:
    """One image on its way through the network."""

    map: np.ndarray
    """[C, H, W], float64."""
    row_sizes: np.ndarray
    col_sizes: np.ndarray


@dataclass
class Back:
    """Where each token of the full map finds its value in the reduced one, [H, W] each."""

    rows: np.ndarray
    cols: np.ndarray
    kept_rows: list[list[int]]
    """Kept rows, once for the image or for each column of windows."""
    kept_cols: list[list[int]]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x[:, self.rows, self.cols]


def reduce_image(image: Image, scores: np.ndarray | None, r: Reduction) -> tuple[Image, Back]:
    """Cut one image's map down.

    Args:
        image: The map, and what its lines stand for.
        scores: [H, W]; None: lines are evenly spaced.
        r: How.
    """
    x = image.map
    height, width = x.shape[1:]
    rows, cols = np.zeros((2, height, width), dtype=int)
    y = np.zeros((x.shape[0], r.height, r.width))
    row_strata, col_strata = strata(height, r.height), strata(width, r.width)
    if r.unit == "line":
        row_strata, col_strata = [range(height)], [range(width)]
    turned = None if scores is None else scores.T
    by_col_stratum = [window_cells(height, r.height, scores, at) for at in col_strata]
    by_row_stratum = [window_cells(width, r.width, turned, at) for at in row_strata]
    if r.rows is not None and r.cols is not None:
        by_col_stratum, by_row_stratum = (
            [fixed_cells(lines, chosen)] for lines, chosen in ((height, r.rows), (width, r.cols))
        )
    for (window_rows, col_cells), (window_cols, row_cells) in itertools.product(
        zip(row_strata, by_row_stratum, strict=True), zip(col_strata, by_col_stratum, strict=True)
    ):
        for (i, row), (j, col) in itertools.product(enumerate(row_cells), enumerate(col_cells)):
            if row[0] not in window_rows or col[0] not in window_cols:
                continue
            parts = x[:, row[1]][:, :, col[1]]
            by_row = weights_of(row, image.row_sizes, r)
            by_col = weights_of(col, image.col_sizes, r)
            y[:, i, j] = np.einsum("crw,r,w->c", parts, by_row, by_col)
            rows[np.ix_(row[1], col[1])] = i
            cols[np.ix_(row[1], col[1])] = j
    sizes = [
        np.mean([new_sizes(cells, old, r) for cells in lanes], axis=0)
        for lanes, old in ((by_col_stratum, image.row_sizes), (by_row_stratum, image.col_sizes))
    ]
    kept = [
        [[line for line, _ in cells] for cells in lanes]
        for lanes in (by_col_stratum, by_row_stratum)
    ]
    return Image(y, *sizes), Back(rows, cols, *kept)


def fixed_cells(lines: int, chosen: tuple[int, ...]) -> Cells:
    """Of an axis whose kept lines are given; a line stays within its stratum if it can."""
    where = strata(lines, len(chosen))
    stratum = {line: index for index, s in enumerate(where) for line in s}
    cells: Cells = [(k, []) for k in chosen]
    for line in range(lines):
        near = [k for k in chosen if stratum[k] == stratum[line]] or list(chosen)
        cells[chosen.index(min(near, key=lambda k: (abs(k - line), k)))][1].append(line)
    return cells


def halved(sizes: np.ndarray) -> np.ndarray:
    """What lines stand for after a downsampling."""
    padded = np.append(sizes, sizes[-1]) if len(sizes) % 2 else sizes
    return padded.reshape(-1, 2).mean(1)


def cosines(x: np.ndarray) -> np.ndarray:
    """Sum of the cosine similarities with the neighbours, [H, W], of a map [C, H, W]."""
    unit = x / np.linalg.norm(x, axis=0)
    total = np.zeros(x.shape[1:])
    for h, w in np.ndindex(*total.shape):
        for a, b in ((h - 1, w), (h + 1, w), (h, w - 1), (h, w + 1)):
            if 0 <= a < total.shape[0] and 0 <= b < total.shape[1]:
                total[h, w] += unit[:, h, w] @ unit[:, a, b]
    return total


def scores_of(host: str, x: np.ndarray, measured: np.ndarray | None) -> np.ndarray | None:
    """A host's scores [H, W] of one image's map [C, H, W]; None: evenly spaced."""
    if host == "uniform":
        return None
    if host in ("step_size", "clipped_output"):
        assert measured is not None
        return measured
    if host == "feature_norm":
        return np.linalg.norm(x, axis=0)
    if host == "dissimilarity":
        return -cosines(x)
    assert host == "random"
    from stormrt.storm.hosts.random_table import table

    return np.array(table(*x.shape[1:], 0))


def run_by_hand(model: VMamba, x: Tensor, plan: StormPlan) -> list[Tensor]:
    """The reduced model from the dense one's blocks: the maps that it returns, then the logits.

    The maps of a stage with ``restore: end`` are restored for what is returned only; those of
    later stages by the nearest place.
    """
    places = {(r.stage, r.block): r for r in plan.reductions}
    x = model.patch_embed(x)
    batch, _, height, width = x.shape
    sizes = [(np.ones(height), np.ones(width)) for _ in range(batch)]
    # Rows and columns of the full map that each image's tokens are at, and that map's size.
    at: list[Places] | None = None
    full = (height, width)
    maps: list[Tensor] = []
    grows = False
    for i, stage in enumerate(model.layers):
        measured: Tensor | None = None
        backs: list[tuple[str, list[Back], object]] = []
        for j, block in enumerate(stage.blocks):
            if (i, j) in places:
                r = places[i, j]
                images = [Image(m, *s) for m, s in zip(x.double().numpy(), sizes, strict=True)]
                results = []
                for n, image in enumerate(images):
                    known = None if measured is None else measured[n].double().numpy()
                    results.append(reduce_image(image, scores_of(r.host, image.map, known), r))
                backs.append((r.restore, [back for _, back in results], (sizes, at, full, grows)))
                if r.restore == "end":
                    if at is None:
                        full = tuple(x.shape[2:])
                        at = [(np.arange(full[0]), np.arange(full[1]))] * batch
                    at = [places_after(a, b) for a, (_, b) in zip(at, results, strict=True)]
                x = torch.from_numpy(np.stack([image.map for image, _ in results])).float()
                sizes = [(image.row_sizes, image.col_sizes) for image, _ in results]
                grows = grows or r.dt_grows
            log_size = None
            if grows:
                log_size = torch.stack(
                    [torch.from_numpy(np.log(np.outer(*s))).float()[None] for s in sizes]
                )
            following = places.get((i, j + 1))
            measure = following.host if following else None
            if measure not in ("step_size", "clipped_output"):
                measure = None
            x, measured = block(x, measure=measure, log_size=log_size)
        while backs and backs[-1][0] == "stage":
            _, back, (sizes, at, full, grows) = backs.pop()
            x = torch.stack([torch.from_numpy(b(m.numpy())) for b, m in zip(back, x, strict=True)])
        out, out_at, out_full = x, at, full
        while backs and backs[-1][0] == "end":
            _, back, (_, out_at, out_full, _) = backs.pop()
            out = torch.stack(
                [torch.from_numpy(b(m.numpy())) for b, m in zip(back, out, strict=True)]
            )
        if out_at is not None:
            out = torch.stack(
                [
                    m[:, nearest(rows, out_full[0])][:, :, nearest(cols, out_full[1])]
                    for m, (rows, cols) in zip(out, out_at, strict=True)
                ]
            )
        maps.append(out)
        x = stage.downsample(x)
        sizes = [(halved(rows), halved(cols)) for rows, cols in sizes]
        if at is not None:
            at = [(rows[::2] / 2, cols[::2] / 2) for rows, cols in at]
        full = tuple((side + 1) // 2 for side in full)
    return [*maps, model.classifier(maps[-1])]


def places_after(at: Places, back: Back) -> Places:
    """Where kept lines are on the full axes: where they were; of windows the middle ones count."""
    rows, cols = (kept[len(kept) // 2] for kept in (back.kept_rows, back.kept_cols))
    return at[0][rows], at[1][cols]


def nearest(places: np.ndarray, full: int) -> list[int]:
    """The line nearest to each line of the full axis, the first of equals."""
    return [int(np.argmin(np.abs(places - line))) for line in range(full)]
