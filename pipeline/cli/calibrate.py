# SPDX-License-Identifier: Apache-2.0
"""``stormrt calibrate``: the scales of an INT8 build, from images."""

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
    TaskID,
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
    CheckpointOption,
    ClassesOption,
    ModelOption,
    SeedOption,
    SizeOption,
    StormOption,
    parse_size,
)

if TYPE_CHECKING:
    from stormrt.calibration.images import ImageEvent
    from stormrt.calibration.table import CalibrationTable


class ObserverChoice(str, Enum):
    """Observers by their names in the table."""

    min_max = "min-max"
    percentile = "percentile"
    entropy = "entropy"
    mse = "mse"


def calibrate_command(
    model: ModelOption,
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            help="A folder of images, an npz of encoded images, or a photograph (then it may be "
            "given several times).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Table to write.")] = Path("calibration.json"),
    checkpoint: CheckpointOption = None,
    storm: StormOption = "keep=1",
    size: SizeOption = None,
    classes: ClassesOption = None,
    images: Annotated[
        int | None,
        typer.Option("--images", help="How many images; all where there are fewer. Default: 512."),
    ] = None,
    observer: Annotated[
        ObserverChoice,
        typer.Option("--observer", help="How a range is chosen. Another one needs no new run."),
    ] = ObserverChoice.mse,
    percentile: Annotated[
        float | None,
        typer.Option(
            "--percentile",
            help="Share of the values that the range holds, in per cent, for --observer "
            "percentile. Default: 99.99.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            help="Part of an npz, or subfolder. Default: train where there is one, else what "
            "there is.",
        ),
    ] = None,
    smoothing: Annotated[
        bool,
        typer.Option(
            "--smoothing/--no-smoothing",
            help="Make channels that outlie smaller, and their weights larger.",
        ),
    ] = True,
    batch: Annotated[
        int, typer.Option("--batch", help="Images a call. More need more memory.")
    ] = 1,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            help="Folder that keeps what was observed, for a run that was killed or another "
            "observer. Default: a hidden one beside --out.",
        ),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Observe a model's activations on images and choose their INT8 ranges.

    A table is of one model, checkpoint, image size and STORM plan. Images that are smaller than
    the model's input are refused; those that cannot be read or have no contrast are skipped and
    named, and more than 5 % of them is an error. A run that was killed goes on where it was.
    """
    from stormrt.calibration.images import ENOUGH
    from stormrt.pipeline.calibrate import (
        CalibrateRequest,
        RangeOptions,
        calibrate,
        work_folder,
    )

    height, width = parse_size(size)
    request = CalibrateRequest(
        model=model,
        data=tuple(data),
        out=out,
        checkpoint=checkpoint,
        num_classes=classes,
        storm=storm,
        height=height,
        width=width,
        batch=batch,
        seed=seed,
        images=ENOUGH if images is None else images,
        split=split,
        ranges=RangeOptions(observer.value, percentile, smoothing),
        work=work,
    )
    with _image_progress() as on_image:
        table = calibrate(request, on_stage=print_stage, on_image=on_image)
    note_weights(table.model)
    for skipped in table.skipped:
        note(f"skipped {skipped}")
    if len(table.images) < min(request.images, ENOUGH):
        note(f"there were only {len(table.images)} images to use; {ENOUGH} or more are better")
    if as_json:
        show_json(_summary(table, out))
        return
    show(
        f"{out}: ranges of {len(table.tensors)} tensors by {_observer(table)}, "
        f"{len(table.smoothing)} of them smoothed, from {len(table.images)} images"
    )
    show(f"{work or work_folder(out)}: what was observed; another --observer reads it again")


def _observer(table: CalibrationTable) -> str:
    return table.observer if table.percentile is None else f"percentile {table.percentile:g}"


def _summary(table: CalibrationTable, out: Path) -> dict[str, object]:
    """The table without its long lists, which are in the file."""
    return {
        "file": str(out),
        "graph_sha256": table.graph_sha256,
        "model": table.model.name,
        "plan": table.plan,
        "observer": table.observer,
        "percentile": table.percentile,
        "tensors": len(table.tensors),
        "smoothed": len(table.smoothing),
        "images": len(table.images),
        "skipped": list(table.skipped),
    }


@contextmanager
def _image_progress() -> Iterator[ImageEvent]:
    """A bar for each thing that is done to images, on stderr, gone when all is done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    tasks: dict[str, TaskID] = {}
    # Where nobody looks at a terminal, a bar would leave only an empty line.
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield update
