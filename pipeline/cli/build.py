# SPDX-License-Identifier: Apache-2.0
"""``stormrt build``: checkpoint to engine, or bundle to engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from stormrt.errors import EXIT_VERDICT, InputError
from stormrt.pipeline.cli.console import JsonOption, note, print_stage, show, show_json
from stormrt.pipeline.cli.options import (
    BatchOption,
    CalibrationOption,
    CheckpointOption,
    ClassesOption,
    DynamicOption,
    PrecisionOption,
    Runtime,
    SeedOption,
    SizeOption,
    StormOption,
    parse_size,
    runtime_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from stormrt.pipeline.build import BuildOutcome


def build_command(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="A bundle made elsewhere, or an archive of one (.tar.gz, .zip): build its engine "
            "here, on the target."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Variant, such as vmamba_tiny_s1l8.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="Target id (stormrt targets list) or a recipe's .toml."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Output folder.")] = Path("build"),
    checkpoint: CheckpointOption = None,
    classes: ClassesOption = None,
    precision: PrecisionOption = None,
    storm: StormOption = "keep=1",
    size: SizeOption = None,
    batch: BatchOption = 1,
    dynamic_batch: DynamicOption = False,
    photos: Annotated[
        Path | None,
        typer.Option("--photos", help="Photographs for validation. Default: 18 installed ones."),
    ] = None,
    calibration: CalibrationOption = None,
    labelled: Annotated[
        Path | None,
        typer.Option(
            "--labelled",
            help="For INT8: labelled images, a folder or an npz, on which it may lose little "
            "against FP16.",
        ),
    ] = None,
    runtime: Annotated[
        Runtime | None, typer.Option("--runtime", help="Default: what can build here.")
    ] = None,
    seed: SeedOption = 0,
    force: Annotated[bool, typer.Option("--force", help="Run every stage again.")] = False,
    from_stage: Annotated[
        str | None, typer.Option("--from", help="Run this stage and later ones again.")
    ] = None,
    to_stage: Annotated[
        str | None,
        typer.Option("--to", help="Stop after this stage; results stay in OUT/.stormrt."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and what would be skipped.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a checkpoint into an engine that is validated against PyTorch.

    INT8 is built beside FP16, and refused where it loses more than the recipe allows.

    Where the target's GPU is not in this machine and its runtime needs it, a bundle is made, and
    the command to type on the target is printed: stormrt build BUNDLE/.
    """
    if bundle is not None:
        if model is not None or target is not None:
            raise InputError(
                "give either a bundle or --model and --target",
                got=f"bundle {bundle} and options of a new build",
            )
        _build_bundle(bundle, runtime, as_json=as_json)
        return
    if model is None or target is None:
        raise InputError(
            "--model and --target are needed",
            fix="for instance stormrt build --model vmamba_tiny_s1l8 --target t4 --out build/",
        )
    from stormrt.pipeline.build import BuildRequest, build

    height, width = parse_size(size)
    request = BuildRequest(
        model=model,
        target=target,
        out=out,
        checkpoint=checkpoint,
        num_classes=classes,
        precision=precision,
        storm=storm,
        height=height,
        width=width,
        batch=batch,
        dynamic_batch=dynamic_batch,
        photographs=photos,
        calibration=calibration,
        labelled=labelled,
        runtime=runtime_name(runtime),
        seed=seed,
        force=force,
        first=from_stage,
        last=to_stage,
        dry_run=dry_run,
    )
    with _engine_progress() as on_progress:
        outcome = build(request, on_stage=print_stage, on_progress=on_progress)
    if as_json:
        show_json(_as_json(outcome))
    else:
        _print_outcome(outcome)
    if outcome.report is not None and not outcome.report.passed:
        raise typer.Exit(EXIT_VERDICT)


def _build_bundle(bundle: Path, runtime: Runtime | None, *, as_json: bool) -> None:
    from stormrt.pipeline.device.names import DEVICE_REPORT_NAME
    from stormrt.pipeline.device.reading import to_json_value
    from stormrt.pipeline.device_build import build_bundle

    with _engine_progress() as on_progress:
        done = build_bundle(
            bundle, runtime=runtime_name(runtime), on_progress=on_progress, on_stage=note
        )
    if as_json:
        show_json(
            {
                "out": str(done.folder),
                "manifest": done.manifest.to_json_value(),
                "report": to_json_value(done.report),
            }
        )
    else:
        from stormrt.pipeline.report_tables import device_to_console

        show(device_to_console(done.report))
        show(f"report: {done.folder / DEVICE_REPORT_NAME}")
    if not done.report.passed:
        raise typer.Exit(EXIT_VERDICT)


@contextmanager
def _engine_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each phase of the engine builder, on stderr, gone when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:

        def update(phase: str, step: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase[:40], total=total)
            progress.update(tasks[phase], completed=step, total=total, visible=step < total)

        yield update


def _print_outcome(outcome: BuildOutcome) -> None:
    from stormrt.pipeline.device.names import SCRIPT_NAME
    from stormrt.pipeline.report import to_console
    from stormrt.pipeline.schema import MANIFEST_NAME, REPORT_JSON_NAME, REPORT_MD_NAME

    out = outcome.plan.out
    if outcome.report is not None:
        show(to_console(outcome.report))
    if outcome.manifest is None:
        return
    if outcome.report is not None:
        made = [f.name for f in outcome.manifest.files]
        for name in (*made, REPORT_JSON_NAME, REPORT_MD_NAME, MANIFEST_NAME):
            size_mib = (out / name).stat().st_size / 2**20
            show(f"{out / name}  {size_mib:.2f} MiB")
    if outcome.manifest.refused is not None:
        show("the INT8 engine was refused; the FP16 build lies beside it")
    if outcome.board_command is not None:
        show(
            f"no engine was built here: {outcome.plan.runtime.blocker}.\n"
            f"copy {out}/ to the target and type there:\n    {outcome.board_command}\n"
            f"or, where stormrt is not installed:\n    python3 {out.absolute().name}/{SCRIPT_NAME}"
        )


def _as_json(outcome: BuildOutcome) -> dict[str, object]:
    return {
        "out": str(outcome.plan.out),
        "stages": dict(outcome.stages),
        "manifest": outcome.manifest and outcome.manifest.to_json_value(),
        "report": outcome.report and outcome.report.to_json_value(),
        "board_command": outcome.board_command,
        "blocker": outcome.plan.runtime.blocker,
    }
