# SPDX-License-Identifier: Apache-2.0
"""Which images are observed: a choice that depends on their contents alone.

Images are ordered by a hash of a seed and their contents. The first so many are taken, so that
neither names nor the order of a listing counts, and a larger choice begins with a smaller one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stormrt.calibration.table import CalibrationImage
from stormrt.errors import InputError
from stormrt.pipeline.datasets import NpzDataset
from stormrt.pipeline.npz_file import read_npz
from stormrt.pipeline.photographs import (
    ImageSource,
    UnreadableImageError,
    find_photographs,
    image_size,
    is_too_small,
    preprocess_labelled,
    too_small,
)
from stormrt.pipeline.preprocessing import STD
from stormrt.pipeline.schema import SkippedImage

ENOUGH = 512
"""Images that a choice should have."""

CHOICE_SEED = 0

NO_CONTRAST = "no contrast: all of its pixels are alike"

_TEST_SPLITS = ("test", "val", "validation")
_SHOWN = 5
"""How many names a message lists."""

ImageEvent = Callable[[str, int, int], None]
"""Called with what is done to images, those done, and how many there are."""


@dataclass(frozen=True, slots=True)
class CalibrationImages:
    """The images of a choice, in its order; decoded one at a time."""

    images: tuple[CalibrationImage, ...]
    skipped: tuple[SkippedImage, ...]
    """Those that came up and could not be used."""
    where: str
    """What they are from, for messages."""
    available: int
    """How many different ones there were to choose from."""
    sources: tuple[ImageSource, ...]
    """One for each of ``images``."""
    height: int
    """H of the model's input, in pixels."""
    width: int
    """W, likewise."""

    def load(self, index: int) -> NDArray[np.float32]:
        """An image as the model takes it: [3, H, W], FP32, preprocessed as for evaluation.

        Raises:
            UnreadableImageError: It has gone or changed since it was chosen.
        """
        name = self.images[index].name
        return preprocess_labelled(self.sources[index], name, self.height, self.width)


def choose_images(
    data: Sequence[Path],
    height: int,
    width: int,
    *,
    wanted: int = ENOUGH,
    split: str | None = None,
    most_unusable: float = 0.05,
    seed: int = CHOICE_SEED,
    on_image: ImageEvent = lambda *_: None,
) -> CalibrationImages:
    """Choose images and see that each can be used, so that nothing is refused after the slow part.

    Of several with the same bytes one counts: they would say the same twice. One that cannot be
    read or that has no contrast is left out, and the next takes its place.

    Args:
        data: A folder (flat, or with subfolders), an npz of encoded images
            (``datasets.NPZ_LAYOUT``), or photographs.
        height: H of the model's input, in pixels.
        width: W, likewise.
        wanted: How many; all where there are fewer.
        split: Part of an npz or subfolder of a folder. None: ``train`` where there is one, else
            what there is.
        most_unusable: Share of the wanted images that may be left out.
        seed: Of the choice.
        on_image: Told of each image that is hashed, and then of each that is checked.

    Raises:
        InputError: There are no images, one is smaller than the model's input, or more than
            ``most_unusable`` of them cannot be used.
    """
    if wanted < 1:
        raise InputError("there must be an image to observe", where="--images", got=str(wanted))
    named, where = _sources(data, split)
    candidates = _ordered(named, seed, on_image)
    planned = min(wanted, len(candidates))
    allowance = math.floor(most_unusable * planned)
    chosen: list[tuple[CalibrationImage, ImageSource]] = []
    skipped: list[SkippedImage] = []
    small: list[tuple[tuple[int, int], str]] = []
    for image, source in candidates[: planned + allowance]:
        if len(chosen) == planned:
            break
        try:
            size = image_size(source, image.name)
            if is_too_small(size, height, width):
                small.append((size, image.name))
                continue
            pixels = preprocess_labelled(source, image.name, height, width)
        except UnreadableImageError as error:
            skipped.append(SkippedImage(name=image.name, reason=error.got or error.what))
            continue
        if _has_contrast(pixels):
            chosen.append((image, source))
            on_image("checking images", len(chosen), planned)
        else:
            skipped.append(SkippedImage(name=image.name, reason=NO_CONTRAST))
    if small:
        size, name = min(small, key=lambda found: min(found[0]))
        count = f", the smallest of {len(small)} such" if len(small) > 1 else ""
        raise too_small(size, f"{where}: {name}{count}", height, width)
    _require_few(skipped, planned, allowance, where, share=most_unusable)
    return CalibrationImages(
        images=tuple(image for image, _ in chosen),
        skipped=tuple(skipped),
        where=where,
        available=len(candidates),
        sources=tuple(source for _, source in chosen),
        height=height,
        width=width,
    )


def _require_few(
    skipped: Sequence[SkippedImage], planned: int, allowance: int, where: str, *, share: float
) -> None:
    if len(skipped) <= allowance:
        return
    if len(skipped) >= planned and all(s.reason == NO_CONTRAST for s in skipped):
        raise InputError(
            "the images have no contrast, so that nothing can be learnt from them",
            where=where,
            got=f"{len(skipped)} images, each of one colour, such as {skipped[0].name}",
            expected="photographs of what the model will see",
        )
    raise InputError(
        f"more than {share:.0%} of the {planned} images cannot be used",
        where=where,
        got="\n            ".join(f"{s.name}: {s.reason}" for s in skipped[:_SHOWN]),
        fix="mend or remove them; these are the first",
    )


def _has_contrast(pixels: NDArray[np.float32]) -> bool:
    """Whether a normalised image [3, H, W] spans at least one of 255 grey levels in a channel."""
    span = np.ptp(pixels, axis=(1, 2)) * np.array(STD, np.float32) * 255
    return bool((span > 0.5).any())


def _ordered(
    named: Sequence[tuple[str, ImageSource]], seed: int, on_image: ImageEvent
) -> list[tuple[CalibrationImage, ImageSource]]:
    """Different images by the hash of the seed and their contents."""
    found: dict[str, tuple[str, ImageSource]] = {}
    for done, (name, source) in enumerate(named, 1):
        digest = _sha256(name, source)
        if digest not in found or name < found[digest][0]:
            found[digest] = (name, source)
        on_image("hashing images", done, len(named))
    order = sorted(found, key=lambda sha256: hashlib.sha256(f"{seed}:{sha256}".encode()).digest())
    return [
        (CalibrationImage(name=found[sha256][0], sha256=sha256), found[sha256][1])
        for sha256 in order
    ]


def _sha256(name: str, source: ImageSource) -> str:
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
    except OSError:
        content = name.encode()  # it is skipped with its reason where its turn comes
    return hashlib.sha256(content).hexdigest()


def _sources(data: Sequence[Path], split: str | None) -> tuple[list[tuple[str, ImageSource]], str]:
    """Names and images of what the user gave, and what to call it."""
    if len(data) == 1 and data[0].is_dir():
        return _in_folder(data[0], split)
    if len(data) == 1 and data[0].suffix.lower() == ".npz":
        return _in_npz(data[0], split)
    for path in data:
        if not path.exists():
            raise InputError("the data do not exist", where=str(path))
        if path.is_dir() or path.suffix.lower() == ".npz":
            raise InputError(
                "several data sets were given",
                where="--data",
                got=", ".join(map(str, data[:_SHOWN])),
                expected="one folder, one npz, or photographs",
            )
    if not data:
        raise InputError("there are no images", where="--data")
    if split is not None:
        raise InputError(
            "photographs have no splits", where="--split", got=split, fix="leave --split out"
        )
    return [(str(path), path) for path in data], f"{len(data)} photographs"


def _in_npz(path: Path, split: str | None) -> tuple[list[tuple[str, ImageSource]], str]:
    if split is None:
        split = "train" if _has_train(path) else "test"
    dataset = NpzDataset(path, split)
    named = [(dataset.name(index), dataset.source(index)) for index in range(len(dataset))]
    return named, dataset.where


def _has_train(path: Path) -> bool:
    try:
        found, _ = read_npz(path, ("train_labels",))
        return len(found["train_labels"]) > 0
    except Exception:  # noqa: BLE001  what is wrong with the file is said where it is read
        return False


def _in_folder(folder: Path, split: str | None) -> tuple[list[tuple[str, ImageSource]], str]:
    part = folder
    if split is not None:
        part = folder / split
        if not part.is_dir():
            raise InputError(
                "the folder has no such split",
                where="--split",
                got=split,
                expected=f"a subfolder of {folder}",
                fix="leave --split out for all images of the folder",
            )
    elif (folder / "train").is_dir() and any((folder / name).is_dir() for name in _TEST_SPLITS):
        # What a model is judged by must not have a part in its scales.
        part = folder / "train"
    below = [(path.relative_to(folder), path) for path in find_photographs(part)]
    named: list[tuple[str, ImageSource]] = [
        (relative.as_posix(), path)
        for relative, path in below
        if not any(name.startswith(".") for name in relative.parts)
    ]
    if not named:
        raise InputError(
            "the folder holds no photographs", where=str(part), got="hidden files alone"
        )
    return named, str(part)
