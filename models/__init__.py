# SPDX-License-Identifier: Apache-2.0
"""Trained weights that come with the package, and the cards that describe weights.

Nothing is downloaded: ``bundled`` is the one place that says whether a model has weights here.
"""

if not __name__.startswith("stormrt."):
    raise ImportError(
        "import stormrt.models, not models: under two names every registry would "
        "exist twice (docs/adr/0001)"
    )

from stormrt.models.bundle import bundled, weights_path
from stormrt.models.card import ModelCard, read_card

__all__ = ["ModelCard", "bundled", "read_card", "weights_path"]
