# SPDX-License-Identifier: Apache-2.0
"""The installed TensorRT has no kernels for this GPU."""

from __future__ import annotations

from stormrt.pipeline.doctor.complaint import Complaint, Finding, cannot_tell, ok, problem
from stormrt.pipeline.doctor.facts import Facts
from stormrt.pipeline.doctor.versions import numbers
from stormrt.pipeline.probe import format_sm

_ORIN = 87
_TURING = 75
_ORIN_ON_CUDA_13 = (10, 16)
"""The first TensorRT for CUDA 13 with SM 8.7 (TensorRT 10.16.1's release notes)."""


def _check(facts: Facts) -> Finding:
    gpu, version = facts.gpu, facts.version()
    if gpu is None:
        return cannot_tell(str(facts.machine.cuda.reason))
    if version is None:
        return cannot_tell("TensorRT does not load here")
    told = ".".join(map(str, version))
    cuda = numbers(facts.machine.cuda.cuda_version or "")
    here = f"{gpu.name} is {format_sm(gpu.sm)}, TensorRT is {told}"
    if gpu.sm < _TURING and (version[0] >= 11 or cuda >= (13,)):
        return problem(f"{here}: since CUDA 13 the oldest is {format_sm(_TURING)}", None)
    if gpu.sm == _ORIN and cuda >= (13,) and version[:2] < _ORIN_ON_CUDA_13:
        return problem(
            f"{here}: for CUDA 13, {format_sm(_ORIN)} begins with 10.16",
            "sudo apt-get install -y nvidia-jetpack",
        )
    return ok(here)


COMPLAINT = Complaint(
    id="gpu-not-supported",
    title="This TensorRT does not support the GPU",
    spoils="building engines",
    symptoms=(
        "Target GPU SM ... is not supported by this TensorRT release",
        "checkCurrentSMEnabled",
        "SM ... is not supported",
    ),
    cause="Each release has kernels for a list of GPUs. JetPack 7 began with Thor: TensorRT 10.13 "
    "for CUDA 13 has none for Orin, and containers that pin it (Isaac ROS 4.5) fail on Orin, "
    "though JetPack 7.2 on the host has 10.16. CUDA 13 dropped what is older than Turing.",
    mend=(
        (
            "On Orin with JetPack 7.2: use its own TensorRT, 10.16.2; remove a pin under "
            "`/etc/apt/preferences.d/`, then `sudo apt-get install -y nvidia-jetpack`."
        ),
        "On Orin with JetPack 6: stay with TensorRT 10.3 and CUDA 12.",
        "TensorRT-RTX has neither SM 8.7 (Orin) nor 9.0 (Hopper): build with TensorRT there.",
    ),
    looks_at="compute capability, TensorRT's version and the driver's CUDA",
    check=_check,
    sources=(
        "NVIDIA-ISAAC-ROS/isaac-ros-cli#22",
        "TensorRT 10.16.1 release notes: Orin with the SBSA build",
    ),
)
