# SPDX-License-Identifier: Apache-2.0
"""``PluginSpec`` -> PyTorch operator: signature, fake kernel, and checks of shapes and types."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch.library import CustomOpDef  # type: ignore[attr-defined]  # public, not in __all__

from stormrt.errors import InputError
from stormrt.plugins.native import (
    LIBRARY_VARIABLE,
    DeviceTensor,
    NativeLibrary,
    library_path,
    load_library,
)
from stormrt.plugins.spec import PluginSpec


def define(spec: PluginSpec, implementation: Callable[..., torch.Tensor]) -> CustomOpDef:
    """Define ``torch.ops.stormrt.<torch_name>`` with one tensor output.

    The implementation is called with contiguous-or-not tensors whose shapes and types have been
    checked against the spec, so that every backend refuses the same inputs with the same words.

    Args:
        spec: The contract.
        implementation: Eager implementation, run on every device. On a GPU the plugin library's
            kernel runs instead, where ``STORMRT_PLUGIN_LIB`` names a library and the type is one
            of the contract's; it is the very kernel that TensorRT runs.

    Returns:
        The operator, ready for ``register_autograd`` and ``register_kernel``.
    """

    def checked(*tensors: torch.Tensor) -> torch.Tensor:
        _check_dtypes(spec, tensors)
        bound = spec.bind([t.shape for t in tensors])
        library = _native_library(spec, tensors)
        if library is None:
            return implementation(*tensors)
        (shape,) = spec.output_shapes(bound)
        return _run_native(library, spec, tensors, shape)

    def fake(*tensors: torch.Tensor) -> torch.Tensor:
        _check_dtypes(spec, tensors)
        bound = spec.bind([t.shape for t in tensors])
        (shape,) = spec.output_shapes(bound)
        return tensors[0].new_empty(shape)

    arguments = ", ".join(f"Tensor {t.name}" for t in spec.inputs)
    op = torch.library.custom_op(
        spec.qualified_name, checked, mutates_args=(), schema=f"({arguments}) -> Tensor"
    )
    op.register_fake(fake)
    return op


def _native_library(spec: PluginSpec, tensors: tuple[torch.Tensor, ...]) -> NativeLibrary | None:
    """The plugin library, for tensors on a GPU of a type that it has kernels for."""
    if not tensors[0].is_cuda or tensors[0].dtype == torch.float64:
        return None
    if LIBRARY_VARIABLE not in os.environ:
        return None
    return load_library(library_path())


def _run_native(
    library: NativeLibrary,
    spec: PluginSpec,
    tensors: tuple[torch.Tensor, ...],
    shape: list[int],
) -> torch.Tensor:
    inputs = [t.contiguous() for t in tensors]
    y = torch.empty(shape, dtype=tensors[0].dtype, device=tensors[0].device)
    with torch.cuda.device(y.device):
        library.launch(
            spec,
            [DeviceTensor(t.data_ptr(), tuple(t.shape)) for t in inputs],
            [DeviceTensor(y.data_ptr(), tuple(y.shape))],
            io_dtype="float16" if y.dtype == torch.float16 else "float32",
            stream=torch.cuda.current_stream().cuda_stream,
        )
    return y


def _check_dtypes(spec: PluginSpec, tensors: tuple[torch.Tensor, ...]) -> None:
    io_dtype: torch.dtype | None = None
    # float64 is taken in eager mode, where gradients are checked against finite differences.
    allowed = {torch.float64, *(getattr(torch, name) for name in spec.io_dtypes)}
    for declared, tensor in zip(spec.inputs, tensors, strict=True):
        if declared.dtype == "T":
            io_dtype = io_dtype or tensor.dtype
            fits = tensor.dtype == io_dtype and tensor.dtype in allowed
            expected = str(io_dtype) if io_dtype in allowed else " or ".join(spec.io_dtypes)
        else:
            fits = tensor.dtype == getattr(torch, declared.dtype) or (
                declared.dtype == "float32" and tensor.dtype == torch.float64
            )
            expected = declared.dtype
        if not fits:
            raise InputError(
                f"{spec.name}: input {declared.name!r} has the wrong type",
                got=str(tensor.dtype),
                expected=expected,
            )
