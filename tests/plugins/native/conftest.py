# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of the plugin library: built once, and hosts that load it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.operator_bench.scan_launches import ScanLaunches
from stormrt.pipeline.probe import cuda_driver
from stormrt.plugins.builder import DEFAULT_ARCHS, BuildResult, build_library
from stormrt.plugins.native import LIBRARY_VARIABLE, NativeLibrary, load_library
from stormrt.plugins.toolchain import Toolchain, check_headers
from tests.helpers.native import (
    NATIVE,
    ROOT,
    TOOLS,
    Host,
    compile_cpp,
    headers_of_11,
    lean_library,
    require_toolchain,
)

STAND_INS = {
    # Kernels take a minute to compile; what is tested about building takes none of them.
    "selective_scan_2d/kernel.cu": """
        #include "selective_scan_2d/kernel.h"
        namespace stormrt::selective_scan_2d {
        int32_t countTactics(Params const& params) noexcept { return params.state == 1 ? 3 : 2; }
        cudaError_t launch(Params const&, int32_t, cudaStream_t) noexcept { return cudaSuccess; }
        }  // namespace stormrt::selective_scan_2d
    """,
    "spatial_unit_merge/kernel.cu": """
        #include "spatial_unit_merge/kernel.h"
        namespace stormrt::spatial_unit_merge {
        cudaError_t launch(Params const&, cudaStream_t) noexcept { return cudaSuccess; }
        }  // namespace stormrt::spatial_unit_merge
    """,
    "common/line_copy.cu": """
        #include "common/line_copy.h"
        namespace stormrt {
        cudaError_t launchLineCopy(LineCopy const&, cudaStream_t) noexcept { return cudaSuccess; }
        }  // namespace stormrt
    """,
}

HostFactory = Callable[[str | None], Host]


@pytest.fixture(scope="session")
def tools() -> Toolchain:
    return require_toolchain()


@pytest.fixture(scope="session")
def library(tools: Toolchain) -> BuildResult:
    """The real library for T4, Orin and H100. A second run of the tests finds it unchanged."""
    return build_library(TOOLS / "plugins", DEFAULT_ARCHS, toolchain=tools, strict=True)


@pytest.fixture(scope="session")
def gpu_library(tools: Toolchain) -> BuildResult:
    """The library for this machine's GPU alone."""
    return build_library(TOOLS / "plugins-gpu", (cuda_driver().gpus[0].sm,), toolchain=tools)


@pytest.fixture
def launched(gpu_library: BuildResult, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Has PyTorch's operators run the kernels; lists the operators whose kernels ran."""
    import torch  # only tests on a GPU need it

    monkeypatch.setenv(LIBRARY_VARIABLE, str(gpu_library.core))
    names: list[str] = []
    launch = NativeLibrary.launch

    def recorded(self, spec, *arguments, **options):
        names.append(spec.name)
        launch(self, spec, *arguments, **options)

    monkeypatch.setattr(NativeLibrary, "launch", recorded)
    load_library(gpu_library.core)
    yield names
    torch.cuda.synchronize()  # an error of a kernel belongs to the test that launched it


@pytest.fixture(scope="session")
def scan_launches(tools: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> ScanLaunches:
    """What the scan's host code would launch, on any GPU."""
    return ScanLaunches(tools, tmp_path_factory.mktemp("scan_launches"))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the C++ sources with kernels that compile at once."""
    return copy_sources(tmp_path / "plugins")


def copy_sources(out: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "*.cu")
    shutil.copytree(ROOT / "plugins", out, ignore=ignored)
    for name, text in STAND_INS.items():
        assert (ROOT / "plugins" / name).is_file(), f"{name}: a stand-in for nothing"
        (out / name).write_text(text)
    return out


@pytest.fixture(scope="session")
def tools_of_11(tools: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Toolchain:
    """The toolchain with headers that have TensorRT 11's registry."""
    headers = headers_of_11(tools.headers.folder, tmp_path_factory.mktemp("headers") / "of_11")
    return dataclasses.replace(tools, headers=check_headers(headers))


@pytest.fixture(scope="session")
def library_of_11(tools_of_11: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """A library that was built for TensorRT 11, with kernels that do nothing."""
    folder = tmp_path_factory.mktemp("library_of_11")
    out, copied = folder / "out", copy_sources(folder / "plugins")
    return build_library(out, (75,), toolchain=tools_of_11, sources=copied)


@pytest.fixture(scope="session")
def start_host(
    tools: Toolchain,
    tools_of_11: Toolchain,
    library: BuildResult,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[HostFactory]:
    """Starts a host that loads the real library: by dlopen, or through a lean runtime."""
    programs: dict[str, Path] = {}
    started: dict[str | None, Host] = {}

    def start(version: str | None) -> Host:
        if version not in started:
            lean = lean_library(version) if version else None
            major = version.split(".")[0] if version else "10"
            if major not in programs:
                headers = (tools_of_11 if major == "11" else tools).headers.folder
                out = tmp_path_factory.mktemp("host") / f"host{major}"
                programs[major] = compile_cpp(tools, NATIVE / "host.cpp", out, headers=headers)
            started[version] = Host(programs[major], library.core, lean)
        return started[version]

    yield start
    for host in started.values():
        host.close()
