# SPDX-License-Identifier: Apache-2.0
"""INT8 loses accuracy."""

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
    if subject is None or subject.manifest is None:
        return cannot_tell(NO_SUBJECT)
    manifest, report = subject.manifest, subject.report
    if manifest.refused is not None:
        return problem(f"the gate refused INT8: {manifest.refused}", "use engine.fp16.plan")
    if manifest.precision != "int8":
        return ok(f"the build is {manifest.precision.upper()}")
    gate = report.gate if report else None
    if gate is None:
        return cannot_tell("the report has no comparison of INT8 and FP16")
    top1 = {row.precision: row.top1 for row in gate.rows}
    int8, fp16 = top1.get("int8"), top1.get("fp16")
    if int8 is None or fp16 is None:
        return cannot_tell("no labelled images were given: stormrt build --labelled DATA")
    told = f"top-1 {100 * int8:.2f} %, FP16 has {100 * fp16:.2f} %, of {gate.images} images"
    return ok(told) if gate.passed else problem(f"{told}: {'; '.join(gate.reasons)}")


COMPLAINT = Complaint(
    id="int8-accuracy",
    title="INT8 loses accuracy",
    spoils="right answers",
    symptoms=(
        "Missing scale and zero-point for tensor",
        "Calibration failure occurred with no scaling factors detected",
        "mAP drops",
        "lower mAP",
        "accuracy drop",
        "accuracy loss",
        "the gate refused",
        "the folder's INT8 engine was refused when it was built",
    ),
    cause="Scales are from too few or foreign images; a channel that outlies takes the whole "
    "range; or layers were rounded that cannot bear it. TensorRT's own calibrators are gone in 11, "
    "and their caches belong to one graph.",
    mend=(
        (
            "Calibrate on 500 images or more, of the kind that the camera sees: "
            "`stormrt calibrate --model M --data IMAGES --out T.json`."
        ),
        (
            "Give labelled images: `stormrt build ... --precision int8 --calibration T.json "
            "--labelled DATA`. The gate then refuses an engine that loses more than the recipe "
            "allows."
        ),
        (
            "Leave the layers that are hurt most in float: `stormrt calibrate ... --sensitivity "
            "--most-top1-loss X --labelled DATA` prints the lines for a recipe ([INT8](int8.md))."
        ),
        "Else use the FP16 engine, which is built beside.",
    ),
    looks_at="the gate's verdict in manifest.json, top-1 in report.json",
    check=_check,
    sources=(
        "NVIDIA/TensorRT#1834",
        "NVIDIA/TensorRT#2586",
        "NVIDIA-AI-IOT/yolov5_gpu_optimization#5",
    ),
)
