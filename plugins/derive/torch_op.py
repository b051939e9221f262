# SPDX-License-Identifier: Apache-2.0
"""``PluginSpec`` -> PyTorch operator: signature, fake kernel, and checks of shapes and types."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.library import CustomOpDef  # type: ignore[attr-defined]  # public, not in __all__

from stormrt.errors import InputError
from stormrt.plugins.spec import PluginSpec


def define(spec: PluginSpec, implementation: Callable[..., torch.Tensor]) -> CustomOpDef:
    """Define ``torch.ops.stormrt.<torch_name>`` with one tensor output.

    The implementation is called with contiguous-or-not tensors whose shapes and types have been
    checked against the spec, so that every backend refuses the same inputs with the same words.

    Args:
        spec: The contract.
        implementation: Eager implementation, run for every device without a kernel of its own.

    Returns:
        The operator, ready for ``register_autograd`` and ``register_kernel``.
    """

    def checked(*tensors: torch.Tensor) -> torch.Tensor:
        _check_dtypes(spec, tensors)
        spec.bind([t.shape for t in tensors])
        return implementation(*tensors)

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
