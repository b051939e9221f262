# SPDX-License-Identifier: Apache-2.0
"""The CUDA driver is too old, or is not there."""

from __future__ import annotations

from stormrt.pipeline.doctor.complaint import Complaint, Finding, cannot_tell, ok, problem
from stormrt.pipeline.doctor.facts import Facts
from stormrt.pipeline.doctor.versions import numbers

_DRIVERS = {13: 580, 12: 535}
"""Oldest driver for a major version of CUDA (TensorRT 11.4.0's prerequisites)."""


def _check(facts: Facts) -> Finding:
    driver = facts.machine.cuda
    if driver.cuda_version is None:
        return cannot_tell(str(driver.reason))
    own = f", driver {driver.driver_version}" if driver.driver_version else ""
    told = f"CUDA {driver.cuda_version}{own}"
    if driver.reason is not None:
        return problem(f"{told}: {driver.reason}", "nvidia-smi")
    needed = _cuda_major(facts)
    if needed is None:
        return cannot_tell(f"{told}; which CUDA TensorRT was built for is not told")
    if numbers(driver.cuda_version)[:1] < (needed,):
        return problem(
            f"{told}; TensorRT is for CUDA {needed}",
            f"driver {_DRIVERS.get(needed, 'newer')} or later, or TensorRT for CUDA "
            f"{driver.cuda_version.split('.')[0]}",
        )
    return ok(f"{told}; TensorRT is for CUDA {needed}")


def _cuda_major(facts: Facts) -> int | None:
    """From the name of the wheel, as in tensorrt-cu13."""
    for installation in facts.installations:
        _, found, major = installation.where.partition("-cu")
        digits = major[:2]
        if found and digits.isdigit():
            return int(digits)
    return None


COMPLAINT = Complaint(
    id="driver-too-old",
    title="CUDA does not start: error 35, or no driver",
    spoils="building and running engines",
    symptoms=(
        "CUDA initialization failure with error",
        "CUDA driver version is insufficient for CUDA runtime version",
        "cudaErrorInsufficientDriver",
        "forward compatibility was attempted on non supported HW",
        "no CUDA-capable device is detected",
        "libcuda.so.1: cannot open shared object file",
        "the CUDA driver does not start",
        "no CUDA driver on this machine",
    ),
    cause="TensorRT was built for a newer CUDA than the driver supports, or the container was "
    "started without the GPU. TensorRT for CUDA 13 needs driver 580, for CUDA 12 driver 535. On a "
    "Jetson the driver is JetPack's: 6.x has CUDA 12.6, 7.2 has 13.2.",
    mend=(
        (
            "`nvidia-smi` tells the driver. Update it, or take the package for its CUDA: "
            "`python -m pip install 'tensorrt-cu12>=10.3,<12'`."
        ),
        (
            "In a container: `docker run --gpus all`, on a Jetson `--runtime nvidia`; the image's "
            "CUDA not above the host's."
        ),
    ),
    looks_at="the driver's CUDA, and the CUDA in the name of TensorRT's package",
    check=_check,
    sources=(
        "NVIDIA/TensorRT#2879",
        "wang-xinyu/tensorrtx#685",
        "NVlabs/FoundationStereo#209",
        "TensorRT 11.4.0 prerequisites: drivers",
    ),
)
