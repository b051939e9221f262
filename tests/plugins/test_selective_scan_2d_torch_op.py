# SPDX-License-Identifier: Apache-2.0
"""The PyTorch operator against the sequential float64 reference.

What can go wrong: a block that inherits another block's state or none, a length that the block
length does not divide, rows taken for columns, images that mix, a rounding that depends on where
an image stands, an overflow, a gradient that forgets one of the four directions.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from stormrt.errors import InputError
from stormrt.plugins.selective_scan_2d.reference import reference
from stormrt.plugins.selective_scan_2d.torch_op import linear_recurrence_, selective_scan_2d
from tests.helpers.scans import MAPS, REGIMES, Regime, images, relative_l2, scan_inputs

TOLERANCE = 1e-5
FLOAT16_TOLERANCE = 1e-3

SHAPES = (
    # channels, height, width, state
    (3, 1, 1, 4),
    (6, 1, 37, 1),
    (6, 37, 1, 4),
    (5, 4, 4, 1),  # one whole block
    (5, 31, 5, 1),
    (3, 2, 3, 16),
    (2, 16, 16, 1),  # blocks of blocks, no tail
    (3, 13, 21, 4),  # blocks of blocks, with tails
    (2, 9, 10, 16),
)


@pytest.mark.parametrize(
    ("regime", "mean", "tail"), [("init", 0.022, 0.1), ("mid", 0.27, 2.0), ("hot", 1.2, 6.0)]
)
def test_regimes_are_spread_as_their_names_say(
    regime: Regime, mean: float, tail: float, rng: np.random.Generator
) -> None:
    inputs = scan_inputs(rng, (300, 10, 10, 1), regime=regime)
    delta = torch.nn.functional.softplus(inputs["dt"] + inputs["dt_bias"][:, None, None])
    assert float(delta.mean()) == pytest.approx(mean, rel=0.25)
    assert float(delta.flatten()[::7].quantile(0.99)) == pytest.approx(tail, rel=0.4)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_sequential_scan(
    shape: tuple[int, int, int, int], regime: Regime, rng: np.random.Generator
) -> None:
    inputs = scan_inputs(rng, shape, batch=2, regime=regime)
    y = selective_scan_2d(**inputs)
    assert y.dtype == torch.float32
    assert relative_l2(y, reference(**inputs)) < TOLERANCE


@pytest.mark.parametrize("state", [1, 4, 16])
def test_agrees_with_the_sequential_scan_on_any_map(state: int, rng: np.random.Generator) -> None:
    for _ in range(5):
        channels, height, width = rng.integers(1, (8, 20, 20)).tolist()
        regime = rng.choice(list(REGIMES))
        inputs = scan_inputs(
            rng, (channels, height, width, state), batch=int(rng.integers(1, 4)), regime=regime
        )
        got, expected = selective_scan_2d(**inputs), reference(**inputs)
        assert relative_l2(got, expected) < TOLERANCE, (channels, height, width, regime)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 256, 257, 300])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_a_recurrence_of_any_length_equals_its_loop(
    length: int, reverse: bool, rng: np.random.Generator
) -> None:
    decay = torch.from_numpy(rng.uniform(0, 1, (length, 3)))
    drive = torch.from_numpy(rng.normal(size=(length, 3)))
    h, expected = torch.zeros(3).double(), torch.empty_like(drive)
    for t in reversed(range(length)) if reverse else range(length):
        h = decay[t] * h + drive[t]
        expected[t] = h
    got = linear_recurrence_(decay, drive, reverse=reverse)
    assert got is drive
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("shape", [(6, 14, 9, 1), (4, 9, 16, 4)], ids=str)
def test_float16_maps_cost_no_more_than_their_own_rounding(
    shape: tuple[int, int, int, int], regime: Regime, rng: np.random.Generator
) -> None:
    inputs = scan_inputs(rng, shape, batch=2, regime=regime, dtype=torch.float16)
    y = selective_scan_2d(**inputs)
    assert y.dtype == torch.float16
    assert relative_l2(y, reference(**inputs)) < FLOAT16_TOLERANCE


def test_float64_maps_are_computed_in_float64(rng: np.random.Generator) -> None:
    inputs = scan_inputs(rng, (4, 9, 7, 2), regime="hot", dtype=torch.float64)
    assert relative_l2(selective_scan_2d(**inputs), reference(**inputs)) < 1e-13


@pytest.mark.parametrize("scan", [selective_scan_2d, reference], ids=["operator", "reference"])
def test_without_steps_only_the_skip_is_left(scan: object, rng: np.random.Generator) -> None:
    inputs = scan_inputs(rng, (5, 6, 7, 2), batch=2)
    inputs["dt"].fill_(-1e3)  # softplus gives 0
    y = scan(**inputs)
    skip = inputs["d"].view(4, 5).sum(0)[:, None, None] * inputs["x"]
    torch.testing.assert_close(y.float(), skip, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scan", [selective_scan_2d, reference], ids=["operator", "reference"])
def test_without_memory_every_position_stands_alone(scan: object, rng: np.random.Generator) -> None:
    inputs = scan_inputs(rng, (5, 6, 7, 3), batch=2)
    inputs["a"].fill_(-1e6)
    inputs["dt"].abs_()
    y = scan(**inputs)
    x, d = inputs["x"].double(), inputs["d"].double().view(4, 5)
    delta = torch.nn.functional.softplus(inputs["dt"] + inputs["dt_bias"][:, None, None]).double()
    overlap = (inputs["b"].double() * inputs["c"].double()).unflatten(1, (4, 3)).sum(2)
    gain = delta.unflatten(1, (4, 5)) * overlap[:, :, None] + d[..., None, None]
    assert relative_l2(y, gain.sum(1) * x) < TOLERANCE


@pytest.mark.parametrize("size", [300.0, 1e4])
def test_stays_finite_where_decays_underflow_and_steps_vanish(
    size: float, rng: np.random.Generator
) -> None:
    for dtype in (torch.float32, torch.float64):
        inputs = scan_inputs(rng, (4, 12, 11, 2), regime="hot", dtype=dtype)
        inputs["dt"] = size * (torch.from_numpy(rng.integers(0, 2, inputs["dt"].shape)) * 2.0 - 1)
        inputs["dt"] = inputs["dt"].to(dtype)
        y = selective_scan_2d(**inputs)
        assert y.isfinite().all()
        assert relative_l2(y, reference(**inputs)) < TOLERANCE


def test_gradients_stay_finite_where_decays_underflow_and_steps_vanish(
    rng: np.random.Generator,
) -> None:
    inputs = scan_inputs(rng, (2, 6, 7, 2), regime="hot")
    inputs["dt"] = 1e4 * inputs["dt"].sign()
    leaves = [t.requires_grad_() for t in inputs.values()]
    selective_scan_2d(**inputs).sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


# --- images ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(5, 7, 6, 1), (3, 13, 11, 4), (1, 3, 3, 16)], ids=str)
def test_an_image_gives_the_same_bits_wherever_it_stands_in_a_batch(
    shape: tuple[int, int, int, int], dtype: torch.dtype, rng: np.random.Generator
) -> None:
    inputs = scan_inputs(rng, shape, batch=5, dtype=dtype)
    together = selective_scan_2d(**inputs)
    order = torch.from_numpy(rng.permutation(5))
    assert torch.equal(selective_scan_2d(**images(inputs, order)), together[order])
    for i in range(5):
        one = slice(i, i + 1)
        assert torch.equal(selective_scan_2d(**images(inputs, one)), together[one])


def test_the_same_inputs_give_the_same_bits_and_are_left_alone(rng: np.random.Generator) -> None:
    inputs = scan_inputs(rng, (5, 9, 14, 4), batch=2)
    before = {k: v.clone() for k, v in inputs.items()}
    first = selective_scan_2d(**inputs)
    assert torch.equal(selective_scan_2d(**inputs), first)
    assert all(torch.equal(v, before[k]) for k, v in inputs.items())


@pytest.mark.parametrize("name", MAPS)
def test_a_value_that_is_no_number_spoils_only_its_image(
    name: str, rng: np.random.Generator
) -> None:
    inputs = scan_inputs(rng, (3, 6, 9, 2), batch=3)
    clean = selective_scan_2d(**inputs)
    inputs[name][1, 0, 3, 4] = torch.nan
    spoilt = selective_scan_2d(**inputs)
    assert spoilt[1].isnan().any()
    assert torch.equal(spoilt[[0, 2]], clean[[0, 2]])


def strided(t: Tensor) -> Tensor:
    """The same values with gaps between them, and the last axes swapped in memory."""
    wide = torch.zeros(*t.shape[:2], t.shape[3], 2 * t.shape[2], dtype=t.dtype)
    view = wide[..., ::2].transpose(2, 3)
    view.copy_(t)
    return view


@pytest.mark.parametrize(
    "layout",
    [strided, lambda t: t.to(memory_format=torch.channels_last)],
    ids=["strided", "channels_last"],
)
def test_the_memory_layout_of_the_inputs_does_not_matter(
    layout: object, rng: np.random.Generator
) -> None:
    inputs = scan_inputs(rng, (5, 8, 9, 2), batch=2)
    other = {k: layout(v) if k in MAPS else v for k, v in inputs.items()}
    assert not other["x"].is_contiguous()
    y = selective_scan_2d(**other)
    assert y.is_contiguous()
    torch.testing.assert_close(y, selective_scan_2d(**inputs), rtol=1e-6, atol=1e-6)


def test_inputs_may_be_expanded(rng: np.random.Generator) -> None:
    inputs = scan_inputs(rng, (5, 8, 9, 2), batch=1)
    many = {k: v.expand(3, -1, -1, -1) if k in MAPS else v for k, v in inputs.items()}
    many["d"] = torch.ones(1).expand(20)
    inputs["d"] = torch.ones(20)
    y = selective_scan_2d(**many)
    torch.testing.assert_close(y, selective_scan_2d(**inputs).expand(3, -1, -1, -1))


# --- cost and contract -------------------------------------------------------------------------


def calls(inputs: dict[str, Tensor]) -> Counter[str]:
    """How often each PyTorch operator runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        selective_scan_2d(**inputs)
    return Counter(e.name for e in profile.events() if e.name.startswith("aten::"))


def test_the_number_of_calls_grows_with_the_logarithm_of_the_map(
    rng: np.random.Generator,
) -> None:
    small, middle, large = (
        calls(scan_inputs(rng, (1, side, side, 1))).total() for side in (4, 16, 64)
    )
    assert small > 100  # the profiler saw them
    # Each 16-fold map adds the same number of calls.
    assert large - middle <= 1.2 * (middle - small)
    assert large < 4 * small


@pytest.mark.parametrize("size", [(2, 3, 1), (5, 7, 2), (4, 9, 1)], ids=str)
def test_gradients_agree_with_finite_differences(
    size: tuple[int, int, int], rng: np.random.Generator
) -> None:
    height, width, state = size
    inputs = scan_inputs(rng, (2, height, width, state), batch=2, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in inputs.values()]
    small = height * width < 16  # longer than a block: one random direction is enough
    assert torch.autograd.gradcheck(selective_scan_2d, leaves, fast_mode=not small)


def test_gradients_have_their_inputs_types(rng: np.random.Generator) -> None:
    inputs = scan_inputs(rng, (2, 3, 5, 2), dtype=torch.float16)
    leaves = {k: t.requires_grad_() for k, t in inputs.items()}
    selective_scan_2d(**inputs).float().sum().backward()
    assert {k: t.grad.dtype for k, t in leaves.items()} == {k: t.dtype for k, t in leaves.items()}


@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "training"])
def test_keeps_pytorchs_contract_for_operators(gradient: bool, rng: np.random.Generator) -> None:
    inputs = scan_inputs(rng, (2, 2, 3, 1), batch=2)  # small: the gradient is traced call by call
    arguments = tuple(t.requires_grad_(gradient) for t in inputs.values())
    torch.library.opcheck(torch.ops.stormrt.selective_scan_2d.default, arguments)


@pytest.mark.parametrize(
    ("name", "shape", "named"),
    [
        ("x", (2, 3, 5), "wrong rank"),
        ("dt", (2, 12, 5, 4), "axis 3, W"),
        ("dt", (2, 11, 5, 6), r"K\*D = 12"),
        ("dt", (1, 12, 5, 6), "axis 0, B"),
        ("b", (2, 7, 5, 6), r"axis 1, K\*N"),
        ("b", (2, 12, 5, 6), r"K\*N = 8"),
        ("c", (2, 8, 6, 5), "axis 2, H"),
        ("c", (8, 5, 6), "wrong rank"),
        ("a", (12,), "wrong rank"),
        ("a", (3, 2), r"K\*D = 12"),
        ("d", (3,), r"K\*D = 12"),
        ("dt_bias", (4, 3), "wrong rank"),
    ],
)
def test_a_wrong_shape_is_refused_naming_the_input(
    name: str, shape: tuple[int, ...], named: str, rng: np.random.Generator
) -> None:
    inputs = scan_inputs(rng, (3, 5, 6, 2), batch=2) | {name: torch.zeros(shape)}
    for device in ("cpu", "meta"):
        with pytest.raises(InputError, match=named) as caught:
            selective_scan_2d(**{k: v.to(device) for k, v in inputs.items()})
        assert f"SelectiveScan2D: input {name!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "dtype", "named"),
    [
        ("x", torch.int32, "float32 or float16"),
        ("x", torch.bfloat16, "float32 or float16"),
        ("dt", torch.float16, "torch.float32"),
        ("b", torch.float16, "torch.float32"),
        ("c", torch.int64, "torch.float32"),
        ("a", torch.float16, "float32"),
        ("d", torch.int32, "float32"),
        ("dt_bias", torch.float16, "float32"),
    ],
    ids=str,
)
def test_a_wrong_type_is_refused_naming_the_input(
    name: str, dtype: torch.dtype, named: str, rng: np.random.Generator
) -> None:
    inputs = scan_inputs(rng, (3, 5, 6, 2))
    inputs[name] = inputs[name].to(dtype)
    for device in ("cpu", "meta"):  # meta: as when a graph is traced
        with pytest.raises(InputError, match=f"input '{name}' has the wrong type") as caught:
            selective_scan_2d(**{k: v.to(device) for k, v in inputs.items()})
        assert str(dtype) in str(caught.value)
        assert named in str(caught.value)
