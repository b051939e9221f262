# SPDX-License-Identifier: Apache-2.0
"""What is installed, what is missing, what each piece is needed for, and the command that mends it.

The workstation phase, the device phase and the two runtimes need different things, and no machine
needs all of them. So nothing here says pass or fail: a check says what it found.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from stormrt.pipeline import probe
from stormrt.pipeline.doctor import power

Status = Literal["ok", "warning", "missing"]
Group = Literal["core", "workstation", "rtx", "device", "gpu", "compiler"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked for."""

    group: Group
    """What it belongs to: a phase, or a part of the machine."""
    name: str
    """What was looked for."""
    status: Status
    """``warning``: it is there and something about it is off."""
    found: str
    """What was found: a version, a device, or why there is none."""
    needed_for: str
    """What cannot be done without it."""
    mend: str | None
    """The command that mends it, None where nothing needs mending or no command can."""


@dataclass(frozen=True, slots=True)
class _Package:
    group: Group
    distribution: str
    needed_for: str
    least: str | None = None
    """The oldest version that works, where that is known."""


_PACKAGES: tuple[_Package, ...] = (
    _Package("core", "numpy", "everything"),
    _Package("core", "packaging", "version ranges in target recipes"),
    _Package("core", "pydantic", "target recipes", "2.0"),
    _Package("core", "rich", "the command line"),
    _Package("core", "typer", "the command line"),
    *(
        [_Package("core", "tomli", "target recipes, as Python is older than 3.11")]
        if sys.version_info < (3, 11)
        else []
    ),
    _Package("workstation", "torch", "loading checkpoints, the reference outputs"),
    _Package("workstation", "onnx", "export and rewriting"),
    _Package("workstation", "onnxscript", "export from PyTorch"),
    # Earlier releases match wrong patterns (its changelog, 0.5.9 and 0.6.1).
    _Package("workstation", "onnx-graphsurgeon", "export and rewriting", "0.6.1"),
    _Package("workstation", "onnxruntime", "checking the graph on the CPU, calibration"),
    _Package("workstation", "polygraphy", "comparing runs"),
    _Package("workstation", "scikit-image", "the sample photographs"),
    _Package("rtx", "tensorrt-rtx", "building T4 engines without a GPU", "1.7"),
    _Package("device", "tensorrt", "building and running engines on the board", "10.3"),
    _Package("device", "pycuda", "timing engines on the board"),
)


def run_checks() -> tuple[Check, ...]:
    """Look for everything that some phase needs. Nothing heavy is imported, nothing is changed.

    Returns:
        The checks, those of one group beside each other.
    """
    machine = probe.probe_machine()
    return (
        _python(),
        *_packages("core"),
        *_packages("workstation"),
        *_packages("rtx"),
        *_packages("device"),
        *_gpu(machine),
        _nvcc(machine),
        _host_compiler(),
    )


def _python() -> Check:
    return Check("core", "python", "ok", platform.python_version(), "everything", None)


def _packages(group: Group) -> Iterator[Check]:
    for package in _PACKAGES:
        if package.group == group:
            yield _package(package)


def _package(package: _Package) -> Check:
    version = probe.installed_version(package.distribution)
    mend = _install_command(package)
    if version is None:
        status: Status = "missing"
        found = "not installed"
    elif package.least and version != probe.UNKNOWN and _is_older(version, package.least):
        status = "warning"
        found = f"{version}, {package.least} or later is needed"
    else:
        return Check(package.group, package.distribution, "ok", version, package.needed_for, None)
    return Check(package.group, package.distribution, status, found, package.needed_for, mend)


def _install_command(package: _Package) -> str:
    if package.distribution == "tensorrt" and platform.machine() == "aarch64":
        # On a Jetson only JetPack's own TensorRT fits the driver. A virtual environment sees it
        # when it is made with --system-site-packages.
        return "sudo apt-get install -y python3-libnvinfer"
    wanted = package.distribution + (f">={package.least}" if package.least else "")
    if package.distribution == "tensorrt":
        wanted += ",<12"
    quoted = f"'{wanted}'" if package.least else wanted
    return f"{sys.executable} -m pip install {quoted}"


def _is_older(version: str, least: str) -> bool:
    # packaging may be the very thing that is missing, and the doctor must run all the same.
    def numbers(text: str) -> list[int]:
        parts = text.split("+")[0].split(".")
        return [int(part) for part in parts if part.isdigit()]

    return numbers(version) < numbers(least)


def _gpu(machine: probe.Machine) -> Iterator[Check]:
    needed_for = "running engines; building them with tensorrt"
    driver = machine.cuda
    if driver.cuda_version is None:
        # A driver belongs to the machine's image or its administrator: no one command is right.
        yield Check("gpu", "CUDA driver", "missing", str(driver.reason), needed_for, None)
    else:
        own = f", driver {driver.driver_version}" if driver.driver_version else ""
        yield Check(
            "gpu", "CUDA driver", "ok", f"CUDA {driver.cuda_version}{own}", needed_for, None
        )
        if not driver.gpus:
            yield Check("gpu", "GPU", "missing", str(driver.reason), needed_for, "nvidia-smi")
    for gpu in driver.gpus:
        found = f"{gpu.name}, {probe.format_sm(gpu.sm)}, {gpu.memory_mib} MiB"
        yield Check("gpu", f"GPU {gpu.index}", "ok", found, needed_for, None)
    board = machine.jetson
    if board is not None:
        found = f"JetPack {board.jetpack}, L4T {board.l4t}"
        yield Check("gpu", board.model, "ok", found, "choosing the target", None)
        # The mode in which latencies of two boards can be compared.
        full = power.is_full_power(board.power_mode, power.power_modes())
        yield Check(
            "gpu",
            "power mode",
            "ok" if full else "warning",
            board.power_mode,
            "latencies that mean something",
            None if full else power.full_power_command(power.power_modes()),
        )


def _nvcc(machine: probe.Machine) -> Check:
    needed_for = "building the plugin library"
    if machine.nvcc is not None:
        return Check("compiler", "nvcc", "ok", machine.nvcc, needed_for, None)
    return Check(
        "compiler",
        "nvcc",
        "missing",
        "not found",
        needed_for,
        "sudo apt-get install -y nvidia-cuda-toolkit"
        if machine.jetson is None
        else "sudo apt-get install -y nvidia-jetpack",
    )


def _host_compiler() -> Check:
    version = probe.compiler_version("g++")
    needed_for = "building the plugin library"
    if version is not None:
        return Check("compiler", "g++", "ok", version, needed_for, None)
    return Check(
        "compiler", "g++", "missing", "not found", needed_for, "sudo apt-get install -y g++"
    )
