# SPDX-License-Identifier: Apache-2.0
"""What the verbs share: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType

from stormrt.errors import StormrtError

if TYPE_CHECKING:
    from stormrt.pipeline.artifacts import ModelSpec

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def show(renderable: RenderableType) -> None:
    """Print a result for a person. Piped output is not cut at 80 columns."""
    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console = Console(width=200)
    console.print(renderable, highlight=False)


def note(text: str) -> None:
    """Print a line of progress."""
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)


def print_stage(stage: str, status: str, seconds: float | None) -> None:
    """Say what happens to a stage: an observer of a chain's stages (``build.StageEvent``)."""
    if status == "run" and seconds is None:
        note(f"{stage:<10} ...")
    elif status == "run":
        note(f"{stage:<10} done in {seconds:.1f} s")
    elif status == "skipped":
        note(f"{stage:<10} skipped: its inputs have not changed")
    else:
        note(f"{stage:<10} {status}")


def note_weights(spec: ModelSpec) -> None:
    """Say that a model's classes mean nothing, where they do."""
    if spec.checkpoint is None:
        note(
            f"the weights are random (seed {spec.seed}): the classes mean nothing; "
            f"{spec.name} needs a --checkpoint"
        )


def show_json(value: object) -> None:
    """Print a result for a program."""
    typer.echo(json.dumps(value, indent=2, default=str))


def show_error(error: StormrtError, *, as_json: bool) -> None:
    """Print an error once: for a person on stderr, or for a program on stdout."""
    if as_json:
        fields = {k: getattr(error, k) for k in ("what", "where", "got", "expected", "fix")}
        show_json({"error": {k: v for k, v in fields.items() if v is not None}})
        return
    console = Console(stderr=True)
    console.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
