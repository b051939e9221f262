# SPDX-License-Identifier: Apache-2.0
"""A T4 and a full TensorRT that need neither."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from stormrt.pipeline import engine_api, probe
from stormrt.pipeline.device import memory, timing
from stormrt.plugins.native import LIBRARY_VARIABLE
from stormrt.runtime import engine as runtime_engine
from tests.pipeline.device.fake_builder import BuildingTensorRT
from tests.runtime.fake_device import FakeDevice

DRIVER = probe.CudaDriver("12.6", "580.1", (probe.Gpu(0, "A GPU", 75, 40, 16384),), None)


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    """A T4 in host memory. What was reserved on it must be given back before the test ends."""
    device = FakeDevice()
    yield device
    assert device.live == set()


@pytest.fixture
def trt(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> BuildingTensorRT:
    """A TensorRT 10.3 that builds, on a machine with the fake GPU."""
    module = BuildingTensorRT(device)
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(engine_api, "_loggers", {})
    monkeypatch.setattr(engine_api, "_libraries", {})
    monkeypatch.setattr(probe, "cuda_driver", lambda: DRIVER)
    monkeypatch.setattr(runtime_engine, "_open_gpu", lambda _index: device)
    monkeypatch.setattr(timing, "_WARM_UP_S", 0.0)
    monkeypatch.setattr(memory, "host_free_mib", lambda: 16000)
    monkeypatch.setattr(memory, "gpu_free_mib", lambda: 15000)
    return module
