# SPDX-License-Identifier: Apache-2.0
"""The GPU through pycuda: context, memory, page-locked memory, streams."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.runtime.driver import DriverStream

_INSTALL = (
    "`python -m pip install 'stormrt[device]'`. pip compiles pycuda, which takes some minutes: "
    "nvcc must be in PATH (on a Jetson: `export PATH=/usr/local/cuda/bin:$PATH`) and Python's "
    "headers installed (`sudo apt-get install python3-dev`)"
)
# CU_STREAM_NON_BLOCKING: work on the default stream, another library's perhaps, does not hold it
# up, nor fail while it records a graph. Inputs are ordered explicitly (``wait_for``).
_NON_BLOCKING = 1


@cache
def _driver() -> Any:  # pycuda is published without types
    try:
        driver = importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        raise EnvironmentMissingError(
            "pycuda is not installed", where="Python package pycuda", got=str(error), fix=_INSTALL
        ) from error
    except ImportError as error:
        raise EnvironmentMissingError(
            "pycuda is installed and does not load",
            where="Python package pycuda",
            got=str(error),
            fix="pycuda must be compiled on the machine that it runs on: python -m pip install "
            "--force-reinstall --no-cache-dir --no-binary pycuda pycuda",
        ) from error
    try:
        driver.init()
    except driver.Error as error:
        raise EnvironmentMissingError("the CUDA driver does not start", got=str(error)) from error
    return driver


@cache
def _primary_context(index: int) -> Any:  # pycuda's Context
    # Kept to the end of the process, as CUDA's runtime keeps it, which TensorRT uses.
    driver = _driver()
    context = driver.Device(index).retain_primary_context()
    # Of finalizers the last made is the first called: engines end before. Left to its destructor,
    # pycuda would detach it as if it were no primary one, and warn at exit.
    weakref.finalize(driver, context.detach)
    return context


@contextmanager
def _told(what: str) -> Iterator[None]:
    driver = _driver()
    try:
        yield
    except driver.MemoryError as error:
        raise InputError(
            f"the GPU has too little free memory for {what}",
            got=str(error),
            fix="close other programs that use the GPU (on a Jetson all programs do), or build "
            "with a smaller --batch",
        ) from error
    except driver.Error as error:
        raise InputError(f"CUDA failed with {what}", got=str(error)) from error


class PycudaBuffer:
    """Memory on the device."""

    def __init__(self, allocation: Any) -> None:  # pycuda's DeviceAllocation
        self._allocation = allocation
        self._ptr = int(allocation)

    @property
    def ptr(self) -> int:
        """Its address."""
        return self._ptr

    def free(self) -> None:
        """Give it back. The work that uses it must be done."""
        # An error here is an earlier one, told already, that comes up again.
        with suppress(_driver().Error):
            self._allocation.free()


class PycudaPinned:
    """Page-locked host memory."""

    def __init__(self, array: NDArray[np.float32]) -> None:
        self._array = array

    @property
    def array(self) -> NDArray[np.float32]:
        """The memory. Not to be used after ``free``."""
        return self._array

    def free(self) -> None:
        """Give it back. The work that uses it must be done."""
        allocation: Any = self._array.base  # pycuda's PagelockedHostAllocation
        with suppress(_driver().Error):
            allocation.free()


class PycudaDevice:
    """One GPU.

    It works in the context that pycuda has made current in this thread (``pycuda.autoinit``), if
    that is one of this GPU, so that the application's own streams can be used; else in the primary
    context, which is also PyTorch's and CuPy's.

    Args:
        index: CUDA's number of the GPU.

    Raises:
        EnvironmentMissingError: pycuda is missing, or there is no such GPU.
    """

    def __init__(self, index: int = 0) -> None:
        driver = _driver()
        if not 0 <= index < driver.Device.count():
            raise EnvironmentMissingError(
                "there is no such GPU",
                got=f"device {index}",
                expected=f"0 to {driver.Device.count() - 1}",
            )
        device = driver.Device(index)
        with _told("a context"):
            current = driver.Context.get_current()
            own = current is not None and driver.Context.get_device() == device
            self._context = current if own else _primary_context(index)
        major, minor = device.compute_capability()
        self._name = str(device.name())
        self._sm = 10 * int(major) + int(minor)

    @property
    def name(self) -> str:
        """The driver's name for it."""
        return self._name

    @property
    def sm(self) -> int:
        """Compute capability times ten."""
        return self._sm

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make it the one that CUDA uses in this thread, until the context ends."""
        with _told("its context"):
            self._context.push()
        try:
            yield
        finally:
            # Left on pycuda's stack it would abort the process at exit.
            self._context.pop()

    def allocate(self, size_bytes: int) -> PycudaBuffer:
        """Reserve memory on the device.

        Raises:
            InputError: There is too little.
        """
        with _told(f"{size_bytes / 2**20:.1f} MiB"):
            return PycudaBuffer(_driver().mem_alloc(size_bytes))

    def pinned(self, shape: tuple[int, ...]) -> PycudaPinned:
        """Reserve page-locked host memory for FP32 numbers.

        Raises:
            InputError: There is too little.
        """
        with _told(f"a page-locked array of shape {shape}"):
            return PycudaPinned(_driver().pagelocked_empty(shape, np.float32))

    def stream(self, handle: int | None = None) -> DriverStream:
        """Make a stream, or take one that the caller has made and keeps alive."""
        if handle is not None:
            return DriverStream(handle)
        with _told("a stream"):
            own = _driver().Stream(_NON_BLOCKING)
        return DriverStream(own.handle, owner=own)
