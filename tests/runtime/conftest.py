# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the runner's tests: a GPU and a TensorRT that need neither."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from stormrt.pipeline import engine_api
from stormrt.plugins.native import LIBRARY_VARIABLE
from tests.runtime.fake_device import FakeDevice
from tests.runtime.fake_trt import FakeTensorRT


@pytest.fixture(autouse=True)
def _no_library_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    """A T4 in host memory. What was reserved on it must be given back before the test ends."""
    device = FakeDevice()
    yield device
    assert device.live == set()


@pytest.fixture
def trt(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """A TensorRT 10.3 that computes on the fake GPU, in the place of the real one."""
    module = FakeTensorRT(device)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    # Caches of one process' one TensorRT.
    monkeypatch.setattr(engine_api, "_loggers", {})
    monkeypatch.setattr(engine_api, "_libraries", {})
    return module
