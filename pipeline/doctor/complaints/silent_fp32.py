# SPDX-License-Identifier: Apache-2.0
"""TensorRT 11 has no precision flags: programs stop, or build FP32 and say nothing."""

from __future__ import annotations

from stormrt.pipeline.doctor.complaint import (
    NO_SUBJECT,
    Complaint,
    Finding,
    cannot_tell,
    ok,
    problem,
)
from stormrt.pipeline.doctor.facts import Facts


def _check(facts: Facts) -> Finding:
    subject = facts.subject
    if subject is None:
        return cannot_tell(NO_SUBJECT)
    graph = subject.graph
    if graph is None:
        return cannot_tell("the graph is not there, or the package onnx is not installed")
    halves = graph.weights.get("fp16", 0)
    total = sum(graph.weights.values())
    if not total:
        return cannot_tell("the graph has no weights")
    told = f"{100 * halves / total:.0f} % of the weights are FP16"
    told += ", with Q/DQ" if graph.quantised else ""
    if subject.manifest is None:
        if halves or graph.quantised:
            return ok(told)
        return cannot_tell(f"{told}: strongly typed, the engine is FP32, which may be wanted")
    wanted = subject.manifest.precision
    if wanted == "int8" and not graph.quantised:
        return problem(f"{told}, no Q/DQ, though the build is INT8", "build the folder again")
    if wanted == "fp16" and not halves:
        return problem(f"{told}, though the build is FP16", "build the folder again")
    return ok(f"{told}; the build is {wanted.upper()}")


COMPLAINT = Complaint(
    id="silent-fp32",
    title="TensorRT 11: no attribute FP16, or an FP32 engine where FP16 was asked for",
    spoils="building engines; speed",
    symptoms=(
        "BuilderFlag' has no attribute 'FP16'",
        "BuilderFlag' has no attribute 'INT8'",
        "has no attribute 'IInt8",
        "has no attribute 'platform_has_fast",
        "has no attribute 'CalibrationAlgoType'",
        "has no attribute 'EXPLICIT_BATCH'",
        "!config.getFlag(BuilderFlag::kFP16)",
        "silently builds an FP32 engine",
        "Unknown option: --fp16",
        "Unknown option: --int8",
    ),
    cause="TensorRT 11 and TensorRT-RTX are strongly typed: `BuilderFlag.FP16`, `INT8`, the "
    "calibrators, layer precisions and `platform_has_fast_fp16` are gone. Programs that ask "
    "`if builder.platform_has_fast_fp16` go on, and build FP32 without an error.",
    mend=(
        (
            "Put the precision into the graph: `stormrt build --precision fp16` writes casts, "
            "`int8` Q/DQ pairs. The same graph builds on TensorRT 10.3 to 11.4."
        ),
        "trtexec: leave out `--fp16` and `--int8`; on 10.x add `--stronglyTyped`.",
        "Other tools (torch2trt, older Ultralytics): `python -m pip install 'tensorrt<11'`.",
    ),
    looks_at="types of the graph's weights and Q/DQ nodes, against the precision in the manifest "
    "(needs the package onnx)",
    check=_check,
    sources=(
        "ultralytics/ultralytics#24729",
        "roboflow/rf-detr#1453",
        "NVIDIA/TensorRT-RTX#2",
        "TensorRT 11.4 migration reference: what was removed",
    ),
)
