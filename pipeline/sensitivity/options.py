# SPDX-License-Identifier: Apache-2.0
"""How layers are ranked and which budget is looked for, checked before the slow part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stormrt.errors import InputError
from stormrt.pipeline.datasets import open_dataset

DEFAULT_IMAGES = 32
"""Calibration images that a layer is judged on."""

Extra = Literal["depthwise", "residual"]
"""Layers that the default policy leaves in float, and that can be ranked all the same."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What the whole INT8 graph may lose; one of the two."""

    most_error: float | None = None
    """Relative L2 of the logits against FP32."""
    most_top1_loss: float | None = None
    """Top-1, 0 to 1, below FP32's."""


@dataclass(frozen=True, slots=True)
class SensitivityOptions:
    """How layers are ranked, and which budget is looked for."""

    images: int = DEFAULT_IMAGES
    """Calibration images; with labelled ones, as many of those."""
    extra: tuple[Extra, ...] = ()
    labelled: Path | None = None
    """A folder or an npz."""
    budget: Budget | None = None


def check_options(options: SensitivityOptions) -> None:
    """Refuse what makes no sense, before the slow part.

    Raises:
        InputError: No images; a budget that is no number above 0 (no share of 1, for top-1); both
            budgets; a budget of top-1 without labelled images; labelled images that are none.
    """
    if options.images < 1:
        raise InputError(
            "there must be an image to rank layers on",
            where="--sensitivity-images",
            got=str(options.images),
        )
    if options.labelled is not None:
        open_dataset(options.labelled, None)
    budget = options.budget
    if budget is None:
        return
    error, loss = budget.most_error, budget.most_top1_loss
    if error is not None and loss is not None:
        raise InputError(
            "two budgets were given",
            where="--most-error, --most-top1-loss",
            fix="give the one that counts: --most-top1-loss where there are labelled images",
        )
    if error is not None and not (math.isfinite(error) and error > 0):
        raise InputError(
            "the budget of the error cannot be kept",
            where="--most-error",
            got=str(error),
            expected="a relative L2 above 0, such as 0.05",
        )
    if loss is not None and not 0 <= loss < 1:
        raise InputError(
            "the budget of top-1 is no share",
            where="--most-top1-loss",
            got=str(loss),
            expected="0 or more, below 1: 0.005 is half a point",
        )
    if loss is not None and options.labelled is None:
        raise InputError(
            "top-1 needs labelled images",
            where="--most-top1-loss",
            fix="add --labelled DATA, or take --most-error",
        )


def report_path(out: Path) -> Path:
    """The report's file beside a table's."""
    return out.with_name(out.name.removesuffix(".json") + ".sensitivity.json")
