# SPDX-License-Identifier: Apache-2.0
"""``stormrt package``: hand an engine over to Isaac ROS, Triton, DeepStream or a C++ program."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stormrt.pipeline.cli.console import JsonOption, note, show, show_json


class HostName(str, Enum):
    """Hosts."""

    isaac_ros = "isaac-ros"
    triton = "triton"
    deepstream = "deepstream"
    plain = "plain"


def package_command(
    bundle: Annotated[Path, typer.Argument(help="An output folder of stormrt build.")],
    host: Annotated[
        HostName, typer.Option("--for", help="What runs the engine; plain is a C++ program.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Output folder.")],
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", help="Class names, one a line. Default: of the card beside the weights."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a build into the files that a host expects, with a README.

    A bundle without an engine is packaged too, with the script that builds the engine on the
    target.
    """
    from stormrt.pipeline.package.assemble import INDEX_NAME, package_bundle

    package = package_bundle(bundle, host.value, out, labels=labels)
    if as_json:
        show_json({"out": str(package.folder), "package": package.index.to_json_value()})
        return
    for name in (*(f.name for f in package.index.files), INDEX_NAME):
        size_kib = (package.folder / name).stat().st_size / 2**10
        show(f"{package.folder / name}  {size_kib:.1f} KiB")
    for text in package.index.notes:
        note(f"to do: {text}")
    show(f"what to type there: {package.folder / 'README.md'}")
