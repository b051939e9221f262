# SPDX-License-Identifier: Apache-2.0
"""A file is loaded as an engine that is none, or that begins with something else."""

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

_FAULTS = {
    "ultralytics": (
        "Ultralytics' metadata stands before the plan",
        "cut off the first 4 bytes (a length) and as many bytes as they say",
    ),
    "pointer": ("Git LFS's pointer, not the file", "git lfs pull"),
    "empty": ("the file is empty", "copy it again, or build it again"),
    "other": ("no plan begins like this", "copy it again, or build it again"),
}


def _check(facts: Facts) -> Finding:
    subject = facts.subject
    if subject is None:
        return cannot_tell(NO_SUBJECT)
    header = subject.header
    if header is None:
        return cannot_tell("there is no engine yet")
    if header.kind in _FAULTS:
        return problem(*_FAULTS[header.kind])
    runtime = "TensorRT" if header.kind == "tensorrt" else "TensorRT-RTX"
    named = subject.record.runtime if subject.record and subject.record.version else None
    if named is not None and named != header.kind:
        return problem(
            f"a plan of {runtime}, and the manifest says {named}",
            subject.record.rebuild if subject.record else None,
        )
    record = subject.record
    if record is not None and record.sha256 is not None:
        from stormrt.pipeline.files import sha256_file

        if sha256_file(record.plan) != record.sha256:
            return problem("the file is not the one that its manifest describes", record.rebuild)
    return ok(f"a plan of {runtime}")


COMPLAINT = Complaint(
    id="not-a-plan",
    title="The engine does not load: the magic tag does not match",
    spoils="loading engines",
    symptoms=(
        "Magic tag does not match",
        "magicTagRead == ... failed",
        "plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed",
        "Failed to verify a plan tag",
        "incompatible serialization version",
    ),
    cause="The file does not begin as a plan does. Ultralytics writes a length and JSON before "
    "the plan; a copy was cut off, or is Git LFS's pointer; or it is a plan of TensorRT-RTX, which "
    "TensorRT does not load, nor the other way round.",
    mend=(
        "`stormrt doctor ENGINE` says which of these it is.",
        (
            "T4 engines that were built without a T4 are TensorRT-RTX's: run them with "
            "`stormrt.runtime.Engine`, or build one for TensorRT on the T4 "
            "(`stormrt build --runtime tensorrt`, then `stormrt build BUNDLE/` there)."
        ),
    ),
    looks_at="the file's first bytes",
    check=_check,
    sources=(
        "ultralytics/ultralytics#22910",
        "ultralytics/ultralytics#4597",
        "NVIDIA/TensorRT#2915",
        "NVIDIA/TensorRT#1384",
    ),
)
