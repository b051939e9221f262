# SPDX-License-Identifier: Apache-2.0
"""An engine is loaded by another TensorRT than the one that built it."""

from __future__ import annotations

from stormrt.errors import StormrtError
from stormrt.pipeline.doctor.complaint import (
    NO_SUBJECT,
    Complaint,
    Finding,
    cannot_tell,
    ok,
    problem,
)
from stormrt.pipeline.doctor.facts import Facts
from stormrt.pipeline.doctor.versions import agree


def _check(facts: Facts) -> Finding:
    subject = facts.subject
    if subject is None:
        return cannot_tell(NO_SUBJECT)
    record, header = subject.record, subject.header
    if record is None and header is None:
        return cannot_tell("there is no engine yet")
    runtime = record.runtime if record else "tensorrt"
    if header is not None and header.kind == "tensorrt_rtx":
        runtime = "tensorrt_rtx"
    loaded = facts.loading.get(runtime)
    if loaded is None or loaded.version is None:
        built = ".".join(map(str, header.version)) if header and header.version else "unknown"
        return cannot_tell(f"built by {runtime} {built}, and {runtime} does not load here")
    if record is not None and record.version is not None:
        from stormrt.runtime.record import check_version

        try:
            check_version(record, loaded.version)
        except StormrtError as error:
            return problem(f"built by {error.expected}, here is {error.got}", error.fix)
        return ok(f"built by {runtime} {record.version}, which is here")
    here = facts.version(runtime) or ()
    if header is None or header.version is None:
        return cannot_tell("the engine's file does not tell what built it")
    built = ".".join(map(str, header.version))
    if agree(header.version, here):
        return ok(f"built by {runtime} {built}, here is {loaded.version}")
    return problem(
        f"built by {runtime} {built}, here is {loaded.version}",
        "build the engine again, with the version that is here",
    )


COMPLAINT = Complaint(
    id="another-tensorrt",
    title="The engine does not load: another version of TensorRT",
    spoils="loading engines",
    symptoms=(
        "Version tag does not match",
        "Note: Current Version: ... Serialized Engine Version:",
        "stdVersionRead == ... failed",
        "safeVersionRead == safeSerializationVersion failed",
        "The engine plan file is not compatible with this version of TensorRT",
        "expecting library version ... got",
        "the engine was built by another version of",
        "Engine deserialization failed",
    ),
    cause="A plan runs with the very TensorRT that built it, to the last of four numbers. JetPack "
    "updates, containers and `pip install tensorrt` without a version change it unseen: JetPack "
    "6.2 has 10.3, 7.2 has 10.16.2.",
    mend=(
        (
            "Build the engine again where it runs, in the container in which it runs: "
            "`stormrt build BUNDLE/`. Keep the bundle; the engine is what can be thrown away."
        ),
        (
            "Or install the version that built it. `stormrt doctor ENGINE` reads it from the file; "
            "`trtexec --getPlanVersionOnly --loadEngine=ENGINE` too."
        ),
        "If both seem equal, there are [two on this machine](#several-tensorrts).",
    ),
    looks_at="the version in the manifest, or in the engine's first 28 bytes, and the version that "
    "Python loads",
    check=_check,
    sources=(
        "ultralytics/ultralytics#20427",
        "osnava/learnJetson#10",
        "NVIDIA/TensorRT#2195",
        "samples/common/sampleEngines.cpp of NVIDIA/TensorRT: where a plan has its version",
    ),
)
