# SPDX-License-Identifier: Apache-2.0
"""Hosts: what each one measures, and the registry that plans are checked against."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from stormrt.errors import InputError
from stormrt.storm.hosts import get_host, host_names, register_host, unregister_host
from stormrt.storm.hosts.random import with_seed
from stormrt.storm.hosts.random_table import table
from stormrt.storm.layers import SS2D, ClippedOutput
from stormrt.storm.plan import Reduction, StormPlan, check_plan, parse_plan
from stormrt.storm.variants import get_variant
from tests.helpers.models import SMALL, lively, random_images
from tests.helpers.reductions import cosines
from tests.helpers.seeds import SEED

TINY = get_variant("vmamba_tiny_s1l8")


@pytest.fixture
def mine():
    """A name that is free before and after the test."""
    yield "mine"
    unregister_host("mine")


def test_the_six_hosts_are_there() -> None:
    assert host_names() == (
        "feature_norm", "step_size", "clipped_output", "dissimilarity", "uniform", "random",
    )  # fmt: skip
    assert all(get_host(name).name == name for name in host_names())
    assert {n for n in host_names() if get_host(n).needs} == {"step_size", "clipped_output"}


@pytest.mark.parametrize("name", host_names())
def test_scores_are_fp32_one_a_token_and_of_their_own_image_alone(
    name: str, rng: np.random.Generator
) -> None:
    x = torch.from_numpy(rng.normal(size=(3, 8, 5, 7))).half()
    measured = torch.from_numpy(rng.uniform(size=(3, 5, 7))).float()
    scores = get_host(name).score(x, measured)
    assert scores.dtype == torch.float32
    assert scores.shape == (3, 5, 7)
    assert torch.equal(get_host(name).score(x.flip(0), measured.flip(0)).flip(0), scores)
    alone = get_host(name).score(x[1:2], measured[1:2])
    torch.testing.assert_close(alone, scores[1:2], rtol=1e-6, atol=1e-6)


def test_the_norm_does_not_overflow_fp16() -> None:
    x = torch.full((1, 64, 2, 3), 300.0, dtype=torch.float16)  # 300 squared is beyond FP16
    scores = get_host("feature_norm").score(x, None)
    torch.testing.assert_close(scores, torch.full((1, 2, 3), 2400.0))
    assert get_host("dissimilarity").score(x, None).isfinite().all()


@pytest.mark.parametrize("name", ["step_size", "clipped_output"])
def test_a_host_that_needs_the_block_before_hands_on_what_it_measured(name: str) -> None:
    measured = torch.ones(1, 2, 3)
    assert get_host(name).score(torch.zeros(1, 4, 2, 3), measured) is measured
    with pytest.raises(ValueError, match="needs a block before it"):
        get_host(name).score(torch.zeros(1, 4, 2, 3), None)


def test_the_clipped_output_is_the_positive_part_of_what_the_scan_gives(
    rng: np.random.Generator,
) -> None:
    model = lively(SMALL, SEED)
    op = model.layers[2].blocks[0].op
    assert isinstance(op, SS2D)
    scanned: list[Tensor] = []
    handle = op.out_norm.register_forward_pre_hook(lambda _, inputs: scanned.append(inputs[0]))
    x = torch.from_numpy(rng.normal(size=(2, 32, 4, 5))).float()
    with torch.no_grad():
        y, measured = op(x, measure="clipped_output")
        assert torch.equal(y, op(x)[0])
    handle.remove()
    expected = np.maximum(scanned[0].double().numpy(), 0).mean(axis=1)
    assert measured is not None
    np.testing.assert_allclose(measured, expected, rtol=1e-5, atol=1e-7)
    assert expected.std() > 0
    assert ClippedOutput()(scanned[0].half()).dtype == torch.float32


@pytest.mark.parametrize("size", [(5, 7), (1, 6), (6, 1), (1, 1), (2, 2)], ids=str)
def test_dissimilarity_is_minus_the_cosines_with_the_neighbours_there_are(
    size: tuple[int, int], rng: np.random.Generator
) -> None:
    x = rng.normal(size=(2, 6, *size))
    scores = get_host("dissimilarity").score(torch.from_numpy(x), None)
    np.testing.assert_allclose(scores, [-cosines(image) for image in x], rtol=1e-5, atol=1e-6)


def test_a_token_of_zeros_resembles_nobody() -> None:
    x = torch.ones(1, 3, 3, 3)
    x[:, :, 1, 1] = 0.0
    scores = get_host("dissimilarity").score(x, None)[0]
    assert scores[1, 1] == 0.0
    assert scores.isfinite().all()


def test_random_scores_are_the_same_on_every_machine_and_for_every_image() -> None:
    # Written down once: an exported graph holds them, and PyTorch must choose the same lines.
    assert [round(v, 6) for v in table(2, 3, 0)[0]] == [0.068685, 0.459844, 0.327105]
    scores = get_host("random").score(torch.zeros(2, 1, 9, 11), None)
    assert torch.equal(scores[0], scores[1])
    assert scores.min() >= 0.0
    assert scores.max() < 1.0
    assert abs(scores.mean() - 0.5) < 0.15
    assert len(scores[0].unique()) > 90


def test_random_scores_differ_by_size_and_seed() -> None:
    tables = [table(8, 8, 0), table(8, 8, 1), table(8, 9, 0), table(9, 8, 0)]
    assert len({t[0][:8] for t in tables}) == 4
    x = torch.zeros(1, 1, 8, 8)
    assert not torch.equal(with_seed(7)(x, None), with_seed(8)(x, None))


# --- the registry ------------------------------------------------------------------------------


def brightest(x: Tensor, measured: Tensor | None) -> Tensor:
    return x.float().amax(1)


def test_a_host_is_added_by_a_function_and_a_name(mine: str, rng: np.random.Generator) -> None:
    register_host(mine, brightest)
    assert host_names()[-1] == mine
    plan = parse_plan("keep=0.5,host=mine", SMALL, 64, 64)
    assert plan.reductions[0].host == mine
    model = lively(SMALL, SEED).with_plan(plan)
    with torch.no_grad():
        assert model(random_images(rng, 1, 64, 64)).isfinite().all()


def test_an_added_host_that_needs_the_block_before_is_refused_at_block_0(mine: str) -> None:
    register_host(mine, brightest, needs="clipped_output")
    check_plan(StormPlan((Reduction(0, 1, 5, 5, mine),)), TINY, 224, 224)
    with pytest.raises(InputError, match="mine scores by the block before"):
        check_plan(StormPlan((Reduction(0, 0, 5, 5, mine),)), TINY, 224, 224)


def test_an_added_score_of_another_type_is_made_fp32(mine: str, rng: np.random.Generator) -> None:
    register_host(mine, lambda x, measured: x.half().amax(1))
    model = lively(SMALL, SEED).with_plan(parse_plan("keep=0.5,host=mine", SMALL, 64, 64))
    reduction = model.layers[0].reductions["1"]
    assert reduction.score(torch.zeros(1, 2, 3, 4), None).dtype == torch.float32


@pytest.mark.parametrize("name", ["step_size", "uniform"])
def test_a_name_that_is_taken_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"there is a host '{name}' already"):
        register_host(name, brightest)


@pytest.mark.parametrize("name", ["", "a,b", "a=b", "a b"])
def test_a_name_that_no_shorthand_could_hold_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="a word that fits"):
        register_host(name, brightest)


def test_a_host_that_needs_what_no_block_measures_is_refused(mine: str) -> None:
    with pytest.raises(InputError, match="no block measures") as caught:
        register_host(mine, brightest, needs="attention")  # type: ignore[arg-type]
    assert "step_size, clipped_output or None" in str(caught.value)


def test_an_unknown_host_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="did you mean 'step_size'"):
        get_host("stepsize")
    with pytest.raises(InputError, match="register_host"):
        get_host("zzz")


def test_forgetting_a_host_frees_its_name(mine: str) -> None:
    register_host(mine, brightest)
    unregister_host(mine)
    unregister_host(mine)
    with pytest.raises(InputError, match="unknown host 'mine'"):
        parse_plan("keep=0.5,host=mine", TINY, 224, 224)
