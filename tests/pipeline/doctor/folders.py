# SPDX-License-Identifier: Apache-2.0
"""Output folders that the doctor is asked about, and their reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stormrt.pipeline.doctor.subject import GraphFacts, read_subject
from stormrt.pipeline.schema import (
    REPORT_JSON_NAME,
    GateReport,
    Manifest,
    Tolerances,
    ValidationReport,
    ValidationRow,
)

GRAPH = GraphFacts(opset=18, weights={"fp16": 900, "fp32": 100}, quantised=False)


def asked(folder: Path, report: ValidationReport | None = None, **changes: object):
    """What an output folder is asked about."""
    if report is not None:
        (folder / REPORT_JSON_NAME).write_text(report.to_json())
    return replace(read_subject(folder), **changes)


def as_int8(folder: Path, **changes: object) -> Path:
    path = folder / "manifest.json"
    manifest = Manifest.read(path)
    path.write_text(manifest.model_copy(update={"precision": "int8", **changes}).to_json())
    return folder


def report(folder: Path, *rows: ValidationRow, gate: GateReport | None = None) -> ValidationReport:
    manifest = Manifest.read(folder / "manifest.json")
    return ValidationReport(
        passed=True,
        summary="as it says",
        model=manifest.model,
        storm="dense",
        weights="random",
        target="t4",
        precision="fp16",
        tolerances=Tolerances(rel_l2=1, cosine=0, argmax_agreement=0, selection_agreement=0),
        rows=rows,
        first_diverging_layer="layers.2.blocks.4"
        if any(r.status == "failed" for r in rows)
        else None,
        gate=gate,
        sources=(),
        tools=(),
    )


def row(runtime: str, status: str, reason: str = "") -> ValidationRow:
    return ValidationRow(
        runtime=runtime,
        graph="model.onnx",
        status=status,  # type: ignore[arg-type]  # one of the three
        reason=reason,
        metrics=None,
        end_to_end=None,
        selection_agreement=None,
    )
