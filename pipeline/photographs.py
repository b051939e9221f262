# SPDX-License-Identifier: Apache-2.0
"""Real photographs as golden inputs, and their preprocessing."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from stormrt.errors import EnvironmentMissingError, InputError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Per-channel mean and deviation of ImageNet, for RGB in [0, 1]."""
RESIZE_RATIO = 256 / 224
"""The resized image's side over the crop's, as in upstream's evaluation."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

_PACKAGED = {
    "skimage": (
        "data",
        (
            "astronaut.png",
            "brick.png",
            "camera.png",
            "chelsea.png",
            "clock_motion.png",
            "coffee.png",
            "coins.png",
            "grass.png",
            "gravel.png",
            "hubble_deep_field.jpg",
            "ihc.png",
            "moon.png",
            "motorcycle_left.png",
            "motorcycle_right.png",
            "retina.jpg",
            "rocket.jpg",
        ),
    ),
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
}
"""Photographs that come with scikit-image and scikit-learn."""


def packaged_photographs() -> tuple[Path, ...]:
    """Photographs that are installed with dependencies; nothing is downloaded.

    Raises:
        EnvironmentMissingError: A package or a file of it is missing.
    """
    found: list[Path] = []
    for package, (folder, names) in _PACKAGED.items():
        spec = importlib.util.find_spec(package)
        roots = list(spec.submodule_search_locations or ()) if spec else []
        paths = [Path(root) / folder / name for root in roots[:1] for name in names]
        missing = [p.name for p in paths if not p.is_file()]
        if not paths or missing:
            raise EnvironmentMissingError(
                "the photographs for validation are not installed",
                where=package,
                got=f"missing: {', '.join(missing)}" if missing else "the package is missing",
                fix='pip install "stormrt[workstation]", or pass --photos FOLDER',
            )
        found += paths
    return tuple(found)


def find_photographs(where: Path) -> tuple[Path, ...]:
    """Image files: the path itself, or all below a folder, sorted by name.

    Raises:
        InputError: Nothing is there, or the folder has no images.
    """
    if where.is_file():
        return (where,)
    if not where.is_dir():
        raise InputError("the photographs do not exist", where=str(where))
    found = sorted(p for p in where.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise InputError(
            "the folder holds no photographs",
            where=str(where),
            expected=f"files ending in {', '.join(IMAGE_SUFFIXES)}",
        )
    return tuple(found)


def check_photographs(paths: Sequence[Path]) -> None:
    """Check that every file is an image, without decoding it.

    Raises:
        InputError: A file is not an image.
    """
    for path in paths:
        try:
            with Image.open(path):
                pass
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
            raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        "a photograph could not be read",
        where=str(path),
        got=str(error).splitlines()[0],
        expected="a JPEG, PNG, WebP, BMP or TIFF image",
    )


def preprocess(path: Path, height: int, width: int) -> NDArray[np.float32]:
    """Resize (bicubic), crop the centre, normalise: upstream's evaluation, for any H x W.

    Args:
        path: An image file that Pillow reads.
        height: H in pixels.
        width: W in pixels.

    Returns:
        [3, H, W], FP32.

    Raises:
        InputError: The file is missing or is not an image.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        SyntaxError,
    ) as error:
        raise _unreadable(path, error) from error
    scale = max(height * RESIZE_RATIO / image.height, width * RESIZE_RATIO / image.width)
    resized = image.resize(
        (max(width, round(image.width * scale)), max(height, round(image.height * scale))),
        Image.Resampling.BICUBIC,
    )
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    crop = resized.crop((left, top, left + width, top + height))
    pixels = np.asarray(crop, dtype=np.float32) / np.float32(255.0)
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    normalised = (pixels - mean) / std
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), dtype=np.float32)


def preprocess_all(paths: Sequence[Path], height: int, width: int) -> NDArray[np.float32]:
    """Preprocess photographs into [images, 3, H, W], FP32. Raises as ``preprocess``."""
    return np.stack([preprocess(path, height, width) for path in paths])
