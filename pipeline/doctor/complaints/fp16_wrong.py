# SPDX-License-Identifier: Apache-2.0
"""FP16 outputs are wrong or not numbers."""

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
    report = subject.report
    if report is None:
        return cannot_tell("there is no report.json: stormrt validate FOLDER makes one")
    failed = [row for row in report.rows if row.status == "failed"]
    if failed:
        layer = report.first_diverging_layer
        where = f"; the first layer that parts is {layer}" if layer else ""
        return problem(
            f"{failed[0].runtime}: {failed[0].reason}{where}",
            f"stormrt validate {subject.folder}",
        )
    passed = [row.runtime for row in report.rows if row.status == "passed"]
    missing = [row.runtime for row in report.rows if row.status == "not run"]
    if not passed:
        return cannot_tell("nothing was compared with PyTorch")
    if missing:
        return cannot_tell(
            f"{', '.join(passed)} agrees with PyTorch; not run: {', '.join(missing)}"
        )
    return ok(f"{', '.join(passed)}: within the recipe's tolerance of FP32 PyTorch")


COMPLAINT = Complaint(
    id="fp16-wrong",
    title="FP16 answers are wrong, or NaN",
    spoils="right answers",
    symptoms=(
        "Detected layernorm nodes in FP16",
        "Running layernorm after self-attention ... may cause overflow",
        "Forcing Reduce or Pow Layers in FP32 precision",
        "outputs are nan",
        "output is nan",
        "all outputs are zero",
        "NaN",
    ),
    cause="FP16 ends at 65504. Squares and sums of normalisations, and exponentials, run over it. "
    "Where TensorRT chooses precisions itself (`--fp16`), it may put those layers in FP16.",
    mend=(
        (
            "stormrt writes precisions into the graph: normalisations, the scan's arithmetic and "
            "STORM's scores stay FP32. Build from `model.onnx` strongly typed "
            "(`trtexec --stronglyTyped`, never `--fp16`), or with `stormrt build`."
        ),
        (
            "Compare with PyTorch on the board: `stormrt validate BUNDLE/`. A failed row names the "
            "first layer that parts."
        ),
        "If FP32 is right and FP16 is not: `--precision fp32`, and report the layer.",
        "Inputs have to be normalised as in training: raw 0 to 255 overflow too.",
    ),
    looks_at="report.json: every row's distance from FP32 PyTorch",
    check=_check,
    sources=(
        "NVIDIA/TensorRT#4355",
        "NVIDIA/TensorRT#2564",
        "NVIDIA/TensorRT#3656",
        "NVIDIA/TensorRT#4493",
    ),
)
