# SPDX-License-Identifier: Apache-2.0
"""``stormrt classify``: what a model sees in a photograph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stormrt.pipeline.cli.console import JsonOption, note_weights, print_stage, show, show_json
from stormrt.pipeline.cli.options import (
    CalibrationOption,
    CheckpointOption,
    ClassesOption,
    EngineTargetOption,
    ExecutorName,
    ExecutorOption,
    ModelOption,
    ModelPrecision,
    ModelPrecisionOption,
    SeedOption,
    SizeOption,
    StormOption,
    WorkOption,
    parse_size,
)


def classify_command(
    photograph: Annotated[Path, typer.Argument(help="An image file.")],
    model: ModelOption,
    checkpoint: CheckpointOption = None,
    storm: StormOption = "keep=1",
    precision: ModelPrecisionOption = ModelPrecision.fp32,
    runtime: ExecutorOption = ExecutorName.onnxruntime,
    top: Annotated[int, typer.Option("--top", help="How many classes to name.")] = 5,
    classes: ClassesOption = None,
    size: SizeOption = None,
    calibration: CalibrationOption = None,
    target: EngineTargetOption = None,
    work: WorkOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Say what a model sees in a photograph, which is cut to its centre and never enlarged."""
    from stormrt.pipeline.evaluation import ModelRequest, classify

    height, width = parse_size(size)
    request = ModelRequest(
        model=model,
        checkpoint=checkpoint,
        num_classes=classes,
        storm=storm,
        precision=precision.value,
        runtime=runtime.value,
        target=target,
        calibration=calibration,
        height=height,
        width=width,
        seed=seed,
        work=work,
    )
    result = classify(request, photograph, top=top, on_stage=print_stage)
    note_weights(result.model)
    if as_json:
        show_json(result.to_json_value())
        return
    from stormrt.pipeline.report import classification_to_console

    show(classification_to_console(result))
