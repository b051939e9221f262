# SPDX-License-Identifier: Apache-2.0
"""Golden data: reading it, and cutting it into batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stormrt.errors import InputError
from stormrt.pipeline.device.names import INPUT_NAME, OUTPUT_NAME
from stormrt.pipeline.npz_file import read_npz


def read_golden(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[str, ...]]:
    """Read ``images`` [n, 3, H, W], ``logits`` [n, classes] and the sources' names.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        data, _ = read_npz(path)
        return (
            np.asarray(data[INPUT_NAME], np.float32),
            np.asarray(data[OUTPUT_NAME], np.float32),
            tuple(str(name) for name in data["sources"]),
        )
    except Exception as error:  # zipfile and numpy raise many kinds on bad bytes
        raise InputError(
            "the golden data could not be read",
            where=str(path),
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="build the bundle again",
        ) from error


def batches(images: NDArray[np.float32], batch: int) -> list[tuple[NDArray[np.float32], int]]:
    """Cut images [n, ...] into batches of a fixed size, the last one filled up with its last image.

    Returns:
        Pairs of a batch and how many of its images count.
    """
    cut = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        count = len(part)
        if count < batch:
            part = np.concatenate([part, np.repeat(part[-1:], batch - count, axis=0)])
        cut.append((part, count))
    return cut
