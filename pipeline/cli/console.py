# SPDX-License-Identifier: Apache-2.0
"""What the verbs share: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console, RenderableType

from stormrt.errors import StormrtError

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
