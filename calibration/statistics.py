# SPDX-License-Identifier: Apache-2.0
"""What is kept of a graph's tensors over the images, and its file.

Everything adds up: two machines, or two runs of which the first was killed, can share the images
and merge what they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stormrt.calibration.histogram import BINS, Histogram
from stormrt.pipeline.files import atomic_path
from stormrt.pipeline.npz_file import read_npz


class NotFiniteError(ValueError):
    """A tensor holds NaN or infinity.

    Args:
        channel: The first channel that does.
    """

    def __init__(self, channel: int) -> None:
        self.channel = channel
        super().__init__(f"channel {channel} is not finite")


@dataclass(slots=True)
class TensorStatistics:
    """What is kept of one tensor [B, C, ...], whose axis 1 has the channels."""

    histogram: Histogram
    channel_largest: NDArray[np.float32]
    """[C] largest |x|."""
    channel_sum: NDArray[np.float64]
    """[C] sum of x."""
    positions: int = 0
    """How many values each channel had."""

    @classmethod
    def empty(cls, channels: int) -> TensorStatistics:
        """Before anything was seen of a tensor with C channels."""
        return cls(Histogram(), np.zeros(channels, np.float32), np.zeros(channels))

    @property
    def largest(self) -> float:
        """Largest |x|."""
        return float(self.channel_largest.max())

    @property
    def mean(self) -> NDArray[np.float64]:
        """[C] mean of x; zeros before anything was seen."""
        return self.channel_sum / max(1, self.positions)

    def observe(self, values: NDArray[np.float32]) -> None:
        """Take in [B, C, ...], FP32.

        Raises:
            NotFiniteError: A value is NaN or infinite; nothing of the tensor was taken in.
        """
        inner = tuple(range(2, values.ndim))
        magnitudes = np.abs(values)
        largest = magnitudes.max(axis=(0, *inner))
        finite = np.isfinite(largest)
        if not finite.all():
            raise NotFiniteError(int(finite.argmin()))
        np.maximum(self.channel_largest, largest, out=self.channel_largest)
        # Image by image, so that the sum does not depend on the batch that an image came in.
        for image in values.sum(axis=inner, dtype=np.float64):
            self.channel_sum += image
        self.positions += values.size // values.shape[1]
        self.histogram.observe(magnitudes, float(largest.max()))

    def merge(self, other: TensorStatistics) -> None:
        """Add what was seen elsewhere of the same tensor."""
        np.maximum(self.channel_largest, other.channel_largest, out=self.channel_largest)
        self.channel_sum += other.channel_sum
        self.positions += other.positions
        self.histogram.merge(other.histogram)


@dataclass(slots=True)
class Statistics:
    """What is kept of some tensors of a graph, and which images it is of."""

    tensors: dict[str, TensorStatistics] = field(default_factory=dict)
    """By name; those that were seen."""
    images: list[str] = field(default_factory=list)
    """SHA-256 of each image that was seen, in that order."""
    largest: dict[str, float] = field(default_factory=dict)
    """Largest |x| of values of which nothing else is kept."""

    def observe(self, name: str, values: NDArray[np.float32]) -> None:
        """Take in one tensor [B, C, ...], FP32. Raises as ``TensorStatistics.observe``."""
        if name not in self.tensors:
            self.tensors[name] = TensorStatistics.empty(values.shape[1])
        self.tensors[name].observe(values)

    def observe_largest(self, name: str, values: NDArray[np.float32]) -> None:
        """Take in one value of any shape, FP32, of which only the largest |x| is kept.

        Raises:
            NotFiniteError: It holds NaN or infinity; nothing of it was taken in.
        """
        largest = max(float(values.max()), -float(values.min())) if values.size else 0.0
        if not np.isfinite(largest):
            raise NotFiniteError(0)
        self.largest[name] = max(largest, self.largest.get(name, 0.0))

    def merge(self, other: Statistics) -> None:
        """Add what was seen of other images, of the same graph."""
        for name, largest in other.largest.items():
            self.largest[name] = max(largest, self.largest.get(name, 0.0))
        for name, theirs in other.tensors.items():
            if name not in self.tensors:
                self.tensors[name] = TensorStatistics.empty(len(theirs.channel_sum))
            self.tensors[name].merge(theirs)
        self.images += other.images


def save_statistics(statistics: Statistics, path: Path, key: str) -> None:
    """Write them to an npz, atomically.

    Args:
        statistics: What to write.
        path: The file.
        key: Stands for what the numbers depend on beside the images.

    Raises:
        InputError: The folder cannot be written.
    """
    kept = list(statistics.tensors.values())
    arrays = {
        "key": np.array(key),
        "images": np.array(statistics.images, np.str_),
        "names": np.array(list(statistics.tensors), np.str_),
        "counts": np.array([t.histogram.counts for t in kept], np.int64).reshape(-1, BINS),
        "exponents": np.array([t.histogram.exponent for t in kept], np.int64),
        "positions": np.array([t.positions for t in kept], np.int64),
        "channels": np.array([len(t.channel_sum) for t in kept], np.int64),
        "largest": _joined([t.channel_largest for t in kept]),
        "others": np.array(list(statistics.largest), np.str_),
        "others_largest": np.array(list(statistics.largest.values()), np.float64),
        "sums": _joined([t.channel_sum for t in kept]),
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_statistics(path: Path, key: str) -> Statistics | None:
    """Read what ``save_statistics`` wrote.

    Returns:
        The statistics; None where there are none, or they are damaged or have another key.
    """
    try:
        # Any: the arrays have the types that `save_statistics` gave them, or reading fails below.
        found: tuple[dict[str, Any], object] = read_npz(path)
        arrays = found[0]
        if str(arrays["key"]) != key:
            return None
        ends = np.cumsum(arrays["channels"])
        tensors = {}
        for index, name in enumerate(arrays["names"].tolist()):
            channels = slice(ends[index] - arrays["channels"][index], ends[index])
            # Copies: what is cut out of one array would keep it all alive.
            tensors[name] = TensorStatistics(
                Histogram(arrays["counts"][index].copy(), int(arrays["exponents"][index])),
                arrays["largest"][channels].copy(),
                arrays["sums"][channels].copy(),
                int(arrays["positions"][index]),
            )
        others = zip(arrays["others"].tolist(), arrays["others_largest"].tolist(), strict=True)
        return Statistics(tensors, arrays["images"].tolist(), dict(others))
    except Exception:  # noqa: BLE001  zipfile and numpy raise many kinds on bad bytes
        return None


def _joined(parts: Sequence[NDArray[np.floating]]) -> NDArray[np.floating]:
    return np.concatenate(parts) if parts else np.zeros(0)
