# SPDX-License-Identifier: Apache-2.0
"""Building the plugin library.

What can go wrong: a compiler or header that is missing is not named, or the wrong header is found
first; a library is taken for new that is not, or the reverse; a failed build destroys what was
there; a fat binary lacks a GPU; the library depends on a TensorRT or a CUDA runtime after all.
"""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.plugins import builder, toolchain
from stormrt.plugins.builder import (
    AUTOLOAD_NAME,
    CORE_NAME,
    MANIFEST_NAME,
    WORK_FOLDER,
    BuildResult,
    build_library,
    code_names,
    is_intact,
    read_manifest,
)
from stormrt.plugins.toolchain import Toolchain, find_headers, find_toolchain, read_header_version
from tests.helpers.native import ROOT

EXPORTS = {
    "getCreators",
    "setLoggerFinder",
    "stormrt_abi_version",
    "stormrt_build_info",
    "stormrt_count_tactics",
    "stormrt_get_creators",
    "stormrt_launch",
    "stormrt_set_logger_finder",
}
SYSTEM_LIBRARIES = r"lib(stdc\+\+|gcc_s|c|m|dl|rt|pthread)\.so\.\d+|ld-linux-[\w-]+\.so\.\d+"


def needed(library: Path) -> list[str]:
    text = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True)
    return re.findall(r"\(NEEDED\).*\[(.+)\]", text.stdout)


def exported(library: Path) -> set[str]:
    text = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    )
    return {line.split()[-1] for line in text.stdout.splitlines()}


def fat_binary_codes(library: Path) -> set[str]:
    """``sm_75``, ``compute_75``, ...: read from the fat binaries, not from what we say of them."""
    data = library.read_bytes()
    codes = set()
    magic = struct.pack("<I", 0xBA55ED50)
    start = data.find(magic)
    while start >= 0:
        _, header, size = struct.unpack_from("<HHQ", data, start + 4)
        at, end = start + header, start + header + size
        while at < end:
            kind, _, entry_header, payload = struct.unpack_from("<HHIQ", data, at)
            (arch,) = struct.unpack_from("<I", data, at + 28)
            codes.add({1: "compute", 2: "sm"}[kind] + f"_{arch}")
            at += entry_header + payload
        start = data.find(magic, end)
    return codes


class TestTheRealLibrary:
    def test_compiles_without_a_warning_for_t4_orin_and_h100(self, library: BuildResult):
        # Warnings are errors: that there is a library says that there was none.
        assert {"sm_75", "sm_87", "sm_90"} <= set(library.manifest.archs)

    def test_holds_machine_code_for_each_gpu_and_ptx_for_the_first_and_the_last(
        self, library: BuildResult
    ):
        expected = {"sm_75", "compute_75", "sm_87", "sm_90", "compute_90"}
        assert fat_binary_codes(library.core) == expected

    def test_depends_on_neither_tensorrt_nor_a_cuda_runtime(self, library: BuildResult):
        assert all(re.fullmatch(SYSTEM_LIBRARIES, name) for name in needed(library.core))

    def test_shows_nothing_but_its_interface(self, library: BuildResult):
        assert exported(library.core) == EXPORTS
        assert exported(library.autoload) == set()

    def test_its_autoload_library_needs_the_core_and_tensorrt_of_its_major_version(
        self, library: BuildResult
    ):
        major = library.manifest.tensorrt_headers.split(".")[0]
        ours = [n for n in needed(library.autoload) if not re.fullmatch(SYSTEM_LIBRARIES, n)]
        assert ours == [CORE_NAME, f"libnvinfer.so.{major}"]


BUILD = """
import sys
from pathlib import Path
from stormrt.plugins.builder import build_library
built = build_library(Path(sys.argv[1]), (75,), sources=Path(sys.argv[2]))
print("skipped" if built.skipped else "built")
"""


def start_build(out: Path, sources: Path) -> subprocess.Popen[str]:
    """A build in a process and a session of its own."""
    command = [sys.executable, "-c", BUILD, str(out), str(sources)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, start_new_session=True
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, "the build has ended before"
        time.sleep(0.01)


def left_in_work(out: Path) -> list[str]:
    return [p.name for p in (out / WORK_FOLDER).iterdir() if p.name != "lock"]


class TestBuilding:
    def test_does_nothing_when_nothing_has_changed(self, tools, sources: Path, tmp_path: Path):
        first = build_library(tmp_path / "out", (75,), toolchain=tools, sources=sources)
        times = [p.stat().st_mtime_ns for p in sorted((tmp_path / "out").iterdir())]
        second = build_library(tmp_path / "out", (75,), toolchain=tools, sources=sources)
        assert (first.skipped, second.skipped) == (False, True)
        assert second.manifest == first.manifest == read_manifest(tmp_path / "out")
        assert times == [p.stat().st_mtime_ns for p in sorted((tmp_path / "out").iterdir())]
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
            [CORE_NAME, AUTOLOAD_NAME, MANIFEST_NAME, WORK_FOLDER]
        )

    def test_builds_again_for_another_source_and_for_a_damaged_library(
        self, tools, sources: Path, tmp_path: Path
    ):
        out = tmp_path / "out"
        first = build_library(out, (75,), toolchain=tools, sources=sources)
        with (sources / "common/sizes.cpp").open("a") as file:
            file.write("// changed\n")
        second = build_library(out, (75,), toolchain=tools, sources=sources)
        assert not second.skipped
        assert second.manifest.key != first.manifest.key
        second.core.write_bytes(second.core.read_bytes()[:-1])
        assert not build_library(out, (75,), toolchain=tools, sources=sources).skipped

    def test_takes_a_warning_for_an_error_and_keeps_the_library_that_was_there(
        self, tools, sources: Path, tmp_path: Path
    ):
        out = tmp_path / "out"
        before = build_library(out, (75,), toolchain=tools, sources=sources, strict=True).manifest
        source = sources / "spatial_unit_gather/plugin.cpp"
        source.write_text(source.read_text() + "static int unused() { return 1; }\n")
        with pytest.raises(InputError, match="does not compile") as caught:
            build_library(out, (75,), toolchain=tools, sources=sources, strict=True)
        assert caught.value.where == str(source)
        assert "unused" in str(caught.value.got)
        assert read_manifest(out) == before
        assert left_in_work(out) == []

    def test_takes_a_warning_in_a_kernel_for_an_error(self, tools, sources: Path, tmp_path: Path):
        source = sources / "spatial_unit_merge/kernel.cu"
        source.write_text(source.read_text() + "__global__ void f() { int unused = 1; }\n")
        with pytest.raises(InputError, match="does not compile"):
            build_library(tmp_path / "out", (75,), toolchain=tools, sources=sources, strict=True)

    def test_warnings_of_a_boards_compilers_do_not_end_its_build(
        self, tools, sources: Path, tmp_path: Path
    ):
        for name, code in (
            ("spatial_unit_gather/plugin.cpp", "static int unused() { return 1; }\n"),
            ("spatial_unit_merge/kernel.cu", "__global__ void f() { int unused = 1; }\n"),
        ):
            source = sources / name
            source.write_text(source.read_text() + code)
        built = build_library(tmp_path / "out", (75,), toolchain=tools, sources=sources)
        assert is_intact(tmp_path / "out", built.manifest)

    def test_a_killed_build_leaves_no_library_and_the_next_one_sweeps_up(
        self, tools, sources: Path, tmp_path: Path
    ):
        out = tmp_path / "out"
        process = start_build(out, sources)
        wait_until(lambda: any((out / WORK_FOLDER).glob("*/*.o")), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert left_in_work(out) != []
        assert [p.name for p in out.iterdir()] == [WORK_FOLDER]
        built = build_library(out, (75,), toolchain=tools, sources=sources)
        assert is_intact(out, built.manifest)
        assert left_in_work(out) == []

    def test_of_two_builds_at_once_the_second_takes_what_the_first_has_made(
        self, sources: Path, tmp_path: Path
    ):
        out = tmp_path / "out"
        builds = [start_build(out, sources) for _ in range(2)]
        answers = [process.communicate()[0].strip() for process in builds]
        assert sorted(answers) == ["built", "skipped"]
        assert left_in_work(out) == []

    def test_a_library_that_fits_needs_no_folder_that_can_be_written(
        self, tools, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        out = tmp_path / "out"
        build_library(out, (75,), toolchain=tools, sources=sources)
        refused = InputError("could not write a file")
        monkeypatch.setattr(builder, "folder_lock", Mock(side_effect=refused))
        assert build_library(out, (75,), toolchain=tools, sources=sources).skipped
        with pytest.raises(InputError, match="could not write"):
            build_library(out, (75,), toolchain=tools, sources=sources, force=True)

    def test_says_where_it_cannot_write(self, tools, sources: Path, tmp_path: Path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="could not write"):
            build_library(tmp_path / "file/out", (75,), toolchain=tools, sources=sources)

    def test_refuses_gpus_that_nvcc_does_not_know(self, tools, tmp_path: Path):
        with pytest.raises(InputError) as caught:
            build_library(tmp_path, (75, 99999), toolchain=tools)
        assert caught.value.got == "99999"
        with pytest.raises(InputError, match="no such GPU"):
            code_names([70])
        with pytest.raises(InputError, match="no such GPU"):
            code_names([])

    def test_a_damaged_manifest_is_none(self, tmp_path: Path):
        for text in ("", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 9}'):
            (tmp_path / MANIFEST_NAME).write_text(text)
            assert read_manifest(tmp_path) is None

    def test_cmake_builds_the_same(self, tools: Toolchain, sources: Path, tmp_path: Path):
        out = tmp_path / "cmake"
        configure = ["cmake", "-S", sources, "-B", out, "-DSTORMRT_CUDA_ARCHS=87;75"]
        configure += [f"-DTRT_INCLUDE_DIR={tools.headers.folder}", "-DSTORMRT_STRICT=ON"]
        environment = {"PYTHONPATH": str(ROOT)}
        for command in (configure, ["cmake", "--build", out, "-j2"]):
            try:
                done = run(command, **environment)
            except FileNotFoundError:
                pytest.skip("cmake is not installed")
            assert done.returncode == 0, done.stdout + done.stderr
        mine = build_library(tmp_path / "mine", (75, 87), toolchain=tools, sources=sources)
        for name in (CORE_NAME, AUTOLOAD_NAME):
            assert exported(out / name) == exported(mine.core.with_name(name))
            assert set(needed(out / name)) == set(needed(mine.core.with_name(name)))
        assert fat_binary_codes(out / CORE_NAME) == fat_binary_codes(mine.core)


def run(command: list[object], **environment: str) -> subprocess.CompletedProcess[str]:
    # CMake finds the Python of this environment first.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path, **environment},
    )


class TestTheToolchain:
    @pytest.fixture
    def root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A TensorRT that TENSORRT_ROOT names, so far without headers."""
        (tmp_path / "include").mkdir()
        monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
        return tmp_path

    def headers(self, folder: Path, *lines: str) -> None:
        (folder / "NvInferRuntime.h").write_text("")
        (folder / "NvInferVersion.h").write_text("\n".join(lines))

    def test_tensorrt_root_comes_first(self, root: Path):
        self.headers(
            root / "include",
            "#define NV_TENSORRT_MAJOR 10 //!< TensorRT major version.",
            "#define NV_TENSORRT_MINOR 3",
            "#define NV_TENSORRT_PATCH 0",
        )
        found = find_headers()
        assert (found.folder, found.version_text) == (root / "include", "10.3.0")

    def test_a_tensorrt_root_without_headers_is_an_error_and_no_other_is_taken(self, root: Path):
        with pytest.raises(EnvironmentMissingError, match="headers were not found") as caught:
            find_headers()
        assert str(root) in str(caught.value.where)
        assert "libnvinfer-headers-dev" in str(caught.value.fix)

    def test_versions_may_be_macros_of_macros(self, root: Path):
        self.headers(
            root,
            "#define TRT_MAJOR_ENTERPRISE 11",
            "#define TRT_MINOR_ENTERPRISE 4",
            "#define TRT_PATCH_ENTERPRISE 1",
            "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major",
            "#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE",
            "#define NV_TENSORRT_PATCH TRT_PATCH_ENTERPRISE",
        )
        assert read_header_version(root / "NvInferVersion.h") == (11, 4, 1)

    @pytest.mark.parametrize("version", [(8, 6, 1), (10, 2, 0), (12, 0, 0)])
    def test_releases_without_our_interface_are_refused(
        self, root: Path, version: tuple[int, int, int]
    ):
        names = ("MAJOR", "MINOR", "PATCH")
        self.headers(
            root,
            *(f"#define NV_TENSORRT_{n} {v}" for n, v in zip(names, version, strict=True)),
        )
        with pytest.raises(EnvironmentMissingError, match="not supported"):
            find_headers()

    def test_headers_that_do_not_tell_their_version_are_refused(self, root: Path):
        self.headers(root, "#define NV_TENSORRT_MAJOR ten")
        with pytest.raises(EnvironmentMissingError, match="do not tell"):
            find_headers()

    @pytest.mark.parametrize("missing", ["nvcc", "g++"])
    def test_a_board_without_a_compiler_is_told_what_to_install(
        self, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        for name in {"nvcc", "g++"} - {missing}:
            program = tmp_path / name
            program.write_text("#!/bin/sh\necho V12.6.68 12.2.0\n")
            program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(toolchain, "_CUDA_FOLDER", str(tmp_path))
        with pytest.raises(EnvironmentMissingError) as caught:
            find_toolchain()
        assert missing in str(caught.value.where)
        assert "apt-get install" in str(caught.value.fix)
