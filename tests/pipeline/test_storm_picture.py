# SPDX-License-Identifier: Apache-2.0
"""The picture of what STORM keeps: each token of a panel is shaded if and only if it has left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stormrt.errors import InputError
from stormrt.pipeline.model_source import build_model
from stormrt.pipeline.storm_picture import (
    Panel,
    draw,
    follow_tokens,
    panels,
    show_reductions,
)
from stormrt.storm.grid import KeptTokens
from stormrt.storm.plan import Reduction, StormPlan, check_plan
from stormrt.storm.variants import get_variant
from tests.pipeline.support import SMALL, model_spec

RESTORED = Reduction(1, 0, 4, 3, "feature_norm", "line", "merge", "stage")
PLAN = StormPlan(
    (Reduction(0, 0, 12, 10, "dissimilarity", "window"), RESTORED, Reduction(2, 1, 2, 2, "random"))
)
"""For 64 x 48 images, whose first map is 16 x 12."""


def kept(r: Reduction, grid: tuple[int, int], rows: list[int], cols: list[int]) -> KeptTokens:
    """The crossings of lines."""
    by_row, by_col = np.meshgrid(rows, cols, indexing="ij")
    return KeptTokens(r, *grid, torch.from_numpy(by_row)[None], torch.from_numpy(by_col)[None])


def lines_of(mask: np.ndarray) -> tuple[list[int], list[int]]:
    """Rows and columns of which any token is in a mask's complement."""
    return np.flatnonzero(~mask.all(axis=1)).tolist(), np.flatnonzero(~mask.all(axis=0)).tolist()


def test_tokens_are_followed_through_reductions_downsamplings_and_restores():
    first, second = Reduction(0, 0, 6, 5), Reduction(1, 0, 2, 2, restore="stage")
    third = Reduction(2, 0, 1, 2)
    spec = model_spec(plan=StormPlan((first, second, third)))
    check_plan(spec.plan, get_variant(SMALL), 64, 48)
    found = follow_tokens(
        spec,
        [
            kept(first, (16, 12), [0, 3, 4, 8, 12, 15], [1, 2, 5, 6, 11]),
            # of 3 x 3: rows stand for 0 3 | 4 8 | 12 15, columns for 1 2 | 5 6 | 11
            kept(second, (3, 3), [0, 2], [0, 1]),
            # restored to 3 x 3, then 2 x 2: rows 0 3 4 8 | 12 15, columns 1 2 5 6 | 11
            kept(third, (2, 2), [1], [0, 1]),
        ],
    )
    everything = np.zeros((16, 12), dtype=bool)
    np.testing.assert_array_equal(found[0].gone, everything)
    assert lines_of(found[0].leaves) == ([0, 3, 4, 8, 12, 15], [1, 2, 5, 6, 11])
    np.testing.assert_array_equal(found[1].gone, found[0].leaves)
    assert lines_of(found[1].leaves | found[1].gone) == ([0, 3, 12, 15], [1, 2, 5, 6])
    assert not (found[1].leaves & found[1].gone).any()
    np.testing.assert_array_equal(found[2].gone, found[0].leaves)  # the second is restored
    assert lines_of(found[2].leaves | found[2].gone) == ([12, 15], [1, 2, 5, 6, 11])


def test_a_reduction_that_keeps_everything_shades_nothing():
    r = Reduction(0, 0, 16, 12)
    (panel,) = follow_tokens(model_spec(plan=StormPlan((r,))), [])
    assert panel.grid == (16, 12)
    assert not panel.leaves.any()
    assert "16x12 of 16x12 (100%)" in panel.caption()[0]


def test_as_many_tokens_leave_as_the_plan_says(rng):
    spec = model_spec(plan=PLAN)
    image = rng.standard_normal((3, 64, 48)).astype(np.float32)
    first, second, third = panels(spec, image)
    assert (~first.leaves).sum() == 12 * 10
    with torch.inference_mode():
        of_model = build_model(spec).kept_tokens(torch.from_numpy(image[None]))[0]
    stays = np.zeros((16, 12), dtype=bool)
    stays[of_model.rows[0].numpy(), of_model.cols[0].numpy()] = True
    np.testing.assert_array_equal(~first.leaves, stays)
    assert second.leaves.any()
    np.testing.assert_array_equal(third.gone, first.leaves)


def test_captions_say_where_how_much_and_by_whom():
    shapes = np.zeros((4, 4), dtype=bool)
    fixed = Reduction(2, 3, 2, 1, "step_size", rows=(0, 1), cols=(2,))
    assert Panel(RESTORED, (6, 5), shapes, shapes).caption() == (
        "stage 1 block 0: 4x3 of 6x5 (40%)",
        "lines by feature_norm, merged, back after the stage",
    )
    assert Panel(fixed, (4, 4), shapes, shapes).caption()[1] == (
        "lines by step_size (the same in every image), dropped"
    )


def test_what_leaves_is_red_what_had_left_is_dark_and_the_rest_is_clear():
    white = np.full((3, 8, 8), 5.0, np.float32)  # clipped to white
    leaves, gone = (np.zeros((4, 4), dtype=bool) for _ in range(2))
    leaves[1, :], gone[:, 3] = True, True
    leaves &= ~gone
    picture = np.asarray(draw(white, (Panel(RESTORED, (6, 5), leaves, gone),)))[8:16, 8:16]
    clear, red, dark = picture[0, 0], picture[2, 0], picture[0, 7]
    assert clear.tolist() == [255, 255, 255]
    assert red[0] > 1.5 * red[1]
    assert (dark < 100).all()
    np.testing.assert_array_equal(picture[::2], picture[1::2])
    np.testing.assert_array_equal(picture[:, ::2], picture[:, 1::2])
    assert [tuple(p) for p in picture[2, ::2]] == [tuple(red)] * 3 + [tuple(dark)]


def test_a_png_has_a_panel_for_each_reduction(photographs, tmp_path):
    spec = model_spec(plan=PLAN)
    out = tmp_path / "new" / "picture.png"
    found = show_reductions(spec, photographs / "chelsea.png", out)
    assert [p.reduction for p in found] == list(PLAN.reductions)
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.height >= 320
        assert picture.width > 3 * 240
    first = out.read_bytes()
    show_reductions(spec, photographs / "chelsea.png", out)
    assert out.read_bytes() == first


def test_the_dense_model_has_nothing_to_draw(photographs, tmp_path):
    with pytest.raises(InputError, match="nothing to draw"):
        show_reductions(model_spec(), photographs / "chelsea.png", tmp_path / "p.png")
    assert not list(Path(tmp_path).iterdir())
