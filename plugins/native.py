# SPDX-License-Identifier: Apache-2.0
"""The plugin library without TensorRT, through ctypes: ``plugins/common/c_api.h`` in Python.

PyTorch's CUDA operators, tests and benchmarks run the kernels through this. A library is taken
only if it was built from the contracts that this Python has: tensors travel as bare pointers, and
a library of an older contract would read the wrong ones.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.plugins.derive.cpp_header import contract_digest, native_plugins
from stormrt.plugins.spec import DType, PluginSpec

LIBRARY_VARIABLE = "STORMRT_PLUGIN_LIB"
"""Environment variable with the path of the plugin library."""
ABI_VERSION = 1
"""STORMRT_ABI_VERSION in ``common/c_api.h``."""

_MAX_RANK = 8
_MESSAGE_SIZE = 512
_REBUILD = "stormrt plugins build"
_IO_TYPES: dict[DType, int] = {"float32": 0, "float16": 1}


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("extents", ctypes.c_int64 * _MAX_RANK),
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        ("op", ctypes.c_char_p),
        ("inputs", ctypes.POINTER(_Tensor)),
        ("outputs", ctypes.POINTER(_Tensor)),
        ("input_count", ctypes.c_int32),
        ("output_count", ctypes.c_int32),
        ("io_type", ctypes.c_int32),
        ("tactic", ctypes.c_int32),
        ("stream", ctypes.c_void_p),
    ]


@dataclass(frozen=True, slots=True)
class DeviceTensor:
    """A contiguous tensor in device memory: ``DeviceTensor(t.data_ptr(), tuple(t.shape))``."""

    pointer: int
    shape: tuple[int, ...]


class NativeLibrary:
    """A plugin library that has been opened and fits this Python.

    Args:
        path: ``libstormrt_plugins.so``.

    Raises:
        InputError: It is not there, is no plugin library, or does not fit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError(
                "the plugin library does not exist", where=str(path), fix=f"run {_REBUILD}"
            )
        try:
            self._library = ctypes.CDLL(str(path.resolve()))
            abi = self._library.stormrt_abi_version
            info = self._library.stormrt_build_info
            self._launch = self._library.stormrt_launch
            self._count_tactics = self._library.stormrt_count_tactics
        except (OSError, AttributeError) as error:
            raise InputError(
                "the file is no plugin library, or is one for another machine",
                where=str(path),
                got=str(error),
                fix=f"build it here: {_REBUILD}",
            ) from error
        if abi() != ABI_VERSION:
            raise InputError(
                "the plugin library is of another version",
                where=str(path),
                got=f"interface {abi()}",
                expected=f"interface {ABI_VERSION}",
                fix=f"build it again: {_REBUILD}",
            )
        info.restype = ctypes.c_char_p
        self.build_info: dict[str, Any] = json.loads(info().decode())
        """What the library was built from: archs, contracts, versions."""
        for function in (self._launch, self._count_tactics):
            function.argtypes = [ctypes.POINTER(_Call), ctypes.c_char_p, ctypes.c_int64]

    def contract_mismatches(self) -> tuple[str, ...]:
        """Operators that the library lacks, or has with another contract than this Python's."""
        built: dict[str, dict[str, str]] = self.build_info["plugins"]["operators"]
        return tuple(
            spec.name
            for spec in native_plugins()
            if built.get(spec.name, {}).get("contract") != contract_digest(spec)
        )

    def launch(
        self,
        spec: PluginSpec,
        inputs: Sequence[DeviceTensor],
        outputs: Sequence[DeviceTensor],
        *,
        io_dtype: DType,
        stream: int,
        tactic: int = 0,
    ) -> None:
        """Enqueue one call of an operator on a stream, and return at once.

        The memory must stay alive until the stream has done it (PyTorch's allocator sees to that
        for tensors of the current stream). The device of the stream must be the current one.

        Args:
            spec: The operator.
            inputs: In the order of ``spec.inputs``, of the types that it declares.
            outputs: Allocated by the caller, in the order of ``spec.outputs``.
            io_dtype: The type of the tensors that are declared as ``"T"``.
            stream: A ``cudaStream_t`` as a number, ``torch.cuda.current_stream().cuda_stream``.
            tactic: One of ``1 .. count_tactics``, or 0 for the operator's default.

        Raises:
            InputError: Shapes or type do not fit the contract, or CUDA refuses the launch.
        """
        call, message = self._call(spec, inputs, outputs, io_dtype, tactic, stream)
        status = self._launch(ctypes.byref(call), message, _MESSAGE_SIZE)
        if status != 0:
            raise _refused(spec, message, status)

    def count_tactics(
        self,
        spec: PluginSpec,
        inputs: Sequence[tuple[int, ...]],
        outputs: Sequence[tuple[int, ...]],
        *,
        io_dtype: DType,
    ) -> int:
        """The number of tactics that can run some shapes; 0 where there is no choice.

        Raises:
            InputError: Shapes or type do not fit the contract.
        """
        no_data = [[DeviceTensor(0, shape) for shape in group] for group in (inputs, outputs)]
        call, message = self._call(spec, no_data[0], no_data[1], io_dtype, 0, 0)
        count: int = self._count_tactics(ctypes.byref(call), message, _MESSAGE_SIZE)
        if count < 0:
            raise _refused(spec, message, count)
        return count

    @staticmethod
    def _call(
        spec: PluginSpec,
        inputs: Sequence[DeviceTensor],
        outputs: Sequence[DeviceTensor],
        io_dtype: DType,
        tactic: int,
        stream: int,
    ) -> tuple[_Call, ctypes.Array[ctypes.c_char]]:
        def array(tensors: Sequence[DeviceTensor]) -> ctypes.Array[_Tensor]:
            result = (_Tensor * len(tensors))()
            for slot, tensor in zip(result, tensors, strict=True):
                if len(tensor.shape) > _MAX_RANK:
                    raise InputError(f"{spec.name}: a tensor of rank {len(tensor.shape)}")
                slot.data, slot.rank = tensor.pointer, len(tensor.shape)
                slot.extents[: len(tensor.shape)] = tensor.shape
            return result

        call = _Call(
            op=spec.name.encode(),
            inputs=array(inputs),
            outputs=array(outputs),
            input_count=len(inputs),
            output_count=len(outputs),
            io_type=_IO_TYPES.get(io_dtype, -1),
            tactic=tactic,
            stream=stream,
        )
        return call, ctypes.create_string_buffer(_MESSAGE_SIZE)


def _refused(spec: PluginSpec, message: ctypes.Array[ctypes.c_char], status: int) -> InputError:
    reason = message.value.decode(errors="replace")
    if status < 0:
        return InputError(f"{spec.name}: {reason}")
    return InputError(f"{spec.name}: CUDA did not take the launch", got=f"{reason} ({status})")


def library_path() -> Path:
    """The plugin library that ``STORMRT_PLUGIN_LIB`` names.

    Raises:
        EnvironmentMissingError: The variable is not set.
    """
    named = os.environ.get(LIBRARY_VARIABLE)
    if not named:
        raise EnvironmentMissingError(
            "no plugin library is named",
            where=f"environment variable {LIBRARY_VARIABLE}",
            fix=f"run {_REBUILD} and set it to the path of libstormrt_plugins.so",
        )
    return Path(named)


@cache
def load_library(path: Path) -> NativeLibrary:
    """Open a library, once a path, and check that its contracts are this Python's.

    Raises:
        InputError: It is not there, is no plugin library, or has other contracts.
    """
    library = NativeLibrary(path)
    mismatches = library.contract_mismatches()
    if mismatches:
        raise InputError(
            "the plugin library was built from other contracts than these sources have",
            where=str(path),
            got=", ".join(mismatches),
            fix=f"build it again: {_REBUILD}",
        )
    return library
