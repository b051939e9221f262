# SPDX-License-Identifier: Apache-2.0
"""The reference itself, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from stormrt.plugins.selective_scan_2d.reference import reference, visiting_order
from tests.helpers.scans import scan_inputs


def test_directions_visit_rows_columns_and_the_reverse_of_each() -> None:
    rows = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    columns = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert [visiting_order(k, 2, 3) for k in range(4)] == [
        rows,
        columns,
        list(reversed(rows)),
        list(reversed(columns)),
    ]


def scan(x: list[list[float]], *, c: list[float], d: list[float]) -> Tensor:
    """One channel with delta = ln 2 and a = -1, so that the state is halved at each step."""
    height, width = len(x), len(x[0])
    return reference(
        x=torch.tensor(x)[None, None],
        dt=torch.zeros(1, 4, height, width),  # softplus(0) = ln 2
        b=torch.ones(1, 4, height, width),
        c=torch.tensor(c)[None, :, None, None].expand(1, 4, height, width),
        a=-torch.ones(4, 1),
        d=torch.tensor(d),
        dt_bias=torch.zeros(4),
    )[0, 0]


# h_t = h_(t-1) / 2 + x_t, times ln 2, along each path over [[1, 2], [3, 4]].
BY_HAND = (
    [[1, 2.5], [4.25, 6.125]],  # 1 2 3 4
    [[1, 3.75], [3.5, 5.875]],  # 1 3 2 4
    [[3.25, 4.5], [5, 4]],  # 4 3 2 1
    [[3.5, 4], [5, 4]],  # 4 2 3 1
)


@pytest.mark.parametrize("direction", range(4))
def test_one_direction_over_two_by_two_positions_by_hand(direction: int) -> None:
    only = [float(k == direction) for k in range(4)]
    y = scan([[1, 2], [3, 4]], c=only, d=[0, 0, 0, 0])
    torch.testing.assert_close(y, math.log(2) * torch.tensor(BY_HAND[direction]).double())


def test_four_directions_and_their_skips_are_summed() -> None:
    y = scan([[1, 2], [3, 4]], c=[1, 2, 3, 4], d=[0.5, 0.25, 1, 8])
    weighted = sum((k + 1) * torch.tensor(h).double() for k, h in enumerate(BY_HAND))
    skip = 9.75 * torch.tensor([[1, 2], [3, 4]]).double()
    torch.testing.assert_close(y, math.log(2) * weighted + skip)


def test_a_row_and_its_column_give_the_same() -> None:
    across = scan([[1, -2, 3]], c=[1, 0, 2, 0], d=[1, 1, 1, 1])
    down = scan([[1], [-2], [3]], c=[0, 1, 0, 2], d=[1, 1, 1, 1])
    torch.testing.assert_close(across, down.T)


def test_every_state_component_has_its_own_b_c_and_a(rng: np.random.Generator) -> None:
    inputs = scan_inputs(rng, (2, 3, 4, 3))
    whole = reference(**inputs)
    skip = inputs["d"].double().view(4, 2).sum(0)[:, None, None] * inputs["x"].double()
    parts = torch.zeros_like(whole)
    for n in range(3):
        one = inputs | {k: inputs[k].unflatten(1, (4, 3))[:, :, n] for k in ("b", "c")}
        parts += reference(**one | {"a": inputs["a"][:, n : n + 1]}) - skip
    torch.testing.assert_close(whole, parts + skip)
