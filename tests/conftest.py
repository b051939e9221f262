# SPDX-License-Identifier: Apache-2.0
"""Fixtures for every test."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.seeds import SEED, generator


def pytest_report_header() -> str:
    return f"STORMRT_TEST_SEED={SEED}"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator of its own for each test, repeatable from the seed that it prints."""
    return generator(request.node.name)


@pytest.fixture
def seed(rng: np.random.Generator) -> int:
    """A seed of its own for each test, for what is not drawn through NumPy."""
    return int(rng.integers(2**31))
