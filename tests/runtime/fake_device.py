# SPDX-License-Identifier: Apache-2.0
"""A GPU in host memory, for tests of the runner.

It writes down what is asked of it, and refuses what a real one would answer with a crash, a wrong
result or nothing at all: memory that is not its own, memory given back that work still uses, calls
while it is not the active device. Work on a stream waits, as on a GPU, until it is synchronized.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from stormrt.errors import InputError

_handles = itertools.count(0x1000)


class FakeDevice:
    """A GPU; ``calls`` is what was asked of it and of the TensorRT that runs on it."""

    def __init__(self, sm: int = 75) -> None:
        self.name = "A GPU"
        self.sm = sm
        self.calls: list[str] = []
        self.memory: dict[int, np.ndarray] = {}
        self.live: set[str] = set()
        """What was reserved and not given back."""
        self.streams: dict[int, FakeStream] = {}
        self.fail_at: int | None = None
        """Number of the reservation that there is no room for."""
        self._depth = 0
        self.reserved = 0
        self._names = itertools.count()

    @contextmanager
    def active(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def require_active(self) -> None:
        assert self._depth > 0, "called while the device was not the active one"

    def reserve(self, what: str) -> str:
        """Count a thing that must be given back."""
        self.require_active()
        self.reserved += 1
        if self.reserved - 1 == self.fail_at:
            raise InputError(f"there is no room for {what}")
        name = f"{what} {next(self._names)}"
        self.live.add(name)
        return name

    def release(self, name: str) -> None:
        self.require_active()
        self.live.remove(name)

    def idle(self) -> bool:
        return not any(stream.pending for stream in self.streams.values())

    def put(self, array: np.ndarray) -> int:
        """Device memory that somebody else owns."""
        kept = np.ascontiguousarray(array).view(np.uint8).reshape(-1).copy()
        self.memory[kept.ctypes.data] = kept
        return kept.ctypes.data

    def check(self, pointer: int, size: int) -> None:
        """Refuse addresses that are not in one allocation."""
        for start, array in self.memory.items():
            if start <= pointer and pointer + size <= start + array.nbytes:
                return
        raise AssertionError(f"{size} bytes at {pointer:#x} are in no allocation")

    def read(self, pointer: int, shape: tuple[int, ...]) -> np.ndarray:
        out = np.empty(shape, np.float32)
        self.check(pointer, out.nbytes)
        ctypes.memmove(out.ctypes.data, pointer, out.nbytes)
        return out

    def write(self, pointer: int, array: np.ndarray) -> None:
        kept = np.ascontiguousarray(array, np.float32)
        self.check(pointer, kept.nbytes)
        ctypes.memmove(pointer, kept.ctypes.data, kept.nbytes)

    def allocate(self, size_bytes: int) -> FakeBuffer:
        return FakeBuffer(self, size_bytes)

    def pinned(self, shape: tuple[int, ...]) -> FakePinned:
        return FakePinned(self, shape)

    def stream(self, handle: int | None = None) -> FakeStream:
        self.require_active()
        return FakeStream(self, handle)


class FakeBuffer:
    def __init__(self, device: FakeDevice, size_bytes: int) -> None:
        self._device = device
        self._name = device.reserve(f"{size_bytes} bytes")
        self._array = np.full(size_bytes, 0xCC, np.uint8)
        self.ptr = self._array.ctypes.data
        device.memory[self.ptr] = self._array

    def free(self) -> None:
        assert self._device.idle(), "memory is given back that work still uses"
        del self._device.memory[self.ptr]
        self._device.release(self._name)


class FakePinned:
    def __init__(self, device: FakeDevice, shape: tuple[int, ...]) -> None:
        self._device = device
        self._name = device.reserve("pinned")
        self.array = np.full(shape, np.nan, np.float32)

    def free(self) -> None:
        assert self._device.idle(), "memory is given back that work still uses"
        self.array.fill(np.nan)  # who kept a view of it sees it
        self._device.release(self._name)


class FakeEvent:
    def __init__(self, stream: FakeStream) -> None:
        self._name = stream.device.reserve("event")
        self._stream = stream
        self.at = float("nan")
        stream.add(self._record)

    def _record(self) -> None:
        self.at = self._stream.clock_ms

    def ms_since(self, earlier: FakeEvent) -> float:
        self._stream.run()
        return self.at - earlier.at

    def free(self) -> None:
        self._stream.device.release(self._name)


class FakeGraph:
    def __init__(self, stream: FakeStream, work: list[Callable[[], None]]) -> None:
        self._stream = stream
        self._work = work
        self._name = stream.device.reserve("graph")

    def launch(self) -> None:
        self._stream.device.calls.append("launch graph")
        for item in self._work:
            self._stream.add(item)

    def free(self) -> None:
        assert self._stream.device.idle()
        self._stream.device.release(self._name)


class FakeStream:
    def __init__(self, device: FakeDevice, handle: int | None) -> None:
        self.device = device
        self.handle = next(_handles) if handle is None else handle
        self.pending: list[Callable[[], None]] = []
        self.capturing: list[Callable[[], None]] | None = None
        self.clock_ms = 0.0
        self.is_own = handle is None
        self._name = device.reserve("own stream" if self.is_own else "stream")
        device.streams[self.handle] = self

    def add(self, work: Callable[[], None]) -> None:
        """Enqueue, or record."""
        (self.pending if self.capturing is None else self.capturing).append(work)

    def run(self) -> None:
        """Do what is pending."""
        pending, self.pending = self.pending, []
        for work in pending:
            work()

    def copy_in(self, to: int, source: np.ndarray) -> None:
        assert source.flags.c_contiguous
        self.device.require_active()
        self.device.calls.append(f"copy in {source.shape}")
        self.add(lambda: self.device.write(to, source))

    def copy_out(self, to: np.ndarray, source: int) -> None:
        assert to.flags.c_contiguous
        self.device.require_active()
        self.device.calls.append(f"copy out {to.shape}")
        self.add(lambda: to.__setitem__(..., self.device.read(source, to.shape)))

    def copy(self, to: int, source: int, size_bytes: int) -> None:
        self.device.require_active()
        self.device.calls.append(f"copy {size_bytes}")
        count = (size_bytes // 4,)
        self.add(lambda: self.device.write(to, self.device.read(source, count)))

    def wait_for(self, handle: int) -> None:
        self.device.require_active()
        self.device.calls.append(f"wait for {handle}")

    def capture(self, work: Callable[[], None]) -> FakeGraph:
        self.device.require_active()
        self.device.calls.append("capture")
        self.capturing = []
        try:
            work()
            recorded = self.capturing
        finally:
            self.capturing = None
        return FakeGraph(self, recorded)

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def synchronize(self) -> None:
        self.device.require_active()
        self.device.calls.append("synchronize")
        self.run()

    def close(self) -> None:
        self.device.release(self._name)
