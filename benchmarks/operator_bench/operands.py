# SPDX-License-Identifier: Apache-2.0
"""Random operands, the library's kernel as a call, and the sizes that are measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from stormrt.plugins.native import LIBRARY_VARIABLE, DeviceTensor, library_path, load_library
from stormrt.plugins.selective_scan_2d import SPEC as SCAN

Shape = tuple[int, int, int, int]
"""B, D, H, W."""

REGIMES = {"init": (-4.0, 0.5), "mid": (-1.5, 1.0), "hot": (0.3, 1.8)}
"""Mean of dt's bias, and deviation of dt: step sizes of about 0.02, 0.3 and 1.2."""
TIMED: tuple[Shape, ...] = (
    (16, 96, 56, 56), (16, 192, 28, 28), (16, 384, 14, 14), (16, 768, 7, 7), (16, 96, 128, 128),
    (64, 96, 56, 56), (1, 96, 56, 56), (1, 192, 28, 28), (1, 384, 14, 14), (1, 768, 7, 7),
    (16, 96, 48, 48), (16, 192, 24, 24), (16, 384, 12, 12), (16, 768, 6, 6),
)  # fmt: skip
LIMITS = {torch.float32: 1e-5, torch.float16: 1e-3}
"""Largest relative L2 against FP64 that is right."""


def scan_inputs(
    batch: int, channels: int, height: int, width: int, state: int, regime: str,
    dtype: torch.dtype, generator: torch.Generator,
) -> list[Tensor]:  # fmt: skip
    """Random operands of one scan, in the order of its contract, on the generator's device."""
    mean, deviation = REGIMES[regime]
    device = generator.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator)

    size = (height, width)
    maps = [
        normal(batch, channels, *size),
        normal(batch, 4 * channels, *size) * deviation,
        normal(batch, 4 * state, *size),
        normal(batch, 4 * state, *size),
    ]
    a = -(torch.rand(4 * channels, state, device=device, generator=generator) * 2.7 + 0.3)
    bias = normal(4 * channels) * 0.5 + mean
    return [*(m.to(dtype) for m in maps), a, normal(4 * channels), bias]


def launch(tensors: list[Tensor], y: Tensor, tactic: int = 0) -> None:
    """One call of the library's scan into a given output."""
    load_library(library_path()).launch(
        SCAN,
        [DeviceTensor(t.data_ptr(), tuple(t.shape)) for t in tensors],
        [DeviceTensor(y.data_ptr(), tuple(y.shape))],
        io_dtype="float16" if y.dtype == torch.float16 else "float32",
        stream=torch.cuda.current_stream().cuda_stream,
        tactic=tactic,
    )


def count_tactics(tensors: list[Tensor], y: Tensor) -> int:
    """Tactics that the library offers for some operands."""
    return load_library(library_path()).count_tactics(
        SCAN,
        [tuple(t.shape) for t in tensors],
        [tuple(y.shape)],
        io_dtype="float16" if y.dtype == torch.float16 else "float32",
    )


@contextmanager
def without_library() -> Iterator[None]:
    """PyTorch's own operations instead of the library's kernels, inside."""
    library = os.environ.pop(LIBRARY_VARIABLE, None)
    try:
        yield
    finally:
        if library is not None:
            os.environ[LIBRARY_VARIABLE] = library


def relative_l2(y: Tensor, reference: Tensor) -> float:
    """Relative L2 in FP64; NaN where y has NaN."""
    return float((y.double() - reference).norm() / reference.norm())


def total_bytes(tensors: list[Tensor]) -> int:
    """Bytes of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)
