# SPDX-License-Identifier: Apache-2.0
"""``stormrt storm``: what token reduction does to an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.pipeline.cli.console import JsonOption, note_weights, show, show_json
from stormrt.pipeline.cli.options import (
    CheckpointOption,
    ClassesOption,
    ModelOption,
    SeedOption,
    SizeOption,
    StormOption,
    parse_size,
)

app = typer.Typer(
    help="Show what token reduction keeps.", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def _group() -> None:
    """Show what token reduction keeps."""


@app.command("show")
def show_command(
    photo: Annotated[Path, typer.Argument(help="An image file.")],
    model: ModelOption,
    storm: StormOption = "keep=0.5",
    checkpoint: CheckpointOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="PNG to write. Default: PHOTO-storm.png, here.")
    ] = None,
    classes: ClassesOption = None,
    size: SizeOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Draw over a photograph which units leave: a panel for each reduction.

    What stays is clear, what leaves is red, what had left before is dark.
    """
    from stormrt.pipeline.model_spec import resolve_spec

    height, width = parse_size(size)
    spec = resolve_spec(
        model,
        checkpoint=checkpoint,
        num_classes=classes,
        storm=storm,
        height=height,
        width=width,
        seed=seed,
    )
    file = out or Path(f"{photo.stem}-storm.png")
    if file.is_dir():
        raise InputError("--out is a folder", where=str(file), expected="a .png file's name")
    try:
        from stormrt.pipeline.storm_picture import show_reductions
    except ModuleNotFoundError as error:
        raise EnvironmentMissingError(
            f"the package {error.name!r} is not installed",
            fix='pip install "stormrt[workstation]"',
        ) from error
    found = show_reductions(spec, photo, file)
    note_weights(spec)
    if as_json:
        kept = [
            {
                "stage": panel.reduction.stage,
                "block": panel.reduction.block,
                "caption": list(panel.caption()),
                "leaves": float(panel.leaves.mean()),
            }
            for panel in found
        ]
        show_json({"file": str(file), "storm": spec.plan.describe(), "reductions": kept})
        return
    for panel in found:
        show(": ".join(panel.caption()))
    show(str(file))
