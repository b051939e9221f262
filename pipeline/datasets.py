# SPDX-License-Identifier: Apache-2.0
"""Labelled images, one at a time: a folder with a subfolder for each class, or an npz.

Nothing is decoded here: an image is handed on as its file or its bytes, so that never more of them
are in memory than a batch. (An npz's encoded bytes are: tens of MB.)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stormrt.errors import InputError
from stormrt.pipeline.npz_file import read_npz
from stormrt.pipeline.photographs import IMAGE_SUFFIXES, ImageSource

NPZ_LAYOUT = (
    "SPLIT_images (uint8: the encoded files, one after the other), SPLIT_offsets ([n + 1]: where "
    "each begins), SPLIT_labels ([n]), for SPLIT test or train, and classes (their names)"
)
"""The arrays of an npz, for messages."""

DEFAULT_SPLIT = "test"


class Dataset(Protocol):
    """Labelled images, always in the same order."""

    @property
    def where(self) -> str:
        """What the images are from, for messages."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; labels count them from 0."""

    def __len__(self) -> int:
        """How many images there are."""

    def name(self, index: int) -> str:
        """What an image is called in messages and reports."""

    def label(self, index: int) -> int:
        """An image's class."""

    def source(self, index: int) -> ImageSource:
        """An image as it is stored."""


class FolderDataset:
    """A folder with one subfolder for each class, whose name is the class's.

    Images are all image files below a subfolder (``photographs.IMAGE_SUFFIXES``), in the order of
    their classes' and then of their own names. Hidden folders are none of the classes.

    Args:
        folder: The folder.

    Raises:
        InputError: The folder does not exist or has no subfolders, or there is no image in them.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError("the data's folder does not exist", where=str(folder))
        entries = _listed(folder)
        names = [p.name for p in entries if p.is_dir() and not p.name.startswith(".")]
        if not names:
            loose = sum(p.suffix.lower() in IMAGE_SUFFIXES for p in entries)
            raise InputError(
                "the data's folder has no subfolders",
                where=str(folder),
                got=f"{loose} images that lie in it directly" if loose else "no image",
                expected="one subfolder for each class, named like it, with its images",
            )
        self._folder = folder
        self._classes = tuple(names)
        self._images: list[tuple[str, int]] = []
        for label, name in enumerate(names):
            found = _images_below(folder / name)
            self._images += [(path.relative_to(folder).as_posix(), label) for path in found]
        if not self._images:
            raise InputError(
                "there is no image in the data's folders",
                where=str(folder),
                got=f"folders without images: {', '.join(names[:10])}",
                expected=f"files ending in {', '.join(IMAGE_SUFFIXES)}",
            )

    @property
    def where(self) -> str:
        """The folder."""
        return str(self._folder)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the subfolders, sorted."""
        return self._classes

    def __len__(self) -> int:
        """Images in all subfolders."""
        return len(self._images)

    def name(self, index: int) -> str:
        """The path below the folder, ``sea/12.jpg``."""
        return self._images[index][0]

    def label(self, index: int) -> int:
        """The place of the image's subfolder among all."""
        return self._images[index][1]

    def source(self, index: int) -> ImageSource:
        """The file."""
        return self._folder / self._images[index][0]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(
            "a folder of the data cannot be read",
            where=str(folder),
            got=error.strerror or str(error),
        ) from error


def _images_below(folder: Path) -> list[Path]:
    _listed(folder)  # os.walk passes over what it may not read
    found = (Path(base) / name for base, _, names in os.walk(folder) for name in names)
    return sorted(p for p in found if p.suffix.lower() in IMAGE_SUFFIXES)


class NpzDataset:
    """One split of an npz of encoded images (``NPZ_LAYOUT``).

    Args:
        path: The file.
        split: ``train`` or ``test``.

    Raises:
        InputError: The file is missing or damaged, has another layout, or no image in the split.
    """

    def __init__(self, path: Path, split: str = DEFAULT_SPLIT) -> None:
        self._path, self._split = path, split
        arrays = _read_npz(path, split)
        self._bytes = arrays["images"]
        self._offsets = arrays["offsets"].astype(np.int64)
        self._labels = arrays["labels"].astype(np.int64)
        names = arrays["classes"].tolist()
        self._classes = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)
        self._check()

    def _check(self) -> None:
        labels, offsets = self._labels, self._offsets
        if len(labels) == 0:
            raise InputError("the split has no image", where=self.where)
        if (
            len(offsets) != len(labels) + 1
            or offsets[0] != 0
            or offsets[-1] != len(self._bytes)
            or (np.diff(offsets) < 0).any()
        ):
            raise InputError(
                "the data's offsets do not fit its images and labels",
                where=self.where,
                got=f"{len(labels)} labels, {len(offsets)} offsets from {offsets[:1]} to "
                f"{offsets[-1:]}, {len(self._bytes)} bytes of images",
                expected=NPZ_LAYOUT,
            )
        if labels.min() < 0 or labels.max() >= len(self._classes):
            raise InputError(
                "a label is no class",
                where=self.where,
                got=f"labels from {labels.min()} to {labels.max()}",
                expected=f"0 to {len(self._classes) - 1}: {len(self._classes)} classes",
            )
        if len(set(self._classes)) < len(self._classes):
            raise InputError(
                "two classes have one name", where=self.where, got=", ".join(self._classes)
            )

    @property
    def where(self) -> str:
        """The file and the split."""
        return f"{self._path}, {self._split}"

    @property
    def classes(self) -> tuple[str, ...]:
        """The file's ``classes``."""
        return self._classes

    def __len__(self) -> int:
        """Images in the split."""
        return len(self._labels)

    def name(self, index: int) -> str:
        """The split and the place in it, ``test/17``."""
        return f"{self._split}/{index}"

    def label(self, index: int) -> int:
        """The place of the image's class in ``classes``."""
        return int(self._labels[index])

    def source(self, index: int) -> ImageSource:
        """The bytes of the encoded file."""
        return self._bytes[self._offsets[index] : self._offsets[index + 1]].tobytes()


_KINDS = {
    "images": (np.dtype(np.uint8).char, "bytes"),
    "offsets": (np.typecodes["AllInteger"], "whole numbers"),
    "labels": (np.typecodes["AllInteger"], "whole numbers"),
    "classes": ("US", "texts"),
}
"""Array -> the type characters that it may have, and what those are. Every array has one axis."""


def _read_npz(path: Path, split: str) -> dict[str, NDArray[np.generic]]:
    """The four arrays of a split, by their names without the split's."""
    if not path.is_file():
        raise InputError("the data do not exist", where=str(path))
    stored = {part: part if part == "classes" else f"{split}_{part}" for part in _KINDS}
    try:
        found, there = read_npz(path, stored.values())
        arrays = {part: found[name] for part, name in stored.items() if name in found}
    except Exception as error:  # zipfile and numpy raise many kinds on bad bytes
        raise InputError(
            "the data could not be read",
            where=str(path),
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            expected=f"an npz with {NPZ_LAYOUT}; or a folder with a subfolder for each class",
        ) from error
    missing = [name for part, name in stored.items() if part not in arrays]
    if missing:
        raise InputError(
            f"the data lack {', '.join(missing)}",
            where=str(path),
            got=f"an npz with {', '.join(there) or 'nothing'}",
            expected=NPZ_LAYOUT,
        )
    for part, (kinds, words) in _KINDS.items():
        if arrays[part].ndim != 1 or arrays[part].dtype.char not in kinds:
            raise InputError(
                f"{stored[part]} has another form than it should",
                where=str(path),
                got=f"{arrays[part].ndim} axes of {arrays[part].dtype}",
                expected=f"one axis of {words}: {NPZ_LAYOUT}",
            )
    return arrays


def open_dataset(path: Path, split: str | None = None) -> Dataset:
    """Open a folder or an npz.

    Args:
        path: Either.
        split: Of an npz; None: ``DEFAULT_SPLIT``. A folder has none.

    Raises:
        InputError: The data are missing, damaged or of an unknown layout, or a folder was given
            with a split.
    """
    if not path.exists():
        raise InputError("the data do not exist", where=str(path))
    if path.is_dir():
        if split is not None:
            raise InputError(
                "a folder of images has no splits",
                where="--split",
                got=split,
                fix=f"leave --split out, and give the split's own folder: --data {path / split}",
            )
        return FolderDataset(path)
    return NpzDataset(path, split or DEFAULT_SPLIT)


def spread(images: int, limit: int | None) -> range | list[int]:
    """Indices of at most ``limit`` images, spread evenly over all, in order.

    A folder lies sorted by class: its first images would be of one class alone.
    """
    if limit is None or limit >= images:
        return range(images)
    return [i * images // limit for i in range(limit)]
