# SPDX-License-Identifier: Apache-2.0
"""What the plugin library is compiled with: nvcc, a host compiler, TensorRT's headers."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from stormrt.errors import EnvironmentMissingError, StormrtError

ROOT_VARIABLE = "TENSORRT_ROOT"
"""Environment variable with the folder of an unpacked TensorRT."""

OLDEST_TENSORRT = (10, 3)
"""JetPack 6.2's. 8.x has no IPluginV3."""
NEWEST_TENSORRT = (11, 99)
OLDEST_CUDA = (12, 0)

_HEADER = "NvInferRuntime.h"
_VERSION_HEADER = "NvInferVersion.h"
_CUDA_FOLDER = "/usr/local/cuda/bin"
_INSTALL_HEADERS = (
    "on a Jetson, or with NVIDIA's repository: `sudo apt-get install libnvinfer-headers-dev`. "
    f"With an archive of TensorRT: `export {ROOT_VARIABLE}=/path/to/TensorRT-10.x`. Only to "
    "develop: `python -m pip install --no-deps kernel-lens`, which carries TensorRT 10.14's headers"
)


@dataclass(frozen=True, slots=True)
class Headers:
    """A folder with TensorRT's headers."""

    folder: Path
    version: tuple[int, int, int]

    @property
    def version_text(self) -> str:
        """``10.3.0``."""
        return ".".join(map(str, self.version))


@dataclass(frozen=True, slots=True)
class Toolchain:
    """Everything that a build needs."""

    nvcc: Path
    nvcc_version: str
    host_compiler: Path
    host_compiler_version: str
    headers: Headers


def find_toolchain() -> Toolchain:
    """Find the compilers and the headers.

    Raises:
        EnvironmentMissingError: One of them is missing or of a version that will not do.
    """
    nvcc, nvcc_version = _find_nvcc()
    host, host_version = _find_host_compiler()
    return Toolchain(nvcc, nvcc_version, host, host_version, find_headers())


def _find_nvcc() -> tuple[Path, str]:
    # Jetsons have the toolkit installed, but not in PATH.
    found = shutil.which("nvcc") or shutil.which("nvcc", path=_CUDA_FOLDER)
    if found is None:
        raise EnvironmentMissingError(
            "there is no CUDA compiler on this machine",
            where=f"nvcc, in PATH and in {_CUDA_FOLDER}",
            fix="on a Jetson: `sudo apt-get install nvidia-cuda-dev` (or nvidia-jetpack); else "
            "install the CUDA toolkit. A library that was built elsewhere for the same CPU, GPU "
            "and TensorRT major version can be copied here instead",
        )
    version = _version_of(found, "--version", r"\bV(\d+\.\d+\.\d+)")
    if tuple(map(int, version.split(".")[:2])) < OLDEST_CUDA:
        raise EnvironmentMissingError(
            "the CUDA compiler is too old",
            where=found,
            got=version,
            expected=f"{'.'.join(map(str, OLDEST_CUDA))} or later",
        )
    return Path(found), version


def _find_host_compiler() -> tuple[Path, str]:
    found = shutil.which("g++")
    if found is None:
        raise EnvironmentMissingError(
            "there is no C++ compiler on this machine",
            where="g++, in PATH",
            fix="sudo apt-get install g++",
        )
    return Path(found), _version_of(found, "-dumpfullversion", r"(\d+\.\d+(?:\.\d+)?)")


def _version_of(program: str, option: str, pattern: str) -> str:
    try:
        done = subprocess.run([program, option], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentMissingError(
            "a compiler does not run", where=f"{program} {option}", got=str(error)
        ) from error
    found = re.search(pattern, done.stdout)
    if done.returncode != 0 or found is None:
        raise EnvironmentMissingError(
            "a compiler does not tell its version",
            where=f"{program} {option}",
            got=(done.stderr or done.stdout).strip()[-500:] or f"exit code {done.returncode}",
        )
    return found[1]


def header_candidates() -> tuple[Path, ...]:
    """Folders where TensorRT's headers may be, in the order in which they are looked for.

    ``TENSORRT_ROOT`` stands alone where it is set: whoever names a TensorRT wants no other.
    """
    root = os.environ.get(ROOT_VARIABLE)
    if root:
        return Path(root) / "include", Path(root)
    multiarch = f"{platform.machine()}-linux-gnu"
    folders = [
        Path("/usr/include") / multiarch,
        Path("/usr/include"),
        Path("/usr/local/include"),
        Path("/usr/local/tensorrt/include"),
        Path("/opt/tensorrt/include"),
    ]
    # Found, not imported: importing it would import PyTorch and Triton.
    kernel_lens = importlib.util.find_spec("kernel_lens")
    if kernel_lens is not None and kernel_lens.origin is not None:
        folders.append(Path(kernel_lens.origin).parent / "include/tensorrt")
    return tuple(folders)


def find_headers() -> Headers:
    """Find TensorRT's headers.

    Raises:
        EnvironmentMissingError: There are none, or the first ones found are of a release without
            IPluginV3 or of one that is not known.
    """
    candidates = header_candidates()
    folder = next((f for f in candidates if (f / _HEADER).is_file()), None)
    if folder is None:
        raise EnvironmentMissingError(
            "TensorRT's headers were not found",
            where=", ".join(map(str, candidates)),
            expected=_HEADER,
            fix=_INSTALL_HEADERS,
        )
    return check_headers(folder)


def check_headers(folder: Path) -> Headers:
    """Check that a folder's headers are of a supported release.

    Raises:
        EnvironmentMissingError: They are not, or do not tell.
    """
    version = read_header_version(folder / _VERSION_HEADER)
    if not OLDEST_TENSORRT <= version[:2] <= NEWEST_TENSORRT:
        raise EnvironmentMissingError(
            "this TensorRT is not supported",
            where=str(folder),
            got=".".join(map(str, version)),
            expected=f"{'.'.join(map(str, OLDEST_TENSORRT))} or later, "
            f"before {NEWEST_TENSORRT[0] + 1}",
            fix=f"name another with {ROOT_VARIABLE}",
        )
    return Headers(folder, version)


def read_header_version(path: Path) -> tuple[int, int, int]:
    """Read major, minor and patch from ``NvInferVersion.h``.

    Raises:
        EnvironmentMissingError: The file does not tell them.
    """
    text = path.read_text(errors="replace") if path.is_file() else ""
    macros: dict[str, str] = dict(re.findall(r"^\s*#define\s+(\w+)\s+(\w+)", text, re.MULTILINE))

    def number(name: str) -> int:
        # From 10.10 on NV_TENSORRT_MAJOR is defined as another macro.
        value = macros.get(name, "")
        value = macros.get(value, value)
        if not value.isdigit():
            raise EnvironmentMissingError(
                "TensorRT's headers do not tell their version",
                where=str(path),
                expected=f"#define {name} <number>",
                fix=_INSTALL_HEADERS,
            )
        return int(value)

    return (
        number("NV_TENSORRT_MAJOR"),
        number("NV_TENSORRT_MINOR"),
        number("NV_TENSORRT_PATCH"),
    )


def main() -> int:
    """Print the headers' folder and version, one a line, for CMake."""
    parser = argparse.ArgumentParser(description="Find TensorRT's headers.")
    parser.add_argument("--headers", type=Path, help="a folder to check, instead of a search")
    arguments = parser.parse_args()
    try:
        headers = check_headers(arguments.headers) if arguments.headers else find_headers()
    except StormrtError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"{headers.folder}\n{headers.version_text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
