# SPDX-License-Identifier: Apache-2.0
"""Encoded images in an npz, decoded once; batches augmented on the device.

An npz holds, for ``train`` and ``test``: ``<split>_images``, the encoded files one after the other,
``<split>_offsets`` [n + 1] where each begins, ``<split>_labels`` [n]; and ``classes``, their names.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from benchmarks.training.recipes import Augmentation
from stormrt.errors import InputError
from stormrt.pipeline.preprocessing import MEAN, STD

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Split:
    """Images of one split on a device."""

    images: Tensor
    """[n, 3, side, side], uint8."""
    labels: Tensor
    """[n], int64."""

    def to(self, device: torch.device) -> Split:
        """The same on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set of square images of one size."""

    train: Split
    test: Split
    classes: tuple[str, ...]


def load(path: Path, side: int) -> Dataset:
    """Read and decode an npz.

    Args:
        path: The file; see the module.
        side: Of every image, in pixels. Images are never resized.

    Raises:
        InputError: The file is missing or damaged, lacks a part, or has images of another size.
    """
    try:
        zipfile.ZipFile(path).close()  # np.load takes a bare array, too
        with np.load(path, allow_pickle=False) as arrays:
            parts = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError("the data could not be read", where=str(path), got=str(error)) from error
    wanted = [f"{s}_{p}" for s in ("train", "test") for p in ("images", "offsets", "labels")]
    missing = [name for name in (*wanted, "classes") if name not in parts]
    if missing:
        raise InputError(
            "the data lack a part",
            where=str(path),
            got=", ".join(parts),
            expected=", ".join(missing),
        )
    classes = tuple(str(name) for name in parts["classes"])
    splits = [_split(path, name, parts, len(classes), side) for name in ("train", "test")]
    return Dataset(splits[0], splits[1], classes)


def _split(
    path: Path, name: str, parts: dict[str, NDArray[np.generic]], classes: int, side: int
) -> Split:
    data = parts[f"{name}_images"].tobytes()
    offsets = parts[f"{name}_offsets"].astype(np.int64)
    labels = parts[f"{name}_labels"].astype(np.int64)
    if len(offsets) != len(labels) + 1 or offsets[-1] != len(data) or len(labels) == 0:
        raise InputError(
            "the data's offsets do not fit its images and labels",
            where=f"{path}, {name}",
            got=f"{len(labels)} labels, {len(offsets)} offsets, {len(data)} bytes of images",
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            "a label is no class",
            where=f"{path}, {name}",
            got=f"{labels.min()} to {labels.max()}",
            expected=f"0 to {classes - 1}",
        )
    pixels = np.empty((len(labels), side, side, 3), np.uint8)

    def decode(index: int) -> None:
        encoded = data[offsets[index] : offsets[index + 1]]
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                decoded = np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(
                "an image could not be decoded",
                where=f"{path}, {name}, image {index}",
                got=str(error),
            ) from error
        if decoded.shape != (side, side, 3):
            raise InputError(
                "an image has another size than the model's input",
                where=f"{path}, {name}, image {index}",
                got=f"{decoded.shape[1]}x{decoded.shape[0]} pixels",
                expected=f"{side}x{side}",
            )
        pixels[index] = decoded

    with ThreadPoolExecutor(
        os.cpu_count()
    ) as pool:  # Pillow decodes without the interpreter's lock
        for _ in pool.map(decode, range(len(labels)), chunksize=64):
            pass
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.from_numpy(labels))


def normalise(images: Tensor) -> Tensor:
    """Images in [0, 1] -> the model's input, as ``pipeline.photographs`` does it."""
    shape = (1, 3, 1, 1)
    mean = torch.tensor(MEAN, device=images.device).view(shape)
    return (images - mean) / torch.tensor(STD, device=images.device).view(shape)


class Augmenter:
    """Random views of images, and mixtures of them, all on the device of the images.

    Every image draws its own parameters. Mixing follows Zhang et al., "mixup" (2018), and Yun et
    al., "CutMix" (2019), with the previous image of the batch as the partner.

    Args:
        recipe: How much of what.
        classes: Number of classes.
        device: Where images are.
        seed: Of the mixtures' shares, which are drawn beforehand.
    """

    def __init__(self, recipe: Augmentation, classes: int, device: torch.device, seed: int) -> None:
        self.recipe, self.device = recipe, device
        # Beta's sampler of PyTorch is slow on a GPU: a table of draws serves as well.
        shares = np.random.default_rng(seed).beta(recipe.mixup_alpha, recipe.mixup_alpha, 1 << 16)
        self.mixup_shares = torch.from_numpy(shares).float().to(device)
        smooth = recipe.label_smoothing
        one_hot = torch.eye(classes, device=device)
        self.targets = one_hot * (1.0 - smooth) + smooth / classes

    def __call__(
        self, images: Tensor, labels: Tensor, *, calm: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            images: [B, 3, H, W], uint8.
            labels: [B], int64.
            calm: Without mixtures, erased parts and changed colours: for the last epochs.

        Returns:
            Normalised images [B, 3, H, W], FP32, and target distributions [B, classes], FP32.
        """
        x = self._geometry(images.float() / 255.0)
        if not calm:
            x = self._colour(x)
        x = normalise(x)
        targets = self.targets[labels]
        if not calm:
            x = self._erase(x)
            x, targets = self._mix(x, targets)
        return x, targets

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        return torch.rand(count, device=self.device) * (high - low) + low

    def _chosen(self, count: int, probability: float) -> Tensor:
        return torch.rand(count, device=self.device) < probability

    def _geometry(self, x: Tensor) -> Tensor:
        """Crop, stretch, turn, shear, shift and flip by one interpolation.

        Images that are only shifted, by whole pixels, and flipped, keep their sharpness: the test
        images have it.
        """
        recipe, count, side = self.recipe, x.shape[0], x.shape[-1]
        zero, one = torch.zeros(count, device=self.device), torch.ones(count, device=self.device)
        plain = self._chosen(count, recipe.plain)
        side_scale = self._uniform(count, *recipe.area).sqrt()
        stretch = torch.exp(self._uniform(count, -recipe.aspect, recipe.aspect) / 2)
        scale_x = torch.where(plain, one, (side_scale * stretch))
        scale_y = torch.where(plain, one, (side_scale / stretch))
        turned = ~plain & self._chosen(count, recipe.turned)
        angle = torch.where(
            turned, self._uniform(count, -1, 1) * math.radians(recipe.degrees), zero
        )
        shear = torch.where(turned, self._uniform(count, -recipe.shear, recipe.shear), zero)
        # A crop lies anywhere in the image; on top of that, a shift may leave it.
        room_x, room_y = (1 - scale_x).clamp(min=0), (1 - scale_y).clamp(min=0)
        pixel = 2.0 / side  # in grid_sample's coordinates
        shift = (
            torch.randint(-recipe.shift, recipe.shift + 1, (2, count), device=self.device).float()
            * pixel
        )
        centre_x = self._uniform(count, -1, 1) * room_x + shift[0]
        centre_y = self._uniform(count, -1, 1) * room_y + shift[1]
        flip = torch.where(self._chosen(count, 0.5), -one, one)
        cos, sin = torch.cos(angle), torch.sin(angle)
        theta = torch.stack(
            [
                torch.stack([flip * scale_x * cos, scale_y * (shear * cos - sin), centre_x], 1),
                torch.stack([flip * scale_x * sin, scale_y * (shear * sin + cos), centre_y], 1),
            ],
            1,
        )
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    def _colour(self, x: Tensor) -> Tensor:
        """Brightness, contrast, saturation, channel gains, sharpness, solarisation."""
        recipe, count = self.recipe, x.shape[0]
        shape = (count, 1, 1, 1)

        def factor(strength: float) -> Tensor:
            drawn = self._uniform(count, 1 - strength, 1 + strength)
            chosen = self._chosen(count, recipe.coloured)
            return torch.where(chosen, drawn, torch.ones_like(drawn)).view(shape)

        luma = torch.tensor(_LUMA, device=self.device).view(1, 3, 1, 1)
        grey = (x * luma).sum(1, keepdim=True)
        saturation = factor(recipe.colour)
        saturation = torch.where(self._chosen(count, recipe.grey).view(shape), 0.0, saturation)
        x = grey + (x - grey) * saturation
        mean = grey.mean((2, 3), keepdim=True)
        x = (mean + (x - mean) * factor(recipe.colour)) * factor(recipe.colour)
        gains = 1 + (torch.rand(count, 3, 1, 1, device=self.device) - 0.5) * recipe.gain * 2
        x = x * gains
        if recipe.sharpness:
            blurred = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            x = blurred + (x - blurred) * factor(recipe.sharpness)
        x = x.clamp(0, 1)
        solarised = self._chosen(count, recipe.solarised).view(shape)
        threshold = self._uniform(count, 0.5, 1.0).view(shape)
        return torch.where(solarised & (x > threshold), 1 - x, x)

    def _box(self, share: Tensor, side: int) -> Tensor:
        """[B] shares of the area -> masks [B, 1, side, side] of boxes that may leave the image."""
        count = len(share)
        along = torch.arange(side, device=self.device) + 0.5
        stretch = torch.exp(self._uniform(count, -0.7, 0.7) / 2)
        half = share.sqrt() * side / 2
        centre = torch.rand(2, count, 1, device=self.device) * side
        inside_y = (along - centre[0]).abs() < (half * stretch)[:, None]
        inside_x = (along - centre[1]).abs() < (half / stretch)[:, None]
        return (inside_y[:, :, None] & inside_x[:, None, :])[:, None]

    def _erase(self, x: Tensor) -> Tensor:
        recipe, count = self.recipe, x.shape[0]
        share = self._uniform(count, *recipe.erased_area)
        chosen = self._chosen(count, recipe.erased).view(-1, 1, 1, 1)
        return torch.where(self._box(share, x.shape[-1]) & chosen, 0.0, x)

    def _mix(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        recipe, count = self.recipe, x.shape[0]
        draw = torch.rand(count, device=self.device)
        blend = draw < recipe.mixup
        cut = ~blend & (draw < recipe.mixup + recipe.cutmix)
        picks = torch.randint(0, len(self.mixup_shares), (count,), device=self.device)
        own = torch.where(blend, self.mixup_shares[picks], torch.ones_like(draw))
        box = self._box(torch.rand(count, device=self.device), x.shape[-1])
        keep = torch.where(cut.view(-1, 1, 1, 1) & box, 0.0, own.view(-1, 1, 1, 1))
        x = x * keep + x.roll(1, 0) * (1 - keep)
        share = keep.mean((1, 2, 3))[:, None]
        return x, targets * share + targets.roll(1, 0) * (1 - share)
