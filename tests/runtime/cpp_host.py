# SPDX-License-Identifier: Apache-2.0
"""Builds the program that tests ``engine.hpp``, with imitations of TensorRT and perhaps CUDA."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from stormrt.plugins.toolchain import Toolchain
from stormrt.runtime import CPP_INCLUDE

CPP = Path(__file__).parent / "cpp"
WARNINGS = "-Wall,-Wextra,-Wconversion,-Wshadow,-Werror"

_CLASSES = {
    # Of TensorRT's headers: the interface, the file, and the name of its implementation.
    "VRuntime": ("NvInferImpl.h", "apiv::VRuntime", "DefaultRuntime"),
    "VCudaEngine": ("NvInferImpl.h", "apiv::VCudaEngine", "DefaultCudaEngine"),
    "VExecutionContext": ("NvInferImpl.h", "apiv::VExecutionContext", "DefaultExecutionContext"),
    "IPluginRegistry": ("NvInferRuntimeCommon.h", "IPluginRegistry", "DefaultPluginRegistry"),
}
_PURE = re.compile(
    r"(?:TRT_DEPRECATED |TRT_NODISCARD )*virtual ([^;{}]*?\)(?: const)?(?: noexcept)?) = 0;"
)


def write_defaults(headers: Path, out: Path) -> Path:
    """Write an implementation of every function of some interfaces: one that ends the process."""
    parts = [
        "#pragma once",
        "#include <NvInferRuntime.h>",
        "#include <cstdio>",
        "#include <cstdlib>",
        "namespace nvinfer1 {",
        "[[noreturn]] inline void unexpected(char const* name) {",
        '    std::fprintf(stderr, "unexpected call of %s\\n", name);',
        "    std::abort();",
        "}",
    ]
    for name, (file, interface, implementation) in _CLASSES.items():
        text = re.sub(r"//[^\n]*", "", (headers / file).read_text())
        body = re.search(rf"^class {name}\b[^;{{]*\{{(.*?)^\}};", text, re.DOTALL | re.MULTILINE)
        assert body is not None, f"{file} has no {name}"
        functions = [" ".join(f.split()) for f in _PURE.findall(body[1])]
        assert len(functions) > 10, name
        parts.append(f"class {implementation} : public {interface} {{\npublic:")
        parts += [f'    {f} {{ unexpected("{name}: {f}"); }}' for f in functions]
        parts.append("};")
    parts.append("}  // namespace nvinfer1")
    out.mkdir(parents=True, exist_ok=True)
    (out / "default_implementations.h").write_text("\n".join(parts) + "\n")
    return out


def compile_program(tools: Toolchain, headers: Path, out: Path, *, real_cuda: bool = False) -> Path:
    """The program against some headers of TensorRT; with CUDA's own runtime, or the imitation."""
    generated = write_defaults(headers, out / "generated")
    sources = [CPP / "program.cpp", CPP / "fake_tensorrt.cpp"]
    command = [tools.nvcc, f"-ccbin={tools.host_compiler}", "-std=c++17", f"-Xcompiler={WARNINGS}"]
    command += ["-I", CPP_INCLUDE, "-isystem", generated, "-isystem", headers]
    command += ["--cudart=static"] if real_cuda else ["--cudart=none", CPP / "fake_cuda.cpp"]
    program = out / "program"
    done = subprocess.run(
        [*command, *sources, "-o", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return program


@dataclass(frozen=True)
class Answer:
    """What the program printed."""

    lines: list[str]
    """Results of the steps, and calls where they were asked for."""
    after: list[str]
    """Calls since then, while the engine was closed too."""
    end: str
    """``live 0`` where everything was given back."""

    @property
    def error(self) -> dict[str, str]:
        """The parts of a ``stormrt::Error``; empty where none was thrown."""
        pairs = (line.partition(": ") for line in self.lines)
        keys = ("problem", "got", "expected", "fix")
        return {key: value for key, _, value in pairs if key in keys}


def run_program(program: Path, *arguments: object) -> Answer:
    """Run it; it must end well."""
    done = subprocess.run(
        list(map(str, (program, *arguments))), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    after = lines.index("after")
    return Answer(lines[:after], [x.strip() for x in lines[after + 1 : -1]], lines[-1])
