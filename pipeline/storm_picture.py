# SPDX-License-Identifier: Apache-2.0
"""What STORM keeps of a photograph, drawn over it: one panel for each reduction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stormrt.errors import InputError
from stormrt.pipeline.artifacts import ModelSpec
from stormrt.pipeline.files import atomic_path
from stormrt.pipeline.model_source import build_model
from stormrt.pipeline.photographs import preprocess
from stormrt.pipeline.preprocessing import MEAN, STD
from stormrt.storm.grid import KeptTokens
from stormrt.storm.plan import Reduction, StormPlan, stage_grids
from stormrt.storm.variants import get_variant

_PANEL = 320
"""Pixels of a panel's longer side, at least."""
_MARGIN, _LINE, _FONT = 8, 16, 12
"""Pixels between panels, of a caption's line, and of its letters."""
_LEAVING, _GONE = (150, 20, 20), (0, 0, 0)
"""Colours of what leaves here, and of what had left before."""
_OPACITY = 0.72


@dataclass(frozen=True, slots=True)
class Panel:
    """One reduction over the image, by tokens of the first stage, [H, W]."""

    reduction: Reduction
    grid: tuple[int, int]
    """The map that it was given."""
    leaves: NDArray[np.bool_]
    """What it takes away."""
    gone: NDArray[np.bool_]
    """What was taken away before and is not restored yet."""

    def caption(self) -> tuple[str, str]:
        """Two lines."""
        r = self.reduction
        height, width = self.grid
        share = r.height * r.width / (height * width)
        unit = "lines" if r.unit == "line" else "windows"
        fixed = " (the same in every image)" if r.rows is not None else ""
        how = "dropped" if r.mode == "drop" else "merged"
        after = {"no": "", "stage": ", back after the stage", "end": ", back at the end"}
        where = f"stage {r.stage} block {r.block}"
        return (
            f"{where}: {r.height}x{r.width} of {height}x{width} ({share:.0%})",
            f"{unit} by {r.host}{fixed}, {how}{after[r.restore]}",
        )


def panels(spec: ModelSpec, image: NDArray[np.float32]) -> tuple[Panel, ...]:
    """What each reduction takes away of one image.

    Args:
        spec: The reduced model.
        image: [3, H, W], normalised.
    """
    model = build_model(spec)
    with torch.inference_mode():
        kept = model.kept_tokens(torch.from_numpy(image[None]))
    return follow_tokens(spec, kept)


def follow_tokens(spec: ModelSpec, kept: list[KeptTokens]) -> tuple[Panel, ...]:
    """From what each reduction kept of its own map to what that is of the image.

    A token of a later stage stands for the tokens of the first stage whose rows and columns halve
    to its own, once for each downsampling.
    """
    by_reduction = {k.reduction: k for k in kept}
    variant = get_variant(spec.name)
    first = stage_grids(variant, spec.height, spec.width, StormPlan())[0]
    rows, cols = np.indices(first)
    tokens = _Tokens(rows, cols, np.zeros(first, dtype=bool))
    found = []
    plan = sorted(spec.plan.reductions, key=lambda r: (r.stage, r.block))
    for stage in range(len(variant.depths)):
        restored: _Tokens | None = None
        for reduction in (r for r in plan if r.stage == stage):
            if reduction.restore == "stage":
                restored = restored or tokens
            entry = by_reduction.get(reduction)
            grid = (entry.height, entry.width) if entry else (reduction.height, reduction.width)
            # A reduction that keeps everything has no entry.
            after = _cut(tokens, entry) if entry else tokens
            found.append(Panel(reduction, grid, after.gone & ~tokens.gone, tokens.gone))
            tokens = after
        tokens = restored or tokens
        tokens = _Tokens(tokens.rows // 2, tokens.cols // 2, tokens.gone)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Where the tokens of the first stage are in a later map, [H, W] each."""

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    gone: NDArray[np.bool_]
    """Which are in it no more."""


def _cut(tokens: _Tokens, entry: KeptTokens) -> _Tokens:
    """Where tokens are in the reduced map."""
    new_rows = np.full((entry.height, entry.width), -1, dtype=np.int64)
    new_cols = new_rows.copy()
    kept = entry.rows[0].numpy(), entry.cols[0].numpy()
    new_rows[kept], new_cols[kept] = np.indices(kept[0].shape)
    at = np.minimum(tokens.rows, entry.height - 1), np.minimum(tokens.cols, entry.width - 1)
    rows, cols = new_rows[at], new_cols[at]
    return _Tokens(np.maximum(rows, 0), np.maximum(cols, 0), tokens.gone | (rows < 0))


def draw(image: NDArray[np.float32], found: tuple[Panel, ...]) -> Image.Image:
    """The image with what leaves shaded, one panel beside the other.

    Args:
        image: [3, height, width] of any size, normalised.
        found: In the network's order.
    """
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    pixels = np.clip((image.transpose(1, 2, 0) * std + mean) * 255.0, 0, 255)
    height, width = pixels.shape[:2]
    font = ImageFont.load_default(_FONT)
    captions = [panel.caption() for panel in found]
    wide = max([width, *(round(font.getlength(text)) for lines in captions for text in lines)])
    size = (_MARGIN + (wide + _MARGIN) * len(found), 2 * _MARGIN + 2 * _LINE + height)
    canvas = Image.new("RGB", size, "white")
    writer = ImageDraw.Draw(canvas)
    for index, (panel, lines) in enumerate(zip(found, captions, strict=True)):
        left = _MARGIN + index * (wide + _MARGIN)
        shaded = pixels.copy()
        for mask, colour in ((panel.gone, _GONE), (panel.leaves, _LEAVING)):
            covered = _by_pixel(mask, height, width)
            shaded[covered] = (1 - _OPACITY) * shaded[covered] + _OPACITY * np.array(colour)
        picture = Image.fromarray(shaded.round().astype(np.uint8))
        canvas.paste(picture, (left, _MARGIN))
        for number, text in enumerate(lines):
            place = (left, _MARGIN + height + 2 + number * _LINE)
            writer.text(place, text, fill="black", font=font)
    return canvas


def _by_pixel(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """By tokens of the first stage [H, W] -> by pixels [height, width]."""
    rows = np.arange(height) * mask.shape[0] // height
    cols = np.arange(width) * mask.shape[1] // width
    by_pixel: NDArray[np.bool_] = mask[rows[:, None], cols]
    return by_pixel


def show_reductions(spec: ModelSpec, photograph: Path, out: Path) -> tuple[Panel, ...]:
    """Draw what a model's plan keeps of a photograph.

    Args:
        spec: The reduced model.
        photograph: An image file; its centre is cut out, as for the model.
        out: PNG to write.

    Returns:
        What was drawn.

    Raises:
        InputError: The plan is empty, the photograph or checkpoint is bad, or ``out`` cannot be
            written.
    """
    if not spec.plan.reductions:
        raise InputError(
            "the dense model keeps everything: there is nothing to draw",
            where="--storm",
            fix="for instance --storm keep=0.5",
        )
    found = panels(spec, preprocess(photograph, spec.height, spec.width))
    # The same cut of the photograph, with more pixels than a small model sees.
    scale = -(-_PANEL // max(spec.height, spec.width))
    picture = draw(preprocess(photograph, spec.height * scale, spec.width * scale), found)
    with atomic_path(out) as temporary:
        picture.save(temporary, format="PNG")
    return found
