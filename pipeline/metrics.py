# SPDX-License-Identifier: Apache-2.0
"""How far two sets of outputs are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Metrics:
    """Distance of outputs from a reference.

    All but ``max_abs`` and the counts are over all images
    together; every number has six significant digits, so that reports can be compared.
    """

    images: int
    max_abs: float
    """Largest absolute difference."""
    mean_abs: float
    """Mean absolute difference."""
    rel_l2: float
    """L2 norm of the difference over the L2 norm of the reference."""
    rel_l2_worst: float
    """The largest relative L2 of a single image."""
    cosine: float
    """Cosine of the angle between outputs and reference."""
    argmax_agreement: float
    """Share of the images with the same largest output."""


def compare(outputs: NDArray[np.float32], reference: NDArray[np.float32]) -> Metrics:
    """Compare outputs [n, classes] with a reference of the same shape, in FP64.

    NaN or infinity in the outputs gives infinite distances, never a pass.

    Raises:
        ValueError: The shapes differ.
    """
    if outputs.shape != reference.shape:
        raise ValueError(f"outputs {outputs.shape} and reference {reference.shape} differ in shape")
    images = len(outputs)
    if not np.isfinite(outputs).all():
        return Metrics(images, math.inf, math.inf, math.inf, math.inf, -1.0, 0.0)
    x = outputs.reshape(images, -1).astype(np.float64)
    y = reference.reshape(images, -1).astype(np.float64)
    difference = np.abs(x - y)
    agreement = float(np.mean(x.argmax(1) == y.argmax(1)))
    return Metrics(
        images=images,
        max_abs=_short(difference.max()),
        mean_abs=_short(difference.mean()),
        rel_l2=_short(relative_l2(x, y)),
        rel_l2_worst=_short(max(relative_l2(a, b) for a, b in zip(x, y, strict=True))),
        cosine=_short(_cosine(x, y)),
        argmax_agreement=_short(agreement),
    )


def relative_l2(x: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """|x - reference| / |reference|; infinite where x is not finite."""
    if not np.isfinite(x).all():
        return math.inf
    norm = float(np.linalg.norm(reference))
    distance = float(np.linalg.norm(x - reference))
    if norm == 0.0:
        return 0.0 if distance == 0.0 else math.inf
    return distance / norm


def _cosine(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    if norms == 0.0:
        return 1.0 if np.array_equal(x, y) else 0.0
    return float(np.dot(x.ravel(), y.ravel())) / norms


def _short(value: float) -> float:
    return float(f"{value:.6g}")
