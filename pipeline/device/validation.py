# SPDX-License-Identifier: Apache-2.0
"""An engine against FP32 PyTorch's logits for the golden images."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from stormrt.errors import InputError
from stormrt.pipeline.device.golden import batches, read_golden
from stormrt.pipeline.device.report import Validation
from stormrt.pipeline.metrics import Metrics, compare
from stormrt.runtime.engine import Engine


class Thresholds(Protocol):
    """What a recipe allows."""

    @property
    def rel_l2(self) -> float:
        """Most relative L2."""

    @property
    def cosine(self) -> float:
        """Least cosine."""

    @property
    def argmax_agreement(self) -> float:
        """Least share of images with the same largest output."""


def failures(metrics: Metrics, allowed: Thresholds) -> list[str]:
    """What of some metrics is outside the tolerance, in words."""
    reasons = []
    if not metrics.rel_l2 <= allowed.rel_l2:
        reasons.append(f"relative L2 {metrics.rel_l2:.3g} is over {allowed.rel_l2:g}")
    if not metrics.cosine >= allowed.cosine:
        reasons.append(f"cosine {metrics.cosine:.6g} is under {allowed.cosine:g}")
    if not metrics.argmax_agreement >= allowed.argmax_agreement:
        reasons.append(
            f"the largest output agrees on {metrics.argmax_agreement:.1%} of the images, "
            f"less than {allowed.argmax_agreement:.1%}"
        )
    return reasons


def validate_engine(engine: Engine, golden: Path, allowed: Thresholds) -> Validation:
    """Run the golden images and judge the logits.

    Raises:
        InputError: The golden data is damaged or is not for this engine, or the engine does not
            run.
    """
    images, logits, _ = read_golden(golden)
    spec = engine.spec
    # The least batch that is always allowed: a dynamic engine takes parts of a batch as they are.
    cut = batches(images, spec.most_batch)
    outputs = np.concatenate(
        [engine.infer(part[:count] if spec.is_dynamic else part)[:count] for part, count in cut]
    )
    if outputs.shape != logits.shape:
        raise InputError(
            "the golden data is of another model than the engine",
            where=str(golden),
            got=f"logits {logits.shape}",
            expected=str(outputs.shape),
        )
    metrics = compare(outputs, logits)
    reasons = failures(metrics, allowed)
    return Validation("failed" if reasons else "passed", "; ".join(reasons), metrics)


def not_validated(reason: str) -> Validation:
    """The record of an engine that could not be run."""
    return Validation("not run", reason, None)
