# SPDX-License-Identifier: Apache-2.0
"""The GPU through pycuda, on an imitation of the part of pycuda that is used.

What can go wrong: a context is left on pycuda's stack, which aborts the process at its end; work
happens in another context than the application's streams; pycuda's errors reach the user as they
are. ``test_gpu.py`` runs the same on a GPU.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.runtime import pycuda_device
from stormrt.runtime.pycuda_device import PycudaDevice


class Driver(ModuleType):
    """``pycuda.driver`` as of 2024.1 to 2026.1; its names are those of its source."""

    class Error(Exception):
        pass

    class MemoryError(Error):  # noqa: A001 - pycuda's name
        pass

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.stack: list[SimpleNamespace] = []
        self.live: set[str] = set()
        self.fails: type[Exception] | None = None
        self.flags: list[int] = []
        self.detached: list[SimpleNamespace] = []
        driver = self

        class Device:
            def __init__(self, index: int) -> None:
                self.index = index

            def __eq__(self, other: object) -> bool:
                return isinstance(other, Device) and other.index == self.index

            __hash__ = None

            @staticmethod
            def count() -> int:
                return 2

            def name(self) -> str:
                return f"GPU {self.index}"

            def compute_capability(self) -> tuple[int, int]:
                return (8, 7)

            def retain_primary_context(self) -> SimpleNamespace:
                return driver.context(self)

        class Context:
            @staticmethod
            def get_current() -> SimpleNamespace | None:
                return driver.stack[-1] if driver.stack else None

            @staticmethod
            def get_device() -> Device:
                return driver.stack[-1].device

        self.Device, self.Context = Device, Context

    def context(self, device: object) -> SimpleNamespace:
        made = SimpleNamespace(device=device)
        made.push = lambda: self.stack.append(made)
        made.pop = self.stack.pop
        made.detach = lambda: self.detached.append(made)
        return made

    def init(self) -> None:
        pass

    def _reserve(self, what: str) -> None:
        assert self.stack, "no context is current"
        if self.fails is not None:
            raise self.fails("out of memory")
        self.live.add(what)

    def mem_alloc(self, size: int) -> object:
        self._reserve(f"{size} bytes")
        driver = self

        class Allocation:
            def __int__(self) -> int:
                return 0x7000_0000_0000

            def free(self) -> None:
                driver.live.remove(f"{size} bytes")

        return Allocation()

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        self._reserve("pinned")

        class Allocation:
            __array_interface__ = np.zeros(shape, dtype).__array_interface__
            kept = np.zeros(shape, dtype)

            @staticmethod
            def free() -> None:
                self.live.remove("pinned")

        Allocation.__array_interface__ = Allocation.kept.__array_interface__
        return np.asarray(Allocation())

    def Stream(self, flags: int) -> SimpleNamespace:  # noqa: N802 - pycuda's name
        self._reserve("stream")
        self.flags.append(flags)
        return SimpleNamespace(handle=0x123)


@pytest.fixture
def pycuda(monkeypatch):
    driver = Driver()
    package = ModuleType("pycuda")
    package.driver = driver
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    for cached in (pycuda_device._driver, pycuda_device._primary_context):
        cached.cache_clear()
    yield driver
    for cached in (pycuda_device._driver, pycuda_device._primary_context):
        cached.cache_clear()


def test_it_says_what_it_is(pycuda):
    device = PycudaDevice(1)
    assert (device.name, device.sm) == ("GPU 1", 87)
    assert pycuda.stack == []


def test_the_primary_context_is_current_only_while_it_is_worked_in(pycuda):
    first, second = PycudaDevice(), PycudaDevice()
    with first.active():
        (context,) = pycuda.stack
        with second.active():
            assert pycuda.stack == [context, context]  # one for all
    assert pycuda.stack == []
    with pytest.raises(KeyError), first.active():
        raise KeyError
    assert pycuda.stack == []


def test_the_context_that_the_application_has_made_is_used(pycuda):
    theirs = pycuda.context(pycuda.Device(0))
    theirs.push()
    with PycudaDevice(0).active():
        assert pycuda.stack == [theirs, theirs]
    with PycudaDevice(1).active():  # it is of another GPU
        assert pycuda.stack[-1] is not theirs
    assert pycuda.stack == [theirs]


def test_memory_is_reserved_and_given_back(pycuda):
    device = PycudaDevice()
    with device.active():
        buffer, pinned = device.allocate(64), device.pinned((2, 3))
        assert buffer.ptr == 0x7000_0000_0000
        assert (pinned.array.shape, pinned.array.dtype) == ((2, 3), np.float32)
        assert pycuda.live == {"64 bytes", "pinned"}
        buffer.free()
        pinned.free()
    assert pycuda.live == set()


def test_own_streams_do_not_wait_for_the_default_one_and_others_are_taken_by_handle(pycuda):
    device = PycudaDevice()
    with device.active():
        assert device.stream().handle == 0x123
        assert device.stream(0x55).handle == 0x55
    assert pycuda.flags == [1]  # CU_STREAM_NON_BLOCKING


@pytest.mark.parametrize(
    ("reserve", "what"),
    [
        (lambda device: device.allocate(3 << 20), "3.0 MiB"),
        (lambda device: device.pinned((2, 3)), r"a page-locked array of shape \(2, 3\)"),
        (lambda device: device.stream(), "a stream"),
    ],
)
def test_too_little_memory_is_told_with_what_it_was_for(pycuda, reserve, what):
    device = PycudaDevice()
    pycuda.fails = pycuda.MemoryError
    with (
        device.active(),
        pytest.raises(InputError, match=f"too little free memory for {what}") as caught,
    ):
        reserve(device)
    assert caught.value.got == "out of memory"
    pycuda.fails = pycuda.Error
    with device.active(), pytest.raises(InputError, match=f"CUDA failed with {what}"):
        reserve(device)


def test_a_gpu_that_is_not_there_is_refused(pycuda):
    for index in (-1, 2):
        with pytest.raises(EnvironmentMissingError, match="no such GPU"):
            PycudaDevice(index)


def test_without_pycuda_it_is_said_how_to_install_it(pycuda, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(EnvironmentMissingError, match="pycuda is not installed") as caught:
        PycudaDevice()
    assert "pip install 'stormrt[device]'" in (caught.value.fix or "")


def test_a_pycuda_that_does_not_load_is_told_from_one_that_is_missing(pycuda, monkeypatch):
    def fail(_name):
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(pycuda_device.importlib, "import_module", fail)
    with pytest.raises(EnvironmentMissingError, match="does not load") as caught:
        PycudaDevice()
    assert "libcuda.so.1" in (caught.value.got or "")


def test_a_driver_that_does_not_start_is_told(pycuda, monkeypatch):
    def fail():
        raise pycuda.Error("cuInit failed: no CUDA-capable device is detected")

    monkeypatch.setattr(pycuda, "init", fail)
    with pytest.raises(EnvironmentMissingError, match="does not start"):
        PycudaDevice()
