# SPDX-License-Identifier: Apache-2.0
"""How each demo model is trained: every number that is not the architecture's."""

from __future__ import annotations

from dataclasses import dataclass

from stormrt.errors import InputError


@dataclass(frozen=True)
class Augmentation:
    """Ranges and probabilities of ``data.Augmenter``."""

    area: tuple[float, float]
    """Of a crop, over the image's."""
    aspect: float
    """Largest |log| of a crop's aspect ratio."""
    plain: float
    """Share of images that are only flipped and shifted by whole pixels."""
    shift: int
    """Largest shift, in pixels."""
    turned: float
    """Share of the others that are turned and sheared."""
    degrees: float
    shear: float
    coloured: float
    """Probability of each change of colour."""
    colour: float
    """Strength of brightness, contrast and saturation: a factor of 1 - c to 1 + c."""
    gain: float
    """Strength of each channel's own factor."""
    sharpness: float
    """Strength of sharpening and blurring; 0: none."""
    grey: float
    solarised: float
    erased: float
    """Share of images that a box is erased from."""
    erased_area: tuple[float, float]
    mixup: float
    """Share of images that are blended with another."""
    mixup_alpha: float
    cutmix: float
    """Share of images that a box of another is pasted into."""
    label_smoothing: float


@dataclass(frozen=True)
class Recipe:
    """One model's training."""

    epochs: int
    batch: int
    optimiser: str
    """``muon``: Muon for the matrices of the blocks, AdamW for the rest; ``adamw``: AdamW."""
    learning_rate: float
    weight_decay: float
    warm_up: float
    """Share of the steps in which the learning rate rises."""
    calm: float
    """Share of the steps, at the end, that are trained without mixtures and changed colours."""
    drop_path: float
    ema: float
    """Decay of the averaged weights, each step."""
    augmentation: Augmentation


RECIPES: dict[str, Recipe] = {
    "vmamba_nano_scenes": Recipe(
        epochs=300,
        batch=256,
        optimiser="muon",
        learning_rate=3e-3,
        weight_decay=0.1,
        warm_up=0.05,
        calm=0.1,
        drop_path=0.2,
        ema=0.998,
        augmentation=Augmentation(
            area=(0.35, 1.0), aspect=0.3, plain=0.2, shift=4, turned=0.3, degrees=10, shear=0.1,
            coloured=0.6, colour=0.4, gain=0.1, sharpness=0.6, grey=0.05, solarised=0.05,
            erased=0.25, erased_area=(0.02, 0.2), mixup=0.3, mixup_alpha=0.4, cutmix=0.3,
            label_smoothing=0.1,
        ),
    ),
    "vmamba_nano_cifar10": Recipe(
        epochs=200,
        batch=512,
        optimiser="muon",
        learning_rate=3e-3,
        weight_decay=0.1,
        warm_up=0.05,
        calm=0.1,
        drop_path=0.1,
        ema=0.997,
        augmentation=Augmentation(
            area=(0.6, 1.2), aspect=0.2, plain=0.5, shift=4, turned=0.5, degrees=15, shear=0.15,
            coloured=0.5, colour=0.4, gain=0.1, sharpness=0.0, grey=0.02, solarised=0.05,
            erased=0.4, erased_area=(0.05, 0.25), mixup=0.25, mixup_alpha=0.4, cutmix=0.35,
            label_smoothing=0.05,
        ),
    ),
}  # fmt: skip


def recipe_of(model: str) -> Recipe:
    """The recipe of a demo model.

    Raises:
        InputError: It is none.
    """
    if model not in RECIPES:
        raise InputError("no recipe for this model", got=model, expected=", ".join(RECIPES))
    return RECIPES[model]
