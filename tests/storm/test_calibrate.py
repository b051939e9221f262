# SPDX-License-Identifier: Apache-2.0
"""Plans whose lines are the same for every image: those that calibration images keep most often."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from stormrt.errors import InputError
from stormrt.storm import calibrate_selection
from stormrt.storm.plan import Reduction, StormPlan, parse_plan
from stormrt.storm.vmamba import VMamba
from tests.helpers.lines import kept_lines
from tests.helpers.models import SMALL, lively, random_images
from tests.helpers.seeds import SEED

PLAN = StormPlan(
    (Reduction(0, 1, 19, 7, "dissimilarity"), Reduction(2, 1, 3, 2, "step_size", mode="merge"))
)
"""For 96 x 72 images: most lines stay on one axis, few on the other."""


@pytest.fixture(scope="module")
def model() -> VMamba:
    return lively(SMALL, SEED)


def counts(model: VMamba, plan: StormPlan, images: torch.Tensor, place: int) -> list[np.ndarray]:
    """How many images keep each row, and each column, of a plan's reduction."""
    found = [np.zeros(0), np.zeros(0)]
    for image in images:
        with torch.no_grad():
            kept = model.with_plan(plan).kept_tokens(image[None])[place]
        for axis, (lines, side) in enumerate(
            ((kept.rows[0, :, 0], kept.height), (kept.cols[0, 0], kept.width))
        ):
            found[axis] = np.zeros(side) if not len(found[axis]) else found[axis]
            found[axis][lines.numpy()] += 1
    return found


def test_the_lines_that_most_images_keep_are_fixed_stratum_by_stratum_in_the_networks_order(
    model: VMamba, rng: np.random.Generator
) -> None:
    images = random_images(rng, 7, 96, 72)
    plan = calibrate_selection(model, PLAN, images)
    first, second = plan.reductions
    by_row, by_col = counts(model, PLAN, images, 0)
    assert list(first.rows) == kept_lines(by_row, 19)
    assert list(first.cols) == kept_lines(by_col, 7)
    # The second sees what the first, as fixed, leaves.
    half_fixed = StormPlan((first, PLAN.reductions[1]))
    by_row, by_col = counts(model, half_fixed, images, 1)
    assert list(second.rows) == kept_lines(by_row, 3)
    assert list(second.cols) == kept_lines(by_col, 2)
    free = [dataclasses.replace(r, rows=None, cols=None) for r in plan.reductions]
    assert StormPlan(tuple(free)) == PLAN


def test_batches_give_what_one_tensor_gives(model: VMamba, rng: np.random.Generator) -> None:
    images = random_images(rng, 6, 96, 72)
    whole = calibrate_selection(model, PLAN, images)
    assert calibrate_selection(model, PLAN, [images[:1], images[1:5], images[5:]]) == whole


def test_one_image_is_cut_as_it_would_cut_itself(model: VMamba, rng: np.random.Generator) -> None:
    image = random_images(rng, 1, 96, 72)
    fixed = model.with_plan(calibrate_selection(model, PLAN, image))
    with torch.inference_mode():
        torch.testing.assert_close(fixed(image), model.with_plan(PLAN)(image))


def test_a_calibrated_plan_survives_its_file_and_keeps_what_it_fixes(
    model: VMamba, rng: np.random.Generator, tmp_path: Path
) -> None:
    plan = calibrate_selection(model, PLAN, random_images(rng, 3, 96, 72))
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    assert parse_plan(str(path), SMALL, 96, 72) == plan
    assert calibrate_selection(model, plan, random_images(rng, 2, 96, 72)) == plan


def test_a_reduction_that_keeps_everything_is_fixed_to_everything(
    model: VMamba, rng: np.random.Generator
) -> None:
    plan = StormPlan((Reduction(0, 1, 24, 18),))
    (r,) = calibrate_selection(model, plan, random_images(rng, 1, 96, 72)).reductions
    assert (r.rows, r.cols) == (tuple(range(24)), tuple(range(18)))


def test_the_model_is_left_as_it_was(model: VMamba, rng: np.random.Generator) -> None:
    calibrate_selection(model, PLAN, random_images(rng, 1, 96, 72))
    assert model.plan == StormPlan()
    assert not any(stage.reductions for stage in model.layers)


def test_windows_and_no_images_are_refused(model: VMamba, rng: np.random.Generator) -> None:
    windows = StormPlan((Reduction(0, 1, 19, 16, unit="window"),))
    with pytest.raises(InputError, match="only lines can be fixed"):
        calibrate_selection(model, windows, random_images(rng, 1, 96, 72))
    for nothing in (torch.zeros(0, 3, 96, 72), []):
        with pytest.raises(InputError, match="no images"):
            calibrate_selection(model, PLAN, nothing)
