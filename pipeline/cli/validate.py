# SPDX-License-Identifier: Apache-2.0
"""``stormrt validate``: an output folder against PyTorch, again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stormrt.errors import EXIT_VERDICT
from stormrt.pipeline.cli.console import JsonOption, show, show_json


def validate_command(
    folder: Annotated[Path, typer.Argument(help="An output folder of stormrt build.")],
    photos: Annotated[
        Path | None,
        typer.Option("--photos", help="Other photographs than the folder's golden data."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check the files of a build, and its graph and engine against FP32 PyTorch.

    Exit code 1 where an output is outside the recipe's tolerance; the first layer at which the
    graphs part is named.
    """
    from stormrt.pipeline.revalidate import revalidate

    report = revalidate(folder, photos)
    if as_json:
        show_json(report.to_json_value())
    else:
        from stormrt.pipeline.report import to_console

        show(to_console(report))
    if not report.passed:
        raise typer.Exit(EXIT_VERDICT)
