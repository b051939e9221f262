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
from stormrt.pipeline.cli.sensitivity import ExtraChoice, sensitivity_options, show_ranking

if TYPE_CHECKING:
    from stormrt.calibration.images import ImageEvent
    from stormrt.calibration.table import CalibrationTable
    from stormrt.pipeline.quantize.overflow import OverflowSearch


class ObserverChoice(str, Enum):
    """Observers by their names in the table."""

    min_max = "min-max"
    percentile = "percentile"
    entropy = "entropy"
    mse = "mse"


_SENSITIVITY = "Sensitivity"


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
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity",
            help="Then rank the layers by what quantising each alone does to the output.",
            rich_help_panel=_SENSITIVITY,
        ),
    ] = False,
    sensitivity_images: Annotated[
        int | None,
        typer.Option(
            "--sensitivity-images",
            help="Calibration images that layers are ranked on. Default: 32.",
            rich_help_panel=_SENSITIVITY,
        ),
    ] = None,
    also: Annotated[
        list[ExtraChoice] | None,
        typer.Option(
            "--also",
            help="Layers to rank beside those that a build quantises; may be given twice.",
            rich_help_panel=_SENSITIVITY,
        ),
    ] = None,
    most_error: Annotated[
        float | None,
        typer.Option(
            "--most-error",
            help="Find the fewest layers to keep in float so that the logits' relative L2 against "
            "FP32 is at most this, on the calibration images, where it is smaller than on others.",
            rich_help_panel=_SENSITIVITY,
        ),
    ] = None,
    most_top1_loss: Annotated[
        float | None,
        typer.Option(
            "--most-top1-loss",
            help="The same by top-1 of the --labelled images below FP32's: 0.005 is half a point.",
            rich_help_panel=_SENSITIVITY,
        ),
    ] = None,
    labelled: Annotated[
        Path | None,
        typer.Option(
            "--labelled",
            help="Labelled images for top-1: a folder with a subfolder for each class, or an npz.",
            rich_help_panel=_SENSITIVITY,
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

    options = sensitivity_options(
        sensitivity, sensitivity_images, also, most_error, most_top1_loss, labelled
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
    report = None
    with _image_progress() as on_image:
        table = calibrate(request, on_stage=print_stage, on_image=on_image)
    if options is not None:
        from stormrt.pipeline.sensitivity.analyse import analyse

        with _image_progress() as on_step:
            report = analyse(request, table, options, on_step=on_step)
    note_weights(table.model)
    for skipped in table.skipped:
        note(f"skipped {skipped}")
    if len(table.images) < min(request.images, ENOUGH):
        note(f"there were only {len(table.images)} images to use; {ENOUGH} or more are better")
    overflow = _overflow(table, work or work_folder(out))
    if as_json:
        ranked = {} if report is None else {"sensitivity": report.to_json_value()}
        show_json({**_summary(table, out, overflow), **ranked})
        return
    show(
        f"{out}: ranges of {len(table.tensors)} tensors by {_observer(table)}, "
        f"{len(table.smoothing)} of them smoothed, from {len(table.images)} images"
    )
    show(f"FP16: {overflow.describe()}")
    show(f"{work or work_folder(out)}: what was observed; another --observer reads it again")
    if report is not None:
        show_ranking(report, out)


def _observer(table: CalibrationTable) -> str:
    return table.observer if table.percentile is None else f"percentile {table.percentile:g}"


def _overflow(table: CalibrationTable, work: Path) -> OverflowSearch:
    """What an FP16 graph, which is not smoothed, has to keep in FP32."""
    from stormrt.pipeline.graph_stages import EXPORTED_NAME
    from stormrt.pipeline.onnx_file import load_onnx
    from stormrt.pipeline.quantize.overflow import search_overflow

    return search_overflow(load_onnx(work / EXPORTED_NAME), table, smoothed=False)


def _summary(table: CalibrationTable, out: Path, overflow: OverflowSearch) -> dict[str, object]:
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
        "fp16": {
            "values": overflow.values,
            "largest": overflow.largest,
            "tensor": overflow.tensor,
            "stay_in_fp32": sorted(overflow.islands),
        },
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
