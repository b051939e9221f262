# SPDX-License-Identifier: Apache-2.0
"""The contract language: symbols solved from shapes, and every disagreement named."""

from __future__ import annotations

import pytest

from stormrt.errors import InputError
from stormrt.plugins.registry import all_plugins
from stormrt.plugins.selective_scan_2d import SPEC as SCAN
from stormrt.plugins.spatial_unit_gather import SPEC as GATHER

SCAN_SHAPES = {
    "x": (2, 96, 14, 9),
    "dt": (2, 384, 14, 9),
    "b": (2, 64, 14, 9),
    "c": (2, 64, 14, 9),
    "a": (384, 16),
    "d": (384,),
    "dt_bias": (384,),
}


def test_symbols_are_solved_through_products_with_the_constants() -> None:
    symbols = SCAN.bind(list(SCAN_SHAPES.values()))
    assert symbols == {"K": 4, "B": 2, "D": 96, "H": 14, "W": 9, "N": 16}
    assert SCAN.output_shapes(symbols) == [[2, 96, 14, 9]]


def test_primed_symbols_are_symbols_of_their_own() -> None:
    symbols = GATHER.bind([(2, 96, 14, 9), (2, 7), (2, 5)])
    assert symbols == {"B": 2, "C": 96, "H": 14, "W": 9, "H'": 7, "W'": 5}
    assert GATHER.output_shapes(symbols) == [[2, 96, 7, 5]]


@pytest.mark.parametrize("count", [0, 6, 8])
def test_a_wrong_number_of_inputs_is_refused_with_their_names(count: int) -> None:
    shapes = [*SCAN_SHAPES.values(), (1,)][:count]
    with pytest.raises(InputError, match="wrong number of inputs") as caught:
        SCAN.bind(shapes)
    assert "7: x, dt, b, c, a, d, dt_bias" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "named"),
    [
        ("x", (96, 14, 9), "expected: [B, D, H, W]"),
        ("dt", (2, 384, 14, 10), "axis 3, W"),
        ("dt", (3, 384, 14, 9), "expected: B = 2"),
        ("dt", (2, 96, 14, 9), "expected: K*D = 384"),
        ("b", (2, 63, 14, 9), "expected: K*N = 64"),
        ("c", (2, 60, 14, 9), "expected: K*N = 64"),
        ("a", (96, 16), "expected: K*D = 384"),
        ("d", (384, 1), "expected: [K*D]"),
        ("dt_bias", (383,), "got:      383"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_naming_input_axis_and_size(
    name: str, shape: tuple[int, ...], named: str
) -> None:
    with pytest.raises(InputError) as caught:
        SCAN.bind(list((SCAN_SHAPES | {name: shape}).values()))
    assert f"SelectiveScan2D: input {name!r}" in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize("spec", all_plugins().values(), ids=lambda s: s.name)
def test_a_contract_is_complete(spec: object) -> None:
    assert spec.qualified_name == f"stormrt::{spec.torch_name}"
    assert spec.attributes() == {"plugin_version": spec.version, "plugin_namespace": "stormrt"}
    tensors = (*spec.inputs, *spec.outputs)
    assert len({t.name for t in tensors}) == len(tensors)
    assert all(t.doc for t in tensors)
    assert spec.doc
    solvable = {s for t in spec.inputs for dim in t.shape for s in dim.split("*")}
    assert {dim for t in spec.outputs for dim in t.shape} <= solvable
