# SPDX-License-Identifier: Apache-2.0
"""``stormrt targets``: the recipes."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from stormrt.pipeline.cli.console import JsonOption, show, show_json
from stormrt.targets import dump_target, list_targets, load_target

app = typer.Typer(help="Show the target recipes.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_command(as_json: JsonOption = False) -> None:
    """List the targets."""
    targets = [load_target(name) for name in list_targets()]
    if as_json:
        show_json([{"id": t.id, "description": t.description} for t in targets])
        return
    table = Table("target", "board", "compute capability", "memory", "runtimes", "precisions")
    for t in targets:
        table.add_row(
            t.id,
            t.description,
            t.compute_capability,
            f"{t.device.memory_mib // 1024} GiB",
            ", ".join(t.runtime_names),
            ", ".join(t.build.precisions),
        )
    show(table)


@app.command("show")
def show_command(
    target: Annotated[str, typer.Argument(help="A target's id, or a recipe's .toml.")],
    as_json: JsonOption = False,
) -> None:
    """Show one recipe, resolved."""
    recipe = dump_target(load_target(target))
    if as_json:
        show_json(recipe)
        return
    table = Table(show_header=False)
    for key, value in _flatten("", recipe):
        table.add_row(key, str(value))
    show(table)


def _flatten(prefix: str, value: object) -> list[tuple[str, object]]:
    if isinstance(value, dict):
        return [
            row
            for key, inner in value.items()
            for row in _flatten(f"{prefix}.{key}" if prefix else str(key), inner)
        ]
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        return [row for i, inner in enumerate(value) for row in _flatten(f"{prefix}.{i}", inner)]
    return [(prefix, ", ".join(map(str, value)) if isinstance(value, list) else value)]
