# SPDX-License-Identifier: Apache-2.0
"""Fixtures for every test."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from tests.helpers.seeds import SEED, generator


def pytest_configure() -> None:
    # A shell starts background jobs with Ctrl-C ignored, which children would inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
