# SPDX-License-Identifier: Apache-2.0
"""Labelled images for tests, as a folder and as an npz of the same files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Labelled:
    """Encoded images in the order of their classes."""

    classes: tuple[str, ...]
    encoded: tuple[bytes, ...]
    labels: tuple[int, ...]

    def replaced(self, changes: dict[int, bytes]) -> Labelled:
        """The same with other bytes in places."""
        encoded = tuple(changes.get(i, e) for i, e in enumerate(self.encoded))
        return Labelled(self.classes, encoded, self.labels)


def encode(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """[H, W, 3] as a file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def labelled(
    rng: np.random.Generator,
    counts: Sequence[int] = (9, 4, 7),
    size: tuple[int, int] = (32, 32),
    classes: Sequence[str] = ("ant", "bee", "cat"),
) -> Labelled:
    """Random pictures, each with a colour and a slope of its own."""
    encoded, labels = [], []
    for label, count in enumerate(counts):
        for _ in range(count):
            colour, slope = rng.uniform(0, 255, 3), rng.normal(0, 3, (2, 3))
            grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
            noise = rng.normal(0, 20, (*size, 3))
            pixels = np.clip(colour + grid @ slope + noise, 0, 255).astype(np.uint8)
            encoded.append(encode(pixels))
            labels.append(label)
    return Labelled(tuple(classes), tuple(encoded), tuple(labels))


def write_folder(images: Labelled, folder: Path) -> Path:
    """One subfolder for each class; files sort in the images' order."""
    for name in images.classes:
        (folder / name).mkdir(parents=True)
    for index, (encoded, label) in enumerate(zip(images.encoded, images.labels, strict=True)):
        (folder / images.classes[label] / f"{index:04}.png").write_bytes(encoded)
    return folder


def npz_arrays(images: Labelled, split: str = "test") -> dict[str, NDArray[np.generic]]:
    """The arrays of one split, and the classes."""
    return {
        f"{split}_images": np.frombuffer(b"".join(images.encoded), np.uint8),
        f"{split}_offsets": np.cumsum([0, *map(len, images.encoded)]),
        f"{split}_labels": np.array(images.labels, np.uint8),
        "classes": np.array(images.classes),
    }


def write_npz(images: Labelled, path: Path, split: str = "test") -> Path:
    """An npz of one split."""
    np.savez(path, **npz_arrays(images, split))
    return path
