# SPDX-License-Identifier: Apache-2.0
"""The GPU through the CUDA driver alone, on a driver in host memory.

What can go wrong: an address is cut to 32 bits; a context stays current; memory, page-locked memory
or a stream is not given back; a missing driver is told as a failure.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.runtime import Engine, driver, driver_device
from stormrt.runtime.driver_device import DriverDevice
from tests.runtime.fake_trt import ITEM, model, plan_bytes
from tests.runtime.folders import write_folder
from tests.runtime.test_driver import cuda, fake_library  # noqa: F401 - fixtures


@pytest.fixture(autouse=True)
def _no_kept_context():
    driver_device._primary_context.cache_clear()
    yield
    driver_device._primary_context.cache_clear()


def test_it_says_what_it_is(cuda):  # noqa: F811 - the fixture
    device = DriverDevice(0)
    assert (device.name, device.sm) == ("A GPU", 87)


def test_its_context_is_current_only_while_it_is_worked_in(cuda):  # noqa: F811
    device, library = DriverDevice(0), driver._library()
    with device.active():
        assert library.fakeActive() == 1
    assert library.fakeActive() == 0
    assert cuda.calls()[-2:] == ["cuCtxPushCurrent", "cuCtxPopCurrent"]


def test_memory_streams_and_copies_work_together(cuda, rng):  # noqa: F811
    device = DriverDevice(0)
    images = rng.normal(size=(2, 3, 5)).astype(np.float32)
    with device.active():
        pinned, buffer, stream = device.pinned((2, 3, 5)), device.allocate(120), device.stream()
        assert buffer.ptr > 2**32
        pinned.array[:] = images
        stream.copy_in(buffer.ptr, pinned.array)
        back = np.empty_like(images)
        stream.copy_out(back, buffer.ptr)
        stream.synchronize()
        assert np.array_equal(back, images)
        assert device.free_memory_mib() == 5 * 1024
        for thing in (pinned, buffer):
            thing.free()
        stream.close()
    # CU_STREAM_NON_BLOCKING: work on the default stream does not hold it up.
    assert {"cuMemAlloc 120", "cuMemHostAlloc 120 0", "cuStreamCreate 1"} <= set(cuda.calls())


def test_a_stream_of_the_application_is_not_destroyed(cuda):  # noqa: F811
    theirs = cuda.stream.handle
    stream = DriverDevice(0).stream(theirs)
    assert stream.handle == theirs
    stream.close()
    assert "cuStreamDestroy" not in cuda.calls()


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("cuMemAlloc", lambda device: device.allocate(64)),
        ("cuMemHostAlloc", lambda device: device.pinned((4, 4))),
    ],
)
def test_too_little_memory_is_told_by_cudas_name_with_a_remedy(cuda, name, work):  # noqa: F811
    device = DriverDevice(0)
    cuda.fail(name, 2)
    with pytest.raises(InputError, match="CUDA_ERROR_OUT_OF_MEMORY") as caught:
        work(device)
    assert caught.value.fix is not None


def test_a_gpu_that_is_not_there_and_a_driver_that_does_not_start_are_missing_things(cuda):  # noqa: F811
    with pytest.raises(EnvironmentMissingError, match="no such GPU"):
        DriverDevice(1)
    cuda.fail("cuInit", 999)
    with pytest.raises(EnvironmentMissingError, match="does not start"):
        DriverDevice(0)


def test_without_a_driver_it_is_said(monkeypatch):
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-of-nowhere.so.1")
    driver._library.cache_clear()
    with pytest.raises(EnvironmentMissingError, match="no CUDA driver"):
        DriverDevice(0)
    driver._library.cache_clear()


class _Mirror:
    """What the fake TensorRT needs of a device, on the memory of the driver's."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.streams: dict[int, object] = {}

    def require_active(self) -> None:
        assert driver._library().fakeActive() > 0


def test_an_engine_runs_and_gives_everything_back(cuda, tmp_path, rng, trt, monkeypatch):  # noqa: F811
    device = DriverDevice(0)
    trt.device = mirror = _Mirror()

    class Stream:
        capturing = None
        clock_ms = 0.0

        def add(self, work) -> None:
            work()

    class Streams(dict):
        def __missing__(self, handle: int) -> Stream:
            return Stream()

    def read(pointer: int, shape: tuple[int, ...]) -> np.ndarray:
        out = np.empty(shape, np.float32)
        ctypes.memmove(out.ctypes.data, pointer, out.nbytes)
        return out

    mirror.streams = Streams()
    mirror.read = read
    mirror.write = lambda to, array: ctypes.memmove(to, array.ctypes.data, array.nbytes)
    images = rng.normal(size=(1, *ITEM)).astype(np.float32)
    with Engine.load(
        write_folder(tmp_path / "built", plan_bytes(), sm=87), device=device
    ) as engine:
        assert np.array_equal(engine.infer(images), model(images))
    assert cuda.live() == 0
