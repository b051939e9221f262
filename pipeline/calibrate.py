# SPDX-License-Identifier: Apache-2.0
"""``ModelSpec`` and images -> ``CalibrationTable``: every scale of an INT8 build.

    choose images -> export -> largest value of each channel, on a part of the images
                  -> smoothing, on a copy of the graph -> ranges, on all images -> table

What was observed is kept in the work folder, so that a killed run goes on and another observer
needs no new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stormrt.calibration.images import ENOUGH, CalibrationImages, choose_images
from stormrt.calibration.observers import DEFAULT_PERCENTILE, check_percentile, range_of
from stormrt.calibration.table import CalibrationTable, ObserverName, TensorRange
from stormrt.errors import InputError
from stormrt.locking import folder_lock
from stormrt.pipeline.artifacts import ExportedGraph, ModelSpec
from stormrt.pipeline.build import StageEvent
from stormrt.pipeline.evaluation import MOST_UNREADABLE
from stormrt.pipeline.files import require_folder, sweep, write_text
from stormrt.pipeline.graph_stages import EXPORTED_NAME, export_stage, workstation_packages
from stormrt.pipeline.model_spec import as_card_says, resolve_spec
from stormrt.pipeline.provenance import tools
from stormrt.pipeline.stage_runner import StageRunner

if TYPE_CHECKING:
    from stormrt.calibration.collect import Progress
    from stormrt.calibration.images import ImageEvent
    from stormrt.calibration.statistics import Statistics

DEFAULT_OBSERVER: ObserverName = "mse"
SMOOTHING_IMAGES = 128
"""Images that the largest value of each channel is taken from."""
SMOOTHING_STRENGTH = 0.5

_SMOOTHING = "smoothing.npz"
_RANGES = "ranges.npz"
_SMOOTHED_RANGES = "ranges-smoothed.npz"


@dataclass(frozen=True, slots=True)
class RangeOptions:
    """How ranges are chosen from what is observed."""

    observer: ObserverName = DEFAULT_OBSERVER
    percentile: float | None = None
    """Share of the values to hold, in per cent; None: the default of the observer ``percentile``,
    which alone has one."""
    smoothing: bool = True
    """Channels that outlie are divided before they are quantised, and their weights multiplied."""


@dataclass(frozen=True, slots=True)
class CalibrateRequest:
    """What the user asked for, not yet checked. None: the model's own."""

    model: str
    data: tuple[Path, ...]
    """A folder, an npz, or photographs."""
    out: Path
    """The table's file."""
    checkpoint: Path | None = None
    num_classes: int | None = None
    storm: str = "keep=1"
    height: int | None = None
    """Image height in pixels."""
    width: int | None = None
    batch: int = 1
    """Of the graph. A build's own makes it the very graph of that build."""
    seed: int = 0
    images: int = ENOUGH
    split: str | None = None
    ranges: RangeOptions = RangeOptions()
    work: Path | None = None
    """Folder for the graph and what was observed; None: a hidden one beside ``out``."""


def calibrate(
    request: CalibrateRequest,
    *,
    on_stage: StageEvent = lambda *_: None,
    on_image: ImageEvent = lambda *_: None,
) -> CalibrationTable:
    """Make a calibration table and write it to ``request.out``.

    Args:
        request: What was asked for.
        on_stage: Told of the stage that exports the model.
        on_image: Told of each image that is hashed, checked, or observed.

    Raises:
        InputError: Bad input: the model, the images, or an activation that is not finite.
        EnvironmentMissingError: A package is missing.
    """
    _check_options(request.ranges)
    spec = _resolve(request)
    if request.out.is_dir():
        raise InputError(
            "--out is a folder", where=str(request.out), expected="a .json file's name"
        )
    work = request.work or work_folder(request.out)
    require_folder(request.out.parent)
    require_folder(work)
    with folder_lock(work):
        sweep(work, "*")
        with workstation_packages():
            images = choose_images(
                request.data,
                spec.height,
                spec.width,
                wanted=request.images,
                split=request.split,
                most_unusable=MOST_UNREADABLE,
                on_image=on_image,
            )
        exported = _export(spec, work, on_stage)
        table = calibrate_graph(
            spec,
            work / EXPORTED_NAME,
            exported.file.sha256,
            images,
            request.ranges,
            work,
            on_image=on_image,
        )
    write_text(request.out, table.to_json())
    return table


def work_folder(out: Path) -> Path:
    """Where what was observed is kept for a table's file, unless the user says."""
    return out.with_name(f".{out.name}.work")


def calibrate_graph(
    spec: ModelSpec,
    graph: Path,
    graph_sha256: str,
    images: CalibrationImages,
    options: RangeOptions,
    work: Path,
    *,
    on_image: ImageEvent = lambda *_: None,
) -> CalibrationTable:
    """Make the calibration table of an exported graph.

    Args:
        spec: The model.
        graph: Its exported graph, FP32 (``ExportedGraph``).
        graph_sha256: The graph's digest.
        images: From ``choose_images``, for the spec's size.
        options: How ranges are chosen.
        work: Folder that keeps what was observed.
        on_image: Told of each image that is observed.

    Raises:
        InputError: An activation is not finite, an image has changed, or the folder cannot be
            written.
        EnvironmentMissingError: A package is missing.
    """
    with workstation_packages():
        from stormrt.calibration.collect import collect
        from stormrt.pipeline.onnx_file import load_onnx
        from stormrt.pipeline.quantize.overflow import fp16_values
        from stormrt.pipeline.quantize.policy import (
            QuantizationPolicy,
            calibrated_tensors,
            quantised_nodes,
        )
        from stormrt.pipeline.quantize.smooth import fold_smoothing, smoothing_scales
    model = load_onnx(graph)
    nodes = quantised_nodes(model)

    def observe(
        tensors: Iterable[str],
        part: CalibrationImages,
        file: str,
        what: str,
        also: Sequence[str] = (),
    ) -> Statistics:
        return collect(
            model,
            list(tensors),
            part,
            batch=spec.batch,
            also=also,
            keep=work / file,
            on_image=_as(what, on_image),
        )

    scales: dict[str, NDArray[np.float32]] = {}
    if options.smoothing:
        few = replace(images, images=images.images[:SMOOTHING_IMAGES])
        activations = dict.fromkeys(node.activation for node in nodes)
        seen = observe(activations, few, _SMOOTHING, "observing channels").tensors
        largest = {name: tensor.channel_largest for name, tensor in seen.items()}
        scales = smoothing_scales(model, nodes, largest, SMOOTHING_STRENGTH)
        fold_smoothing(model, scales)
    # All that any policy could quantise: another one, or a ranking of layers, needs no new run.
    tensors = calibrated_tensors(model, QuantizationPolicy(rules=(), residuals=True))
    file = _SMOOTHED_RANGES if options.smoothing else _RANGES
    others = [name for name in fp16_values(model) if name not in tensors]
    statistics = observe(tensors, images, file, "observing ranges", others)
    return CalibrationTable(
        graph_sha256=graph_sha256,
        model=spec,
        plan=spec.plan.describe(),
        observer=options.observer,
        percentile=_percentile(options),
        smoothing={name: _exactly(scale) for name, scale in sorted(scales.items())},
        tensors={name: _range(statistics, name, options) for name in tensors},
        largest={name: float(f"{statistics.largest[name]:.9g}") for name in others},
        images=images.images,
        skipped=tuple(f"{s.name}: {s.reason}" for s in images.skipped),
        tools=tools(),
    )


def _range(statistics: Statistics, name: str, options: RangeOptions) -> TensorRange:
    seen = statistics.tensors[name]
    amax = range_of(seen, options.observer, _percentile(options) or DEFAULT_PERCENTILE)
    return TensorRange(
        amax=float(f"{amax:.9g}"),
        largest=float(f"{seen.largest:.9g}"),
        # They correct biases: seven digits are as many as those have.
        mean=tuple(float(f"{mean:.7g}") for mean in seen.mean),
    )


def _exactly(values: NDArray[np.float32]) -> tuple[float, ...]:
    """FP32 numbers by the nine digits that give them back."""
    return tuple(float(f"{value:.9g}") for value in values)


def _as(what: str, on_image: ImageEvent) -> Progress:
    return lambda done, total: on_image(what, done, total)


def _percentile(options: RangeOptions) -> float | None:
    if options.observer != "percentile":
        return None
    return DEFAULT_PERCENTILE if options.percentile is None else options.percentile


def _check_options(options: RangeOptions) -> None:
    if options.percentile is None:
        return
    check_percentile(options.percentile)
    if options.observer != "percentile":
        raise InputError(
            f"the observer {options.observer} has no percentile",
            where="--percentile",
            got=str(options.percentile),
            fix="add --observer percentile, or leave --percentile out",
        )


def _resolve(request: CalibrateRequest) -> ModelSpec:
    spec = resolve_spec(
        request.model,
        checkpoint=request.checkpoint,
        num_classes=request.num_classes,
        storm=request.storm,
        height=request.height,
        width=request.width,
        batch=request.batch,
        seed=request.seed,
    )
    return as_card_says(spec, request.num_classes)[0]


def _export(spec: ModelSpec, work: Path, on_stage: StageEvent) -> ExportedGraph:
    """The graph as a build exports it, made or skipped."""
    exported = export_stage(StageRunner(work, on_stage), spec, work)
    assert exported is not None  # it was asked for
    return exported
