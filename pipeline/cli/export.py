# SPDX-License-Identifier: Apache-2.0
"""``stormrt export``: checkpoint to ONNX."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stormrt.errors import InputError
from stormrt.pipeline.cli.console import JsonOption, show, show_json
from stormrt.pipeline.cli.options import (
    BatchOption,
    CheckpointOption,
    ClassesOption,
    DynamicOption,
    ModelOption,
    SeedOption,
    SizeOption,
    StormOption,
    parse_size,
)


class LoweringChoice(str, Enum):
    """Forms of the ONNX file."""

    native = "native"
    plugin = "plugin"
    marker = "marker"


class PrecisionChoice(str, Enum):
    """Precisions of the ONNX file."""

    fp32 = "fp32"
    fp16 = "fp16"


def export_command(
    model: ModelOption,
    out: Annotated[Path, typer.Option("--out", help="ONNX file to write.")],
    lowering: Annotated[
        LoweringChoice,
        typer.Option(
            "--lowering",
            help="native: standard ops. plugin: custom nodes for TensorRT plugins. "
            "marker: custom nodes with their meaning attached as functions.",
        ),
    ] = LoweringChoice.native,
    precision: Annotated[
        PrecisionChoice, typer.Option("--precision", help="Precision.")
    ] = PrecisionChoice.fp32,
    checkpoint: CheckpointOption = None,
    classes: ClassesOption = None,
    storm: StormOption = "keep=1",
    size: SizeOption = None,
    batch: BatchOption = 1,
    dynamic_batch: DynamicOption = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write the model as ONNX."""
    from stormrt.locking import cannot_write
    from stormrt.pipeline.graph_stages import workstation_packages
    from stormrt.pipeline.model_spec import resolve_spec

    height, width = parse_size(size)
    spec = resolve_spec(
        model,
        checkpoint=checkpoint,
        num_classes=classes,
        storm=storm,
        height=height,
        width=width,
        batch=batch,
        dynamic_batch=dynamic_batch,
        seed=seed,
    )
    if out.is_dir():
        raise InputError("--out is a folder", where=str(out), expected="an .onnx file's name")
    with workstation_packages():
        from stormrt.pipeline.export import export
        from stormrt.pipeline.lower import lower
        from stormrt.pipeline.onnx_file import digest_of, load_onnx, plugin_uses
        from stormrt.pipeline.precision import set_precision
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".stormrt-", dir=out.parent)
    except OSError as error:
        raise cannot_write(out, error) from error
    with temporary as folder:
        work = Path(folder)
        export(spec, work / "exported.onnx")
        set_precision(work / "exported.onnx", precision.value, work / "quantized.onnx")
        if lowering is LoweringChoice.marker:
            final = work / "quantized.onnx"
        else:
            lower(work / "quantized.onnx", work / "native.onnx", work / "plugin.onnx")
            final = work / f"{lowering.value}.onnx"
        final.replace(out)
    proto = load_onnx(out)
    file, uses = digest_of(out), plugin_uses(proto)
    if as_json:
        show_json(
            {
                "file": str(out),
                "sha256": file.sha256,
                "size_bytes": file.size_bytes,
                "nodes": len(proto.graph.node),
                "plugins": [asdict(use) for use in uses],
                "storm": spec.plan.describe(),
            }
        )
        return
    show(f"{out}: {len(proto.graph.node)} nodes, {file.size_bytes / 2**20:.1f} MiB")
    for use in uses:
        show(f"  {use.count} x {use.name}, version {use.version}")
