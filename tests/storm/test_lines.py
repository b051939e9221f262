# SPDX-License-Identifier: Apache-2.0
"""Line selection: strata, the choice in each, and the properties that hold for all scores."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("hypothesis")

import torch
from hypothesis import given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

from stormrt.errors import InputError
from stormrt.storm.lines import (
    FixedLines,
    LineSelector,
    cell_members,
    evenly_spaced,
    fixed_lines,
    line_scores,
    line_selector,
    strata_bounds,
)
from tests.helpers.lines import kept_lines
from tests.helpers.reductions import axis_cells
from tests.helpers.seeds import SEED


@st.composite
def selections(draw: st.DrawFn) -> tuple[int, int, np.ndarray]:
    """Lines, lines to keep, and scores of some images, with and without ties."""
    lines = draw(st.integers(1, 70))
    special = sorted({1, max(1, lines // 2), (lines + 1) // 2, max(1, lines - 1), lines})
    keep = draw(st.sampled_from(special) | st.integers(1, lines))
    score = st.integers(-2, 2).map(float) | st.floats(
        width=32, allow_nan=False, allow_infinity=False
    )
    batch = draw(st.integers(1, 3))
    scores = draw(st.lists(score, min_size=batch * lines, max_size=batch * lines))
    return lines, keep, np.array(scores, dtype=np.float32).reshape(batch, lines)


for_every_selection = settings(max_examples=150, deadline=None, database=None)


@hypothesis_seed(SEED)
@for_every_selection
@given(selections())
def test_keeps_the_lines_that_an_obvious_implementation_keeps(
    selection: tuple[int, int, np.ndarray],
) -> None:
    lines, keep, scores = selection
    kept = LineSelector(lines, keep)(torch.from_numpy(scores))
    assert kept.dtype == torch.int32
    assert kept.tolist() == [kept_lines(row, keep) for row in scores]


@hypothesis_seed(SEED)
@for_every_selection
@given(selections())
def test_keeps_exactly_so_many_lines_in_order_and_one_line_of_each_stratum_at_a_time(
    selection: tuple[int, int, np.ndarray],
) -> None:
    lines, keep, scores = selection
    leave = lines - keep
    strata = min(leave, keep)
    bounds = strata_bounds(lines, strata) if strata else [0, lines]
    for kept in LineSelector(lines, keep)(torch.from_numpy(scores)).numpy():
        assert kept.shape == (keep,)
        assert kept.min() >= 0
        assert kept.max() < lines
        assert (np.diff(kept) > 0).all()
        staying, _ = np.histogram(kept, bins=[*bounds[:-1], bounds[-1] - 0.5])
        sizes = np.diff(bounds)
        if strata:
            assert set(sizes - staying if leave <= keep else staying) == {1}


@hypothesis_seed(SEED)
@for_every_selection
@given(selections())
def test_an_image_is_cut_the_same_way_alone_and_in_any_batch(
    selection: tuple[int, int, np.ndarray],
) -> None:
    lines, keep, scores = selection
    select = LineSelector(lines, keep)
    together = select(torch.from_numpy(scores))
    assert torch.equal(together, select(torch.from_numpy(scores)))
    assert torch.equal(together.flip(0), select(torch.from_numpy(scores[::-1].copy())))
    for i in range(len(scores)):
        assert torch.equal(together[i : i + 1], select(torch.from_numpy(scores[i : i + 1])))


@pytest.mark.parametrize(
    ("lines", "keep", "expected"),
    [
        (6, 4, [1, 2, 4, 5]),  # of strata 012 345 the first of equals leaves
        (6, 3, [1, 3, 5]),
        (6, 2, [0, 3]),  # of strata 012 345 the first of equals stays
        (7, 5, [1, 2, 3, 5, 6]),  # uneven strata 0123 456
        (7, 2, [0, 4]),
        (5, 1, [0]),
        (5, 4, [1, 2, 3, 4]),
        (5, 5, [0, 1, 2, 3, 4]),
        (1, 1, [0]),
    ],
)
def test_of_equal_lines_the_first_is_chosen(lines: int, keep: int, expected: list[int]) -> None:
    assert LineSelector(lines, keep)(torch.zeros(1, lines)).tolist() == [expected]


def test_the_weakest_line_of_each_stratum_leaves() -> None:
    scores = torch.tensor([[5.0, 1.0, 2.0, 9.0, 8.0, 7.0, 0.0]])  # strata 0123 456
    assert LineSelector(7, 5)(scores).tolist() == [[0, 2, 3, 4, 5]]


def test_the_strongest_line_of_each_stratum_stays_when_most_leave() -> None:
    scores = torch.tensor([[5.0, 1.0, 2.0, 9.0, 0.0, 7.0, 6.0]])
    assert LineSelector(7, 2)(scores).tolist() == [[3, 5]]
    assert LineSelector(7, 1)(scores).tolist() == [[3]]


def test_scores_without_a_number_still_give_an_ordered_choice() -> None:
    for keep in range(1, 9):
        kept = LineSelector(8, keep)(torch.full((1, 8), torch.nan))[0]
        assert kept.shape == (keep,)
        assert (kept.diff() > 0).all()


@pytest.mark.parametrize("strata", [1, 2, 3, 7, 12, 13])
def test_strata_are_contiguous_and_differ_by_one_line_at_most(strata: int) -> None:
    for lines in range(strata, 60):
        bounds = strata_bounds(lines, strata)
        assert (bounds[0], bounds[-1], len(bounds)) == (0, lines, strata + 1)
        sizes = np.diff(bounds)
        assert sizes.min() >= 1
        assert sizes.max() - sizes.min() <= 1
        rounded = [floor(Fraction(i * lines, strata) + Fraction(1, 2)) for i in range(strata + 1)]
        assert bounds == rounded


@pytest.mark.parametrize(("lines", "keep"), [(5, 6), (5, 0), (5, -1)])
def test_more_lines_than_there_are_or_none_cannot_be_kept(lines: int, keep: int) -> None:
    with pytest.raises(InputError, match=f"{keep} of {lines} lines to keep"):
        LineSelector(lines, keep)


def test_a_line_scores_the_mean_of_its_tokens(rng: np.random.Generator) -> None:
    scores = rng.normal(size=(2, 5, 7)).astype(np.float32)
    by_row, by_col = line_scores(torch.from_numpy(scores))
    np.testing.assert_allclose(by_row, scores.mean(axis=2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_col, scores.mean(axis=1), rtol=1e-5, atol=1e-6)


# --- cells -------------------------------------------------------------------------------------


@hypothesis_seed(SEED)
@for_every_selection
@given(selections())
def test_every_line_belongs_to_the_nearest_kept_line_of_its_stratum(
    selection: tuple[int, int, np.ndarray],
) -> None:
    lines, keep, scores = selection
    select = LineSelector(lines, keep)
    kept = select(torch.from_numpy(scores))
    starts, cell_of = select.starts(kept), select.cell_of(kept)
    assert starts.dtype == cell_of.dtype == torch.int32
    members, inside = cell_members(lines, starts, select.most)
    for image, row in enumerate(scores):
        cells = [members for _, members in axis_cells(lines, keep, row)]
        assert starts[image].tolist() == [cell[0] for cell in cells]
        assert cell_of[image].tolist() == [i for i, cell in enumerate(cells) for _ in cell]
        found = [m[i].tolist() for m, i in zip(members[image], inside[image], strict=True)]
        assert found == cells
        assert max(map(len, cells)) <= select.most


@hypothesis_seed(SEED)
@for_every_selection
@given(selections())
def test_windows_choose_as_if_each_were_an_image(
    selection: tuple[int, int, np.ndarray],
) -> None:
    lines, keep, scores = selection
    select = LineSelector(lines, keep)
    alone = select(torch.from_numpy(scores))
    lanes = torch.from_numpy(np.stack([scores, scores[::-1]]))  # [2, lanes, lines]
    together = select(lanes)
    assert torch.equal(together, torch.stack([alone, alone.flip(0)]))
    for derive in (select.starts, select.cell_of):
        expected = torch.stack([derive(alone), derive(alone).flip(0)])
        assert torch.equal(derive(together), expected)


@hypothesis_seed(SEED)
@for_every_selection
@given(selections())
def test_fixed_lines_have_the_cells_of_a_choice_of_the_same_lines(
    selection: tuple[int, int, np.ndarray],
) -> None:
    lines, keep, scores = selection
    select = LineSelector(lines, keep)
    kept = select(torch.from_numpy(scores[:1]))
    fixed = FixedLines(lines, tuple(kept[0].tolist()))
    assert torch.equal(fixed.kept(1), kept)
    assert torch.equal(fixed.starts(kept), select.starts(kept))
    assert torch.equal(fixed.cell_of(kept), select.cell_of(kept))


def test_lines_that_are_fixed_against_the_strata_take_the_nearest() -> None:
    fixed = FixedLines(8, (1, 2, 7))  # strata 012 345 67: the second keeps none
    kept = fixed.kept(2, 3)
    assert kept.shape == (2, 3, 3)
    assert fixed.starts(kept)[1, 2].tolist() == [0, 2, 5]
    assert fixed.cell_of(kept)[0, 0].tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert fixed.most == 3


def test_lines_outside_the_map_cannot_be_fixed() -> None:
    with pytest.raises(InputError, match="line 9 of 9 to keep"):
        FixedLines(9, (0, 9))
    with pytest.raises(InputError, match="does not fit"):
        FixedLines(9, ())


@pytest.mark.parametrize(
    ("lines", "keep", "expected"),
    [
        (6, 4, (0, 2, 3, 5)),  # of strata 012 345 the middle leaves
        (6, 2, (1, 4)),  # of the same strata the middle stays
        (6, 3, (1, 3, 5)),  # of two the first is the middle
        (7, 6, (0, 1, 2, 4, 5, 6)),
        (5, 5, (0, 1, 2, 3, 4)),
        (9, 1, (4,)),
    ],
)
def test_evenly_spaced_lines_are_the_middles_of_the_strata(
    lines: int, keep: int, expected: tuple[int, ...]
) -> None:
    assert evenly_spaced(lines, keep) == expected


def test_evenly_spaced_lines_are_as_even_as_whole_lines_can_be() -> None:
    for lines in range(1, 60):
        for keep in range(1, lines + 1):
            gaps = np.diff(evenly_spaced(lines, keep))
            assert len(gaps) == keep - 1
            # A stratum is a line longer than the next at most, and so is half of one.
            assert keep == 1 or gaps.max() - gaps.min() <= 2


def test_constants_are_made_once_for_a_size_and_anew_while_a_graph_is_traced() -> None:
    cpu = torch.device("cpu")
    with torch.inference_mode():
        assert line_selector(7, 3, cpu) is line_selector(7, 3, cpu)
        assert line_selector(7, 3, cpu) is not line_selector(7, 4, cpu)
        assert not fixed_lines(7, (1, 2), cpu).kept(1).is_inference()

    class Choose(torch.nn.Module):
        def forward(self, scores: torch.Tensor) -> torch.Tensor:
            return line_selector(11, 5, scores.device)(scores)

    traced = torch.export.export(Choose(), (torch.zeros(1, 11),)).module()
    scores = torch.rand(1, 11)
    assert torch.equal(traced(scores), line_selector(11, 5, cpu)(scores))
