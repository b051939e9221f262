# SPDX-License-Identifier: Apache-2.0
"""Photographs and their preprocessing: golden inputs, images of a data set, one to classify."""

from __future__ import annotations

import importlib.util
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.pipeline.preprocessing import MEAN, RESIZE_RATIO, STD
from stormrt.reading import read_small
from stormrt.storm.plan import MIN_IMAGE_SIDE

ImageSource: TypeAlias = Path | bytes
"""An encoded image: a file, or the bytes of one."""

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


_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""What is read, whatever a file's name says. Pillow knows more; some of it runs other programs."""

MOST_PIXELS = 100_000_000
"""Of an image, and of one that is scaled: 400 MB in memory. Larger ones are taken for harm."""

MOST_BYTES = 512 << 20
"""Of an image's file."""


class UnreadableImageError(InputError):
    """An image is missing, damaged, too large, or none."""


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
        UnreadableImageError: A file is not an image.
    """
    for path in paths:
        image_size(path, str(path))


def image_size(source: ImageSource, where: str) -> tuple[int, int]:
    """Height and width in pixels, from the image's header alone.

    Args:
        source: The image.
        where: Its name in messages.

    Raises:
        UnreadableImageError: It is missing or is not an image.
    """
    with _opened(source, where) as image:
        return image.height, image.width


def _decoded(source: ImageSource, where: str) -> Image.Image:
    """The whole image in RGB. Raises as ``image_size``."""
    with _opened(source, where, whole=True) as image:
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
            # Pillow would clip 16 bits at 255: white.
            values = np.asarray(image).astype(np.float32) / np.float32(257.0)
            image = Image.fromarray(np.rint(values).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(
                f"pixels are 32-bit numbers ({image.mode}), of which no range is known"
            )
        return image.convert("RGB")


@contextmanager
def _opened(source: ImageSource, where: str, *, whole: bool = False) -> Iterator[Image.Image]:
    """An image, for what is done with it within the context. Raises as ``image_size``.

    Args:
        source: The image.
        where: Its name in messages.
        whole: More than its header is wanted. Decoders ask a file for as much as a damaged one
            says it has, and Python reserves that much, but not of bytes that are in memory.
    """
    try:
        if whole and isinstance(source, Path):
            source = read_small(source, MOST_BYTES)
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with warnings.catch_warnings():
            # Pillow warns of large images; our own bound is below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                _require_few(image.width, image.height)
                yield image
    except Exception as error:  # Pillow's decoders raise many kinds on bad bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = re.sub(r"<_io\.BytesIO object at \w+>", "these bytes", reason)
        raise UnreadableImageError(
            "a photograph could not be read",
            where=where,
            got=reason,
            expected="a JPEG, PNG, WebP, BMP or TIFF image",
        ) from error


def _require_few(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width}x{height} pixels are more than {MOST_PIXELS // 10**6} million")


def preprocess(path: Path, height: int, width: int) -> NDArray[np.float32]:
    """Resize (bicubic), crop the centre, normalise: upstream's evaluation, for any H x W.

    A photograph that is too small is enlarged: for comparing two runtimes that does no harm.

    Args:
        path: An image file that Pillow reads.
        height: H in pixels.
        width: W in pixels.

    Returns:
        [3, H, W], FP32.

    Raises:
        UnreadableImageError: The file is missing, is not an image, or is so long and thin that it
            cannot be enlarged.
    """
    image = _decoded(path, str(path))
    scale = _scale(image, height, width)
    if image.width * scale * image.height * scale > MOST_PIXELS:
        raise UnreadableImageError(
            "a photograph is too long and thin",
            where=str(path),
            got=f"{image.width}x{image.height} pixels (width x height)",
            expected=f"one whose middle {width}x{height} shows something",
        )
    return _cropped(image, scale, height, width)


def preprocess_labelled(
    source: ImageSource, where: str, height: int, width: int
) -> NDArray[np.float32]:
    """As ``preprocess``, but never enlarged: for what says how good a model is.

    An image between the input's size and 256/224 of it is only cropped, one of the input's size
    passes as it is.

    Args:
        source: The image.
        where: Its name in messages.
        height: H in pixels.
        width: W in pixels.

    Returns:
        [3, H, W], FP32.

    Raises:
        UnreadableImageError: It is missing or is not an image.
        InputError: It is smaller than the input on a side.
    """
    image = _decoded(source, where)
    if is_too_small((image.height, image.width), height, width):
        raise too_small((image.height, image.width), where, height, width)
    return _cropped(image, min(1.0, _scale(image, height, width)), height, width)


def is_too_small(size: tuple[int, int], height: int, width: int) -> bool:
    """Whether an image of a size (H, W) would have to be enlarged."""
    return size[0] < height or size[1] < width


def too_small(size: tuple[int, int], where: str, height: int, width: int) -> InputError:
    """The error for an image that would have to be enlarged."""
    most = min(size)
    return InputError(
        "an image is smaller than the model's input, and images are never enlarged",
        where=where,
        got=f"{size[0]}x{size[1]} pixels (height x width)",
        expected=f"{height}x{width} or larger",
        fix=(
            f"give larger images, or a smaller input: --size {most}"
            if most >= MIN_IMAGE_SIDE
            else "give larger images"
        ),
    )


def _scale(image: Image.Image, height: int, width: int) -> float:
    return max(height * RESIZE_RATIO / image.height, width * RESIZE_RATIO / image.width)


def _cropped(image: Image.Image, scale: float, height: int, width: int) -> NDArray[np.float32]:
    """An image in RGB, scaled -> its centre [3, H, W], normalised, FP32."""
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
