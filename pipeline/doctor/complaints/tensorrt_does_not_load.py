# SPDX-License-Identifier: Apache-2.0
"""The Python package of TensorRT does not load."""

from __future__ import annotations

from stormrt.pipeline.doctor.complaint import Complaint, Finding, cannot_tell, ok, problem
from stormrt.pipeline.doctor.facts import Facts

_JETSON = "sudo apt-get install -y nvidia-jetpack python3-libnvinfer"


def _check(facts: Facts) -> Finding:
    on_board = facts.machine.jetson is not None
    loaded = facts.loading.get("tensorrt")
    if loaded is None:
        if on_board:
            return problem("TensorRT is not installed for this Python", _JETSON)
        return cannot_tell("TensorRT is not installed; only a machine that builds engines needs it")
    if loaded.problem is not None:
        return problem(f"import tensorrt: {loaded.problem}", _JETSON if on_board else None)
    return ok(f"import tensorrt: {loaded.version}")


COMPLAINT = Complaint(
    id="tensorrt-does-not-load",
    title="TensorRT is installed and does not load",
    spoils="building and running engines",
    symptoms=(
        "libnvinfer.so... cannot open shared object file",
        "libnvinfer_plugin.so... cannot open shared object file",
        "libnvdla_compiler.so: cannot open shared object file",
        "libnvcudla.so: cannot open shared object file",
        "libcudart.so... cannot open shared object file",
        "No module named 'tensorrt'",
        "TensorRT is installed and does not load",
        "TensorRT is not installed",
    ),
    cause="The package and the libraries are of different origin: a container for JetPack 6 on a "
    "host with 7.2, which has no `libnvdla_compiler.so`; a wheel from PyPI on a Jetson; or a "
    "virtual environment that does not see the system's packages.",
    mend=(
        (
            "On a Jetson take JetPack's own: `sudo apt-get install -y nvidia-jetpack "
            "python3-libnvinfer`, and make virtual environments with "
            "`python3 -m venv --system-site-packages`. With JetPack 6 PyPI's wheels do not fit."
        ),
        "In a container: one whose L4T release is the host's (`cat /etc/nv_tegra_release`).",
        "On x86: `python -m pip install 'tensorrt>=10.3,<12'`, in an environment of its own.",
    ),
    looks_at="an import in a process of its own",
    check=_check,
    sources=(
        "dusty-nv/jetson-inference#1920",
        "blakeblackshear/frigate#23582",
        "open-mmlab/mmdeploy#2594",
    ),
)
