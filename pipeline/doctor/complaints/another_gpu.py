# SPDX-License-Identifier: Apache-2.0
"""An engine was built on another GPU."""

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
from stormrt.pipeline.probe import format_sm


def _check(facts: Facts) -> Finding:
    subject, gpu = facts.subject, facts.gpu
    if subject is None:
        return cannot_tell(NO_SUBJECT)
    record, manifest = subject.record, subject.manifest
    sm = record.sm if record else None
    if sm is None and manifest is not None:
        from stormrt.targets import parse_target

        sm = parse_target(manifest.recipe, origin=str(subject.folder)).device.sm
    if sm is None:
        return cannot_tell("there is no manifest beside it: a plan does not tell its GPU")
    target = f" ({manifest.target})" if manifest else ""
    if gpu is None:
        return cannot_tell(f"for {format_sm(sm)}{target}; {facts.machine.cuda.reason}")
    if gpu.sm == sm:
        return ok(f"for {format_sm(sm)}{target}, as {gpu.name} is")
    return problem(
        f"for {format_sm(sm)}{target}; this is {gpu.name}, {format_sm(gpu.sm)}",
        "stormrt build --target TARGET (`stormrt targets check` says which)",
    )


COMPLAINT = Complaint(
    id="another-gpu",
    title="The engine does not load: it was built on another GPU",
    spoils="loading engines",
    symptoms=(
        "The engine plan file is generated on an incompatible device",
        "expecting compute ... got compute ... please rebuild",
        "Using an engine plan file across different models of devices",
        "the engine is for another GPU",
    ),
    cause="A plan holds machine code for one compute capability, and choices that were timed on "
    "one GPU. A laptop's does not run on an Orin, nor a T4's. TensorRT may also just crash.",
    mend=(
        "Copy the bundle instead of the engine, and build there: `stormrt build BUNDLE/`.",
        (
            "A bundle is for one target: `stormrt targets check` names the recipe of the machine "
            "it is typed on, `stormrt build --target TARGET` makes a bundle for it."
        ),
        (
            "Between boards of one compute capability (Orin Nano, NX, AGX) the engine may load, "
            "with a warning. It was tuned for another number of multiprocessors: build it again."
        ),
    ),
    looks_at="the compute capability in the manifest or the recipe, and this machine's GPU",
    check=_check,
    sources=(
        "ultralytics/ultralytics#18730",
        "NVIDIA/TensorRT#2900",
        "dusty-nv/jetson-inference#883",
        "NVIDIA/TensorRT#2176",
    ),
)
