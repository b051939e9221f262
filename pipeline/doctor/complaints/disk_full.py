# SPDX-License-Identifier: Apache-2.0
"""The disk is full."""

from __future__ import annotations

from stormrt.pipeline.doctor.complaint import Complaint, Finding, cannot_tell, ok, problem
from stormrt.pipeline.doctor.facts import Facts

_LEAST_MIB = 2048
"""The project's choice: VMamba-B's graph is 338 MiB in FP32, and a build holds each stage's graph,
the engine, and both once more until they take their final names."""


def _check(facts: Facts) -> Finding:
    free = facts.free_disk_mib
    if free is None:
        return cannot_tell("the file system does not tell")
    told = f"{free} MiB free where the engine would be written"
    if free < _LEAST_MIB:
        return problem(f"{told}; {_LEAST_MIB} MiB are wanted", "df -h; sudo apt-get clean")
    return ok(told)


COMPLAINT = Complaint(
    id="disk-full",
    title="No space left on the device",
    spoils="building engines",
    symptoms=(
        "No space left on device",
        "could not write a file",
        "Disk quota exceeded",
    ),
    cause="A board's eMMC or card is soon full, and a build writes each stage's "
    "graph and the engine. A build that fails leaves the files of the build before it as they "
    "were.",
    mend=(
        (
            "Make room: `df -h`, `sudo apt-get clean`, `docker system prune`; or build on an NVMe "
            "disk or USB stick: copy the bundle there."
        ),
        "`BUNDLE/.stormrt` holds the stages. It can be deleted: the next build makes it again.",
        "If there is room: the folder's permissions, or a disk that is mounted read-only.",
    ),
    looks_at="free space in the folder",
    check=_check,
    sources=("The project's own: what a build writes (docs/architecture.md)",),
)
