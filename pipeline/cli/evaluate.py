# SPDX-License-Identifier: Apache-2.0
"""``stormrt evaluate``: top-1 and confusion over a data set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from stormrt.pipeline.cli.console import (
    JsonOption,
    note,
    note_weights,
    print_stage,
    show,
    show_json,
)
from stormrt.pipeline.cli.options import (
    BatchOption,
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

if TYPE_CHECKING:
    from stormrt.pipeline.evaluation import ImageEvent


class SplitChoice(str, Enum):
    """Parts of an npz."""

    test = "test"
    train = "train"


def evaluate_command(
    model: ModelOption,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="A folder with a subfolder of images for each class, or an npz of encoded images.",
        ),
    ],
    checkpoint: CheckpointOption = None,
    storm: StormOption = "keep=1",
    precision: ModelPrecisionOption = ModelPrecision.fp32,
    runtime: ExecutorOption = ExecutorName.onnxruntime,
    split: Annotated[
        SplitChoice | None, typer.Option("--split", help="Part of an npz. Default: test.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", help="At most this many images, spread evenly over all."),
    ] = None,
    batch: BatchOption = 8,
    classes: ClassesOption = None,
    size: SizeOption = None,
    calibration: CalibrationOption = None,
    target: EngineTargetOption = None,
    work: WorkOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Say how often a model names the right class, and what it takes for what.

    Images smaller than the model's input are refused: enlarging them would flatter the model.
    Those that cannot be read are skipped and named; more than 5 % of them is an error.
    """
    from stormrt.pipeline.evaluation import EvaluationRequest, ModelRequest, evaluate

    height, width = parse_size(size)
    request = EvaluationRequest(
        ModelRequest(
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
            batch=batch,
            seed=seed,
            work=work,
        ),
        data=data,
        split=None if split is None else split.value,
        limit=limit,
    )
    with _image_progress() as on_image:
        result = evaluate(request, on_stage=print_stage, on_image=on_image)
    note_weights(result.model)
    for skipped in result.skipped:
        note(f"skipped {skipped.name}: {skipped.reason}")
    if as_json:
        show_json(result.to_json_value())
        return
    from stormrt.pipeline.report import evaluation_to_console

    show(evaluation_to_console(result))


@contextmanager
def _image_progress() -> Iterator[ImageEvent]:
    """A bar on stderr, gone when it is done."""
    columns = (
        TextColumn("images"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # Where nobody looks at a terminal, a bar would leave only an empty line.
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("images", total=None, visible=False)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, visible=True)

        yield update
