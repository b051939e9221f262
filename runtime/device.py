# SPDX-License-Identifier: Apache-2.0
"""What the runner needs of a GPU: memory, a stream, graphs. Small, so that another can stand in.

``pycuda_device.PycudaDevice`` is the real one. Tests have one in host memory, which writes down
what is asked of it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Buffer(Protocol):
    """Memory on the device."""

    @property
    def ptr(self) -> int:
        """Its address, aligned to 256 bytes at least."""

    def free(self) -> None:
        """Give it back. The work that uses it must be done."""


class PinnedArray(Protocol):
    """Page-locked host memory, which the device copies from and to without the CPU."""

    @property
    def array(self) -> NDArray[np.float32]:
        """The memory. Not to be used after ``free``."""

    def free(self) -> None:
        """Give it back. The work that uses it must be done."""


class Graph(Protocol):
    """Work that was recorded once and is launched as one."""

    def launch(self) -> None:
        """Enqueue it on the stream that it was recorded on."""

    def free(self) -> None:
        """Give it back. Its launches must be done."""


class Event(Protocol):
    """A moment on a stream."""

    def ms_since(self, earlier: Event) -> float:
        """Milliseconds of the device's clock between two moments; waits for this one."""

    def free(self) -> None:
        """Give it back."""


class Stream(Protocol):
    """Work in order. Everything here but ``synchronize`` returns at once."""

    @property
    def handle(self) -> int:
        """The ``cudaStream_t`` as a number."""

    def copy_in(self, to: int, source: NDArray[np.float32]) -> None:
        """Copy a contiguous array to the device."""

    def copy_out(self, to: NDArray[np.float32], source: int) -> None:
        """Copy from the device into a contiguous array."""

    def copy(self, to: int, source: int, size_bytes: int) -> None:
        """Copy within the device."""

    def wait_for(self, handle: int) -> None:
        """Start what comes next after what another stream has been given so far."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` enqueues here, without running it."""

    def event(self) -> Event:
        """Mark the moment at which all work so far is done."""

    def synchronize(self) -> None:
        """Wait until all work is done."""

    def close(self) -> None:
        """Give back what was made for the stream; the stream itself only if it was made here."""


class Device(Protocol):
    """A GPU. Everything but ``name`` and ``sm`` is called inside ``active``."""

    @property
    def name(self) -> str:
        """The driver's name for it."""

    @property
    def sm(self) -> int:
        """Compute capability times ten."""

    def active(self) -> AbstractContextManager[None]:
        """Make it the one that CUDA uses in this thread, until the context ends."""

    def allocate(self, size_bytes: int) -> Buffer:
        """Reserve memory on the device."""

    def pinned(self, shape: tuple[int, ...]) -> PinnedArray:
        """Reserve page-locked host memory for FP32 numbers."""

    def stream(self, handle: int | None = None) -> Stream:
        """Make a stream, or take one that the caller has made and keeps alive."""
