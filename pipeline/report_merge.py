# SPDX-License-Identifier: Apache-2.0
"""Reports of a workstation and of devices -> the rows of one table. Computes no number anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from stormrt.errors import InputError
from stormrt.pipeline.device.names import MANIFEST_NAME
from stormrt.pipeline.device.reading import read_reports
from stormrt.pipeline.device.report import DeviceReport, EngineResult, ModelFacts, Number
from stormrt.pipeline.schema import Document, Manifest, ValidationReport, ValidationRow


class MergedRow(BaseModel):
    """One graph or engine, where it was run."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    source: str
    """The report's file."""
    target: str
    runtime: str
    runtime_version: str | None
    """None: the report does not say."""
    gpu: str | None
    """Where it ran; None: on the CPU, or not at all."""
    precision: str
    size_bytes: int | None
    """Of the engine, or of the graph that onnxruntime runs; None: the report does not say."""
    status: Literal["passed", "failed", "not run"]
    """Against FP32 PyTorch on the golden images."""
    reason: str
    rel_l2: float | None
    argmax_agreement: float | None
    top1: float | None
    """Of labelled images; None: none were given."""
    p50_ms: float | None
    """Of the engine alone; None: not run."""
    call_p50_ms: float | None
    """With the copies of images and logits."""
    power_mode: str | None
    gpu_clock_mhz: Number | None
    """Before timing."""


class MergedReport(Document):
    """``stormrt report --json``."""

    models: tuple[str, ...]
    """What the rows are of; more than one: they cannot be compared."""
    rows: tuple[MergedRow, ...]


def merge_files(paths: Sequence[Path]) -> MergedReport:
    """Read reports and put them into one table.

    Args:
        paths: Files or folders (``read_reports``).

    Raises:
        InputError: None are given, or one is missing or damaged.
    """
    if not paths:
        raise InputError(
            "no report is named",
            fix="for instance stormrt report build/report.json from_the_board/device_report.json",
        )
    rows: list[MergedRow] = []
    models: list[str] = []
    for path in paths:
        for report in read_reports(path):
            if isinstance(report, DeviceReport):
                rows += device_rows(report, str(path))
                models.append(_model_text(report.model))
            else:
                folder = path if path.is_dir() else path.parent
                rows += _workstation_rows(report, str(path), folder)
                spec = report.model
                reductions = len(spec.plan.reductions)
                models.append(
                    _model_text(
                        ModelFacts(
                            spec.name,
                            spec.height,
                            spec.width,
                            spec.batch,
                            spec.dynamic_batch,
                            reductions,
                        )
                    )
                )
    return MergedReport(models=tuple(dict.fromkeys(models)), rows=tuple(rows))


def _model_text(model: ModelFacts) -> str:
    cut = f", {model.reductions} reductions" if model.reductions else ""
    dynamic = " (dynamic)" if model.dynamic_batch else ""
    return f"{model.name}, {model.height}x{model.width}, batch {model.batch}{dynamic}{cut}"


def device_rows(report: DeviceReport, source: str) -> list[MergedRow]:
    """The rows of a device's report."""
    return [_device_row(report, engine, source) for engine in report.engines]


def _device_row(report: DeviceReport, engine: EngineResult, source: str) -> MergedRow:
    checked, timed = engine.validation, engine.benchmark
    metrics, before = checked.metrics, timed.before
    return MergedRow(
        source=source,
        target=report.target,
        runtime=engine.runtime,
        runtime_version=engine.runtime_version,
        gpu=None if checked.status == "not run" else report.machine.gpu,
        precision=engine.precision,
        size_bytes=engine.file.size_bytes,
        status=checked.status,
        reason=checked.reason,
        rel_l2=metrics.rel_l2 if metrics else None,
        argmax_agreement=metrics.argmax_agreement if metrics else None,
        top1=None,
        p50_ms=timed.engine.p50_ms if timed.engine else None,
        call_p50_ms=timed.call.p50_ms if timed.call else None,
        power_mode=before.power_mode if before else None,
        gpu_clock_mhz=before.gpu_clock_mhz if before else None,
    )


def _workstation_rows(report: ValidationReport, source: str, folder: Path) -> list[MergedRow]:
    manifest = _manifest_of(report, folder)
    return [_workstation_row(report, row, source, manifest) for row in report.rows]


def _workstation_row(
    report: ValidationReport, row: ValidationRow, source: str, manifest: Manifest | None
) -> MergedRow:
    is_graph = row.runtime == "onnxruntime"
    gates = report.gate.rows if report.gate else ()
    gate = next((g for g in gates if g.precision == report.precision), None)
    metrics = row.end_to_end
    return MergedRow(
        source=source,
        target=report.target,
        runtime=row.runtime,
        runtime_version=next((t.version for t in report.tools if t.name == row.runtime), None)
        or _engine_version(row, manifest),
        gpu=None,
        precision=report.precision,
        size_bytes=gate.onnx_bytes
        if gate and is_graph
        else gate.engine_bytes
        if gate
        else _size(row, manifest),
        status=row.status,
        reason=row.reason,
        rel_l2=metrics.rel_l2 if metrics else None,
        argmax_agreement=metrics.argmax_agreement if metrics else None,
        # Top-1 was taken in onnxruntime.
        top1=gate.top1 if gate and is_graph else None,
        p50_ms=gate.latency_ms if gate and not is_graph else None,
        call_p50_ms=None,
        power_mode=None,
        gpu_clock_mhz=None,
    )


def _manifest_of(report: ValidationReport, folder: Path) -> Manifest | None:
    """The manifest beside a report, if it is of the same build."""
    try:
        manifest = Manifest.read(folder / MANIFEST_NAME)
    except InputError:
        return None
    same = (manifest.model, manifest.target) == (report.model, report.target)
    return manifest if same else None


def _engine_version(row: ValidationRow, manifest: Manifest | None) -> str | None:
    engine = manifest.engine if manifest else None
    return engine.runtime_version if engine and engine.runtime == row.runtime else None


def _size(row: ValidationRow, manifest: Manifest | None) -> int | None:
    if manifest is None:
        return None
    if row.runtime == "onnxruntime":
        # The graph that onnxruntime ran is in the folder only where it is also the runtime's.
        names = ("model.onnx",) if manifest.lowering == "native" else ()
    else:
        names = (manifest.engine.file.name,) if manifest.engine else ()
    return next((f.size_bytes for f in manifest.files if f.name in names), None)
