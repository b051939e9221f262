# SPDX-License-Identifier: Apache-2.0
"""The GPU through the CUDA driver alone: for boards on which pycuda is not installed.

The same as ``pycuda_device``, with ctypes: context, memory, page-locked memory, streams.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.runtime.driver import DriverStream, call, release

# Values of cuda.h.
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: work on the default stream does not hold it up
_NAME_BYTES = 256


@cache
def _primary_context(index: int) -> ctypes.c_void_p:
    # Never released: CUDA's runtime, which TensorRT uses, keeps it to the end of the process too.
    context = ctypes.c_void_p()
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), index)
    return context


class DriverBuffer:
    """Memory on the device."""

    def __init__(self, ptr: int) -> None:
        self._ptr = ptr

    @property
    def ptr(self) -> int:
        """Its address."""
        return self._ptr

    def free(self) -> None:
        """Give it back. The work that uses it must be done."""
        release("cuMemFree_v2", self._ptr)


class DriverPinned:
    """Page-locked host memory."""

    def __init__(self, address: int, array: NDArray[np.float32]) -> None:
        self._address = address
        self._array = array

    @property
    def array(self) -> NDArray[np.float32]:
        """The memory. Not to be used after ``free``."""
        return self._array

    def free(self) -> None:
        """Give it back. The work that uses it must be done."""
        release("cuMemFreeHost", self._address)


class OwnedStream(DriverStream):
    """A stream that was made here, and goes when it is closed."""

    def __init__(self) -> None:
        handle = ctypes.c_void_p()
        call("cuStreamCreate", ctypes.byref(handle), _NON_BLOCKING)
        assert handle.value is not None  # a stream that was made has an address
        super().__init__(handle.value)

    def close(self) -> None:
        """Give it back. Its work must be done."""
        super().close()
        release("cuStreamDestroy_v2", self.handle)


class DriverDevice:
    """One GPU. It works in the primary context, which is also PyTorch's and CuPy's.

    Args:
        index: CUDA's number of the GPU.

    Raises:
        EnvironmentMissingError: There is no CUDA driver, it does not start, or there is no such
            GPU.
    """

    def __init__(self, index: int = 0) -> None:
        count, device = ctypes.c_int(), ctypes.c_int()
        try:
            call("cuInit", 0)
            call("cuDeviceGetCount", ctypes.byref(count))
        except InputError as error:
            raise EnvironmentMissingError(
                "the CUDA driver does not start", got=error.got
            ) from error
        if not 0 <= index < count.value:
            raise EnvironmentMissingError(
                "there is no such GPU",
                got=f"device {index}",
                expected=f"0 to {count.value - 1}",
            )
        call("cuDeviceGet", ctypes.byref(device), index)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        call("cuDeviceGetName", name, _NAME_BYTES, device)
        self._name = name.value.decode(errors="replace")
        self._sm = 10 * _attribute(_MAJOR, device.value) + _attribute(_MINOR, device.value)
        self._context = _primary_context(device.value)

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
        call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def allocate(self, size_bytes: int) -> DriverBuffer:
        """Reserve memory on the device.

        Raises:
            InputError: There is too little.
        """
        address = ctypes.c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(address), size_bytes)
        return DriverBuffer(address.value)

    def pinned(self, shape: tuple[int, ...]) -> DriverPinned:
        """Reserve page-locked host memory for FP32 numbers.

        Raises:
            InputError: There is too little.
        """
        count = math.prod(shape)
        memory = ctypes.c_void_p()
        call("cuMemHostAlloc", ctypes.byref(memory), 4 * count, 0)
        assert memory.value is not None  # memory that was reserved has an address
        held = (ctypes.c_float * count).from_address(memory.value)
        return DriverPinned(memory.value, np.ctypeslib.as_array(held).reshape(shape))

    def stream(self, handle: int | None = None) -> DriverStream:
        """Make a stream, or take one that the caller has made and keeps alive."""
        return OwnedStream() if handle is None else DriverStream(handle)

    def free_memory_mib(self) -> int:
        """Memory of the GPU that nobody uses, in MiB. Called inside ``active``."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value >> 20


def _attribute(which: int, device: int) -> int:
    value = ctypes.c_int()
    call("cuDeviceGetAttribute", ctypes.byref(value), which, device)
    return value.value
