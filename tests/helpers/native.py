# SPDX-License-Identifier: Apache-2.0
"""What the tests of the plugin library share: TensorRT's headers and registries, and a host.

TensorRT comes as wheels that ``make setup`` unpacks: the headers of 10.14 (kernel-lens) into the
environment, the lean runtimes of 10 and 11 below ``.tools/``, each in a folder of its own because
they cannot live in one environment, nor in one process.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from stormrt.errors import EnvironmentMissingError
from stormrt.plugins.toolchain import Toolchain, find_toolchain

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("STORMRT_TEST_TOOLS", ROOT / ".tools"))
NATIVE = ROOT / "tests/plugins/native"
LEAN_VERSIONS = ("10.16.1.11", "11.4.0.106")


def require_toolchain() -> Toolchain:
    """The compilers and headers of this machine; skips the test where one is missing."""
    try:
        return find_toolchain()
    except EnvironmentMissingError as error:
        pytest.skip(f"{error.what} ({error.where})")


def lean_folder(version: str) -> Path:
    """Where a lean runtime was unpacked; skips the test where it was not."""
    folder = TOOLS / f"lean-{version}"
    if not (folder / "tensorrt_lean_libs").is_dir():
        pytest.skip(f"TensorRT lean {version} is not in {folder}: run make setup")
    return folder


def lean_library(version: str) -> Path:
    """``libnvinfer_lean.so`` of a version."""
    name = f"libnvinfer_lean.so.{version.split('.')[0]}"
    return lean_folder(version) / "tensorrt_lean_libs" / name


def headers_of_11(headers: Path, out: Path) -> Path:
    """Write headers with the plugin registry that TensorRT 11 has.

    No package has TensorRT 11's headers. What they changed for plugins is the registry: the four
    functions for V2 plugins are gone from it, and with them their places in its table of virtual
    functions. Without them 10's headers fit 11, which the tests on its lean runtime prove: a
    registry of another layout does not survive one call.
    """
    shutil.copytree(headers, out)
    registry = out / "NvInferRuntimeCommon.h"
    text, removed = re.subn(
        r"TRT_DEPRECATED virtual (?:[^;]*?)\bnoexcept = 0;", "", registry.read_text()
    )
    assert removed == 4
    registry.write_text(text)
    version = out / "NvInferVersion.h"
    text, replaced = re.subn(r"(_MAJOR(?:_ENTERPRISE)?) 10\b", r"\1 11", version.read_text())
    assert replaced == 1
    version.write_text(text)
    return out


def compile_cpp(
    tools: Toolchain, source: Path, out: Path, *, headers: Path, shared: bool = False
) -> Path:
    """Compile one of the tests' C++ programs, or a library of it.

    nvcc knows where CUDA's headers and runtime are.
    """
    flags = "-Wall,-Wextra,-Werror" + (",-fPIC" if shared else "")
    command = [tools.nvcc, f"-ccbin={tools.host_compiler}", "-std=c++17", f"-Xcompiler={flags}"]
    command += ["-shared"] if shared else []
    command += ["-isystem", headers, source, "-o", out, "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


class Host:
    """The test host: a process that asks a plugin library what TensorRT would ask it."""

    def __init__(self, program: Path, core: Path, lean: Path | None) -> None:
        command = [str(program), str(core), *([str(lean)] if lean else [])]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        """What the plugin logged while it answered the last question."""
        self._read()

    def ask(self, *words: object) -> list[str]:
        """Lines of the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> list[str]:
        assert self._process.stdout is not None
        self.log = []
        answer: list[str] = []
        for line in self._process.stdout:
            text = line.rstrip("\n")
            if text == ".":
                return answer
            if text.startswith("error "):
                raise AssertionError(text)
            if text.startswith("log "):
                self.log.append(text.split(" ", 2)[2])
            else:
                answer.append(text)
        code = self._process.wait()
        assert self._process.stderr is not None
        raise AssertionError(f"the host died, exit code {code}: {self._process.stderr.read()}")

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)
