# SPDX-License-Identifier: Apache-2.0
"""A test set, decoded once, normalised, on the device."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.training.data import normalise
from stormrt.errors import InputError
from stormrt.pipeline.datasets import open_dataset, spread


@dataclass(frozen=True)
class TestSet:
    """Images of one size, and their classes."""

    images: Tensor
    """[n, 3, side, side], normalised, in the model's type."""
    labels: Tensor
    """[n], int64."""
    classes: int


def load_test_set(
    path: Path, side: int, device: torch.device, dtype: torch.dtype, limit: int | None = None
) -> TestSet:
    """Decode the test split of an npz, or a folder.

    Args:
        path: See ``stormrt.pipeline.datasets``.
        side: Of every image in pixels: nothing is resized.
        device: Where the images are to be.
        dtype: FP32 or FP16.
        limit: At most so many images, spread over all.

    Raises:
        InputError: The data are bad, or an image has another size.
    """
    data = open_dataset(path)
    chosen = list(spread(len(data), limit))
    pixels = np.empty((len(chosen), side, side, 3), np.uint8)

    def decode(row: int) -> None:
        source = data.source(chosen[row])
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            decoded = np.asarray(image.convert("RGB"))
        if decoded.shape != (side, side, 3):
            raise InputError(
                "an image has another size than the model's input",
                where=f"{data.where}, {data.name(chosen[row])}",
                got=f"{decoded.shape[1]}x{decoded.shape[0]} pixels",
                expected=f"{side}x{side}",
            )
        pixels[row] = decoded

    # Pillow decodes without the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode, range(len(chosen)), chunksize=64):
            pass
    raw = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
    # In parts: in FP32 all at once would take several times the memory of the result.
    parts = [normalise(part.float() / 255.0).to(dtype) for part in raw.split(1000)]
    labels = torch.tensor([data.label(index) for index in chosen], device=device)
    return TestSet(torch.cat(parts).contiguous(), labels, len(data.classes))
