# SPDX-License-Identifier: Apache-2.0
"""INT8 is slower than FP16."""

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

_TURING = 75


def _check(facts: Facts) -> Finding:
    subject = facts.subject
    if subject is None or subject.manifest is None:
        return cannot_tell(NO_SUBJECT)
    manifest, record = subject.manifest, subject.record
    if manifest.precision != "int8":
        return ok(f"the build is {manifest.precision.upper()}")
    if manifest.runtime == "tensorrt_rtx" and record is not None and record.sm == _TURING:
        return problem(
            "TensorRT-RTX runs no layer in 8 bits on SM 7.5: INT8 only costs",
            "use engine.fp16.plan, or build with --runtime tensorrt",
        )
    gate = subject.report.gate if subject.report else None
    took = {row.precision: row.latency_ms for row in gate.rows} if gate else {}
    int8, fp16 = took.get("int8"), took.get("fp16")
    if int8 is None or fp16 is None:
        return cannot_tell("the engines were not timed on this board")
    told = f"INT8 {int8:.2f} ms, FP16 {fp16:.2f} ms"
    return ok(told) if int8 < fp16 else problem(told, "use engine.fp16.plan")


COMPLAINT = Complaint(
    id="int8-slower",
    title="INT8 is slower than FP16",
    spoils="speed",
    symptoms=(
        "int8 slower than fp16",
        "int8 is slower",
        "int8 ... not faster than fp16",
        "int8 ... slower",
    ),
    cause="Only the large matrix products gain. Q/DQ around everything else adds layers that "
    "convert, and breaks fusions: ViT-L on a T4 took 132 ms in INT8 and 66 ms in FP16.",
    mend=(
        (
            "Time both on the board and keep the faster: an INT8 build has `engine.fp16.plan` "
            "beside `engine.plan`. FP16 is every recipe's default."
        ),
        (
            "Q/DQ belongs on the inputs of convolutions and matrix products alone, as stormrt "
            "places it; keep more layers in float with the recipe's `keep_float` ([INT8](int8.md))."
        ),
        "On a T4 through TensorRT-RTX no layer runs in 8 bits: use FP16, or TensorRT.",
    ),
    looks_at="the runtime and compute capability; latencies in report.json, where both were timed",
    check=_check,
    sources=(
        "NVIDIA/TensorRT#2067",
        "NVIDIA/Model-Optimizer#167",
        "NVIDIA/TensorRT#4273",
        "NVIDIA/TensorRT#3186",
    ),
)
