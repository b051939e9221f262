# SPDX-License-Identifier: Apache-2.0
"""``stormrt plugins``: the custom operators and their library."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from stormrt.errors import EXIT_ENVIRONMENT, EXIT_VERDICT, InputError
from stormrt.pipeline.cli.console import JsonOption, note, show, show_json
from stormrt.plugins.builder import DEFAULT_ARCHS, build_library
from stormrt.plugins.check import check_library
from stormrt.plugins.derive.cpp_header import native_plugins
from stormrt.plugins.native import LIBRARY_VARIABLE, library_path
from stormrt.plugins.registry import all_plugins
from stormrt.plugins.spec import DOMAIN, PluginSpec
from stormrt.targets import load_target

app = typer.Typer(
    help="Show, build and check the custom operators.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def list_command(as_json: JsonOption = False) -> None:
    """List the operators."""
    native = {spec.name for spec in native_plugins()}
    specs = list(all_plugins().values())
    if as_json:
        show_json(
            [
                {"name": s.name, "version": s.version, "native": s.name in native, "doc": s.doc}
                for s in specs
            ]
        )
        return
    table = Table("operator", "version", "inputs", "outputs", "TensorRT plugin")
    for s in specs:
        inputs, outputs = (", ".join(t.name for t in group) for group in (s.inputs, s.outputs))
        table.add_row(s.name, s.version, inputs, outputs, "yes" if s.name in native else "no")
    show(table)


@app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="An operator, such as SelectiveScan2D.")],
    as_json: JsonOption = False,
) -> None:
    """Show one operator's contract."""
    spec = _find(name)
    if as_json:
        show_json({**asdict(spec), "namespace": DOMAIN, "attributes": spec.attributes()})
        return
    table = Table("", "name", "shape", "type", "meaning", title=f"{spec.name} {spec.version}")
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for t in tensors:
            table.add_row(kind, t.name, f"({', '.join(t.shape)})", t.dtype, t.doc)
    show(table)
    constants = "".join(f"; {symbol} = {value}" for symbol, value in spec.constants)
    show(f"T: {' or '.join(spec.io_dtypes)}{constants}\n\n{spec.doc}")


@app.command("build")
def build_command(
    target: Annotated[
        str | None, typer.Option("--target", help="Compile for one board's GPU only.")
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option("--arch", help="Compute capabilities times ten. Default: 75,87,90."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the libraries.")] = Path(
        "build/plugins"
    ),
    force: Annotated[bool, typer.Option("--force", help="Build even if nothing changed.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Take the compilers' warnings for errors.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compile the plugin library with nvcc."""
    if target and arch:
        raise InputError(
            "--target and --arch both name GPUs",
            got=f"--target {target} --arch {arch}",
            fix="give one of them",
        )
    if target:
        archs: tuple[int, ...] = (load_target(target).device.sm,)
    else:
        archs = _parse_archs(arch) if arch else DEFAULT_ARCHS
    note(f"compiling for {', '.join(map(str, archs))}; kernels take a minute or more")
    result = build_library(out, archs, force=force, strict=strict)
    if as_json:
        show_json(
            {
                "core": str(result.core.resolve()),
                "autoload": str(result.autoload.resolve()),
                "skipped": result.skipped,
                "manifest": asdict(result.manifest),
            }
        )
        return
    state = "nothing has changed" if result.skipped else "built"
    show(f"{state}: {result.core} ({', '.join(result.manifest.archs)})")
    show(f"export {LIBRARY_VARIABLE}={result.core.resolve()}")


@app.command("check")
def check_command(
    library: Annotated[
        Path | None,
        typer.Option("--library", help=f"The library. Default: what {LIBRARY_VARIABLE} names."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Load the library through every TensorRT that is installed.

    Exit code 1 where one fails; 3 where none is installed that could load it.
    """
    path = library or library_path()
    if not path.is_file():
        raise InputError(
            "the plugin library does not exist", where=str(path), fix="run stormrt plugins build"
        )
    checks = check_library(path)
    if as_json:
        show_json([{**asdict(c), "creators": [c._asdict() for c in c.creators]} for c in checks])
    else:
        table = Table("loaded by", "status", "detail", "plugins")
        for c in checks:
            found = ", ".join(f"{i.namespace}::{i.name} {i.version}" for i in c.creators)
            table.add_row(c.host, c.status, c.detail, found)
        show(table)
    if any(c.status == "failed" for c in checks):
        raise typer.Exit(EXIT_VERDICT)
    if all(c.status == "not run" for c in checks[1:]):
        raise typer.Exit(EXIT_ENVIRONMENT)


def _parse_archs(text: str) -> tuple[int, ...]:
    parts = re.split(r"[,;\s]+", text.strip())
    if not all(part.isdecimal() for part in parts):
        raise InputError(
            "the compute capabilities were not understood",
            where="--arch",
            got=text,
            expected="numbers such as 87, or 75,87",
        )
    return tuple(int(part) for part in parts)


def _find(name: str) -> PluginSpec:
    for spec in all_plugins().values():
        if name in (spec.name, spec.torch_name, spec.qualified_name):
            return spec
    raise InputError(
        f"there is no operator {name!r}",
        expected=", ".join(all_plugins()),
        fix="stormrt plugins list",
    )
