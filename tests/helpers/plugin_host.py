# SPDX-License-Identifier: Apache-2.0
"""Plugins in this process, driven as TensorRT drives them: ``plugin_session.cpp`` through ctypes.

An engine holds a plugin that was made again of its serialised fields; each execution context has
one of its own, attached, which is told shapes and enqueued on a stream.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stormrt.plugins.spec import PluginSpec
from stormrt.plugins.toolchain import Toolchain
from tests.helpers.native import NATIVE, compile_cpp

DATA_TYPES = {"float32": 0, "float16": 1, "int32": 3}
"""nvinfer1::DataType's numbers."""

_RANK = 8


class _Extents(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("least", ctypes.c_int64 * _RANK),
        ("most", ctypes.c_int64 * _RANK),
    ]


@dataclass(frozen=True)
class Extents:
    """A tensor's type, and its extents at least and at most."""

    dtype: str
    least: tuple[int, ...]
    most: tuple[int, ...]


class PluginHost:
    """The host, compiled as a library.

    Args:
        tools: What it is compiled with.
        out: A folder for it.
    """

    def __init__(self, tools: Toolchain, out: Path) -> None:
        source, built = NATIVE / "plugin_session.cpp", out / "libplugin_session.so"
        compile_cpp(tools, source, built, headers=tools.headers.folder, shared=True)
        self.api = ctypes.CDLL(str(built))
        pointer, number, tensors = ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(_Extents)
        text, pointers = ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)
        for name, result, arguments in (
            ("open", pointer, (text, text, tensors, number, number)),
            ("attach", pointer, (pointer,)),
            ("shape", number, (pointer, tensors, number, number)),
            ("enqueue", number, (pointer, pointers, pointers, pointer)),
            ("detach", None, (pointer,)),
            ("close", None, (pointer,)),
        ):
            function = getattr(self.api, f"plugin_host_{name}")
            function.restype, function.argtypes = result, arguments

    def open(self, core: Path, spec: PluginSpec, tensors: Sequence[Extents]) -> HostedPlugin:
        """Build an operator's plugin for these tensors, and keep what an engine would."""
        inputs = len(spec.inputs)
        handle = self.api.plugin_host_open(
            str(core).encode(), spec.name.encode(), _array(tensors), inputs, len(tensors)
        )
        assert handle, "the plugin host says why on stderr"
        return HostedPlugin(self.api, handle, inputs)


class HostedPlugin:
    """A plugin as an engine holds it."""

    def __init__(self, api: ctypes.CDLL, handle: int, inputs: int) -> None:
        self._api, self._handle, self._inputs = api, handle, inputs

    def attach(self) -> Session:
        """The plugin of a new execution context."""
        handle = self._api.plugin_host_attach(self._handle)
        assert handle
        return Session(self._api, handle, self._inputs)

    def __del__(self) -> None:
        self._api.plugin_host_close(self._handle)


class Session:
    """A plugin in an execution context."""

    def __init__(self, api: ctypes.CDLL, handle: int, inputs: int) -> None:
        self._api, self._handle, self._inputs = api, handle, inputs

    def set_shapes(self, tensors: Sequence[Extents], tactic: int = 0) -> None:
        """Tell it the shapes (``most``) of what it will be enqueued with, and a tactic."""
        status = self._api.plugin_host_shape(self._handle, _array(tensors), len(tensors), tactic)
        assert status == 0, "the plugin host says why on stderr"

    def enqueue(self, addresses: Sequence[int], stream: int) -> bool:
        """Enqueue it on inputs and outputs at these addresses."""
        inputs, outputs = (
            (ctypes.c_void_p * len(part))(*part)
            for part in (addresses[: self._inputs], addresses[self._inputs :])
        )
        return self._api.plugin_host_enqueue(self._handle, inputs, outputs, stream) == 0

    def __del__(self) -> None:
        self._api.plugin_host_detach(self._handle)


def _array(tensors: Sequence[Extents]) -> ctypes.Array:
    result = (_Extents * len(tensors))()
    for slot, tensor in zip(result, tensors, strict=True):
        slot.type, slot.rank = DATA_TYPES[tensor.dtype], len(tensor.most)
        slot.least[: slot.rank], slot.most[: slot.rank] = tensor.least, tensor.most
    return result
