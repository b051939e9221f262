# SPDX-License-Identifier: Apache-2.0
"""Images that are in device memory already, however their owner tells of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, SupportsInt, cast

import numpy as np
from numpy.typing import DTypeLike

from stormrt.errors import InputError

LEGACY_STREAM = 1
"""CUDA's default stream by its handle (``CU_STREAM_LEGACY`` in cuda.h)."""


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """A contiguous array in device memory.

    PyTorch's tensors, CuPy's and pycuda's arrays need no wrapping. This is for a bare pointer:
    ``DeviceArray(pointer, (1, 3, 224, 224))``.
    """

    ptr: int
    """Its address."""
    shape: tuple[int, ...]
    dtype: DTypeLike = np.float32
    stream: int | None = LEGACY_STREAM
    """The stream that writes it, which is waited for; None: it is there already."""

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class _Held(Protocol):
    ptr: SupportsInt
    shape: Sequence[int]
    dtype: DTypeLike


def device_array(images: object) -> DeviceArray | None:
    """Read where an array is in device memory.

    Args:
        images: Something with ``__cuda_array_interface__`` (version 2 or 3), or with ``ptr``,
            ``shape`` and ``dtype``.

    Returns:
        The array; None for what is in host memory.

    Raises:
        InputError: It is not contiguous.
    """
    if isinstance(images, DeviceArray):
        return images
    interface = getattr(images, "__cuda_array_interface__", None)
    if interface is not None:
        return _from_interface(interface)
    if hasattr(images, "ptr") and not isinstance(images, np.ndarray):
        missing = [name for name in ("shape", "dtype") if not hasattr(images, name)]
        if missing:
            raise InputError(
                "an object with a device pointer does not say what is there",
                got=f"{type(images).__name__} without {' and '.join(missing)}",
                fix="wrap the pointer: DeviceArray(ptr, shape, dtype)",
            )
        held = cast("_Held", images)
        return DeviceArray(int(held.ptr), tuple(held.shape), np.dtype(held.dtype))
    return None


def _from_interface(interface: Mapping[str, object]) -> DeviceArray:
    # https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
    shape = tuple(cast("tuple[int, ...]", interface["shape"]))
    dtype = np.dtype(cast("str", interface["typestr"]))
    strides = cast("tuple[int, ...] | None", interface.get("strides"))
    if strides is not None and not _is_contiguous(shape, strides, dtype.itemsize):
        raise InputError(
            "the images in device memory are not contiguous",
            got=f"shape {shape}, strides {strides}",
            fix="give a contiguous copy (PyTorch: images.contiguous())",
        )
    pointer, _read_only = cast("tuple[int, bool]", interface["data"])
    # Version 2 has no streams. PyTorch, which exports it, works on the default one unless told.
    stream = cast("int | None", interface.get("stream", LEGACY_STREAM))
    return DeviceArray(pointer, shape, dtype, stream)


def _is_contiguous(shape: Sequence[int], strides: Sequence[int], item_bytes: int) -> bool:
    expected = item_bytes
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != expected:  # nobody strides along a single element
            return False
        expected *= extent
    return True


def stream_handle(stream: object) -> int:
    """The ``cudaStream_t`` of a stream, as a number.

    Args:
        stream: The number itself, or a stream of pycuda, PyTorch, CuPy or cuda.core.

    Raises:
        InputError: It is none of them.
    """
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        # cuda.core's protocol: (version, handle), a method since 0.2 and a property before.
        _version, handle = protocol() if callable(protocol) else protocol
        return int(handle)
    for name in ("handle", "cuda_stream", "ptr"):  # pycuda, PyTorch, CuPy
        if hasattr(stream, name):
            return int(getattr(stream, name))
    raise InputError(
        "that is no CUDA stream",
        got=type(stream).__name__,
        expected="a stream of pycuda, PyTorch or CuPy, or a cudaStream_t as a number",
    )
