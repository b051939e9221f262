# SPDX-License-Identifier: Apache-2.0
"""More than one TensorRT is on a machine."""

from __future__ import annotations

from stormrt.pipeline.doctor.complaint import Complaint, Finding, cannot_tell, ok, problem
from stormrt.pipeline.doctor.facts import Facts
from stormrt.pipeline.doctor.versions import agree, numbers


def _check(facts: Facts) -> Finding:
    found = facts.installations
    if not found:
        return cannot_tell("no TensorRT was found")
    told = "; ".join(f"{i.where} {i.version}" for i in found)
    versions = [numbers(i.version) for i in found]
    loaded = facts.version()
    if loaded is not None:
        versions.append(loaded)
        told += f"; Python loads {'.'.join(map(str, loaded))}"
    if all(agree(one, other) for one in versions for other in versions):
        return ok(told)
    return problem(told, "keep one: apt list --installed '*nvinfer*'; python -m pip list")


COMPLAINT = Complaint(
    id="several-tensorrts",
    title="Several TensorRTs on one machine",
    spoils="loading engines",
    symptoms=(
        "Version tag does not match",
        "TensorRT was linked against ... but loaded",
        "Linked TensorRT version ... Loaded TensorRT version",
        "you may have TRT installed with python and system",
        "MagicTag assertion failed",
    ),
    cause="trtexec, a C++ program and Python each take the TensorRT that they find first: the "
    "system's, one in `LD_LIBRARY_PATH`, or a wheel. What one builds another refuses, on the same "
    "machine.",
    mend=(
        (
            "See who takes which: `stormrt doctor`, `ldd $(which trtexec)`, "
            '`python -c "import tensorrt as t; print(t.__version__, t.__file__)"`.'
        ),
        (
            "Keep one. On a Jetson the system's: `python -m pip uninstall tensorrt tensorrt-cu12 "
            "tensorrt-cu13`, and take others out of `LD_LIBRARY_PATH`."
        ),
    ),
    looks_at="Python packages and `libnvinfer.so.*` in the loader's folders, and what Python loads",
    check=_check,
    sources=(
        "NVIDIA/TensorRT#3898",
        "NVIDIA/TensorRT#2544",
        "NVIDIA/TensorRT#1596",
        "NVIDIA/TensorRT#3945",
    ),
)
