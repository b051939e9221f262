# SPDX-License-Identifier: Apache-2.0
"""The CUDA driver's own functions: streams and graphs, which pycuda does not have, and the rest.

pycuda (2024.1 to 2026.1) wraps neither stream capture nor graphs, and it copies only on streams
that it has made itself, so that an application's stream could not be used. The driver is there
wherever pycuda is. The functions are those of cuda.h, CUDA 11.4 or later; each works in the
context that is current in the calling thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.runtime.device import Event

LIBRARY = "libcuda.so.1"

# Values of cuda.h.
_CAPTURE_THREAD_LOCAL = 1  # other threads may go on allocating, as trtexec lets them
_EVENT_DEFAULT = 0
_EVENT_DISABLE_TIMING = 2
_OUT_OF_MEMORY = 2

_HANDLE = ctypes.c_void_p
_HANDLE_OUT = ctypes.POINTER(_HANDLE)
_ADDRESS = ctypes.c_uint64
_SIZE = ctypes.c_size_t
_HOST = ctypes.c_void_p
_INT_OUT = ctypes.POINTER(ctypes.c_int)
_TEXT_OUT = ctypes.POINTER(ctypes.c_char_p)

# By the names that the library exports; cuda.h maps its plain ones to them.
SIGNATURES: dict[str, tuple[type, ...]] = {
    "cuCtxPopCurrent_v2": (_HANDLE_OUT,),
    "cuCtxPushCurrent_v2": (_HANDLE,),
    "cuDeviceGet": (_INT_OUT, ctypes.c_int),
    "cuDeviceGetAttribute": (_INT_OUT, ctypes.c_int, ctypes.c_int),
    "cuDeviceGetCount": (_INT_OUT,),
    "cuDeviceGetName": (ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (_HANDLE_OUT, ctypes.c_int),
    "cuEventCreate": (_HANDLE_OUT, ctypes.c_uint),
    "cuEventDestroy_v2": (_HANDLE,),
    "cuEventElapsedTime": (ctypes.POINTER(ctypes.c_float), _HANDLE, _HANDLE),
    "cuEventRecord": (_HANDLE, _HANDLE),
    "cuEventSynchronize": (_HANDLE,),
    "cuGetErrorName": (ctypes.c_int, _TEXT_OUT),
    "cuGetErrorString": (ctypes.c_int, _TEXT_OUT),
    "cuGraphDestroy": (_HANDLE,),
    "cuGraphExecDestroy": (_HANDLE,),
    "cuGraphInstantiateWithFlags": (_HANDLE_OUT, _HANDLE, ctypes.c_ulonglong),
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuInit": (ctypes.c_uint,),
    "cuMemAlloc_v2": (ctypes.POINTER(_ADDRESS), _SIZE),
    "cuMemFreeHost": (_HOST,),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemGetInfo_v2": (ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)),
    "cuMemHostAlloc": (ctypes.POINTER(_HOST), _SIZE, ctypes.c_uint),
    "cuMemcpyDtoDAsync_v2": (_ADDRESS, _ADDRESS, _SIZE, _HANDLE),
    "cuMemcpyDtoHAsync_v2": (_HOST, _ADDRESS, _SIZE, _HANDLE),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, _HOST, _SIZE, _HANDLE),
    "cuStreamBeginCapture_v2": (_HANDLE, ctypes.c_int),
    "cuStreamCreate": (_HANDLE_OUT, ctypes.c_uint),
    "cuStreamDestroy_v2": (_HANDLE,),
    "cuStreamEndCapture": (_HANDLE, _HANDLE_OUT),
    "cuStreamSynchronize": (_HANDLE,),
    "cuStreamWaitEvent": (_HANDLE, _HANDLE, ctypes.c_uint),
}
"""Argument types of every function that is called; each returns a ``CUresult``."""


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise EnvironmentMissingError(
            "there is no CUDA driver on this machine",
            where=LIBRARY,
            got=str(error),
            fix="run this on a machine with an NVIDIA GPU; in a container, start it with the "
            "NVIDIA runtime (docker run --runtime nvidia)",
        ) from error
    for name, arguments in SIGNATURES.items():
        getattr(library, name).argtypes = arguments
    return library


def call(name: str, *arguments: object) -> None:
    """Call a function of ``SIGNATURES``.

    Raises:
        InputError: It fails.
        EnvironmentMissingError: There is no driver.
    """
    status: int = getattr(_library(), name)(*arguments)
    if status != 0:
        raise InputError(
            f"CUDA failed in {name}",
            got=_describe(status),
            fix="close other programs that use the GPU" if status == _OUT_OF_MEMORY else None,
        )


def release(name: str, handle: object) -> None:
    """Destroy something. A failure is an earlier error, told already, that comes up again."""
    getattr(_library(), name)(handle)


def _describe(status: int) -> str:
    texts = []
    for name in ("cuGetErrorName", "cuGetErrorString"):
        text = ctypes.c_char_p()
        getattr(_library(), name)(status, ctypes.byref(text))
        texts.append(text.value.decode(errors="replace") if text.value else f"error {status}")
    return ": ".join(texts)


class DriverEvent:
    """A moment on a stream, with a time."""

    def __init__(self, stream: int) -> None:
        self._event = _HANDLE()
        call("cuEventCreate", ctypes.byref(self._event), _EVENT_DEFAULT)
        call("cuEventRecord", self._event, stream)

    def ms_since(self, earlier: Event) -> float:
        """Milliseconds of the device's clock between two moments; waits for this one."""
        assert isinstance(earlier, DriverEvent)
        call("cuEventSynchronize", self._event)
        milliseconds = ctypes.c_float()
        call("cuEventElapsedTime", ctypes.byref(milliseconds), earlier._event, self._event)
        return milliseconds.value

    def free(self) -> None:
        """Give it back."""
        release("cuEventDestroy_v2", self._event)


class DriverGraph:
    """Recorded work, ready to be launched."""

    def __init__(self, executable: ctypes.c_void_p, stream: int) -> None:
        self._executable = executable
        self._stream = stream

    def launch(self) -> None:
        """Enqueue it on the stream that it was recorded on."""
        call("cuGraphLaunch", self._executable, self._stream)

    def free(self) -> None:
        """Give it back. Its launches must be done."""
        release("cuGraphExecDestroy", self._executable)


class DriverStream:
    """A stream by its handle.

    Args:
        handle: The ``CUstream``, which is a ``cudaStream_t``, as a number.
        owner: The object that the stream lives as long as; kept until ``close``.
    """

    def __init__(self, handle: int, owner: object = None) -> None:
        self._handle = handle
        self._owner = owner
        self._order: ctypes.c_void_p | None = None

    @property
    def handle(self) -> int:
        """The ``cudaStream_t`` as a number."""
        return self._handle

    def copy_in(self, to: int, source: NDArray[np.float32]) -> None:
        """Copy a contiguous array to the device."""
        assert source.flags.c_contiguous
        call("cuMemcpyHtoDAsync_v2", to, source.ctypes.data, source.nbytes, self._handle)

    def copy_out(self, to: NDArray[np.float32], source: int) -> None:
        """Copy from the device into a contiguous array."""
        assert to.flags.c_contiguous
        call("cuMemcpyDtoHAsync_v2", to.ctypes.data, source, to.nbytes, self._handle)

    def copy(self, to: int, source: int, size_bytes: int) -> None:
        """Copy within the device."""
        call("cuMemcpyDtoDAsync_v2", to, source, size_bytes, self._handle)

    def wait_for(self, handle: int) -> None:
        """Start what comes next after what another stream has been given so far."""
        if handle == self._handle:
            return
        if self._order is None:
            event = _HANDLE()
            call("cuEventCreate", ctypes.byref(event), _EVENT_DISABLE_TIMING)
            self._order = event
        call("cuEventRecord", self._order, handle)
        call("cuStreamWaitEvent", self._handle, self._order, 0)

    def capture(self, work: Callable[[], None]) -> DriverGraph:
        """Record what ``work`` enqueues here, without running it.

        Raises:
            InputError: CUDA cannot record what it enqueues.
        """
        graph = _HANDLE()
        call("cuStreamBeginCapture_v2", self._handle, _CAPTURE_THREAD_LOCAL)
        try:
            work()
        except BaseException:
            # A stream that goes on recording could not be used again.
            _library().cuStreamEndCapture(self._handle, ctypes.byref(graph))
            if graph:
                release("cuGraphDestroy", graph)
            raise
        call("cuStreamEndCapture", self._handle, ctypes.byref(graph))
        try:
            executable = _HANDLE()
            call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
        finally:
            release("cuGraphDestroy", graph)
        return DriverGraph(executable, self._handle)

    def event(self) -> DriverEvent:
        """Mark the moment at which all work so far is done."""
        return DriverEvent(self._handle)

    def synchronize(self) -> None:
        """Wait until all work is done."""
        call("cuStreamSynchronize", self._handle)

    def close(self) -> None:
        """Give back what was made here; the stream goes with its owner."""
        if self._order is not None:
            release("cuEventDestroy_v2", self._order)
        self._order = self._owner = None
