# SPDX-License-Identifier: Apache-2.0
"""What the doctor is asked about: an output folder, an engine or a graph."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stormrt.errors import InputError, StormrtError
from stormrt.pipeline.doctor.plan_header import PlanHeader, read_plan_header

if TYPE_CHECKING:
    # Read where they are needed: the doctor also runs where pydantic is missing.
    from stormrt.pipeline.schema import Manifest, ValidationReport
    from stormrt.runtime.record import EngineRecord

_FLOATS = {1: "fp32", 10: "fp16", 16: "bf16"}
"""``TensorProto.DataType`` of onnx.proto."""


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """An ONNX graph."""

    opset: int
    """Of the standard operators."""
    weights: dict[str, int]
    """Elements of floating-point weights by type: ``fp32``, ``fp16``, ``bf16``."""
    quantised: bool
    """Whether it has Q/DQ nodes."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A path, and all that could be read of it. None: not there, or cannot be read here."""

    path: Path
    folder: Path
    manifest: Manifest | None
    record: EngineRecord | None
    header: PlanHeader | None
    """Of the engine's file."""
    report: ValidationReport | None
    graph: GraphFacts | None


def read_subject(path: Path) -> Subject:
    """Read what a path is.

    Raises:
        InputError: It does not exist, or is a folder without a readable manifest.
    """
    from stormrt.pipeline.schema import (
        MANIFEST_NAME,
        MODEL_NAME,
        REPORT_JSON_NAME,
        Manifest,
        ValidationReport,
    )
    from stormrt.runtime.manifest_record import read_record

    if not path.exists():
        raise InputError(
            "there is no such file or folder",
            where=str(path),
            expected="an output folder, an engine, an .onnx file, or an error message",
        )
    folder = path if path.is_dir() else path.parent
    is_graph = path.suffix == ".onnx"
    manifest: Manifest | None = None
    if path.is_dir() or (folder / MANIFEST_NAME).is_file():
        manifest = Manifest.read(folder / MANIFEST_NAME)
    record: EngineRecord | None = None
    if not is_graph:
        # What keeps an engine from being looked up, such as a missing plugin library, is what the
        # checks find: here it is only not there.
        with contextlib.suppress(StormrtError):
            record = read_record(path)
    plan = path if path.is_file() and not is_graph else None
    if path.is_dir() and manifest is not None and manifest.engine is not None:
        plan = folder / manifest.engine.file.name
    report = folder / REPORT_JSON_NAME
    graph = path if is_graph else folder / MODEL_NAME
    return Subject(
        path=path,
        folder=folder,
        manifest=manifest,
        record=record,
        header=_header(plan),
        report=ValidationReport.read(report) if manifest and report.is_file() else None,
        graph=read_graph(graph) if is_graph or manifest else None,
    )


def _header(plan: Path | None) -> PlanHeader | None:
    try:
        return read_plan_header(plan) if plan else None
    except OSError:
        return None


def read_graph(path: Path) -> GraphFacts | None:
    """Read a graph's opset and types; None without the package onnx, as on a board.

    Raises:
        InputError: The file is no ONNX graph.
    """
    try:
        from stormrt.pipeline.onnx_file import load_onnx
    except ImportError:
        return None
    if not path.is_file():
        return None
    model = load_onnx(path)
    weights: dict[str, int] = {}
    for tensor in model.graph.initializer:
        kind = _FLOATS.get(tensor.data_type)
        if kind is not None:
            size = 1
            for extent in tensor.dims:
                size *= extent
            weights[kind] = weights.get(kind, 0) + size
    opsets = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    return GraphFacts(
        opset=max(opsets, default=0),
        weights=weights,
        quantised=any(node.op_type == "QuantizeLinear" for node in model.graph.node),
    )
