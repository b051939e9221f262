# SPDX-License-Identifier: Apache-2.0
"""What this machine is: packages, CUDA driver, GPUs, Jetson release and power mode, compiler.

Nothing heavy is imported: versions come from package metadata, the GPU from the CUDA driver through
ctypes. So it answers in milliseconds, and on machines where TensorRT or PyTorch do not load.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stormrt.targets import RuntimeName

UNKNOWN = "unknown"
"""Stands for a fact that this machine does not tell."""

PACKAGES: tuple[str, ...] = (
    "numpy",
    "onnx",
    "onnx-graphsurgeon",
    "onnxruntime",
    "onnxscript",
    "packaging",
    "polygraphy",
    "pydantic",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
)
"""Distributions whose version is of interest in a manifest."""

# One Python package, several distributions that carry it: by CUDA version, or split in parts.
_ALIASES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}

_LIBCUDA = "libcuda.so.1"
# Values of CUdevice_attribute in cuda.h.
_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device, as the driver describes it."""

    index: int
    """Its number in this process; CUDA_VISIBLE_DEVICES changes it."""
    name: str
    """The driver's name for it."""
    sm: int
    """Compute capability times ten: 75 is 7.5."""
    sm_count: int
    """Streaming multiprocessors."""
    memory_mib: int
    """Memory in MiB; on a Jetson the memory that it shares with the CPU."""


@dataclass(frozen=True, slots=True)
class CudaDriver:
    """The CUDA driver of this machine."""

    cuda_version: str | None
    """The newest CUDA that the driver supports, e.g. ``12.6``; None without a driver."""
    driver_version: str | None
    """The driver's own version, e.g. ``580.82``; None where it is not told."""
    gpus: tuple[Gpu, ...]
    """The devices that this process may use."""
    reason: str | None
    """Why there is no device; None where there is one."""


@dataclass(frozen=True, slots=True)
class Jetson:
    """What a Jetson board says about itself."""

    model: str
    """The board, from the device tree."""
    l4t: str
    """Release of Jetson Linux, e.g. ``36.4.3``."""
    jetpack: str
    """Release of JetPack, e.g. ``6.2``, or ``unknown`` without the package nvidia-jetpack."""
    power_mode: str
    """Mode of nvpmodel, e.g. ``MAXN``, or ``unknown``. Latencies mean nothing without it."""


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine, as far as an engine depends on it."""

    system: str
    """Operating system and kernel."""
    arch: str
    """The CPU's instruction set, e.g. ``aarch64``."""
    python: str
    """Version of this Python."""
    cpu: str
    """The CPU's model."""
    cpu_count: int
    """CPUs that this process may use."""
    memory_mib: int
    """The machine's memory in MiB."""
    packages: tuple[tuple[str, str], ...]
    """Name and version of each of `PACKAGES` that is installed."""
    cuda: CudaDriver
    jetson: Jetson | None
    """None where the machine is no Jetson."""
    nvcc: str | None
    """Version of the CUDA compiler; None without one."""


def probe_machine() -> Machine:
    """Describe this machine. Facts that it does not tell read ``unknown`` or None."""
    versions = ((name, installed_version(name)) for name in PACKAGES)
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        arch=platform.machine(),
        python=platform.python_version(),
        cpu=_cpu_model(),
        cpu_count=len(os.sched_getaffinity(0)),
        memory_mib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        packages=tuple((name, version) for name, version in versions if version is not None),
        cuda=cuda_driver(),
        jetson=jetson(),
        nvcc=nvcc_version(),
    )


def installed_version(distribution: str) -> str | None:
    """Return the installed version of a distribution, without importing it.

    Args:
        distribution: Its name on PyPI. Other names of the same package are tried too
            (``tensorrt`` is also ``tensorrt-cu13``).

    Returns:
        The version, ``unknown`` where the package can be imported and has no metadata (as some
        system packages have none), None where it is not installed.
    """
    for name in _ALIASES.get(distribution, (distribution,)):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return UNKNOWN if _is_importable(distribution.replace("-", "_")) else None


def _is_importable(module: str) -> bool:
    if module in sys.modules:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def cuda_driver() -> CudaDriver:
    """Ask the CUDA driver for its version and its devices.

    No CUDA context is made, so no GPU memory is taken. It is asked anew at each call.
    """
    try:
        cuda = ctypes.CDLL(_LIBCUDA)
    except OSError:
        return CudaDriver(None, None, (), f"no CUDA driver on this machine ({_LIBCUDA} not found)")
    status = cuda.cuInit(0)
    number = ctypes.c_int()
    version = None
    if cuda.cuDriverGetVersion(ctypes.byref(number)) == 0:
        version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    driver = _driver_version()
    if status != 0:
        return CudaDriver(version, driver, (), f"the CUDA driver does not start (error {status})")
    count = ctypes.c_int()
    status = cuda.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value == 0:
        return CudaDriver(version, driver, (), "the CUDA driver sees no GPU")
    gpus = tuple(_gpu(cuda, index) for index in range(count.value))
    return CudaDriver(version, driver, gpus, None)


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device = ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), index)

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device)
        return value.value

    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(name, len(name), device)
    memory = ctypes.c_size_t()
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    major = attribute(_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
    minor = attribute(_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
    return Gpu(
        index=index,
        name=name.value.decode(errors="replace"),
        sm=10 * major + minor,
        sm_count=attribute(_ATTRIBUTE_MULTIPROCESSOR_COUNT),
        memory_mib=memory.value >> 20,
    )


def _driver_version(root: Path = Path("/")) -> str | None:
    # The driver API tells only its CUDA version; the kernel module tells its own.
    text = _read(root / "proc/driver/nvidia/version")
    found = re.search(r"NVRM version:.*?(\d+\.\d+(?:\.\d+)?)", text)
    return found[1] if found else None


def format_sm(sm: int) -> str:
    """Return a compute capability as NVIDIA writes it.

    Example:
        >>> format_sm(75)
        'SM 7.5'
    """
    return f"SM {sm // 10}.{sm % 10}"


def engine_run_blocker(runtime: RuntimeName, sm: int) -> str | None:
    """Say why an engine cannot be run in this process.

    Args:
        runtime: The package that built the engine.
        sm: The compute capability that it was built for, times ten.

    Returns:
        The reason, as the end of a sentence such as "not run: ...", or None where it can be run.
        The reason that is hardest to mend comes first. Whether the package really loads is seen
        only when it is imported.
    """
    driver = cuda_driver()
    if driver.reason is not None:
        return driver.reason
    # CUDA gives a process device 0 unless it asks for another, and nothing here does.
    gpu = driver.gpus[0]
    if gpu.sm != sm:
        return f"the engine is for {format_sm(sm)} and this GPU is {format_sm(gpu.sm)}"
    if not _is_importable(runtime):
        return f"{runtime} is not installed"
    return None


def jetson(root: Path = Path("/")) -> Jetson | None:
    """Describe the Jetson board that this machine is.

    Args:
        root: Where its file system begins.

    Returns:
        The board, or None where the machine is no Jetson.
    """
    release = _read(root / "etc/nv_tegra_release")
    if not release:
        return None
    # "# R36 (release), REVISION: 4.3, GCID: ..."
    found = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", release)
    # The device tree ends its strings with a zero byte.
    model = _read(root / "proc/device-tree/model").strip("\0 \n")
    package = _output("dpkg-query", "--show", "--showformat=${Version}", "nvidia-jetpack")
    jetpack = re.match(r"\d+(?:\.\d+)*", package or "")
    power = re.search(r"NV Power Mode:\s*(\S+)", _output("nvpmodel", "-q") or "")
    return Jetson(
        model=model or UNKNOWN,
        l4t=f"{found[1]}.{found[2]}" if found else UNKNOWN,
        jetpack=jetpack[0] if jetpack else UNKNOWN,
        power_mode=power[1] if power else UNKNOWN,
    )


def nvcc_path() -> Path | None:
    """Return the CUDA compiler: the one in PATH, or the one where the toolkit installs it."""
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    return Path(found) if found else None


def nvcc_version() -> str | None:
    """Return the CUDA compiler's version, e.g. ``12.6.68``; None without one."""
    path = nvcc_path()
    if path is None:
        return None
    found = re.search(r"\bV(\d+\.\d+\.\d+)", _output(str(path), "--version") or "")
    return found[1] if found else UNKNOWN


def compiler_version(command: str) -> str | None:
    """Return the version of a GCC-like compiler, e.g. ``12.2.0``; None without one."""
    return (_output(command, "-dumpfullversion") or UNKNOWN) if shutil.which(command) else None


def _cpu_model(root: Path = Path("/")) -> str:
    # ARM's /proc/cpuinfo has no "model name": a Jetson is named by its device tree instead.
    found = re.search(r"^model name\s*:\s*(.+)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else UNKNOWN


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str | None:
    """Return what a command prints, None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
