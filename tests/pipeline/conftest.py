# SPDX-License-Identifier: Apache-2.0
"""Small models and their graphs for the tests of the pipeline; each is made once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stormrt.storm.plan import Reduction, StormPlan
from tests.pipeline import support
from tests.pipeline.support import GATED, Graphs, make_graphs, model_spec

TWO_REDUCTIONS = StormPlan(
    (Reduction(0, 0, 12, 9, "feature_norm"), Reduction(2, 1, 2, 2, "step_size"))
)
"""For 64x48 images, whose first map is 16x12."""


@pytest.fixture(autouse=True)
def _small_variants() -> Iterator[None]:
    with support.small_variants():
        yield


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four small photographs."""
    return support.make_photographs(tmp_path_factory.mktemp("photographs") / "four")


@pytest.fixture(scope="session")
def dense() -> Graphs:
    """The small model, dense, with a batch of 1 to 3."""
    with support.small_variants():
        return make_graphs(model_spec(batch=3, dynamic=True))


@pytest.fixture(scope="session")
def reduced() -> Graphs:
    """The small model with two reductions, by two hosts."""
    with support.small_variants():
        return make_graphs(model_spec(plan=TWO_REDUCTIONS))


@pytest.fixture(scope="session")
def gated() -> Graphs:
    """The vanilla-like model at an odd size, with a fixed batch of 2."""
    with support.small_variants():
        return make_graphs(model_spec(GATED, 33, 47, batch=2))
