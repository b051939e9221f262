# SPDX-License-Identifier: Apache-2.0
"""``stormrt inspect``: what a file or folder is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from stormrt.pipeline.cli.console import JsonOption, show, show_json


def inspect_command(
    path: Annotated[Path, typer.Argument(help="An output folder, ONNX file or checkpoint.")],
    as_json: JsonOption = False,
) -> None:
    """Show what an output folder, an ONNX file or a checkpoint holds."""
    from stormrt.pipeline.inspection import inspect_path

    facts = inspect_path(path)
    if as_json:
        show_json(facts)
        return
    table = Table(show_header=False)
    for name, value in facts.items():
        text = "\n".join(map(str, value)) if isinstance(value, list) else str(value)
        table.add_row(name, text)
    show(table)
